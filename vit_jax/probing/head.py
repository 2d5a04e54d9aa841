"""A linear head on frozen features, with which fine-tuning begins.

Trained first, the head keeps the first steps from spoiling features by the gradients of a random
one (Kumar et al. 2022). It is the logistic regression that a linear probe is, of the features of
the whole training split, so that fine-tuning begins where a probe ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vit_jax.probing import judge, logistic

# Of scikit-learn's C, on standardised features, of which the best is taken.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
# Where a class has a single example, so that nothing can be held out.
FIXED = 1e-2
FOLDS = 3


class Head(NamedTuple):
  """A head that was fitted.

  Attributes:
    kernel, bias: float32 (features, classes) and (classes,).
    strength: C.
    accuracy: with that on held-out folds of the training split; None where it was not chosen.
  """

  kernel: np.ndarray
  bias: np.ndarray
  strength: float
  accuracy: float | None


def fitted(features: np.ndarray, labels: np.ndarray, classes: int) -> Head:
  """The multinomial logistic regression of standardised features, its penalty cross-validated.

  Args:
    features: float (examples, features).
    labels: int (examples,).
    classes: how many there are; of those without examples the logits are far below the others.
  """
  mean, spread = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
  spread = np.where(spread > 0, spread, 1)
  x = ((features - mean) / spread).astype(np.float32)
  folds = min(FOLDS, np.unique(labels, return_counts=True)[1].min())
  good = judge.by_folds(x, labels, folds, STRENGTHS, 0, classes)
  best = max(good, key=good.__getitem__) if good else FIXED
  last = logistic.fit(x, labels, np.array([1 / (best * len(labels))]), classes)
  kernel = last.kernel[0] / spread[:, None]
  bias = last.bias[0] - mean @ kernel
  accuracy = good[best][0] if good else None
  return Head(kernel.astype(np.float32), bias.astype(np.float32), best, accuracy)
