"""Rows of one example each: a view, and for every field of the example a column that obeys it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.data import masks, preprocess
from vit_jax.data.colours import Colour
from vit_jax.data.examples import Example
from vit_jax.data.fields import VOID, Changed
from vit_jax.data.misfit import MisfitError
from vit_jax.data.rows import Array
from vit_jax.data.views import Placement, View

# A box of which less than this share is in view is no longer there.
LEAST = 0.1
# Of the weights that make a pixel, how far their sum may be from 1.
_WHOLE = 1e-4


class Column(Protocol):
  """What becomes of a field, and of those that belong to it."""

  @property
  def needs(self) -> Mapping[str, str]:
    """Fields and their kinds."""
    ...

  def arrays(self, size: tuple[int, int]) -> Mapping[str, Array]:
    """Of a row, where the model takes images of that size."""
    ...

  def make(self, example: Example, placement: Placement) -> Mapping[str, Any]:
    """The values of these arrays."""
    ...


class Drawn(Protocol):
  """What is random in a row besides its view."""

  @property
  def needs(self) -> Mapping[str, str]:
    """Fields and their kinds."""
    ...

  def arrays(self) -> Mapping[str, Array]:
    """Of a row."""
    ...

  def make(self, example: Example, rng: np.random.Generator) -> Mapping[str, Any]:
    """The values of these arrays."""
    ...


@dataclasses.dataclass(frozen=True)
class Columns:
  """See `Rows`.

  Attributes:
    view: of the images; all fields are seen through it.
    images: of which the first decides how large the example is; the others have its size.
    columns: of the other fields.
    drawn: what is drawn when the view has been.

  Where the view erases, there are also `erased`, int32 (boxes, 4): top, left, height and width, 0
  for none; and `erased_colour`, float32 (boxes, channels), unless it is noise that goes there.
  Where its crop fills the frame up, there is `extent`, float32 (2,): which share of the height and
  of the width is image, from the top and the left. Where images may have gaps there is `there`,
  uint8 (height, width), 0 for pixels that are missing in any image, which are 0, and are of no
  class in maps.
  """

  view: View
  images: tuple[Image, ...]
  columns: tuple[Column, ...] = ()
  drawn: tuple[Drawn, ...] = ()

  def __post_init__(self):
    for image in self.images:
      colour, kind = self.view.colour, (image.dtype, image.channels)
      if type(colour) is not Colour and kind not in (('uint8', 1), ('uint8', 3)):
        raise RunError(
          f'data.colour.name={type(colour).__name__.lower()} is for images of uint8 with one or '
          f'three channels, and {image.field} is {image.dtype} with {image.channels}: none'
        )
    if self.view.crop.fills and self.view.colour.moves:
      raise RunError(
        f'data.colour.name={type(self.view.colour).__name__.lower()} moves pixels, and a crop that '
        'fills the frame up says which of them are image: none'
      )
    if self.view.erase.count and [image.field for image in self.images] != ['image']:
      raise RunError('data.erase is for examples with one image')

  @property
  def needs(self) -> dict[str, str]:
    """See `Rows`."""
    every = (*self.images, *self.columns, *self.drawn)
    return {name: kind for each in every for name, kind in each.needs.items()}

  def arrays(self) -> dict[str, Array]:
    """See `Rows`."""
    found: dict[str, Array] = {}
    for each in (*self.images, *self.columns):
      found |= each.arrays(self.view.size)
    for each in self.drawn:
      found |= each.arrays()
    if self.view.crop.fills:
      found['extent'] = Array((2,), np.float32)
    if self.gaps:
      found['there'] = Array(self.view.size, np.uint8)
    if boxes := self.view.erase.count:
      found['erased'] = Array((boxes, 4), np.int32)
      if self.view.erase.mode != 'pixel':
        found['erased_colour'] = Array((boxes, self.images[0].channels), np.float32)
    return found

  def make(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """See `Rows`."""
    opened = [image.open(example) for image in self.images]
    placement = self._placed(opened, rng)
    row: dict[str, Any] = {}
    for image, pixels in zip(self.images, opened, strict=True):
      row[image.field] = pixels.within(placement)
    if self.gaps:
      there = self._there(example, opened)
      row |= self._with_gaps(row, _within(there, placement))
      example = self._voided(example, there)
    for column in self.columns:
      row |= column.make(example, placement)
    if self.view.crop.fills:
      row['extent'] = np.divide(placement.filled, placement.size)
    row |= self._erased(placement, rng)
    for each in self.drawn:
      row |= each.make(example, rng)
    return row

  @property
  def gaps(self) -> bool:
    """Whether pixels may be missing."""
    return any(image.gaps for image in self.images)

  def decoded(self, example: Example) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The images of an example by their fields, all of them, and which pixels are there."""
    opened = [image.open(example) for image in self.images]
    self._placed(opened, None)  # or their sizes differ
    found = {i.field: each.decoded() for i, each in zip(self.images, opened, strict=True)}
    return found, self._there(example, opened)

  def voided(self, example: Example) -> Example:
    """The example, its maps of no class where pixels are missing."""
    if not self.gaps:
      return example
    opened = [image.open(example) for image in self.images]
    return self._voided(example, self._there(example, opened))

  def _there(self, example: Example, opened: list[preprocess.Opened]) -> np.ndarray:
    """Which pixels are in all images, bool (height, width)."""
    size = opened[0].size
    there = np.asarray(example.get('there', np.ones(size, bool)), bool)
    for image, pixels in zip(self.images, opened, strict=True):
      if image.gaps and pixels.size == size:
        there = there & pixels.there
    return there

  def _voided(self, example: Example, there: np.ndarray) -> Example:
    if there.all():
      return example
    maps = {n for column in self.columns for n, kind in column.needs.items() if kind == 'map'}

    def change(labels: np.ndarray) -> np.ndarray:  # of another size it is refused by its column
      return np.where(there, labels, VOID) if labels.shape == there.shape else labels

    return {**example, **{name: Changed(example[name], change) for name in maps}}

  def _with_gaps(self, row: Mapping[str, Any], there: np.ndarray) -> dict[str, Any]:
    """Images of a row, 0 where pixels are missing, and which are there."""
    for image in self.images:
      if image.dtype == 'float32':
        there = there & np.isfinite(row[image.field]).all(-1)
    own = {image.field: row[image.field] for image in self.images}
    kept = {n: np.where(there[..., None] > 0, x, x.dtype.type(0)) for n, x in own.items()}
    return {**kept, 'there': there.astype(np.uint8)}

  def _erased(self, placement: Placement, rng: np.random.Generator) -> dict[str, Any]:
    """Which boxes are erased, and by which colours of normalised images."""
    erase = self.view.erase
    if not erase.count:
      return {}
    boxes = np.zeros((erase.count, 4), np.int32)
    boxes[: len(placement.erased)] = np.reshape(placement.erased, (-1, 4))
    if erase.mode == 'pixel':
      return {'erased': boxes}
    colours = np.zeros((erase.count, self.images[0].channels), np.float32)
    if erase.mode == 'rand':
      colours[:] = rng.standard_normal(colours.shape)
    return {'erased': boxes, 'erased_colour': colours}

  def _placed(self, opened: list[preprocess.Opened], rng: Any) -> Placement:
    size = opened[0].size
    for image, other in zip(self.images[1:], opened[1:], strict=True):
      if other.size != size:
        raise MisfitError(
          f'has {self.images[0].field} of {size[0]} x {size[1]} pixels and {image.field} of '
          f'{other.size[0]} x {other.size[1]}: images of an example are of one size'
        )
    return self.view.place(*size, rng)

  def placement(self, example: Example) -> Placement:
    """Where the images of an example are, to bring predictions back.

    Raises:
      RunError: if the view is random: it could not be drawn again.
    """
    if self.view.crop.random:
      raise RunError(f'a {type(self.view.crop).__name__} crop is random, and cannot be undone')
    return self._placed([image.open(example) for image in self.images], None)

  def given(self, fields: Iterable[str]) -> Columns:
    """The same without what needs other fields than these, for predictions."""
    known = set(fields)
    kept = lambda every: tuple(each for each in every if {*each.needs} <= known)  # noqa: E731
    return dataclasses.replace(self, columns=kept(self.columns), drawn=kept(self.drawn))

  def about(self, example: Example) -> list[str]:
    """See `Rows`: what is done to channels."""
    lines = []
    for image in self.images:
      value: Any = example[image.field]
      if done := preprocess.conversion(value, image.channels):
        lines.append(done if len(self.images) == 1 else f'of {image.field} {done}')
    return lines


