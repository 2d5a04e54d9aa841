"""Attention pooling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.vit import EncoderConfig
from vit_jax.nn.attention import Attention, Context, Memory
from vit_jax.nn.encoder import make_norm
from vit_jax.nn.layers import Mlp, uniform
from vit_jax.nn.masks import Mask
from vit_jax.nn.sharding import param, spec


class MapHead(nnx.Module):
  """Multi-head attention pooling: one learned query attends to all tokens, then an MLP block."""

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    width, without = config.width, config.without
    init = uniform((6 / (config.vector_width + 1)) ** 0.5)
    self.probe = param(init, rngs, (1, 1, width), (None,) * 3)
    self.attn = Attention(
      width, config.num_heads, rngs, head_dim=config.head_dim, score_scale=config.score_scale
    )
    self.norm = make_norm(config, width, rngs)
    self.mlp = Mlp(width, config.mlp_dim, rngs, kind=config.mlp, bias='mlp' not in without)

  def queries(self, x: jax.Array, count: int = 1) -> jax.Array:
    """The learned query for each example of `x`, several times: (batch, count, width)."""
    shape = (x.shape[0], count, x.shape[2])
    probe = self.probe[...].astype(x.dtype)
    return jnp.broadcast_to(probe, shape, out_sharding=spec('batch', None, None))

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """(batch, tokens, width), of which `mask` says which count -> (batch, width)."""
    return self._pooled(self.queries(x), Memory(x, mask=Mask(keys=mask)))[:, 0]

  def each(self, x: jax.Array, segment: jax.Array, images: jax.Array) -> jax.Array:
    """Pools every image of a row by itself.

    Args:
      x: (batch, tokens, width).
      segment: of each token the number of its image, int (batch, tokens).
      images: numbers of those that are wanted, int (batch, images).

    Returns:
      (batch, images, width); of images that are not there something finite.
    """
    queries = self.queries(x, images.shape[1])
    return self._pooled(queries, Memory(x, mask=Mask(segments=(images, segment))))

  def _pooled(self, queries: jax.Array, memory: Memory) -> jax.Array:
    y = self.attn(queries, Context(memory=memory))
    return y + self.mlp(self.norm(y))
