"""Detectors whose queries ask an image for objects (DETR, Carion et al. 2020).

https://arxiv.org/abs/2005.12872
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.detr import DecoderArchitecture, DetrArchitecture
from vit_jax.models.mask_head import MaskHead
from vit_jax.models.pyramid import Pyramid
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn import positions
from vit_jax.nn.attention import Context, Memory
from vit_jax.nn.encoder import Between, Encoder, make_norm
from vit_jax.nn.layers import Conv, Dense, Perceptron, constant, normal, uniform, zeros
from vit_jax.nn.masks import FULL, Mask
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import param, spec

# Of sines: of positions as in DETR, and of anchors, and what looks for them, as in DAB-DETR.
TEMPERATURE, ANCHORED = 10_000.0, 20.0
# The share of an object in all that a query may say first, with a sigmoid (Lin et al. 2017, 4.1).
PRIOR = 0.01
# Sides of the boxes that tokens say first, as shares of the image.
SIDE = 0.3


class Noisy(NamedTuple):
  """Queries of training, made from objects that are there (DN-DETR, Li et al. 2022).

  Attributes:
    label: class that a query begins with, int (batch, queries).
    box: box that it begins with: centre x, centre y, width and height as shares of the image, float
      (batch, queries, 4).
    group: queries see those of their own group, and no others: int (batch, queries), at least 1; a
      negative number where there is no query.
  """

  label: jax.Array
  box: jax.Array
  group: jax.Array


@dataclasses.dataclass(frozen=True)
class DecoderConfig(DecoderArchitecture):
  """A decoder by its `DecoderArchitecture`, which documents the fields."""

  def create(self, rngs: nnx.Rngs) -> Decoder:
    """The decoder itself, sharded over the mesh in context."""
    return Decoder(self, rngs)


@dataclasses.dataclass(frozen=True)
class DetrConfig(DetrArchitecture):
  """A model by its `DetrArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
  decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)

  def create(self, rngs: nnx.Rngs) -> Detr:
    """The model itself, sharded over the mesh in context."""
    return Detr(self, rngs)


class Decoder(nnx.Module):
  """Tokens of an image to boxes and their classes."""

  queries: nnx.Param  # their positions, or with learned anchors what they begin with
  anchors: nnx.Param  # if they are learned: logits of boxes
  labels: nnx.Param  # with denoising, of each class what a query begins with
  token_head: Dense  # if tokens are anchors
  token_boxes: Perceptron
  head: Dense
  boxes: Perceptron
  place: Perceptron  # with anchors: sines of boxes to positions
  masks: MaskHead  # if there are some

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config = config.resolve()
    self.card: Any = None
    width, count = config.width, config.queries
    self.encoder = Encoder(config, rngs, memory=width, final_norm=False)
    # Of the outputs of all layers.
    self.norm = make_norm(config, width, rngs)
    if config.anchors == 'tokens':
      self.token_norm = make_norm(config, width, rngs)
    else:
      size = 0.02 if config.anchors == 'learned' else 1.0
      self.queries = param(normal(size), rngs, (1, count, width), (None,) * 3)
    if config.anchors == 'learned':
      self.anchors = param(_scattered, rngs, (1, count, 4), (None,) * 3)
    for name, widths in config.heads.items():
      if name.endswith('head'):
        bias = class_bias(nothing=config.nothing)
        head = Dense(rngs, widths, ('embed', None), bias_init=bias)
      else:  # corrections of anchors begin at zero
        last = zeros if 'boxes' in name and config.anchors != 'none' else None
        head = Perceptron(widths, rngs, last=last)
      setattr(self, name, head)
    if config.masks:
      self.masks = MaskHead(config, rngs)
    if config.denoising:
      self.labels = param(normal(1.0), rngs, (config.num_classes, width), (None, None))

  def __call__(
    self, memory: jax.Array, points: Any, *, there: jax.Array | None = None, key: Any = None,
    noisy: Noisy | None = None, position: Any = None, levels: Sequence[jax.Array] = (),
  ) -> dict[str, jax.Array]:  # fmt: skip
    """What each query says.

    Args:
      memory: tokens of an image, (batch, tokens, width).
      points: where they are, x and y as shares of the image, float (1 or batch, tokens, 2).
      there: which of them are of the image, bool (batch, tokens); None: all.
      key: of what is dropped in training.
      noisy: further queries.
      position: of the tokens, (1 or batch, tokens, width), in place of sines of `points`.
      levels: for masks, which are said if they are given: see `MaskHead`.

    Returns:
      'logits' float32 (batch, layers, queries, outputs) and 'boxes' float32 (batch, layers,
      queries, 4): centre x, centre y, width and height, as shares of the image; the last layer is
      the answer, and with anchors=tokens the first is what those say. Of `noisy` queries
      'noisy_logits' and 'noisy_boxes', of layers behind that one. 'masks', of the last layer alone,
      float32 (batch, 1, queries, rows, columns), above 0 what is in a mask.
    """
    config, batch = self.config, len(memory)
    anchored = config.anchors != 'none'
    if position is None:
      position = positions.sines(
        points[..., ::-1], config.width // 2, ANCHORED if anchored else TEMPERATURE, xp=_of(points)
      )
    first, anchors = {}, None
    if config.anchors == 'tokens':
      x, anchors, first = self._chosen(memory, points, there)
    elif config.anchors == 'learned':
      x, anchors = (_each(w, batch) for w in (self.queries[...], self.anchors[...]))
    else:
      x = _each(jnp.zeros_like(self.queries[...]), batch)
    segments = None
    if noisy is not None:
      x, anchors, segments = self._with_noisy(x, anchors, noisy)
    context = Context(
      position=None if anchored else self.queries[...],
      mask=FULL if segments is None else Mask(segments=(segments, segments)),
      memory=Memory(memory, position, FULL if there is None else Mask(keys=there)),
    )
    between = Between(self._said, anchors, position=self._placed if anchored else None)
    x, found = self.encoder(x.astype(config.dtype), context, key=key, between=between)
    found = {name: jnp.moveaxis(each, 0, 1) for name, each in found.items()}
    own = {name: each[:, :, : config.queries] for name, each in found.items()}
    more = {f'noisy_{name}': each[:, :, config.queries :] for name, each in found.items()}
    own = {n: jnp.concatenate([first[n], own[n]], axis=1) if first else own[n] for n in own}
    if levels:
      last = self.norm(x[:, : config.queries])
      own['masks'] = self.masks(last, memory, there, levels)[:, None]
    return own | more if noisy is not None else own

  def _said(self, x: jax.Array, anchors: jax.Array | None, _: None) -> Any:
    """Of queries behind a layer: themselves, new anchors, and what they say."""
    y = self.norm(x).astype(jnp.float32)
    boxes = self.boxes(y)
    if anchors is not None:
      boxes = anchors + boxes
      anchors = jax.lax.stop_gradient(boxes)
    return x, anchors, {'logits': _classes(self.head, y), 'boxes': jax.nn.sigmoid(boxes)}

  def _placed(self, anchors: jax.Array) -> jax.Array:
    """Positions of anchors, float32 (batch, queries, width)."""
    x, y, *sides = jnp.split(jax.nn.sigmoid(anchors), 4, axis=-1)
    box = jnp.concatenate([y, x, *sides], axis=-1)
    return self.place(positions.sines(box, self.config.width // 2, ANCHORED, xp=jnp))

  def _chosen(self, memory: jax.Array, points: Any, there: jax.Array | None) -> Any:
    """Contents and anchors of queries by the tokens most like an object, and what these say."""
    tokens = self.token_norm(memory).astype(jnp.float32)
    logits = _classes(self.token_head, tokens)
    score = logits[..., : self.config.num_classes].max(-1)
    if self.config.nothing:
      score = score - logits[..., -1]
    if there is not None:
      score = jnp.where(there, score, -jnp.inf)
    best = jnp.argsort(-jax.lax.stop_gradient(score), axis=-1)[:, : self.config.queries]
    take = lambda y: jax.vmap(lambda row, index: row[index])(y, best)  # noqa: E731
    tokens, points = take(tokens), take(_each(jnp.asarray(points, jnp.float32), len(memory)))
    sides = jnp.full_like(points, SIDE)
    anchors = logit(jnp.concatenate([points, sides], axis=-1)) + self.token_boxes(tokens)
    said = {'logits': take(logits)[:, None], 'boxes': jax.nn.sigmoid(anchors)[:, None]}
    return *jax.lax.stop_gradient((tokens, anchors)), said

  def _with_noisy(self, x: jax.Array, anchors: jax.Array | None, noisy: Noisy) -> Any:
    """Queries and anchors with further ones behind them, and the group of each."""
    if anchors is None or not self.config.denoising:
      raise ValueError('this decoder has no queries of noisy boxes: create it with denoising=True')
    out = spec('batch', None, None)
    label = self.labels[...].at[noisy.label].get(out_sharding=out)
    x = jnp.concatenate([x, label.astype(x.dtype)], axis=1)
    anchors = jnp.concatenate([anchors, logit(noisy.box)], axis=1)
    group = jnp.pad(noisy.group, ((0, 0), (self.config.queries, 0)))
    return x, anchors, group


class Detr(nnx.Module):
  """Images to boxes and their classes, by queries that look at patches."""

  def __init__(self, config: DetrConfig, rngs: nnx.Rngs):
    self.config = config = config.resolve()
    self.card: Any = None
    self.encoder = ViT(config.encoder, rngs)
    self.project = Dense(rngs, (config.encoder.width, config.decoder.width), ('embed', None))
    self.decoder = Decoder(config.decoder, rngs)
    if config.decoder.masks:
      self.pyramid = Pyramid(config.encoder.width, rngs)
      for name, (side, inputs, outputs, *_) in config.laterals.items():
        init = uniform((3 / inputs) ** 0.5)
        setattr(self, name, Conv(side, inputs, outputs, rngs, init=init))

  def __call__(
    self, images: jax.Array, *, key: Any = None, extent: jax.Array | None = None,
    noisy: Noisy | None = None,
  ) -> dict[str, jax.Array]:  # fmt: skip
    """What each query says; see `Decoder`.

    Args:
      images: float (batch, height, width, channels).
      key: of what is dropped in training.
      extent: which share of the height and of the width is the image, from the top and the left,
        float (batch, 2): the rest is filled up, and nobody looks at it. None: all.
      noisy: further queries.
    """
    encoder, keys = self.encoder, (None,) * 3 if key is None else noise(key).split(3)
    x, context = encoder.tokens(images, key=keys[0])
    context, points, there = shown(context, encoder.config.prefix, extent)
    x, _ = encoder.encoder(x, context, key=keys[1])
    patches = x[:, encoder.config.prefix :]
    if there is not None:  # convolutions have no other way not to look
      patches = jnp.where(there[..., None], patches, 0)
    memory = self.project(patches, 'btd,dw->btw', ('batch', None, None))
    levels = self._levels(patches, context.grid) if self.config.decoder.masks else ()
    return self.decoder(memory, points, there=there, key=keys[2], noisy=noisy, levels=levels)

  def _levels(self, patches: jax.Array, grid: Any) -> list[jax.Array]:
    """Of patches, (batch, patches, features), what is added to features of masks."""
    shape = len(patches), *grid, patches.shape[-1]
    places = patches.reshape(shape, out_sharding=spec('batch', None, None, None))
    finest, finer = self.pyramid(places, places)
    return [
      getattr(self, name)(level)
      for name, level in zip(self.config.laterals, (places, finer, finest), strict=True)
    ]


def shown(
  context: Context, prefix: int, extent: jax.Array | None
) -> tuple[Context, Any, jax.Array | None]:
  """Where patches are in images that may not fill their frame.

  Args:
    context: of the tokens of an encoder, on a grid of two axes.
    prefix: tokens before the patches.
    extent: as for `Detr`.

  Returns:
    The context in which nobody looks at patches that are no image; the centres of patches, x and y
    as shares of the image, float (1 or batch, patches, 2); and which of them are there, bool
    (batch, patches), or None for all.
  """
  grid: Any = context.grid
  points = (positions.grid_coords(*grid)[:, ::-1] + 0.5)[None] / np.array(grid[::-1])
  if extent is None:
    return context, points, None
  # A patch is there if some of it is.
  start, extent = points - 0.5 / np.array(grid[::-1]), extent[:, None, ::-1]
  there: Any = (start < extent).all(-1)
  keys = jnp.pad(there, ((0, 0), (prefix, 0)), constant_values=True)
  return context.replace(mask=Mask(keys=keys)), points / extent, there


def class_bias(*, nothing: bool) -> Any:
  """Initial values of the bias of classes: zeros before a softmax, else by `PRIOR`."""
  return zeros if nothing else constant(-math.log((1 - PRIOR) / PRIOR))


def _classes(head: Dense, x: jax.Array) -> jax.Array:
  return head(x, 'btd,dc->btc', ('batch', None, None))


def _scattered(key: jax.Array, shape: tuple[int, ...], sharding: Any) -> jax.Array:
  """Logits of boxes: centres evenly over the image, sides around half of it."""
  spread = uniform(1.0)(key, shape, sharding)
  return jnp.where(jnp.arange(4) < 2, logit(spread / 2 + 0.5), spread)


def logit(x: jax.Array) -> jax.Array:
  """The inverse of the sigmoid of numbers from 0 to 1, which are kept away from both."""
  x = jnp.clip(x, 1e-3, 1 - 1e-3)
  return jnp.log(x) - jnp.log1p(-x)


def _each(x: jax.Array, batch: int) -> jax.Array:
  """(1 or batch, ...) -> (batch, ...)."""
  if x.shape[0] == batch:
    return x
  return jnp.broadcast_to(x, (batch, *x.shape[1:]), out_sharding=spec('batch', None, None))


def _of(x: Any) -> Any:
  return np if isinstance(x, np.ndarray) else jnp
