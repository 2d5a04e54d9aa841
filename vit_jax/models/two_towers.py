"""An image tower and a text tower that share a space (CLIP, SigLIP)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.towers import TwoTowersArchitecture
from vit_jax.models.text import Text, TextConfig
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn.layers import normal, zeros
from vit_jax.nn.sharding import param, spec


@dataclasses.dataclass(frozen=True)
class TwoTowersConfig(TwoTowersArchitecture):
  """Two towers by their `TwoTowersArchitecture`, which documents the fields."""

  image: ViTConfig = dataclasses.field(default_factory=lambda: ViTConfig(''))
  text: TextConfig = dataclasses.field(default_factory=lambda: TextConfig(''))

  def create(self, rngs: nnx.Rngs) -> TwoTowers:
    """The model itself, sharded over the mesh in context."""
    return TwoTowers(self, rngs)


class TwoTowers(nnx.Module):
  """Similarities of images and texts."""

  def __init__(self, config: TwoTowersConfig, rngs: nnx.Rngs):
    config = config.resolve()
    self.config = config
    self.card: Any = None
    self.image = ViT(config.image, rngs)
    self.text = Text(config.text, rngs)
    if config.image.num_classes:
      # Heads start at zero, but a vector of zeros has no direction.
      self.image.head.kernel = param(
        normal(config.image.width**-0.5), rngs, self.image.head.kernel.shape, ('embed', None)
      )
    # The logarithm of the inverse temperature.
    start = 10.0 if config.logit_bias else 1 / 0.07
    scale = lambda *args: zeros(*args) + jnp.log(start)  # noqa: E731
    self.logit_scale = param(scale, rngs, (1,), (None,))
    if config.logit_bias:
      self.logit_bias = param(lambda *args: zeros(*args) - 10.0, rngs, (1,), (None,))

  def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
    """Images as for `ViT` and int (texts, tokens) -> float32 logits (images, texts)."""
    image, text = self.encode_image(images), self.encode_text(tokens)
    out = spec('batch', None)
    logits = jnp.einsum('id,td->it', image, text, out_sharding=out) * jnp.exp(self.logit_scale[...])
    return logits + self.logit_bias[...] if self.config.logit_bias else logits

  def encode_image(self, images: jax.Array, *, key: Any = None) -> jax.Array:
    """Unit vectors, float32 (images, num_classes); `key` is of what is dropped in training."""
    return _unit(self.image(images, key=key))

  def encode_text(self, tokens: jax.Array, *, key: Any = None) -> jax.Array:
    """Unit vectors, float32 (texts, num_classes), likewise."""
    return _unit(self.text(tokens, key=key))


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