@dataclasses.dataclass(frozen=True)
class Whole(Columns):
  """Of examples whose images are seen at a size of their own, part by part.

  Attributes:
    shorter: to which their shorter side is brought; 0 leaves them as they are.
  """

  shorter: int = 0

  def pixels(self, example: Example) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
    """How large the images are, and they themselves by their fields: (height, width, channels).

    With gaps also `there`, as in rows.

    Raises:
      MisfitError, ValueError: if they cannot be read, or their sizes differ.
    """
    opened = [image.open(example) for image in self.images]
    own = opened[0].size
    by = self.shorter / min(own) if self.shorter else 1
    placement = self._at(own, by)._placed(opened, None)
    row = {i.field: each.within(placement) for i, each in zip(self.images, opened, strict=True)}
    if not self.gaps:
      return own, row
    return own, self._with_gaps(row, _within(self._there(example, opened), placement))

  def placement(self, example: Example) -> Placement:
    """See `Columns`: predictions are in the frame of the image, at its own size, already."""
    own = self.images[0].open(example).size
    return self._at(own, 1).view.place(*own, None)

  def _at(self, size: tuple[int, int], by: float) -> Columns:
    height, width = (max(1, round(side * by)) for side in size)
    return Columns(self.view.sized((height, width)), self.images)


