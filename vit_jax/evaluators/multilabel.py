"""How well it is told which classes are in an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.examples import Example
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores, Table
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  from sklearn import metrics

REPORTS = ('map', 'f1', 'loss')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(Evaluator):
  """Average precision of each class and their mean; those of the classes are in evals/NAME.npz.

  Attributes:
    report: numbers to report. 'map', the mean over classes that are in the split of the average
      precision, as scikit-learn computes it; 'f1', the mean of their F1 scores at the threshold;
      'loss', the binary cross-entropy, averaged over classes.
    threshold: of the probability.
  """

  score = 'loss'
  of = ('labels',)
  from_batch = True
  report: tuple[str, ...] = REPORTS
  threshold: float = 0.5

  def __post_init__(self):
    if not 0 < self.threshold < 1:
      raise RunError(f'threshold={self.threshold} must be between 0 and 1')
    for name in self.report:
      if name not in REPORTS:
        raise RunError(f'unknown number to report {name!r}: {suggest(name, REPORTS)}')

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: the logits, and the classes that are there."""
    del seen
    return row['logits'].astype(np.float32), np.flatnonzero(example['labels']).astype(np.int32)

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: the loss."""
    return -jax.nn.log_sigmoid(
      jnp.where(batch['labels'] > 0, outputs['logits'], -outputs['logits'])
    ).mean(-1)

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    records, source = found['test'].records, found['test'].source
    logits = np.array([logits for logits, _ in records], np.float32)
    truth = np.zeros(logits.shape, bool)
    for row, (_, labels) in zip(truth, records, strict=True):
      row[labels] = True
    there = np.asarray(truth.any(0))
    ap, f1 = np.full((2, len(there)), np.nan)
    sure, loss = np.log(self.threshold / (1 - self.threshold)), 0.0
    for number in range(len(there)):  # class by class, in the memory of one
      own, true = logits[:, number].astype(np.float64), truth[:, number]
      loss += np.logaddexp(0, np.where(true, -own, own)).mean() if len(own) else 0.0
      if there[number]:
        ap[number] = metrics.average_precision_score(true, own)
        said = own >= sure
        f1[number] = 2 * (said & true).sum() / (said.sum() + true.sum())
    loss /= max(len(there), 1)
    mean = lambda each: float(np.nanmean(each)) if there.any() else 0.0  # noqa: E731
    values = {'map': mean(ap), 'f1': mean(f1), 'loss': float(loss)}
    names = source.fields['labels'].names or [f'class {i}' for i in range(len(ap))]
    rows = [
      [name, int(truth[:, i].sum()), float(f1[i]), float(ap[i])]
      for i, name in enumerate(names) if there[i]
    ]  # fmt: skip
    columns = ('class', 'images', 'F1', 'average precision')
    return Scores(
      {name: values[name] for name in self.report}, {'ap': ap, 'f1': f1, 'images': truth.sum(0)},
      [Table('Average precision by class', columns, rows, 'high')],
    )  # fmt: skip
