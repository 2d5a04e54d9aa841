"""Rows of several views of an image, of two sizes, and of what is hidden in the large ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.data.examples import Example
from vit_jax.data.rows import Array
from vit_jax.data.rows.columns import Image
from vit_jax.data.rows.masked import Hiding
from vit_jax.data.views import View


@dataclasses.dataclass(frozen=True)
class Partly:
  """Patches that are hidden in some of the views.

  Attributes:
    hiding: how, in blocks; its count is the most.
    prob: of a view to have any.
    least: share of the patches that is the smallest bound of a view; the bound is uniform between
      this and that of `hiding`.
  """

  hiding: Hiding
  prob: float
  least: float

  def arrays(self, views: int) -> dict[str, Array]:
    """'hidden', bool (views, patches); of those that are, 'asked', int32 (views, most), their

    numbers, and 'share', float32 (views, most), one by how many they are, 0 behind the last.
    """
    most = (views, self.hiding.count)
    return {
      'hidden': Array((views, self.hiding.patches), np.bool_), 'asked': Array(most, np.int32),
      'share': Array(most, np.float32),
    }  # fmt: skip

  def draw(self, rng: np.random.Generator, views: int) -> dict[str, np.ndarray]:
    """For the views of an image."""
    row = {name: np.zeros(array.shape, array.dtype) for name, array in self.arrays(views).items()}
    for view in range(views):
      if rng.random() >= self.prob:
        continue
      bound = rng.uniform(self.least * self.hiding.patches, self.hiding.count)
      count = max(1, math.floor(bound))
      hidden = dataclasses.replace(self.hiding, count=count).draw(rng)['hidden']
      where = np.flatnonzero(hidden)
      row['hidden'][view] = hidden
      row['asked'][view, : len(where)] = where
      row['share'][view, : len(where)] = 1 / max(1, len(where))
    return row


@dataclasses.dataclass(frozen=True)
class MultiCrop:
  """Views of an image: 'global' (views, height, width, channels) and, if any, 'local' likewise.

  Attributes:
    image: the column of the image.
    views: the large ones, with their size.
    local: the small ones.
    partly: what is hidden in the large ones, or None.
  """

  image: Image
  views: tuple[View, ...]
  local: tuple[View, ...] = ()
  partly: Partly | None = None

  @property
  def needs(self) -> Mapping[str, str]:
    """See `Rows`."""
    return self.image.needs

  @property
  def _groups(self) -> dict[str, tuple[View, ...]]:
    return {'global': self.views, **({'local': self.local} if self.local else {})}

  def arrays(self) -> dict[str, Array]:
    """See `Rows`."""
    found = {
      name: Array((len(views), *views[0].size, self.image.channels), np.dtype(self.image.dtype))
      for name, views in self._groups.items()
    }
    return found | (self.partly.arrays(len(self.views)) if self.partly else {})

  def make(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """See `Rows`."""
    opened = self.image.open(example)
    opened.decoded()  # once for all views
    row: dict[str, Any] = {
      name: np.stack([opened.within(view.place(*opened.size, rng)) for view in views])
      for name, views in self._groups.items()
    }
    return row | (self.partly.draw(rng, len(self.views)) if self.partly else {})

  def about(self, example: Example) -> list[str]:
    """See `Rows`."""
    from vit_jax.data import preprocess

    value: Any = example[self.image.field]
    done = preprocess.conversion(value, self.image.channels)
    return [done] if done else []
