"""Queries that begin with objects that are there, in the wrong place: what training may add.

A decoder learns to correct boxes from the first step on, without having to find out which query is
for which object (DN-DETR, Li et al. 2022; contrastive as in DINO, Zhang et al. 2023, section 3.3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epy

from vit_jax.tasks import boxes
from vit_jax.tasks.matching import Targets

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import noise, sharding

# Logits of queries that are not there, so far from zero that they cost nothing.
_SURE = 30.0


class Draws(NamedTuple):
  """What is random of noisy queries, of a batch.

  Attributes:
    flip: evenly between 0 and 1, float32 (batch, queries).
    label: evenly between 0 and 1, whatever classes there are, float32 (batch, queries).
    side: -1 or 1, float32 (batch, queries, 4).
    part: evenly between 0 and 1, float32 (batch, queries, 4).
  """

  flip: Any
  label: Any
  side: Any
  part: Any


def drawn(key: jax.Array, batch: int, queries: int) -> Draws:
  """Fresh draws."""
  keys = noise.noise(key).split(4)
  sides = lambda key, shape, **layout: 2 * jax.random.bernoulli(key, 0.5, shape, **layout) - 1.0  # noqa: E731
  evenly = jax.random.uniform
  return Draws(
    keys[0].draw(evenly, batch, queries), keys[1].draw(evenly, batch, queries),
    keys[2].draw(sides, batch, queries, 4), keys[3].draw(evenly, batch, queries, 4),
  )  # fmt: skip


def noisy(
  targets: Targets, groups: int, draws: Draws, classes: int, label_noise: float, box_noise: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Objects with other labels and boxes, twice in each group: near, and too far to be the object.

  Args:
    targets: objects.
    groups: how many there are.
    draws: of groups * 2 * targets queries.
    classes: how many there are.
    label_noise: twice the share of queries that get another class, or the same again.
    box_noise: by how many halves of a side an edge of a box is moved at most; the far ones as much
      more. Boxes are cut at the edge of the image.

  Returns:
    Labels int32 (batch, queries); boxes as those of `Targets`, float32 (batch, queries, 4); and the
    group of each query, int32 (batch, queries), from 1 on, -1 where no object is. In a group all
    near queries come first, in the order of the objects.
  """
  times = 2 * groups
  label, there = (jnp.tile(x, (1, times)) for x in (targets.label, targets.there))
  box, count = jnp.tile(targets.boxes, (1, times, 1)), targets.label.shape[1]
  number = jnp.arange(times * count) // count  # near and far alternate
  other = draws.flip < 0.5 * label_noise
  drawn = jnp.minimum((draws.label * classes).astype(jnp.int32), classes - 1)
  label = jnp.where(other & there, drawn, label)
  part = draws.side * (draws.part + (number % 2)[:, None])
  half = jnp.tile(box[..., 2:] / 2, (1, 1, 2))
  moved = jnp.clip(boxes.corners(box) + box_noise * part * half, 0, 1)
  group = jnp.where(there, number // 2 + 1, -1)
  # Edges that were moved past each other leave nothing between them.
  found = boxes.centres(moved)
  return label, jnp.maximum(found, 0.0), group


def by_group(
  logits: jax.Array, predicted: jax.Array, targets: Targets, groups: int, *, nothing: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What noisy queries say, each group of each layer as a layer, and the query of each object.

  Args:
    logits: float32 (batch, layers, queries, outputs), in the order of `noisy`.
    predicted: boxes, float32 (batch, layers, queries, 4).
    targets: objects.
    groups: how many there are.
    nothing: whether the last output is no object.

  Returns:
    As `matching.losses` takes them: (batch, layers * groups, 2 * targets, ...) twice, and int32
    (batch, layers * groups, targets). Queries that are not there are sure of nothing.
  """
  batch, layers, _, outputs = logits.shape
  count = targets.label.shape[1]
  there = jnp.tile(targets.there, (1, 2))[:, None, :, None]
  quiet = jnp.full(outputs, -_SURE)
  quiet = quiet.at[-1].set(_SURE) if nothing else quiet
  cut = lambda x: x.reshape(  # noqa: E731
    batch,
    layers * groups,
    2 * count,
    x.shape[-1],
    out_sharding=sharding.spec('batch', None, None, None),
  )
  place = jnp.where(targets.there, jnp.arange(count), -1)[:, None]
  place = place + jnp.zeros((1, layers * groups, 1), jnp.int32)
  return jnp.where(there, cut(logits), quiet), cut(predicted), place
