"""Changes of the pixels of a frame that are drawn with a view: what, and how strong. No pixels yet.

A change of tones is the name of one of `operators.TONES` and a number. A change of places is an
affine map, which every field of an example obeys, as it does the crop.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import numpy as np

Size = tuple[int, int]
# How pixels of a frame that is turned or shifted are read, as Pillow does.
RESAMPLES = ('nearest', 'bilinear', 'bicubic')


@dataclasses.dataclass(frozen=True)
class Tone:
  """A change of values.

  Attributes:
    name: one of `operators.TONES`.
    value: its factor, threshold, radius; what is needed.
  """

  name: str
  value: Any = None


@dataclasses.dataclass(frozen=True)
class Move:
  """A change of places.

  Attributes:
    inverse: from points of the frame to where they were before, row by row (a, b, c, d, e, f).
    resample: one of `RESAMPLES`.
    fill: of what was not in the frame, a value for each channel, or one for all.
  """

  inverse: tuple[float, float, float, float, float, float]
  resample: str
  fill: tuple[int, ...]

  @property
  def matrix(self) -> np.ndarray:
    """From points of the frame before to points after, float64 (2, 3)."""
    import numpy as np

    back = np.array([self.inverse[:3], self.inverse[3:], (0, 0, 1)])
    return np.linalg.inv(back)[:2]


Change = Tone | Move


@dataclasses.dataclass(frozen=True)
class Reading:
  """How what is moved is read: the part of a dialect that all of its moves share.

  Attributes:
    resample, fill: see `Move`.
    by_index: whether pixels are at whole numbers, as TensorFlow has it, and not at halves.
  """

  resample: str
  fill: tuple[int, ...]
  by_index: bool = False

  def move(self, a: float, b: float, c: float, d: float, e: float, f: float) -> Move:
    """The move of which this is the inverse."""
    if self.by_index:  # from centres to the points half a pixel from them
      c, f = c + (1 - a - b) / 2, f + (1 - d - e) / 2
    return Move((a, b, c, d, e, f), self.resample, self.fill)

  def shear(self, axis: int, level: float) -> Move:
    """Along rows (axis 1) or columns (axis 0), by so many pixels for each pixel across."""
    return self.move(1, level, 0, 0, 1, 0) if axis else self.move(1, 0, 0, level, 1, 0)

  def translate(self, axis: int, pixels: float) -> Move:
    """Along rows (axis 1) or columns (axis 0)."""
    return self.move(1, 0, pixels, 0, 1, 0) if axis else self.move(1, 0, 0, 0, 1, pixels)

  def rotate(self, degrees: float, size: Size) -> Move:
    """Around the middle."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    y, x = (side / 2 for side in size)
    whole = dataclasses.replace(self, by_index=False)  # the middle is the same for both
    return whole.move(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
