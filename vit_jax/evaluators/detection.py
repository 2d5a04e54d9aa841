"""How well objects are found, as COCO measures it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data import masks
from vit_jax.data.examples import Example
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores, Table
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax.numpy as jnp

  from vit_jax.tasks import boxes, detection

# The numbers of `COCOeval.stats` in their order, but those of recall by size.
STATS = ('ap', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large', 'ar1', 'ar10', 'ar100')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(Evaluator):
  """Average precision of boxes (Lin et al. 2014), by pycocotools, in the frame of the images.

  'ap' is the mean over overlaps from 0.5 to 0.95, over recalls and over the classes that occur;
  'ap50' and 'ap75' are of one overlap; 'ap_small' of objects of up to 32 x 32 pixels, 'ap_medium'
  up to 96 x 96, 'ap_large' of larger ones: by the area of the annotation; 'ar1', 'ar10' and 'ar100'
  are recalls by so many boxes of an image. What does not occur is left out. 'ar50' is the recall of
  100 boxes at an overlap of 0.5, 'ap50_any' the precision if classes were all one: both rise long
  before 'ap'. 'f1' is the best balance of precision and recall at an overlap of 0.5 that any
  threshold of the score gives, and 'threshold' is that one.
  """

  score = 'lack of overlap'
  of = ('boxes', 'boxes_known')

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: predicted boxes with scores and classes, and true ones."""
    placement = seen.rows.placement(example)
    score, label, corners = detection.in_image(row, placement)
    truth = masks.absolute(example['boxes'], placement.source)
    own = truth.corners, truth.label, truth.crowd, truth.area
    return corners.astype(np.float32), label, score, *map(np.asarray, own)

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: of objects on average, what they lack in score times overlap of a box."""
    corners, known = batch['boxes'], batch['boxes_known']
    iou, _ = boxes.overlaps(outputs['box'][:, None], corners[:, :, None])
    own = outputs['label'][:, None] == batch['boxes_label'][..., None]
    found = (iou * own * outputs['score'][:, None]).max(-1)
    count = known.sum(-1)
    return jnp.where(count > 0, 1 - (found * known).sum(-1) / jnp.maximum(count, 1), jnp.nan)

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    records, names = found['test'].records, found['test'].source.fields['boxes'].names
    names = names or tuple(f'class {i}' for i in range(_classes(records)))
    judged = average_precision(records, len(names))
    values = dict(zip(STATS, judged.stats[: len(STATS)], strict=True))
    values |= {'ar50': mean(judged.recall[0, :, 0, -1])}
    values |= {'ap50_any': average_precision(records, len(names), by_class=False).stats[1]}
    values = {name: float(value) for name, value in values.items() if value >= 0}
    f1, threshold = balance(judged.pairs)
    values = {'ap': 0.0, **values, 'f1': f1, 'threshold': threshold}
    counts = np.zeros(len(names), np.int64)
    for _, _, _, _, own, crowd, _ in records:
      np.add.at(counts, own[~crowd], 1)
    return by_class(values, judged, names, counts)


class Judged:
  """What `COCOeval` has found.

  Attributes:
    stats: its twelve numbers; -1 where nothing occurs.
    precision: (overlaps, recalls, classes, sizes, most detections).
    recall: (overlaps, classes, sizes, most detections).
    pairs: of an overlap of 0.5 the scores of all detections, whether each is right, and how many
      objects there are; what is in a crowd does not count.
  """

  def __init__(self, evaluated: Any):
    self.stats = evaluated.stats
    self.precision = evaluated.eval['precision']
    self.recall = evaluated.eval['recall']
    areas = len(evaluated.params.areaRng)
    images = len(evaluated.params.imgIds)
    scores, right, objects = [np.zeros(0)], [np.zeros(0, bool)], 0
    for number, each in enumerate(evaluated.evalImgs):
      if each is None or number // images % areas:  # of all sizes
        continue
      kept = ~np.asarray(each['dtIgnore'][0], bool)
      scores.append(np.asarray(each['dtScores'])[kept])
      right.append(np.asarray(each['dtMatches'][0])[kept] > 0)
      objects += int((~np.asarray(each['gtIgnore'], bool)).sum())
    self.pairs = np.concatenate(scores), np.concatenate(right), objects


def average_precision(records: Sequence[Any], classes: int, *, by_class: bool = True) -> Judged:
  """What pycocotools says.

  Args:
    records: of `Detection.record`, in the order of the images, by which it decides ties.
    classes: how many there are.
    by_class: whether boxes are those of objects of their own class only.

  Raises:
    RunError: without pycocotools.
  """
  truth, said = [], []
  for image, (corners, label, score, real, own, crowd, area) in enumerate(records, 1):
    truth += [
      {'image_id': image, 'category_id': int(c) + 1, 'bbox': box, 'iscrowd': int(many),
       'area': float(a)}
      for box, c, many, a in zip(_sides(real), own, crowd, area, strict=True)
    ]  # fmt: skip
    said += [
      {'image_id': image, 'category_id': int(c) + 1, 'bbox': box, 'score': float(s),
       'area': box[2] * box[3], 'iscrowd': 0}
      for box, c, s in zip(_sides(corners), label, score, strict=True)
    ]  # fmt: skip
  return judged(truth, said, len(records), classes, 'bbox', by_class=by_class)


def judged(
  truth: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, Any]], images: int, classes: int,
  kind: Literal['bbox', 'segm'], *, by_class: bool = True,
) -> Judged:  # fmt: skip
  """What pycocotools says of annotations.

  Args:
    truth, said: in its words, without `id`; images and categories are counted from 1.
    images, classes: how many there are.
    kind: 'bbox' or 'segm'.
    by_class: whether objects are those of their own class only.

  Raises:
    RunError: without pycocotools.
  """
  try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
  except ImportError:
    raise RunError(
      "evals of the names detection and instances need pycocotools: pip install 'vit_jax[dense]'"
    ) from None
  with contextlib.redirect_stdout(io.StringIO()):
    both = []
    for annotations in (truth, said):
      coco: Any = COCO()
      coco.dataset = {
        # Sizes are asked for, and of run lengths not used.
        'images': [{'id': n, 'height': 0, 'width': 0} for n in range(1, images + 1)],
        'categories': [{'id': number} for number in range(1, classes + 1)],
        # Numbered from 1: an object of number 0 would count as not found.
        'annotations': [{**each, 'id': number} for number, each in enumerate(annotations, 1)],
      }  # fmt: skip
      coco.createIndex()
      both.append(coco)
    evaluated: Any = COCOeval(both[0], both[1], kind)
    evaluated.params.useCats = int(by_class)
    evaluated.evaluate()
    evaluated.accumulate()
    evaluated.summarize()
  return Judged(evaluated)


def by_class(
  values: dict[str, float], judged: Judged, names: Sequence[str], counts: np.ndarray
) -> Scores:
  """Scores with precisions of each class, as arrays and as a table.

  Args:
    values: of all classes.
    judged: what was found.
    names: of the classes.
    counts: objects of each, int (classes,).
  """
  precision = judged.precision[:, :, :, 0, -1]  # of all sizes
  each = np.array([[mean(own[:, :, k]) for k in range(len(names))]
                   for own in (precision, precision[:1])])  # fmt: skip
  rows = [
    [name, int(counts[k]), float(each[1, k]), float(each[0, k])]
    for k, name in enumerate(names) if counts[k]
  ]  # fmt: skip
  table = Table('Average precision by class', ('class', 'objects', 'AP50', 'AP'), rows, 'high')
  arrays = {'ap': each[0], 'ap50': each[1], 'precision': precision, 'objects': counts}
  return Scores(values, arrays, [table])


def balance(pairs: tuple[np.ndarray, np.ndarray, int]) -> tuple[float, float]:
  """The best F1 of any threshold, and the score from which it is; see `Judged.pairs`."""
  scores, right, objects = pairs
  if not len(scores) or not right.any():
    return 0.0, 1.0
  order = np.argsort(-scores, kind='stable')
  scores, right = scores[order], np.cumsum(right[order])
  f1 = 2 * right / (np.arange(1, len(right) + 1) + objects)
  last = np.append(scores[1:] != scores[:-1], True)  # of equal scores all are taken, or none
  best = int(np.where(last, f1, -1).argmax())
  return float(f1[best]), float(scores[best])


def _classes(records: Sequence[Any]) -> int:
  """One more than the largest number of a class, predicted or true."""
  return 1 + max((int(each.max(initial=0)) for r in records for each in (r[1], r[4])), default=0)


def mean(values: np.ndarray) -> float:
  """Of those that are known; -1 if none is, as in `COCOeval`."""
  values = np.asarray(values)
  known = values[values > -1]
  return float(known.mean()) if known.size else -1.0


def _sides(corners: np.ndarray) -> list[list[float]]:
  """Left, top, width and height."""
  corners = np.asarray(corners, np.float64).reshape(-1, 4)
  return np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
