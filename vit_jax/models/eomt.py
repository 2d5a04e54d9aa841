"""Segments of images, by queries that the last blocks of an encoder see."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.eomt import EomtArchitecture
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn.attention import Context
from vit_jax.nn.layers import Deconv, Dense, Norm, normal, prepend_tokens, uniform, zeros
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import param, spec

_IMAGE = ('batch', None, None, None)


@dataclasses.dataclass(frozen=True)
class EomtConfig(EomtArchitecture):
  """A model by its `EomtArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> Eomt:
    """The model itself, sharded over the mesh in context."""
    return Eomt(self, rngs)


class Eomt(nnx.Module):
  """Images to a class and a mask for each query."""

  def __init__(self, config: EomtConfig, rngs: nnx.Rngs):
    self.config = config = config.resolve()
    self.card: Any = None
    width = config.encoder.width
    self.encoder = ViT(config.encoder, rngs)
    self.queries = param(normal(1.0), rngs, (1, config.queries, width), (None,) * 3)
    self.classes = _dense(width, config.num_classes + 1, rngs)
    self.mask_mlp = MaskMlp(width, rngs)
    for number in range(config.upscale):
      setattr(self, f'upscale{number}', Upscale(width, rngs))
    if config.pixel_head:
      self.pixels = Dense(rngs, (width, config.num_classes), ('embed', None), kernel_init=zeros)

  def __call__(
    self, images: jax.Array, *, key: Any = None, lifted: jax.Array | None = None, deep: bool = False
  ) -> dict[str, jax.Array]:
    """What the queries say.

    Args:
      images: float (batch, height, width, channels).
      key: of what is dropped in training.
      lifted: which queries see all patches in each of the last blocks, and not only those of the
        mask they have had before it, bool (batch, blocks, queries); without it all do.
      deep: whether they are asked before each of the last blocks, too, as in training.

    Returns:
      Of each time they are asked, the last one the last, 'logits', float32 (batch, times, queries,
      classes + 1), the last class nothing; 'masks', float32 (batch, times, queries, rows, columns),
      above 0 what is in a mask; with a pixel head and `deep` 'pixels', float32 (batch, rows,
      columns, classes), of the last time.
    """
    config, depth = self.config, self.config.encoder.depth
    keys = (None, None) if key is None else noise(key).split()
    x, context = self.encoder.tokens(images, key=keys[0])
    grid, encoder = context.grid, self.encoder.encoder
    first = depth - config.blocks
    if first:
      x, _ = encoder(x, context, key=keys[1], layers=(0, first))
    x = prepend_tokens(self.queries[...], x)
    context = _behind(context, config.queries)
    found = []
    for number in range(config.blocks):
      seen = None
      if deep or lifted is not None:
        found.append(self.said(encoder.norm(x), grid))
      if lifted is not None:
        masks = jax.lax.stop_gradient(found[-1]['masks'])
        seen = self._seen(masks, lifted[:, number], grid, x.shape[1])
      own = context.replace(mask=context.mask.replace(pairs=seen))
      x, _ = encoder(x, own, key=keys[1], layers=(first + number, first + number + 1))
    found.append(self.said(x, grid, pixels=deep))
    kept = found if deep else found[-1:]
    said = {name: jnp.stack([each[name] for each in kept], axis=1) for name in ('logits', 'masks')}
    return said | {name: found[-1][name] for name in found[-1] if name not in said}

  def said(self, x: jax.Array, grid: Any, *, pixels: bool = False) -> dict[str, jax.Array]:
    """What the queries among normed tokens say: 'logits', 'masks' and, if asked for, 'pixels'."""
    config, batch = self.config, x.shape[0]
    queries, patches = x[:, : config.queries], x[:, config.queries + config.encoder.prefix :]
    like = self.mask_mlp(queries)
    # In the order of merging, rows first, which leaves the batch as it lies.
    places = patches.reshape(batch, *grid, -1, out_sharding=spec(*_IMAGE))
    for number in range(config.upscale):
      places = getattr(self, f'upscale{number}')(places)
    out = ('batch', None, None)
    found = {
      'logits': self.classes(queries.astype(jnp.float32), 'bqd,dc->bqc', out),
      'masks': jnp.einsum('bqd,bhwd->bqhw', like, places, preferred_element_type=jnp.float32,
                          out_sharding=spec(*_IMAGE)),
    }  # fmt: skip
    if pixels and hasattr(self, 'pixels'):
      found['pixels'] = self.pixels(places.astype(jnp.float32), 'bhwd,dc->bhwc', _IMAGE)
    return found

  def _seen(self, masks: jax.Array, lifted: jax.Array, grid: Any, tokens: int) -> jax.Array:
    """Which tokens each query sees, bool (batch, queries, tokens): of patches those of its mask."""
    by = 2**self.config.upscale
    if by > 1:
      # Bilinear without antialiasing: between two cells of each axis, in the middle of a patch.
      shape, middle = masks.shape[:2], slice(by // 2 - 1, by // 2 + 1)
      masks = masks.reshape(*shape, grid[0], by, -1, out_sharding=spec(*_IMAGE, None))
      masks = masks[:, :, :, middle].mean(3)
      masks = masks.reshape(*shape, *grid, by, out_sharding=spec(*_IMAGE, None))[..., middle].mean(
        -1
      )
    inside = masks.reshape(*masks.shape[:2], -1, out_sharding=spec('batch', None, None)) > 0
    others = ((0, 0), (0, 0), (tokens - inside.shape[2], 0))
    return jnp.pad(inside | lifted[..., None], others, constant_values=True)


class MaskMlp(nnx.Module):
  """Queries to what places are compared with: three layers, with GELU between them."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    for number in range(3):
      setattr(self, f'layer{number}', _dense(width, width, rngs))

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, queries, width) -> the same."""
    for number in range(3):
      x = jax.nn.gelu(x, approximate=False) if number else x
      x = getattr(self, f'layer{number}')(x, 'bqd,de->bqe', ('batch', None, None))
    return x


class Upscale(nnx.Module):
  """Twice the rows and columns: a transposed convolution, GELU, a depthwise convolution, a norm."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.up = Deconv(width, width, rngs)
    self.near = Near(width, rngs)
    self.norm = Norm(width, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, rows, columns, width) -> (batch, 2 * rows, 2 * columns, width)."""
    y = jax.nn.gelu(self.up(x), approximate=False)
    return self.norm(self.near(y))


class Near(nnx.Module):
  """A depthwise convolution of 3 x 3 cells, with zeros around.

  Nine products of elements, which compilers fuse: on CPUs a convolution in groups and its gradients
  take two and a half times as long, and most of a small model's step.
  """

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.kernel = param(normal(1 / 3), rngs, (3, 3, 1, width), (None,) * 4)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, rows, columns, width) -> the same."""
    kernel, (rows, columns) = self.kernel[...].astype(x.dtype), x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
      x[:, down : down + rows, right : right + columns] * kernel[down, right, 0]
      for down in range(3) for right in range(3)
    ]  # fmt: skip
    return sum(shifted[1:], shifted[0])


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> Dense:
  """As PyTorch makes layers: masks are products of many features, and begin near 0 with it."""
  return Dense(rngs, (inputs, outputs), ('embed', None), kernel_init=uniform(inputs**-0.5))


def _behind(context: Context, count: int) -> Context:
  """Of tokens behind so many others, which have no place."""
  if context.angles is None:
    return context
  xp = np if isinstance(context.angles, np.ndarray) else jnp
  return context.replace(angles=xp.pad(context.angles, ((0, 0), (count, 0), (0, 0))))
