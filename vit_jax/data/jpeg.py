"""JPEG files decoded no further than a crop needs.

The size is in the header, so a crop can be chosen before anything is decoded. Then rows below it
are left alone, and a crop much larger than the model's images is decoded at a half, a quarter or an
eighth of its size, which the inverse cosine transform does for less than nothing.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import simplejpeg

Box = tuple[int, int, int, int]  # top, left, height, width

# Markers of frames (baseline, extended, progressive) and of what may come before them.
_PROGRESSIVE, _RESTARTS, _APP1 = 0xC2, 0xDD, 0xE1
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
_SEGMENTS = (0xC4, 0xDB, _RESTARTS, *range(0xE0, 0xF0), 0xFE)
_ORIENTATION = 0x0112  # an EXIF tag


@dataclasses.dataclass(frozen=True)
class Header:
  """Of an upright image with one or three channels of 8 bits.

  Attributes:
    height, width: of the image.
    frame: where in the file the frame header begins.
    single: whether rows follow each other in one piece, so that decoding may stop early.
  """

  height: int
  width: int
  frame: int
  single: bool


def read_header(data: bytes) -> Header | None:
  """The header of a usual JPEG file; None for the unusual and for everything else."""
  if data[:2] != b'\xff\xd8':
    return None
  at, single = 2, True
  try:
    while True:
      prefix, marker, length = struct.unpack_from('>BBH', data, at)
      if prefix == 0xFF and marker in _FRAMES:
        bits, height, width, channels = struct.unpack_from('>BHHB', data, at + 4)
        usual = bits == 8 and channels in (1, 3) and 0 < height * width <= 2**30  # as in OpenCV
        return Header(height, width, at, single and marker != _PROGRESSIVE) if usual else None
      if prefix != 0xFF or marker not in _SEGMENTS:
        return None
      if marker == _APP1 and not _upright(data[at + 4 : at + 2 + length]):
        return None
      single &= marker != _RESTARTS
      at += 2 + length
  except struct.error:  # cut short
    return None


def _upright(segment: bytes) -> bool:
  """Whether an APP1 segment leaves the image as it is."""
  if segment[:6] != b'Exif\0\0':
    return True
  order = '<' if segment[6:8] == b'II' else '>'
  (directory,) = struct.unpack_from(f'{order}I', segment, 10)
  (entries,) = struct.unpack_from(f'{order}H', segment, 6 + directory)
  for entry in range(entries):
    tag, _, _, value = struct.unpack_from(f'{order}HHIH', segment, 8 + directory + 12 * entry)
    if tag == _ORIENTATION:
      return not 2 <= value <= 8
  return True


def decode(
  data: bytes, header: Header, box: Box, channels: int, *, size: tuple[int, int] | None = None
) -> np.ndarray | None:
  """The pixels of a part of an image.

  Args:
    data: the file.
    header: read from it.
    box: top, left, height and width of the part.
    channels: 3 for RGB, 1 for grey.
    size: (height, width) that the part will be brought to. With it, decoding takes short cuts: a
      coarser cosine transform, coarser colours, and fewer pixels as long as both sides keep as many
      as `size`. Without it the pixels are those of a full decode, bit by bit.

  Returns:
    uint8 (height, width, channels) of the part, smaller if short cuts were taken; None if anything
    at all was not as it should be. What is damaged below the part goes unnoticed, but not the lack
    of an end.
  """
  top, left, height, width = box
  factor = 1
  while size and factor < 8 and height >= 2 * factor * size[0] and width >= 2 * factor * size[1]:
    factor *= 2
  # One row more: the colours of a row are interpolated from those below it.
  rows = min(top + height + 1, header.height) if header.single else header.height
  if rows < header.height:
    # To a decoder that is told of fewer rows, the others are bytes that it does not expect.
    data = bytearray(data)  # type: ignore
    struct.pack_into('>H', data, header.frame + 5, rows)
  shape = -(-rows // factor), -(-header.width // factor), channels
  pixels = np.empty(shape, np.uint8)
  least = shape if factor > 1 else (0, 0)  # what simplejpeg picks the scale by
  fast = size is not None
  try:
    simplejpeg.decode_jpeg(
      data, 'RGB' if channels == 3 else 'GRAY', fastdct=fast, fastupsample=fast,
      min_height=least[0], min_width=least[1], buffer=pixels,
    )  # fmt: skip
  except ValueError as error:
    # The first complaint is the one we get: there was none about the rows above.
    if rows == header.height or 'extraneous bytes before marker 0xd9' not in str(error):
      return None
  bottom, right = -(-(top + height) // factor), -(-(left + width) // factor)
  return pixels[top // factor : bottom, left // factor : right]
