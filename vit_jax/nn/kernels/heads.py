"""Attention in plain JAX as XLA's CPU backend runs it best: matrices of one head at a time.

Its products take matrices whose batch axes lead; any other order costs a copy of the scores, and
the derivatives that JAX finds ask for several. So heads are brought to the front while arrays are
small, and the backward pass is written out. It keeps two numbers per row of scores and computes the
rest again, which costs a CPU no more than to write scores to memory and read them back. Rows are
normalised where they are short, after the product with the values.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vit_jax.nn.masks import FULL, Mask


def attention(
  q, k, v, bias=None, mask: Mask = FULL, *, num_heads: int, cap: float = 0.0
) -> jax.Array:
  """As `plain.attention`."""
  return _attention(q, k, v, bias, mask, num_heads, cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(q, k, v, bias, mask, num_heads, cap):
  return _forward(q, k, v, bias, mask, num_heads, cap)[0]


def _forward(q, k, v, bias, mask, num_heads, cap):
  head_dim = q.shape[-1] // num_heads
  keys, values = (_each(_split(x, head_dim), num_heads) for x in (k, v))
  scores, *_ = _scores(_split(q, head_dim), keys, bias, mask, cap)
  top = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - top)
  total = weights.sum(-1, keepdims=True)
  y = _product('bhqk,bhkd->bhqd', weights.astype(v.dtype), values) / total
  y = _merge(y.astype(q.dtype))
  return y, (q, k, v, bias, mask, y, top, total)


def _backward(num_heads, cap, saved, dy):
  q, k, v, bias, mask, y, top, total = saved
  q, k, v, y, dy = (_split(x, q.shape[-1] // num_heads) for x in (q, k, v, y, dy))
  groups = k.shape[1]
  k, v = _each(k, num_heads), _each(v, num_heads)
  scores, seen, slope = _scores(q, k, bias, mask, cap)
  weights = jnp.exp(scores - top)
  dy = dy / total
  mean = (dy * y).sum(-1, keepdims=True)
  dy = dy.astype(v.dtype)
  dscores = weights * (_product('bhqd,bhkd->bhqk', dy, v) - mean)
  if seen is not None:
    dscores = jnp.where(seen, dscores, 0)
  dbias = None
  if bias is not None:
    dbias = dscores.sum(0, keepdims=True) if bias.shape[0] == 1 else dscores
    dbias = dbias.astype(bias.dtype)
  if slope is not None:
    dscores = dscores * slope
  dscores = dscores.astype(q.dtype)
  dv = _product('bhqk,bhqd->bhkd', weights.astype(v.dtype), dy)
  dq = _product('bhqk,bhkd->bhqd', dscores, k) * q.shape[-1] ** -0.5
  dk = _product('bhqk,bhqd->bhkd', dscores, q) * q.shape[-1] ** -0.5
  if groups < num_heads:
    dk, dv = (x.reshape(len(x), groups, -1, *x.shape[2:]).sum(2) for x in (dk, dv))
  return *(_merge(x.astype(q.dtype)) for x in (dq, dk, dv)), dbias, None


_attention.defvjp(_forward, _backward)


def _scores(q, k, bias, mask, cap):
  """float32 (batch, heads, queries, keys); which of them are seen, and the slope of the cap."""
  scores = _product('bhqd,bhkd->bhqk', q, k) * q.shape[-1] ** -0.5
  slope = None
  if cap:
    bent = jnp.tanh(scores / cap)
    scores, slope = cap * bent, 1 - bent * bent
  if bias is not None:
    scores = scores + bias
  seen = mask.visible(*scores.shape[2:])
  if seen is not None:
    seen = seen[:, None]
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
  return scores, seen, slope


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _split(x, head_dim):
  """(batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim)."""
  return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


def _each(x, num_heads):
  """Keys or values for each head of queries."""
  return x if x.shape[1] == num_heads else jnp.repeat(x, num_heads // x.shape[1], axis=1)


def _merge(x):
  """The inverse of `_split`."""
  return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
