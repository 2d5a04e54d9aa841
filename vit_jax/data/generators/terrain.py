"""Land seen from above, of any bands, at one date or two: its cover, its changes, its damage."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.examples import Example
from vit_jax.data.fields import VOID, Field

if TYPE_CHECKING:
  import numpy as np

COVER = ('water', 'sand', 'grass', 'forest', 'field', 'rock', 'snow', 'road', 'building')
_WATER, _SAND, _GRASS, _FOREST, _FIELD, _ROCK, _SNOW, _ROAD, _BUILDING = range(len(COVER))
CHANGES = ('unchanged', 'changed')
DAMAGE = ('no building', 'no damage', 'minor', 'major', 'destroyed')
NAMES = {'cover': COVER, 'change': CHANGES, 'damage': DAMAGE}
# Of Sentinel-2, by increasing wavelength.
BANDS = (
  'coastal', 'blue', 'green', 'red', 'edge1', 'edge2', 'edge3', 'nir', 'nir2', 'vapour', 'swir1',
  'swir2',
)  # fmt: skip
DTYPES = ('uint8', 'uint16')
# Reflectance in percent in each of these bands: typical values, rounded. What grows is 'dry' or
# 'green', and fields are bare, green or ripe.
_SPECTRA = {
  'water': (6, 5, 5, 3, 2.5, 2, 2, 1.8, 1.6, 1.5, 1, 0.8),
  'sand': (18, 22, 28, 33, 35, 36, 37, 38, 39, 38, 42, 38),
  'grass dry': (6, 8, 13, 16, 20, 24, 27, 29, 31, 30, 34, 22),
  'grass green': (3, 4, 8, 5, 12, 28, 34, 36, 37, 36, 22, 11),
  'forest dry': (3, 4, 6.5, 7, 11, 19, 23, 25, 26, 25, 16, 9),
  'forest green': (2, 2.5, 4.5, 3, 7, 20, 26, 28, 29, 28, 13, 6),
  'field bare': (8, 10, 13, 17, 20, 22, 24, 25, 27, 26, 33, 28),
  'field green': (3, 4.5, 9, 5, 13, 33, 41, 44, 45, 44, 23, 11),
  'field ripe': (7, 10, 16, 22, 27, 30, 33, 35, 37, 36, 38, 25),
  'rock': (12, 14, 17, 19, 20, 21, 22, 23, 24, 24, 27, 25),
  'snow': (75, 78, 78, 76, 75, 74, 73, 72, 70, 60, 10, 6),
  'road': (9, 10, 11, 12, 12.5, 13, 13.5, 14, 14.5, 14, 16, 15),
  'tiles': (7, 8, 11, 22, 24, 25, 26, 27, 28, 28, 31, 27),
  'slate': (7, 8, 8, 8, 8, 8, 8.5, 9, 9, 9, 10, 10),
  'metal': (38, 40, 41, 41, 41, 41, 41, 41, 41, 40, 40, 38),
  'felt': (17, 19, 21, 22, 23, 23, 24, 24, 25, 25, 27, 26),
  'debris': (14, 16, 18, 20, 21, 22, 22, 23, 24, 24, 28, 27),
  'cloud': (60, 62, 62, 62, 62, 61, 61, 60, 58, 50, 40, 30),
}
_ROOFS = ('tiles', 'slate', 'metal', 'felt')
# Amplitude of the texture of each class, as a share of its reflectance.
_TEXTURE = (0.06, 0.06, 0.10, 0.22, 0.06, 0.18, 0.04, 0.05, 0.04)
_WHITE = 0.45  # reflectance that is 255 in uint8
_UNITS = 10_000  # of uint16: as Sentinel-2 has it
# Of the world, at each edge, what is beyond the picture, into which the second date may be shifted.
_MARGIN = 4
# How often buildings are of each level of damage, as in xBD.
_MIX = (0.70, 0.12, 0.10, 0.08)
_HIDDEN = 0.25  # opacity of clouds from which what is below has no class


@dataclasses.dataclass(frozen=True)
class Terrain:
  """Drawn land: hills by spectral noise, water and woods, fields, roads and houses.

  What is there is told apart from how it looks: the sun stands anywhere, haze, the season, gains
  of the sensor and clouds differ from date to date, and fields are ploughed, green or ripe. What is
  under a cloud or its shadow has no class.

  Fields: `map`, and of the land cover `image`, else `before` and `after`, which is shifted by parts
  of a pixel or more. In a quarter of the pairs of changes nothing but the looks has changed; else
  houses are built or pulled down, woods are cut, or water rises or falls. Of damage, each house has
  a level: none, some dark holes in its roof, a torn roof with debris around, or debris alone.

  Attributes:
    of: which of `NAMES` the map is of: 'cover', 'change' or 'damage'.
    size: height and width.
    bands: in their order, of `BANDS`.
    dtype: 'uint8' stretched for the eye, 'uint16' in ten-thousandths of the reflectance.
    nuisance: how strongly looks differ: 1 as described, 0 not at all.
    clouds: share of the pictures with a cloud.
    shift: of the second date, in pixels, at most.
  """

  of: str = 'cover'
  size: tuple[int, int] = (64, 64)
  bands: tuple[str, ...] = ('red', 'green', 'blue')
  dtype: str = 'uint8'
  nuisance: float = 1.0
  clouds: float = 0.15
  shift: float = 2.0

  def __post_init__(self):
    for name, value, known in (('of', self.of, NAMES), ('dtype', self.dtype, DTYPES)):
      if value not in known:
        raise RunError(f'unknown {name} of terrain {value!r}: {suggest(value, known)}')
    for band in self.bands:
      if band not in BANDS:
        raise RunError(f'unknown band of terrain {band!r}: {suggest(band, BANDS)}')
    sound = min(self.size) >= 16 and self.bands and self.nuisance >= 0
    if not (sound and 0 <= self.clouds <= 1 and 0 <= self.shift <= _MARGIN):
      raise RunError(
        'terrain needs at least 16 pixels and a band, nuisance of at least 0, clouds from 0 to 1 '
        f'and shift from 0 to {_MARGIN}: {self.size}, {self.bands}, {self.nuisance}, '
        f'{self.clouds}, {self.shift}'
      )

  @property
  def fields(self) -> dict[str, Field]:
    """Of every example."""
    image = Field('image', dtype=self.dtype, channels=len(self.bands))
    images = ('image',) if self.of == 'cover' else ('before', 'after')
    return {**dict.fromkeys(images, image), 'map': Field('map', NAMES[self.of])}

  def example(self, rng: np.random.Generator, *, split: str) -> Example:
    """An example; all that is random comes from `rng`."""
    del split
    import numpy as np

    world = self._world(rng)
    inner = (slice(_MARGIN, -_MARGIN),) * 2
    if self.of == 'cover':
      image, hidden = self._seen(world, rng)
      return {'image': image, 'map': np.where(hidden, VOID, world.cover[inner]).astype(np.int32)}
    later = self._changed(world, rng) if self.of == 'change' else self._damaged(world, rng)
    before, hidden = self._seen(world, rng)
    after, hidden_too = self._seen(later, rng, self.shift * rng.uniform(-1, 1, 2))
    if self.of == 'change':
      labels = (world.cover != later.cover).astype(np.int64)
    else:
      levels = np.array([0, *(house.level + 1 for house in later.houses)])
      labels = levels[later.numbers]
    labels = np.where(hidden | hidden_too, VOID, labels[inner]).astype(np.int32)
    return {'before': before, 'after': after, 'map': labels}

  # --- what is there ---

  def _world(self, rng: np.random.Generator) -> _World:
    import cv2
    import numpy as np

    height, width = size = self.size[0] + 2 * _MARGIN, self.size[1] + 2 * _MARGIN
    relief, wet, flat = (_noise(rng, size, slope) for slope in (2.2, 1.8, 1.8))
    water, sand = np.quantile(relief, rng.uniform(0, 0.3) + np.array([0, rng.uniform(0.03, 0.08)]))
    ground = np.full(size, _GRASS)
    ground[wet > np.quantile(wet, rng.uniform(0.45, 0.75))] = _FOREST
    seeds = np.ones(size, np.uint8)
    count = max(4, round(height * width / 400))
    seeds[rng.integers(height, size=count), rng.integers(width, size=count)] = 0
    _, parcels = cv2.distanceTransformWithLabels(
      seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # A parcel is a field as a whole: where it is flat on average.
    number = np.bincount(parcels.ravel())
    level = np.bincount(parcels.ravel(), flat.ravel()) / np.maximum(number, 1)
    ground[(level > np.quantile(flat, rng.uniform(0.5, 0.8)))[parcels]] = _FIELD
    if self.of == 'cover':
      rock = np.quantile(relief, rng.uniform(0.75, 1))
      ground[relief > rock] = _ROCK
      ground[relief > rock + rng.uniform(0.3, 0.8)] = _SNOW
    ground[relief < sand] = _SAND
    ground[relief < water] = _WATER
    ground[_ways(rng, size)] = _ROAD
    world = _World(relief, ground, parcels, float(water), (), int(rng.integers(2**31)))
    dense = 1 / 200 if self.of == 'damage' else 1 / 400
    return self._built(world, rng, max(2, round(rng.uniform(0.5, 1.5) * dense * height * width)))

  def _built(self, world: _World, rng: np.random.Generator, count: int) -> _World:
    """With so many more houses, where there is room for them."""
    import numpy as np

    houses = list(world.houses)
    low, high = (9, 17) if self.of == 'damage' else (6, 13)
    free = (world.numbers == 0) & ~np.isin(world.ground, (_WATER, _SNOW, _ROCK, _ROAD))
    for _ in range(count):
      sides = rng.uniform(low, high) * np.array([1, rng.uniform(0.6, 1)])
      where = rng.integers(np.array(free.shape))
      house = _House(
        (float(where[1]), float(where[0])), (float(sides[0]), float(sides[1])),
        float(rng.uniform(0, 90)), _ROOFS[rng.integers(len(_ROOFS))],
        float(rng.uniform(0.85, 1.15)), int(rng.integers(2**31)),
      )  # fmt: skip
      # Around it is a path.
      if free[_drawn(free.shape, house, 2.0)].all():
        free &= ~_drawn(free.shape, house, 2.0)
        houses.append(house)
    return world._replace(houses=tuple(houses))

  def _changed(self, world: _World, rng: np.random.Generator) -> _World:
    """Some time later."""
    import numpy as np

    if rng.random() < 0.25:
      return world
    for event in rng.permutation(4)[: rng.integers(1, 4)]:
      ground = world.ground
      if event == 0:
        more = round(world.ground.size / 1500)
        world = self._built(world, rng, 3 * int(rng.integers(1, 2 + more)))
      elif event == 1:
        kept = tuple(house for house in world.houses if rng.random() < 0.6)
        world = world._replace(houses=kept)
      elif event == 2:
        blob = _noise(rng, ground.shape, 2.2) > rng.uniform(0.3, 1.2)
        world = world._replace(ground=np.where(blob & (ground == _FOREST), _GRASS, ground))
      else:
        level = world.water + rng.choice((-1, 1)) * rng.uniform(0.2, 0.6)
        risen = (world.relief < level) & (ground != _ROAD)
        fallen = (world.relief >= level) & (ground == _WATER)
        ground = np.where(risen, _WATER, np.where(fallen, _SAND, ground))
        drowned = lambda house, risen=risen: risen[_drawn(risen.shape, house)].any()  # noqa: E731
        houses = tuple(house for house in world.houses if not drowned(house))
        world = world._replace(ground=ground, houses=houses, water=level)
    return world

  def _damaged(self, world: _World, rng: np.random.Generator) -> _World:
    """After a disaster."""
    levels = rng.choice(len(_MIX), len(world.houses), p=_MIX)
    houses = [h._replace(level=int(level)) for h, level in zip(world.houses, levels, strict=True)]
    return world._replace(houses=tuple(houses))

  # --- how it looks ---

  def _seen(
    self, world: _World, rng: np.random.Generator, shift: Any = (0.0, 0.0)
  ) -> tuple[np.ndarray, np.ndarray]:
    """A picture, (*size, bands), and what of it is hidden by clouds, bool (*size)."""
    import numpy as np

    strong, spectra = self.nuisance, _spectra(self.bands)
    image = self._reflectance(world, spectra, rng)
    lit = self._with_houses(image, world, spectra)
    slope = np.gradient(world.relief)
    sun = rng.uniform(0, 2 * np.pi)
    shade = 1 + 0.35 * strong * (slope[0] * np.cos(sun) + slope[1] * np.sin(sun))
    # Houses throw shadows away from the sun.
    reach = strong * rng.uniform(1.5, 4)
    dark = _moved(lit, np.array([np.cos(sun), np.sin(sun)]) * reach) & ~world.standing
    image *= (np.clip(shade, 0.5, 1.5) * np.where(dark, 0.55, 1))[..., None]
    image = _between(image, shift)
    hidden = np.zeros(image.shape[:2], bool)
    if rng.random() < self.clouds:
      image, hidden = _clouded(image, spectra['cloud'], rng)
    # Haze is bluest, as it is scattered.
    waves = np.array([BANDS.index(band) for band in self.bands]) / len(BANDS)
    haze = rng.uniform(0, 0.06) * strong * np.exp(-3 * waves)
    gain = 1 + strong * (rng.uniform(-0.25, 0.25) + rng.uniform(-0.08, 0.08, len(self.bands)))
    image = image * gain + haze + rng.normal(0, 0.004 + 0.006 * strong, image.shape)
    if self.dtype == 'uint8':
      return np.rint(np.clip(image / _WHITE, 0, 1) * 255).astype(np.uint8), hidden
    return np.rint(np.clip(image, 0, 6) * _UNITS).astype(np.uint16), hidden

  def _reflectance(
    self, world: _World, spectra: dict[str, np.ndarray], rng: np.random.Generator
  ) -> np.ndarray:
    """Of the ground, float64 (height, width, bands)."""
    import numpy as np

    size, strong = world.ground.shape, self.nuisance
    green = np.clip(0.5 + strong * (rng.uniform(-0.5, 0.5) + 0.12 * _noise(rng, size, 2)), 0, 1)
    dry, lush = (_table(self.bands, how) for how in ('dry', 'green'))
    image = dry[world.ground] + (lush - dry)[world.ground] * green[..., None]
    stages = np.stack([spectra[f'field {stage}'] for stage in ('bare', 'green', 'ripe')])
    count, fields = int(world.parcels.max()) + 1, world.ground == _FIELD
    # Without nuisances a field is always at the same stage, whatever the date.
    stage = rng.integers(3, size=count) if strong else np.arange(count) % 3
    image[fields] = stages[stage[world.parcels[fields]]]
    # What lies there stays; leaves and waves do not.
    own = np.random.default_rng(world.seed)
    fine, coarse = (rng if strong else own).standard_normal(size), _noise(own, size, 1.2)
    texture = np.array(_TEXTURE)[world.ground] * (0.5 * fine + 0.8 * coarse)
    # Fields have rows, each in a direction of its own.
    turn = world.parcels * 2.4  # of neighbours quite another one
    y, x = np.mgrid[: size[0], : size[1]]
    rows = 0.10 * np.sin(1.6 * (x * np.cos(turn) + y * np.sin(turn)))
    texture = texture + rows * fields
    return image * (1 + texture)[..., None]

  def _with_houses(
    self, image: np.ndarray, world: _World, spectra: dict[str, np.ndarray]
  ) -> np.ndarray:
    """Draws roofs and debris into a picture; which pixels are so high that they throw a shadow."""
    import numpy as np

    size = world.ground.shape
    lit = np.zeros(size, bool)
    for house in world.houses:
      own = np.random.default_rng(house.seed)  # a roof looks the same at every date
      inside = _drawn(size, house)
      roof = spectra[house.roof] * house.bright
      # One side of a roof is lighter than the other.
      y, x = np.nonzero(inside)
      angle = np.radians(house.angle)
      side = (x - house.at[0]) * -np.sin(angle) + (y - house.at[1]) * np.cos(angle) > 0
      image[y, x] = roof * (1 + 0.08 * (2 * side - 1))[:, None]
      rubble = spectra['debris'] * np.exp(own.normal(0, 0.45, (*size, 1)))
      if house.level == 0:
        lit |= inside
        continue
      order = own.random(size)
      patches = _noise(own, size, 1.6)
      if house.level == 3:
        gone = inside | (_drawn(size, house, 3.0) & (order < 0.5))
      else:
        share = own.uniform(0.08, 0.2) if house.level == 1 else own.uniform(0.25, 0.6)
        gone = inside & (patches > np.quantile(patches[inside], 1 - share))
        lit |= inside & ~gone
      if house.level == 1:
        image[gone] = 0.35 * roof
        continue
      image[gone] = rubble[gone]
      if house.level == 2:
        around = _drawn(size, house, 3.0) & ~inside & (order < 0.35)
        image[around] = rubble[around]
    return lit


class _House(NamedTuple):
  """A building.

  Attributes:
    at: x and y of its centre, in pixels of the world.
    sides: in pixels.
    angle: in degrees.
    roof: one of `_ROOFS`.
    bright: factor on its reflectance.
    seed: of its holes.
    level: of damage, from 0.
  """

  at: tuple[float, float]
  sides: tuple[float, float]
  angle: float
  roof: str
  bright: float
  seed: int
  level: int = 0


class _World(NamedTuple):
  """What is there.

  Attributes:
    relief: heights, of mean 0 and variance 1.
    ground: places in `COVER`, without buildings.
    parcels: numbers of fields.
    water: level of it.
    houses: buildings.
    seed: of the texture of the ground.
  """

  relief: np.ndarray
  ground: np.ndarray
  parcels: np.ndarray
  water: float
  houses: tuple[_House, ...]
  seed: int

  @property
  def numbers(self) -> np.ndarray:
    """Of every pixel the number of its building, from 1, or 0."""
    import numpy as np

    found = np.zeros(self.ground.shape, np.int64)
    for number, house in enumerate(self.houses, 1):
      found[_drawn(found.shape, house)] = number
    return found

  @property
  def standing(self) -> np.ndarray:
    """Where a building is that is not destroyed."""
    kept = tuple(house for house in self.houses if house.level < 3)
    return self._replace(houses=kept).numbers > 0

  @property
  def cover(self) -> np.ndarray:
    """Places in `COVER`."""
    import numpy as np

    return np.where(self.numbers > 0, _BUILDING, self.ground)


def _noise(rng: np.random.Generator, size: tuple[int, ...], slope: float) -> np.ndarray:
  """Noise whose spectrum falls with frequency: mean 0, variance 1."""
  import numpy as np

  white = np.fft.rfft2(rng.standard_normal(size))
  found = np.fft.irfft2(white * _falling(tuple(size), slope), s=tuple(size))
  return (found - found.mean()) / found.std()


@functools.lru_cache(64)
def _falling(size: tuple[int, int], slope: float) -> np.ndarray:
  import numpy as np

  # Of large pictures hills are no larger than of small ones.
  y, x = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
  frequency = np.maximum(np.hypot(y, x), 1 / 64)
  found = frequency**-slope
  found[0, 0] = 0
  return found


def _ways(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
  """Roads from edge to edge, bool (height, width)."""
  import cv2
  import numpy as np

  found = np.zeros(size, np.uint8)
  for _ in range(int(rng.integers(0, 2 + max(size) // 64))):
    knots = max(3, max(size) // 24)
    along = np.linspace(-0.05, 1.05, 8 * knots)
    sway = np.interp(along, np.linspace(-0.05, 1.05, knots), rng.uniform(-0.12, 0.12, knots))
    points = np.stack([along, rng.uniform(0, 1) + sway], axis=1)
    if rng.random() < 0.5:
      points = points[:, ::-1]
    line = np.rint(points * size[::-1] * 8).astype(np.int32)[:, None]
    cv2.polylines(found, [line], False, 1, int(rng.integers(2, 4)), cv2.LINE_8, 3)
  return found > 0


def _drawn(size: tuple[int, ...], house: _House, around: float = 0.0) -> np.ndarray:
  """The pixels of a building, and so far around it: bool (height, width)."""
  import cv2
  import numpy as np

  found = np.zeros(size, np.uint8)
  sides = house.sides[0] + 2 * around, house.sides[1] + 2 * around
  corners = cv2.boxPoints((house.at, sides, house.angle))
  cv2.fillConvexPoly(found, np.rint(corners * 8).astype(np.int32), 1, cv2.LINE_8, 3)
  return found > 0


def _moved(values: np.ndarray, by: np.ndarray) -> np.ndarray:
  """Pixels that are reached from those of `values` on the way to `by`, rows and columns."""
  import numpy as np

  found = np.zeros_like(values)
  steps = max(1, round(float(np.abs(by).max())))
  for step in range(1, steps + 1):
    rows, columns = np.rint(by * step / steps).astype(int)
    found |= np.roll(values, (rows, columns), (0, 1))
  return found


def _between(image: np.ndarray, shift: Any) -> np.ndarray:
  """The picture without its margin, moved by parts of pixels: bilinear."""
  import numpy as np

  for axis, by in enumerate(shift):
    whole = int(np.floor(by))
    part, length = by - whole, image.shape[axis] - 2 * _MARGIN
    take = lambda at, axis=axis, n=length, image=image: image.take(range(at, at + n), axis)  # noqa: E731
    start = _MARGIN + whole
    image = take(start) * (1 - part) + take(min(start + 1, image.shape[axis] - length)) * part
  return image


def _clouded(
  image: np.ndarray, white: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """With a cloud and its shadow; and what they hide."""
  import numpy as np

  size = image.shape[:2]
  thick = np.clip(_noise(rng, size, 2.4) - rng.uniform(0.6, 1.6), 0, 1)
  shadow = np.roll(thick, rng.integers(-12, 13, 2), (0, 1))
  image = image * (1 - 0.6 * shadow[..., None])
  found = image * (1 - thick[..., None]) + white * thick[..., None]
  return found, np.maximum(thick, shadow) > _HIDDEN


@functools.lru_cache(32)
def _table(bands: tuple[str, ...], season: str) -> Any:
  """Reflectance of each class but buildings in a season, float64 (classes, bands)."""
  import numpy as np

  spectra = _spectra(bands)
  names = ((name, f'{name} {season}', f'{name} green') for name in COVER[:_BUILDING])
  return np.stack([next(spectra[n] for n in each if n in spectra) for each in names])


@functools.lru_cache(32)
def _spectra(bands: tuple[str, ...]) -> dict[str, Any]:
  """Reflectance of what there is in some bands, float64 (bands,)."""
  import numpy as np

  places = [BANDS.index(band) for band in bands]
  return {name: np.array(values)[places] / 100 for name, values in _SPECTRA.items()}
