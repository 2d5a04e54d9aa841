"""Few-shot ridge regression, in closed form, as big_vision judges features (`fewshot_lsr`).

Features are whitened by mean and standard deviation of the few examples, a constant feature of 100
stands for the bias, which is so almost free, and the targets are 1 for the class of an example and
-1 for the others. The class with the largest prediction is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.probing.settings import Settings

BIAS = 100.0
EPSILON = 1e-5


class Fitted(NamedTuple):
  """A solution.

  Attributes:
    mean, std: of the features of the few examples, float64 (features,).
    kernel: float64 (features + 1, classes); the last row is of the constant feature.
    l2: of it.
  """

  mean: np.ndarray
  std: np.ndarray
  kernel: np.ndarray
  l2: float

  def scores(self, features: np.ndarray) -> np.ndarray:
    """Of each class, float64 (examples, classes)."""
    white = (np.asarray(features, np.float64) - self.mean) / self.std
    return white @ self.kernel[:-1] + BIAS * self.kernel[-1]


def fit(
  features: np.ndarray, labels: np.ndarray, classes: int,
  l2: float | Sequence[float] = Settings.l2,
) -> Fitted:  # fmt: skip
  """Solves the problem in double precision.

  Args:
    features: (examples, features).
    labels: int (examples,).
    classes: how many there are.
    l2: weight of the sum of squares; of several the one with the smallest squared error on examples
      that are left out one by one, which is known in closed form (Allen 1974) and takes no further
      labels.
  """
  x = np.asarray(features, np.float64)
  mean, std = x.mean(0), x.std(0) + EPSILON
  white = np.concatenate([(x - mean) / std, np.full((len(x), 1), BIAS)], 1)
  targets = 2.0 * np.eye(classes)[labels] - 1
  # Of the smaller of the two Gram matrices, which serves every l2.
  dual = len(x) < white.shape[1]
  gram = white @ white.T if dual else white.T @ white
  values, vectors = np.linalg.eigh(gram)
  values = np.maximum(values, 0)
  if dual:
    left, right = white.T @ vectors, vectors.T @ targets
  else:
    left, right = vectors, vectors.T @ (white.T @ targets)
  choices = np.atleast_1d(np.asarray(l2, np.float64))
  errors = []
  for choice in choices if len(choices) > 1 else ():
    if dual:
      residual = choice * (vectors / (values + choice)) @ right
      leverage = 1 - choice * (vectors**2 / (values + choice)).sum(1)
    else:
      residual = targets - white @ ((left / (values + choice)) @ right)
      leverage = ((white @ vectors) ** 2 / (values + choice)).sum(1)
    errors.append(np.square(residual / (1 - leverage)[:, None]).mean())
  best = float(choices[int(np.argmin(errors))] if errors else choices[0])
  return Fitted(mean, std, (left / (values + best)) @ right, best)
