"""What people look at: pages, charts, pictures of predictions. No JAX."""
