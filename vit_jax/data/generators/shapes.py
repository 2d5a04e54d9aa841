"""Textured shapes in front of each other on textured ground: boxes, masks and panoptic segments."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.fields import Boxes, Field, Masks, Panoptic
from vit_jax.data.generators import forms

if TYPE_CHECKING:
  import numpy as np

THINGS = ('disc', 'square', 'triangle', 'ring', 'cross')
STUFF = ('stripes', 'checks', 'blocks')
_VOID = 255  # of the map
_CROWD = (8, 16)  # small discs of a crowd, from and to


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Shapes of any colour, size and angle, one before the other, on a ground of textures.

  The ground is of one to three regions, each of a texture, which is stuff: what class it is says
  the pattern, as all colours are random. Before it are things, the nearest last; one that is hidden
  too much is not drawn at all. Fields: image; labels, the things that are there; boxes and masks of
  what is visible of each; map, of each pixel its class, those of stuff first; panoptic, in which
  regions of one texture are one segment.

  Attributes:
    size: height and width.
    channels: of the images.
    kinds: of things: the first so many of disc, square, triangle, ring and cross.
    least, most: things of an image before those are left out that are hidden.
    radius: of the circle around a thing in pixels, from and to.
    visible: least share of a thing that is seen.
    textured: share of the things that are striped.
    strokes: lines that are of no class and drawn over the ground, at most.
    noise: standard deviation of that of pixels in [0, 1].
    crowd: share of the images with a crowd of small discs, which are not told apart.
    void: share of the images with a black strip that is of no segment.
  """

  size: tuple[int, int] = (48, 48)
  channels: int = 3
  kinds: int = 5
  least: int = 1
  most: int = 6
  radius: tuple[float, float] = (4.5, 11.0)
  visible: float = 0.35
  textured: float = 0.5
  strokes: int = 2
  noise: float = 0.024
  crowd: float = 0.0
  void: float = 0.0

  def __post_init__(self):
    if not 0 <= self.least <= self.most or min(self.size) < 16 or self.channels < 1:
      raise RunError(
        f'shapes need 0 <= least <= most, at least 16 pixels and a channel: {self.least}, '
        f'{self.most}, {self.size}, {self.channels}'
      )
    if not 1 <= self.kinds <= len(THINGS) or self.strokes < 0 or self.noise < 0:
      raise RunError(
        f'shapes need 1 to {len(THINGS)} kinds, and strokes and noise of at least 0: {self.kinds}, '
        f'{self.strokes}, {self.noise}'
      )
    if not 1 <= self.radius[0] <= self.radius[1] <= min(self.size) / 2:
      raise RunError(
        f'shapes need 1 <= radius <= {min(self.size) / 2}, from the least to the largest one: '
        f'{self.radius}'
      )
    for name in ('visible', 'textured', 'crowd', 'void'):
      if not 0 <= getattr(self, name) <= 1:
        raise RunError(f'shapes: {name}={getattr(self, name)} is a share, from 0 to 1')

  @property
  def fields(self) -> dict[str, Field]:
    """Of every example."""
    things = THINGS[: self.kinds]
    classes = (*STUFF, *things)
    ignore = (_VOID,) if self.void else ()
    return {
      'image': Field('image', dtype='uint8', channels=self.channels),
      'labels': Field('classes', things), 'boxes': Field('boxes', things),
      'masks': Field('masks', things), 'map': Field('map', classes, ignore=ignore),
      'panoptic': Field('panoptic', classes, stuff=STUFF),
    }  # fmt: skip

  def example(self, rng: np.random.Generator, *, split: str) -> Example:
    """An example; all that is random comes from `rng`."""
    import numpy as np

    del split
    grid = forms.grid(self.size)
    image, region, colours = self._ground(rng, grid)
    for _ in range(int(rng.integers(self.strokes + 1))):
      image = forms.over(image, self._stroke(rng, grid), rng.random(self.channels))
    drawn = [self._thing(rng, grid) for _ in range(int(rng.integers(self.least, self.most + 1)))]
    if rng.random() < self.crowd:
      drawn.insert(0, self._crowd(rng, grid))
    solid = [alpha >= 0.5 for _, alpha, _ in drawn]
    strip = self._strip(rng) if rng.random() < self.void else np.zeros(self.size, bool)
    covered, kept = strip.copy(), list[int]()
    for at in reversed(range(len(drawn))):  # from the nearest one to the ground
      whole = int(solid[at].sum())
      if whole and (solid[at] & ~covered).sum() >= max(self.visible * whole, 1):
        kept.insert(0, at)
        covered |= solid[at]
    ids = region.astype(np.int64) + 1
    classes = list(range(len(STUFF)))
    for number, at in enumerate(kept, len(STUFF) + 1):
      label, alpha, crowd = drawn[at]
      image = forms.over(image, alpha, self._filled(rng, grid, colours, several=crowd))
      ids[solid[at]] = number
      classes.append(len(STUFF) + label)
    image = np.clip(image + self.noise * rng.standard_normal(image.shape), 0, 1)
    image[strip], ids[strip] = 0, 0
    return {
      'image': np.rint(image * 255).astype(np.uint8),
      **self._said(ids, classes, [drawn[at][2] for at in kept]),
    }

  def _said(self, ids: np.ndarray, classes: list[int], crowds: list[bool]) -> dict[str, Any]:
    """What is in an image by the `ids` of its segments, the first of them stuff; 0 is void."""
    import numpy as np

    from vit_jax.data.masks import around

    first = len(STUFF)
    there = [number for number in range(1, len(classes) + 1) if (ids == number).any()]
    things = [number for number in there if number > first]
    masks = [ids == number for number in things]
    label = np.array([classes[number - 1] - first for number in things], np.int64)
    crowd = np.array([crowds[number - first - 1] for number in things], bool)
    corners = np.array([around(mask) for mask in masks], np.float64).reshape(-1, 4)
    area = np.array([mask.sum() for mask in masks], np.float64)
    segments = dict(zip(things, crowd.tolist(), strict=True))
    return {
      'labels': np.unique(label), 'boxes': Boxes(corners, label, crowd, area),
      'masks': Masks(masks, label, crowd), 'map': np.array([_VOID, *classes])[ids],
      'panoptic': Panoptic(ids, {n: (classes[n - 1], segments.get(n, False)) for n in there}),
    }  # fmt: skip

  def _ground(
    self, rng: np.random.Generator, grid: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regions of textures: the image, which texture is where, and colours (colours, channels)."""
    import numpy as np

    count = int(rng.integers(1, len(STUFF) + 1))
    centres = rng.random((count, 2)) * self.size[::-1]
    nearest = ((grid[None] - centres[:, None, None]) ** 2).sum(-1).argmin(0)
    image, region = np.zeros((*self.size, self.channels)), np.zeros(self.size, np.int64)
    colours = []
    for number in range(count):
      kind, here = int(rng.integers(len(STUFF))), nearest == number
      pair = _two(rng, self.channels)
      share = _texture(STUFF[kind], rng, grid)[..., None]
      image[here] = (pair[0] * (1 - share) + pair[1] * share)[here]
      region[here] = kind
      colours += pair
    return image, region, np.array(colours)

  def _thing(self, rng: np.random.Generator, grid: np.ndarray) -> tuple[int, np.ndarray, bool]:
    """A thing: its class, what of each pixel it covers, and that it is no crowd."""
    label, radius = int(rng.integers(self.kinds)), rng.uniform(*self.radius)
    centre = [rng.uniform(radius / 2, side - radius / 2) for side in self.size[::-1]]
    angle = rng.uniform(0, 2 * math.pi)
    return label, forms.covered(THINGS[label], grid - centre, radius, angle), False

  def _crowd(self, rng: np.random.Generator, grid: np.ndarray) -> tuple[int, np.ndarray, bool]:
    """Small discs close to each other, which are one thing in the annotations."""
    import numpy as np

    radius = self.radius[0] / 2
    apart = radius * math.sqrt(_CROWD[1])
    middle = np.array([rng.uniform(0, side) for side in self.size[::-1]])
    discs = [
      forms.covered('disc', grid - (middle + rng.normal(0, apart, 2)), radius, 0.0)
      for _ in range(int(rng.integers(*_CROWD)))
    ]
    return 0, np.max(discs, axis=0), True

  def _filled(
    self, rng: np.random.Generator, grid: np.ndarray, others: np.ndarray, *, several: bool
  ) -> np.ndarray:
    """What a thing is filled with: (height, width, channels), or one colour (channels,).

    Of three colours that one is taken which differs most from those of the ground.
    """
    import numpy as np

    some = rng.random((3, self.channels))
    apart = abs(some[:, None] - others).max(-1).min(-1)
    colour = some[int(apart.argmax())]
    if several or rng.random() >= self.textured:
      return colour
    share = _texture('stripes', rng, grid)[..., None]
    return colour * (1 - share) + np.where(colour < 0.5, colour + 0.35, colour - 0.35) * share

  def _stroke(self, rng: np.random.Generator, grid: np.ndarray) -> np.ndarray:
    """What of each pixel a line of any length and angle covers."""
    import numpy as np

    start, turn = rng.random(2) * self.size[::-1], rng.uniform(0, math.pi)
    along, across = forms.turned(grid - start, turn)
    length = rng.uniform(0.2, 0.5) * min(self.size)
    return forms.soft(np.maximum(abs(along) - length / 2, abs(across) - rng.uniform(0.5, 1.0)))

  def _strip(self, rng: np.random.Generator) -> np.ndarray:
    """Some rows or columns at an edge: bool (height, width)."""
    import numpy as np

    strip, down = np.zeros(self.size, bool), bool(rng.integers(2))
    width = int(rng.integers(1, self.size[not down] // 4))
    lines = strip if down else strip.T
    lines[slice(0, width) if rng.random() < 0.5 else slice(-width, None)] = True
    return strip


def _texture(kind: str, rng: np.random.Generator, grid: np.ndarray) -> np.ndarray:
  """A pattern from 0 to 1, one value a pixel, of random period and, but for blocks, angle."""
  import numpy as np

  period = rng.uniform(4, 8)
  if kind == 'blocks':
    shape = [int(side / period) + 2 for side in grid.shape[:2]]
    x, y = np.floor((grid + rng.uniform(0, period, 2)) / period).astype(np.int64).transpose(2, 0, 1)
    return rng.random(shape)[y, x]
  x, y = forms.turned(grid, rng.uniform(0, math.pi))
  start = rng.uniform(0, 2 * math.pi, 2)
  wave = np.sin(x * (2 * math.pi / period) + start[0])
  if kind == 'checks':
    wave = wave * np.sin(y * (2 * math.pi / period) + start[1])
  return np.clip(0.5 + 2 * wave, 0, 1)


def _two(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, np.ndarray]:
  """Two colours that can be told apart, in any order."""
  import numpy as np

  one = rng.random(channels)
  other = np.where(one < 0.5, one + 0.3, one - 0.3)
  return (one, other) if rng.random() < 0.5 else (other, one)
