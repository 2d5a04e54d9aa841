"""Programs for devices that are not there."""
