"""The face recogniser, and saved faces."""
