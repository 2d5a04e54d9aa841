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
    scale = lambda *args: zeros(*args) + jnp.log(config.start_scale)  # noqa: E731
    self.logit_scale = param(scale, rngs, (1,), (None,))
    if config.logit_bias:
      bias = lambda *args: zeros(*args) + config.start_bias  # noqa: E731
      self.logit_bias = param(bias, rngs, (1,), (None,))

  @property
  def scale(self) -> jax.Array:
    """Of cosines in the logits, a float32 scalar."""
    return jnp.exp(self.logit_scale[0])

  @property
  def bias(self) -> jax.Array:
    """Of the logits, a float32 scalar; 0 in a model without one."""
    return self.logit_bias[0] if self.config.logit_bias else jnp.float32(0)

  def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
    """Images as for `ViT` and int (texts, tokens) -> float32 logits (images, texts)."""
    return self.logits(self.encode_image(images), self.encode_text(tokens))

  def logits(self, images: jax.Array, texts: jax.Array) -> jax.Array:
    """Unit vectors, float32 (images, width) and (texts, width) -> float32 (images, texts)."""
    return cosines(images, texts) * self.scale + self.bias

  def encode_image(self, images: jax.Array, *, key: Any = None) -> jax.Array:
    """Unit vectors, float32 (images, num_classes); `key` is of what is dropped in training."""
    return unit(self.image(images, key=key))

  def encode_text(self, tokens: jax.Array, *, key: Any = None) -> jax.Array:
    """Unit vectors, float32 (texts, num_classes), likewise."""
    return unit(self.text(tokens, key=key))


def cosines(images: jax.Array, texts: jax.Array) -> jax.Array:
  """Unit vectors, float32 (images, width) and (texts, width) -> float32 (images, texts).

  Not in passes of bfloat16, as TPUs do by default: at a scale of 100 a logit would be 0.4 off.
  """
  out, exact = spec('batch', None), jax.lax.Precision.HIGHEST
  return jnp.einsum('id,td->it', images, texts, precision=exact, out_sharding=out)


def unit(x: jax.Array) -> jax.Array:
  """Vectors along the last axis, brought to length 1."""
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
