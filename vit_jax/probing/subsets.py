"""Parts of labelled examples, with as many of each class, as functions of the labels and a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax.core.errors import RunError


def shots(labels: np.ndarray, count: int, seed: int, classes: int) -> np.ndarray:
  """So many examples of each class, their numbers, int (classes * count,), class after class.

  Those of a smaller count are among those of a larger one. They are drawn as big_vision draws them
  (`evaluators/fewshot_lsr.py`).

  Raises:
    RunError: if a class has fewer.
  """
  rng = np.random.default_rng(seed)
  found = []
  for label in range(classes):
    own = rng.permutation(np.flatnonzero(labels == label))
    if len(own) < count:
      raise RunError(
        f'{count} examples of each class are asked for, and class {label} has {len(own)}'
      )
    found.append(own[:count])
  return np.concatenate(found)


def fewest(labels: np.ndarray, classes: int) -> int:
  """How many examples the smallest class has."""
  return int(np.bincount(labels, minlength=classes).min())


def held_out(labels: np.ndarray, share: float, seed: int, *, most: int = 0) -> np.ndarray:
  """Whether each example is held out, bool (examples,): that share of each class, at least one.

  Of a class with a single example none is. Of all together up to `most` are, if that is given.
  """
  rng = np.random.default_rng((seed, 0xE1D))
  if most:
    share = min(share, most / len(labels))
  held = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    own = rng.permutation(np.flatnonzero(labels == label))
    count = max(1, round(share * len(own))) if len(own) > 1 else 0
    held[own[:count]] = True
  return held


def folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """The fold of each example, int (examples,): each fold has as many of a class, up to one."""
  rng = np.random.default_rng((seed, 0xF01D))
  found = np.zeros(len(labels), int)
  for label in np.unique(labels):
    own = rng.permutation(np.flatnonzero(labels == label))
    found[own] = (np.arange(len(own)) + rng.integers(count)) % count
  return found


def sizes(wanted: Sequence[int], labels: np.ndarray, classes: int) -> list[int]:
  """Those of some numbers of examples of a class that all classes have."""
  least = fewest(labels, classes)
  return [size for size in wanted if size <= least]
