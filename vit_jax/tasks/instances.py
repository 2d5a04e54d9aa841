"""Things one by one, each with a mask, a class and a score; masks may overlap."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.views import Placement
from vit_jax.tasks.queries import Queries
from vit_jax.tasks.task import Batch, Prediction, Seen, picture_of

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import numpy as np

  from vit_jax.draw import pictures
  from vit_jax.tasks import merging


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instances(Queries):
  """Masks of objects by queries; see `Queries` for the loss.

  Attributes:
    top: objects of an image that are predicted.
    threshold: score from which people are shown an object.
  """

  top: int = 100
  threshold: float = 0.5
  classed = 'masks'

  def __post_init__(self):
    super().__post_init__()
    if self.top < 1 or not 0 <= self.threshold <= 1:
      raise RunError(f'task.top={self.top} must be at least 1, threshold={self.threshold} a share')

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """The likeliest objects: see `merging.objects`."""
    return merging.objects(*self.answer(model, batch), model.config.image_size, most=self.top)

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: objects, the likeliest first, and a map of their numbers, the likelier on top."""
    from vit_jax.data.masks import around

    names = seen.fields['masks'].names
    score, label, masks = in_image(outputs, seen.rows.placement(example), self.threshold)
    numbers = np.zeros(masks.shape[1:], np.uint8)
    found = []
    for at, mask in reversed([*enumerate(masks)]):
      numbers[mask] = at + 1
      found.insert(0, {
        'number': at + 1, 'score': round(float(score[at]), 4),
        'class': names[label[at]] if label[at] < len(names) else f'class {label[at]}',
        'pixels': int(mask.sum()), 'box': [*around(mask)],
      })  # fmt: skip
    return Prediction({'objects': found}, {'objects': numbers})

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    objects = prediction.facts['objects']
    if not objects:
      return [f'nothing above {self.threshold:.0%}']
    return [f'{each["score"]:6.1%}  {each["class"]}  {each["pixels"]} pixels' for each in objects]

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`: what is predicted, and beside it what is there, where that is known."""
    from vit_jax.data import masks

    picture, names = picture_of(example), seen.fields['masks'].names
    by = pictures.scale(*picture.shape[:2])
    place = {name: at for at, name in enumerate(names)}
    numbers = prediction.arrays['objects'].astype(np.int64)
    objects = prediction.facts['objects']
    table = np.array([-1, *(place.get(each['class'], 0) for each in objects)])
    drawn = [('predicted', numbers, table)]
    if 'masks' in example:
      size = picture.shape[0], picture.shape[1]
      truth = np.zeros(size, np.int64)
      for at, shape in enumerate(example['masks'].shapes, 1):
        truth[masks.drawn(shape, size)] = at
      drawn.append(('true', truth, np.array([-1, *example['masks'].label])))
    shown = sorted({int(c) for _, ids, own in drawn for c in own[np.unique(ids)] if c >= 0})
    legend = [(names[c] if c < len(names) else f'class {c}', pictures.colour(c)) for c in shown]
    panels = [
      pictures.captioned(
        pictures.resized(pictures.outlined(pictures.regions(picture, own[ids]), ids), by),
        [(title, pictures.INK)],
      )
      for title, ids, own in drawn
    ]
    return pictures.beside(pictures.resized(picture, by), *panels, pictures.legend(legend))


def in_image(
  outputs: Mapping[str, np.ndarray], placement: Placement, least: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The predicted objects of an image: scores, the largest first, classes, and masks.

  Args:
    outputs: of `Instances.predict`, for this image.
    placement: of it.
    least: score of objects that are wanted.

  Returns:
    float32 (n,), int32 (n,), and bool (n, height, width); without objects that cover nothing.
  """
  score = outputs['score']
  wanted = np.flatnonzero(score >= least)
  wanted = wanted[np.argsort(-score[wanted], kind='stable')]
  bits: dict[int, np.ndarray] = {}
  masks = np.zeros((len(wanted), *placement.source), bool)
  for place, number in enumerate(wanted.tolist()):
    byte, bit = divmod(number, 8)
    if byte not in bits:  # of eight objects at once
      bits[byte] = placement.back_labels(outputs['masks'][..., byte], 0)
    masks[place] = bits[byte] >> (7 - bit) & 1
  kept = masks.any((1, 2))
  return score[wanted][kept], outputs['label'][wanted][kept], masks[kept]
