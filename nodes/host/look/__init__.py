"""What nodes show of an application."""
