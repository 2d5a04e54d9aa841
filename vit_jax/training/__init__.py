"""A run: its configuration, its state, its loop."""
