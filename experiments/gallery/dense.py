"""Metrics of boxes, segments, changes and damage, and what needs no network for each.

As in `metrics` and `controls`; what is the same in several is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.gallery.controls import of_pixels
from experiments.gallery.metrics import Metric, confusions
from vit_jax.data.fields import Panoptic
from vit_jax.evaluators.change import changes, xview2
from vit_jax.evaluators.panoptic import counted

Arrays = Mapping[str, np.ndarray]
Control = Callable[[Arrays, Arrays], Arrays]
# Overlap from which a box is that of an object; recalls at which precision is read, as COCO does.
_OVERLAP, _RECALLS = 0.5, np.linspace(0, 1, 101)
_PIXELS = 400_000  # that a control learns from
_DRAWN = 500  # pictures of land, of which post-classification learns what covers it


def found_boxes(outputs: Arrays, truth: Arrays) -> np.ndarray:
  """Of each box of an image its score, its class and whether it is right; and how many objects.

  Boxes are right by the rule of COCO: in the order of their scores, each takes the object of its
  class that overlaps most and is not taken.

  Returns:
    float64 (examples, boxes + 1, 3 or more); of the last row each number is that of a class.
  """
  there = truth['boxes_known'] > 0
  classes = max(3, int(truth['boxes_label'][there].max()) + 1)
  count = outputs['score'].shape[1]
  found = np.zeros((len(there), count + 1, classes))
  for image, known in enumerate(there):
    boxes, labels = truth['boxes'][image][known], truth['boxes_label'][image][known]
    found[image, -1] = np.bincount(labels, minlength=classes)
    free = np.ones(len(boxes), bool)
    for at in np.argsort(-outputs['score'][image], kind='stable'):
      label = outputs['label'][image, at]
      share = _overlaps(outputs['box'][image, at], boxes) * (free & (labels == label))
      best = int(share.argmax()) if len(share) else -1
      right = best >= 0 and share[best] >= _OVERLAP
      if right:
        free[best] = False
      found[image, at, :3] = outputs['score'][image, at], label, right
  return found


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """Intersection over union of a box with others, (n,)."""
  low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
  both = np.prod(np.maximum(high - low, 0), axis=1)
  area = lambda b: np.prod(b[..., 2:] - b[..., :2], axis=-1)  # noqa: E731
  return both / np.maximum(area(box) + area(boxes) - both, 1e-12)


def ap50(records: np.ndarray) -> float:
  """Average precision at an overlap of a half, the mean over classes that occur."""
  boxes, objects = records[:, :-1].reshape(-1, records.shape[2]), records[:, -1].sum(0)
  precisions = []
  for label, count in enumerate(objects):
    if not count:
      continue
    own = boxes[boxes[:, 1] == label]
    right = np.cumsum(own[np.argsort(-own[:, 0], kind='stable'), 2])
    precision = right / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / count, _RECALLS)
    precisions.append(np.append(best, 0)[np.minimum(at, len(best))].mean())
  return float(np.mean(precisions))


def found_segments(outputs: Arrays, truth: Arrays) -> np.ndarray:
  """Of each image overlaps of found segments, and numbers of found, wrong and missed: (n, 4, k)."""
  classes = int(truth['segments_label'][truth['segments_known'] > 0].max()) + 1
  rows = []
  for image, ids in enumerate(truth['segments']):
    labels, known = truth['segments_label'][image], truth['segments_known'][image] > 0
    there = np.flatnonzero(known).tolist()
    about = Panoptic(ids, {n + 1: (int(labels[n]), False) for n in there})
    said = outputs['segments'][image].astype(np.int64)
    own = {int(n): int(outputs['segments_label'][image][n - 1]) for n in np.unique(said) if n}
    rows.append(np.stack(counted(ids.astype(np.int64), about, said, own, classes)))
  return np.array(rows, np.float64)


def panoptic_quality(records: np.ndarray) -> float:
  """The mean over classes that are in the truth or said."""
  iou, right, wrong, missed = records.sum(0)
  whole = right + (wrong + missed) / 2
  return float((iou[whole > 0] / whole[whole > 0]).mean())


def f1_of_changes(records: np.ndarray) -> float:
  """Of all pixels together; everything but the first class has changed."""
  return changes(np.pad(records.sum(0), ((0, 0), (0, 1))))['f1']


def damage_score(records: np.ndarray) -> float:
  """That of xView2."""
  whole = records.sum(0)
  return float(xview2(np.pad(whole, ((0, 0), (0, 1))))['score'])


AP50 = Metric('AP50', found_boxes, ap50)
PQ = Metric('PQ', found_segments, panoptic_quality)
CHANGE_F1 = Metric('F1 of changes', confusions, f1_of_changes)
XVIEW2 = Metric('xView2', confusions, damage_score)


def nearest_boxes(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """The objects of the training images that are most alike in pixels, the most alike first."""
  flat = lambda x: x['image'].reshape(len(x['image']), -1).astype(np.float32) / 255  # noqa: E731
  known, own = flat(train), flat(test)
  most = test['boxes'].shape[1]
  found = {
    'score': np.zeros((len(own), most)), 'label': np.zeros((len(own), most), np.int64),
    'box': np.zeros((len(own), most, 4)),
  }  # fmt: skip
  norms = np.square(known).sum(1)
  for image, pixels in enumerate(own):
    apart = norms - 2 * known @ pixels
    at = 0
    for other in np.argsort(apart)[:20]:
      for box in np.flatnonzero(train['boxes_known'][other] > 0):
        if at < most:
          found['score'][image, at] = 1 / (1 + at)
          found['label'][image, at] = train['boxes_label'][other, box]
          found['box'][image, at] = train['boxes'][other, box]
          at += 1
  return found


def usual_boxes(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """The same boxes for every image: those that are most frequent, to an eighth of its sides."""
  there = train['boxes_known'] > 0
  boxes, labels = train['boxes'][there], train['boxes_label'][there]
  cells = np.concatenate([np.rint(boxes * 8).astype(int), labels[:, None]], axis=1)
  kinds, first, counts = np.unique(cells, axis=0, return_index=True, return_counts=True)
  order = np.argsort(-counts, kind='stable')[: test['boxes'].shape[1]]
  many = lambda x: np.repeat(x[None], len(test['boxes']), 0)  # noqa: E731
  return {
    'score': many(counts[order] / len(boxes)), 'label': many(kinds[order, 4]),
    'box': many(boxes[first[order]]),
  }  # fmt: skip


def pixel_segments(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Logistic regression of the class of a pixel; of a class what hangs together is a segment."""
  table = np.pad(train['segments_label'], ((0, 0), (1, 0)))
  label = np.take_along_axis(table, train['segments'].reshape(len(table), -1).astype(int), 1)
  wanted = np.where(train['segments'].reshape(len(table), -1) > 0, label, 255).reshape(-1)
  said = _classified(of_pixels(train['image']), wanted, of_pixels(test['image']))
  shape = test['segments'].shape
  segments = np.zeros(shape, np.int64)
  labels = np.zeros((len(segments), 255), np.int64)
  for image, classes in enumerate(said.reshape(shape)):
    number = 0
    for label in np.unique(classes):
      found: Any = ndimage.label(classes == label)
      parts, count = found
      sizes = ndimage.sum_labels(np.ones_like(parts), parts, np.arange(1, count + 1))
      for part in np.argsort(-sizes)[:30]:
        if sizes[part] >= 12 and number < 255:  # smaller ones are noise
          segments[image][parts == part + 1] = number = number + 1
          labels[image, number - 1] = label
  return {'segments': segments, 'segments_label': labels}


