"""Rows of several images of any size and aspect ratio, one after the other (NaViT)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.data import preprocess
from vit_jax.data.examples import Example
from vit_jax.data.rows import Array
from vit_jax.data.rows.columns import Image, Label
from vit_jax.data.views import Placement, View

# By which images of a group may be shrunk and enlarged, all alike; and how often that is tried.
_FACTORS = (0.5, 1.25)
_ATTEMPTS = 9


class _Item(NamedTuple):
  """An image on its way into a row."""

  opened: preprocess.Opened
  placement: Placement
  sides: tuple[int, int]
  tokens: int
  label: int


@dataclasses.dataclass(frozen=True)
class Packed:
  """Images of random resolution, their aspect ratio kept, in rows of a fixed number of patches.

  The images of a group are put into its rows by first fit, the largest first (Dehghani et al. 2023,
  section 2). Here a group has a fixed number of examples, so that a batch is a function of the step
  alone: all of its images are enlarged or shrunk by one factor, about the largest with which all
  of them find a place. So none is left out, and little room stays empty.

  Arrays: pixels uint8 (tokens, patch * patch * channels), coords int32 (tokens, 2), segment int32
  (tokens,), the number of the image from 1 on and 0 for padding, and label int32 (slots,).

  Attributes:
    image: the column of the image.
    label: that of its class.
    patch: side of a patch, in pixels.
    tokens: of a row.
    least, most: patches of an image before that; each number between is as likely.
    gives: rows of a group.
    takes: examples of a group.
    slots: images of a row, at most.
    view: which part of an image is seen, and whether it is mirrored.
  """

  image: Image
  label: Label
  patch: int
  tokens: int
  least: int
  most: int
  gives: int
  takes: int
  slots: int
  view: View

  def __post_init__(self):
    if not 1 <= self.least <= self.most <= self.tokens:
      raise RunError(
        f'images of {self.least} to {self.most} patches do not go into rows of {self.tokens}'
      )
    if self.view.colour.moves or self.view.erase.count:
      raise RunError(
        'data.colour that moves pixels and data.erase are drawn for images of one size: rows of '
        'many sizes need another colour, such as three_augment or jitter, and no erase'
      )

  @property
  def needs(self) -> dict[str, str]:
    """See `Rows`."""
    return {**self.image.needs, **self.label.needs}

  def arrays(self) -> dict[str, Array]:
    """See `Rows`."""
    values = self.patch * self.patch * self.image.channels
    return {
      'pixels': Array((self.tokens, values), np.dtype(self.image.dtype)),
      'coords': Array((self.tokens, 2), np.int32), 'segment': Array((self.tokens,), np.int32),
      'label': Array((self.slots,), np.int32),
    }  # fmt: skip

  def make(self, example: Example, rng: np.random.Generator) -> _Item:
    """The image of an example, decoded, and how many patches it is to have."""
    opened = self.image.open(example)
    tokens = int(rng.integers(self.least, self.most + 1))
    # What part of the image is seen is drawn as always; how large it is, is for `join` to say.
    placement = self.view.sized((self.patch, self.patch)).place(*opened.size, rng)
    if placement.matrix is not None:
      raise RunError('an affine crop has the size of the model: rows of many sizes need another')
    label = self.label.make(example, placement)['label']
    sides = placement.box[2], placement.box[3]
    return _Item(*self._reduced(opened, placement, tokens), sides, tokens, label)

  def _reduced(
    self, opened: preprocess.Opened, placement: Placement, tokens: int
  ) -> tuple[preprocess.Opened, Placement]:
    """What is seen of an image, at no more than twice the largest size that it may get.

    Until the sizes of a group are known all of its images are kept: photos would fill the memory.
    """
    most = min(self.tokens, round(_FACTORS[1] * tokens))
    grid = self._grid((placement.box[2], placement.box[3]), most)
    size = 2 * grid[0] * self.patch, 2 * grid[1] * self.patch
    if placement.crop.whole or min(h / s for h, s in zip(placement.box[2:], size, strict=True)) < 1:
      opened.decoded()
      return opened, placement
    part = placement._replace(size=size, across=False, down=False, changes=())
    pixels = opened.within(part)
    whole = placement._replace(source=size, box=(0, 0, *size))
    return preprocess.Opened(pixels, self.image.channels, self.image.dtype), whole

  def join(self, items: Sequence[_Item | None]) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """See `Grouped`."""
    rows = {name: np.zeros((self.gives, *a.shape), a.dtype) for name, a in self.arrays().items()}
    which = np.full((self.gives, self.slots), -1)
    there = [(number, item) for number, item in enumerate(items) if item is not None]
    grids, found = self._fitted([item for _, item in there])
    used, count = np.zeros(self.gives, int), np.zeros(self.gives, int)
    for (number, item), grid, row in zip(there, grids, found, strict=True):
      own = {name: array[row] for name, array in rows.items()}
      self._put(own, item, grid, int(used[row]), int(count[row]))
      which[row, count[row]] = number
      used[row] += grid[0] * grid[1]
      count[row] += 1
    return rows, which

  def _fitted(self, items: Sequence[_Item]) -> tuple[list[tuple[int, int]], list[int]]:
    """The grid of each image and its row, all by the largest factor with which all of them fit."""
    low, high, best = *_FACTORS, None
    for attempt in range(_ATTEMPTS):
      factor = 1.0 if not attempt else (low + high) / 2
      grids = [
        self._grid(item.sides, min(self.tokens, max(1, round(factor * item.tokens))))
        for item in items
      ]
      rows = self._first_fit([grid[0] * grid[1] for grid in grids])
      if rows is None:
        high = factor
      else:
        low, best = factor, (grids, rows)
    if best is None:
      raise RunError(
        f'{len(items)} images of {self.least} to {self.most} patches do not go into {self.gives} '
        f'rows of {self.tokens} with {self.slots} slots'
      )
    return best

  def _first_fit(self, sizes: Sequence[int]) -> list[int] | None:
    """The row of each image, the largest first; None if there is no room for one."""
    room, slots = [self.tokens] * self.gives, [self.slots] * self.gives
    found = [0] * len(sizes)
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
      row = next((r for r in range(self.gives) if room[r] >= sizes[at] and slots[r]), None)
      if row is None:
        return None
      found[at] = row
      room[row] -= sizes[at]
      slots[row] -= 1
    return found

  def _grid(self, sides: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Rows and columns of up to so many patches, of about the aspect ratio of what is seen."""
    height, width = sides
    scale = math.sqrt(tokens / (height * width))
    rows = min(max(1, round(height * scale)), tokens)
    columns = min(max(1, round(width * scale)), tokens)
    while rows * columns > tokens:  # of the two, what changes the aspect ratio less
      if columns == 1 or (rows > 1 and rows / (height * scale) > columns / (width * scale)):
        rows -= 1
      else:
        columns -= 1
    return rows, columns

  def _put(
    self, row: Mapping[str, np.ndarray], item: _Item, grid: tuple[int, int], first: int, number: int
  ) -> None:
    """Writes the patches of an image into a row."""
    size = grid[0] * self.patch, grid[1] * self.patch
    pixels = item.opened.within(item.placement._replace(size=size))
    patches = pixels.reshape(grid[0], self.patch, grid[1], self.patch, -1).swapaxes(1, 2)
    here = slice(first, first + grid[0] * grid[1])
    row['pixels'][here] = patches.reshape(grid[0] * grid[1], -1)
    row['coords'][here] = np.mgrid[: grid[0], : grid[1]].reshape(2, -1).T
    row['segment'][here] = number + 1
    row['label'][number] = item.label

  def about(self, example: Example) -> list[str]:
    """See `Rows`: what is done to channels."""
    value: Any = example[self.image.field]
    done = preprocess.conversion(value, self.image.channels)
    return [done] if done else []


@dataclasses.dataclass(frozen=True)
class Alone:
  """One image in a row, as large as images may be: for evaluation.

  Arrays as those of `Packed`, but label int32 ().

  Attributes:
    packed: with one row of one slot.
    labelled: whether examples have labels.
  """

  packed: Packed
  labelled: bool = True

  @property
  def needs(self) -> dict[str, str]:
    """See `Rows`."""
    return self.packed.needs if self.labelled else self.packed.image.needs

  def arrays(self) -> dict[str, Array]:
    """See `Rows`."""
    arrays = self.packed.arrays()
    return {**arrays, 'label': Array((), np.int32)}

  def make(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """See `Rows`."""
    if not self.labelled:
      example = {**example, self.packed.label.field: 0}
    rows, _ = self.packed.join([self.packed.make(example, rng)])
    return {name: array[0] for name, array in rows.items()} | {'label': rows['label'][0, 0]}

  def given(self, fields: Iterable[str]) -> Alone:
    """The same for examples with these fields."""
    return dataclasses.replace(self, labelled=self.packed.label.field in set(fields))

  def about(self, example: Example) -> list[str]:
    """See `Rows`."""
    return self.packed.about(example)
