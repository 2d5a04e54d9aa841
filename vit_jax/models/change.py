"""Classes for every pixel of a place, by pictures of two dates."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.change import DATES, ChangeArchitecture
from vit_jax.models.segmenter import Pixels
from vit_jax.models.vit import ViTConfig
from vit_jax.nn.attention import Context, Memory
from vit_jax.nn.encoder import Encoder
from vit_jax.nn.layers import Dense, normal, zeros
from vit_jax.nn.sharding import param, spec


@dataclasses.dataclass(frozen=True)
class ChangeConfig(ChangeArchitecture):
  """A model by its `ChangeArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> Change:
    """The model itself, sharded over the mesh in context."""
    return Change(self, rngs)


class Tokens(nnx.Module):
  """Features of two dates that have looked at what there is at both (BIT, Chen et al. 2021).

  A date is summed up by a few tokens, each the mean of the patches by weights of its own, a softmax
  over the place. Tokens of both dates attend to each other in one block; then the patches of a date
  attend to the tokens of that date. In BIT the encoder is a ResNet, and tokens have positions by
  date, which are the same for both here: so dates may be swapped.
  """

  def __init__(self, config: ChangeConfig, rngs: nnx.Rngs):
    width = config.encoder.width
    self.pick = Dense(rngs, (width, config.tokens), ('embed', None))
    self.position = param(normal(0.02), rngs, (1, config.tokens, width), (None,) * 3)
    self.mixer = Encoder(config.stack(1, 'full'), rngs)
    self.reader = Encoder(config.stack(config.depth, 'memory'), rngs, memory=width)
    self.dtype = config.encoder.dtype

  def __call__(self, patches: jax.Array) -> jax.Array:
    """float32 (batch, 2, rows, columns, width) -> likewise."""
    batch, dates, rows, columns, width = patches.shape
    x = _reshaped(patches, batch * dates, rows * columns, width)
    weights = jax.nn.softmax(self.pick(x, 'bnd,dt->bnt', ('batch', None, None)), axis=1)
    tokens = jnp.einsum('bnt,bnd->btd', weights, x, out_sharding=spec('batch', None, None))
    tokens = (tokens + self.position[...]).astype(self.dtype)
    mixed = self.mixer(_reshaped(tokens, batch, -1, width))[0]
    memory = Memory(_reshaped(mixed, batch * dates, -1, width))
    read = self.reader(x.astype(self.dtype), Context(memory=memory))[0]
    return _reshaped(read.astype(jnp.float32), *patches.shape)


class Change(Pixels):
  """Pictures of two dates to logits for each part of a patch."""

  def __init__(self, config: ChangeConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    config = self.config
    head = lambda width, outputs: Dense(  # noqa: E731
      rngs, (width, outputs), ('embed', None), kernel_init=zeros
    )
    if config.compare == 'tokens':
      self.tokens = Tokens(config, rngs)
    self.head = head(config.compared, config.outputs)
    if config.located:
      self.locate = head(config.encoder.width, config.detail**2)

  def said(self, images: jax.Array, *, key: Any = None) -> list[jax.Array]:
    """See `Pixels`: of every part of a patch, by both heads together.

    Args:
      images: of both dates, float (batch, 2, height, width, channels).
      key: of what is dropped in training, at each date anew.
    """
    batch, dates = images.shape[:2]
    if dates != DATES:
      raise ValueError(f'pictures of {dates} dates, not {DATES}')
    rows = _reshaped(images, batch * dates, *images.shape[2:])
    patches = self._features(rows, key)['patches'].astype(jnp.float32)
    patches = _reshaped(patches, batch, dates, *patches.shape[1:])
    seen = patches
    if self.config.compare == 'tokens':
      seen = self.tokens(patches)
    logits = self._by_head(self.head, self._compared(seen[:, 0], seen[:, 1]))
    if self.config.located:
      logits = jnp.concatenate([self._by_head(self.locate, patches[:, 0]), logits], axis=-1)
    return [logits]

  def _compared(self, before: jax.Array, after: jax.Array) -> jax.Array:
    """What the head sees, (batch, rows, columns, features)."""
    apart = jnp.abs(before - after)
    if self.config.compare == 'tokens':
      return apart
    if self.config.compare == 'symmetric':
      return jnp.concatenate([before + after, apart], axis=-1)
    return jnp.concatenate([before, after, apart], axis=-1)

  def _by_head(self, head: Dense, x: jax.Array) -> jax.Array:
    """Logits of all parts of the patches, each at its place."""
    batch, rows, columns, _ = x.shape
    detail = self.config.detail
    y = head(x, 'bhwd,dc->bhwc', ('batch', None, None, None))
    y = _reshaped(y, batch, rows, columns, detail, detail, -1).transpose(0, 1, 3, 2, 4, 5)
    return _reshaped(y, batch, rows * detail, columns * detail, -1)


def _reshaped(x: jax.Array, *shape: int) -> jax.Array:
  """An array whose first axis is, or becomes, that of the batch."""
  return x.reshape(*shape, out_sharding=spec('batch', *(None,) * (len(shape) - 1)))
