"""How well changes and damage are found, by the measures of the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.data.edges import overlaps
from vit_jax.evaluators.evaluator import Found, Scores, Table
from vit_jax.evaluators.segmentation import Segmentation, confusion_of

# What xView2's program adds to each F1 before it takes their harmonic mean.
_LEAST = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlined(Segmentation):
  """Where the edges that count are those of all classes but the first, as one."""

  def edges(
    self, truth: np.ndarray, said: np.ndarray, there: np.ndarray, classes: int
  ) -> Mapping[int, tuple[int, int]]:
    """See `Segmentation`: of all classes but the first as one."""
    return overlaps(truth > 0, (said > 0) & (said < classes), there, (1,), self.boundary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change(Outlined):
  """F1, intersection over union, precision and recall of what has changed.

  Of the pixels of all images at their own size together, as papers on LEVIR-CD give it ('F1_1' of
  BIT's program); everything but the first class has changed. What is ignored is left out, what the
  model did not see is taken for unchanged. With 'accuracy', and the matrix in evals/NAME.npz. Edges
  (`boundary`) are those of what has changed.
  """

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    confusion = confusion_of(found['test'])
    values = {**changes(confusion), **self.boundaries(found['test'])}
    return Scores(values, {'confusion': confusion})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage(Outlined):
  """The score of xView2 (DIUx-xView/xView2_scoring): 0.3 localisation + 0.7 damage.

  'localisation' is F1 of the pixels of buildings, of all images together. 'damage' is the harmonic
  mean of F1 of each level, of those pixels alone that are of a building in the truth. A level that
  is never found, or is nowhere in the truth, makes it 0; 'damage_there' is that of the levels that
  are there. What is ignored is left out. The matrix is in evals/NAME.npz. Edges (`boundary`) are
  those of buildings.
  """

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    field, confusion = found['test'].source.fields['map'], confusion_of(found['test'])
    scores = xview2(confusion)
    names = field.names or tuple(f'class {i}' for i in range(len(confusion)))
    rows = [
      [name, int(confusion[level].sum()), float(f1)]
      for level, (name, f1) in enumerate(zip(names[1:], scores['levels'], strict=True), 1)
    ]
    values = {name: float(value) for name, value in scores.items() if name != 'levels'}
    values |= self.boundaries(found['test'])
    return Scores(
      values, {'confusion': confusion, 'f1': scores['levels']},
      [Table('Levels of damage', ('level', 'pixels', 'F1'), rows, 'high')],
    )  # fmt: skip


def changes(confusion: np.ndarray) -> dict[str, float]:
  """Scores of everything but the first class, see `Change`.

  Args:
    confusion: pixels by true and predicted class, int (n, n + 1), the last column what was not
      predicted.
  """
  said = _seen(confusion)
  hit, missed, wrong = said[1:, 1:].sum(), said[1:, 0].sum(), said[0, 1:].sum()
  right = np.diagonal(said).sum()
  return {
    'f1': _share(2 * hit, 2 * hit + missed + wrong), 'iou': _share(hit, hit + missed + wrong),
    'precision': _share(hit, hit + wrong), 'recall': _share(hit, hit + missed),
    'accuracy': _share(right, said.sum()), 'changed': _share(hit + missed, said.sum()),
  }  # fmt: skip


def xview2(confusion: np.ndarray) -> dict[str, Any]:
  """Scores of predictions of buildings and of damage to them.

  Args:
    confusion: pixels by true and predicted class, int (n, n + 1), class 0 no building, the last
      column what was not predicted.

  Returns:
    'score', 'localisation', 'damage' and 'damage_there', see `Damage`; and 'levels', F1 of each.
  """
  localisation, houses = changes(confusion)['f1'], _seen(confusion)[1:]
  true, taken = houses.sum(1), houses[:, 1:].sum(0)
  levels = np.array(
    [_share(*each) for each in zip(2 * houses.diagonal(1), true + taken, strict=True)]
  )
  damage = _harmonic(levels)
  return {
    'score': 0.3 * localisation + 0.7 * damage, 'localisation': localisation, 'damage': damage,
    'damage_there': _harmonic(levels[true > 0]), 'levels': levels,
  }  # fmt: skip


def _harmonic(f1: np.ndarray) -> float:
  return float(len(f1) / (1 / (f1 + _LEAST)).sum()) if len(f1) else 0.0


def _seen(confusion: np.ndarray) -> np.ndarray:
  """A confusion matrix (n, n): what was not predicted counts as the first class."""
  return np.concatenate([confusion[:, -1:] + confusion[:, :1], confusion[:, 1:-1]], axis=1)


def _share(part: Any, whole: Any) -> float:
  return float(part / whole) if whole else 0.0
