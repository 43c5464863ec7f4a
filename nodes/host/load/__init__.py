"""From files to an adapter with its encoder."""
