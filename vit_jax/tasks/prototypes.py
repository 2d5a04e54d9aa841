"""What a student says of tokens beside its teacher, with the logits of a few tokens at a time.

Of 131,072 prototypes the logits of one token are half a megabyte, and a step of DINOv2 asks for
some ten thousand hidden patches on each device, of the student and of the teacher. Here each device
goes over its own tokens piece by piece. Kept is what a head compares with its prototypes; the
logits of a piece are computed again for the gradient, and for each of Sinkhorn's iterations. As
all recomputation, this is not in the FLOPs of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.nn import sharding

# Bytes of the logits of a piece, float32. Of this size a handful of arrays are there at once.
PIECE = 2**28


class Said(NamedTuple):
  """What a head says of tokens, short of the product that gives logits.

  Attributes:
    features: float32 (batch, ..., bottleneck).
    compared: what with, float32 (bottleneck, prototypes).
    temperature: that logits are divided by, a scalar.
  """

  features: jax.Array
  compared: jax.Array
  temperature: jax.Array

  @property
  def axes(self) -> Any:
    """Logical axes of each of them."""
    return Said(_by_example(self.features), (None, None), ())  # type: ignore

  def logits(self, features: jax.Array) -> jax.Array:
    """Of some of the tokens: (tokens, bottleneck) -> (tokens, prototypes)."""
    return features @ self.compared / self.temperature


def fit(logits: Any) -> bool:
  """Whether logits (batch, ..., prototypes), an array or its shape, are one piece."""
  return 4 * math.prod(logits.shape) <= PIECE * sharding.shards('batch')


def cross_entropy(
  student: Said, teacher: Said, there: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The cross-entropy of each token, which has a gradient by the student.

  Args:
    student, teacher: of the same tokens.
    there: which of them count, bool (batch, ...).
    shift: added to the teacher's logits, which are divided by the temperature, (prototypes,).

  Returns:
    float32 (batch, ...), 0 of tokens that do not count; and the sum over those that do of the
    teacher's logits, not divided by the temperature, (prototypes,).
  """

  def local(student: Said, teacher: Said, there: jax.Array, shift: jax.Array) -> Any:
    def piece(total: jax.Array, here: Any) -> Any:
      there, said, taught = here
      logits = teacher.logits(taught)
      target = jax.nn.softmax(logits + shift)
      each = -(target * jax.nn.log_softmax(student.logits(said))).sum(-1)
      return total + (logits * there[:, None]).sum(0), jnp.where(there, each, 0.0)

    tokens = there, student.features, teacher.features
    total, each = _over_pieces(piece, jnp.zeros_like(shift), *tokens)
    return each.reshape(-1)[: there.size].reshape(there.shape), total[None]

  axes = student.axes, teacher.axes, _by_example(there), (None,)
  run = sharding.per_shard(local, axes, (_by_example(there), ('batch', None)))
  each, totals = run(student, teacher, there, shift)
  return each, totals.sum(0) * teacher.temperature


def sinkhorn(teacher: Said, there: jax.Array, iterations: int = 3) -> jax.Array:
  """What `tasks.dino.sinkhorn` adds to the logits of each prototype, for `cross_entropy`.

  An iteration goes over all tokens once: each is brought to what the iteration before made of it,
  and all are summed up. What is added to the logits of a token at the end, softmax adds.

  Args:
    teacher: of all tokens.
    there: which of them take part, bool (batch, ...).
    iterations: over rows and columns.

  Returns:
    float32 (prototypes,).
  """

  def local(teacher: Said, there: jax.Array, shift: jax.Array | None) -> jax.Array:
    def piece(total: jax.Array, here: Any) -> Any:
      there, taught = here
      x = teacher.logits(taught)
      if shift is not None:
        x = x - jax.nn.logsumexp(x + shift, axis=-1, keepdims=True)
      x = jnp.where(there[:, None], x, -jnp.inf)
      return jnp.logaddexp(total, jax.nn.logsumexp(x, axis=0)), ()

    start = jnp.full(teacher.compared.shape[1], -jnp.inf)
    return _over_pieces(piece, start, there, teacher.features)[0][None]

  shift: Any = None
  for _ in range(iterations):
    axes = teacher.axes, _by_example(there), None if shift is None else (None,)
    run = sharding.per_shard(local, axes, ('batch', None))
    total = jax.nn.logsumexp(run(teacher, there, shift), axis=0)
    shift = jnp.where(jnp.isfinite(total), -total, 0.0)  # there may be no token at all
  return shift


def _by_example(x: jax.Array) -> tuple[str | None, ...]:
  """Logical axes of an array (batch, ...)."""
  return ('batch', *(None,) * (x.ndim - 1))


def _over_pieces(
  piece: Callable[..., Any], total: jax.Array, there: jax.Array, *tokens: jax.Array
) -> Any:
  """`jax.lax.scan` over tokens, as many at a time as `PIECE` allows, with nothing kept of them.

  Args:
    piece: of a total (prototypes,), and a tuple of what follows, for some of the tokens.
    total: the first one.
    there: bool (batch, ...); what fills up the last piece is not there.
    tokens: arrays (batch, ..., features).
  """
  count = -(-4 * there.size * len(total) // PIECE)
  size = -(-there.size // count)

  def cut(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, *x.shape[there.ndim :])
    x = jnp.pad(x, ((0, count * size - len(x)), *((0, 0),) * (x.ndim - 1)))
    return x.reshape(count, size, *x.shape[1:])

  piece = jax.checkpoint(piece, prevent_cse=False)  # loops are not taken apart
  return jax.lax.scan(piece, total, jax.tree.map(cut, (there, *tokens)))
