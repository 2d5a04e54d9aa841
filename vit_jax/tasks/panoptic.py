"""A segment for every pixel: things one by one, and what is not counted by its class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.tasks.queries import Queries
from vit_jax.tasks.task import Batch, Fields, Prediction, Seen, picture_of

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import numpy as np

  from vit_jax.draw import pictures
  from vit_jax.tasks import merging

UNSET: Any = None
# Between the colours of two segments of one class.
_SHADE = 0.82


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panoptic(Queries):
  """Panoptic segments by queries; see `Queries` for the loss.

  Attributes:
    stuff: numbers of the classes that are not counted, all of which is one segment. Unset: those
      that the data say are stuff.
    threshold: probability of its class from which a query is a segment.
    overlap: of what a mask covers, the share that must be left by segments that are likelier there.
  """

  stuff: tuple[int, ...] = UNSET
  threshold: float = 0.8
  overlap: float = 0.8
  classed = 'panoptic'

  def __post_init__(self):
    super().__post_init__()
    for name in ('threshold', 'overlap'):
      if not 0 <= getattr(self, name) <= 1:
        raise RunError(f'task.{name}={getattr(self, name)} is a share, from 0 to 1')

  def settled(self, fields: Fields) -> Self:
    """See `Task`: which classes are stuff."""
    self = super().settled(fields)
    if self.stuff is not None or 'panoptic' not in fields:
      return self
    names, stuff = fields['panoptic'].names, fields['panoptic'].stuff
    return dataclasses.replace(self, stuff=tuple(names.index(name) for name in stuff))

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`."""
    model = super().adapt(model, fields)
    if wrong := [number for number in self.stuff or () if not 0 <= number < model.num_classes]:
      raise RunError(f'task.stuff has {wrong[0]}, and there are {model.num_classes} classes')
    return model

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """What queries say, merged.

    Returns:
      'segments' (batch, height, width), of each pixel the number of its query from 1 on, 0 where
      none is sure, uint8 or uint16; 'segments_label', int32, and 'segments_score', float32 (batch,
      queries).
    """
    return merging.panoptic(
      *self.answer(model, batch), model.config.image_size,
      stuff=self.stuff or (), threshold=self.threshold, overlap=self.overlap,
    )  # fmt: skip

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: segments, the largest first, and the map of their numbers in the image."""
    from vit_jax.data import masks

    ids = in_image(outputs, example, seen)
    names = seen.fields['panoptic'].names
    numbers, counts = np.unique(ids[ids > 0], return_counts=True)
    order = np.argsort(-counts, kind='stable')
    places = np.zeros(int(ids.max(initial=0)) + 1, np.int64)
    found = []
    for place, at in enumerate(order.tolist(), 1):
      query = int(numbers[at]) - 1
      places[query + 1] = place
      label = int(outputs['segments_label'][query])
      found.append({
        'number': place, 'class': _named(names, label),
        'score': float(outputs['segments_score'][query]),
        'share': float(counts[at] / ids.size),
        'box': [*masks.around(ids == query + 1)],
      })  # fmt: skip
    dtype = np.uint8 if len(found) <= 255 else np.uint16
    return Prediction({'segments': found}, {'segments': places[ids].astype(dtype)})

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    return [
      f'{each["share"]:6.1%}  {each["class"]} ({each["score"]:.2f})'
      for each in prediction.facts['segments']
    ]

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`: the image, the segments over it, the true ones if they are known, and classes."""
    from vit_jax.data import masks

    names, picture = seen.fields['panoptic'].names, picture_of(example)
    by = pictures.scale(*picture.shape[:2])
    labels = {
      each['number']: names.index(each['class']) if each['class'] in names else 0
      for each in prediction.facts['segments']
    }
    maps = [(prediction.arrays['segments'].astype(np.int64), labels)]
    if 'panoptic' in example:
      truth = example['panoptic']
      known = {number: label for number, (label, _) in truth.segments.items()}
      maps.append((masks.decode_panoptic(truth), known))
    drawn = [
      pictures.captioned(pictures.resized(_painted(picture, *each), by), [(title, pictures.INK)])
      for each, title in zip(maps, ('predicted', 'true'), strict=False)
    ]  # fmt: skip
    shown = sorted({label for _, known in maps for label in known.values()})
    legend = [(names[label], pictures.colour(label)) for label in shown]
    return pictures.beside(pictures.resized(picture, by), *drawn, pictures.legend(legend))


def in_image(outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> np.ndarray:
  """Of each pixel of an image the number of its query from 1 on, int64; 0 where there is none."""
  return seen.rows.placement(example).back_labels(outputs['segments'].astype(np.int64), 0)


def _named(names: tuple[str, ...], label: int) -> str:
  return names[label] if label < len(names) else f'class {label}'


def _painted(picture: np.ndarray, ids: np.ndarray, labels: Mapping[int, int]) -> np.ndarray:
  """Segments in the colours of their classes, each next one a shade darker, within pale lines."""
  tint, there, counts = np.zeros((*ids.shape, 3)), np.zeros(ids.shape, bool), {}
  for number, label in labels.items():
    mask = ids == number
    tint[mask] = np.array(pictures.colour(label)) * _SHADE ** counts.get(label, 0)
    counts[label] = counts.get(label, 0) + bool(mask.any())
    there |= mask
  mixed = np.where(there[..., None], picture * 0.4 + tint * 0.6, picture)
  return pictures.outlined(mixed, ids)
