"""Objects of an image, of which every patch may say one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.token_detector import TokenDetectorArchitecture
from vit_jax.models.detr import SIDE, class_bias, logit, shown
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn.layers import Dense, Perceptron, normal
from vit_jax.nn.noise import noise

# How far the first boxes of a new model are from those of their places, in logits.
SPREAD = 0.1
# What is added to logits of patches that are no image.
ABSENT = -30.0


@dataclasses.dataclass(frozen=True)
class TokenDetectorConfig(TokenDetectorArchitecture):
  """A model by its `TokenDetectorArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> TokenDetector:
    """The model itself, sharded over the mesh in context."""
    return TokenDetector(self, rngs)


class TokenDetector(nnx.Module):
  """Images to boxes and their classes."""

  head: Dense
  boxes: Perceptron
  dense_head: Dense  # if `config.dense`
  dense_boxes: Perceptron

  def __init__(self, config: TokenDetectorConfig, rngs: nnx.Rngs):
    self.config = config = config.resolve()
    self.card: Any = None
    self.encoder = ViT(config.encoder, rngs)
    bias = class_bias(nothing=config.nothing)
    for name, widths in config.heads.items():
      if name.endswith('head'):
        head = Dense(rngs, widths, ('embed', None), bias_init=bias)
      else:
        head = Perceptron(widths, rngs, last=normal(SPREAD * widths[-2] ** -0.5))
      setattr(self, name, head)

  def __call__(
    self, images: jax.Array, *, key: Any = None, extent: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """What each patch says.

    Args:
      images: float (batch, height, width, channels).
      key: of what is dropped in training.
      extent: as for `detr.Detr`.

    Returns:
      'logits' float32 (batch, layers, queries, outputs) and 'boxes' float32 (batch, layers,
      queries, 4): centre x, centre y, width and height, as shares of the image; the last layer is
      the answer. Of the dense heads 'dense_logits' and 'dense_boxes', without an axis of layers,
      and 'dense_points', where the patches are: x and y, float32 (batch, queries, 2).
    """
    config, keys = self.config, (None, None) if key is None else noise(key).split()
    x, context = self.encoder.tokens(images, key=keys[0])
    context, points, there = shown(context, config.encoder.prefix, extent)
    read = self._outputs(x, context, keys[1], max(config.layers, 2 if config.dense else 1))
    read = [y[:, config.encoder.prefix :].astype(jnp.float32) for y in read]
    points = jnp.asarray(points, jnp.float32)
    anchors = logit(jnp.concatenate([points, jnp.full_like(points, SIDE)], axis=-1))
    said = [self._said(y, anchors, self.head, self.boxes) for y in read[-config.layers :]]
    if there is not None:  # where there is no image nothing is said
      quiet = ABSENT * (np.arange(config.outputs) < config.num_classes)
      said = [(logits + quiet * ~there[..., None], boxes) for logits, boxes in said]
    logits, boxes = (jnp.stack(each, axis=1) for each in zip(*said, strict=True))
    found = {'logits': logits, 'boxes': boxes}
    if config.dense:
      dense = self._said(read[-2], anchors, self.dense_head, self.dense_boxes)
      found |= {'dense_logits': dense[0], 'dense_boxes': dense[1]}
      found['dense_points'] = jnp.zeros_like(dense[1][..., :2]) + points
    return found

  def _outputs(self, x: jax.Array, context: Any, key: Any, count: int) -> list[jax.Array]:
    """Of the last `count` blocks, all of them behind the last norm."""
    encoder, depth, found = self.encoder.encoder, self.config.encoder.depth, []
    norm = getattr(encoder, 'norm', lambda y: y)
    first = 0
    for last in range(depth - count + 1, depth + 1):
      layers = None if count == 1 else (first, last)
      x, _ = encoder(x, context, key=key, layers=layers)
      found.append(norm(x) if last < depth else x)
      first = last
    return found

  def _said(self, x: jax.Array, anchors: Any, head: Dense, boxes: Perceptron) -> Any:
    """Logits and boxes of patches, (batch, patches, width)."""
    logits = head(x, 'btd,dc->btc', ('batch', None, None))
    return logits, jax.nn.sigmoid(anchors + boxes(x))