@dataclasses.dataclass(frozen=True)
class Image:
  """An image as it is decoded: (height, width, channels) of its own type.

  Attributes:
    channels: that the model takes.
    dtype: of the values, 'uint8', 'uint16' or 'float32'.
    field: its name.
    gaps: whether pixels may be missing: see `preprocess.Opened`; and those that are not in 'there'
      of the example, if it has that.
  """

  channels: int
  dtype: str = 'uint8'
  field: str = 'image'
  gaps: bool = False

  @property
  def needs(self) -> dict[str, str]:
    """See `Column`."""
    return {self.field: 'image'}

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `Column`."""
    return {self.field: Array((*size, self.channels), np.dtype(self.dtype))}

  def open(self, example: Example) -> preprocess.Opened:
    """The image of an example, its size known."""
    value: Any = example[self.field]
    return preprocess.Opened(value, self.channels, self.dtype, gaps=self.gaps)


@dataclasses.dataclass(frozen=True)
class Label:
  """A class: int32 ().

  Attributes:
    classes: how many there are.
  """

  classes: int
  field: str = 'label'

  @property
  def needs(self) -> dict[str, str]:
    """See `Column`."""
    return {self.field: 'class'}

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `Column`."""
    del size
    return {self.field: Array((), np.int32)}

  def make(self, example: Example, placement: Placement) -> dict[str, Any]:
    """See `Column`."""
    del placement
    label = example[self.field]
    _check(example, [label], self.classes)
    return {self.field: label}


@dataclasses.dataclass(frozen=True)
class Labels:
  """Any number of classes: float32 (classes,), 1 for those that are there.

  Attributes:
    classes: how many there are.
  """

  classes: int
  field: str = 'labels'

  @property
  def needs(self) -> dict[str, str]:
    """See `Column`."""
    return {self.field: 'classes'}

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `Column`."""
    del size
    return {self.field: Array((self.classes,), np.float32)}

  def make(self, example: Example, placement: Placement) -> dict[str, Any]:
    """See `Column`."""
    del placement
    labels = np.asarray(example[self.field], np.int64)
    _check(example, labels, self.classes)
    row = np.zeros(self.classes, np.float32)
    row[labels] = 1
    return {self.field: row}


@dataclasses.dataclass(frozen=True)
class Vector:
  """Numbers, and which of them are known: float32 (count,) each; 0 where one is not.

  Attributes:
    count: of the numbers.
  """

  count: int
  field: str = 'target'

  @property
  def needs(self) -> dict[str, str]:
    """See `Column`."""
    return {self.field: 'vector'}

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `Column`."""
    del size
    array = Array((self.count,), np.float32)
    return {self.field: array, f'{self.field}_known': array}

  def make(self, example: Example, placement: Placement) -> dict[str, Any]:
    """See `Column`."""
    del placement
    values = np.asarray(example[self.field], np.float64).reshape(-1)
    if len(values) != self.count:
      raise RunError(
        f'{example["name"]}: {self.field} has {len(values)} numbers, and that of the first example '
        f'{self.count}'
      )
    known = np.isfinite(values)
    return {self.field: np.where(known, values, 0), f'{self.field}_known': known}


