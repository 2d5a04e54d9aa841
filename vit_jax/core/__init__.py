"""What everything else stands on: errors, schemas, files, text. No JAX."""
