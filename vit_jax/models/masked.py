"""Models that fill in hidden patches."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.masked import MaeArchitecture, MaskedArchitecture
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn.layers import Dense
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import spec


@dataclasses.dataclass(frozen=True)
class MaskedConfig(MaskedArchitecture):
  """A model by its `MaskedArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> Masked:
    """The model itself, sharded over the mesh in context."""
    return Masked(self, rngs)


@dataclasses.dataclass(frozen=True)
class MaeConfig(MaeArchitecture):
  """A model by its `MaeArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
  decoder: ViTConfig = dataclasses.field(default_factory=lambda: ViTConfig(''))

  def create(self, rngs: nnx.Rngs) -> Mae:
    """The model itself, sharded over the mesh in context."""
    return Mae(self, rngs)


class _Filling(nnx.Module):
  """An encoder, and a head on patches."""

  def __init__(self, config: Any, rngs: nnx.Rngs):
    self.config = config = config.resolve()
    self.card: Any = None
    self.encoder = ViT(config.encoder, rngs)
    if config.outputs:
      self.head = Dense(rngs, (config.reader.width, config.outputs), ('embed', None))

  def _said(self, x: jax.Array) -> jax.Array:
    patches = x[:, self.config.reader.prefix :].astype(jnp.float32)
    return self.head(patches, 'bnd,do->bno', ('batch', None, None))


class Masked(_Filling):
  """Images and what is hidden of them to a prediction for each patch."""

  def __call__(self, images: jax.Array, hidden: jax.Array, *, key: Any = None) -> jax.Array:
    """What each patch is said to be.

    Args:
      images: float (batch, *sides, channels).
      hidden: patches that the model does not see, bool (batch, patches).
      key: of what is dropped in training.

    Returns:
      float32 (batch, patches, outputs).
    """
    return self._said(_encoded(self.encoder, images, key, masked=hidden))


class Mae(_Filling):
  """The same with a decoder; equally many patches must be hidden of each image."""

  def __init__(self, config: Any, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    self.decoder = ViT(self.config.decoder, rngs)

  def __call__(
    self, images: jax.Array, hidden: jax.Array, *, visible: int, key: Any = None
  ) -> jax.Array:
    """See `Masked`.

    Args:
      images, hidden, key: likewise.
      visible: how many patches are not hidden of each image.
    """
    config, keys = self.config, (None, None) if key is None else noise(key).split()
    # Stable: what is visible comes first, in its old order.
    order = jnp.argsort(hidden, axis=1)
    x = _encoded(self.encoder, images, keys[0], kept=order[:, :visible])
    first = config.encoder.prefix
    seen = jnp.pad(x[:, first:], ((0, 0), (0, order.shape[1] - visible), (0, 0)))
    grid = jax.vmap(lambda x, index: x[index])(seen, jnp.argsort(order, axis=1))
    grid = grid.reshape(
      len(x), *config.decoder.grid, -1, out_sharding=spec('batch', *(None,) * (grid.ndim))
    )
    y, context = self.decoder.tokens(grid, masked=hidden)
    if config.decoder.class_token:
      # It goes through the same product as the patches.
      token = self.decoder.embed.flat(x[:, :1].astype(y.dtype))
      y = jnp.concatenate([y[:, :1] + token.astype(y.dtype), y[:, 1:]], axis=1)
    return self._said(self.decoder.encoder(y, context, key=keys[1])[0])


def _encoded(encoder: ViT, images: jax.Array, key: Any, **how: Any) -> jax.Array:
  """The tokens of an encoder after its last block and norm."""
  keys = (None, None) if key is None else noise(key).split()
  x, context = encoder.tokens(images, key=keys[0], **how)
  return encoder.encoder(x, context, key=keys[1])[0]
