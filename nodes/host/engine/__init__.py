"""What stands on the model while it samples."""
