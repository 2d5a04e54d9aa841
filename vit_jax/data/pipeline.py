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
from collections.abc import Generator, Sequence
from typing import Any

import grain
import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.data.config import DataConfig, Shape
from vit_jax.data.crops import Resize
from vit_jax.data.examples import Example, Source
from vit_jax.data.misfit import MisfitError
from vit_jax.data.preprocess import conversion, prepare

Batch = dict[str, Any]  # of NumPy arrays
# Of a data set from which nothing can be used, until it is refused.
_TRIES = 32


def train_batches(
  config: DataConfig, source: Source, shape: Shape, batch_size: int, rows: Sequence[int], seed: int
) -> grain.MapDataset:
  """The endless stream of training batches; element t is the batch of step t.

  Args:
    config: of the data.
    source: opened from it.
    shape: of the model's input.
    batch_size: of the global batch.
    rows: of the global batch that this process holds.
    seed: of order and crops.

  Returns:
    Dicts of image, uint8 (rows, height, width, channels), label, int32 (rows,), and mask, float32
    (rows,), which is 0 for skipped images.
  """
  return _Batches(source, _Fill(shape, config.crop, config.on_corrupt), batch_size, rows, seed)


def eval_batches(
  config: DataConfig, crop: Any, source: Source, shape: Shape, batch_size: int, rows: Sequence[int]
) -> grain.MapDataset:
  """Every example once, in order; the last batch is filled up with images of mask 0."""
  return _Batches(source, _Fill(shape, crop, config.on_corrupt), batch_size, rows, seed=None)


def probe(config: DataConfig, source: Source, shape: Shape) -> list[str]:
  """Tries the first image of a source, or, where images may be skipped, the first that can be used.

  Returns:
    Lines for people: what is done to its channels, if anything.

  Raises:
    RunError: if it cannot be used, naming it.
  """
  fill, count = _Fill(shape, Resize(), config.on_corrupt), min(len(source), _TRIES)
  batch = fill.empty(1)
  for index in range(count):
    example = source[index]
    fill(example, np.random.default_rng(0), batch, 0)
    if batch['mask'].all() and example['image'] is not None:
      done = conversion(example['image'], shape.channels)
      return [f'{source.name}: {done} in the first image'] if done else []
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
  """Of every `batch_size` examples those at the positions `rows`, each prepared in its place.

  With a seed examples are shuffled anew in every epoch, without end; without one they come once, in
  order. Grain's own shuffle, maps and batches cost 80 microseconds more per image.
  """

  def __init__(
    self, source: Source, fill: _Fill, batch_size: int, rows: Sequence[int], seed: int | None
  ):
    super().__init__()
    self._source, self._fill, self._seed = source, fill, seed
    self._batch_size, self._rows = batch_size, tuple(rows)

  def __len__(self) -> int:
    count = len(self._source) if self._seed is None else sys.maxsize - self._batch_size
    return -(-count // self._batch_size)

  def __getitem__(self, index) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    batch = self._fill.empty(len(self._rows))
    bits = np.random.Philox(key=(self._seed or 0, 0))
    rng, state = np.random.Generator(bits), bits.state
    for at, row in enumerate(self._rows):
      position = index * self._batch_size + row
      # A place in the generator's period for every example, far from those of the others.
      state['state']['counter'][1] = position
      bits.state = state
      self._fill(self._example(position), rng, batch, at)
    return batch

  def _example(self, position: int) -> Example:
    count = len(self._source)
    if self._seed is not None:
      epoch, at = divmod(position, count)
      return self._source[int(_order(self._seed, epoch, count)[at])]
    if position < count:
      return self._source[position]
    return Example(image=None, label=0, name='padding')


class _Fill:
  """Puts an example into its row of a batch, as the model expects it."""

  def __init__(self, shape: Shape, crop: Any, on_corrupt: str):
    self._shape, self._crop, self._skip = shape, crop, on_corrupt == 'skip'

  def empty(self, rows: int) -> Batch:
    """Room for as many examples."""
    shape = self._shape
    return {
      'image': np.empty((rows, *shape.image_size, shape.channels), np.uint8),
      'label': np.empty(rows, np.int32),
      'mask': np.empty(rows, np.float32),
    }

  def __call__(self, example: Example, rng: np.random.Generator, batch: Batch, row: int) -> None:
    """Fills a row of the batch."""
    shape, label, pixels = self._shape, example['label'], None
    if not 0 <= label < shape.num_classes:
      raise RunError(
        f'{example["name"]} has label {label}, outside the {shape.num_classes} classes of the model'
      )
    try:
      if example['image'] is not None:
        pixels = prepare(example['image'], self._crop, shape.image_size, shape.channels, rng)
    except ValueError as error:
      self._refuse(example['name'], error)
    # The whole row is assigned, and nothing is spread over it.
    if pixels is not None and pixels.shape != batch['image'].shape[1:]:
      raise AssertionError(f'{example["name"]} was made into {pixels.shape}')
    batch['image'][row] = 0 if pixels is None else pixels
    batch['label'][row], batch['mask'][row] = label, pixels is not None

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
