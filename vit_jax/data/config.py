"""What is said of data in the configuration of a run. Importing it loads no decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.data.colours import COLOURS
from vit_jax.data.crops import CROPS, UNSET
from vit_jax.data.erasing import ERASURES
from vit_jax.data.examples import Source
from vit_jax.data.sources import SOURCES, open_split
from vit_jax.data.views import View

ON_CORRUPT = ('error', 'skip')
ORDERS = ('keyed', 'permutation')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Training data.

  Where a data set has nothing to test on, a part of `train` can be held out by name, the same part
  for every run: `split='train without fold 1/10'` here, `split='fold 1/10 of train'` in the
  evaluation. Any fold of any number of folds will do, of any split; see `folds`.

  Attributes:
    source: where examples come from; see `sources`.
    split: the one to train on.
    crop: how images are brought to the model's size; see `crops`.
    flip: mirror images, and all that belongs to them: 'horizontal' half of them left to right,
      'vertical' half of them upside down, 'both' each independently.
    colour: what is done to the pixels of training after crop and flip; see `colours`. Where that
      moves pixels, all that belongs to an image moves with them.
    erase: boxes of training images that are erased; see `erasing`.
    repeats: views of each image, one after another (Hoffer et al. 2020, 'repeated augmentation'): a
      batch has that many times fewer images, and an epoch as many views as there are images.
    order: how the order of the examples is drawn. Unset: 'keyed', in constant memory; 'permutation'
      is that of runs of formats up to 3, and needs 8 bytes for each example, twice.
    on_corrupt: an image that cannot be used (it does not decode, or has other channels than the
      model takes) stops the run ('error') or counts for nothing in its batch ('skip'; the metric
      `skipped` says how many).
    audit: how many examples of each split are looked at when a run starts, for what is said of
      sizes, channels, classes and duplicates; 0 for none.
    cache: read all examples into memory, encoded, and keep them for all runs of the process: for
      small data sets, where most of the time is spent looking examples up.
    workers: processes that prepare batches; 0 uses threads of this process, up to 32 of them.
      Processes are no faster: images are decoded outside of the interpreter's lock.
  """

  source: Any = schema.choice(SOURCES)
  split: str = 'train'
  crop: Any = schema.choice(CROPS, 'resize')
  flip: str = 'none'
  colour: Any = schema.choice(COLOURS, 'none')
  erase: Any = schema.choice(ERASURES, 'none')
  repeats: int = 1
  order: str = UNSET
  on_corrupt: str = 'error'
  audit: int = 1000
  cache: bool = False
  workers: int = 0

  def __post_init__(self):
    if self.on_corrupt not in ON_CORRUPT:
      raise RunError(
        f'unknown data.on_corrupt {self.on_corrupt!r}: {suggest(self.on_corrupt, ON_CORRUPT)}'
      )

    if self.order not in (None, *ORDERS):
      raise RunError(f'unknown data.order {self.order!r}: {suggest(self.order, ORDERS)}')
    if self.repeats < 1:
      raise RunError(f'data.repeats={self.repeats} must be at least 1')
    self.view  # noqa: B018

  @property
  def view(self) -> View:
    """Of training, without a size."""
    return View(self.crop, self.flip, colour=self.colour, erase=self.erase)

  def open(self, split: str) -> Source:
    """The examples of a split, or of a part of it."""
    return open_split(self.source, split, cache=self.cache)
