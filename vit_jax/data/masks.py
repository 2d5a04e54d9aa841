"""Maps, masks and boxes of an image as arrays."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import kinds, preprocess, tiff
from vit_jax.data.fields import Boxes, Changed, Panoptic
from vit_jax.data.misfit import MisfitError

# Kinds of files whose values are those that were written.
_EXACT = ('PNG', 'TIFF', 'BMP', 'GIF', 'PNM', 'NumPy')


def decode_map(value: bytes | np.ndarray | Changed) -> np.ndarray:
  """A map of classes: int64 (height, width). Of a palette the numbers count, not its colours.

  Raises:
    MisfitError: if it has several channels, or other values than whole numbers.
    ValueError: if it cannot be read.
  """
  if isinstance(value, Changed):
    return value.change(decode_map(value.value))
  if isinstance(value, bytes):
    value = _stored(value)
  if value.ndim == 3 and value.shape[2] == 1:
    value = value[..., 0]
  if value.ndim != 2 or value.dtype.kind not in 'iub':
    raise MisfitError(
      f'has a map of shape {value.shape} and type {value.dtype}; wanted is one whole number for '
      'each pixel'
    )
  return value.astype(np.int64)


def _stored(data: bytes) -> np.ndarray:
  """The numbers in a file, palettes left alone."""
  kind = kinds.kind_of(data[: kinds.HEAD])
  if kind not in _EXACT:
    raise MisfitError(f'has a map stored as {kind or "no image"}, which changes numbers: use PNG')
  if kind in ('PNG', 'GIF', 'BMP'):
    try:
      with Image.open(io.BytesIO(data)) as image:
        if image.mode in ('P', 'L', '1', 'I', 'I;16'):
          values = np.asarray(image)
          # Of 2 and 4 bits Pillow makes shades from black to white.
          return values // (255 // (2 ** data[24] - 1)) if _shaded(kind, data) else values
    except (OSError, SyntaxError, ValueError) as error:
      raise ValueError(str(error)) from None
  if kind == 'TIFF' and tiff.read_header(data).one(262, 1) == 3:  # a palette
    raise MisfitError('has a map stored as TIFF with a palette: use PNG')
  return preprocess.stored(data)


def _shaded(kind: str, data: bytes) -> bool:
  """Whether a file is a grey PNG of 2 or 4 bits."""
  return kind == 'PNG' and data[25] == 0 and data[24] in (2, 4)


def decode_panoptic(value: Panoptic) -> np.ndarray:
  """Numbers of segments, int64 (height, width)."""
  if not isinstance(value.ids, bytes):
    return np.asarray(value.ids, np.int64)
  pixels = preprocess.decode(value.ids, 3).astype(np.int64)
  return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


def absolute(boxes: Boxes, size: tuple[int, int]) -> Boxes:
  """Boxes in pixels of an image of this height and width."""
  if not boxes.relative:
    return boxes
  scale = np.array([*size[::-1]] * 2, float)
  area = boxes.area * scale[0] * scale[1]
  return boxes._replace(corners=boxes.corners * scale, area=area, relative=False)


def drawn(shape: Any, size: tuple[int, int]) -> np.ndarray:
  """A shape of `fields.Masks`: bool (height, width).

  Raises:
    MisfitError: if it is of another size.
    ValueError: if run lengths are damaged.
  """
  if isinstance(shape, np.ndarray):
    mask = shape.astype(bool)
  elif isinstance(shape, dict):
    mask = _run_lengths(shape)
  else:
    mask = polygons(shape, size)
  if mask.shape != tuple(size):
    raise MisfitError(f'is {size[0]} x {size[1]}, and one of its masks {mask.shape}')
  return mask


def around(mask: np.ndarray) -> tuple[int, int, int, int]:
  """The box around a mask: left, top, right, bottom; zeros where nothing is in it."""
  y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(x):
    return 0, 0, 0, 0
  return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def polygons(shapes: Any, size: tuple[int, int]) -> np.ndarray:
  """The pixels whose centres are in one of some polygons, (corners, 2) each: bool (*size)."""
  height, width = size
  found = np.zeros(size, bool)
  centres = np.arange(height) + 0.5
  for corners in shapes:
    x, y = np.asarray(corners, float).reshape(-1, 2).T
    x1, y1 = np.roll(x, -1), np.roll(y, -1)
    crosses = (y <= centres[:, None]) != (y1 <= centres[:, None])
    rows, edges = np.nonzero(crosses)
    share = (centres[rows] - y[edges]) / (y1 - y)[edges]
    at = x[edges] + share * (x1 - x)[edges]
    # What is right of an odd number of edges is inside.
    flips = np.zeros((height, width + 1), np.int64)
    np.add.at(flips, (rows, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)), 1)
    found |= (np.cumsum(flips, axis=1)[:, :-1] % 2).astype(bool)
  return found


def _run_lengths(shape: dict[str, Any]) -> np.ndarray:
  height, width = shape['size']
  counts = shape['counts']
  runs = np.asarray(_unpacked(counts) if isinstance(counts, str | bytes) else counts, np.int64)
  if runs.sum() != height * width or runs.min(initial=0) < 0:
    raise ValueError(f'run lengths of {runs.sum()} pixels for an image of {height} x {width}')
  return np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T.astype(bool)


def _unpacked(text: str | bytes) -> list[int]:
  """Run lengths that COCO's tools have written as text.

  Each is of characters of five bits from 48 on, the lowest first and a sixth for 'more', and from
  the fourth on the difference to the one before the last.
  """
  found: list[int] = []
  value = shift = 0
  for char in text.encode() if isinstance(text, str) else text:
    value |= (char - 48 & 31) << shift
    shift += 5
    if not char - 48 & 32:
      if char - 48 & 16:
        value -= 1 << shift
      found.append(value + (found[-2] if len(found) > 2 else 0))
      value = shift = 0
  return found
