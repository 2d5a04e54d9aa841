"""Multi-head attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers import Dense

_QKV = ('batch', None, 'heads', None)


class Attention(nnx.Module):
  """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

  Args:
    width: features of queries, keys, values and output.
    num_heads: divides `width`.
  """

  def __init__(self, width: int, num_heads: int, rngs: nnx.Rngs):
    shape, axes = (width, num_heads, width // num_heads), ('embed', 'heads', None)
    self.query = Dense(rngs, shape, axes)
    self.key = Dense(rngs, shape, axes)
    self.value = Dense(rngs, shape, axes)
    self.out = Dense(
      rngs, (num_heads, width // num_heads, width), ('heads', None, 'embed'), contracted=2
    )

  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """Attends from `x` (batch, queries, width) to `context` (batch, keys, width)."""
    q, k, v = (
      checkpoint_name(dense(y, 'btd,dhk->bthk', _QKV), name)
      for name, dense, y in (
        ('query', self.query, x), ('key', self.key, context), ('value', self.value, context)
      )
    )  # fmt: skip
    y = checkpoint_name(jax.nn.dot_product_attention(q, k, v), 'context')
    return self.out(y, 'bthk,hkd->btd', ('batch', None, None))

  def weights(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """The attention weights, float32 of shape (batch, heads, queries, keys); rows sum to 1."""
    q = self.query(x, 'btd,dhk->bthk', _QKV).astype(jnp.float32)
    k = self.key(context, 'btd,dhk->bthk', _QKV).astype(jnp.float32)
    scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
    return jax.nn.softmax(scores, axis=-1)