def _of_pairs(rows: Arrays) -> np.ndarray:
  """Of each pixel what is known of it alone at both dates, and how far these are apart."""
  before, after = of_pixels(rows['before']), of_pixels(rows['after'])
  return np.concatenate([before, after, np.abs(before - after)], axis=1)


def differing_pixels(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Pixels whose colours differ by more than a threshold, which is best on the training images."""
  apart = lambda x: np.abs(x['before'] - x['after'].astype(float)).mean(-1)  # noqa: E731
  known, truth = apart(train), train['map']
  least = _threshold(known[truth < 255], truth[truth < 255] > 0)
  return {'map': (apart(test) > least).astype(np.int64)}


def _threshold(known: np.ndarray, changed: np.ndarray) -> float:
  """Above which what is known is taken for a change: the one of the best F1."""

  def f1(least: float) -> float:
    said = known > least
    return 2 * (said & changed).sum() / max(said.sum() + changed.sum(), 1)

  # Changes are rare, so that the best one is among the highest.
  shares = 1 - np.geomspace(1e-3, 0.99, 99)
  return max(np.quantile(known, shares).tolist(), key=f1)


def changing_pixels(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Logistic regression of whether a pixel has changed on what is known of it alone at both dates.

  Without weights; the threshold on the probability is the best one on the training images.
  """
  known, wanted = _of_pairs(train), np.minimum(train['map'].reshape(-1), 1)
  chosen = _some(train['map'].reshape(-1))
  model = _regression().fit(known[chosen], wanted[chosen])
  likely = lambda x: model.predict_proba(x)[:, 1]  # noqa: E731
  least = _threshold(likely(known[chosen]), wanted[chosen] > 0)
  return {'map': (likely(_of_pairs(test)) > least).reshape(test['map'].shape).astype(np.int64)}


def post_classification(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Each date is classified by itself, and what is of another class then has changed.

  Logistic regression of the cover of a pixel on what is known of it alone, without weights. It
  learns from land of the same kind whose cover is known, which no other control is told.
  """
  from vit_jax.data.generators.terrain import Terrain

  land, rng = Terrain(size=train['map'].shape[1:]), np.random.default_rng(0)  # type: ignore
  drawn = [land.example(rng, split='train') for _ in range(_DRAWN)]
  images, cover = (np.stack([each[name] for each in drawn]) for name in ('image', 'map'))
  chosen = _some(np.minimum(cover, 255).reshape(-1))
  model = _regression().fit(of_pixels(images)[chosen], cover.reshape(-1)[chosen])
  before, after = (model.predict(of_pixels(test[name])) for name in ('before', 'after'))
  return {'map': (before != after).reshape(test['map'].shape).astype(np.int64)}


def usual(metric: Metric) -> Control:
  """The class that scores best on the training images, everywhere."""

  def everywhere(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
    truth = train['map']
    classes = range(int(truth[truth < 255].max()) + 1)
    score = lambda c: metric.score(metric.records({'map': np.full_like(truth, c)}, train))  # noqa: E731
    return {'map': np.full(test['map'].shape, max(classes, key=score), np.int64)}

  return everywhere


def pairs_of_pixels(*, balanced: bool) -> Control:
  """Logistic regression of the class of a pixel on what is known of it alone at both dates.

  Args:
    balanced: whether all classes weigh the same; else all pixels do.
  """

  def control(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
    wanted = train['map'].reshape(-1)
    said = _classified(_of_pairs(train), wanted, _of_pairs(test), balanced=balanced)
    return {'map': said.reshape(test['map'].shape)}

  return control


def _classified(
  known: np.ndarray, wanted: np.ndarray, asked: np.ndarray, *, balanced: bool = False
) -> np.ndarray:
  chosen = _some(wanted)
  return _regression(balanced=balanced).fit(known[chosen], wanted[chosen]).predict(asked)


def _some(wanted: np.ndarray) -> np.ndarray:
  """Places of pixels that have a class, as often as they are."""
  return np.random.default_rng(0).permutation(np.flatnonzero(wanted < 255))[:_PIXELS]


def _regression(*, balanced: bool = False) -> Any:
  weight: Any = 'balanced' if balanced else None
  return make_pipeline(StandardScaler(), LogisticRegression(max_iter=100, class_weight=weight))


BOXES: Mapping[str, Control] = {
  'boxes of the most similar images': nearest_boxes, 'the most frequent boxes': usual_boxes,
}  # fmt: skip
SEGMENTS: Mapping[str, Control] = {'logistic regression of each pixel': pixel_segments}
CHANGES: Mapping[str, Control] = {
  'changed everywhere, or nowhere': usual(CHANGE_F1), 'pixels that differ': differing_pixels,
  'cover of each date compared': post_classification,
  'logistic regression of pairs of pixels': changing_pixels,
}  # fmt: skip
DAMAGE: Mapping[str, Control] = {
  'one class everywhere': usual(XVIEW2),
  'logistic regression of pairs of pixels': pairs_of_pixels(balanced=False),
  'logistic regression of pairs of pixels, classes weighing the same': pairs_of_pixels(
    balanced=True
  ),
}
