"""Views: what of an image the model gets to see, as geometry that every field obeys.

A view is drawn before anything is decoded. The result, a `Placement`, brings pixels, maps, boxes
and points of an example to the model's frame, and predictions back to the image's.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.core.errors import RunError, suggest
from vit_jax.data import erasing
from vit_jax.data.changes import Change, Move
from vit_jax.data.colours import Colour
from vit_jax.data.crops import Box, Crop, Resize

if TYPE_CHECKING:
  import numpy as np

FLIPS = ('none', 'horizontal', 'vertical', 'both')
# Of a pixel: coordinates this close to its edge are on it.
_EDGE = 1e-6


@dataclasses.dataclass(frozen=True)
class View:
  """What is drawn for each image.

  Attributes:
    crop: which part of the image; see `crops`.
    flip: 'horizontal' mirrors half of the images left to right, 'vertical' upside down, 'both' both
      ways independently.
    size: height and width that the model takes; a task sets it.
    colour: what is done to pixels after that; see `colours`.
    erase: which boxes are erased at last; see `erasing`.
  """

  crop: Crop = dataclasses.field(default_factory=Resize)
  flip: str = 'none'
  size: tuple[int, int] = (1, 1)
  colour: Colour = dataclasses.field(default_factory=Colour)
  erase: Any = dataclasses.field(default_factory=erasing.NoErasing)

  def __post_init__(self):
    if self.flip not in FLIPS:
      raise RunError(f'unknown flip {self.flip!r}: {suggest(self.flip, FLIPS)}')

  def sized(self, size: tuple[int, int]) -> View:
    """The same for another size."""
    return dataclasses.replace(self, size=size)

  def place(self, height: int, width: int, rng: np.random.Generator | None) -> Placement:
    """Draws what becomes of an image of this height and width.

    Args:
      height, width: of the image, upright.
      rng: not needed where nothing is random.
    """
    box = self.crop.box(height, width, self.size, rng)
    matrix = self.crop.matrix(self.size, rng)
    mirror = lambda *ways: self.flip in ways and rng is not None and bool(rng.random() < 0.5)  # noqa: E731
    across, down = mirror('horizontal', 'both'), mirror('vertical', 'both')
    at = self.crop.at(rng)
    changes, erased = (), ()
    if rng is not None:
      changes = self.colour.draw(self.size, rng)
      erased = self.erase.draw(self.size, rng) if self.erase.count else ()
    return Placement(
      (height, width), self.size, self.crop, box, matrix, across, down, at, changes, erased
    )


class Placement(NamedTuple):
  """Where an image is in the frame of the model.

  Points are x and y; pixels are areas, the first of them between 0 and 1.

  Attributes:
    source: height and width of the image.
    size: height and width of the frame.
    crop: that chose the part.
    box: that part of the image.
    matrix: a warp of the part once it has the size of the frame, float64 (2, 3), of the centres of
      pixels; or None.
    across, down: whether it is mirrored then left to right, and upside down.
    at: where the frame is cut from an image that is resized first, and more; see `Crop.at`.
    changes: of the pixels of the frame after that, some of which move them.
    erased: boxes of the frame: top, left, height and width.
  """

  source: tuple[int, int]
  size: tuple[int, int]
  crop: Crop
  box: Box
  matrix: np.ndarray | None = None
  across: bool = False
  down: bool = False
  at: tuple[float, ...] = (0.5, 0.5)
  changes: tuple[Change, ...] = ()
  erased: tuple[erasing.Box, ...] = ()

  @property
  def affine(self) -> np.ndarray:
    """From points of the image to points of the frame, float64 (2, 3)."""
    import numpy as np

    (top, left, height, width), (rows, columns) = self._part(), self.size
    scale = np.array([columns / width, rows / height])
    found = np.c_[np.diag(scale), -scale * (left, top)]
    if self.matrix is not None:  # of centres, which are half a pixel from the edges
      linear = self.matrix[:, :2]
      found = linear @ found
      found[:, 2] += self.matrix[:, 2] + 0.5 - linear.sum(1) * 0.5
    rows, columns = self.filled
    for axis, mirrored, side in ((0, self.across, columns), (1, self.down, rows)):
      if mirrored:
        found[axis] *= -1
        found[axis, 2] += side
    for change in self.changes:
      if isinstance(change, Move):
        matrix = change.matrix
        found = matrix[:, :2] @ found
        found[:, 2] += matrix[:, 2]
    return found

  def _part(self) -> tuple[float, float, float, float]:
    """Top, left, height and width of what fills the frame, in pixels of the image."""
    if not self.crop.whole:
      return self.box
    whole, (top, left) = self.window
    y, x = (have / side for have, side in zip(self.source, whole, strict=True))
    return top * y, left * x, self.size[0] * y, self.size[1] * x

  @property
  def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of an image that is resized first: its size then, and the top and left edge of the frame."""
    return self.crop.window(self.source, self.size, self.at)

  @property
  def filled(self) -> tuple[int, int]:
    """Height and width of what is image in the frame, from its left upper corner on."""
    if not self.crop.fills:
      return self.size
    whole, corner = self.window
    rows, columns = (
      min(size, side - first) for size, side, first in zip(self.size, whole, corner, strict=True)
    )
    return rows, columns

  def points(self, points: np.ndarray) -> np.ndarray:
    """Points of the image, (n, 2), in the frame; they may lie outside of it."""
    found = self.affine
    return points @ found[:, :2].T + found[:, 2]

  def back(self, points: np.ndarray) -> np.ndarray:
    """The inverse of `points`."""
    import numpy as np

    found = self.affine
    return (points - found[:, 2]) @ np.linalg.inv(found[:, :2]).T

  def boxes(self, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the image in the frame.

    Args:
      corners: left, top, right and bottom, float64 (n, 4), in pixels.

    Returns:
      The boxes around them that are parallel to the frame, cut at its edge; and which share of each
      is inside, float64 (n,).
    """
    import numpy as np

    whole = _around(self.points(_corners(corners)))
    inside = np.clip(whole, 0, np.array([*self.size[::-1]] * 2))
    area = lambda box: np.prod(box[:, 2:] - box[:, :2], axis=1)  # noqa: E731
    return inside, area(inside) / np.maximum(area(whole), 1e-12)

  def back_boxes(self, corners: np.ndarray) -> np.ndarray:
    """Boxes of the frame, (n, 4), in the image, cut at its edge."""
    import numpy as np

    return np.clip(_around(self.back(_corners(corners))), 0, np.array([*self.source[::-1]] * 2))

  def labels(self, values: np.ndarray, outside: Any, size: tuple[int, int] | None = None) -> Any:
    """A map of the image, (height, width), in the frame: of each pixel what is at its centre.

    Args:
      values: of any dtype.
      outside: value of what is not in the image.
      size: of the map that is wanted, if it is coarser than the frame.
    """
    import numpy as np

    size = size or self.size
    stretch = np.array(self.size[::-1]) / size[::-1]
    linear, shift = self.affine[:, :2], self.affine[:, 2]
    inverse = np.linalg.inv(linear)
    return _looked_up(values, size, inverse * stretch, inverse @ -shift, outside)

  def back_labels(self, values: np.ndarray, outside: Any) -> np.ndarray:
    """A map of the frame, of its size or coarser, in the image; `outside` what was not seen."""
    import numpy as np

    found = self.affine
    shrink = np.array(values.shape[1::-1]) / self.size[::-1]
    return _looked_up(
      values, self.source, found[:, :2] * shrink[:, None], found[:, 2] * shrink, outside
    )

  def mirrored(self, pixels: np.ndarray) -> np.ndarray:
    """An image of the frame, (height, width, ...), what is filled of it mirrored."""
    rows, columns = self.filled
    ways = slice(None, None, -1 if self.down else 1), slice(None, None, -1 if self.across else 1)
    if (rows, columns) == self.size:
      return pixels[ways]
    pixels = pixels.copy()
    pixels[:rows, :columns] = pixels[:rows, :columns][ways]
    return pixels


def _looked_up(values, size, linear, shift, outside):
  """Of each pixel of a map of `size` the value at linear @ (its centre) + shift, nearest."""
  import numpy as np

  rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
  height, width = values.shape[:2]
  place = lambda at: np.floor(at + _EDGE).astype(np.int64)  # noqa: E731
  if not linear[0, 1] and not linear[1, 0]:
    x, y = place(columns * linear[0, 0] + shift[0]), place(rows * linear[1, 1] + shift[1])
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]
    found = values[np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None]]
  else:
    x, y = np.meshgrid(columns, rows)
    x, y = (place(row[0] * x + row[1] * y + by) for row, by in zip(linear, shift, strict=True))
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    found = values[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
  return found if inside.all() else np.where(inside, found, np.asarray(outside, values.dtype))


def _corners(boxes: np.ndarray) -> np.ndarray:
  """All four corners of boxes (n, 4): (n, 4, 2)."""
  return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]


def _around(points: np.ndarray) -> np.ndarray:
  """The smallest boxes, (n, 4), around points (n, k, 2)."""
  import numpy as np

  return np.concatenate([points.min(1), points.max(1)], axis=1)
