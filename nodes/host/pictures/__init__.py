"""The image encoder, and previews."""
