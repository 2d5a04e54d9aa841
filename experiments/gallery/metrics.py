"""What the gallery measures: of outputs and truth what each example contributes, and the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from sklearn import metrics

Arrays = Mapping[str, np.ndarray]
RESAMPLES = 2000


class Metric(NamedTuple):
  """A metric.

  Attributes:
    name: for people.
    records: from outputs and truth of test examples, what each contributes: (examples, ...).
    score: of some records.
  """

  name: str
  records: Callable[[Arrays, Arrays], np.ndarray]
  score: Callable[[np.ndarray], float]


def right(outputs: Arrays, truth: Arrays) -> np.ndarray:
  """Whether the class of each example was said: (examples,)."""
  return (outputs['logits'].argmax(-1) == truth['label']).astype(float)


def scores_of_classes(outputs: Arrays, truth: Arrays) -> np.ndarray:
  """Scores beside what is true of each class: (examples, 2, classes)."""
  return np.stack([outputs['logits'].astype(float), truth['labels'].astype(float)], 1)


def average_precision(records: np.ndarray) -> float:
  """The mean over classes, as scikit-learn computes it."""
  said, truth = records[:, 0], records[:, 1] > 0
  there = [i for i in range(truth.shape[1]) if truth[:, i].any()]
  return float(np.mean([metrics.average_precision_score(truth[:, i], said[:, i]) for i in there]))


def numbers(outputs: Arrays, truth: Arrays) -> np.ndarray:
  """Numbers that were said beside the true ones, NaN where one is not known: (examples, 2, n)."""
  known = truth['target_known'] > 0
  return np.stack([outputs['target'], np.where(known, truth['target'], np.nan)], 1).astype(float)


def r2(records: np.ndarray) -> float:
  """The mean over numbers of the coefficient of determination."""
  found = []
  for said, true in zip(records[:, 0].T, records[:, 1].T, strict=True):
    known = np.isfinite(true)
    found.append(metrics.r2_score(true[known], said[known]))
  return float(np.mean(found))


def confusions(outputs: Arrays, truth: Arrays) -> np.ndarray:
  """Of each image how many pixels of a class were said to be of another: (examples, k, k)."""
  classes = int(truth['map'][truth['map'] < 255].max()) + 1
  found = []
  for said, true in zip(outputs['map'], truth['map'], strict=True):
    there = true < 255
    pairs = true[there].astype(int) * classes + said[there]
    found.append(np.bincount(pairs, minlength=classes * classes).reshape(classes, classes))
  return np.array(found)


def mean_iou(records: np.ndarray) -> float:
  """Of all images together, over classes that are in the truth or said."""
  whole = records.sum(0)
  both = np.diagonal(whole)
  union = whole.sum(0) + whole.sum(1) - both
  return float((both[union > 0] / union[union > 0]).mean())


def mean(records: np.ndarray) -> float:
  """Of what each example contributes."""
  return float(records.mean())


TOP1 = Metric('top-1', right, mean)
MEAN_AP = Metric('mAP', scores_of_classes, average_precision)
R2 = Metric('R2', numbers, r2)
MEAN_IOU = Metric('mIoU', confusions, mean_iou)


def interval(
  score: Callable[[np.ndarray], float], runs: list[np.ndarray], control: np.ndarray
) -> tuple[float, float]:
  """Of the gain over the control: 95 %, over test examples and runs, the same examples for both.

  A control that has a run for each of ours, on the same labels, is drawn with it.
  """
  paired = control.ndim > runs[0].ndim
  rng = np.random.default_rng(0)
  gains = []
  for _ in range(RESAMPLES):
    at = rng.integers(len(runs[0]), size=len(runs[0]))
    drawn = rng.integers(len(runs), size=len(runs))
    values = {number: score(runs[number][at]) for number in set(drawn.tolist())}
    ours = np.mean([values[number] for number in drawn.tolist()])
    theirs = [score(control[number][at]) for number in drawn.tolist()] if paired else None
    gains.append(ours - (np.mean(theirs) if theirs else score(control[at])))
  low, high = np.percentile(gains, (2.5, 97.5))
  return float(low), float(high)
