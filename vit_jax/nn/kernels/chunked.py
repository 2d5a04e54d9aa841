"""Attention in plain JAX whose memory grows linearly with the number of tokens, on any device.

Queries are taken some rows at a time (Rabe & Staats 2021, section 2): their scores against all keys
are a block of fixed height, computed again in the backward pass instead of being kept.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

# Scores alive at a time, per device: large enough to keep every core busy, and small compared with
# the activations of a layer.
SCORES = 2**24


def attention(
  q, k, v, bias=None, mask=None, *, num_heads: int, causal: bool = False, rows: int | None = None
) -> jax.Array:
  """Softmax attention of every head; arguments as in `short.reference`.

  Args:
    q: (batch, queries, num_heads * head_dim).
    k, v: (batch, keys, num_heads * head_dim).
    bias: (1 or batch, num_heads, queries, keys), or None.
    mask: bool (batch, keys), or None.
    num_heads: of them.
    causal: query i attends to keys up to i.
    rows: of queries at a time; chosen from `SCORES` if not given.

  Returns:
    As `q`; scores and softmax are float32.
  """
  batch, queries, _ = q.shape
  keys = k.shape[1]
  most = rows or max(1, min(queries, SCORES // (batch * num_heads * keys)))
  parts = -(-queries // most)
  height = -(-queries // parts)  # as equal as they can be
  extra = parts * height - queries
  split = lambda x: x.reshape(*x.shape[:2], num_heads, -1)  # noqa: E731
  q = jnp.pad(split(q), ((0, 0), (0, extra), (0, 0), (0, 0)))
  q = q.reshape(batch, parts, height, *q.shape[2:]).swapaxes(0, 1)
  if bias is not None:
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, extra), (0, 0)))
    bias = bias.reshape(*bias.shape[:2], parts, height, keys).transpose(2, 0, 1, 3, 4)
  body = functools.partial(_part, k=split(k), v=split(v), mask=mask, causal=causal)
  y = jax.lax.map(jax.checkpoint(body), (q, bias, jnp.arange(parts) * height))
  return y.swapaxes(0, 1).reshape(batch, parts * height, -1)[:, :queries]


def _part(item: Any, *, k, v, mask, causal):
  """The rows of queries that begin at `start`."""
  q, bias, start = item
  low = jnp.finfo(jnp.float32).min
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
  scores = scores * q.shape[-1] ** -0.5
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  if mask is not None:
    scores = jnp.where(mask[:, None, None, :], scores, low)
  if causal:
    at = start + jnp.arange(q.shape[1])
    scores = jnp.where(at[:, None] >= jnp.arange(k.shape[1]), scores, low)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, v)
