"""Data sets of the project's own: prepared from raw files on first use."""
