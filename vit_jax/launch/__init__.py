"""How commands start."""
