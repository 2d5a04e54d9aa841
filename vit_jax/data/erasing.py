"""Boxes of a random view that are erased: where, and with what. The devices do it.

What is put in is in units of normalised images, of which a pixel of 8 bits holds a part only.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.changes import Size

MODES = ('const', 'rand', 'pixel')
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclasses.dataclass(frozen=True)
class NoErasing:
  """Leaves images whole."""

  count = 0


@dataclasses.dataclass(frozen=True)
class RandomErasing:
  """Random boxes of some images are erased (Zhong et al. 2020, arXiv:1708.04896), as timm does it.

  torchvision's differs in numbers alone: prob 0.5, max_area 0.33, max_aspect 3.3.

  Attributes:
    prob: that anything is erased.
    min_area, max_area: share of the image; several boxes have that together.
    max_aspect: aspect ratios are log-uniform between 1 / max_aspect and max_aspect.
    count: boxes at most; with more than one their number is drawn evenly.
    mode: what is put in, of normalised images: 'const', zeros, the mean of the data; 'rand', one
      normal colour for each box; 'pixel', normal noise.
  """

  prob: float = 0.25
  min_area: float = 0.02
  max_area: float = 1 / 3
  max_aspect: float = 1 / 0.3
  count: int = 1
  mode: str = 'const'

  def __post_init__(self):
    if not (0 < self.prob <= 1 and 0 < self.min_area <= self.max_area <= 1 <= self.max_aspect):
      raise RunError(
        'random erasing needs 0 < prob <= 1, 0 < min_area <= max_area <= 1 and max_aspect >= 1: '
        f'{self.prob}, {self.min_area}, {self.max_area}, {self.max_aspect}'
      )
    if self.count < 1:
      raise RunError(f'random erasing needs at least one box: count={self.count}')
    if self.mode not in MODES:
      raise RunError(f'unknown mode of random erasing {self.mode!r}: {suggest(self.mode, MODES)}')

  def draw(self, size: Size, rng: Any) -> tuple[Box, ...]:
    """The boxes of a frame of this size, at most `count`."""
    if rng.random() >= self.prob:
      return ()
    count = int(rng.integers(1, self.count + 1))
    found = (self._box(size, count, rng) for _ in range(count))
    return tuple(box for box in found if box)

  def _box(self, size: Size, count: int, rng: Any) -> Box | None:
    for _ in range(10):
      area = rng.uniform(self.min_area, self.max_area) * size[0] * size[1] / count
      aspect = self.max_aspect ** rng.uniform(-1, 1)
      height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
      if height < size[0] and width < size[1]:
        top, left = rng.integers((size[0] - height + 1, size[1] - width + 1)).tolist()
        return top, left, height, width
    return None


ERASURES = {'none': NoErasing, 'random': RandomErasing}
