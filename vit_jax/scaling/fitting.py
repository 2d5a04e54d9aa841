"""Fits a scaling law to data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.scaling import table
from vit_jax.scaling.forms import Array, Law
from vit_jax.scaling.laws import LAWS
from vit_jax.scaling.problem import Problem
from vit_jax.scaling.result import Convergence, Fit

LOSSES = ('squared', 'huber')
INTERVALS = ('auto', 'robust', 'profile', 'bootstrap')


def fit(
  law: str, data: Any, *, x: str | Sequence[str], y: str, loss: str = 'squared',
  delta: float = 1e-3, group: str | None = None, units: Mapping[str, str] | None = None,
  level: float = 0.95, interval: str = 'auto', starts: int = 64, draws: int = 400, seed: int = 0,
  fixed: Mapping[str, float] | None = None, where: str | None = None,
) -> Fit:  # fmt: skip
  """Fits a law to the logarithms of y.

  Args:
    law: a name in `LAWS`.
    data: anything with columns, `data[name]`, or the path of a .csv or .jsonl file.
    x: column of the input, or columns, in the order of the law's inputs.
    y: column of the target.
    loss: 'squared', or 'huber' for data with outliers.
    delta: of Huber's loss, in log y.
    group: column that names the run a point belongs to, if points of a run err together.
    units: by column; what the table says, else the column's own name.
    level: of intervals and bands.
    interval: 'profile' of the sum of squares, for equal and independent noise; 'robust', the same
      for noise of any size that points of a run may share; 'bootstrap' of runs; or 'auto', the
      robust one for squared loss and the bootstrap for Huber's.
    starts: of the search.
    draws: of the bootstrap.
    seed: of the bootstrap.
    fixed: published parameters that are given.
    where: rows to take, as for `table.where`: 'model=L/16,flops<=1e20'.

  Raises:
    RunError: for unknown names, values that are not positive, or too few points.
  """
  if law not in LAWS:
    raise RunError(f'there is no law {law!r}: {suggest(law, LAWS)}')
  form = LAWS[law]
  names = (x,) if isinstance(x, str) else tuple(x)
  _check(form, names, loss, delta, level, interval, fixed or {})
  if starts < 1 or draws < 1:
    raise RunError(f'starts and draws must be at least 1, found {starts}, {draws}')
  if isinstance(data, str | paths.Path):
    data = table.read(data)
  if where:
    data = table.where(data, where)
  columns = [_column(data, name) for name in (*names, y)]
  if len({len(column) for column in columns}) > 1:
    raise RunError(f'columns differ in length: {[len(column) for column in columns]}')
  logs = np.log(np.stack(columns))
  named = np.arange(logs.shape[1]) if group is None else _raw(data, group)
  different, runs = np.unique(named, return_inverse=True)
  if len(different) < 2:
    raise RunError(f'column {group!r} must name two runs at least, found {len(different)}')
  held = {
    name: float(np.log(np.maximum(value, 1e-300))) if log else float(value)
    for name, log in zip(form.params, form.logs, strict=True)
    for value in [(fixed or {}).get(name)] if value is not None
  }  # fmt: skip
  problem = Problem(form, logs[:-1], logs[-1], delta if loss == 'huber' else None, held, runs)
  needed, distinct = len(problem.free) + 1, len(np.unique(logs[:-1], axis=1).T)
  if distinct < needed:
    raise RunError(
      f'{law} has {needed - 1} free parameters and needs {needed} points of different '
      f'{", ".join(names)}, found {distinct}'
    )
  found = problem.solve(problem.starts(starts))
  best = int(found.objective.argmin())
  phi, objective = problem.ordered(found.theta)[best], float(found.objective[best])
  bound = (phi <= problem.bounds[0]) | (phi >= problem.bounds[1])
  convergence = Convergence(
    starts, float((found.objective <= objective * (1 + 1e-6) + 1e-24).mean()), objective,
    float(found.gradient[best]), tuple(form.params[i] for i in problem.free[bound]),
  )  # fmt: skip
  if interval == 'auto':
    interval = 'robust' if loss == 'squared' else 'bootstrap'
  known = {**getattr(data, 'units', {}), **(units or {})}
  units = {name: known.get(name, name) for name in (*names, y)}
  params = {name: float(value[0]) for name, value in problem.published(phi[None]).items()}
  settings = dict(
    loss=loss, delta=problem.delta, group=group, starts=starts, draws=draws, seed=seed,
    fixed=dict(fixed or {}), where=where,
  )  # fmt: skip
  return Fit(
    form, params, names, y, units, interval, level, convergence, settings, problem, phi, named
  )


def _check(
  law: Law, names: tuple[str, ...], loss: str, delta: float, level: float, interval: str,
  fixed: Mapping[str, float],
) -> None:  # fmt: skip
  if len(names) != len(law.inputs):
    raise RunError(
      f'{law.name} has the inputs {", ".join(law.inputs)}: x must name as many columns, '
      f'found {", ".join(names)}'
    )
  for word, options in ((loss, LOSSES), (interval, INTERVALS)):
    if word not in options:
      raise RunError(f'{word!r} is not known: {suggest(word, options)}')
  if interval in ('robust', 'profile') and loss == 'huber':
    raise RunError("profiles are for loss='squared': take interval='bootstrap'")
  if not 0 < level < 1 or not delta > 0:
    raise RunError(f'level must be between 0 and 1 and delta positive, found {level}, {delta}')
  for name, value in fixed.items():
    if name not in law.params:
      raise RunError(f'{law.name} has no parameter {name!r}: {suggest(name, law.params)}')
    positive = dict(zip(law.params, law.logs, strict=True))[name]
    if not np.isfinite(value) or (positive and value <= 0 and name not in law.vanishing):
      raise RunError(f'{name} of {law.name} cannot be {value}')


def _raw(data: Any, name: str) -> np.ndarray:
  try:
    return np.asarray(data[name])
  except (KeyError, IndexError, TypeError, ValueError):
    named = getattr(data, 'columns', data if isinstance(data, Mapping) else None)
    if named is None:
      raise RunError(f'data must have columns, data[{name!r}], not be {type(data)}') from None
    known = ', '.join(map(str, named))
    raise RunError(f'there is no column {name!r} among {known}') from None


def _column(data: Any, name: str) -> Array:
  """A column of positive numbers."""
  column = table.floats(_raw(data, name), name)
  wrong = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
  if wrong.size:
    rows = ', '.join(map(str, wrong[:8])) + (', ...' if wrong.size > 8 else '')
    raise RunError(
      f'column {name!r} must be positive and finite: rows {rows} (from 0) hold '
      f'{", ".join(f"{v:g}" for v in column[wrong[:8]])}; where={name + ">0"!r} leaves them out'
    )
  return column
