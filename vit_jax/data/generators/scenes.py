"""Scenes of handwritten digits, with everything that can be asked of a picture."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.fields import Boxes, Field, Masks, Panoptic

if TYPE_CHECKING:
  import numpy as np

DIGITS = tuple('0123456789')
_TRIES = 20  # to find a place for a digit
_APART = 0.15  # of a box that others may cover
_STROKE = 0.5  # of the ink of a digit from which a pixel is of it


@dataclasses.dataclass(frozen=True)
class Scenes:
  """Real digits (Alpaydin & Kaynak 1998) of any size, angle and colour on mottled ground.

  Digits of the split train are others than those of all other splits. Ground and ink have colours
  that say nothing: either may be the lighter one. Between the digits are pieces of others,
  shuffled, so that ink alone is no sign of a digit. Fields: image; labels, the digits that are
  there; boxes; masks; map, of each pixel 0 for ground and d + 1 for the digit d; panoptic; target,
  where the largest digit is and how high; points, in the middle of its left, right and upper edge;
  text, which says what is there from left to right.

  Attributes:
    size: height and width.
    channels: of the images.
    least, most: digits of an image.
    pieces: shuffled pieces of digits, at most.
    lighter: ink is always lighter than ground, which is easier.
  """

  size: tuple[int, int] = (48, 48)
  channels: int = 3
  least: int = 1
  most: int = 3
  pieces: int = 3
  lighter: bool = False

  def __post_init__(self):
    if not 0 <= self.least <= self.most or min(self.size) < 16 or self.channels < 1:
      raise RunError(
        f'scenes need 0 <= least <= most, at least 16 pixels and a channel: {self.least}, '
        f'{self.most}, {self.size}, {self.channels}'
      )

  @property
  def fields(self) -> dict[str, Field]:
    """Of every example."""
    return {
      'image': Field('image', dtype='uint8', channels=self.channels),
      'labels': Field('classes', DIGITS),
      'boxes': Field('boxes', DIGITS), 'masks': Field('masks', DIGITS),
      'map': Field('map', ('ground', *DIGITS)), 'panoptic': Field('panoptic', ('ground', *DIGITS)),
      'target': Field('vector', ('x', 'y', 'height'), ('px',) * 3), 'text': Field('text'),
      'points': Field('points', ('left', 'right', 'top')),
    }  # fmt: skip

  def example(self, rng: np.random.Generator, *, split: str) -> Example:
    """An example; all that is random comes from `rng`."""
    import numpy as np

    from vit_jax.data.masks import around

    ground, ink = self._colours(rng)
    ids = np.zeros(self.size, np.int64)
    covered = np.zeros(self.size, np.float64)
    found: list[tuple[int, np.ndarray]] = []
    wanted = int(rng.integers(self.least, self.most + 1))
    for number in range(wanted + int(rng.integers(self.pieces + 1))):
      digit, shape = self._shape(rng, train=split == 'train')
      if number >= wanted:
        shape = _shuffled(shape, rng)
      alpha = self._placed(shape, covered, rng)
      if alpha is None:
        continue
      covered = np.maximum(covered, alpha)
      if number < wanted:
        found.append((digit, alpha > _STROKE))
        ids[alpha > _STROKE] = len(found)
    image = ground * (1 - covered[..., None]) + ink * covered[..., None]
    image = np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)
    masks = [ids == number for number in range(1, len(found) + 1)]
    label = np.array([digit for digit, _ in found], np.int64)
    corners = np.array([around(mask) for mask in masks], np.float64).reshape(-1, 4)
    area = np.array([mask.sum() for mask in masks], np.float64)
    crowd = np.zeros(len(found), bool)
    sides = corners[:, 2:] - corners[:, :2]
    largest = int(sides[:, 1].argmax()) if found else -1
    target = (
      [*(corners[largest, :2] + corners[largest, 2:]) / 2, sides[largest, 1]]
      if found else [np.nan] * 3
    )  # fmt: skip
    order = np.argsort(corners[:, 0], kind='stable')
    return {
      'image': np.rint(image * 255).astype(np.uint8), 'labels': np.unique(label),
      'boxes': Boxes(corners, label, crowd, area), 'masks': Masks(masks, label, crowd),
      'map': np.concatenate([[0], label + 1])[ids],
      'panoptic': Panoptic(ids, {n: (int(c) + 1, False) for n, c in enumerate(label, 1)}),
      'target': np.array(target, np.float64),
      'points': _middles(corners[largest] if found else None),
      'text': ' and '.join(f'a {label[i]}' for i in order) or 'nothing',
    }  # fmt: skip

  def _colours(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A mottled ground, (height, width, channels), and an ink that differs from all of it."""
    import cv2
    import numpy as np

    base = rng.uniform(0.4, 0.6, self.channels)
    coarse = rng.uniform(-0.1, 0.1, (*rng.integers(2, 7, 2), 1)).astype(np.float32)
    mottle = cv2.resize(coarse, self.size[::-1], interpolation=cv2.INTER_CUBIC)[..., None]
    lighter = (rng.random(self.channels) < 0.5) | self.lighter
    ink = np.where(lighter, base + 0.4, base - 0.4) + rng.uniform(-0.05, 0.05, self.channels)
    return np.clip(base + mottle, 0, 1), np.clip(ink, 0, 1)

  def _shape(self, rng: np.random.Generator, *, train: bool) -> tuple[int, np.ndarray]:
    """A digit and its ink, float64 (side, side) in [0, 1], turned a little."""
    import cv2

    images, labels = _digits(train)
    at = int(rng.integers(len(labels)))
    whole = min(self.size)
    side = int(rng.integers(min(max(10, whole // 4), whole // 2), whole // 2 + 1))
    turn = cv2.getRotationMatrix2D((3.5, 3.5), float(rng.uniform(-15, 15)), 1.0)
    turned = cv2.warpAffine(images[at], turn, (8, 8), flags=cv2.INTER_LINEAR)
    return int(labels[at]), cv2.resize(turned, (side, side), interpolation=cv2.INTER_LINEAR)

  def _placed(
    self, shape: np.ndarray, covered: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray | None:
    """The ink of a shape somewhere in the picture, where there is hardly any; None if nowhere."""
    import numpy as np

    side = len(shape)
    for _ in range(_TRIES):
      top, left = (int(rng.integers(length - side + 1)) for length in self.size)
      here = slice(top, top + side), slice(left, left + side)
      if (covered[here] > _STROKE).mean() <= _APART / 4:
        whole = np.zeros_like(covered)
        whole[here] = shape
        if not (covered[whole > _STROKE] > _STROKE).any():
          return whole
    return None


def _shuffled(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The quarters of a shape in another order, each turned upside down."""
  import numpy as np

  half = len(shape) // 2
  quarters = [shape[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
  a, b, c, d = (quarters[i][::-1] for i in [*(rng.permutation(3) + 1).tolist(), 0])
  return np.block([[a, b], [c, d]])


def _middles(box: np.ndarray | None) -> np.ndarray:
  """The middle of the left, the right and the upper edge of a box; without one none is known."""
  import numpy as np

  if box is None:
    return np.full((3, 2), np.nan)
  left, top, right, bottom = box
  x, y = (left + right) / 2, (top + bottom) / 2
  return np.array([[left, y], [right, y], [x, top]])


@functools.cache
def _digits(train: bool) -> tuple[Any, Any]:
  """Ink in [0, 1], float32 (digits, 8, 8), and which digit each is; every fifth is not to train."""
  import numpy as np
  from sklearn.datasets import load_digits

  data: Any = load_digits()
  held_out = np.arange(len(data.target)) % 5 == 0
  chosen = ~held_out if train else held_out
  return (data.images[chosen] / 16).astype(np.float32), data.target[chosen]
