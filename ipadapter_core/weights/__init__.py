"""How strongly: over the layers, over the steps, over the frames."""
