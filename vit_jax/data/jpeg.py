"""JPEG files decoded no further than a crop needs.

The size is in the header, so a crop can be chosen before anything is decoded. Then rows below it
are left alone, and a crop much larger than the model's images is decoded at a half, a quarter or an
eighth of its size, which makes the inverse cosine transform cheaper, too.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import simplejpeg

from vit_jax.data import exif
from vit_jax.data.crops import Box

# Markers: frames that are baseline, extended or progressive; what else may come before the pixels.
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_HUFFMAN, _SCAN, _QUANTIZATION, _RESTARTS, _APP0, _APP1, _COMMENT = (
  0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xFE
)  # fmt: skip
_FRAMES = (_BASELINE, _EXTENDED, _PROGRESSIVE)
_OTHERS = (_HUFFMAN, _QUANTIZATION, _RESTARTS, *range(_APP0, _APP0 + 16), _COMMENT)
_MOST = 2**30  # pixels, as in OpenCV


@dataclasses.dataclass(frozen=True)
class Header:
  """Of an upright image with one or three channels of 8 bits.

  Attributes:
    height, width: of the image.
    frame: where in the file the frame header begins.
    channels: of the image, 1 or 3.
    single: whether rows follow each other in one piece, so that decoding may stop early.
  """

  height: int
  width: int
  frame: int
  channels: int
  single: bool


def read_header(data: bytes) -> Header | None:
  """The header of a usual JPEG file; None for the unusual and for everything else."""
  if data[:2] != b'\xff\xd8':
    return None
  at, single, found = 2, True, None
  try:
    while True:
      prefix, marker, length = struct.unpack_from('>BBH', data, at)
      if prefix != 0xFF:
        return None
      if marker == _SCAN:
        return found and Header(*found, single)
      if marker in _FRAMES:
        bits, height, width, channels = struct.unpack_from('>BHHB', data, at + 4)
        if bits != 8 or channels not in (1, 3) or not 0 < height * width <= _MOST:
          return None
        found = height, width, at, channels
      elif marker not in _OTHERS or (
        marker == _APP1 and not _upright(data[at + 4 : at + 2 + length])
      ):
        return None
      single &= marker not in (_PROGRESSIVE, _RESTARTS)
      at += 2 + length
  except struct.error:  # cut short
    return None


def _upright(segment: bytes) -> bool:
  """Whether an APP1 segment leaves the image as it is."""
  return segment[:6] != b'Exif\0\0' or exif.orientation(segment[6:]) == 1


def decode(
  data: bytes, header: Header, box: Box, channels: int, *, fast: bool = False, factor: int = 1
) -> np.ndarray | None:
  """The pixels of a part of an image.

  Args:
    data: the file.
    header: read from it.
    box: top, left, height and width of the part, multiples of `factor`.
    channels: 3 for RGB, 1 for grey.
    fast: a coarser cosine transform and coarser colours; without it the pixels are those of a full
      decode, bit by bit.
    factor: 1, 2, 4 or 8, to decode at the full size, a half, a quarter or an eighth.

  Returns:
    uint8 (height / factor, width / factor, channels); None if anything at all was not as it should
    be. What is damaged below the part goes unnoticed, but not the lack of an end.
  """
  top, left, height, width = box
  # One row more: the colours of a row are interpolated from those below it.
  rows = min(top + height + 1, header.height) if header.single else header.height
  if rows < header.height:
    # To a decoder that is told of fewer rows, the others are bytes that it does not expect.
    data = bytearray(data)  # type: ignore
    struct.pack_into('>H', data, header.frame + 5, rows)
  shape = -(-rows // factor), -(-header.width // factor), channels
  pixels = np.empty(shape, np.uint8)
  least = shape if factor > 1 else (0, 0)  # what simplejpeg picks the scale by
  try:
    simplejpeg.decode_jpeg(
      data, 'RGB' if channels == 3 else 'GRAY', fastdct=fast, fastupsample=fast,
      min_height=least[0], min_width=least[1], buffer=pixels,
    )  # fmt: skip
  except ValueError as error:
    # The first complaint is the one we get: there was none about the rows above.
    if rows == header.height or 'extraneous bytes before marker 0xd9' not in str(error):
      return None
  top, left, bottom, right = (at // factor for at in (top, left, top + height, left + width))
  return pixels[top:bottom, left:right]
