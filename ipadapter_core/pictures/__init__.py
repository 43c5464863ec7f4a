"""What the encoder sees, and the faces and references that are made of it."""
