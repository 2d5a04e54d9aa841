"""Fits a scaling law to data."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.scaling import table
from vit_jax.scaling.forms import Law
from vit_jax.scaling.laws import LAWS
from vit_jax.scaling.problem import Problem
from vit_jax.scaling.result import Convergence, Fit

LOSSES = ('squared', 'huber')
MOST = 100_000  # starts or draws, which are all in memory at once
STEEPEST = 100  # exponents beyond that make numbers that no float holds
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
  _check(form, names, y, loss, delta, level, interval, fixed or {})
  if interval == 'auto':
    interval = 'robust' if loss == 'squared' else 'bootstrap'
  _counts(starts=(starts, 1, MOST), draws=(draws, 1, MOST), seed=(seed, 0, 2**63 - 1))
  least = math.ceil(2 / (1 - level))  # so that one draw at least lies beyond each end
  if interval == 'bootstrap' and draws < least:
    raise RunError(
      f'a bootstrap of {level:.4g} intervals takes {least} draws at least, not {draws}'
    )
  if isinstance(data, str | paths.Path):
    data = table.read(data)
  if where:
    data = table.where(data, where)
  columns = [table.positive(_raw(data, name), name) for name in (*names, y)]
  named = np.arange(len(columns[0])) if group is None else _named(data, group)
  if len({len(column) for column in (*columns, named)}) > 1:
    raise RunError(f'columns differ in length: {[len(column) for column in (*columns, named)]}')
  logs = np.log(np.stack(columns))
  held = {
    name: float(np.log(np.maximum(value, 1e-300))) if log else float(value)
    for name, log in zip(form.params, form.logs, strict=True)
    for value in [(fixed or {}).get(name)] if value is not None
  }  # fmt: skip
  different, runs = np.unique(named, return_inverse=True)
  problem = Problem(form, logs[:-1], logs[-1], delta if loss == 'huber' else None, held, runs)
  _enough(problem, names, logs.shape[1])
  if len(different) < 2:
    raise RunError(f'column {group!r} must name two runs at least, found {len(different)}')
  found = problem.solve(problem.starts(starts))
  best = int(found.objective.argmin())
  phi, objective = problem.ordered(found.theta)[best], float(found.objective[best])
  bound = (phi <= problem.bounds[0]) | (phi >= problem.bounds[1])
  convergence = Convergence(
    starts, float((found.objective <= objective * (1 + 1e-6) + 1e-24).mean()), objective,
    float(found.gradient[best]), tuple(form.params[i] for i in problem.free[bound]),
  )  # fmt: skip
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
  law: Law, names: tuple[str, ...], y: str, loss: str, delta: float, level: float, interval: str,
  fixed: Mapping[str, float],
) -> None:  # fmt: skip
  if len(names) != len(law.inputs):
    raise RunError(
      f'{law.name} has the inputs {", ".join(law.inputs)}: x must name as many columns, '
      f'found {", ".join(names)}'
    )
  if len({*names, y}) <= len(names):
    raise RunError(f'x and y must be different columns, found x={",".join(names)} and y={y}')
  for word, options in ((loss, LOSSES), (interval, INTERVALS)):
    if word not in options:
      raise RunError(f'{word!r} is not known: {suggest(word, options)}')
  if interval in ('robust', 'profile') and loss == 'huber':
    raise RunError("profiles are for loss='squared': take interval='bootstrap'")
  if not 0.5 <= level < 1:
    raise RunError(f'level must be between 0.5 and 1, such as 0.95, found {level}')
  if not 1e-9 <= delta <= 1e3:
    raise RunError(f'delta, in log y, must be between 1e-9 and 1000, found {delta:g}')
  for name, value in fixed.items():
    if name not in law.params:
      raise RunError(f'{law.name} has no parameter {name!r}: {suggest(name, law.params)}')
    positive = dict(zip(law.params, law.logs, strict=True))[name]
    if not positive and abs(value) > STEEPEST:
      raise RunError(
        f'{name} of {law.name} is an exponent, at most {STEEPEST} either way, and cannot be {value}'
      )
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


def _named(data: Any, group: str) -> np.ndarray:
  """The run of every point."""
  named = _raw(data, group)
  missing = np.flatnonzero([str(each).lower() in table.MISSING for each in named])
  if missing.size:
    raise RunError(
      f'column {group!r} must name the run of every row, and does not in {missing.size} of '
      f'{len(named)} rows, the first of them row {missing[0]} (from 0)'
    )
  return named


def _counts(**options: tuple[int, int, int]) -> None:
  """Raises RunError unless every number is a whole one between its ends."""
  for name, (count, least, most) in options.items():
    whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
    if not whole or not least <= count <= most:
      raise RunError(f'{name} must be a whole number from {least} to {most}, found {count}')


def _enough(problem: Problem, names: tuple[str, ...], rows: int) -> None:
  """Raises RunError if there are too few rows for the law, or they repeat each other."""
  law, free = problem.law.name, len(problem.free)
  distinct = len(np.unique(problem.x.round(9), axis=1).T)  # what differs by rounding is the same
  if not free:
    raise RunError(f'{law} has no parameter left to fit: all of them are given')
  if distinct <= free:
    plural = 's' if free > 1 else ''
    raise RunError(
      f'{law} has {free} free parameter{plural} and needs {free + 1} rows of different '
      f'{", ".join(names)} at least, found {rows} row{"s" if rows > 1 else ""}'
      + (f' of {distinct} different' if distinct < rows else '')
    )
  powers = [power for term in problem.law.terms for power in term.powers]
  for i, (name, values) in enumerate(zip(names, problem.x, strict=True)):
    exponents = {power.exponent for power in powers if power.basis.x == problem.law.inputs[i]}
    if np.ptp(values) < 1e-9 and not exponents <= problem.held.keys():
      raise RunError(
        f'{name} is {np.exp(values[0]):.6g} in all {rows} rows: {law} needs different values of it'
      )
