"""What files in `configs/` import."""

from vit_jax.training.config import complete

__all__ = ['complete']
