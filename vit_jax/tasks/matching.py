"""Set prediction: which query says which object, and what is wrong with what queries say.

Every layer of a model is matched anew, all of them in one call; layers before the last are there to
learn from (Carion et al. 2020, section 3.2, 'auxiliary decoding losses').
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epy

from vit_jax.tasks import boxes

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import assignment, sharding


# How often an object counts at most in `dense_loss`.
PLACES = 4


class Targets(NamedTuple):
  """The objects of the images of a batch.

  Attributes:
    boxes: centre x, centre y, width and height as shares of the image, float32 (batch, targets, 4).
    label: classes, int32 (batch, targets).
    there: which of them are no padding, bool (batch, targets).
    images: which images are no padding, float32 (batch,).
  """

  boxes: Any
  label: Any
  there: Any
  images: Any

  @classmethod
  def of(cls, batch: Mapping[str, Any]) -> Targets:
    """Those of a batch with the arrays of `data.rows.columns.Instances`."""
    return cls.around(batch, 'boxes', batch['boxes'])

  @classmethod
  def of_segments(cls, batch: Mapping[str, Any]) -> Targets:
    """Those around the segments of a batch; see `data.rows.columns.Segments`."""
    return cls.around(batch, 'segments', batch['segments_box'])

  @classmethod
  def around(cls, batch: Mapping[str, Any], name: str, corners: Any) -> Targets:
    """Those in boxes of a batch, by the classes of what has a name there."""
    there = batch[f'{name}_known'] * batch['mask'][:, None] > 0
    found = boxes.in_image(corners, batch.get('extent'))
    return cls(boxes.centres(found), batch[f'{name}_label'], there, batch['mask'])


class Weights(NamedTuple):
  """Of the terms of costs and of losses.

  Attributes:
    classes, distance, overlap: of classes, of the distance of boxes along their four numbers, and
      of 1 - their generalised overlap.
    alpha, gamma: of the focal loss (Lin et al. 2017, equation 5).
    nothing: of queries without an object in the mean of a softmax ('eos_coef').
  """

  classes: Any
  distance: Any
  overlap: Any
  alpha: Any = 0.25
  gamma: Any = 2.0
  nothing: Any = 0.1


class Losses(NamedTuple):
  """Sums over the batch, without weights, and not divided by anything: float32 (layers,) each.

  Attributes:
    classes: of the focal loss over queries and classes, or of the weighted cross-entropy.
    distance, overlap: over objects that have a query.
    right: how many of them have the right class as the likeliest one.
    iou: of them, added up.
  """

  classes: Any
  distance: Any
  overlap: Any
  right: Any
  iou: Any


def class_costs(
  logits: jax.Array, label: jax.Array, weights: Weights, *, nothing: bool
) -> jax.Array:
  """What it costs to take a query for an object, by its class.

  Args:
    logits: float32 (batch, layers, queries, outputs).
    label: classes of objects, int32 (batch, targets).
    weights: of which alpha and gamma are needed.
    nothing: whether the last output is no object and all are of a softmax: then it is minus the
      probability of the class. Else it is the focal loss of saying the class, minus the one of not
      saying it (Zhu et al. 2021, appendix A.4; the code of Deformable DETR).

  Returns:
    float32 (batch, layers, targets, queries).
  """
  if nothing:
    each = -jax.nn.softmax(logits)
  else:
    each = _focal(logits, 1.0, weights) - _focal(logits, 0.0, weights)
  return jax.vmap(lambda rows, index: jnp.moveaxis(rows[..., index], -1, -2))(each, label)


def costs(
  logits: jax.Array, predicted: jax.Array, targets: Targets, weights: Weights, *, nothing: bool
) -> jax.Array:
  """What it costs to take each query for each object (Carion et al. 2020, section 3.1).

  Args:
    logits: as for `class_costs`.
    predicted: boxes as those of `Targets`, float32 (batch, layers, queries, 4).
    targets: objects.
    weights: of the terms.
    nothing: as for `class_costs`.

  Returns:
    float32 (batch, layers, targets, queries).
  """
  wanted, predicted = targets.boxes[:, None, :, None], predicted[:, :, None]
  apart = jnp.abs(predicted - wanted).sum(-1)
  _, overlap = boxes.overlaps(boxes.corners(predicted), boxes.corners(wanted))
  found = weights.distance * apart - weights.overlap * overlap
  return found + weights.classes * class_costs(logits, targets.label, weights, nothing=nothing)


def matched(
  logits: jax.Array, predicted: jax.Array, targets: Targets, weights: Weights, *, nothing: bool
) -> jax.Array:
  """The query of each object in each layer, int32 (batch, layers, targets); -1 for none.

  Arguments as for `costs`. Nothing is differentiated.
  """
  logits, predicted = jax.lax.stop_gradient((logits, predicted))
  cost = costs(logits, predicted, targets, weights, nothing=nothing)
  return assignment.assigned(cost, targets.there[:, None])


def losses(
  logits: jax.Array, predicted: jax.Array, targets: Targets, place: jax.Array, weights: Weights, *,
  nothing: bool,
) -> Losses:  # fmt: skip
  """What is wrong with what queries say, given which object each of them stands for.

  Args:
    logits, predicted, targets, weights, nothing: as for `costs`.
    place: the query of each object, as `matched` gives it.
  """
  chosen = place >= 0
  count = lambda x: jnp.where(chosen, x, 0).sum((0, 2))  # noqa: E731
  wanted, own = targets.boxes[:, None], picked(predicted, place)
  iou, overlap = boxes.overlaps(boxes.corners(own), boxes.corners(wanted))
  label = wanted_classes(place, targets.label, logits.shape[2])
  of_queries = class_losses(logits, label, weights, nothing=nothing)
  objects = logits[..., :-1] if nothing else logits
  likeliest = picked(jnp.argmax(objects, -1), place)
  return Losses(
    (of_queries * targets.images[:, None, None]).sum((0, 2)),
    count(jnp.abs(own - wanted).sum(-1)), count(1 - overlap),
    count(likeliest == targets.label[:, None]), count(iou),
  )  # fmt: skip


def class_losses(
  logits: jax.Array, label: jax.Array, weights: Weights, *, nothing: bool
) -> jax.Array:
  """The loss of each query by its class: float32 (batch, layers, queries).

  Args:
    logits, weights, nothing: as for `class_costs`.
    label: the class that each query should say, int32 (batch, layers, queries), -1 for no object.
  """
  if nothing:
    last = logits.shape[-1] - 1
    said = jax.nn.log_softmax(logits)
    chosen = jax.nn.one_hot(jnp.where(label < 0, last, label), last + 1)
    return -(said * chosen).sum(-1) * jnp.where(label < 0, weights.nothing, 1.0)
  return _focal(logits, jax.nn.one_hot(label, logits.shape[-1]), weights).sum(-1)


def dense_loss(
  said: Mapping[str, jax.Array], targets: Targets, weights: Weights, *, nothing: bool
) -> jax.Array:
  """What is wrong with heads that say which object is at a place: the smallest box around it.

  Places in no box should say that nothing is. An object counts as often as there are places in it,
  but no more than `PLACES` times: where patches are small there are very many.

  Args:
    said: 'dense_logits' (batch, places, outputs), 'dense_boxes' (batch, places, 4) and
      'dense_points', x and y of the places, (batch, places, 2).
    targets, weights, nothing: as for `costs`.

  Returns:
    The sum over the batch of all terms, weighted, and not divided by anything: float32 ().
  """
  logits, points = said['dense_logits'], said['dense_points']
  around = boxes.inside(points, boxes.corners(targets.boxes)) & targets.there[..., None]
  area = jnp.where(around, targets.boxes[..., 2:].prod(-1)[..., None], jnp.inf)
  smallest = jnp.argmin(area, axis=1)
  own = around & (smallest[:, None] == jnp.arange(area.shape[1])[:, None])
  there = own.any(1)
  take = jax.vmap(lambda rows, index: rows[index])
  share = jnp.minimum(1, PLACES / jnp.maximum(take(own.sum(-1), smallest), 1))
  label = jnp.where(there, take(targets.label, smallest), -1)
  of_classes = class_losses(logits[:, None], label[:, None], weights, nothing=nothing)[:, 0]
  wanted = take(targets.boxes, smallest)
  _, overlap = boxes.overlaps(boxes.corners(said['dense_boxes']), boxes.corners(wanted))
  apart = jnp.abs(said['dense_boxes'] - wanted).sum(-1)
  of_boxes = weights.distance * apart + weights.overlap * (1 - overlap)
  of_classes = of_classes * jnp.where(there, share, 1) * targets.images[:, None]
  return (weights.classes * of_classes + of_boxes * share * there).sum()


def class_total(queries: int, examples: Any, objects: Any, weights: Weights) -> Any:
  """What the cross-entropies of a batch are divided by: the sum of the weights of its queries.

  Args:
    queries: of an example.
    examples: of the whole batch.
    objects: of the whole batch, each of which has a query.
    weights: of which `nothing` is needed.
  """
  return weights.nothing * (queries * examples - objects) + objects


def wanted_classes(place: jax.Array, label: jax.Array, queries: int) -> jax.Array:
  """The class that each query should say, int32 (batch, layers, queries); -1 for no object.

  Args:
    place: the query of each object, int (batch, layers, targets), -1 for none.
    label: of each object, int32 (batch, targets).
    queries: how many there are.
  """

  def one(place: jax.Array, label: jax.Array) -> jax.Array:
    at = jnp.where(place < 0, queries, place)
    return jnp.full(queries, -1, jnp.int32).at[at].set(label, mode='drop')

  many = jax.vmap(jax.vmap(one, in_axes=(0, None)))
  axes = ('batch', None, None)
  return sharding.per_shard(many, [axes, axes[:2]], axes)(place, label)


def picked(x: jax.Array, place: jax.Array) -> jax.Array:
  """Of what queries say, (batch, layers, queries, ...), that of each object: (..., targets, ...).

  Of objects without a query it is that of some other one.
  """
  take = lambda rows, index: rows[index]  # noqa: E731
  return jax.vmap(jax.vmap(take))(x, jnp.maximum(place, 0))


def _focal(logits: jax.Array, target: Any, weights: Weights) -> jax.Array:
  """-alpha_t (1 - p_t)^gamma log p_t of each logit; `target` is 0 or 1 (Lin et al. 2017, eq. 5)."""
  right = (2 * target - 1) * logits
  alpha = weights.alpha * target + (1 - weights.alpha) * (1 - target)
  miss = jnp.exp(weights.gamma * jax.nn.log_sigmoid(-right))
  return -alpha * miss * jax.nn.log_sigmoid(right)
