"""Classes for every pixel, from the patches of an encoder."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.segmenter import SegmenterArchitecture
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn import positions
from vit_jax.nn.layers import Dense, zeros
from vit_jax.nn.sharding import spec


@dataclasses.dataclass(frozen=True)
class SegmenterConfig(SegmenterArchitecture):
  """A segmenter by its `SegmenterArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> Segmenter:
    """The model itself, sharded over the mesh in context."""
    return Segmenter(self, rngs)


class Segmenter(nnx.Module):
  """Images to logits for each patch."""

  def __init__(self, config: SegmenterConfig, rngs: nnx.Rngs):
    config = config.resolve()
    self.config = config
    self.card: Any = None
    self.encoder = ViT(config.encoder, rngs)
    self.head = Dense(
      rngs, (config.encoder.width, config.num_classes), ('embed', None), kernel_init=zeros
    )

  def __call__(self, images: jax.Array, *, key: Any = None) -> jax.Array:
    """Logits of every patch.

    Args:
      images: float (batch, height, width, channels).
      key: of what is dropped in training.

    Returns:
      float32 (batch, rows, columns, num_classes).
    """
    patches = self.encoder.features(images, key=key)['patches'].astype(jnp.float32)
    if patches.ndim != 4:
      raise ValueError('patches that are left out have no classes: model.encoder.patch_dropout=0')
    return self.head(patches, 'bhwd,dc->bhwc', ('batch', None, None, None))


def enlarged(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Logits on a grid as on another one, bilinear between the centres of cells.

  Two products with small matrices, one for each axis.

  Args:
    logits: (batch, rows, columns, classes).
    size: height and width wanted.

  Returns:
    float32 (batch, *size, classes).
  """
  if tuple(logits.shape[1:3]) == tuple(size):
    return logits
  rows, columns = (
    positions.resize_weights(np.arange(new), new, old, 'bilinear')
    for new, old in zip(size, logits.shape[1:3], strict=True)
  )
  out = spec('batch', None, None, None)
  tall = jnp.einsum('Hh,bhwc->bHwc', rows, logits, precision='highest', out_sharding=out)
  return jnp.einsum('Ww,bHwc->bHWc', columns, tall, precision='highest', out_sharding=out)


def likeliest(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
  """The class of each pixel by its enlarged logits, int32 (batch, *size), in the memory of a strip.

  Args:
    logits: (batch, rows, columns, classes).
    size: height and width wanted.
  """
  rows, columns = (
    jnp.asarray(positions.resize_weights(np.arange(new), new, old, 'bilinear'))
    for new, old in zip(size, logits.shape[1:3], strict=True)
  )
  out = spec('batch', None, None, None)
  # Interpolated along the columns once, then strip by strip along the rows.
  wide = jnp.einsum('Ww,bhwc->bhWc', columns, logits, precision='highest', out_sharding=out)

  def strip(weights: jax.Array) -> jax.Array:
    tall = jnp.einsum('Hh,bhWc->bHWc', weights, wide, precision='highest', out_sharding=out)
    return jnp.argmax(tall, -1).astype(jnp.int32)

  count = math.gcd(size[0], logits.shape[1])
  strips = jax.lax.map(strip, rows.reshape(count, size[0] // count, -1))
  merged = strips.swapaxes(0, 1)
  return merged.reshape(len(logits), *size, out_sharding=spec('batch', None, None))
