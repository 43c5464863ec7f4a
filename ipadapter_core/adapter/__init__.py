"""Features to tokens, tokens to K and V, K and V to what is added in a layer."""
