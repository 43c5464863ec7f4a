"""The tiny world: pictures of coloured shapes, models trained on them, and what reads the pictures. See README.md beside this file."""
