"""Which patches of an image are hidden."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from vit_jax.data.examples import Example
from vit_jax.data.rows import Array

# Of blocks: aspect ratios, and attempts at each of them.
_ASPECTS, _ATTEMPTS = (0.3, 1 / 0.3), 10


@dataclasses.dataclass(frozen=True)
class Hiding:
  """Which patches of an image are hidden, and what is shown in their place.

  Attributes:
    grid: patches along each axis.
    unit: side, in patches, of what is hidden together (SimMIM, Xie et al. 2022); divides the grid.
    count: of units that are hidden; of blocks the most patches.
    blocks: whether they are rectangles that may overlap and be fewer, as in BEiT (Bao et al. 2022,
      algorithm 1), and not drawn one by one.
    least: patches of such a rectangle; BEiT has 16.
    swapped, left: shares of the hidden patches that show another patch of the image, drawn with
      replacement, and that show themselves; the others are not seen (Dosovitskiy et al. 2021,
      B.1.2).
  """

  grid: tuple[int, int]
  unit: int = 1
  count: int = 0
  blocks: bool = False
  least: int = 16
  swapped: float = 0.0
  left: float = 0.0

  @property
  def needs(self) -> Mapping[str, str]:
    """See `columns.Drawn`: nothing."""
    return {}

  @property
  def patches(self) -> int:
    """In an image."""
    return math.prod(self.grid)

  def arrays(self) -> dict[str, Array]:
    """'asked', of which patches something is predicted, 'hidden', which are not seen, bool; and,

    where some are swapped, 'source', int32, the number of the patch that each one shows.
    """
    found = {name: Array((self.patches,), np.bool_) for name in ('asked', 'hidden')}
    return found | ({'source': Array((self.patches,), np.int32)} if self.swapped else {})

  def make(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """See `columns.Drawn`."""
    del example
    return self.draw(rng)

  def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """For one image."""
    asked = self._blocks(rng) if self.blocks else self._units(rng)
    row = {'asked': asked, 'hidden': asked.copy()}
    if self.swapped or self.left:
      chance = rng.random(self.patches)
      swapped = asked & (chance < self.swapped)
      row['hidden'] &= chance >= self.swapped + self.left
      if self.swapped:
        places = np.arange(self.patches, dtype=np.int32)
        others = rng.integers(self.patches, size=self.patches, dtype=np.int32)
        row['source'] = np.where(swapped, others, places)
    return row

  def _units(self, rng: np.random.Generator) -> np.ndarray:
    rows, columns = (side // self.unit for side in self.grid)
    hidden = np.zeros(rows * columns, bool)
    hidden[rng.permutation(len(hidden))[: self.count]] = True
    hidden = hidden.reshape(rows, columns).repeat(self.unit, 0).repeat(self.unit, 1)
    return hidden.reshape(-1)

  def _blocks(self, rng: np.random.Generator) -> np.ndarray:
    hidden, (rows, columns) = np.zeros(self.grid, bool), self.grid
    least = min(self.least, self.count)
    while (room := self.count - int(hidden.sum())) > 0:
      for _ in range(_ATTEMPTS):
        area = least + (room - least) * rng.random()  # in either order
        aspect = math.exp(rng.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
        height, width = (round(math.sqrt(area * by)) for by in (aspect, 1 / aspect))
        if not (0 < height < rows and 0 < width < columns):
          continue
        top, first = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = hidden[top : top + height, first : first + width]
        new = block.size - int(block.sum())
        if 0 < new <= room:
          block[:] = True
          break
      else:
        break
    return hidden.reshape(-1)
