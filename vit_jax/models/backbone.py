"""What networks of images that are no transformers have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.backbones import Backbone as Config
from vit_jax.nn.layers import Dense, zeros
from vit_jax.nn.noise import Noise, noise


class Backbone(nnx.Module):
  """Images to logits, through features that are pooled over places.

  Args:
    config: resolved.
    features: that are pooled.
  """

  def __init__(self, config: Config, features: int, rngs: nnx.Rngs):
    self.config: Any = config
    self.card: Any = None
    if config.num_classes:
      shape = (features, config.num_classes)
      self.head = Dense(rngs, shape, ('embed', None), kernel_init=zeros)

  def __call__(self, images: jax.Array, *, key: Any = None) -> jax.Array:
    """Logits; without a head, pooled features.

    Args:
      images: float (batch, height, width, in_channels).
      key: of stochastic depth; without one nothing is dropped.

    Returns:
      float32 (batch, num_classes) or (batch, features).
    """
    return self.features(images, key=key)['output']

  def features(self, images: jax.Array, *, key: Any = None) -> dict[str, jax.Array]:
    """Every intermediate by name; what is not used costs nothing under `jax.jit`.

    Args:
      images, key: as for the model itself.

    Returns:
      What `inside` gives, and float32: 'pooled' (batch, features), 'logits', and 'output', what the
      model returns.

    Raises:
      ValueError: if the shape of the images does not fit the model.
    """
    config = self.config
    if images.ndim != 4 or images.shape[-1] != config.in_channels:
      raise ValueError(
        f'expected images of shape (batch, height, width, {config.in_channels}), found '
        f'{images.shape}'
      )
    out = self.inside(images.astype(config.dtype), None if key is None else noise(key))
    x = out['pooled']
    if config.num_classes:
      x = out['logits'] = self.head(x, 'bd,dc->bc', ('batch', None))
    return {**out, 'output': x}

  def inside(self, images: jax.Array, key: Noise | None) -> dict[str, jax.Array]:
    """'pooled', float32, and what there is before it, by name."""
    raise NotImplementedError


def pooled(x: jax.Array) -> jax.Array:
  """The mean over places: (batch, ..., features) -> float32 (batch, features)."""
  return x.astype(jnp.float32).mean(tuple(range(1, x.ndim - 1)))
