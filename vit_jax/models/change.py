"""Classes for every pixel of a place, by pictures of two dates."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.change import DATES, ChangeArchitecture
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn.layers import Dense, zeros
from vit_jax.nn.sharding import spec


@dataclasses.dataclass(frozen=True)
class ChangeConfig(ChangeArchitecture):
  """A model by its `ChangeArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> Change:
    """The model itself, sharded over the mesh in context."""
    return Change(self, rngs)


class Change(nnx.Module):
  """Pictures of two dates to logits for each part of a patch."""

  def __init__(self, config: ChangeConfig, rngs: nnx.Rngs):
    config = config.resolve()
    self.config = config
    self.card: Any = None
    self.encoder = ViT(config.encoder, rngs)
    head = lambda width, outputs: Dense(  # noqa: E731
      rngs, (width, outputs), ('embed', None), kernel_init=zeros
    )
    self.head = head(config.compared, config.outputs)
    if config.located:
      self.locate = head(config.encoder.width, config.detail**2)

  def __call__(self, images: jax.Array, *, key: Any = None) -> jax.Array:
    """Logits of every part of a patch.

    Args:
      images: of both dates, float (batch, 2, height, width, channels).
      key: of what is dropped in training, at each date anew.

    Returns:
      float32 (batch, rows * detail, columns * detail, num_classes).
    """
    batch, dates = images.shape[:2]
    if dates != DATES:
      raise ValueError(f'pictures of {dates} dates, not {DATES}')
    laid = lambda rank: spec('batch', *(None,) * (rank - 1))  # noqa: E731
    rows = images.reshape(batch * dates, *images.shape[2:], out_sharding=laid(images.ndim - 1))
    patches = self.encoder.features(rows, key=key)['patches'].astype(jnp.float32)
    patches = patches.reshape(batch, dates, *patches.shape[1:], out_sharding=laid(5))
    logits = self._by_head(self.head, self._compared(patches[:, 0], patches[:, 1]))
    if self.config.located:
      logits = jnp.concatenate([self._by_head(self.locate, patches[:, 0]), logits], axis=-1)
    return logits

  def said(self, images: jax.Array, *, key: Any = None) -> list[jax.Array]:
    """Logits of its only head; see `segmenter.Pixels`."""
    return [self(images, key=key)]

  def _compared(self, before: jax.Array, after: jax.Array) -> jax.Array:
    """What the head sees, (batch, rows, columns, features)."""
    apart = jnp.abs(before - after)
    if self.config.compare == 'symmetric':
      return jnp.concatenate([before + after, apart], axis=-1)
    return jnp.concatenate([before, after, apart], axis=-1)

  def _by_head(self, head: Dense, x: jax.Array) -> jax.Array:
    """Logits of all parts of the patches, each at its place."""
    batch, rows, columns, _ = x.shape
    detail = self.config.detail
    y = head(x, 'bhwd,dc->bhwc', ('batch', None, None, None))
    y = y.reshape(
      batch, rows, columns, detail, detail, -1, out_sharding=spec('batch', *(None,) * 5)
    )
    y = y.transpose(0, 1, 3, 2, 4, 5)
    shape = (batch, rows * detail, columns * detail, -1)
    return y.reshape(*shape, out_sharding=spec('batch', None, None, None))
