"""Batches as a pure function of the seed and the step.

The order is what makes it so: shuffle and repeat the whole data set, draw each example's random
crop from its position in that endless stream, only then pick the rows that this process holds. The
step number is the whole state of the iterator, and any number of processes and workers sees the
same batches.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example, Source, read
from vit_jax.data.misfit import MisfitError
from vit_jax.data.order import Once, Order
from vit_jax.data.rows import Array, Grouped, Rows, group

Batch = dict[str, Any]  # of NumPy arrays
Skip = Callable[[str, ValueError], None]  # of the name of an example, and what is wrong with it
# Of a data set from which nothing can be used, until it is refused.
_TRIES = 32


def arrays(rows: Rows) -> dict[str, Array]:
  """Of one row of a batch, as the devices get it: those of `rows`, and the mask."""
  return {**rows.arrays(), 'mask': Array(group(rows)[2], np.float32)}


def train_batches(
  rows: Any, source: Source, batch_size: int, places: Sequence[int], order: Order, seed: int, *,
  skip: Skip | None = None, size: Callable[[int], int] | None = None,
) -> grain.MapDataset:  # fmt: skip
  """The endless stream of training batches; element t is the batch of step t.

  Args:
    rows: what becomes of an example, `Rows`; with `size` a sequence of them.
    source: of examples.
    batch_size: of the global batch, in rows.
    places: of the global batch that this process holds.
    order: of the examples.
    seed: of what is drawn for each of them.
    skip: is told of examples that cannot be used, which then count for nothing in their batch;
      without it they stop the run.
    size: of a step, which of several `rows` makes its batch.

  Returns:
    Dicts of the arrays of `rows`, with a leading axis, and of mask, float32 (rows,), which is 0 for
    skipped examples, and index, int64 (rows,), of the example in the source. Where rows have slots
    for several examples mask and index are (rows, slots).
  """
  fills = [_Fill(each, skip) for each in (rows if size else [rows])]
  return _Batches(source, fills, batch_size, places, order, seed, size)


def eval_batches(
  rows: Rows, source: Source, batch_size: int, places: Sequence[int], *, skip: Skip | None = None
) -> grain.MapDataset:
  """Every example once, in order; the last batch is filled up with rows of mask 0 and index -1."""
  return _Batches(source, [_Fill(rows, skip)], batch_size, places, Once(len(source)), seed=None)


def probe(rows: Rows, source: Source, *, skip: Skip | None = None) -> list[str]:
  """Tries the first example, or, where some may be skipped, the first that can be used.

  Returns:
    Lines for people: what is done to its image, if anything.

  Raises:
    RunError: if it cannot be used, naming it.
  """
  fill, count = _Fill(rows, skip), min(len(source), _TRIES)
  for index in range(count):
    example = source[index]
    if fill.made(example, np.random.default_rng(0)) is not None:
      return [f'{source.name}: {line} in the first image' for line in rows.about(example)]
  raise RunError(f'{source.name}: none of the first {count} images can be used')


def iterate(
  batches: grain.MapDataset, *, start: int = 0, workers: int = 0
) -> Generator[Batch, None, None]:
  """Batches from number `start` on, prepared ahead in the background; `close()` when done.

  Raises:
    RunError: for data that cannot be used, naming the example.
  """
  threads = max(1, min(cores() // max(workers, 1), 32))
  # Each thread prepares a batch; a few more are kept ready.
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 4)
  stream = batches[start:].to_iter_dataset(options)
  if workers:
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  iterator = iter(stream)
  try:
    yield from iterator
  finally:
    iterator.close()


def cores() -> int:
  """Processor cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class _Batches(grain.MapDataset):
  """Batches of the examples at consecutive places of an order, each prepared in its place.

  Grain's own shuffle, maps and batches cost 80 microseconds more per image.
  """

  def __init__(
    self, source: Source, fills: Sequence[_Fill], batch_size: int, places: Sequence[int],
    order: Order, seed: int | None, size: Callable[[int], int] | None = None,
  ):  # fmt: skip
    super().__init__()
    self._source, self._fills, self._order, self._seed = source, fills, order, seed
    self._size = size
    takes, gives = fills[0].takes, fills[0].gives
    whole = np.asarray(places, np.int64)
    if len(places) % gives or (whole // gives != np.repeat(whole[::gives] // gives, gives)).any():
      raise RunError(
        f'this process holds {len(places)} rows of a batch of {batch_size}, and {gives} are made '
        'together: a larger batch, or smaller groups'
      )
    groups = np.asarray(places, np.int64).reshape(-1, gives)[:, 0] // gives if places else ()
    self._rows = len(places)
    # Of the first batch, the places of the examples that make the rows of this process.
    self._first = (np.asarray(groups, np.int64)[:, None] * takes + np.arange(takes)).ravel()
    self._step = batch_size // gives * takes

  def __len__(self) -> int:
    count = len(self._source) if self._seed is None else sys.maxsize - self._step
    return -(-count // self._step)

  def __getitem__(self, index) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    fill = self._fills[self._size(index) if self._size else 0]
    places = self._first + index * self._step
    numbers = self._order(places)
    there = iter(read(self._source, numbers[numbers >= 0].tolist()))
    bits = np.random.Philox(key=(self._seed or 0, 0))
    rng, state = np.random.Generator(bits), bits.state

    def made() -> Iterator[Any]:
      """Of one example after the other what rows make of it."""
      for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
        # A place in the generator's period for every example, far from those of the others.
        state['state']['counter'][1] = place
        bits.state = state
        yield None if number < 0 else fill.made(next(there), rng)

    return fill(made(), numbers, self._rows)


class _Fill:
  """Puts examples into their places in a batch."""

  def __init__(self, rows: Rows, skip: Skip | None):
    self._rows, self._made, self._skip = rows, dict(rows.arrays()), skip
    self.takes, self.gives, self._slots = group(rows)

  def made(self, example: Example, rng: np.random.Generator) -> Any:
    """What rows make of an example; None if it cannot be used, and may be skipped."""
    try:
      return self._rows.make(example, rng)
    except ValueError as error:
      tell(self._skip, example['name'], error)
    return None

  def __call__(self, made: Iterator[Any], numbers: np.ndarray, rows: int) -> Batch:
    """A batch of what is made of the examples of these numbers."""
    # Not zeros: to write those costs a tenth of what it takes to make an image of raw pixels.
    batch = {n: np.empty((rows, *array.shape), array.dtype) for n, array in self._made.items()}
    if isinstance(self._rows, Grouped):
      return batch | self._joined(self._rows, batch, made, numbers)
    mask = np.zeros(rows, np.float32)
    for at, row in enumerate(made):  # one at a time: memory is used again
      if row is not None:
        self._put(batch, row, at, numbers[at])
        mask[at] = 1
        continue
      for array in batch.values():
        array[at] = 0
    return {**batch, 'mask': mask, 'index': numbers}

  def _joined(self, rows: Grouped, batch: Batch, made: Iterator[Any], numbers: np.ndarray) -> Batch:
    shape = len(next(iter(batch.values()), ())), *self._slots
    mask, index = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
    for number, first in enumerate(range(0, len(numbers), self.takes)):
      arrays, which = rows.join(list(itertools.islice(made, self.takes)))
      at = slice(number * self.gives, (number + 1) * self.gives)
      self._put(batch, arrays, at, numbers[first])
      mask[at] = which >= 0
      index[at] = np.where(which >= 0, numbers[first : first + self.takes][which], -1)
    return {'mask': mask, 'index': index}

  def _put(self, batch: Batch, row: Mapping[str, Any], at: Any, number: int) -> None:
    # The whole row is assigned, and nothing is spread over it.
    for name, array in batch.items():
      if np.shape(row[name]) != array[at].shape:
        raise AssertionError(f'{name} of example {number} was made into {np.shape(row[name])}')
      array[at] = row[name]


def log(name: str, error: ValueError) -> None:
  """A `Skip` that logs a warning."""
  logging.getLogger(__name__).warning('skipped: %s', _complaint(name, error)[0])


def tell(skip: Skip | None, name: str, error: ValueError) -> None:
  """Says that an example cannot be used to `skip`; raises RunError where there is none."""
  if skip is None:
    message, fix = _complaint(name, error)
    raise RunError(
      f'{message}. {fix}, or leave such images out by --config.data.on_corrupt=skip, '
      'in commands that are no run --on_corrupt=skip'
    ) from None
  skip(name, error)


def _complaint(name: str, error: ValueError) -> tuple[str, str]:
  """About an image that cannot be used: what is wrong with it, and what to do."""
  if not isinstance(error, MisfitError):
    return f'corrupt image {name}: {error}', 'Repair it'
  fix = error.fix or 'Convert it'
  if error.channels:
    fix = f'If all are like that, --config.model.in_channels={error.channels}; else convert it'
  return f'{name} {error}', fix
