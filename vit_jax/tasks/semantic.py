"""A class for every pixel, by queries."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epy

from vit_jax.data.fields import VOID
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Map, Segments
from vit_jax.data.views import View
from vit_jax.tasks.queries import Queries
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.tasks.task import Batch, Fields

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.tasks import merging


@dataclasses.dataclass(frozen=True, kw_only=True)
class Semantic(Queries):
  """Classes of pixels by queries, each of which has all of a class; see `Queries` for the loss."""

  classed = 'map'
  decode, lines = Segmentation.decode, Segmentation.lines
  draw, coloured, decided = Segmentation.draw, Segmentation.coloured, Segmentation.decided

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`: before the segments the map, as evaluations want it."""
    ignore = (*(fields['map'].ignore if 'map' in fields else ()), VOID)
    segments = Segments(model.num_classes, self.most, 'map', ignore, 'boxes' in model.says)
    maps = () if train else (Map(model.num_classes, ignore),)
    return self.columns(model, fields, view, *maps, segments)

  def scores(self, model: Any, batch: Batch) -> jax.Array:
    """See `Segmentation`: of each class the sum that `merging.classes` speaks of."""
    said = model(batch['image'])
    return merging.scores(said['logits'][:, -1], said['masks'][:, -1], model.config.image_size)

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """'map' (batch, height, width), uint8 or, with more than 255 classes, int32."""
    found = merging.classes(*self.answer(model, batch), model.config.image_size)
    dtype = jnp.uint8 if model.config.num_classes <= 255 else jnp.int32
    return {'map': found.astype(dtype)}
