"""Rasters of any size, read and written in rows, with their place on earth: GeoTIFF, by GDAL.

The package rasterio does the work: pip install 'vit_jax[geo]'.
"""

from __future__ import annotations

import collections
import contextlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data.misfit import MisfitError

# Of GeoTIFF files: which keys there are, and how pixels become places.
_TAGS = (33550, 33922, 34264, 34735)
_DTYPES = ('uint8', 'uint16', 'float32')
# Rows of what is written that are compressed together.
_BLOCK = 64
# Files that are open in each thread, at most so many; one that is replaced is another one.
_open = threading.local()
_MOST = 16


def rasterio() -> Any:
  """The package; raises RunError without it."""
  try:
    import rasterio
  except ImportError:
    raise RunError(
      "rasters of any size are read and written by rasterio: pip install 'vit_jax[geo]'"
    ) from None
  return rasterio


def is_placed(path: paths.AnyPath) -> bool:
  """Whether a file is a TIFF that says where on earth it is; needs no other package."""
  if isinstance(path, paths.ZipPath) or path.suffix.lower() not in ('.tif', '.tiff'):
    return False
  try:
    with paths.fetched(path).open('rb') as file:
      head = file.read(16)
      order = {b'II': '<', b'MM': '>'}[head[:2]]
      (version,) = struct.unpack_from(f'{order}H', head, 2)
      at, number, entry = (('I', 4), 'H', 12) if version == 42 else (('Q', 8), 'Q', 20)
      file.seek(struct.unpack_from(order + at[0], head, at[1])[0])
      (count,) = struct.unpack(order + number, file.read(struct.calcsize(number)))
      entries = file.read(entry * count)
  except (OSError, KeyError, struct.error):
    return False
  tags = (struct.unpack_from(f'{order}H', entries, i)[0] for i in range(0, len(entries), entry))
  return any(tag in _TAGS for tag in tags)


