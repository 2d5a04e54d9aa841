"""A detector that is nothing but a ViT (YOLOS, Fang et al. 2021, https://arxiv.org/abs/2106.00666)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.yolos import YolosArchitecture
from vit_jax.models.detr import class_bias
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn import positions
from vit_jax.nn.encoder import Between
from vit_jax.nn.layers import Perceptron, normal
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import param


@dataclasses.dataclass(frozen=True)
class YolosConfig(YolosArchitecture):
  """A model by its `YolosArchitecture`, which documents the fields."""

  encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)

  def create(self, rngs: nnx.Rngs) -> Yolos:
    """The model itself, sharded over the mesh in context."""
    return Yolos(self, rngs)


class Yolos(nnx.Module):
  """Images to boxes and their classes, by tokens beside the patches."""

  middle: nnx.Param  # if `config.middle`

  def __init__(self, config: YolosConfig, rngs: nnx.Rngs):
    self.config = config = config.resolve()
    self.card: Any = None
    self.encoder, width = ViT(config.encoder, rngs), config.encoder.width
    if config.middle:
      shape = (config.encoder.depth - 1, config.places, width)
      self.middle = param(normal(0.02), rngs, shape, (None,) * 3)
    self.head = Perceptron(
      (width, width, width, config.outputs), rngs, bias=class_bias(nothing=config.nothing)
    )
    self.boxes = Perceptron((width, width, width, 4), rngs)

  def __call__(
    self, images: jax.Array, *, key: Any = None, extent: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """What each query says.

    Args:
      images: float (batch, height, width, channels).
      key: of what is dropped in training.
      extent: not looked at: what is filled up around images are patches like others, and boxes are
        shares of the image all the same, as in the paper.

    Returns:
      'logits' float32 (batch, 1, queries, outputs), and 'boxes' float32 (batch, 1, queries, 4):
      centre x, centre y, width and height, as shares of the image.
    """
    del extent
    encoder, keys = self.encoder, (None, None) if key is None else noise(key).split()
    x, context = encoder.tokens(images, key=keys[0])
    between = None
    if self.config.middle:
      assert context.grid is not None
      own = self._between(context.grid).astype(x.dtype)
      between = Between(lambda x, state, own: (x + own, state, {}), own=own)
    x, _ = encoder.encoder(x, context, key=keys[1], between=between)
    first = sum(n for name, n in encoder.config.special.items() if name != 'queries')
    queries = x[:, first : encoder.config.prefix]
    boxes = jax.nn.sigmoid(self.boxes(queries))
    return {'logits': self.head(queries)[:, None], 'boxes': boxes[:, None]}

  def _between(self, grid: tuple[int, ...]) -> jax.Array:
    """What is added behind each layer, (depth, 1, tokens, width): zeros behind the last."""
    config = self.config.encoder
    table = positions.resample_rows(
      self.middle[...], config.prefix, config.grid, grid, config.interpolation
    )
    return jnp.pad(table, ((0, 1), (0, 0), (0, 0)))[:, None]
