"""Attention in plain JAX whose memory grows linearly with the number of tokens, on any device.

Queries are taken some rows at a time (Rabe & Staats 2021, section 2): their scores against all keys
are a block of fixed height, computed again in the backward pass instead of being kept.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.nn.kernels import plain
from vit_jax.nn.masks import FULL, Mask

# Scores alive at a time, per device: large enough to keep every core busy, and small compared with
# the activations of a layer.
SCORES = 2**24


def attention(
  q, k, v, bias=None, mask: Mask = FULL, *, num_heads: int, cap: float = 0.0,
  rows: int | None = None,
) -> jax.Array:  # fmt: skip
  """As `plain.attention`; `rows` is of queries at a time, chosen from `SCORES` if not given."""
  batch, queries, width = q.shape
  keys = k.shape[1]
  most = rows or max(1, min(queries, SCORES // (batch * num_heads * keys)))
  parts = -(-queries // most)
  height = -(-queries // parts)  # as equal as they can be
  extra = parts * height - queries
  q = jnp.pad(q, ((0, 0), (0, extra), (0, 0)))
  q = q.reshape(batch, parts, height, width).swapaxes(0, 1)
  if bias is not None:
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, extra), (0, 0)))
    bias = bias.reshape(*bias.shape[:2], parts, height, keys).transpose(2, 0, 1, 3, 4)
  if mask.segments is not None:
    of_queries, of_keys = mask.segments
    mask = mask.replace(segments=(jnp.pad(of_queries, ((0, 0), (0, extra))), of_keys))
  if mask.pairs is not None:
    fill = ((0, 0), (0, parts * height - mask.pairs.shape[1]), (0, 0))
    mask = mask.replace(pairs=jnp.pad(mask.pairs, fill, constant_values=True))

  @jax.checkpoint
  def part(item: Any) -> jax.Array:
    q, bias, first = item
    return plain.attention(q, k, v, bias, mask.part(first, height), num_heads=num_heads, cap=cap)

  y = jax.lax.map(part, (q, bias, jnp.arange(parts) * height))
  return y.swapaxes(0, 1).reshape(batch, parts * height, -1)[:, :queries]
