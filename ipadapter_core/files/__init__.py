"""What a file is: its tensors, its family, the encoder it needs, the published files."""
