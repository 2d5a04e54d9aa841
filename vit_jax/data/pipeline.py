"""Batches as a pure function of the seed and the step.

The order is what makes it so: shuffle and repeat the whole data set, draw each example's random
crop from its position in that endless stream, only then pick the rows that this process holds. The
step number is the whole state of the iterator, and any number of processes and workers sees the
same batches.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example, Source
from vit_jax.data.misfit import MisfitError
from vit_jax.data.rows import Array, Rows

Batch = dict[str, Any]  # of NumPy arrays
# Of a data set from which nothing can be used, until it is refused.
_TRIES = 32


def arrays(rows: Rows) -> dict[str, Array]:
  """Of one row of a batch: those of `rows`, mask and index."""
  return {**rows.arrays(), 'mask': Array((), np.float32), 'index': Array((), np.int32)}


def train_batches(
  rows: Rows, source: Source, batch_size: int, places: Sequence[int], seed: int, *,
  skip: bool = False,
) -> grain.MapDataset:  # fmt: skip
  """The endless stream of training batches; element t is the batch of step t.

  Args:
    rows: what becomes of an example.
    source: of examples.
    batch_size: of the global batch.
    places: of the global batch that this process holds.
    seed: of order and crops.
    skip: whether examples that cannot be used count for nothing in their batch; else they stop the
      run.

  Returns:
    Dicts of the arrays of `rows`, with a leading axis, and of mask, float32 (rows,), which is 0 for
    skipped examples, and index, int32 (rows,), of the example in the source.
  """
  return _Batches(source, _Fill(rows, skip), batch_size, places, seed)


def eval_batches(
  rows: Rows, source: Source, batch_size: int, places: Sequence[int], *, skip: bool = False
) -> grain.MapDataset:
  """Every example once, in order; the last batch is filled up with rows of mask 0 and index -1."""
  return _Batches(source, _Fill(rows, skip), batch_size, places, seed=None)


def probe(rows: Rows, source: Source, *, skip: bool = False) -> list[str]:
  """Tries the first example, or, where some may be skipped, the first that can be used.

  Returns:
    Lines for people: what is done to its image, if anything.

  Raises:
    RunError: if it cannot be used, naming it, or lacks a field.
  """
  fill, count = _Fill(rows, skip), min(len(source), _TRIES)
  batch = fill.empty(1)
  for index in range(count):
    example = source[index]
    if lacking := [field for field in rows.needs if field not in example]:
      there = ', '.join(name for name in example if name != 'name')
      raise RunError(f'{source.name} has no {", ".join(lacking)}, only {there}: the task needs it')
    fill(example, index, np.random.default_rng(0), batch, 0)
    if batch['mask'].all():
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


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
  """In which order an epoch sees `count` examples."""
  return np.random.Generator(np.random.Philox(key=(seed, 1 + epoch))).permutation(count)


class _Batches(grain.MapDataset):
  """Of every `batch_size` examples those at the positions `places`, each prepared in its place.

  With a seed examples are shuffled anew in every epoch, without end; without one they come once, in
  order. Grain's own shuffle, maps and batches cost 80 microseconds more per image.
  """

  def __init__(
    self, source: Source, fill: _Fill, batch_size: int, places: Sequence[int], seed: int | None
  ):
    super().__init__()
    self._source, self._fill, self._seed = source, fill, seed
    self._batch_size, self._places = batch_size, tuple(places)

  def __len__(self) -> int:
    count = len(self._source) if self._seed is None else sys.maxsize - self._batch_size
    return -(-count // self._batch_size)

  def __getitem__(self, index) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    batch = self._fill.empty(len(self._places))
    bits = np.random.Philox(key=(self._seed or 0, 0))
    rng, state = np.random.Generator(bits), bits.state
    for at, place in enumerate(self._places):
      position = index * self._batch_size + place
      # A place in the generator's period for every example, far from those of the others.
      state['state']['counter'][1] = position
      bits.state = state
      number = self._number(position)
      example = None if number < 0 else self._source[number]
      self._fill(example, number, rng, batch, at)
    return batch

  def _number(self, position: int) -> int:
    """Which example is at a position of the stream; -1 for none."""
    count = len(self._source)
    if self._seed is not None:
      epoch, at = divmod(position, count)
      return int(_order(self._seed, epoch, count)[at])
    return position if position < count else -1


class _Fill:
  """Puts an example into its place in a batch."""

  def __init__(self, rows: Rows, skip: bool):
    self._rows, self._made, self._skip = rows, dict(rows.arrays()), skip

  def empty(self, count: int) -> Batch:
    """Room for as many examples."""
    whole = arrays(self._rows)
    return {name: np.empty((count, *array.shape), array.dtype) for name, array in whole.items()}

  def __call__(
    self, example: Example | None, number: int, rng: np.random.Generator, batch: Batch, at: int
  ) -> None:
    """Fills a place of the batch; without an example, with zeros."""
    made: Mapping[str, Any] | None = None
    try:
      made = None if example is None else self._rows.make(example, rng)
    except ValueError as error:
      self._refuse(example['name'] if example else '', error)
    # The whole row is assigned, and nothing is spread over it.
    for name, array in self._made.items():
      value = 0 if made is None else made[name]
      if made is not None and np.shape(value) != array.shape:
        raise AssertionError(f'{name} of example {number} was made into {np.shape(value)}')
      batch[name][at] = value
    batch['mask'][at], batch['index'][at] = made is not None, number

  def _refuse(self, name: str, error: ValueError) -> None:
    """Raises RunError about an image that cannot be used, or logs that it is skipped."""
    message, fix = f'corrupt image {name}: {error}', 'Repair it'
    if isinstance(error, MisfitError):
      message, fix = f'{name} {error}', 'Convert it'
      if error.channels:
        fix = f'If all are like that, --config.model.in_channels={error.channels}; else convert it'
    if not self._skip:
      raise RunError(f'{message}. {fix}, or set data.on_corrupt=skip to go on without it') from None
    logging.getLogger(__name__).warning('skipped: %s', message)
