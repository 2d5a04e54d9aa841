"""Random numbers inside a model, the same however a batch is cut.

A step may compute its batch in parts, one after another. What is dropped from an example must not
depend on that: numbers are drawn for the whole batch, and a part takes those of its examples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.nn.sharding import spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
  """A key, and the part of the batch it is for: every `parts`-th example from number `part` on.

  Attributes:
    key: of the whole batch.
    part: which one, from 0.
    parts: how many there are.
    examples: in the whole batch, to tell several views of an example from several examples; 0 if
      there is one of each.
  """

  key: jax.Array
  part: Any = 0
  parts: int = dataclasses.field(default=1, metadata={'static': True})
  examples: int = dataclasses.field(default=0, metadata={'static': True})

  def split(self, count: int = 2) -> list[Noise]:
    """Independent ones for the same part."""
    return [dataclasses.replace(self, key=key) for key in jax.random.split(self.key, count)]

  def stacked(self, count: int) -> Noise:
    """As `split`, with a leading axis, to be scanned over."""
    part = jnp.broadcast_to(self.part, (count,))
    return dataclasses.replace(self, key=jax.random.split(self.key, count), part=part)

  def other(self, tag: int) -> Noise:
    """An independent one for the same part."""
    return dataclasses.replace(self, key=jax.random.fold_in(self.key, tag))

  def draw(
    self, function: Callable[..., jax.Array], batch: int, *shape: int,
    axes: Sequence[str | None] = (),
  ) -> jax.Array:  # fmt: skip
    """Numbers for the examples of this part: (batch, *shape).

    Args:
      function: of a key, a shape and, by name, `out_sharding`, as in `jax.random`.
      batch: rows in the part: its examples, or as many views of each, one after another.
      *shape: of the numbers of a row.
      axes: their logical axes; by default all devices have all numbers of a row.

    Raises:
      ValueError: in parts, if the rows are not equally many for each example.
    """
    axes = axes or (None,) * len(shape)
    layout = spec('batch', *axes)
    drawn = function(self.key, (batch * self.parts, *shape), out_sharding=layout)
    if self.parts == 1:
      return drawn
    examples = self.examples // self.parts or batch
    if batch % examples:
      raise ValueError(f'{batch} rows are not equally many for each of {examples} examples')
    cut = (examples, self.parts, batch // examples, *shape)
    drawn = drawn.reshape(cut, out_sharding=spec('batch', None, None, *axes))
    drawn = jax.lax.dynamic_index_in_dim(drawn, self.part, axis=1, keepdims=False)
    return drawn.reshape(batch, *shape, out_sharding=layout)


def noise(key: jax.Array | Noise) -> Noise:
  """A key as `Noise` for a batch that is whole."""
  return key if isinstance(key, Noise) else Noise(key)


def dropped(y: jax.Array, key: Noise | None, rate: Any) -> jax.Array:
  """What a branch adds, (batch, ...), left out of some examples: stochastic depth.

  Args:
    y: of each example.
    key: without one nothing is dropped, as in evaluation.
    rate: share of the examples; the others get 1 / (1 - rate) times as much (Huang et al. 2016).
  """
  if key is None:
    return y
  kept = key.draw(_kept(rate), y.shape[0], *(1,) * (y.ndim - 1))
  return y * (kept / (1 - rate)).astype(y.dtype)


def dropout(
  y: jax.Array, key: Noise | None, rate: float, batch: int, axis: str | None = None
) -> jax.Array:
  """Features, each left out by itself, of tokens as rows: see `layers.flatten`.

  A token gets two random words. Which of its features stay is a hash of these and of a feature's
  number, which compilers compute within the products before and after: on a TPU v5e a step of
  B/16 is 3 % longer with dropout, where a number of `jax.random` for each feature adds 58 %.

  Args:
    y: (batch * tokens, features).
    key: without one nothing is left out.
    rate: share of the features; the others get 1 / (1 - rate) times as much (Srivastava et al.
      2014).
    batch: examples.
    axis: logical axis of the features.
  """
  if key is None or not rate:
    return y
  tokens = y.shape[0] // batch
  words = [each.draw(_bits, batch, tokens) for each in key.split()]
  return _left(
    rate, axis, y, *(each.reshape(-1, 1, out_sharding=spec('batch', None)) for each in words)
  )


def _bits(key: jax.Array, shape: tuple[int, ...], **layout: Any) -> jax.Array:
  return jax.random.bits(key, shape, jnp.uint32, **layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _left(
  rate: float, axis: str | None, y: jax.Array, first: jax.Array, second: jax.Array
) -> jax.Array:
  """y / (1 - rate) where it stays, else 0; its gradient needs the words (rows, 1) alone."""
  numbers = jax.lax.broadcasted_iota(jnp.uint32, y.shape, 1, out_sharding=spec('batch', axis))
  # Two rounds of multiply and xorshift as in MurmurHash3, with the second word between them: first
  # words that are near each other do not make tokens alike. The constants are among those of least
  # bias by Wellons (hash-prospector).
  x = first + numbers * np.uint32(0x9E3779B9)
  x = (x ^ (x >> 15)) * np.uint32(0xD168AAAD) + second
  x = (x ^ (x >> 15)) * np.uint32(0xAF723597)
  bound = min(round((1 - rate) * 2**32), 2**32 - 1)
  kept = (x ^ (x >> 15)) < np.uint32(bound)
  return jnp.where(kept, y * (1 / (1 - rate)), 0)


_left.defvjp(
  lambda rate, axis, y, *words: (_left(rate, axis, y, *words), words),
  lambda rate, axis, words, dy: (_left(rate, axis, dy, *words), None, None),
)


def _kept(rate: Any) -> Callable[..., jax.Array]:
  return lambda key, shape, **layout: jax.random.bernoulli(key, 1 - rate, shape, **layout)
