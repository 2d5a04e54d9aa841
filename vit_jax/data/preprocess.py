"""What happens to an image on the host: decode, crop, resize. NumPy and OpenCV only."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

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


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """To (height, width), averaging over pixels when shrinking and interpolating when growing."""
  if image.shape[:2] == size:
    return image
  shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
  interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  out = cv2.resize(image, size[::-1], interpolation=interpolation)
  return out if out.ndim == 3 else out[..., None]


@dataclasses.dataclass(frozen=True)
class Resize:
  """The whole image, squeezed into the model's size."""

  def __call__(self, image, size, rng) -> np.ndarray:
    """As every crop: uint8 image, (height, width) and a NumPy generator -> uint8 of that size."""
    del rng
    return resize(image, size)


@dataclasses.dataclass(frozen=True)
class Center:
  """The central crop of the model's aspect ratio that covers `fraction` of the shorter side."""

  fraction: float = 0.875

  def __call__(self, image, size, rng) -> np.ndarray:
    """See `Resize`."""
    del rng
    scale = self.fraction * min(image.shape[0] / size[0], image.shape[1] / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return resize(image[top : top + height, left : left + width], size)


@dataclasses.dataclass(frozen=True)
class RandomResized:
  """A random crop of random area and aspect ratio (Szegedy et al. 2015, 'Inception crop').

  Attributes:
    min_area: smallest share of the image's area; the largest is 1.
    max_aspect: aspect ratios are log-uniform between 1 / max_aspect and max_aspect.
  """

  min_area: float = 0.08
  max_aspect: float = 4 / 3

  def __call__(self, image, size, rng) -> np.ndarray:
    """See `Resize`."""
    h, w = image.shape[:2]
    for _ in range(10):
      area = h * w * rng.uniform(self.min_area, 1)
      aspect = np.exp(rng.uniform(-1, 1) * np.log(self.max_aspect))
      height, width = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
      if 0 < height <= h and 0 < width <= w:
        top, left = rng.integers(h - height + 1), rng.integers(w - width + 1)
        return resize(image[top : top + height, left : left + width], size)
    return Center(1.0)(image, size, rng)


@dataclasses.dataclass(frozen=True)
class Affine:
  """A small random rotation, zoom and shift of the whole image, for centred subjects.

  Attributes:
    degrees: largest rotation either way.
    zoom: largest relative change of size either way.
    shift: largest shift in each direction, as a share of the side.
  """

  degrees: float = 10.0
  zoom: float = 0.1
  shift: float = 0.1

  def __call__(self, image, size, rng) -> np.ndarray:
    """See `Resize`."""
    height, width = size
    angle, zoom, dy, dx = rng.uniform(-1, 1, 4)
    matrix = cv2.getRotationMatrix2D(
      ((width - 1) / 2, (height - 1) / 2), angle * self.degrees, 1 + zoom * self.zoom
    )
    matrix[:, 2] += dx * self.shift * width, dy * self.shift * height
    out = cv2.warpAffine(resize(image, size), matrix, (width, height), flags=cv2.INTER_LINEAR)
    return out if out.ndim == 3 else out[..., None]


CROPS = {
  'resize': Resize, 'center': Center, 'random_resized': RandomResized, 'affine': Affine
}  # fmt: skip
