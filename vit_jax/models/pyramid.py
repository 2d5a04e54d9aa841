"""Finer grids above the patches of a plain encoder."""

from __future__ import annotations

import jax
from flax import nnx

from vit_jax.nn.layers import ACTIVATIONS, Deconv
from vit_jax.nn.resnet import GroupNorm


class Pyramid(nnx.Module):
  """Features at a quarter and at half of the stride of patches, by transposed convolutions.

  As in BEiT (Bao et al. 2022) and in the simple pyramid of ViTDet (Li et al. 2022, section 3), but
  for its widths, which are all that of the encoder.

  Args:
    width: of the encoder.
    norm: whether there is a group norm between the two convolutions to a quarter.
  """

  def __init__(self, width: int, rngs: nnx.Rngs, *, norm: bool = True):
    self.up4_first = Deconv(width, width, rngs, bias=not norm)
    if norm:
      self.up4_first_norm = GroupNorm(width, rngs, convention='timm')
    self.up4, self.up2 = (Deconv(width, width, rngs) for _ in range(2))

  def __call__(self, fine: jax.Array, middle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Four times the rows and columns of `fine`, and twice those of `middle`.

    Args:
      fine, middle: features of patches, (batch, rows, columns, width).
    """
    x = self.up4_first(fine)
    if hasattr(self, 'up4_first_norm'):
      x = self.up4_first_norm(x)
    return self.up4(ACTIVATIONS['gelu'](x)), self.up2(middle)
