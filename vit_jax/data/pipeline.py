"""Batches as a pure function of the seed and the step.

The order is what makes it so: shuffle and repeat the whole data set, draw each example's random
crop from its position in that endless stream, only then pick the rows that this process holds. The
step number is the whole state of the iterator, and any number of processes and workers sees the
same batches.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Generator, Sequence
from typing import Any

import grain
import numpy as np

from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.data.preprocess import CROPS, prepare
from vit_jax.data.sources import SOURCES, Example, Source, in_memory

Batch = dict[str, Any]  # of NumPy arrays
ON_CORRUPT = ('error', 'skip')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Training data.

  Attributes:
    source: where examples come from; see `sources`.
    split: the one to train on.
    crop: how images are brought to the model's size; see `preprocess`.
    on_corrupt: an image that does not decode stops the run ('error') or counts for nothing in its
      batch ('skip'; the metric `skipped` says how many).
    cache: read all examples into memory, encoded, and keep them for all runs of the process: for
      small data sets, of which most of the time is spent on finding one.
    workers: processes that prepare batches; 0 uses threads of this process, up to 32 of them.
      Processes are no faster: images are decoded outside of the interpreter's lock.
  """

  source: Any = schema.choice(SOURCES)
  split: str = 'train'
  crop: Any = schema.choice(CROPS, 'resize')
  on_corrupt: str = 'error'
  cache: bool = False
  workers: int = 0

  def open(self, split: str) -> Source:
    """The examples of a split."""
    return in_memory(self.source, split) if self.cache else self.source.open(split)


@dataclasses.dataclass(frozen=True)
class Shape:
  """What the model expects of every image and label; class_names may be unknown."""

  image_size: tuple[int, int]
  channels: int
  num_classes: int
  class_names: tuple[str, ...] = ()


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


def iterate(
  batches: grain.MapDataset, *, start: int = 0, workers: int = 0
) -> Generator[Batch, None, None]:
  """Batches from number `start` on, prepared ahead in the background; `close()` when done.

  Raises:
    RunError: for data that cannot be used, naming the example.
  """
  threads = max(1, min(cores() // max(workers, 1), 32))
  # Every thread makes a batch of its own; a few more are kept ready.
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
    if on_corrupt not in ON_CORRUPT:
      raise RunError(f'unknown data.on_corrupt {on_corrupt!r}: {suggest(on_corrupt, ON_CORRUPT)}')
    self._shape, self._crop, self._skip = shape, crop, on_corrupt == 'skip'

  def empty(self, rows: int) -> Batch:
    """Room for as many examples."""
    shape = self._shape
    return {
      'image': np.empty((rows, *shape.image_size, shape.channels), np.uint8),
      'label': np.empty(rows, np.int32),
      'mask': np.ones(rows, np.float32),
    }

  def __call__(self, example: Example, rng: np.random.Generator, batch: Batch, row: int) -> None:
    """Fills a row of the batch."""
    shape, label = self._shape, example['label']
    if not 0 <= label < shape.num_classes:
      raise RunError(
        f'{example["name"]} has label {label}, outside the {shape.num_classes} classes of the model'
      )
    batch['label'][row] = label
    try:
      if example['image'] is not None:
        out = batch['image'][row]
        prepare(example['image'], self._crop, shape.image_size, shape.channels, rng, out)
        return
    except ValueError as error:
      message = f'corrupt image {example["name"]}: {error}'
      if not self._skip:
        raise RunError(f'{message}. Set data.on_corrupt=skip to go on without it') from None
      logging.getLogger(__name__).warning('skipped %s', message)
    batch['image'][row], batch['mask'][row] = 0, 0