class Raster:
  """A file of which parts are read, by several threads at once: each has a handle of its own.

  Attributes:
    path: of the file.
    size: height and width.
    channels: that are read.
    dtype: of the pixels as they are given, 'uint8', 'uint16' or 'float32'.
    place: `crs` and `transform`, as rasterio has them.
  """

  def __init__(
    self, path: paths.AnyPath, channels: int = 0, bands: Sequence[int] = (),
    fill: np.ndarray | None = None,
  ):  # fmt: skip
    """Opens a file; raises RunError if it cannot be read, or has fewer bands than are asked for.

    Args:
      path: of the file.
      channels: that a model takes. A last band that is said to be alpha is left out, and says which
        pixels are there, where it is one too many. Of four bands of 8 bits GDAL says so unasked.
      bands: those that are read, by their numbers from 1 on, in their order, instead of all; 0 is
        one that the file does not have.
      fill: values of these.
    """
    if isinstance(path, paths.ZipPath):
      raise RunError(f'{path} is in a zip file: unpack it, so that it can be read in rows')
    self.path, self._local = path, paths.fetched(path)
    try:
      found = self._local.stat()
    except OSError as error:
      raise paths.failure(f'cannot read {path}', error) from None
    self._key = str(self._local), found.st_mtime_ns, found.st_size
    file = self._file
    alpha = file.colorinterp[-1] == rasterio().enums.ColorInterp.alpha
    left = alpha and file.count == channels + 1 and not bands
    self._all_there = alpha and not left and file.nodata is None
    whole = [*(bands or range(1, file.count + 1 - left))]
    if max(whole) > file.count:
      raise RunError(
        f'{path} has {file.count} band{"s"[: file.count != 1]}, and bands='
        f'{",".join(map(str, whole))} asks for number {max(whole)}'
      )
    self._bands = [band for band in whole if band]
    self._places = np.flatnonzero(whole)
    self._fill = np.zeros(len(whole)) if fill is None else fill
    self.size: tuple[int, int] = file.height, file.width
    self.channels, own = len(whole), file.dtypes[0]
    self.dtype = own if own in _DTYPES else 'float32'
    if np.dtype(own).kind not in 'uif':
      raise RunError(f'{path} has values of type {own}: wanted are numbers')
    self.place = {'crs': file.crs, 'transform': file.transform}

  @property
  def _file(self) -> Any:
    held = _open.__dict__.setdefault('files', collections.OrderedDict())
    if self._key not in held:
      package = rasterio()
      try:
        held[self._key] = package.open(self._local)
      except package.errors.RasterioError as error:
        raise RunError(f'cannot read {self.path}: {error}') from None
      if len(held) > _MOST:
        held.popitem(last=False)[1].close()
    held.move_to_end(self._key)
    return held[self._key]

  def read(
    self, top: int, rows: int, left: int = 0, columns: int = 0
  ) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of it, or so many columns of them.

    Returns:
      (rows, columns, channels) of its dtype, 0 where a value is missing; and which pixels are there
      in all bands, bool (rows, columns): neither nodata nor under a mask, and finite.

    Raises:
      RunError: if they cannot be read.
    """
    file, package = self._file, rasterio()
    window = package.windows.Window(left, top, columns or self.size[1], rows)
    try:
      pixels = np.moveaxis(file.read(self._bands, window=window), 0, -1)
      there = np.ones(pixels.shape[:2], bool)
      if not self._all_there:
        there &= (file.read_masks(self._bands, window=window) > 0).all(0)
    except package.errors.RasterioError as error:
      raise RunError(f'cannot read {self.path} at row {top}: {error}') from None
    if pixels.dtype.kind == 'f':
      there &= np.isfinite(pixels).all(-1)
    found = np.where(there[..., None], pixels, 0).astype(self.dtype)
    if len(self._places) < self.channels:
      some, found = found, np.empty((*there.shape, self.channels), self.dtype)
      found[...], found[..., self._places] = self._fill, some
    return found, there

  def check(self, channels: int, dtype: str) -> None:
    """Raises MisfitError unless it is what a model takes."""
    if self.channels != channels:
      bands = f'{self.channels} band{"s"[: self.channels != 1]}'
      raise MisfitError(f'has {bands}, and the model takes {channels}', self.channels)
    if self.dtype != dtype:
      raise MisfitError(f'has values of type {self.dtype}, not {dtype}')

  def lies_on(self, other: Raster) -> None:
    """Raises RunError unless both have the same pixels."""
    if self.size != other.size:
      raise RunError(
        f'{self.path} has {self.size[0]} x {self.size[1]} pixels and {other.path} '
        f'{other.size[0]} x {other.size[1]}: bring both dates to one grid first, for example with '
        'gdalwarp'
      )
    here, there = self.place, other.place
    same = here['transform'].almost_equals(there['transform'], 1e-6 * abs(here['transform'].a))
    if here['crs'] != there['crs'] or not same:
      raise RunError(
        f'{self.path} and {other.path} have equally many pixels, and do not lie at the same place: '
        'bring both dates to one grid first, for example with gdalwarp'
      )


@contextlib.contextmanager
def written(
  path: paths.Path, like: Raster, dtype: str, names: Sequence[str], nodata: float,
  colours: Sequence[tuple[int, int, int]] = (),
) -> Iterator[Callable[[int, np.ndarray], None]]:  # fmt: skip
  """A GeoTIFF file at the place of another one, written in rows, from the first to the last.

  Args:
    path: of the file, which is replaced.
    like: where it is, and how large.
    dtype: of its values.
    names: of the bands.
    nodata: what stands for no value.
    colours: of the values of its only band, from 0 on.

  Yields:
    What writes rows (rows, width, bands) from a row on.
  """
  package = rasterio()
  profile = dict(
    driver='GTiff', height=like.size[0], width=like.size[1], count=len(names), dtype=dtype,
    nodata=nodata, compress='deflate', predictor=3 if dtype == 'float32' else 2,
    blockysize=_BLOCK, interleave='band', BIGTIFF='IF_SAFER', **like.place,
  )  # fmt: skip
  with paths.target(path, overwrite=True) as place, paths.writing(path):
    try:
      with package.open(place, 'w', **profile) as file:
        for band, name in enumerate(names, 1):
          file.set_band_description(band, name)
        if colours:
          file.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(colours)})

        def write(top: int, values: np.ndarray) -> None:
          window = package.windows.Window(0, top, like.size[1], len(values))
          file.write(np.moveaxis(values, -1, 0).astype(dtype), window=window)

        yield write
    except package.errors.RasterioError as error:
      raise RunError(f'cannot write {path}: {error}') from None
