"""UPerNet (Xiao et al. 2018) on a plain Vision Transformer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.segmenter import UPerNetArchitecture
from vit_jax.models.pyramid import Pyramid
from vit_jax.models.segmenter import Pixels, enlarged
from vit_jax.models.vit import ViTConfig
from vit_jax.nn.layers import Conv, zeros
from vit_jax.nn.resnet import GroupNorm
from vit_jax.nn.sharding import spec


@dataclasses.dataclass(frozen=True)
class UPerNetConfig(UPerNetArchitecture):
  """A model by its `UPerNetArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> UPerNet:
    """The model itself, sharded over the mesh in context."""
    return UPerNet(self, rngs)


class UPerNet(Pixels):
  """Convolutions on a pyramid; those of `UPerNetArchitecture.convolutions`, by their names."""

  head: Conv
  auxiliary_head: Conv  # if `config.auxiliary`

  def __init__(self, config: UPerNetConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    normed = self.config.norm == 'group'
    self.pyramid = Pyramid(self.config.encoder.width, rngs, norm=normed)
    for name, (side, inputs, outputs, has_norm, _) in self.config.convolutions.items():
      norm, init = normed and has_norm, zeros if name.endswith('head') else None
      pad = (side // 2,) * 2
      made = Conv(side, inputs, outputs, rngs, pad=pad, init=init, bias=not norm)
      setattr(self, name, made)
      if norm:
        setattr(self, f'{name}_norm', GroupNorm(outputs, rngs, convention='timm'))

  def said(self, images: jax.Array, *, key: Any = None) -> list[jax.Array]:
    """See `Pixels`: of every place of the finest level, and of every patch.

    Of each of four blocks the pyramid has the features at a stride of its own: a quarter of that of
    patches, half, the same and double.
    """
    config, found = self.config, self._features(images, key)
    shape = found['patches'].shape
    grid = lambda tokens: tokens[:, config.encoder.prefix :].reshape(shape)  # noqa: E731
    fine, middle, same, coarse = (grid(found[f'block{layer:02}']) for layer in config.layers)
    coarse = jax.lax.reduce_window(
      coarse, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
    )
    levels = [*self.pyramid(fine, middle), same, coarse]
    logits = [self._decoded(levels)]
    if config.auxiliary:
      logits.append(self.auxiliary_head(self._relu('auxiliary', levels[2])))
    return [each.astype(jnp.float32) for each in logits]

  def _decoded(self, levels: list[jax.Array]) -> jax.Array:
    """Logits of the finest level."""
    config, coarsest = self.config, levels[3]
    size = lambda x: (x.shape[1], x.shape[2])  # noqa: E731
    bins = [self._relu(f'bin{n}', averaged(coarsest, n)) for n in config.bins]
    context = [coarsest, *(enlarged(x, size(coarsest)) for x in bins)]
    merged = [self._relu('context', jnp.concatenate(context, -1))]
    for level in (2, 1, 0):  # from coarse to fine
      lateral = self._relu(f'lateral{level}', levels[level])
      merged.insert(0, lateral + enlarged(merged[0], size(lateral)))
    smooth = [self._relu(f'smooth{level}', merged[level]) for level in range(3)]
    finest = size(levels[0])
    joined = jnp.concatenate([enlarged(x, finest) for x in (*smooth, merged[3])], -1)
    return self.head(self._relu('fuse', joined))

  def _relu(self, name: str, x: jax.Array) -> jax.Array:
    return jax.nn.relu(self._normed(name, getattr(self, name)(x)))

  def _normed(self, name: str, x: jax.Array) -> jax.Array:
    norm = getattr(self, f'{name}_norm', None)
    return x if norm is None else norm(x)


def averaged(x: jax.Array, bins: int) -> jax.Array:
  """Means over a grid of bins, which overlap where they do not divide the sides.

  Args:
    x: (batch, rows, columns, features).
    bins: along each axis.

  Returns:
    (batch, bins, bins, features).
  """
  rows, columns = (_bins(side, bins).astype(x.dtype) for side in x.shape[1:3])
  out = spec('batch', None, None, None)
  tall = jnp.einsum('Hh,bhwc->bHwc', rows, x, precision='highest', out_sharding=out)
  return jnp.einsum('Ww,bHwc->bHWc', columns, tall, precision='highest', out_sharding=out)


def _bins(side: int, bins: int) -> np.ndarray:
  """Weights of places in the mean of each bin, float32 (bins, side), as PyTorch cuts them."""
  first = np.arange(bins) * side // bins
  last = -(-(np.arange(bins) + 1) * side // bins)
  place = np.arange(side)
  inside = (place >= first[:, None]) & (place < last[:, None])
  return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
