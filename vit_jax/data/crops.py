"""Which part of an image the model gets to see: geometry alone, no pixels."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

from vit_jax.core.errors import RunError, suggest

if TYPE_CHECKING:
  import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width
# How pixels are resampled: averaged over areas, as Pillow does with antialiasing, or without it.
METHODS = ('area', 'bilinear', 'bicubic', 'linear')
UNSET: Any = None
# Tries of a random crop until the whole image, or the middle of it, is taken instead.
_TRIES, _TRIES_BIG_VISION = 10, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop:
  """A choice of a part of an image, and how that is brought to the model's size.

  Attributes:
    method: 'area'; 'bilinear' or 'bicubic' with antialiasing as in Pillow; or 'linear', between the
      four nearest pixels, without antialiasing, as TensorFlow resizes if nobody asks it not to.
      Unset: that of the checkpoint that the run starts from, or 'area'.
    exact: whether every pixel of the part contributes. Scaled decoding would change those of
      evaluation by 1 to 5 of 255 levels on average, so only random crops do without.
    area: by how much a part must shrink for its pixels to be averaged; below, it is interpolated.
    central: whether the part is the middle of the image, or all of it.
    random: whether it is drawn.
    down: whether a middle between two pixels is rounded down, as transformers does.
    fraction: of the shorter side that is kept; 0 resizes the whole image, whatever its shape.
    fills: whether images keep their shape, and what they leave of the frame, at the right and the
      bottom, is filled up with zeros of normalised images, from which models are told apart what is
      image: `extent` in batches.
  """

  method: str = UNSET
  exact = True
  area = 1.0
  central = False
  random: ClassVar[bool] = False
  down: ClassVar[bool] = False
  fraction: ClassVar[float] = 0.0
  fills: ClassVar[bool] = False

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

  def at(self, rng: Any) -> tuple[float, ...]:
    """Where a frame is cut from an image that is resized first: shares of the room for it.

    Behind them what else is drawn.
    """
    del rng
    return 0.5, 0.5

  def window(
    self, have: tuple[int, int], size: tuple[int, int], at: tuple[float, ...]
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of an image that is resized first its size then, and the top and left edge of the frame.

    Args:
      have: height and width of the image.
      size: of the frame.
      at: as `at` gave it.
    """
    del at
    if not self.fraction:
      return size, (0, 0)
    return sides(have, size, self.fraction, down=self.down)

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
    min_area, max_area: smallest and largest share of the image's area.
    max_aspect: aspect ratios are between 1 / max_aspect and max_aspect.
    dialect: of the law by which a part is drawn. 'torchvision': its area evenly, the logarithm of
      its aspect ratio evenly; if ten tries do not fit into the image, the largest middle part whose
      ratio is allowed. 'big_vision', that of TensorFlow: the aspect ratio evenly, then the height
      evenly between those of the smallest and the largest area, which favours smaller parts; if 100
      tries do not fit, the whole image. 'vit_jax': that of torchvision, but the part begins and
      ends where an image can be decoded at a fraction of its size, which is faster, and what never
      fits becomes the largest middle part of the model's aspect ratio.
  """

  min_area: float = 0.08
  max_area: float = 1.0
  max_aspect: float = 4 / 3
  dialect: str = 'vit_jax'
  random = True
  area = 2.0  # bilinear down to half the size, where it still reads every pixel

  def __post_init__(self):
    super().__post_init__()
    if not (0 < self.min_area <= self.max_area <= 1 <= self.max_aspect):
      raise RunError(
        'a random crop needs 0 < min_area <= max_area <= 1 and max_aspect >= 1: '
        f'{self.min_area}, {self.max_area}, {self.max_aspect}'
      )
    if self.dialect not in _LAWS:
      raise RunError(
        f'unknown dialect of a random crop {self.dialect!r}: {suggest(self.dialect, _LAWS)}'
      )

  @property
  def exact(self) -> bool:
    """See `Crop`."""
    return self.dialect != 'vit_jax'

  def box(self, height: int, width: int, size: tuple[int, int], rng: Any) -> Box:
    """See `Crop`."""
    found = _LAWS[self.dialect](self, height, width, rng)
    if self.exact:
      return found or (0, 0, height, width)
    top, left, rows, columns = found or Center(1.0).box(height, width, size, rng)
    # Whole pixels of an image that is decoded at a fraction of its size.
    grid = octaves(rows, columns, size)
    return top // grid * grid, left // grid * grid, rows // grid * grid, columns // grid * grid


def _by_area(crop: RandomResized, height: int, width: int, rng: Any) -> Box | None:
  """As torchvision draws a part; None if none fits."""
  for _ in range(_TRIES):
    area, aspect, top, left = rng.random(4).tolist()
    area = height * width * (crop.min_area + (crop.max_area - crop.min_area) * area)
    aspect = crop.max_aspect ** (2 * aspect - 1)
    rows, columns = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
    if 0 < rows <= height and 0 < columns <= width:
      return int(top * (height - rows + 1)), int(left * (width - columns + 1)), rows, columns
  return None


def _by_area_or_middle(crop: RandomResized, height: int, width: int, rng: Any) -> Box:
  """`_by_area`, or torchvision's middle part."""
  if found := _by_area(crop, height, width, rng):
    return found
  rows = min(height, round(width * crop.max_aspect))
  columns = min(width, round(height * crop.max_aspect))
  return (height - rows) // 2, (width - columns) // 2, rows, columns


