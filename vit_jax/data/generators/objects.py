"""Coloured forms on dark ground with captions: pairs of picture and text that cost nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, ClassVar

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.fields import Boxes, Field, Masks
from vit_jax.data.generators import forms
from vit_jax.data.generators.graphs import COLOURS, FORMS, PAIRS, SIZES, WORDS, Graph, Thing

if TYPE_CHECKING:
  import numpy as np

# Each colour once, each form once or twice: the pairs that are not trained on.
HELD_OUT = tuple(
  f'{colour} {form}' for colour, form in zip(COLOURS, itertools.cycle(FORMS), strict=False)
)
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
# Which pairs a split shows, and how many things; 0 for any number.
_SPLITS = {'train': (SEEN, 0)} | {
  f'{name}{end}': (pairs, count)
  for name, pairs in (('seen', SEEN), ('held_out', HELD_OUT), ('test', PAIRS))
  for count, end in enumerate(('', '_one', '_two'))
}
_RED_GREEN_BLUE = {
  'red': (0.88, 0.16, 0.16), 'green': (0.16, 0.66, 0.2), 'blue': (0.2, 0.38, 0.95),
  'yellow': (0.95, 0.86, 0.18), 'purple': (0.6, 0.24, 0.82), 'orange': (0.96, 0.52, 0.1),
  'cyan': (0.2, 0.8, 0.84), 'white': (0.92, 0.92, 0.92),
}  # fmt: skip
# What `forms` calls them, and how they are turned to stand on their base.
_KINDS = {
  'circle': ('disc', 0.0), 'triangle': ('triangle', math.pi / 2), 'star': ('star', -math.pi / 2)
}  # fmt: skip
_SPREAD = 0.05  # of a colour, at most, in each channel
_DARKEST, _LIGHTEST = 0.02, 0.25  # of the ground
_TURN = 0.3  # by which a thing is turned, at most, either way
_APART = 1.0  # pixels between things
_TWO = 0.75  # of the captions of several things name two
_TRIES = 20  # to find places before things are put into cells


@dataclasses.dataclass(frozen=True)
class Objects:
  """Things of 8 colours, 6 forms and 2 sizes anywhere on dark, noisy ground, none behind another.

  Eight of the 48 pairs of a colour and a form, `HELD_OUT`, are not in the split train, but every
  colour and every form is. The splits seen, seen_one and seen_two show pairs of train, held_out,
  held_out_one and held_out_two only the others, test, test_one and test_two all: 'one' is a single
  thing, 'two' are two whose caption says how they lie. Size, place and ground say nothing of what
  is there. Fields: image; text, which names one thing, or two and how they lie, in the words
  `fields['text'].names`; swapped, the same with the two things exchanged, which is wrong, or '';
  label, the pair that the text names first; labels; boxes; masks; map, of each pixel 0 for ground,
  else 1 more than its pair.

  Attributes:
    size: height and width.
    least, most: things of a picture where the split does not say how many.
    small, large: radius of the circle around a thing of either size in pixels, from and to.
    noise: standard deviation of that of pixels in [0, 1].
    shuffled: captions are those of other pictures, to see what is learned from nothing.
  """

  splits: ClassVar[tuple[str, ...]] = tuple(_SPLITS)

  size: tuple[int, int] = (48, 48)
  least: int = 1
  most: int = 4
  small: tuple[float, float] = (4.5, 5.5)
  large: tuple[float, float] = (7.5, 9.0)
  noise: float = 0.03
  shuffled: bool = False

  def __post_init__(self):
    if not 1 <= self.least <= self.most <= len(HELD_OUT) * len(SIZES) or self.noise < 0:
      raise RunError(
        f'objects need 1 <= least <= most <= {len(HELD_OUT) * len(SIZES)} and noise of at least '
        f'0: {self.least}, {self.most}, {self.noise}'
      )
    sizes = (*self.small, *self.large)
    if not (sizes[0] >= 1 and list(sizes) == sorted(sizes)):
      raise RunError(
        f'objects: small={self.small} and large={self.large} must be at least 1 and grow'
      )
    if self._cell < 2 * sizes[-1] + _APART:
      raise RunError(
        f'objects: {max(self.most, 2)} things of radius {sizes[-1]:g} do not fit side by side into '
        f'{self.size[0]}x{self.size[1]} pixels'
      )

  @property
  def _cell(self) -> float:
    """Side of a square for each thing where they are in rows and columns."""
    return min(self.size) / math.ceil(math.sqrt(max(self.most, 2)))

  @property
  def fields(self) -> dict[str, Field]:
    """Of every example."""
    return {
      'image': Field('image', dtype='uint8', channels=3), 'text': Field('text', WORDS),
      'swapped': Field('text', WORDS), 'label': Field('class', PAIRS),
      'labels': Field('classes', PAIRS), 'boxes': Field('boxes', PAIRS),
      'masks': Field('masks', PAIRS), 'map': Field('map', ('ground', *PAIRS)),
    }  # fmt: skip

  def example(self, rng: np.random.Generator, *, split: str) -> Example:
    """An example; all that is random comes from `rng`."""
    import numpy as np

    from vit_jax.data.masks import around

    graph = self.graph(rng, split)
    caption = self._caption(graph, rng, split)
    image, ids = self._drawn(graph, rng)
    said = self._caption(self.graph(rng, split), rng, split) if self.shuffled else caption
    label = np.array([PAIRS.index(thing.pair) for thing in graph.things], np.int64)
    masks = [ids == number for number in range(1, len(label) + 1)]
    corners = np.array([around(mask) for mask in masks], np.float64)
    area = np.array([mask.sum() for mask in masks], np.float64)
    crowd = np.zeros(len(label), bool)
    return {
      'image': image, 'text': said.text, 'swapped': said.swapped,
      'label': int(label[caption.first]), 'labels': np.unique(label),
      'boxes': Boxes(corners, label, crowd, area), 'masks': Masks(masks, label, crowd),
      'map': np.concatenate([[0], label + 1])[ids],
    }  # fmt: skip

  def _caption(self, graph: Graph, rng: np.random.Generator, split: str) -> Any:
    """What is said of a picture."""
    most = min(2, len(graph.things))
    return graph.caption(rng, most if split.endswith('_two') or rng.random() < _TWO else 1)

  def graph(self, rng: np.random.Generator, split: str) -> Graph:
    """What is in a picture of a split, one of `splits`."""
    pairs, count = _SPLITS[split]
    count = count or int(rng.integers(self.least, self.most + 1))
    kinds: list[tuple[int, bool]] = []
    while len(kinds) < count:
      kind = int(rng.integers(len(pairs))), bool(rng.integers(2))
      if kind not in kinds:
        kinds.append(kind)
    radii = [float(rng.uniform(*(self.large if large else self.small))) for _, large in kinds]
    things = []
    for (pair, large), at, radius in zip(kinds, self._places(radii, rng), radii, strict=True):
      colour, form = pairs[pair].split()
      things.append(Thing(colour, form, large, at, radius))
    return Graph(tuple(things))

  def _places(self, radii: list[float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """x and y of things that are apart, in x or in y."""
    for _ in range(_TRIES):
      places: list[tuple[float, float]] = []
      for radius in radii:
        x, y = (float(rng.uniform(radius, side - radius)) for side in self.size[::-1])
        if any(
          max(abs(x - u), abs(y - v)) < radius + other + _APART
          for (u, v), other in zip(places, radii, strict=False)
        ):
          break
        places.append((x, y))
      else:
        return places
    across = int(self.size[1] // self._cell)
    cells = rng.permutation(across * int(self.size[0] // self._cell))[: len(radii)].tolist()
    free = [(self._cell - _APART) / 2 - radius for radius in radii]
    return [
      (
        (cell % across + 0.5) * self._cell + float(rng.uniform(-room, room)),
        (cell // across + 0.5) * self._cell + float(rng.uniform(-room, room)),
      )
      for cell, room in zip(cells, free, strict=True)
    ]

  def _drawn(self, graph: Graph, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 (height, width, 3), and of each pixel the number of its thing, from 1."""
    import cv2
    import numpy as np

    coarse = rng.uniform(-0.05, 0.05, (*rng.integers(2, 7, 2), 1)).astype(np.float32)
    mottle = cv2.resize(coarse, self.size[::-1], interpolation=cv2.INTER_CUBIC)[..., None]
    image = rng.uniform(_DARKEST, _LIGHTEST, 3) + mottle
    ids = np.zeros(self.size, np.int64)
    for number, thing in enumerate(graph.things, 1):
      colour = np.array(_RED_GREEN_BLUE[thing.colour]) + rng.uniform(-_SPREAD, _SPREAD, 3)
      x, y = (slice(max(0, int(c - thing.radius)), int(c + thing.radius) + 2) for c in thing.at)
      here = forms.grid(image[y, x].shape[:2]) - np.subtract(thing.at, (x.start, y.start))
      kind, upright = _KINDS.get(thing.form, (thing.form, 0.0))
      angle = upright + rng.uniform(-_TURN, _TURN)
      alpha = forms.covered(kind, here, thing.radius, angle)
      image[y, x] = forms.over(image[y, x], alpha, colour)
      ids[y, x][alpha >= 0.5] = number
    image = np.clip(image + self.noise * rng.standard_normal(image.shape), 0, 1)
    return np.rint(image * 255).astype(np.uint8), ids
