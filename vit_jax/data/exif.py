"""How images are to be turned, as cameras and encoders write it."""

from __future__ import annotations

import struct

import numpy as np

_ORIENTATION = 0x0112


def orientation(data: bytes) -> int:
  """From 1, upright, to 8; 1 if nothing is said.

  Args:
    data: of an EXIF segment, from its byte order on.

  Raises:
    struct.error: if it is cut short.
  """
  order = '<' if data[:2] == b'II' else '>'
  (directory,) = struct.unpack_from(f'{order}I', data, 4)
  (entries,) = struct.unpack_from(f'{order}H', data, directory)
  for entry in range(entries):
    tag, _, _, value = struct.unpack_from(f'{order}HHIH', data, directory + 2 + 12 * entry)
    if tag == _ORIENTATION:
      return value if 2 <= value <= 8 else 1
  return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """An image (height, width, channels) of some orientation, turned; a view."""
  if orientation in (5, 6, 7, 8):
    pixels = pixels.swapaxes(0, 1)
  vertically = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
  horizontally = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
  return pixels[vertically, horizontally]


def turned(pixels: np.ndarray, file: bytes) -> np.ndarray:
  """An image (height, width, channels) as its AVIF file says: rotated, then mirrored; a view."""
  header = file[: file.find(b'mdat')]
  if (at := header.find(b'irot')) >= 0:
    pixels = np.rot90(pixels, header[at + 4] & 3)
  if (at := header.find(b'imir')) >= 0:
    pixels = pixels[:, ::-1] if header[at + 4] & 1 else pixels[::-1]
  return pixels
