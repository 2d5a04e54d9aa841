"""Attention in plain JAX, all scores at once: any mask, any bias, any device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vit_jax.nn.masks import FULL, Mask

# Of keys that a query does not see: a query that sees none attends to all alike.
HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)


def attention(
  q, k, v, bias=None, mask: Mask = FULL, *, num_heads: int, cap: float = 0.0
) -> jax.Array:
  """Softmax attention of every head (Vaswani et al. 2017, section 3.2.1).

  Args:
    q: (batch, queries, num_heads * head_dim).
    k, v: (batch, keys, kv_heads * head_dim): queries of head i attend to keys of head
      i // (num_heads / kv_heads) (Ainslie et al. 2023).
    bias: (1 or batch, num_heads, queries, keys), added to the scores, or None.
    mask: which keys a query sees.
    num_heads: of queries.
    cap: of scores, which become cap * tanh(score / cap) before the bias is added (Gemma 2, section
      2); 0 for none.

  Returns:
    As `q`; scores and softmax are float32. A query that sees no key gets the mean of all values.
  """
  scores = masked_scores(q, k, bias, mask, num_heads=num_heads, cap=cap)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  head_dim = q.shape[-1] // num_heads
  v = v.reshape(*v.shape[:2], -1, head_dim)
  groups = v.shape[2]
  if groups == num_heads:  # the same with one axis less, which GPUs have faster products for
    y = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
  else:
    weights = weights.reshape(weights.shape[0], groups, -1, *weights.shape[2:])
    y = jnp.einsum('bgrqk,bkgd->bqgrd', weights, v)
  return y.reshape(*y.shape[:2], -1)


def masked_scores(q, k, bias, mask: Mask, *, num_heads: int, cap: float = 0.0) -> jax.Array:
  """float32 (batch, num_heads, queries, keys), `HIDDEN` where a query does not see a key."""
  head_dim = q.shape[-1] // num_heads
  k = k.reshape(*k.shape[:2], -1, head_dim)
  groups = k.shape[2]
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  if groups == num_heads:
    scores = product('bqhd,bkhd->bhqk', q.reshape(*q.shape[:2], num_heads, head_dim), k)
  else:
    q = q.reshape(*q.shape[:2], groups, -1, head_dim)
    scores = product('bqgrd,bkgd->bgrqk', q, k)
    scores = scores.reshape(scores.shape[0], num_heads, *scores.shape[3:])
  scores = scores * head_dim**-0.5
  if cap:
    scores = cap * jnp.tanh(scores / cap)
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  seen = mask.visible(*scores.shape[2:])
  return scores if seen is None else jnp.where(seen[:, None], scores, HIDDEN)


def repeat_heads(x: jax.Array, head_dim: int, num_heads: int) -> jax.Array:
  """Keys or values of fewer heads than there are of queries, as often as these need them.

  Args:
    x: (batch, keys, kv_heads * head_dim).
    head_dim: of one head.
    num_heads: of queries.

  Returns:
    (batch, keys, num_heads * head_dim).
  """
  groups = x.shape[-1] // head_dim
  if groups == num_heads:
    return x
  x = jnp.repeat(x.reshape(*x.shape[:2], groups, head_dim), num_heads // groups, axis=2)
  return x.reshape(*x.shape[:2], -1)