@dataclasses.dataclass(frozen=True)
class Points:
  """Points as shares of the width and height of the view, float32 (count, 2).

  Beside them `FIELD_known`, float32 (count,): 0 for what is not known, or not in view.

  Attributes:
    count: of the points.
    mirrored: which point each point is in a mirror, where a left eye is a right one: (1, 0, 2);
      of points that have no sides (0, 1, 2). Unset, views that mirror are refused.
  """

  count: int
  field: str = 'points'
  mirrored: tuple[int, ...] | None = None

  @property
  def needs(self) -> dict[str, str]:
    """See `Column`."""
    return {self.field: 'points'}

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `Column`."""
    del size
    return {
      self.field: Array((self.count, 2), np.float32),
      f'{self.field}_known': Array((self.count,), np.float32),
    }

  def make(self, example: Example, placement: Placement) -> dict[str, Any]:
    """See `Column`."""
    points = np.asarray(example[self.field], np.float64)
    if points.shape != (self.count, 2):
      raise RunError(
        f'{example["name"]}: {self.field} is {points.shape}, not {self.count} points of x and y'
      )
    points = placement.points(points) / placement.size[::-1]
    if placement.across != placement.down and self.count > 1:
      if self.mirrored is None:
        raise RunError(
          f'data.flip mirrors {self.field}, and nobody says which of them are left and right: the '
          'task must give Points(mirrored=...)'
        )
      points = points[list(self.mirrored)]
    with np.errstate(invalid='ignore'):
      known = np.asarray(((points >= 0) & (points <= 1)).all(-1))
    return {self.field: np.where(known[:, None], points, 0), f'{self.field}_known': known}


@dataclasses.dataclass(frozen=True)
class Map:
  """A class for each pixel: uint8 (height, width) / stride, or int32 with more than 255 classes.

  What is ignored, or not in the image, is the largest number of that type.

  Attributes:
    classes: how many there are.
    ignore: values of the source that are no class.
    stride: pixels of the view from one of the map to the next.
  """

  classes: int
  ignore: tuple[int, ...] = ()
  stride: int = 1
  field: str = 'map'

  @property
  def needs(self) -> dict[str, str]:
    """See `Column`."""
    return {self.field: 'map'}

  @property
  def dtype(self) -> Any:
    """Of the array."""
    return np.dtype(np.uint8 if self.classes <= 255 else np.int32)

  @property
  def void(self) -> int:
    """What is no class."""
    return int(np.iinfo(self.dtype).max)

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `Column`."""
    return {self.field: Array(self._size(size), self.dtype)}

  def _size(self, size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // self.stride, size[1] // self.stride

  def make(self, example: Example, placement: Placement) -> dict[str, Any]:
    """See `Column`."""
    values = self.whole(example, placement.source)
    return {self.field: placement.labels(values, self.void, self._size(placement.size))}

  def whole(self, example: Example, size: tuple[int, int] | None = None) -> np.ndarray:
    """The map of an example, all of it, checked."""
    values = masks.decode_map(example[self.field])
    if size and values.shape != size:
      raise MisfitError(f'is {size[0]} x {size[1]}, and its {self.field} {values.shape}')
    void, values = np.isin(values, self.ignore), self._classes(values)
    most, least = values.max(initial=0, where=~void), values.min(initial=0, where=~void)
    if most >= self.classes or least < 0:
      wrong = int(least if least < 0 else most)
      raise RunError(
        f'{example["name"]}: its {self.field} has the value {wrong}, outside the {self.classes} '
        f'classes of the model. Where that means no class: --config.data.source.ignore={wrong}'
      )
    return np.where(void, self.void, values).astype(self.dtype)

  def _classes(self, values: np.ndarray) -> np.ndarray:
    """Classes by numbers of the source."""
    return values


@dataclasses.dataclass(frozen=True)
class Marked(Map):
  """A map of two classes, in which every number but 0 is the second, as masks of 0 and 255 are."""

  classes: int = 2

  def _classes(self, values: np.ndarray) -> np.ndarray:
    """See `Map`."""
    return (values != 0).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Instances:
  """Objects: boxes and, if they are asked for, masks.

  `boxes` (most, 4) float32, left, top, right and bottom as shares of the view; `boxes_label`
  (most,) int32; `boxes_known` (most,) float32, 0 behind the last; `masks` (most, height, width)
  uint8. Crowds are none. Of an object that is not in view nothing is there. Where there are more,
  the largest in view are there, and `boxes_left_out`, float32 (), is how many others there were.

  Attributes:
    classes: how many there are.
    most: objects of an image.
    least: share of a box that must be in view.
    masks: whether masks are wanted.
  """

  classes: int
  most: int = 100
  least: float = LEAST
  masks: bool = False

  @property
  def needs(self) -> dict[str, str]:
    """See `Column`."""
    return {'boxes': 'boxes', **({'masks': 'masks'} if self.masks else {})}

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `Column`."""
    found = {
      'boxes': Array((self.most, 4), np.float32), 'boxes_label': Array((self.most,), np.int32),
      'boxes_known': Array((self.most,), np.float32), 'boxes_left_out': Array((), np.float32),
    }  # fmt: skip
    return found | ({'masks': Array((self.most, *size), np.uint8)} if self.masks else {})

  def make(self, example: Example, placement: Placement) -> dict[str, Any]:
    """See `Column`."""
    boxes = masks.absolute(example['boxes'], placement.source)
    _check(example, boxes.label, self.classes)
    corners, share = placement.boxes(boxes.corners)
    sides = corners[:, 2:] - corners[:, :2]
    kept = np.flatnonzero((share >= self.least) & (sides >= 1).all(1) & ~boxes.crowd)
    kept, left_out = _largest(kept, sides[kept].prod(1), self.most)
    row = {name: np.zeros(a.shape, a.dtype) for name, a in self.arrays(placement.size).items()}
    row['boxes'][: len(kept)] = corners[kept] / np.array([*placement.size[::-1]] * 2)
    row['boxes_label'][: len(kept)] = boxes.label[kept]
    row['boxes_known'][: len(kept)] = 1
    row['boxes_left_out'][...] = left_out
    for at, number in enumerate(kept if self.masks else ()):
      mask = masks.drawn(example['masks'].shapes[number], placement.source)
      row['masks'][at] = placement.labels(mask.astype(np.uint8), 0)
    return row


@dataclasses.dataclass(frozen=True)
class Segments:
  """Segments that do not overlap, as one map of their numbers.

  `segments` (height, width), uint8 or with more than 255 of them uint16, is 0 where there is none,
  and n + 1 in the segment n of `segments_label`, int32 (most,), and `segments_known`, float32
  (most,), 0 behind the last. Crowds are none. Numbers are given anew to what is in view. Of objects
  whose masks overlap a pixel is of the smaller one. With boxes there is `segments_box`, float32
  (most, 4): around what is in view of each, left, top, right and bottom as shares of the view.
  Where there are more, the largest in view are there, and `segments_left_out`, float32 (), is how
  many others there were.

  Attributes:
    classes: how many there are.
    most: segments of an image.
    kind: of the field that they are from, which is called like it: 'panoptic', 'masks', or 'map',
      where all of a class is one segment.
    ignore: values of a map that are no class.
    boxes: whether boxes are wanted.
  """

  classes: int
  most: int = 100
  kind: str = 'panoptic'
  ignore: tuple[int, ...] = ()
  boxes: bool = False

  @property
  def needs(self) -> dict[str, str]:
    """See `Column`."""
    return {self.kind: self.kind}

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `Column`."""
    found = {
      'segments': Array(size, np.dtype(np.uint8 if self.most <= 255 else np.uint16)),
      'segments_label': Array((self.most,), np.int32),
      'segments_known': Array((self.most,), np.float32),
      'segments_left_out': Array((), np.float32),
    }
    return found | ({'segments_box': Array((self.most, 4), np.float32)} if self.boxes else {})

  def make(self, example: Example, placement: Placement) -> dict[str, Any]:
    """See `Column`."""
    ids, labels = self.whole(example, placement.source)
    seen = placement.labels(ids, 0)
    found, areas = np.unique(seen, return_counts=True)
    every = found[found > 0]
    _check(example, [labels[number] for number in every.tolist()], self.classes)
    every, left_out = _largest(every, areas[found > 0], self.most)
    there = every.tolist()
    row = {name: np.zeros(a.shape, a.dtype) for name, a in self.arrays(placement.size).items()}
    row['segments'][:] = (np.searchsorted(there, seen) + 1) * np.isin(seen, there)
    row['segments_left_out'][...] = left_out
    row['segments_label'][: len(there)] = [labels[number] for number in there]
    row['segments_known'][: len(there)] = 1
    if self.boxes:
      row['segments_box'][: len(there)] = _around(row['segments'])
    return row

  def whole(self, example: Example, size: tuple[int, int]) -> tuple[np.ndarray, dict[int, int]]:
    """All of an image: numbers of segments, int64 (height, width), 0 for none; their classes."""
    value = example[self.kind]
    if self.kind == 'panoptic':
      ids = masks.decode_panoptic(value)
      if ids.shape != tuple(size):
        raise MisfitError(f'is {size[0]} x {size[1]}, and its panoptic segments {ids.shape}')
      if unknown := sorted({*np.unique(ids).tolist()} - {0, *value.segments}):
        raise RunError(
          f'{example["name"]}: nobody says of which class the segment {unknown[0]} of its map is'
        )
      known = {number: label for number, (label, crowd) in value.segments.items() if not crowd}
      return np.where(np.isin(ids, [*known]), ids, 0), known
    if self.kind == 'map':
      column = Map(self.classes, self.ignore)
      labels = column.whole(example, size).astype(np.int64)
      ids = np.where(labels == column.void, 0, labels + 1)
      return ids, {n + 1: n for n in range(self.classes)}
    shapes = [masks.drawn(shape, size) for shape in value.shapes]
    ids, known = np.zeros(size, np.int64), {}
    for at in np.argsort([-shape.sum() for shape in shapes], kind='stable').tolist():
      if not value.crowd[at]:
        ids[shapes[at]], known[at + 1] = at + 1, int(value.label[at])
    return ids, known


def labelled(view: View, channels: int, classes: int, dtype: str = 'uint8') -> Columns:
  """An image and its class."""
  return Columns(view, (Image(channels, dtype),), (Label(classes),))


def _within(there: np.ndarray, placement: Placement) -> np.ndarray:
  """Which pixels of a frame are made of those alone that are there, bool (height, width)."""
  near = placement.labels(there.astype(np.uint8), 1) > 0
  if there.all() or placement.changes:
    return near
  share = preprocess.Opened(there[..., None].astype(np.float32), 1, 'float32').within(placement)
  return near & (np.abs(share[..., 0] - 1) < _WHOLE)


def _check(example: Example, labels: Any, classes: int) -> None:
  """Raises RunError unless all are places among so many classes."""
  for label in labels:
    if not 0 <= label < classes:
      raise RunError(
        f'{example["name"]} has label {label}, outside the {classes} classes of the model'
      )


def _largest(which: np.ndarray, areas: np.ndarray, most: int) -> tuple[np.ndarray, int]:
  """So many of some numbers, those with the largest areas, in their order; how many are not."""
  first = np.sort(np.argsort(-areas, kind='stable')[:most])
  return which[first], len(which) - len(first)


def _around(numbers: np.ndarray) -> np.ndarray:
  """Boxes around all numbers of a map from 1 on: left, top, right and bottom as shares of it."""
  from scipy.ndimage import find_objects

  places = find_objects(numbers)
  ends = [(x.start, y.start, x.stop, y.stop) for y, x in places]
  return np.reshape(ends, (-1, 4)) / np.array([*numbers.shape[::-1]] * 2)
