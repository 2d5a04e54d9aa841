"""What happens to an image on the host: decoded, cut, resized. No JAX.

An image has one channel (grey), two (grey and alpha), three (colour), four (colour and alpha), or
any number of which nothing is known. Grey and colour become each other, and alpha is dropped, where
the model takes the other; nothing is made up, and everything else is a `MisfitError`. What a TIFF
file calls nodata, or of floats NaN, is a number that is missing.
"""

from __future__ import annotations

import functools
import io
import math
import re
import struct
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from vit_jax.data import exif, jpeg, kinds, operators, tiff
from vit_jax.data.crops import Box, Crop, octaves
from vit_jax.data.misfit import MisfitError
from vit_jax.data.views import Placement, View

# The pipeline runs many threads of its own, and says itself what it could not read.
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Kinds that OpenCV converts to grey or colour as it reads them, and turns upright.
_EVERYDAY = ('JPEG', 'PNG', 'WebP', 'BMP', 'GIF')
# More than 8 bits are refused, not cut off: without this flag OpenCV would do so.
_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
_DTYPES = (np.uint8, np.uint16, np.float32)
# What a PNG file says of itself: grey with alpha; channels by this number, of palettes three.
_GREY_ALPHA = 4
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, _GREY_ALPHA: 2, 6: 4}


def decode(
  image: bytes | np.ndarray, channels: int, dtype: str = 'uint8', *, gaps: bool = False
) -> np.ndarray:
  """An image, encoded or not -> (height, width, channels), turned as its EXIF tag says.

  Raises:
    MisfitError: if it has other channels than those, or values of another type: 'uint8', 'uint16'
      or 'float32'; or if a number is missing, unless there may be `gaps`.
    ValueError: if the bytes are not a valid image, or only the beginning of one.
  """
  if isinstance(image, bytes) and channels in (1, 3) and _kind(image) in _EVERYDAY:
    pixels = _decoded(image, _GREY if channels == 1 else _COLOUR)
  else:
    pixels = _converted(*_whole(image), channels)
  if pixels.dtype != dtype:
    raise MisfitError(f'has values of type {pixels.dtype}, not {dtype}')
  if not gaps and dtype == 'float32' and np.isnan(pixels).any():
    raise MisfitError('has values that are not finite')
  return pixels


def chosen(image: bytes | np.ndarray, bands: Sequence[int], fill: np.ndarray) -> np.ndarray:
  """Some bands of an image in another order: (height, width, len(bands)).

  Args:
    image: encoded or not.
    bands: their numbers, from 1 on; 0 is one that the image does not have.
    fill: what stands for each where that is so.

  Raises:
    MisfitError: if it has fewer bands.
    ValueError: as `decode`.
  """
  pixels, _ = _whole(image)
  if max(bands) > pixels.shape[2]:
    raise MisfitError(
      f'has {pixels.shape[2]} bands, and bands={",".join(map(str, bands))} asks for number '
      f'{max(bands)}'
    )
  empty = np.empty(pixels.shape[:2], pixels.dtype)
  each = [
    pixels[..., band - 1] if band else np.full_like(empty, value)
    for band, value in zip(bands, fill, strict=True)
  ]
  return np.stack(each, axis=-1)


def described(image: bytes | np.ndarray) -> tuple[tuple[int, int], int, str]:
  """Height and width of an image, the number of its channels, and the type of its values.

  Raises:
    MisfitError, ValueError: as `decode`.
  """
  if isinstance(image, bytes) and (header := jpeg.read_header(image)):
    return (header.height, header.width), header.channels, 'uint8'
  if isinstance(image, bytes) and _kind(image) == 'PNG' and b'eXIf' not in image:
    if len(image) < 26:
      raise ValueError('a PNG file that is cut short')
    width, height, bits, form = struct.unpack('>IIBB', image[16:26])
    return (height, width), _PNG_CHANNELS.get(form, 3), 'uint16' if bits == 16 else 'uint8'
  pixels, _ = _whole(image)
  return pixels.shape[:2], pixels.shape[2], str(pixels.dtype)  # type: ignore


