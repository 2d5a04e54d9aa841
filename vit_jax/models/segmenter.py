"""Classes for every pixel, from the patches of an encoder."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.segmenter import MaskTransformerArchitecture, SegmenterArchitecture
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn import positions
from vit_jax.nn.layers import Dense, Norm, normal, zeros
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import spec


@dataclasses.dataclass(frozen=True)
class SegmenterConfig(SegmenterArchitecture):
  """A segmenter by its `SegmenterArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> Segmenter:
    """The model itself, sharded over the mesh in context."""
    return Segmenter(self, rngs)


@dataclasses.dataclass(frozen=True)
class MaskTransformerConfig(MaskTransformerArchitecture):
  """A model by its `MaskTransformerArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
  decoder: ViTConfig = dataclasses.field(default_factory=lambda: ViTConfig(''))

  def create(self, rngs: nnx.Rngs) -> MaskTransformer:
    """The model itself, sharded over the mesh in context."""
    return MaskTransformer(self, rngs)


class Pixels(nnx.Module):
  """Images to logits on a grid, by a head on the patches of an encoder."""

  def __init__(self, config: Any, rngs: nnx.Rngs):
    self.config = config = config.resolve()
    self.card: Any = None
    self.encoder = ViT(config.encoder, rngs)

  def __call__(self, images: jax.Array, *, key: Any = None) -> jax.Array:
    """Logits.

    Args:
      images: float (batch, height, width, channels).
      key: of what is dropped in training.

    Returns:
      float32 (batch, rows, columns, num_classes).
    """
    return self.said(images, key=key)[0]

  def said(self, images: jax.Array, *, key: Any = None) -> list[jax.Array]:
    """Logits of every head, those of the model first; what else there is helps in training."""
    raise NotImplementedError

  def _features(self, images: jax.Array, key: Any) -> dict[str, jax.Array]:
    found = self.encoder.features(images, key=key)
    if found['patches'].ndim != 4:
      raise ValueError('patches that are left out have no classes: model.encoder.patch_dropout=0')
    return found


class Segmenter(Pixels):
  """A linear head."""

  def __init__(self, config: SegmenterConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    shape = self.config.encoder.width, self.config.num_classes
    self.head = Dense(rngs, shape, ('embed', None), kernel_init=zeros)

  def said(self, images: jax.Array, *, key: Any = None) -> list[jax.Array]:
    """See `Pixels`: of every patch."""
    patches = self._features(images, key)['patches'].astype(jnp.float32)
    return [self.head(patches, 'bhwd,dc->bhwc', ('batch', None, None, None))]


class MaskTransformer(Pixels):
  """A decoder with a token for each class."""

  def __init__(self, config: MaskTransformerConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    self.decoder = ViT(self.config.decoder, rngs)
    width = self.config.decoder.width
    square = lambda: Dense(  # noqa: E731
      rngs, (width, width), ('embed', None), kernel_init=normal(width**-0.5), bias=False
    )
    self.of_patch, self.of_class = square(), square()
    self.norm = Norm(self.config.num_classes, rngs, eps=1e-5)

  def said(self, images: jax.Array, *, key: Any = None) -> list[jax.Array]:
    """See `Pixels`: of every patch."""
    keys = (None, None) if key is None else noise(key).split()
    found = self.decoder.features(self._features(images, keys[0])['patches'], key=keys[1])
    three = ('batch', None, None)
    patches = found['patches'].astype(jnp.float32)
    patches = _unit(self.of_patch(patches, 'bhwd,de->bhwe', (*three, None)))
    classes = _unit(self.of_class(found['queries'].astype(jnp.float32), 'bkd,de->bke', three))
    cosine = jnp.einsum(
      'bhwe,bke->bhwk', patches, classes, precision='highest', out_sharding=spec(*three, None)
    )
    return [self.norm(cosine)]


def _unit(x: jax.Array) -> jax.Array:
  """Vectors of length 1; a vector of zeros stays one, and its gradient finite."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def enlarged(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Logits, or features, on a grid as on another one, bilinear between the centres of cells.

  Two products with small matrices, one for each axis.

  Args:
    logits: (batch, rows, columns, classes).
    size: height and width wanted.

  Returns:
    (batch, *size, classes), in the dtype of `logits`.
  """
  if tuple(logits.shape[1:3]) == tuple(size):
    return logits
  rows, columns = (
    positions.resize_weights(np.arange(new), new, old, 'bilinear').astype(logits.dtype)
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
