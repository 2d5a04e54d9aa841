"""What makes masks of the queries of a decoder (DETR, Carion et al. 2020, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.detr import DecoderArchitecture
from vit_jax.nn.layers import Conv, Dense, uniform
from vit_jax.nn.resnet import GroupNorm
from vit_jax.nn.sharding import spec

# At most so many groups of features are normed.
_GROUPS = 8
_LAID = ('batch', None, None, None)


class MaskHead(nnx.Module):
  """Where each query looks, and convolutions of that and of the features there, up a pyramid.

  The convolutions are those of `DecoderArchitecture.convolutions`, by their names. What the first
  one makes of features is the same for all queries, and is computed once.
  """

  query: Dense
  key: Dense
  features: Conv
  maps: Conv
  merge: Conv
  out: Conv

  def __init__(self, config: DecoderArchitecture, rngs: nnx.Rngs):
    width, heads = config.width, config.num_heads
    for name in ('query', 'key'):
      shape = (width, heads, width // heads)
      limit = (3 / width) ** 0.5  # Xavier uniform of a square matrix
      dense = Dense(rngs, shape, ('embed', None, None), kernel_init=uniform(limit))
      setattr(self, name, dense)
    for name, (side, inputs, outputs, normed, _) in config.convolutions.items():
      # As one convolution of both, of which the second has the bias and the norm.
      fan_in = side * side * (width + heads if name in ('features', 'maps') else inputs)
      conv = Conv(
        side, inputs, outputs, rngs, pad=(side // 2, side // 2), init=uniform((3 / fan_in) ** 0.5),
        bias=name != 'features',
      )  # fmt: skip
      setattr(self, name, conv)
      if normed:
        norm = GroupNorm(outputs, rngs, convention='timm', groups=_GROUPS)
        setattr(self, f'{name}_norm', norm)

  def __call__(
    self, queries: jax.Array, memory: jax.Array, there: jax.Array | None,
    levels: Sequence[jax.Array],
  ) -> jax.Array:  # fmt: skip
    """Logits of masks.

    Args:
      queries: what the last layer gives, normed, (batch, queries, width).
      memory: tokens of an image, (batch, tokens, width).
      there: which of them are of the image, bool (batch, tokens); None: all.
      levels: features to add on the way, (batch, rows, columns, features): on the grid of the
        tokens, on one with twice the rows and columns, and on one with four times as many.

    Returns:
      float32 (batch, queries, rows, columns), on the grid of the last level.
    """
    (batch, count), grid = queries.shape[:2], levels[0].shape[1:3]
    maps = self.looks(queries, memory, there).astype(memory.dtype)
    maps = maps.reshape(-1, *maps.shape[2:], out_sharding=spec('batch', None, None))
    x = self.maps(maps.reshape(-1, *grid, maps.shape[-1], out_sharding=spec(*_LAID)))
    image = memory.reshape(batch, *grid, memory.shape[-1], out_sharding=spec(*_LAID))
    x = self._relu('maps', _added(x, self.features(image)))
    x = self._relu('merge', self.merge(x))
    for number, level in enumerate(levels):
      if x.shape[1:3] != level.shape[1:3]:
        x = _doubled(x)
      name = f'refine{number}'
      x = self._relu(name, getattr(self, name)(_added(x, level)))
    found = self.out(x).astype(jnp.float32)[..., 0]
    return found.reshape(batch, count, *found.shape[1:], out_sharding=spec(*_LAID))

  def looks(self, queries: jax.Array, memory: jax.Array, there: jax.Array | None) -> jax.Array:
    """How much of its attention each query has for each token in each head.

    All heads share one softmax, as in the code of the paper.

    Returns:
      float32 (batch, queries, tokens, heads), which add up to 1 over the last two axes.
    """
    q = self.query(queries, 'bqd,dhe->bqhe', _LAID)
    k = self.key(memory, 'btd,dhe->bthe', _LAID)
    scores = jnp.einsum(
      'bqhe,bthe->bqth', q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32,
      out_sharding=spec(*_LAID),
    )  # fmt: skip
    if there is not None:
      scores = jnp.where(there[:, None, :, None], scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=(-2, -1))

  def _relu(self, name: str, x: jax.Array) -> jax.Array:
    return jax.nn.relu(getattr(self, f'{name}_norm')(x))


def _added(x: jax.Array, y: jax.Array) -> jax.Array:
  """x of each query, (batch * queries, rows, columns, features), and y of each image: the sum."""
  apart = x.reshape(len(y), -1, *x.shape[1:], out_sharding=spec(*_LAID, None))
  return (apart + y[:, None]).reshape(x.shape, out_sharding=spec(*_LAID))


def _doubled(x: jax.Array) -> jax.Array:
  """Each place as 2 x 2 of them."""
  for axis in (1, 2):
    shape: list[Any] = [*x.shape]
    wide = jnp.broadcast_to(
      jnp.expand_dims(x, axis + 1), (*shape[: axis + 1], 2, *shape[axis + 1 :]),
      out_sharding=spec(*_LAID, None),
    )  # fmt: skip
    shape[axis] *= 2
    x = wide.reshape(shape, out_sharding=spec(*_LAID))
  return x
