"""TIFF files with any number of channels.

OpenCV reads pictures. Of other files it silently drops channels, or multiplies colours by
their alpha. So it is given their pixels under another header: of one grey image in which the
channels of a pixel lie side by side, or of one grey image per channel where the file has planes.
"""

from __future__ import annotations

import dataclasses
import struct

import cv2
import numpy as np

from vit_jax.data import exif
from vit_jax.data.misfit import MisfitError

# Tags.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _STRIP_ROWS, _PLANES, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT = 277, 278, 284, 317, 322, 323
_EXTRA, _FORMAT, _NODATA = 338, 339, 42113
_PLACES = ((273, 279), (324, 325))  # offsets and byte counts of strips, or of tiles
_TEXT = 2
_TYPES = {1: 'B', _TEXT: 'B', 3: 'H', 4: 'I', 16: 'Q'}
# Photometric interpretations; how many samples of a pixel are a picture's.
_GREY, _RGB = 1, 2
_PICTURE = {0: 1, _GREY: 1, _RGB: 3, 3: 1, 5: 4, 6: 3, 8: 3}
# Compressions of bytes, whatever they mean: none, LZW, Deflate and its older number, PackBits.
_BYTES = (1, 5, 8, 32946, 32773)
_DIFFERING = (5, 8, 32946)
# Formats of samples; predictors, by which they are stored as differences of what is beside them.
_FLOAT = 3
_DIFFERENCES, _FLOAT_DIFFERENCES = 2, 3


@dataclasses.dataclass(frozen=True)
class Header:
  """Of the first image of a file.

  Attributes:
    order: of bytes, '<' or '>'.
    tags: values by tag.
  """

  order: str
  tags: dict[int, tuple[int, ...]]

  def one(self, tag: int, default: int) -> int:
    """The first value of a tag."""
    return self.tags.get(tag, (default,))[0]

  @property
  def channels(self) -> int:
    """Samples of a pixel."""
    return self.one(_SAMPLES, 1)

  @property
  def nodata(self) -> float | None:
    """The number that stands for a missing one, as GDAL writes it; None for none."""
    try:
      return float(bytes(self.tags.get(_NODATA, ())).rstrip(b'\0'))
    except ValueError:
      return None

  @property
  def is_picture(self) -> bool:
    """Whether its samples are grey, colours or a palette's, and nothing else."""
    return self.channels == _PICTURE.get(self.one(_PHOTOMETRIC, -1))

  @property
  def has_alpha(self) -> bool:
    """Whether the last sample is the only one besides those of a picture, and alpha.

    Where it is not said what the sample is, four are taken for RGB and alpha, as by libtiff.
    """
    colours = _PICTURE.get(self.one(_PHOTOMETRIC, -1))
    extra = self.one(_EXTRA, 1 if self.channels == 4 else 0)
    return self.channels - 1 == colours and extra in (1, 2)


def read_header(data: bytes) -> Header:
  """The header of a TIFF or BigTIFF file.

  Raises:
    ValueError: if it is damaged.
    MisfitError: if samples are neither whole numbers of 1, 8 or 16 bits nor floats of 32.
  """
  order = '<' if data[:2] == b'II' else '>'
  try:
    (version,) = struct.unpack_from(f'{order}H', data, 2)
    offset, count, entry = ('I', 'H', 12) if version == 42 else ('Q', 'Q', 20)
    inline = struct.calcsize(offset)
    (at,) = struct.unpack_from(order + offset, data, inline)
    (entries,) = struct.unpack_from(order + count, data, at)
    at += struct.calcsize(count)
    tags = {}
    for start in range(at, at + entry * entries, entry):
      tag, kind, number = struct.unpack_from(f'{order}HH{offset}', data, start)
      if kind not in _TYPES or (kind == _TEXT and tag != _NODATA):
        continue
      where, size = start + 4 + inline, struct.calcsize(_TYPES[kind]) * number
      if size > inline:
        (where,) = struct.unpack_from(order + offset, data, where)
      if where + size > len(data):
        raise ValueError('a TIFF file that is cut short')
      tags[tag] = struct.unpack_from(f'{order}{number}{_TYPES[kind]}', data, where)
  except (struct.error, OverflowError):
    raise ValueError('a TIFF file that is cut short') from None
  header = Header(order, {tag: values for tag, values in tags.items() if values})
  places = [
    (offset, size)
    for offsets, sizes in _PLACES
    for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False)
  ]
  if not places or max(map(sum, places)) > len(data):
    raise ValueError('a TIFF file that is cut short')
  bits, formats = header.tags.get(_BITS, (1,)), header.tags.get(_FORMAT, (1,))
  whole = set(bits) <= {1, 8, 16} and len(set(bits)) == 1 and set(formats) <= {1, 4}
  if not whole and not (set(bits) == {32} and set(formats) == {_FLOAT}):
    kinds = {1: 'unsigned', 2: 'signed', 3: 'floating-point', 4: 'unsigned'}
    raise MisfitError(f'has {kinds.get(max(formats), "other")} values of {max(bits)} bits')
  return header


