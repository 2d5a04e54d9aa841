"""The loss of a language model, with the logits of a few tokens at a time.

Of 256,000 tokens the logits of one place are a megabyte, and a row has thousands of places, of
which few may be answers. Each device goes over its own places piece by piece, those that count
first: pieces in which none does are passed over. The logits of a piece are computed again for the
gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.nn import sharding

# Bytes of the logits of a piece, float32. Of this size a handful of arrays are there at once.
PIECE = 2**28


class Judged(NamedTuple):
  """Of each place, 0 where it does not count.

  Attributes:
    loss: the cross-entropy of the token that follows, float32 (batch, tokens).
    right: whether it is the likeliest, float32 (batch, tokens).
  """

  loss: jax.Array
  right: jax.Array


def cross_entropy(
  x: jax.Array, table: jax.Array, follows: jax.Array, counts: jax.Array
) -> Judged:  # fmt: skip
  """How well the token that follows each place is foretold.

  Args:
    x: what logits are made of, (batch, tokens, width).
    table: that it is compared with, float32 (width, vocabulary).
    follows: numbers of these tokens, int (batch, tokens); any, where they do not count.
    counts: which places do, bool (batch, tokens).
  """
  axes = ('batch', None, None), (None, None), ('batch', None), ('batch', None)
  out = Judged(('batch', None), ('batch', None))  # type: ignore
  table = sharding.reshard(table, None, None)
  return sharding.per_shard(_local, axes, out)(x, table, follows, counts)


def _local(x: jax.Array, table: jax.Array, follows: jax.Array, counts: jax.Array) -> Judged:
  shape, vocabulary = counts.shape, table.shape[1]
  places = counts.size
  pieces = -(-4 * places * vocabulary // PIECE)
  size = -(-places // pieces)
  order = jnp.argsort(~counts.reshape(-1), stable=True)
  order = jnp.pad(order, (0, pieces * size - places), constant_values=places)
  # What fills up the last piece is one more place, which does not count.
  more = lambda y: jnp.pad(y, ((0, 1), *((0, 0),) * (y.ndim - 1)))  # noqa: E731
  cut = lambda y: more(y)[order].reshape(pieces, size, *y.shape[1:])  # noqa: E731
  rows = cut(x.reshape(places, -1)), cut(follows.reshape(-1)), cut(counts.reshape(-1))
  weights = table.astype(x.dtype)

  def judged(x: jax.Array, follows: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = jnp.matmul(x, weights, preferred_element_type=jnp.float32)
    own = jnp.take_along_axis(logits, follows[:, None], 1)[:, 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - own
    right = logits.argmax(-1) == follows
    return jnp.where(counts, loss, 0.0), (right & counts).astype(jnp.float32)

  def none(x: jax.Array, follows: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    del x, follows
    return jnp.zeros(counts.shape), jnp.zeros(counts.shape)

  @jax.checkpoint
  def piece(each: Any) -> tuple[jax.Array, jax.Array]:
    return jax.lax.cond(each[2].any(), judged, none, *each)

  found = jax.lax.map(piece, rows) if pieces > 1 else jax.tree.map(
    lambda y: y[None], judged(*(y[0] for y in rows))
  )  # fmt: skip
  back = jnp.zeros(places + 1, jnp.int32).at[order].set(jnp.arange(pieces * size))[:places]
  return Judged(*(y.reshape(-1)[back].reshape(shape) for y in found))
