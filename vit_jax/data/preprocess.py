"""What happens to an image on the host: decode, crop, resize. No JAX.

An image has one channel (grey), two (grey and alpha), three (colour), four (colour and alpha), or
any number of which nothing is known. Grey and colour become each other, and alpha is dropped, where
the model takes the other; nothing is made up, and everything else is a `MisfitError`.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from vit_jax.data import exif, jpeg, kinds, tiff
from vit_jax.data.crops import Box, Crop, octaves
from vit_jax.data.misfit import MisfitError

# The pipeline runs many threads of its own, and says itself what it could not read.
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Kinds that OpenCV converts to grey or colour as it reads them, and turns upright.
_EVERYDAY = ('JPEG', 'PNG', 'WebP', 'BMP', 'GIF')
# More than 8 bits are refused, not cut off: without this flag OpenCV would do so.
_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
# What a PNG file says of itself: grey with alpha.
_GREY_ALPHA = 4


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
  """An image, encoded or not -> uint8 (height, width, channels), turned as its EXIF tag says.

  Raises:
    MisfitError: if it has other channels than those, or values of more than 8 bits.
    ValueError: if the bytes are not a valid image, or only the beginning of one.
  """
  if isinstance(image, bytes) and channels in (1, 3) and _kind(image) in _EVERYDAY:
    return _decoded(image, _GREY if channels == 1 else _COLOUR)
  return _converted(*_whole(image), channels)


def conversion(image: bytes | np.ndarray, channels: int) -> str:
  """What `decode` does to the channels of an image, for people; '' for nothing."""
  pixels, alpha = _whole(image)
  own = pixels.shape[2]
  done = ['alpha is dropped'] if alpha and channels in (1, 3) else []
  if own - alpha == 1 and channels > 2:
    done.append('grey is repeated')
  if own - alpha == 3 and channels < 3:
    done.append('colours become grey')
  return ' and '.join(done)


def prepare(
  image: bytes | np.ndarray, crop: Crop, size: tuple[int, int], channels: int,
  rng: np.random.Generator | None,
) -> np.ndarray:  # fmt: skip
  """What a crop makes of an encoded image, of which no more is decoded than it needs.

  Args:
    image: encoded, or uint8 (height, width, channels).
    crop: one of `CROPS`.
    size: (height, width) wanted.
    channels: wanted.
    rng: for the crop; what is drawn depends on the size of the image, not on how it is decoded.

  Returns:
    uint8 (*size, channels).

  Raises:
    MisfitError, ValueError: as `decode`.
  """
  header = None
  if crop.whole:
    return published(decode(image, channels), size, crop.fraction, crop.method)
  if isinstance(image, bytes) and channels in (1, 3):
    header = jpeg.read_header(image)
  if not isinstance(image, bytes) or header is None:
    return apply(crop, decode(image, channels), size, rng)
  box = crop.box(header.height, header.width, size, rng)
  factor = 1 if crop.every_pixel else octaves(box[2], box[3], size)
  part = jpeg.decode(image, header, box, channels, fast=not crop.every_pixel, factor=factor)
  if part is None:  # it is for OpenCV to say whether that can be forgiven
    pixels = decode(image, channels)
    if pixels.shape[:2] != (header.height, header.width):
      raise ValueError(f'an image of {pixels.shape[:2]} with another size in its header')
    part = cut(pixels, box)
  return _fit(crop, part, size, rng)


def apply(
  crop: Crop, image: np.ndarray, size: tuple[int, int], rng: np.random.Generator | None
) -> np.ndarray:
  """A crop of an image, uint8 (height, width, channels) -> uint8 (*size, channels)."""
  height, width = image.shape[:2]
  if crop.whole:
    return published(image, size, crop.fraction, crop.method)
  return _fit(crop, cut(image, crop.box(height, width, size, rng)), size, rng)


def published(
  image: np.ndarray, size: tuple[int, int], fraction: float, method: str, *, down: bool = False
) -> np.ndarray:
  """An image as timm and transformers bring it to the size of a model.

  Args:
    image: uint8 (height, width, channels).
    size: (height, width) wanted.
    fraction: of the shorter side that the central crop keeps; 0 resizes the whole image.
    method: 'bilinear' or 'bicubic'.
    down: whether a middle between two pixels is rounded down, as transformers does.

  Returns:
    uint8 (*size, channels).
  """
  if not fraction:
    return _pillow(image, size, method)
  # The shorter side first, then the middle.
  have, least = image.shape[:2], [math.floor(side / fraction + 1e-6) for side in size]
  if size[0] == size[1]:
    sides = [int(least[0] * side / min(have)) for side in have]
  else:
    scale = max(a / b for a, b in zip(least, have, strict=True))
    sides = [round(side * scale) for side in have]
  image = _pillow(image, (sides[0], sides[1]), method)
  middle = int if down else round
  top, left = (middle((side - wanted) / 2) for side, wanted in zip(sides, size, strict=True))
  return image[top : top + size[0], left : left + size[1]]


def _pillow(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
  how = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}[method]
  resized = lambda part: np.asarray(Image.fromarray(part).resize((size[1], size[0]), how))  # noqa: E731
  if image.shape[2] == 3:
    return resized(np.ascontiguousarray(image))
  # Of other channels Pillow would make assumptions, such as alpha.
  return np.dstack([resized(np.ascontiguousarray(image[..., i])) for i in range(image.shape[2])])


def resize(image: np.ndarray, size: tuple[int, int], *, area: float = 1.0) -> np.ndarray:
  """To (height, width), averaging over pixels when shrinking by more than `area`, else bilinear."""
  if image.shape[:2] == size:
    return image
  shrinks = max(image.shape[0] / size[0], image.shape[1] / size[1]) > area
  how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return _by_channels(lambda part: cv2.resize(part, size[::-1], interpolation=how), image)


def cut(image: np.ndarray, box: Box) -> np.ndarray:
  """The part of an image (height, width, channels) that a box says; a view."""
  top, left, height, width = box
  return image[top : top + height, left : left + width]


def _fit(crop: Crop, part: np.ndarray, size: tuple[int, int], rng: np.random.Generator | None):
  """The part that a crop has chosen, at the model's size."""
  pixels = (
    resize(part, size, area=crop.area)
    if crop.method in (None, 'area')
    else _pillow(part, size, crop.method)
  )
  matrix = crop.matrix(size, rng)
  if matrix is None:
    return pixels
  return _by_channels(
    lambda part: cv2.warpAffine(part, matrix, size[::-1], flags=cv2.INTER_LINEAR), pixels
  )


