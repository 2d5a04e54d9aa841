"""Models that learn from a teacher of their own: DINO, iBOT and DINOv2."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.dino import DinoArchitecture
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn.layers import Dense, normal, ones, uniform
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import einsum, param, whole


@dataclasses.dataclass(frozen=True)
class DinoConfig(DinoArchitecture):
  """A model by its `DinoArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> Dino:
    """The model itself, sharded over the mesh in context."""
    return Dino(self, rngs)


class Head(nnx.Module):
  """Features to logits of prototypes (Caron et al. 2021, section 3.1 and appendix C).

  Args:
    widths: of the MLP, input first, bottleneck last.
    prototypes: how many.
    scaled: whether each has a learned factor.
  """

  def __init__(self, widths: tuple[int, ...], prototypes: int, rngs: nnx.Rngs, *, scaled: bool):
    self.layers = nnx.List(
      Dense(rngs, shape, ('embed', None), kernel_init=normal(0.02))
      for shape in itertools.pairwise(widths)
    )
    limit = widths[-1] ** -0.5  # that of PyTorch's linear layers
    self.last = Dense(
      rngs, (widths[-1], prototypes), ('embed', None), kernel_init=uniform(limit), bias=False
    )
    if scaled:
      self.scale = param(ones, rngs, (prototypes,), (None,))

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, width) of any dtype -> float32 (batch, tokens, prototypes)."""
    features = self.features(x)
    return einsum('bnd,dk->bnk', features, self.compared(), out=('batch', None, None))

  def features(self, x: jax.Array) -> jax.Array:
    """What is compared: (batch, tokens, width) -> float32 (batch, tokens, bottleneck), length 1."""
    *hidden, last = self.layers
    layout = ('batch', None, None)
    for layer in hidden:
      x = jax.nn.gelu(layer(x, 'bnd,dh->bnh', layout), approximate=False)
    return unit(last(x, 'bnd,dh->bnh', layout).astype(jnp.float32), -1)

  def compared(self) -> jax.Array:
    """What with: the prototypes as they are used, float32 (bottleneck, prototypes), not cut up."""
    kernel = unit(whole(self.last.kernel[...]), 0)
    return kernel * self.scale[...] if hasattr(self, 'scale') else kernel


class Dino(nnx.Module):
  """An encoder and its heads."""

  head: Head
  patch_head: Head  # if it is separate

  def __init__(self, config: Any, rngs: nnx.Rngs):
    self.config = config = config.resolve()
    self.card: Any = None
    self.encoder = ViT(config.encoder, rngs)
    for name, (bottleneck, prototypes) in config.sizes.items():
      head = Head(config.widths(bottleneck), prototypes, rngs, scaled=config.scaled)
      setattr(self, name, head)

  def __call__(
    self, images: jax.Array, *, hidden: jax.Array | None = None, key: Any = None
  ) -> tuple[jax.Array, jax.Array]:
    """What heads read.

    Args:
      images: float (batch, *sides, channels), of any size that patches divide.
      hidden: patches that are replaced by the mask token, bool (batch, patches).
      key: of what is dropped in training.

    Returns:
      The class token and the patches after the last norm, (batch, 1, width) and
      (batch, patches, width).
    """
    keys = (None, None) if key is None else noise(key).split()
    x, context = self.encoder.tokens(images, key=keys[0], masked=hidden)
    x = self.encoder.encoder(x, context, key=keys[1])[0]
    return x[:, :1], x[:, self.config.encoder.prefix :]

  @property
  def of_patches(self) -> Head:
    """The head that reads patches."""
    return self.patch_head if self.config.patch_head == 'separate' else self.head


def unit(x: jax.Array, axis: int) -> jax.Array:
  """Vectors along an axis, brought to length 1; with a gradient where they are 0."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis, keepdims=True), 1e-24))
