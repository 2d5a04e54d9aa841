"""Boxes on the devices: two ways to write them, and how much of each other they cover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epy

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

# Areas, as shares of an image, that nothing is divided by less than: of boxes without width or
# height values and gradients are finite.
_LEAST = 1e-9


def corners(boxes: jax.Array) -> jax.Array:
  """Centre x, centre y, width and height -> left, top, right and bottom: (..., 4) both."""
  centre, half = boxes[..., :2], boxes[..., 2:] / 2
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def centres(boxes: jax.Array) -> jax.Array:
  """The inverse of `corners`."""
  low, high = boxes[..., :2], boxes[..., 2:]
  return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def in_image(boxes: jax.Array, extent: jax.Array | None) -> jax.Array:
  """Boxes as shares of a view, (batch, n, 4), as shares of what is image in it.

  Args:
    boxes: of points as well as of centres and sizes.
    extent: which share of the height and of the width is image, from the top and the left, (batch,
      2); None: all.
  """
  return boxes if extent is None else boxes / _sides(extent)


def in_view(boxes: jax.Array, extent: jax.Array | None) -> jax.Array:
  """The inverse of `in_image`."""
  return boxes if extent is None else boxes * _sides(extent)


def framed(batch: Mapping[str, Any]) -> dict[str, Any]:
  """What models that say boxes are told of frames that images do not fill, if these do not."""
  return {'extent': batch['extent']} if 'extent' in batch else {}


def _sides(extent: jax.Array) -> jax.Array:
  return jnp.tile(extent[:, ::-1], (1, 2))[:, None]


def overlaps(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Intersection over union, and the generalised one (Rezatofighi et al. 2019, algorithm 1).

  The latter is iou - (hull - union) / hull, where the hull is the smallest box around both: from -1
  on, for boxes far apart, to 1, and with a gradient where boxes do not touch.

  Args:
    a, b: left, top, right and bottom, right >= left and bottom >= top, as shares of an image:
      float32 (..., 4), of shapes that broadcast to each other.

  Returns:
    Both, float32 (...). What has no area shares nothing: 0, of two such boxes in one place, too.
  """
  area = lambda box: (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])  # noqa: E731
  sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
  sides = jnp.maximum(sides, 0)
  both = sides[..., 0] * sides[..., 1]
  union = area(a) + area(b) - both
  sides = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
  hull = sides[..., 0] * sides[..., 1]
  iou = both / jnp.maximum(union, _LEAST)
  return iou, iou - (hull - union) / jnp.maximum(hull, _LEAST)


def inside(points: jax.Array, boxes: jax.Array) -> jax.Array:
  """Which points are in which boxes: (..., n, 2) and corners (..., m, 4) -> bool (..., m, n)."""
  points, boxes = points[..., None, :, :], boxes[..., :, None, :]
  return ((points >= boxes[..., :2]) & (points < boxes[..., 2:])).all(-1)