def without(pixels: np.ndarray, header: Header) -> np.ndarray:
  """Floats of a file, those that stand for missing ones NaN; whole numbers as they are."""
  if pixels.dtype != np.float32 or header.nodata is None:
    return pixels
  return np.where(pixels == np.float32(header.nodata), np.float32(np.nan), pixels)


def decode(data: bytes, header: Header) -> np.ndarray:
  """All samples of a file that is not a picture: (height, width, channels), upright.

  Raises:
    ValueError: if it is damaged.
    MisfitError: if it is stored in a way that is not read.
  """
  try:
    return _decode(data, header)
  except (struct.error, cv2.error, MemoryError):
    raise ValueError('a TIFF file that is damaged') from None


def _decode(data: bytes, header: Header) -> np.ndarray:
  tags, channels = header.tags, header.channels
  compression, planes = header.one(_COMPRESSION, 1), header.one(_PLANES, 1) == 2
  photometric, bits = header.one(_PHOTOMETRIC, -1), set(tags.get(_BITS, (1,)))
  # As libtiff has it, differences are stored by LZW and Deflate only.
  predictor = header.one(_PREDICTOR, 1) if compression in _DIFFERING else 1
  mixed = predictor == _FLOAT_DIFFERENCES and not planes and channels > 1
  if photometric not in (_GREY, _RGB) or compression not in _BYTES or bits == {1} or mixed:
    raise MisfitError(
      f'is a TIFF file of {channels} channels that is stored in an unusual way (photometric '
      f'interpretation {photometric}, compression {compression}, predictor {predictor}, bits '
      f'{bits}): save it as .npy'
    )
  height, width = header.one(_HEIGHT, 0), header.one(_WIDTH, 0)
  tile = header.one(_TILE_WIDTH, 0)
  beside = 1 if planes else channels
  new = {
    _WIDTH: (width * beside,), _HEIGHT: (height,), _COMPRESSION: (compression,),
    _PHOTOMETRIC: (_GREY,), _SAMPLES: (1,), _STRIP_ROWS: tags.get(_STRIP_ROWS, (height,)),
  }  # fmt: skip
  if tile:
    del new[_STRIP_ROWS]
    new |= {_TILE_WIDTH: (tile * beside,), _TILE_HEIGHT: tags.get(_TILE_HEIGHT, (0,))}
  new |= {_BITS: tuple(bits), _FORMAT: tags.get(_FORMAT, (1,))[:1]}
  if beside == 1 and _PREDICTOR in tags:
    new[_PREDICTOR] = tags[_PREDICTOR]
  parts = []
  for plane in range(channels if planes else 1):
    for tag in _PLACES[bool(tile)]:
      values = tags.get(tag, ())
      per_plane = len(values) // channels if planes else len(values)
      new[tag] = values[plane * per_plane : (plane + 1) * per_plane]
    file = np.frombuffer(_with_header(data, header.order, new), np.uint8)
    part = cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
    if part is None or part.shape != (height, width * beside):
      raise ValueError(f'{len(data)} bytes that do not decode as an image')
    parts.append(part.reshape(height, width, beside))
  pixels = np.concatenate(parts, axis=2)
  if beside > 1 and predictor == _DIFFERENCES:
    for left in range(0, width, tile or width):
      part = pixels[:, left : left + (tile or width)]
      np.cumsum(part, axis=1, dtype=part.dtype, out=part)
  return exif.upright(pixels, header.one(_ORIENTATION, 1))


def _with_header(data: bytes, order: str, tags: dict[int, tuple[int, ...]]) -> bytes:
  """The file with another header, behind it."""
  long, longs = b'', {}
  at = len(data) + len(data) % 2
  for tag, values in tags.items():
    packed = struct.pack(f'{order}{len(values)}I', *values)
    if len(values) > 1:
      longs[tag], long = at + len(long), long + packed
    else:
      (longs[tag],) = struct.unpack(f'{order}I', packed)
  entries = b''.join(
    struct.pack(f'{order}HHII', tag, 4, len(tags[tag]), longs[tag]) for tag in sorted(tags)
  )
  start = (b'II' if order == '<' else b'MM') + struct.pack(f'{order}HI', 42, at + len(long))
  directory = struct.pack(f'{order}H', len(tags)) + entries + bytes(4)
  return start + data[8:] + bytes(len(data) % 2) + long + directory
