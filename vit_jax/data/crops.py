"""Which part of an image the model gets to see: geometry alone, no pixels."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

from vit_jax.core.errors import RunError, suggest

if TYPE_CHECKING:
  import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width
# How pixels are resampled: averaged over areas, or as Pillow does with antialiasing.
METHODS = ('area', 'bilinear', 'bicubic')
UNSET: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop:
  """A choice of a part of an image, and how that is brought to the model's size.

  Attributes:
    method: 'area', or 'bilinear' or 'bicubic' with antialiasing as in Pillow. Unset: that of the
      checkpoint that the run starts from, or 'area', which is the fastest.
    exact: whether every pixel of the part contributes. Scaled decoding would change those of
      evaluation by 1 to 5 of 255 levels on average, so only random crops do without.
    area: by how much a part must shrink for its pixels to be averaged; below, it is interpolated.
    central: whether the part is the middle of the image, or all of it.
    random: whether it is drawn.
    down: whether a middle between two pixels is rounded down, as transformers does.
    fraction: of the shorter side that is kept; 0 resizes the whole image, whatever its shape.
  """

  method: str = UNSET
  exact = True
  area = 1.0
  central = False
  random: ClassVar[bool] = False
  down: ClassVar[bool] = False
  fraction: ClassVar[float] = 0.0

  def __post_init__(self):
    if self.method not in (None, *METHODS):
      raise RunError(f'unknown method of a crop {self.method!r}: {suggest(self.method, METHODS)}')

  @property
  def every_pixel(self) -> bool:
    """Whether the part is decoded at its full size, exactly."""
    return self.exact or self.method not in (None, 'area')

  @property
  def whole(self) -> bool:
    """Whether the whole image is resized first, as others do it for evaluation."""
    return self.central and self.method not in (None, 'area')

  def box(self, height: int, width: int, size: tuple[int, int], rng: Any) -> Box:
    """The part of an image of this height and width that is wanted."""
    del size, rng
    return 0, 0, height, width

  def matrix(self, size: tuple[int, int], rng: Any) -> np.ndarray | None:
    """A warp of the part once it has the model's size: float64 (2, 3), or None for none."""
    del size, rng
    return None


@dataclasses.dataclass(frozen=True)
class Resize(Crop):
  """The whole image, resized to the model's size without keeping its aspect ratio."""

  central = True


@dataclasses.dataclass(frozen=True)
class Center(Crop):
  """The central crop of the model's aspect ratio that covers `fraction` of the shorter side."""

  central = True
  fraction: float = 0.875  # type: ignore

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.fraction <= 1:
      raise RunError(
        f'the fraction of a central crop is more than 0 and at most 1: {self.fraction}'
      )

  def box(self, height: int, width: int, size: tuple[int, int], rng: Any) -> Box:
    """See `Crop`."""
    del rng
    scale = self.fraction * min(height / size[0], width / size[1])
    rows, columns = (max(1, round(side * scale)) for side in size)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


@dataclasses.dataclass(frozen=True)
class RandomResized(Crop):
  """A random crop of random area and aspect ratio (Szegedy et al. 2015, 'Inception crop').

  Attributes:
    min_area: smallest share of the image's area; the largest is 1.
    max_aspect: aspect ratios are log-uniform between 1 / max_aspect and max_aspect.
  """

  min_area: float = 0.08
  max_aspect: float = 4 / 3
  exact = False
  random = True
  area = 2.0  # bilinear down to half the size, where it still reads every pixel

  def __post_init__(self):
    super().__post_init__()
    if not (0 < self.min_area <= 1 <= self.max_aspect):
      raise RunError(
        f'a random crop needs 0 < min_area <= 1 and max_aspect >= 1: {self.min_area}, '
        f'{self.max_aspect}'
      )

  def box(self, height: int, width: int, size: tuple[int, int], rng: Any) -> Box:
    """See `Crop`."""
    for _ in range(10):
      area, aspect, top, left = rng.random(4).tolist()
      area = height * width * (self.min_area + (1 - self.min_area) * area)
      aspect = self.max_aspect ** (2 * aspect - 1)
      rows, columns = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
      if 0 < rows <= height and 0 < columns <= width:
        top, left = int(top * (height - rows + 1)), int(left * (width - columns + 1))
        break
    else:
      top, left, rows, columns = Center(1.0).box(height, width, size, rng)
    # Whole pixels of an image that is decoded at a fraction of its size.
    grid = octaves(rows, columns, size)
    return top // grid * grid, left // grid * grid, rows // grid * grid, columns // grid * grid


@dataclasses.dataclass(frozen=True)
class Affine(Crop):
  """A small random rotation, zoom and shift of the whole image, for centred subjects.

  Attributes:
    degrees: largest rotation either way.
    zoom: largest relative change of size either way.
    shift: largest shift in each direction, as a share of the side.
  """

  degrees: float = 10.0
  zoom: float = 0.1
  shift: float = 0.1
  random = True

  def __post_init__(self):
    super().__post_init__()
    if not (self.degrees >= 0 and 0 <= self.zoom < 1 and self.shift >= 0):
      raise RunError(
        'an affine crop needs degrees and shift of at least 0, and 0 <= zoom < 1: '
        f'{self.degrees}, {self.shift}, {self.zoom}'
      )

  def matrix(self, size: tuple[int, int], rng: Any) -> np.ndarray:
    """See `Crop`."""
    import numpy as np

    height, width = size
    angle, zoom, dy, dx = rng.uniform(-1, 1, 4)
    x, y = (width - 1) / 2, (height - 1) / 2
    radians, scale = float(angle * self.degrees) * (math.pi / 180), 1 + float(zoom * self.zoom)
    cos, sin = math.cos(radians) * scale, math.sin(radians) * scale
    matrix = np.array([[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]])
    matrix[:, 2] += dx * self.shift * width, dy * self.shift * height
    return matrix


class _Rounding(Center):
  """As transformers cuts it."""

  down = True


def published(method: str, fraction: float, dialect: str = '') -> Crop:
  """The crop that a model was published with; fraction 0 resizes the whole image."""
  if not fraction:
    return Resize(method=method)
  return (_Rounding if dialect == 'transformers' else Center)(method=method, fraction=fraction)


CROPS = {
  'resize': Resize, 'center': Center, 'random_resized': RandomResized, 'affine': Affine
}  # fmt: skip


def octaves(height: int, width: int, size: tuple[int, int]) -> int:
  """By how much, of 1, 2, 4 and 8, the sides of a part can be divided and still cover `size`."""
  shrink = min(height // size[0], width // size[1], 8)
  return 1 << max(shrink, 1).bit_length() - 1


def sides(
  have: tuple[int, ...], size: tuple[int, int], fraction: float, *, down: bool = False
) -> tuple[tuple[int, int], tuple[int, int]]:
  """As timm and transformers do it: to which size an image is resized, and where it is cut.

  Args:
    have: height and width of the image.
    size: height and width of the model.
    fraction: of the shorter side that the central crop keeps.
    down: see `Crop`.

  Returns:
    Height and width, and the top and left edge of the part of that which is kept.
  """
  # The shorter side first, then the middle.
  least = [math.floor(side / fraction + 1e-6) for side in size]
  if size[0] == size[1]:
    whole = [int(least[0] * side / min(have)) for side in have]
  else:
    scale = max(a / b for a, b in zip(least, have, strict=True))
    whole = [round(side * scale) for side in have]
  middle = int if down else round
  top, left = (middle((side - wanted) / 2) for side, wanted in zip(whole, size, strict=True))
  return (whole[0], whole[1]), (top, left)
