"""Tiles of scenes that may be larger than the memory: rasters and their maps, side by side."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example, NoDataError, headline
from vit_jax.data.fields import VOID
from vit_jax.data.sources.paired import Paired, PairedSource

if TYPE_CHECKING:
  import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles(Paired):
  """Directories of scenes, such as GeoTIFF, and of maps: an example is a tile, read by itself.

  Directories are those of `Paired`. Tiles lie side by side; the last ones of a row and of a column
  are moved inwards. A pixel without data in an image is none for the model, and of no class in the
  map. Needs rasterio: pip install 'vit_jax[geo]'.

  Attributes:
    tile: height and width.
    bands: of the images, their numbers from 1 on, in the order in which the model takes them; all
      of them if none are given.
  """

  tile: tuple[int, int] = (256, 256)
  bands: tuple[int, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    if min(self.tile) < 1:
      raise RunError(f'data.source.tile={self.tile} must be at least 1 pixel each way')
    if min(self.bands, default=1) < 1:
      raise RunError(f'data.source.bands={self.bands}: the first band is number 1')

  def open(self, split: str) -> TilesSource:
    """A split.

    Raises:
      NoDataError: if the directory is not there, or the split (NoSplitError).
      RunError: as of `Paired`; and for scenes that are smaller than a tile, or not where their maps
        are.
    """
    given = paths.inside(self.dir)
    if not given.is_dir():
      raise NoDataError(f'there is no directory {given}: set data.source.dir')
    return TilesSource(self, given, split)


class TilesSource(PairedSource):
  """See `Tiles`."""

  def __init__(self, config: Tiles, given: paths.AnyPath, split: str):
    super().__init__(config, given, split)
    self._tile, fields, ends = config.tile, dict(self.fields), [0]
    self._bands = config.bands
    self._grids: list[tuple[list[int], list[int]]] = []
    for number in range(super().__len__()):
      rasters = {name: self._raster(name, number) for name in fields}
      first = rasters[self._first]
      for name, raster in rasters.items():
        raster.lies_on(first)
        field = fields[name]
        if field.kind == 'image':
          fields[name] = dataclasses.replace(
            field, dtype=raster.dtype, channels=raster.channels, gaps=True
          )
      if any(side < least for side, least in zip(first.size, config.tile, strict=True)):
        raise RunError(
          f'{first.path} has {first.size[0]} x {first.size[1]} pixels, fewer than a tile: '
          f'data.source.tile={config.tile}'
        )
      rows, columns = (
        [min(at, side - step) for at in range(0, side, step)]
        for side, step in zip(first.size, config.tile, strict=True)
      )
      self._grids.append((rows, columns))
      ends.append(ends[-1] + len(rows) * len(columns))
    self.fields, self._ends = fields, ends

  def _raster(self, name: str, number: int) -> Any:
    from vit_jax.data import geotiff

    bands = self._bands if self.fields[name].kind == 'image' else ()
    return geotiff.Raster(paths.inside(self._files[name][number]), bands=bands)

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Example:
    import numpy as np

    number = bisect.bisect_right(self._ends, index) - 1
    rows, columns = self._grids[number]
    top, left = list(itertools.product(rows, columns))[index - self._ends[number]]
    example: dict[str, Any] = {}
    there: Any = True
    for name, field in self.fields.items():
      raster = self._raster(name, number)
      example[name], own = raster.read(top, self._tile[0], left, self._tile[1])
      if field.kind == 'image':
        there = there & own
      else:
        example[name] = np.where(own, _classes(example[name], raster.path), VOID)
    for name, field in self.fields.items():
      if field.kind == 'map':
        example[name] = np.where(there, example[name], VOID).astype(np.int32)
    path = self._files[self._first][number]
    return {
      **example,
      'there': there,
      'name': f'{path} [{top}:{top + self._tile[0]}, {left}:{left + self._tile[1]}]',
    }

  def summary(self) -> list[str]:
    """What was found, and how many scenes it is of."""
    return [
      headline(self),
      f'{self.name}: tiles of {self._tile[0]} x {self._tile[1]} pixels of '
      f'{len(self._grids):,} {"scene" if len(self._grids) == 1 else "scenes"}',
      *self._lines,
    ]


def _classes(pixels: np.ndarray, path: paths.AnyPath) -> np.ndarray:
  """The only band of a map as whole numbers."""
  if pixels.shape[2] != 1 or (pixels % 1).any():
    raise RunError(f'{path} is no map: wanted is one band of whole numbers')
  return pixels[..., 0].astype('int64')
