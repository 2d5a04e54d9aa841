"""The card of a sweep: everything that was run, fitted and found, as what JSON can hold."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.sweeps import analysis as analysis_lib
from experiments.sweeps import checklist, laws
from experiments.sweeps.analysis import Analysis
from experiments.sweeps.runs import config_of
from vit_jax.core import paths
from vit_jax.costs import flops
from vit_jax.scaling.advise import Advice
from vit_jax.scaling.design import shape_of
from vit_jax.scaling.table import Table

FORMAT = 'vit_jax sweep card 1'


def card(a: Analysis, folder: paths.Path) -> dict[str, Any]:
  """All of an analysis; numbers that are not finite are None.

  Args:
    a: of the sweep.
    folder: of the sweep, with the configurations of its runs.
  """
  config = config_of(folder, str(a.runs.cells['run'][0]))
  config |= {'fork': paths.at(config['fork']).name} if config.get('fork') else {}
  rows = a.runs.rows
  groups: dict[str, int] = {}
  for row in rows:
    groups[str(row.get('group'))] = groups.get(str(row.get('group')), 0) + 1
  lanes = {name: _values(rows, name) for name in (*a.runs.hyper, 'seed')}
  record = {
    'format': FORMAT,
    'made': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'loss': a.y, 'target': dataclasses.asdict(a.runs.target), 'data': a.data,
    'flop_convention': flops.CONVENTION,
    'design': {
      'groups': groups, 'shapes': list(dict.fromkeys(a.runs.cells['shape'].tolist())),
      'budgets': np.unique(a.runs.cells['budget']).tolist(), 'lanes': lanes,
    },
    'counts': a.runs.counts, 'left_out': a.runs.left_out,
    'noise': {'seeds': a.runs.noise, 'settings': a.runs.repeated},
    'versions': {name: _values(rows, name) for name in ('git', 'packages', 'device')},
    'config': config,
    'settings': {
      'joint': {'law': 'chinchilla', **laws.joint_settings(a.runs.cells)},
      'tolerance': a.tolerance, 'level': laws.LEVEL,
    },
    'cells': _rows(a.runs.cells),
    'learning_rates': [dataclasses.asdict(tuned) for tuned in a.runs.tuning],
    'transfer': analysis_lib.transfer(a.runs),
    'frontier': {
      'points': _rows(a.frontier), 'fitted': a.used.tolist(),
      'choice': a.choice and a.choice.to_dict(),
    },
    'isoflop': {
      'method': a.method, 'optima': a.optima and _rows(a.optima),
      'exponents': {name: fit.to_dict() for name, fit in a.exponents.items()},
    },
    'joint': {
      'law': a.joint and a.joint.to_dict(), 'backtest': a.backtest and a.backtest.to_dict(),
    },
    'holdout': _holdout(a),
    'advice': [
      {**advice_of(advice), 'learning_rate': analysis_lib.rate_for(a.runs, advice.budget)}
      for advice in a.advice
    ],
    'times': [dataclasses.asdict(time) for time in a.times],
    'missing': a.missing,
    'checklist': checklist.fill(a, config),
    'runs': rows,
  }  # fmt: skip
  return _plain(record)


def advice_of(advice: Advice) -> dict[str, Any]:
  """What to train, without what the model shares with those of the sweep."""
  fields = {field.name: getattr(advice, field.name) for field in dataclasses.fields(advice)}
  flat = [shape_of(model) for model in advice.flat]
  return {**fields, 'model': shape_of(advice.model), 'flat': flat}


def _holdout(a: Analysis) -> dict[str, Any] | None:
  held = a.holdout
  if not held:
    return None
  fields = {field.name: getattr(held, field.name) for field in dataclasses.fields(held)}
  laws = {name: fields[name] and fields[name].to_dict() for name in ('law', 'joint')}
  return {**fields, **laws, 'passed': held.passed if held.law else None}


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
  """The different values of a column, in the order in which they come."""
  return list({repr(row[name]): row[name] for row in rows if row.get(name) is not None}.values())


def _rows(table: Table) -> list[dict[str, Any]]:
  return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _plain(value: Any) -> Any:
  """With types of JSON only."""
  if isinstance(value, Mapping):
    return {str(key): _plain(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(each) for each in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
