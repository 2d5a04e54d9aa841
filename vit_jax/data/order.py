"""Which example is at which place of an endless stream, as functions of the seed alone.

Nothing is kept between calls but what a permutation of old runs needs: any process may ask for any
place at any time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Protocol

import numpy as np

from vit_jax.data.examples import Source

_ROUNDS = 16


class Order(Protocol):
  """Which example is where."""

  def __call__(self, places: np.ndarray) -> np.ndarray:
    """Places of the stream, int64 of any shape, to numbers of examples of the same shape."""
    ...


@dataclasses.dataclass(frozen=True)
class Once:
  """Every example once, in order; -1 behind the last."""

  count: int

  def __call__(self, places: np.ndarray) -> np.ndarray:
    """See `Order`."""
    return np.where(places < self.count, places, -1)


@dataclasses.dataclass(frozen=True)
class Keyed:
  """All examples in every epoch, shuffled anew, in constant memory; see `shuffled`.

  Attributes:
    count: of the examples.
    seed: of the order.
    part: of a mixture: parts of equal size have orders of their own.
  """

  count: int
  seed: int
  part: int = 0

  def __call__(self, places: np.ndarray) -> np.ndarray:
    """See `Order`."""
    epochs, at = np.divmod(places, self.count)
    found = np.empty_like(at)
    for epoch in np.unique(epochs).tolist():
      here = epochs == epoch
      found[here] = shuffled(at[here], self.count, (self.seed, (self.part << 44) + 1 + epoch))
    return found


@dataclasses.dataclass(frozen=True)
class Permutation:
  """As `Keyed`, by a table of all examples for each epoch."""

  count: int
  seed: int
  part: int = 0

  def __call__(self, places: np.ndarray) -> np.ndarray:
    """See `Order`."""
    epochs, at = np.divmod(places, self.count)
    found = np.empty_like(at)
    for epoch in np.unique(epochs).tolist():
      here = epochs == epoch
      found[here] = _permutation(self.seed, epoch, self.count, self.part)[at[here]]
    return found


@dataclasses.dataclass(frozen=True)
class Mixed:
  """Several orders in one stream, in fixed shares.

  Of every block of places each order gets as many as its share says, in a random pattern.

  Attributes:
    orders: of each part, giving numbers within the part.
    firsts: what is added to the numbers of each part.
    weights: of the parts, of any scale.
    seed: of the patterns.
  """

  orders: tuple[Order, ...]
  firsts: tuple[int, ...]
  weights: tuple[float, ...]
  seed: int
  block: int = 1024

  def __call__(self, places: np.ndarray) -> np.ndarray:
    """See `Order`."""
    blocks, at = np.divmod(places, self.block)
    counts = self.counts
    found = np.empty_like(at)
    for block in np.unique(blocks).tolist():
      here = blocks == block
      # Which slot of the block a place takes; the first `counts[0]` slots are of the first part.
      slots = shuffled(at[here], self.block, (self.seed, 2**40 + block))
      parts = np.searchsorted(np.cumsum(counts), slots, side='right')
      within = slots - (np.cumsum(counts) - counts)[parts] + block * counts[parts]
      numbers = np.empty_like(within)
      for part in np.unique(parts).tolist():
        mine = parts == part
        numbers[mine] = self.orders[part](within[mine]) + self.firsts[part]
      found[here] = numbers
    return found

  @functools.cached_property
  def counts(self) -> np.ndarray:
    """Of every block, how many places each part has: int64 (parts,), by largest remainders."""
    shares = np.asarray(self.weights, float) / math.fsum(self.weights) * self.block
    counts = np.floor(shares).astype(np.int64)
    for part in np.argsort(counts - shares, kind='stable')[: self.block - counts.sum()]:
      counts[part] += 1
    return counts


@dataclasses.dataclass(frozen=True)
class Repeated:
  """Several views of each example, one after another (Hoffer et al. 2020; DeiT).

  So they are in one batch, but for an example at its edge where the views do not divide it. As what
  is mixed is at mirror positions of a batch, only those in its middle meet themselves.

  Attributes:
    order: of the examples, without repetition.
    times: views of an example.
  """

  order: Order
  times: int

  def __call__(self, places: np.ndarray) -> np.ndarray:
    """See `Order`."""
    return self.order(places // self.times)


def drawn(source: Source, seed: int, law: str, repeats: int = 1) -> Order:
  """The order in which a run sees the examples of a source.

  Args:
    source: the parts of a mixture have orders of their own.
    seed: of the run.
    law: of `DataConfig.order`.
    repeats: views of each example.
  """
  order = _drawn(source, seed, law)
  return Repeated(order, repeats) if repeats > 1 else order


def _drawn(source: Source, seed: int, law: str) -> Order:
  kind = Permutation if law == 'permutation' else Keyed
  parts = source.parts
  if not parts:
    return kind(len(source), seed)
  firsts = tuple(itertools.accumulate((part.examples for part in parts), initial=0))[:-1]
  weights = tuple(part.weight for part in parts)
  orders = tuple(kind(part.examples, seed, number) for number, part in enumerate(parts))
  return Mixed(orders, firsts, weights, seed)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int, part: int) -> np.ndarray:
  bits = np.random.Philox(key=(seed, (part << 44) + 1 + epoch))
  return np.random.Generator(bits).permutation(count)


def shuffled(places: np.ndarray, count: int, key: tuple[int, int]) -> np.ndarray:
  """A random bijection of range(count), evaluated at some places only.

  A generalised Feistel cipher on the pairs (a, b) with a x b just above `count`, applied again to
  what it puts outside (Black & Rogaway 2002, 'Ciphers with arbitrary finite domains', section 4).

  Args:
    places: int64 in range(count), of any shape.
    count: of all places.
    key: of the bijection, two numbers below 2**64.

  Returns:
    int64 of the shape of `places`.
  """
  if not count:
    raise ValueError('there is nothing to shuffle')
  # An even side, or only even permutations would be drawn.
  high = (math.isqrt(count - 1) + 2) // 2 * 2
  low = -(-count // high)
  keys = np.random.Philox(key=key).random_raw(_ROUNDS)
  a, b = np.uint64(high), np.uint64(low)
  x = np.asarray(places).astype(np.uint64)
  outside = np.ones(x.shape, bool)
  while outside.any():
    left, right = np.divmod(x[outside], b)
    for i in range(0, _ROUNDS, 2):
      left = (left + _mixed(right + keys[i]) % a) % a
      right = (right + _mixed(left + keys[i + 1]) % b) % b
    x[outside] = left * b + right
    outside &= x >= np.uint64(count)
  return x.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64 (Steele et al. 2014): every bit depends on all of them."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
