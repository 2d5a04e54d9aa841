"""What happens to an image on the host: decode, crop, resize. No JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np

from vit_jax.data import jpeg

# The pipeline runs many threads of its own.
cv2.setNumThreads(1)


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
  """Encoded bytes -> uint8 (height, width, channels), turned upright as its EXIF tag says.

  Raises:
    ValueError: if the bytes are no image, or only the beginning of one.
  """
  if isinstance(image, np.ndarray):
    return image[..., :channels]
  flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
  try:
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flag) if image else None
  except cv2.error as error:  # too many pixels, for example
    raise ValueError(str(error)) from None
  if pixels is None:
    raise ValueError(f'{len(image)} bytes that do not decode as an image')
  return pixels if pixels.ndim == 3 else pixels[..., None]


def prepare(
  image: bytes | np.ndarray, crop: Crop, size: tuple[int, int], channels: int,
  rng: np.random.Generator | None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
  """What a crop makes of an encoded image, of which no more is decoded than it needs.

  Args:
    image: encoded, or uint8 (height, width, channels or more).
    crop: one of `CROPS`.
    size: (height, width) wanted.
    channels: wanted.
    rng: for the crop; what is drawn depends on the size of the image, not on how it is decoded.
    out: uint8 (*size, channels) to be filled; without it a new array is.

  Returns:
    `out`.

  Raises:
    ValueError: if the bytes are no image, or only the beginning of one.
  """
  header = jpeg.read_header(image) if isinstance(image, bytes) else None
  if not isinstance(image, bytes) or header is None:
    return crop(decode(image, channels), size, rng, out)
  box = crop.box(header.height, header.width, size, rng)
  factor = 1 if crop.exact else _factor(box[2], box[3], size)
  part = jpeg.decode(image, header, box, channels, fast=not crop.exact, factor=factor)
  if part is None:  # it is for OpenCV to say whether that can be forgiven
    pixels = decode(image, channels)
    if pixels.shape[:2] != (header.height, header.width):
      raise ValueError(f'an image of {pixels.shape[:2]} with another size in its header')
    part = cut(pixels, box)
  return crop.fit(part, size, rng, out)


def resize(
  image: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None, *, area: float = 1.0
) -> np.ndarray:
  """To (height, width), averaging over pixels when shrinking by more than `area`, else bilinear."""
  out = np.empty((*size, image.shape[2]), np.uint8) if out is None else out
  if image.shape[:2] == size:
    np.copyto(out, image)
    return out
  shrinks = max(image.shape[0] / size[0], image.shape[1] / size[1]) > area
  interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  cv2.resize(image, size[::-1], dst=out, interpolation=interpolation)
  return out


def cut(image: np.ndarray, box: jpeg.Box) -> np.ndarray:
  """The part of an image (height, width, channels) that a box says; a view."""
  top, left, height, width = box
  return image[top : top + height, left : left + width]


def _factor(height: int, width: int, size: tuple[int, int]) -> int:
  """By how much, of 1, 2, 4 and 8, the sides of a part can be divided and still cover `size`."""
  shrink = min(height // size[0], width // size[1], 8)
  return 1 << max(shrink, 1).bit_length() - 1


class Crop:
  """A choice of a part of an image, and how that is brought to the model's size.

  Attributes:
    exact: whether every pixel of the part has a say. Scaled decoding would change those of
      evaluation by 1 to 5 of 255 levels on average, so only random crops do without.
  """

  exact = True

  def box(self, height: int, width: int, size: tuple[int, int], rng: Any) -> jpeg.Box:
    """The part of an image of this height and width that is wanted."""
    del size, rng
    return 0, 0, height, width

  def fit(self, part: np.ndarray, size: tuple[int, int], rng: Any, out: Any = None) -> np.ndarray:
    """The part -> uint8 (*size, channels), in `out` if given."""
    del rng
    return resize(part, size, out)

  def __call__(self, image: np.ndarray, size: tuple[int, int], rng: Any, out: Any = None):
    """Both: uint8 (height, width, channels), the wanted size, a generator -> as `fit`."""
    height, width = image.shape[:2]
    return self.fit(cut(image, self.box(height, width, size, rng)), size, rng, out)


@dataclasses.dataclass(frozen=True)
class Resize(Crop):
  """The whole image, squeezed into the model's size."""


@dataclasses.dataclass(frozen=True)
class Center(Crop):
  """The central crop of the model's aspect ratio that covers `fraction` of the shorter side."""

  fraction: float = 0.875

  def box(self, height: int, width: int, size: tuple[int, int], rng: Any) -> jpeg.Box:
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

  def box(self, height: int, width: int, size: tuple[int, int], rng: Any) -> jpeg.Box:
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
    grid = _factor(rows, columns, size)
    return top // grid * grid, left // grid * grid, rows // grid * grid, columns // grid * grid

  def fit(self, part, size, rng, out=None) -> np.ndarray:
    """See `Crop`; bilinear down to half the size, where it still reads every pixel."""
    del rng
    return resize(part, size, out, area=2.0)


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

  def fit(self, part, size, rng, out=None) -> np.ndarray:
    """See `Crop`."""
    height, width = size
    angle, zoom, dy, dx = rng.uniform(-1, 1, 4)
    matrix = cv2.getRotationMatrix2D(
      ((width - 1) / 2, (height - 1) / 2), angle * self.degrees, 1 + zoom * self.zoom
    )
    matrix[:, 2] += dx * self.shift * width, dy * self.shift * height
    whole = resize(part, size)
    out = np.empty_like(whole) if out is None else out
    cv2.warpAffine(whole, matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR)
    return out


CROPS = {
  'resize': Resize, 'center': Center, 'random_resized': RandomResized, 'affine': Affine
}  # fmt: skip
