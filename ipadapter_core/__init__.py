"""Image-prompt attention on torch alone: what a checkpoint is, features -> tokens -> K, V -> image attention."""
