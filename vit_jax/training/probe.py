"""A linear head on frozen features, with which fine-tuning begins.

Trained first, the head keeps the first steps from spoiling features by the gradients of a random
one (Kumar et al. 2022). It is the logistic regression that a linear probe is, of the features of
the whole training split, so that fine-tuning begins where a probe ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from vit_jax.convert import read
from vit_jax.data.examples import Source
from vit_jax.data.pipeline import eval_batches, iterate
from vit_jax.data.views import View
from vit_jax.nn import sharding, tree
from vit_jax.tasks import Classification
from vit_jax.training.initial import Start

# Inverse strengths of the penalty on standardised features, of which the best is taken.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
MOST = 20_000  # examples of which features are taken
FOLDS = 3
_BATCH = 64


class Head(NamedTuple):
  """A head that was fitted.

  Attributes:
    kernel, bias: float32 (features, classes) and (classes,).
    strength: that was best on held-out folds of the training split.
    accuracy: there.
  """

  kernel: np.ndarray
  bias: np.ndarray
  strength: float
  accuracy: float


class Features:
  """What the head of a model reads, of images as evaluations see them.

  Args:
    start: a checkpoint, whose model has been settled.
    crop: of evaluations.
    fields: of the data.
  """

  def __init__(self, start: Start, crop: Any, fields: Any):
    config = dataclasses.replace(start.model, num_classes=0).resolve()
    leaves = {n: leaf for n, leaf in start.leaves().items() if not n.startswith('head/')}
    self._model = read.build(config, leaves, start.card)
    task = Classification(mean=start.card.mean, std=start.card.std)
    named = dataclasses.replace(config, num_classes=len(fields['label'].names))
    self._rows = task.rows(named, fields, View(crop), train=False)

    @jax.jit
    def compute(model: Any, batch: Any) -> Any:
      found = model.features(task.augment(batch, None, {})['image'])
      return found.get('pre_logits', found['pooled'])

    self._compute = compute

  def __call__(
    self, source: Source, said: Callable[[int], None] = lambda done: None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Of up to `MOST` examples: float32 (examples, features), and their labels."""
    layout = sharding.BatchLayout.of_at_least(_BATCH)
    batches = eval_batches(self._rows, source, layout.batch_size, layout.rows, skip=lambda *_: None)
    found, labels, done = [], [], 0
    with contextlib.closing(iterate(batches)) as stream:
      for batch in stream:
        there = batch['mask'] > 0
        found.append(np.asarray(self._compute(self._model, layout.place(batch)))[there])
        labels.append(batch['label'][there])
        said(done := done + int(there.sum()))
        if done >= MOST:
          break
    return np.concatenate(found), np.concatenate(labels)

  @property
  def norms(self) -> dict[str, float]:
    """Of the parameters below the head, by name."""
    return {
      name: float(np.linalg.norm(np.asarray(leaf, np.float64)))
      for name, leaf in tree.flatten(self._model).items()
    }


def fitted(features: np.ndarray, labels: np.ndarray, classes: int) -> Head:
  """The multinomial logistic regression of standardised features, its penalty cross-validated.

  Args:
    features: float (examples, features).
    labels: int (examples,).
    classes: how many there are; of those without examples the logits are far below the others.
  """
  mean, spread = features.mean(0), features.std(0) + 1e-6
  x = (features - mean) / spread
  folds = min(FOLDS, np.bincount(labels, minlength=1)[np.unique(labels)].min())
  scores = dict.fromkeys(STRENGTHS, 0.0)
  if folds > 1:
    split = StratifiedKFold(int(folds), shuffle=True, random_state=0)
    for strength in STRENGTHS:
      hits = [
        (_model(strength).fit(x[a], labels[a]).predict(x[b]) == labels[b]).mean()
        for a, b in split.split(x, labels)
      ]
      scores[strength] = float(np.mean(hits))
  best = max(STRENGTHS, key=lambda each: (scores[each], -each)) if folds > 1 else 1e-2
  model = _model(best).fit(x, labels)
  kernel = np.zeros((features.shape[1], classes))
  bias = np.full(classes, -10.0)
  # Of two classes one vector is fitted, for their difference.
  weights = model.coef_ if len(model.classes_) > 2 else np.r_[-model.coef_ / 2, model.coef_ / 2]
  offsets = (
    model.intercept_ if len(model.classes_) > 2
    else np.r_[-model.intercept_ / 2, model.intercept_ / 2]
  )  # fmt: skip
  kernel[:, model.classes_] = weights.T / spread[:, None]
  bias[model.classes_] = offsets - mean @ kernel[:, model.classes_]
  return Head(kernel.astype(np.float32), bias.astype(np.float32), best, scores[best])


def _model(strength: float) -> LogisticRegression:
  return LogisticRegression(C=strength, max_iter=2000, tol=1e-4)
