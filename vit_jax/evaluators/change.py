"""How well changes and damage are found, by the measures of the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.evaluators.evaluator import Found, Scores, Table
from vit_jax.evaluators.segmentation import Segmentation, confusion_of, counted

# What xView2's program adds to each F1 before it takes their harmonic mean.
_LEAST = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change(Segmentation):
  """F1, intersection over union, precision and recall of what has changed.

  Of the pixels of all images at their own size together, as papers on LEVIR-CD give it ('F1_1' of
  BIT's program); everything but the first class has changed. What is ignored is left out, what the
  model did not see is taken for unchanged. With 'accuracy', and the matrix in evals/NAME.npz.
  """

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    confusion = confusion_of(found['test'])
    said = _seen(confusion)
    hit, missed, wrong = said[1:, 1:].sum(), said[1:, 0].sum(), said[0, 1:].sum()
    right = np.diagonal(said).sum()
    values = {
      'f1': _share(2 * hit, 2 * hit + missed + wrong), 'iou': _share(hit, hit + missed + wrong),
      'precision': _share(hit, hit + wrong), 'recall': _share(hit, hit + missed),
      'accuracy': _share(right, said.sum()), 'changed': _share(hit + missed, said.sum()),
    }  # fmt: skip
    return Scores(values, {'confusion': confusion})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage(Segmentation):
  """The score of xView2 (DIUx-xView/xView2_scoring): 0.3 localisation + 0.7 damage.

  'localisation' is F1 of the pixels of buildings, of all images together. 'damage' is the harmonic
  mean of F1 of each level, of those pixels alone that are of a building in the truth; a level that
  is never found, or is nowhere, makes it 0. As in the program, a level that is said of an image
  whose truth does not have it costs nothing but what it hides; 'damage_strict' counts that, too,
  and is the mean over levels that are there. What is ignored is left out. The matrix is in
  evals/NAME.npz.
  """

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    records, field = found['test'].records, found['test'].source.fields['map']
    confusion = confusion_of(found['test'])
    scores = xview2(counted([record], len(confusion)) for record in records)
    names = field.names or tuple(f'class {i}' for i in range(len(confusion)))
    rows = [
      [name, int(confusion[level].sum()), float(f1)]
      for level, (name, f1) in enumerate(zip(names[1:], scores['levels'], strict=True), 1)
    ]
    values = {name: float(value) for name, value in scores.items() if name != 'levels'}
    return Scores(
      values, {'confusion': confusion, 'f1': scores['levels']},
      [Table('Levels of damage', ('level', 'pixels', 'F1'), rows, 'high')],
    )  # fmt: skip


def xview2(confusions: Iterable[np.ndarray]) -> dict[str, Any]:
  """Scores of predictions of buildings and of damage to them.

  Args:
    confusions: of each image, pixels by true and predicted class, int (n, n + 1), class 0 no
      building, the last column what was not predicted.

  Returns:
    'score', 'localisation', 'damage' and 'damage_strict', see `Damage`; and 'levels', F1 of each.
  """
  located, right, true, taken, strict = np.zeros(3, np.int64), 0, 0, 0, 0
  for confusion in confusions:
    said = _seen(confusion)
    located += said[1:, 1:].sum(), said[1:, 0].sum(), said[0, 1:].sum()
    houses = said[1:]
    there, of_level = houses.sum(1), houses[:, 1:].sum(0)
    right, true = right + np.diagonal(houses, 1), true + there
    taken, strict = taken + of_level * (there > 0), strict + of_level
  f1 = lambda said: np.array([  # noqa: E731
    _share(2 * r, t + p) for r, t, p in zip(*np.broadcast_arrays(right, true, said), strict=True)
  ])  # fmt: skip
  levels, localisation = f1(taken), _share(2 * located[0], located @ (2, 1, 1))
  damage = _harmonic(levels)
  return {
    'score': 0.3 * localisation + 0.7 * damage, 'localisation': localisation, 'damage': damage,
    'damage_strict': _harmonic(f1(strict)[true > 0]), 'levels': levels,
  }  # fmt: skip


def _harmonic(f1: np.ndarray) -> float:
  return float(len(f1) / (1 / (f1 + _LEAST)).sum()) if len(f1) else 0.0


def _seen(confusion: np.ndarray) -> np.ndarray:
  """A confusion matrix (n, n): what was not predicted counts as the first class."""
  return np.concatenate([confusion[:, -1:] + confusion[:, :1], confusion[:, 1:-1]], axis=1)


def _share(part: Any, whole: Any) -> float:
  return float(part / whole) if whole else 0.0
