"""What files in `configs/` import."""

from vit_jax.training.config import complete
from vit_jax.training.recipes import big_vision, chosen, timm

__all__ = ['big_vision', 'chosen', 'complete', 'timm']
