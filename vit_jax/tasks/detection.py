"""Objects of an image: a box and a class for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.costs.step import Pass
from vit_jax.data.examples import Example
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Instances
from vit_jax.data.views import Placement, View
from vit_jax.tasks import boxes, denoising, matching
from vit_jax.tasks.images import Images
from vit_jax.tasks.task import Batch, Context, Fields, Prediction, Seen, Sums, picture_of

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.draw import pictures
  from vit_jax.models import detr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(Images):
  """Set prediction: each object is that of one query, and all other queries say that nothing is.

  For models whose queries say a class and a box each. Which query is taken for which object is what
  costs least in all (Carion et al. 2020); the weights are those of costs and of losses. Classes
  have a focal loss or, in a model with a logit of no object, a cross-entropy. Every loss is divided
  by the number of objects in the whole batch, the cross-entropy by the sum of its weights.

  Attributes:
    most: objects of an image that there is room for; of a model with fewer queries so many. Where
      there are more, the largest in view are learned.
    class_weight: of classes: 2 with a focal loss, 1 with a cross-entropy in DETR.
    box_weight: of the distance of boxes along centre, width and height.
    overlap_weight: of 1 - the generalised intersection over union.
    alpha, gamma: of the focal loss (Lin et al. 2017, equation 5).
    nothing: of queries without an object in the cross-entropy.
    auxiliary: of the losses of each layer before the last.
    dense: of the losses of heads that say which object is at the place of a patch, where a model
      has them: of the smallest box around its middle.
    denoising: groups of queries that training adds to a decoder with anchors, each with all objects
      in other places, near and too far, to say what they are; see `tasks.denoising`.
    label_noise: twice the share of them that begin with a class drawn at random.
    box_noise: by how many halves of a side edges of the near ones are moved at most.
    top: how many boxes of an image are given; the others count as not predicted.
    threshold: of the score from which a box is shown to people.
  """

  most: int = 100
  class_weight: float = 2.0
  box_weight: float = 5.0
  overlap_weight: float = 2.0
  alpha: float = 0.25
  gamma: float = 2.0
  nothing: float = 0.1
  auxiliary: float = 1.0
  dense: float = 1.0
  denoising: int = 0
  label_noise: float = 0.5
  box_noise: float = 1.0
  top: int = 100
  threshold: float = 0.3
  classed = 'boxes'
  traced = (
    'class_weight', 'box_weight', 'overlap_weight', 'alpha', 'gamma', 'nothing', 'auxiliary',
    'dense',
  )  # fmt: skip

  def __post_init__(self):
    super().__post_init__()
    for name in ('most', 'top'):
      if getattr(self, name) < 1:
        raise RunError(f'task.{name}={getattr(self, name)} must be at least 1')
    for name in (*self.traced, 'denoising', 'label_noise', 'box_noise'):
      if not getattr(self, name) >= 0:
        raise RunError(f'task.{name}={getattr(self, name)} must not be negative')
    for name in ('alpha', 'threshold'):
      if not 0 <= getattr(self, name) <= 1:
        raise RunError(f'task.{name}={getattr(self, name)} must be from 0 to 1')

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: logits for each class of the boxes."""
    says = getattr(model, 'says', ())
    if 'boxes' not in says:
      raise RunError(
        f'task.name=detection needs a model whose queries say boxes, such as '
        f'model.name=token_detector, not {model.kind}'
      )
    if 'masks' in says:
      raise RunError(
        'task.name=detection has no use for masks: model.decoder.masks=False, or '
        'task.name=instances'
      )
    classes = self.count_classes(model, fields, 'the boxes have', 'cat,dog')
    model = dataclasses.replace(model, num_classes=classes)
    if self.denoising:
      if getattr(getattr(model, 'decoder', None), 'anchors', None) in (None, 'none'):
        raise RunError(
          f'task.denoising={self.denoising}: noisy boxes are anchors, which model.name=detr has '
          'with model.decoder.anchors=learned or tokens'
        )
      decoder = dataclasses.replace(model.decoder, denoising=True)
      model = dataclasses.replace(model, decoder=decoder)
    return super().adapt(model.resolve(), fields)

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: noisy queries are more of them."""
    if not self.denoising:
      return super().passes(model)
    more = 2 * self.denoising * min(self.most, model.queries)
    decoder = dataclasses.replace(model.decoder, queries=model.queries + more)
    return [Pass(dataclasses.replace(model, decoder=decoder))]

  def augment(self, batch: Batch, key: jax.Array | None, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`: in training with what is random of noisy queries, if there are some."""
    if key is None or not self.denoising:
      return super().augment(batch, key, hyper)
    key, other = jax.random.split(key)
    images, objects = batch['boxes_label'].shape
    draws = denoising.drawn(other, images, 2 * self.denoising * objects)
    found = {f'noise_{name}': value for name, value in draws._asdict().items()}
    return {**super().augment(batch, key, hyper), **found}

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """See `Task`."""
    how = 'cross-entropy' if model.nothing else 'focal loss'
    room = min(self.most, model.queries)
    own = (
      f'{model.queries} queries, {how}; room for {room} objects in an image (task.most={self.most})'
      ': of more the largest are learned, and left_out counts the others'
    )
    return [own, *super().notes(model, fields)]

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    del train
    column = Instances(model.num_classes, min(self.most, model.queries))
    return self.columns(model, fields, view, column)

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`: examples, objects, and both together, which is 0 of neither."""
    examples, objects = batch['mask'].sum(), matching.Targets.of(batch).there.sum()
    return {'examples': examples, 'boxes': objects, 'both': examples + objects}

  @property
  def weights(self) -> matching.Weights:
    """Of the terms of costs and losses."""
    return matching.Weights(
      self.class_weight, self.box_weight, self.overlap_weight, self.alpha, self.gamma, self.nothing
    )

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The weighted sum of the terms of all layers; reported are those of the last.

    `iou` is the mean overlap of objects with the boxes of their queries, `accuracy` the share of
    them whose class is right; `left_out` are objects of an example that there is no room for.
    """
    targets, extra = matching.Targets.of(part), boxes.framed(part)
    if denoises := 'noise_flip' in part:
      draws = denoising.Draws(*(part[f'noise_{name}'] for name in denoising.Draws._fields))
      extra['noisy'] = detr.Noisy(*denoising.noisy(
        targets, self.denoising, draws, model.config.num_classes, self.label_noise, self.box_noise
      ))  # fmt: skip
    said = model(part['image'], key=ctx.noise, **extra)
    nothing, weights = model.config.nothing, self.weights
    logits, predicted = said['logits'], said['boxes']
    place = matching.matched(logits, predicted, targets, weights, nothing=nothing)
    found = matching.losses(logits, predicted, targets, place, weights, nothing=nothing)
    total, examples = ctx.totals['boxes'], ctx.totals['examples']
    of_classes = total
    if nothing:
      objects = ctx.totals['both'] - examples  # of no object total is 1
      of_classes = matching.class_total(logits.shape[2], examples, objects, weights)
    terms = found.classes / of_classes, found.distance / total, found.overlap / total
    first, second, third = terms
    each = weights.classes * first + weights.distance * second + weights.overlap * third
    loss = each[-1] + self.auxiliary * each[:-1].sum()
    shared = lambda value: (value * examples, 'examples')  # noqa: E731
    sums = {
      'classes': shared(first[-1]), 'distance': (found.distance[-1], 'boxes'),
      'overlap': (found.overlap[-1], 'boxes'), 'iou': (found.iou[-1], 'boxes'),
      'accuracy': (found.right[-1], 'boxes'),
      'left_out': ((part['boxes_left_out'] * part['mask']).sum(), 'examples'),
    }  # fmt: skip
    if 'dense_logits' in said:
      dense = matching.dense_loss(said, targets, weights, nothing=nothing) / total
      loss = loss + self.dense * dense
      sums['dense'] = shared(dense)
    if denoises:
      found = self._denoised(said, targets, nothing=nothing) / total
      loss = loss + found
      sums['denoising'] = shared(found)
    return loss, {'loss': shared(loss), **sums}, {}

  def _denoised(
    self, said: Mapping[str, jax.Array], targets: matching.Targets, *, nothing: bool
  ) -> jax.Array:
    """The weighted sum of the losses of noisy queries, of all layers; the mean over groups."""
    weights = self.weights
    logits, predicted, place = denoising.by_group(
      said['noisy_logits'], said['noisy_boxes'], targets, self.denoising, nothing=nothing
    )
    found = matching.losses(logits, predicted, targets, place, weights, nothing=nothing)
    # Of each object the weights of a cross-entropy are that of a class and of nothing, far off.
    of_classes = found.classes / (1 + weights.nothing if nothing else 1)
    each = weights.classes * of_classes + weights.distance * found.distance
    return (each + weights.overlap * found.overlap).sum() / self.denoising

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """The best boxes of each image, at most `top` of them, the best first.

    With a sigmoid these are pairs of query and class, of which a query may have several (Zhu et al.
    2021); with a softmax each query has its likeliest class (Carion et al. 2020).

    Returns:
      'score' float32 (batch, boxes), 'label' int32 (batch, boxes), and 'box' float32 (batch, boxes,
      4): left, top, right and bottom as shares of the view.
    """
    nothing = model.config.nothing
    said = model(batch['image'], **boxes.framed(batch))
    logits = said['logits'][:, -1]
    predicted = boxes.in_view(boxes.corners(said['boxes'][:, -1]), batch.get('extent'))
    queries, classes = logits.shape[1], logits.shape[2] - nothing
    if nothing:
      score, label = jax.nn.softmax(logits)[..., :-1].max(-1), jnp.argmax(logits[..., :-1], -1)
      best, at = _largest(score, min(self.top, queries))
      return {'score': best, 'label': _at(label, at), 'box': _at(predicted, at)}
    score = jax.nn.sigmoid(logits)
    flat = score.reshape(len(score), queries * classes)
    best, at = _largest(flat, min(self.top, queries * classes))
    return {
      'score': best, 'label': (at % classes).astype(jnp.int32), 'box': _at(predicted, at // classes)
    }  # fmt: skip

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: the boxes of the image, in its pixels, with their scores."""
    names = seen.fields['boxes'].names
    score, label, corners = in_image(outputs, seen.rows.placement(example))
    kept = np.flatnonzero(score >= self.threshold)
    objects = [
      {
        'class': names[label[i]] if label[i] < len(names) else f'class {label[i]}',
        'score': round(float(score[i]), 4), 'box': [round(float(x), 2) for x in corners[i]],
      }
      for i in kept
    ]  # fmt: skip
    return Prediction({'objects': objects})

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    objects = prediction.facts['objects']
    if not objects:
      return [f'nothing above {self.threshold:.0%}']
    place = lambda box: ' '.join(f'{x:.0f}' for x in box)  # noqa: E731
    return [f'{each["score"]:6.1%}  {each["class"]}  {place(each["box"])}' for each in objects]

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`: what is predicted, and beside it what is there, where that is known."""
    picture = picture_of(example)
    by = pictures.scale(*picture.shape[:2])
    large, names = pictures.resized(picture, by), seen.fields['boxes'].names
    objects = prediction.facts['objects']
    called = [f'{each["class"]} {each["score"]:.0%}' for each in objects]
    places = np.array([each['box'] for each in objects]).reshape(-1, 4) * by
    colour = lambda name: pictures.colour(names.index(name) if name in names else 0)  # noqa: E731
    inks = [colour(each['class']) for each in objects]
    title = 'predicted' if objects else self.lines(prediction)[0]
    drawn = [(title, pictures.boxes(large, places, called, inks))]
    if 'boxes' in example:
      from vit_jax.data import masks

      truth = masks.absolute(example['boxes'], picture.shape[:2])
      inks = [pictures.colour(int(label)) for label in truth.label]
      called = [
        (names[label] if label < len(names) else f'class {label}') + ', crowd' * bool(crowd)
        for label, crowd in zip(truth.label, truth.crowd, strict=True)
      ]
      drawn.append(('true', pictures.boxes(large, truth.corners * by, called, inks)))
    return pictures.beside(
      *(pictures.captioned(each, [(title, pictures.INK)]) for title, each in drawn)
    )


def in_image(
  outputs: Mapping[str, np.ndarray], placement: Placement
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The predicted boxes of an image: scores, classes, and corners in its pixels, float64 (n, 4).

  Cut at its edge; what is then without width or height is left out.
  """
  size = np.array([*placement.size[::-1]] * 2)
  corners = placement.back_boxes(outputs['box'].astype(np.float64) * size)
  kept = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(1))
  return outputs['score'][kept], outputs['label'][kept], corners[kept]


def _largest(score: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """The largest numbers of each row and where they are, the largest first: (batch, count)."""
  return jax.vmap(lambda row: jax.lax.top_k(row, count))(score)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
  """x[i, index[i]] for each i."""
  return jax.vmap(lambda row, at: row[at])(x, index)