def _by_height(crop: RandomResized, height: int, width: int, rng: Any) -> Box | None:
  """As TensorFlow's kernel of sample_distorted_bounding_box draws a part; None if none fits."""
  least, most = crop.min_area * height * width, crop.max_area * height * width
  low, high = 1 / crop.max_aspect, crop.max_aspect
  for _ in range(_TRIES_BIG_VISION):
    aspect, tall, top, left = rng.random(4).tolist()
    aspect = low + (high - low) * aspect
    first, last = (round(math.sqrt(area / aspect)) for area in (least, most))
    if round(last * aspect) > width:
      last = int((width + 0.5) / aspect)
      last -= round(last * aspect) > width
    last = min(last, height)
    rows = min(first, last)
    rows += int(tall * (last - rows + 1))
    # What rounding has put outside of the range is moved by one row.
    rows += rows * round(rows * aspect) < least
    rows -= rows * round(rows * aspect) > most
    columns = round(rows * aspect)
    if least <= rows * columns <= most and 0 < rows <= height and 0 < columns <= width:
      # The last row and column that would be possible never are the first ones.
      return int(top * (height - rows)), int(left * (width - columns)), rows, columns
  return None


_LAWS = {'vit_jax': _by_area, 'torchvision': _by_area_or_middle, 'big_vision': _by_height}


@dataclasses.dataclass(frozen=True)
class Simple(Crop):
  """The whole image at the model's size, and of that, its border mirrored, a part of that size.

  The 'simple random crop' of DeiT III (Touvron et al. 2022, section 3.2): the shorter side gets the
  size of the model, the aspect ratio stays.

  Attributes:
    pad: pixels that are mirrored at each edge.
  """

  pad: int = 4
  random = True
  fraction: ClassVar[float] = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.pad < 0:
      raise RunError(f'the border of a simple crop is at least 0 pixels: pad={self.pad}')

  @property
  def whole(self) -> bool:
    """See `Crop`: the border needs all of the image at its new size."""
    return True

  def at(self, rng: Any) -> tuple[float, float]:
    """See `Crop`."""
    top, left = rng.random(2).tolist()
    return top, left

  def window(
    self, have: tuple[int, int], size: tuple[int, int], at: tuple[float, ...]
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """See `Crop`; the edges of the frame may lie in the border, which is around the image."""
    whole, _ = sides(have, size, 1.0)
    room = (side + 2 * self.pad - wanted + 1 for side, wanted in zip(whole, size, strict=True))
    top, left = (int(share * each) - self.pad for share, each in zip(at[:2], room, strict=True))
    return whole, (top, left)


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


@dataclasses.dataclass(frozen=True)
class Fit(Crop):
  """The whole image in its own shape, as large as fits; the rest of the frame is filled up.

  As detectors see images (Carion et al. 2020), in frames of one size.
  """

  central = True
  fills: ClassVar[bool] = True

  @property
  def whole(self) -> bool:
    """See `Crop`."""
    return True

  def window(
    self, have: tuple[int, int], size: tuple[int, int], at: tuple[float, ...]
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """See `Crop`."""
    del at
    return _scaled(have, size, 1.0), (0, 0)


@dataclasses.dataclass(frozen=True)
class ScaleJitter(Fit):
  """As `Fit`, then larger or smaller by a random factor; of what is larger a random part.

  Large-scale jitter (Ghiasi et al. 2021, 'Simple copy-paste', section 3): 0.1 to 2 there.

  Attributes:
    min_scale, max_scale: of the factor, which is drawn evenly.
  """

  min_scale: float = 0.1
  max_scale: float = 2.0
  central = False
  random = True

  def __post_init__(self):
    super().__post_init__()
    if not (math.isfinite(self.max_scale) and 0 < self.min_scale <= self.max_scale):
      raise RunError(
        f'a scale jitter needs 0 < min_scale <= max_scale: {self.min_scale}, {self.max_scale}'
      )

  def at(self, rng: Any) -> tuple[float, ...]:
    """See `Crop`: places, and the factor."""
    top, left, scale = rng.random(3).tolist()
    return top, left, self.min_scale + (self.max_scale - self.min_scale) * scale

  def window(
    self, have: tuple[int, int], size: tuple[int, int], at: tuple[float, ...]
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """See `Crop`."""
    *places, scale = at
    whole = _scaled(have, size, scale)
    rooms = (max(0, side - wanted) for side, wanted in zip(whole, size, strict=True))
    top, left = (round(share * room) for share, room in zip(places, rooms, strict=True))
    return whole, (top, left)


def _scaled(have: tuple[int, int], size: tuple[int, int], scale: float) -> tuple[int, int]:
  """Height and width of an image that fits into so many times a frame, at least a pixel each."""
  by = scale * min(wanted / side for wanted, side in zip(size, have, strict=True))
  height, width = (max(1, round(side * by)) for side in have)
  return height, width


class _Rounding(Center):
  """As transformers cuts it."""

  down = True


def of_card(card: Any) -> Crop:
  """The crop of evaluations that the `architecture.card.Card` of a model says."""
  if card.fills:
    return Fit(method=card.resize)
  return published(card.resize, card.crop, card.dialect)


def published(method: str, fraction: float, dialect: str = '') -> Crop:
  """The crop that a model was published with; fraction 0 resizes the whole image."""
  if not fraction:
    return Resize(method=method)
  return (_Rounding if dialect == 'transformers' else Center)(method=method, fraction=fraction)


CROPS = {
  'resize': Resize, 'center': Center, 'random_resized': RandomResized, 'simple': Simple,
  'affine': Affine, 'fit': Fit, 'scale_jitter': ScaleJitter,
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
