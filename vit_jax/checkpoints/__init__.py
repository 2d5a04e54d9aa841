"""What runs keep on disk."""
