"""What files in `configs/` import."""

from vit_jax.training.config import complete
from vit_jax.training.recipes import (
  IMAGENET,
  big_vision,
  by_names,
  chosen,
  multicrop,
  timm,
  torchvision,
)

__all__ = [
  'IMAGENET', 'big_vision', 'by_names', 'chosen', 'complete', 'multicrop', 'timm', 'torchvision',
]  # fmt: skip
