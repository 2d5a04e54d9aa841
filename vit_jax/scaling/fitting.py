"""Fits a scaling law to data, and says what the fit is worth."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import RunError, suggest
from vit_jax.scaling import uncertainty
from vit_jax.scaling.forms import Array, Law
from vit_jax.scaling.laws import LAWS
from vit_jax.scaling.problem import Problem

Scalar = Callable[[dict[str, Array]], Array]


class Prediction(NamedTuple):
  """Of y, in its units; arrays of one shape.

  Attributes:
    value: of the fitted curve.
    low: lower end of the band that holds the curve.
    high: its upper end.
    new_low: lower end of the band that holds a new run.
    new_high: its upper end.
  """

  value: Array
  low: Array
  high: Array
  new_low: Array
  new_high: Array


class Convergence(NamedTuple):
  """How sure the optimum is.

  Attributes:
    starts: that were searched from.
    share: of them that reached the best objective, to one part in a million.
    objective: the sum over points of r^2 / 2 or of Huber's loss, r = log y - log of the fit.
    gradient: the largest cosine between residuals and a column of their Jacobian; 0 is exact.
    at_bound: parameters that ended at a bound of the search, a floor of 0 among them.
  """

  starts: int
  share: float
  objective: float
  gradient: float
  at_bound: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
  """A law fitted to data; made by `fit`.

  Attributes:
    law: what was fitted.
    params: by published name, in the units of the data.
    x: columns of the inputs.
    y: column of the target.
    units: by column.
    interval: 'profile' or 'bootstrap'.
    level: of the intervals.
    convergence: of the search.
    settings: the other arguments of `fit`.
  """

  law: Law
  params: dict[str, float]
  x: tuple[str, ...]
  y: str
  units: dict[str, str]
  interval: str
  level: float
  convergence: Convergence
  settings: dict[str, Any]
  _problem: Problem
  _phi: Array

  @functools.cached_property
  def ci(self) -> dict[str, tuple[float, float]]:
    """Intervals of the parameters at `level`; what is held has none."""
    return self.intervals(self.level)

  @functools.cached_property
  def draws(self) -> dict[str, Array]:
    """Published parameters of fits to resampled data, by name; shape (draws,)."""
    return self._problem.published(self._resampled)

  @functools.cached_property
  def _resampled(self) -> Array:
    return uncertainty.resample(
      self._problem, self._phi, self.settings['draws'], self.settings['seed']
    )

  @functools.cached_property
  def residuals(self) -> Array:
    """log y - log of the fit, shape (n,)."""
    return self._problem.data.z - self._problem.curve(self._phi[None], self._problem.data.u)[0][0]

  @functools.cached_property
  def noise(self) -> float:
    """Standard deviation of the residuals, for the number of parameters."""
    free = len(self._problem.y) - len(self._phi)
    return float(np.sqrt((self.residuals**2).sum() / free))

  def intervals(self, level: float) -> dict[str, tuple[float, float]]:
    """As `ci`, at another level."""
    free = self._problem.free
    if self.interval == 'bootstrap':
      natural = self._problem.natural(self._resampled)[0]
      ends = np.quantile(natural, [(1 - level) / 2, (1 + level) / 2], axis=0)[:, free]
    else:
      places = np.repeat(free, 2)

      def quantity(phi: Array, rows: np.ndarray) -> tuple[Array, Array]:
        value, jacobian = self._problem.natural(phi)
        every = np.arange(len(phi))
        return value[every, places[rows]], jacobian[every, places[rows]]

      ends = self._profile(quantity, len(free), level)
    out = {}
    for place, low, high in zip(free, *ends, strict=True):
      if self.law.logs[place]:
        low, high = np.exp(low), np.exp(high)
      out[self.law.params[place]] = (float(low), float(high))
    return out

  def _profile(self, quantity: Any, count: int, level: float, *, new: bool = False) -> Array:
    """Ends of `count` quantities, of which rows 2 i and 2 i + 1 are the i-th; shape (2, count)."""
    rows = 2 * count
    n, p = len(self._problem.y), len(self._phi)
    phi, objective = np.tile(self._phi, (rows, 1)), np.full(rows, self.convergence.objective)
    side = np.tile([-1.0, 1.0], count)
    rise = objective * uncertainty.threshold(level, n, p)
    ends = uncertainty.profile(self._problem, phi, objective, quantity, side, rise, new=new)
    return ends.reshape(count, 2).T

  def predict(
    self, x: Any, *, unit: str | Mapping[str, str] | None = None, level: float | None = None
  ) -> Prediction:
    """y at `x`, with a band for the curve and one for a new run.

    Args:
      x: numbers, or a mapping of the fit's columns to numbers of one shape.
      unit: of x, to be checked against the fit's: exponents in FLOPs are not those in core-days.
      level: of the bands.

    Raises:
      RunError: for another unit, other columns, or numbers that are not positive.
    """
    columns = self._columns(x, unit)
    shape = np.broadcast_shapes(*(np.shape(c) for c in columns))
    logs = np.stack([np.log(np.broadcast_to(c, shape)).ravel() for c in columns])
    u = logs - self._problem.centre.x[:, None]
    level = self.level if level is None else level
    value = self._problem.curve(self._phi[None], u)[0][0]
    bands = self._bands(u, level)
    y = self._problem.centre.y
    return Prediction(*(np.exp(a + y).reshape(shape) for a in (value, *bands)))

  def _bands(self, u: Array, level: float) -> tuple[Array, Array, Array, Array]:
    """Of log y at centred inputs of shape (inputs, m): of the curve, then of a new run."""
    if self.interval == 'bootstrap':
      curves = self._problem.curve(self._resampled, u)[0]
      ends = [(1 - level) / 2, (1 + level) / 2]
      rng = np.random.default_rng(self.settings['seed'])
      noise = rng.choice(self.residuals, curves.shape)
      return (*np.quantile(curves, ends, axis=0), *np.quantile(curves + noise, ends, axis=0))
    at = np.repeat(u, 2, axis=1)

    def quantity(phi: Array, rows: np.ndarray) -> tuple[Array, Array]:
      value, gradient = self._problem.curve(phi, at[:, rows, None])
      return value[:, 0], gradient[:, 0]

    curve = self._profile(quantity, u.shape[1], level)
    new = self._profile(quantity, u.shape[1], level, new=True)
    return (*curve, *new)

  def _columns(self, x: Any, unit: str | Mapping[str, str] | None) -> list[Array]:
    if isinstance(unit, str) and len(self.x) != 1:
      raise RunError(f'give the units of {", ".join(self.x)} as a mapping, not {unit!r}')
    units = {self.x[0]: unit} if isinstance(unit, str) else dict(unit or {})
    for name, given in units.items():
      if name not in self.x:
        raise RunError(f'the fit has no input {name!r}: {suggest(name, self.x)}')
      if given != self.units[name]:
        raise RunError(
          f'{name} of this fit is in {self.units[name]}, not {given}: fit again in {given}'
        )
    if not isinstance(x, Mapping):
      if len(self.x) != 1:
        raise RunError(f'the fit has the inputs {", ".join(self.x)}: give a mapping')
      x = {self.x[0]: x}
    if set(x) != set(self.x):
      raise RunError(f'the fit has the inputs {", ".join(self.x)}, found {", ".join(map(str, x))}')
    columns = [np.asarray(x[name], float) for name in self.x]
    for name, column in zip(self.x, columns, strict=True):
      if not (np.isfinite(column) & (column > 0)).all():
        raise RunError(f'{name} must be positive and finite, found {column}')
    return columns


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
    interval: 'profile' (of the sum of squares), 'bootstrap', or 'auto': profiles for squared loss
      of independent points.
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
  if isinstance(data, str | pathlib.Path):
    from vit_jax.scaling import table

    data = table.read(data)
  if where:
    from vit_jax.scaling import table

    data = table.where(data, where)
  logs = np.log(np.stack([_column(data, name) for name in (*names, y)]))
  runs = None
  if group is not None:
    runs = np.unique(_raw(data, group), return_inverse=True)[1]
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
  phi, objective = found.theta[best], float(found.objective[best])
  bound = (phi <= problem.bounds[0]) | (phi >= problem.bounds[1])
  convergence = Convergence(
    starts, float((found.objective <= objective * (1 + 1e-6) + 1e-24).mean()), objective,
    float(found.gradient[best]), tuple(form.params[i] for i in problem.free[bound]),
  )  # fmt: skip
  if interval == 'auto':
    interval = 'profile' if loss == 'squared' and group is None else 'bootstrap'
  known = {**getattr(data, 'units', {}), **(units or {})}
  units = {name: known.get(name, name) for name in (*names, y)}
  params = {name: float(value[0]) for name, value in problem.published(phi[None]).items()}
  settings = dict(
    loss=loss, delta=problem.delta, group=group, starts=starts, draws=draws, seed=seed,
    fixed=dict(fixed or {}), where=where,
  )  # fmt: skip
  return Fit(
    form, params, names, y, units, interval, level, convergence, settings, problem, phi
  )  # fmt: skip


def _check(
  law: Law, names: tuple[str, ...], loss: str, delta: float, level: float, interval: str,
  fixed: Mapping[str, float],
) -> None:  # fmt: skip
  if len(names) != len(law.inputs):
    raise RunError(
      f'{law.name} has the inputs {", ".join(law.inputs)}: x must name as many columns, '
      f'found {", ".join(names)}'
    )
  for word, options in ((loss, ('squared', 'huber')), (interval, ('auto', 'profile', 'bootstrap'))):
    if word not in options:
      raise RunError(f'{word!r} is not known: {suggest(word, options)}')
  if interval == 'profile' and loss == 'huber':
    raise RunError('profiles are for loss="squared": take interval="bootstrap"')
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
  except KeyError:
    known = ', '.join(map(str, data)) if isinstance(data, Mapping) else 'others'
    raise RunError(f'there is no column {name!r} among {known}') from None


def _column(data: Any, name: str) -> Array:
  """A column of positive numbers."""
  raw = _raw(data, name)
  try:
    column = raw.astype(float)
  except (TypeError, ValueError):
    raise RunError(f'column {name!r} holds {raw.dtype}, not numbers') from None
  wrong = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
  if wrong.size:
    rows = ', '.join(map(str, wrong[:8])) + (', ...' if wrong.size > 8 else '')
    raise RunError(
      f'column {name!r} must be positive and finite: rows {rows} (from 0) hold '
      f'{", ".join(f"{v:g}" for v in column[wrong[:8]])}'
    )
  return column
