"""How far predicted numbers are from the true ones, in the unit of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.data.examples import Example
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores, Table
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Evaluator):
  """'r2', the coefficient of determination, 'mae' and 'rmse', means over the numbers of a vector.

  Errors are in the unit of the data; they have no mean over numbers of different units. Numbers
  that are not known count for nothing. Predictions and truth are in evals/NAME.npz.
  """

  score = 'largest error'
  of = ('target', 'target_known')
  from_batch = True

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: what was said, and what is true."""
    del seen
    known = example['target_known'] > 0
    truth = np.where(known, example['target'].astype(np.float64), np.nan)
    return row['target'].astype(np.float64), truth

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`: with each, how far off it is in the spread of the training data."""
    found = super().outputs(task, model, batch)
    apart = jnp.abs(found['target'] - batch['target']) * batch['target_known']
    return {**found, 'apart': apart / jnp.array(task.spread)}

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: the largest error, in spreads; of no known number nothing."""
    known = batch['target_known'].any(-1)
    return jnp.where(known, outputs['apart'].max(-1), jnp.nan)

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    records, field = found['test'].records, found['test'].source.fields['target']
    said, truth = (np.array([record[i] for record in records]) for i in (0, 1))
    said, truth = (x.reshape(len(records), -1) for x in (said, truth))
    rows, each = [], []
    units = field.units or ('',) * len(field.names)
    for number, (name, unit) in enumerate(zip(field.names, units, strict=True)):
      known = np.isfinite(truth[:, number])
      wanted, got = truth[known, number], said[known, number]
      error = got - wanted
      spread = np.square(wanted - wanted.mean()).sum() if known.any() else 0.0
      r2 = 1 - np.square(error).sum() / spread if spread else np.nan
      mae, rmse = (np.abs(error).mean(), np.sqrt(np.square(error).mean())) if len(error) else (
        np.nan, np.nan)  # fmt: skip
      each.append((r2, mae, rmse))
      rows.append([name, unit, int(known.sum()), float(mae), float(rmse), float(r2)])
    mean = np.array(each).mean(0) if each else np.full(3, np.nan)
    values = {'r2': float(mean[0])}
    if len(set(units)) == 1:
      values |= {'mae': float(mean[1]), 'rmse': float(mean[2])}
    else:
      values |= {
        f'mae_{name}': float(mae) for name, (_, mae, _) in zip(field.names, each, strict=True)
      }
    columns = ('number', 'unit', 'examples', 'mean absolute error', 'root mean square', 'R2')
    arrays = {'said': said, 'truth': truth, 'indices': found['test'].indices}
    return Scores(values, arrays, [Table('Errors', columns, rows, 'high')])
