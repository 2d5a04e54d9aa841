"""Numbers about predictions, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

BINS = 15
RESAMPLES = 2000


def over_runs(
  runs: Sequence[np.ndarray], controls: Sequence[np.ndarray] = (), seed: int = 0
) -> tuple[float, float]:
  """95 % of the mean over runs, or of its difference to controls, by the bootstrap.

  Runs and test examples are drawn with replacement, the same for both (Efron and Tibshirani 1993).

  Args:
    runs: of each whether the test examples were right, (examples,).
    controls: likewise, of the same subsets in the same order.
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  values = np.asarray(runs, np.float64)
  if len(controls):
    values = values - np.asarray(controls, np.float64)
  count, examples = values.shape
  found = []
  for _ in range(RESAMPLES):
    drawn = np.bincount(rng.integers(count, size=count), minlength=count)
    at = np.bincount(rng.integers(examples, size=examples), minlength=examples)
    found.append(drawn @ values @ at / count / examples)
  low, high = np.percentile(found, (2.5, 97.5))
  return float(low), float(high)


def ece(chances: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
  """The expected calibration error (Guo et al. 2017, equation 3), in bins of equal width.

  Args:
    chances: probabilities, (examples, classes).
    labels: int (examples,).
    bins: open to the left, as there.
  """
  sure, right = chances.max(1), chances.argmax(1) == labels
  place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
  apart = np.bincount(place, right - sure, bins)
  return float(np.abs(apart).sum() / len(labels))


def calibration(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """'ece', 'nll' and 'brier' of the softmax of some logits."""
  logits = np.asarray(logits, np.float64)
  chances = special.softmax(logits, axis=1)
  truth = np.eye(logits.shape[1])[labels]
  return {
    'ece': ece(chances, labels),
    'nll': float(-special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()),
    'brier': float(np.square(chances - truth).sum(1).mean()),
  }


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
  """By what logits are best divided (Guo et al. 2017, section 4.2): smallest loss on examples that
  they were not fitted to.
  """
  logits = np.asarray(logits, np.float64)
  rows = np.arange(len(labels))

  def loss(log: float) -> float:
    return float(-special.log_softmax(logits / np.exp(log), axis=1)[rows, labels].mean())

  found = optimize.minimize_scalar(loss, bounds=(-4, 4), method='bounded')
  return float(np.exp(found.x))