def nodata(image: bytes | np.ndarray) -> float | None:
  """The number by which a file says that one is missing; None if it has none."""
  if isinstance(image, bytes) and _kind(image) == 'TIFF':
    return tiff.read_header(image).nodata
  return None


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


def whole(image: bytes | np.ndarray) -> np.ndarray:
  """An image with all its channels but alpha, (height, width, channels); raises as `decode`."""
  pixels, alpha = _whole(image)
  return pixels[..., : pixels.shape[2] - alpha]


def stored(image: bytes) -> np.ndarray:
  """All channels of a file as they are written, of any type; raises as `decode`."""
  if _kind(image) == 'NumPy':
    return _loaded(image)
  return _whole(image)[0]


class Opened:
  """An image whose size is known, and which is decoded no further than a view needs.

  Attributes:
    size: height and width, upright.
    there: which pixels are, bool (height, width): those of which no number is missing.
  """

  def __init__(
    self, image: bytes | np.ndarray, channels: int, dtype: str = 'uint8', *, gaps: bool = False
  ):
    """See `decode`."""
    self._image, self._channels, self._dtype = image, channels, dtype
    usual = isinstance(image, bytes) and channels in (1, 3) and dtype == 'uint8'
    self._header = jpeg.read_header(image) if usual else None  # type: ignore
    self._pixels = None if self._header else decode(image, channels, dtype, gaps=gaps)
    self.size: tuple[int, int] = (
      (self._header.height, self._header.width) if self._header else self._pixels.shape[:2]  # type: ignore
    )

  @functools.cached_property
  def there(self) -> np.ndarray:
    """See above."""
    pixels, missing = self.decoded(), nodata(self._image)
    if pixels.dtype == np.float32:
      known = np.isfinite(pixels)
    else:
      known = np.ones_like(pixels, bool) if missing is None else pixels != missing
    return np.asarray(known.all(-1))

  def within(self, placement: Placement) -> np.ndarray:
    """What is in the frame of a model: an array (*size, channels).

    Raises:
      MisfitError, ValueError: as `decode`.
    """
    crop, size = placement.crop, placement.size
    if crop.whole:
      mode = 'constant' if crop.fills else 'reflect'
      pixels = _windowed(self.decoded(), size, crop.method or 'area', *placement.window, mode)
    else:
      pixels = _fit(crop, self._part(placement), size, placement.matrix)
    return operators.changed(placement.mirrored(pixels), placement.changes)

  def decoded(self) -> np.ndarray:
    """All of it, kept: views to come are cut from this. Raises as `decode`."""
    if self._pixels is None:
      self._pixels = decode(self._image, self._channels, self._dtype)
      if self._pixels.shape[:2] != self.size:
        raise ValueError(f'an image of {self._pixels.shape[:2]} with another size in its header')
    return self._pixels

  def _part(self, placement: Placement) -> np.ndarray:
    crop, box = placement.crop, placement.box
    if self._header and self._pixels is None:
      factor = 1 if crop.every_pixel else octaves(box[2], box[3], placement.size)
      part = jpeg.decode(
        self._image, self._header, box, self._channels, fast=not crop.every_pixel, factor=factor  # type: ignore
      )  # fmt: skip
      if part is not None:
        return part
    # Of a JPEG file it is for OpenCV to say whether what is wrong can be forgiven.
    return cut(self.decoded(), box)


def prepare(
  image: bytes | np.ndarray, view: View, channels: int, rng: np.random.Generator | None,
  dtype: str = 'uint8',
) -> np.ndarray:  # fmt: skip
  """What a view makes of an encoded image, of which no more is decoded than it needs.

  Args:
    image: encoded, or an array (height, width, channels).
    view: with the size that is wanted.
    channels: wanted.
    rng: for the view; what is drawn depends on the size of the image, not on how it is decoded.
    dtype: wanted.

  Returns:
    (*size, channels) of that dtype.

  Raises:
    MisfitError, ValueError: as `decode`.
  """
  opened = Opened(image, channels, dtype)
  return opened.within(view.place(*opened.size, rng))