def _by_channels(function: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
  """What a function of OpenCV, which knows one, three and four channels, does to an image."""
  channels = image.shape[2]
  if channels in (1, 3, 4):
    out = function(image)
    return out.reshape(*out.shape[:2], channels)
  return np.dstack([function(np.ascontiguousarray(image[..., i])) for i in range(channels)])


def _kind(image: bytes) -> str:
  return kinds.kind_of(image[: kinds.HEAD])


def _whole(image: bytes | np.ndarray) -> tuple[np.ndarray, bool]:
  """All channels of an image, and whether the last is alpha."""
  if isinstance(image, np.ndarray):
    return _checked(image), False
  kind = _kind(image)
  if kind == 'NumPy':
    return _checked(_loaded(image)), False
  if kind == 'TIFF':
    header = tiff.read_header(image)
    if not header.is_picture:
      return tiff.decode(image, header), header.has_alpha
    # Palettes and colour spaces are OpenCV's to know, and orientation.
    pixels = _decoded(image, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    return pixels[..., ::-1], False
  if not kind:
    raise ValueError(f'{len(image)} bytes that do not decode as an image')
  if kind == 'PNM' and (most := _most(image)) != 255:
    raise MisfitError(f'has values up to {most}, not 255')
  pixels = _decoded(image, cv2.IMREAD_UNCHANGED)
  if kind in ('PNG', 'WebP'):
    pixels = exif.upright(pixels, _orientation(image))
  if kind == 'AVIF':
    pixels = exif.turned(pixels, image)
  if kind == 'PNG' and image[25] == _GREY_ALPHA:
    return pixels[..., [0, 3]], True
  channels = pixels.shape[2]
  return pixels[..., [0] if channels == 1 else [2, 1, 0, 3][:channels]], channels == 4


def _converted(pixels: np.ndarray, alpha: bool, channels: int) -> np.ndarray:
  own = pixels.shape[2]
  if own == channels:
    return np.ascontiguousarray(pixels)
  keep = alpha and channels in (2, 4)
  colours, wanted = np.ascontiguousarray(pixels[..., : own - alpha]), channels - keep
  if colours.shape[2] not in (1, 3) or wanted not in (1, 3):
    raise MisfitError(f'has {own} channel{"s"[: own > 1]}, and the model takes {channels}', own)
  if colours.shape[2] > wanted:
    colours = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[..., None]
  colours = np.repeat(colours, wanted // colours.shape[2], axis=2)
  return np.dstack([colours, pixels[..., -1:]]) if keep else colours


def _decoded(image: bytes, flags: int) -> np.ndarray:
  """What OpenCV makes of a file, its channels in OpenCV's order."""
  try:
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
  except cv2.error as error:  # too many pixels, for example
    raise ValueError(' '.join(str(error).split())) from None
  if pixels is None:
    raise ValueError(f'{len(image)} bytes that do not decode as an image')
  return _checked(pixels)


def _checked(pixels: np.ndarray) -> np.ndarray:
  """An array as an image (height, width, channels)."""
  if pixels.ndim == 2:
    pixels = pixels[..., None]
  if pixels.ndim != 3 or not pixels.size:
    raise MisfitError(f'is an array of shape {pixels.shape}, not (height, width, channels)')
  if pixels.dtype != np.uint8:
    raise MisfitError(f'has values of type {pixels.dtype}')
  return pixels


def _loaded(image: bytes) -> np.ndarray:
  try:
    return np.load(io.BytesIO(image), allow_pickle=False)
  except Exception as error:  # its header is parsed as Python, and fails in as many ways
    raise ValueError(f'not a valid .npy file: {" ".join(str(error).split())}') from None


def _most(image: bytes) -> int:
  """The value of white in a PNM file; OpenCV does not always ask for it."""
  numbers = re.findall(
    rb'\d+',
    re.sub(rb'#[^\n]*', b'', image[2:1024]),
  )
  return 255 if image[:2] in (b'P1', b'P4') or len(numbers) < 3 else int(numbers[2])


def _orientation(image: bytes) -> int:
  _, types, found = cv2.imdecodeWithMetadata(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)
  try:
    for kind, data in zip(types, found, strict=True):
      if kind == cv2.IMAGE_METADATA_EXIF:
        return exif.orientation(data.tobytes())
  except struct.error:
    pass
  return 1
