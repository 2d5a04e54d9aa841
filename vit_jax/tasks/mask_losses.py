"""What is wrong with masks that queries say, judged at points of the image or at all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from vit_jax.tasks import matching

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import assignment, positions, sharding


_ALPHA = 0.25  # of a focal loss, whose gamma is 2


class Targets(NamedTuple):
  """The segments of the images of a batch; see `data.rows.columns.Segments`.

  Attributes:
    segments: n + 1 where the segment n is, 0 where none is, int (batch, height, width).
    label: classes, int32 (batch, targets).
    there: which of them are no padding, bool (batch, targets).
    images: which images are no padding, float32 (batch,).
  """

  segments: Any
  label: Any
  there: Any
  images: Any

  @classmethod
  def of(cls, batch: Mapping[str, Any]) -> Targets:
    """Those of a batch."""
    there = batch['segments_known'] * batch['mask'][:, None] > 0
    return cls(batch['segments'], batch['segments_label'], there, batch['mask'])


class Weights(NamedTuple):
  """Of the terms of costs and of losses.

  Attributes:
    classes, mask, dice: of classes, of the cross-entropy of pixels, and of the overlap of masks.
    nothing: of queries without a segment in the mean over classes.
  """

  classes: Any
  mask: Any
  dice: Any
  nothing: Any


class Points(NamedTuple):
  """Where masks are looked at: x and y as shares of the image, float32 (..., points, 2).

  Attributes:
    match: to match: the same for all masks of a layer, (batch, layers, points, 2).
    tried: for the loss of each target, (batch, layers, targets, tried, 2), of which those count
      where a mask is least certain.
    more: that count in any case, (batch, layers, targets, more, 2).
    certain: how many of `tried` count; of `more` all do.
  """

  match: Any
  tried: Any
  more: Any
  certain: int


class Losses(NamedTuple):
  """Sums over the batch, without weights, and not divided by anything: float32 (layers,) each.

  Attributes:
    classes: of the weighted cross-entropy of queries.
    mask, dice: over segments that have a query: the mean cross-entropy of points, and what masks
      lack to overlap.
    right: how many of them have the right class as the likeliest one.
  """

  classes: Any
  mask: Any
  dice: Any
  right: Any


def drawn(
  keys: jax.Array, layers: int, targets: int, points: int, tried: float, certain: float
) -> Points:
  """Points for a batch: uniform ones, of each example by a key of its own.

  Args:
    keys: data of keys, uint32 (batch, ...).
    layers, targets: how many there are.
    points: that a loss is the mean of.
    tried: as a multiple of them, how many are looked at to find uncertain ones.
    certain: share of the points that are chosen so.
  """
  chosen = int(certain * points)

  def one(data: jax.Array) -> tuple[jax.Array, ...]:
    first, second, third = jax.random.split(jax.random.wrap_key_data(data), 3)
    return (
      jax.random.uniform(first, (layers, points, 2)),
      jax.random.uniform(second, (layers, targets, int(tried * points), 2)),
      jax.random.uniform(third, (layers, targets, points - chosen, 2)),
    )

  axes = [('batch', *(None,) * more) for more in (3, 4, 4)]
  run = sharding.per_shard(jax.vmap(one), [('batch', None)], tuple(axes))
  match, looked, more = run(keys)
  return Points(match, looked, more, chosen)


def sampled(masks: jax.Array, points: jax.Array) -> jax.Array:
  """Maps at points, bilinear between the centres of their cells, and 0 beyond the outermost ones.

  Args:
    masks: float32 (..., rows, columns).
    points: x and y as shares of the map, float32 (..., points, 2), of the same leading axes.

  Returns:
    float32 (..., points).
  """
  flat = masks.reshape(*masks.shape[:-2], -1)
  found = [
    _taken(flat, at) * weight for at, weight in _cells(points, masks.shape[-2], masks.shape[-1])
  ]
  return sum(found[1:], found[0])


def inside(segments: jax.Array, points: jax.Array, numbers: jax.Array) -> jax.Array:
  """What `sampled` gives of the masks of segments, without making these.

  Args:
    segments: of each pixel the number of its segment, int (batch, height, width).
    points: as shares of the image, float32 (batch, ..., points, 2).
    numbers: that are asked for, int, which broadcast to (batch, ..., points).
  """
  flat = segments.reshape(len(segments), -1, out_sharding=sharding.spec('batch', None))
  found = [
    jnp.where(_of_rows(flat, at) == numbers, weight, 0.0)
    for at, weight in _cells(points, *segments.shape[1:])
  ]
  return sum(found[1:], found[0])


def _cells(points: jax.Array, rows: int, columns: int) -> list[tuple[jax.Array, jax.Array]]:
  """The four cells around each point: their number in a map, row by row, and their weight."""
  place = points * jnp.array([columns, rows], jnp.float32) - 0.5
  corner = jnp.floor(place)
  share = place - corner
  found = []
  for right in (0, 1):
    for down in (0, 1):
      x, y = corner[..., 0] + right, corner[..., 1] + down
      across = share[..., 0] if right else 1 - share[..., 0]
      along = share[..., 1] if down else 1 - share[..., 1]
      there = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
      at = jnp.clip(y, 0, rows - 1) * columns + jnp.clip(x, 0, columns - 1)
      found.append((at.astype(jnp.int32), jnp.where(there, across * along, 0.0)))
  return found


def _taken(x: jax.Array, at: jax.Array) -> jax.Array:
  """x[..., at[...]] of the last axis, the others being the same."""
  take: Any = lambda row, index: row[index]  # noqa: E731
  for _ in range(x.ndim - 1):
    take = jax.vmap(take)
  return take(x, at)


def _of_rows(x: jax.Array, at: jax.Array) -> jax.Array:
  """x[b, at[b, ...]] of each b."""
  return jax.vmap(lambda row, index: row[index])(x, at)


def matched(
  logits: jax.Array, masks: jax.Array, targets: Targets, weights: Weights, points: Points | None
) -> jax.Array:
  """The query of each segment in each layer, int32 (batch, layers, targets); -1 for none.

  The cost is minus the probability of its class, the mean cross-entropy of its mask at some points,
  and what the mask lacks to overlap there (Cheng et al. 2022, section 4.1). Nothing is
  differentiated.

  Args:
    logits: float32 (batch, layers, queries, classes + 1), the last class nothing.
    masks: logits, float32 (batch, layers, queries, rows, columns).
    targets: segments.
    weights: of the terms.
    points: to look at; None for all cells of the masks.
  """
  logits, masks = jax.lax.stop_gradient((logits, masks))
  if points is None:
    said = masks.reshape(*masks.shape[:3], -1, out_sharding=_out(4))
    wanted = _on_grid(targets, masks.shape[-2:])
  else:
    near = jax.vmap(sampled, (2, None), 2)
    said = near(masks, points.match)
    numbers = jnp.arange(targets.label.shape[1])[:, None] + 1
    wanted = inside(targets.segments, points.match[:, :, None], numbers)
  cost = weights.mask * _entropies(said, wanted) + weights.dice * _overlaps(said, wanted)
  classes = matching.class_costs(logits, targets.label, _softmax(weights), nothing=True)
  return assignment.assigned(cost + weights.classes * classes, targets.there[:, None])


def _entropies(said: jax.Array, wanted: jax.Array) -> jax.Array:
  """Mean cross-entropies of every query (..., queries, n) with every target (..., targets, n)."""
  both = _products(wanted, said)
  return jax.nn.softplus(said).mean(-1)[..., None, :] - both / said.shape[-1]


def _overlaps(said: jax.Array, wanted: jax.Array) -> jax.Array:
  """The same of what they lack to overlap; see `dice`."""
  share = jax.nn.sigmoid(said)
  whole = share.sum(-1)[..., None, :] + wanted.sum(-1)[..., None]
  return 1 - (2 * _products(wanted, share) + 1) / (whole + 1)


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
  out = 'bltn,blqn->bltq'
  return jnp.einsum(out, a, b, precision='highest', out_sharding=_out(4))


def _on_grid(targets: Targets, grid: tuple[int, ...]) -> jax.Array:
  """What share of each cell is of each segment: float32 (batch, 1, targets, cells)."""
  batch, height, width = targets.segments.shape
  rows, columns = height // grid[0], width // grid[1]
  blocks = targets.segments.reshape(batch, grid[0], rows, width, out_sharding=_out(4))
  blocks = blocks.reshape(batch, grid[0], rows, grid[1], columns, out_sharding=_out(5))
  numbers = jnp.arange(targets.label.shape[1])[:, None, None, None, None] + 1
  share = (blocks[:, None] == numbers).mean((3, 5), dtype=jnp.float32)
  return share.reshape(batch, 1, len(numbers), -1, out_sharding=_out(4))


def losses(
  logits: jax.Array, masks: jax.Array, targets: Targets, place: jax.Array, weights: Weights,
  points: Points | None,
) -> Losses:  # fmt: skip
  """What is wrong with what queries say, given which segment each of them stands for.

  Args:
    logits, masks, targets, weights, points: as for `matched`.
    place: the query of each segment, as it gives it.
  """
  chosen = place >= 0
  count = lambda x: jnp.where(chosen, x, 0).sum((0, 2))  # noqa: E731
  own = matching.picked(masks, place)
  if points is None:
    said = own.reshape(*own.shape[:3], -1, out_sharding=_out(4))
    wanted = _on_grid(targets, masks.shape[-2:])
  else:
    said, wanted = _at_points(own, targets, points)
  label = matching.wanted_classes(place, targets.label, logits.shape[2])
  of_queries = matching.class_losses(logits, label, _softmax(weights), nothing=True)
  likeliest = matching.picked(jnp.argmax(logits[..., :-1], -1), place)
  return Losses(
    (of_queries * targets.images[:, None, None]).sum((0, 2)),
    count((jax.nn.softplus(said) - said * wanted).mean(-1)), count(dice(said, wanted)),
    count(likeliest == targets.label[:, None]),
  )  # fmt: skip


def focal_losses(
  masks: jax.Array, targets: Targets, place: jax.Array, points: Points | None
) -> tuple[jax.Array, jax.Array]:
  """What is wrong with masks, as in DETR (Carion et al. 2020, section 4.4).

  Args:
    masks: logits, float32 (batch, layers, queries, rows, columns).
    targets: segments.
    place: the query of each of them in each layer, int (batch, layers, targets), -1 for none.
    points: to look at; None for all pixels of the image, to which masks are enlarged.

  Returns:
    Sums over segments that have a query, float32 (layers,) each: the mean focal loss (Lin et al.
    2017), and what masks lack to overlap.
  """
  own = matching.picked(masks, place)
  if points is None:
    said, wanted = _at_pixels(own, targets)
  else:
    said, wanted = _at_points(own, targets, points)
  count = lambda x: jnp.where(place >= 0, x, 0).sum((0, 2))  # noqa: E731
  return count(focal(said, wanted).mean(-1)), count(dice(said, wanted))


def _at_points(masks: jax.Array, targets: Targets, points: Points) -> tuple[jax.Array, jax.Array]:
  """Masks of targets, (batch, layers, targets, rows, columns), at points: said, and wanted."""
  where = _uncertain(masks, points)
  numbers = jnp.arange(targets.label.shape[1])[:, None] + 1
  return sampled(masks, where), inside(targets.segments, where, numbers)


def _at_pixels(masks: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
  """The same at all pixels of the image."""
  batch, *size = targets.segments.shape
  rows, columns = (
    positions.resize_weights(np.arange(new), new, old, 'bilinear')
    for new, old in zip(size, masks.shape[-2:], strict=True)
  )
  tall = jnp.einsum('Hh,blthw->bltHw', rows, masks, precision='highest', out_sharding=_out(5))
  said = jnp.einsum('Ww,bltHw->bltHW', columns, tall, precision='highest', out_sharding=_out(5))
  said = said.reshape(*said.shape[:3], -1, out_sharding=_out(4))
  numbers = jnp.arange(targets.label.shape[1])[:, None] + 1
  flat = targets.segments.reshape(batch, 1, 1, -1, out_sharding=_out(4))
  return said, (flat == numbers).astype(jnp.float32)


def _uncertain(masks: jax.Array, points: Points) -> jax.Array:
  """Of the points that are tried those where a mask is nearest to 0, and the others behind them.

  As in PointRend (Kirillov et al. 2020, section 4.2, 'point selection for training').
  """
  masks = jax.lax.stop_gradient(masks)
  near = -jnp.abs(sampled(masks, points.tried))
  _, at = jax.lax.top_k(near, points.certain)
  chosen = jax.vmap(jax.vmap(jax.vmap(lambda rows, index: rows[index])))(points.tried, at)
  return jnp.concatenate([chosen, points.more], axis=-2)


def dice(said: jax.Array, wanted: jax.Array) -> jax.Array:
  """1 - (2 |A and B| + 1) / (|A| + |B| + 1) of masks (Milletari et al. 2016): (..., n) -> (...).

  Args:
    said: logits.
    wanted: from 0 to 1.
  """
  share = jax.nn.sigmoid(said)
  return 1 - (2 * (share * wanted).sum(-1) + 1) / (share.sum(-1) + wanted.sum(-1) + 1)


def focal(said: jax.Array, wanted: jax.Array) -> jax.Array:
  """The focal loss (Lin et al. 2017, equation 5) of each place of masks, with the numbers of DETR.

  Args:
    said: logits.
    wanted: from 0 to 1.
  """
  share = jax.nn.sigmoid(said)
  miss = share + wanted - 2 * share * wanted
  alpha = _ALPHA * wanted + (1 - _ALPHA) * (1 - wanted)
  return alpha * jnp.square(miss) * (jax.nn.softplus(said) - said * wanted)


def of_pixels(logits: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of the class of each pixel with what its cell says, where it is of a segment.

  Args:
    logits: float32 (batch, rows, columns, classes).
    targets: segments.

  Returns:
    Sums over the batch: of the loss, and of the pixels.
  """
  batch, rows, columns, _ = logits.shape
  _, height, width = targets.segments.shape
  label = jnp.pad(targets.label, ((0, 0), (1, 0)))
  numbers = jnp.where(targets.images[:, None, None] > 0, targets.segments, 0).astype(jnp.int32)
  numbers = numbers.reshape(batch, rows, height // rows, width, out_sharding=_out(4))
  numbers = numbers.reshape(
    batch, rows, height // rows, columns, width // columns, out_sharding=_out(5)
  ).swapaxes(2, 3)
  said = jax.nn.log_softmax(logits)
  wanted = _of_rows(label, numbers)
  own = _taken(said, wanted.reshape(*wanted.shape[:3], -1, out_sharding=_out(4)))
  there = (numbers > 0).astype(jnp.float32)
  return -(own * there.reshape(own.shape, out_sharding=_out(4))).sum(), there.sum()


def _softmax(weights: Weights) -> matching.Weights:
  """As `matching` takes them."""
  return matching.Weights(weights.classes, 0.0, 0.0, nothing=weights.nothing)


def _out(ndim: int) -> Any:
  return sharding.spec('batch', *(None,) * (ndim - 1))