def _windowed(
  image: np.ndarray, size: tuple[int, int], method: str, whole: tuple[int, int],
  corner: tuple[int, int], mode: str,
) -> np.ndarray:  # fmt: skip
  """The whole image at some size, and of that a part, which may reach beyond it.

  Args:
    image: (height, width, channels).
    size: height and width wanted.
    method: of resampling.
    whole: height and width of the image before the part is cut out.
    corner: top and left edge of the part in that.
    mode: what is beyond: 'reflect', a mirror, or 'constant', zeros.

  Returns:
    (*size, channels).
  """
  image = resized(image, whole, method)
  beyond = [
    (max(0, -first), max(0, first + wanted - side))
    for first, wanted, side in zip(corner, size, whole, strict=True)
  ]
  if np.any(beyond):
    image = np.pad(image, (*beyond, (0, 0)), mode=mode)  # type: ignore
  top, left = (first + before for first, (before, _) in zip(corner, beyond, strict=True))
  return image[top : top + size[0], left : left + size[1]]


def resized(
  image: np.ndarray, size: tuple[int, int], method: str, *, area: float = 1.0
) -> np.ndarray:
  """An image at another size, by one of `crops.METHODS`."""
  if method in ('area', 'linear'):
    return resize(image, size, area=area if method == 'area' else math.inf)
  return _pillow(image, size, method)


def _pillow(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
  how = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}[method]
  scaled = lambda part: np.asarray(Image.fromarray(part).resize((size[1], size[0]), how))  # noqa: E731
  if image.dtype == np.uint16:  # of these Pillow interpolates without antialiasing
    exact = _pillow(image.astype(np.float32), size, method)
    return np.clip(np.rint(exact), 0, 65535).astype(np.uint16)
  if image.shape[2] == 3 and image.dtype == np.uint8:
    return scaled(np.ascontiguousarray(image))
  # Of other channels Pillow would make assumptions, such as alpha.
  return np.dstack([scaled(np.ascontiguousarray(image[..., i])) for i in range(image.shape[2])])


def resize(image: np.ndarray, size: tuple[int, int], *, area: float = 1.0) -> np.ndarray:
  """To (height, width), averaging over pixels when shrinking by more than `area`, else bilinear.

  Bilinear is between the four nearest pixels, however much an image shrinks.
  """
  if image.shape[:2] == size:
    return image
  shrinks = max(image.shape[0] / size[0], image.shape[1] / size[1]) > area
  how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return _by_channels(lambda part: cv2.resize(part, size[::-1], interpolation=how), image)


def cut(image: np.ndarray, box: Box) -> np.ndarray:
  """The part of an image (height, width, channels) that a box says; a view."""
  top, left, height, width = box
  return image[top : top + height, left : left + width]


def _fit(crop: Crop, part: np.ndarray, size: tuple[int, int], matrix: np.ndarray | None):
  """The part that a crop has chosen, at the model's size."""
  pixels = resized(part, size, crop.method or 'area', area=crop.area)
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
      return tiff.without(tiff.decode(image, header), header), header.has_alpha
    # Palettes and colour spaces are OpenCV's to know, and orientation.
    pixels = _decoded(image, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    return tiff.without(pixels[..., ::-1], header), False
  if not kind:
    raise ValueError(f'{len(image)} bytes that do not decode as an image')
  if kind == 'PNM' and (most := _most(image)) not in (255, 65535):
    raise MisfitError(f'has values up to {most}, not 255 or 65535')
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
  if pixels.dtype in _DTYPES:
    sound = pixels.dtype != np.float32 or not np.isinf(pixels).any()
  else:  # what has an exact counterpart is that
    if pixels.dtype.kind not in 'iuf':
      raise MisfitError(f'has values of type {pixels.dtype}')
    with np.errstate(over='ignore'):
      exact, pixels = pixels, pixels.astype(np.float32)
    sound = not np.isinf(pixels).any()
    if exact.dtype.kind in 'iu' and sound and (exact != pixels).any():
      raise MisfitError(f'has values of type {exact.dtype}, beyond the precision of float32')
  if not sound:
    raise MisfitError('has values that are not finite')
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
