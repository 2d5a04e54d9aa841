"""A fitted law: its parameters, how far the data leave them open, and what it predicts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from vit_jax.core.errors import RunError, suggest
from vit_jax.scaling import evidence, uncertainty
from vit_jax.scaling.forms import Array, Law, exp
from vit_jax.scaling.problem import Problem, Quantity
from vit_jax.scaling.report import Convergence, Influence, Reported

LOOKED_AT = 256  # runs that are left out in turn
FURTHEST = 1e6  # beyond the data, as a factor: where the search for the limit ends


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


@dataclasses.dataclass(frozen=True, eq=False)
class Fit(Reported):
  """A law fitted to data; made by `fit`.

  Attributes:
    law: what was fitted.
    params: by published name, in the units of the data.
    x: columns of the inputs.
    y: column of the target.
    units: by column.
    interval: 'robust', 'profile' or 'bootstrap'.
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
  _runs: np.ndarray

  @functools.cached_property
  def ci(self) -> dict[str, tuple[float, float]]:
    """Intervals of the parameters at `level`; what is held has none."""
    return self.intervals(self.level)

  @functools.cached_property
  def doubts(self) -> list[str]:
    """Why nothing is known beyond the data, a sentence each; none if the law may be extrapolated.

    Where there is a doubt, bands beyond the data have no end.
    """
    return evidence.doubts(self._problem, self._phi, self.x, self.y, self._unseen)

  @functools.cached_property
  def unidentified(self) -> tuple[str, ...]:
    """Parameters of which the data say nothing, because y is not shown to depend on an input."""
    free = self._problem.free
    opened = self._opened(self._problem.natural(self._phi[None])[1][0][free])
    return tuple(self.law.params[i] for i, is_open in zip(free, opened, strict=True) if is_open)

  @functools.cached_property
  def _unseen(self) -> list[evidence.Unseen]:
    return evidence.unseen(self._problem, self._phi)

  def _opened(self, slope: Array) -> np.ndarray:
    """Which quantities with gradients (count, free) move where the data say nothing; (count,)."""
    spaces = np.concatenate([np.zeros((len(self._phi), 0)), *(u.open for u in self._unseen)], 1)
    return np.any(np.abs(slope @ spaces) > 1e-6, axis=1)

  @functools.cached_property
  def draws(self) -> dict[str, Array]:
    """Published parameters of fits to resampled runs, by name; shape (draws,)."""
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
    """Standard deviation of log y around the law, corrected for what the parameters took up.

    In the mean over the data: bands of new runs follow it where it grows.
    """
    return float(np.sqrt((self.residuals**2).mean() * len(self._problem.members) / self._left))

  @property
  def _left(self) -> int:
    """Runs beyond those that the parameters take up."""
    return max(len(self._problem.members) - len(self._phi), 1)

  @functools.cached_property
  def se(self) -> dict[str, float]:
    """Standard errors: of exponents themselves, of the logarithms of positive parameters."""
    return self._by_name(0)

  @functools.cached_property
  def degrees(self) -> dict[str, float]:
    """Degrees of freedom of the standard errors: intervals are about t of them `se` wide."""
    return self._by_name(1)

  def _by_name(self, which: int) -> dict[str, float]:
    free = self._problem.free
    slope = self._problem.natural(self._phi[None])[1][0][free]
    values = self._errors(slope)[which]
    if which == 0:
      values = np.where(self._opened(slope), np.inf, values)
    return {self.law.params[i]: float(value) for i, value in zip(free, values, strict=True)}

  def _errors(self, slope: Array) -> tuple[Array, Array]:
    """Standard errors of quantities with gradients (count, free); their degrees of freedom."""
    variance, degrees = self._spread(slope)
    if self.interval == 'bootstrap':
      return ((self._resampled - self._phi) @ slope.T).std(0), degrees
    phi = np.tile(self._phi, (len(slope), 1))
    return np.sqrt(variance * uncertainty.variance(self._problem, phi, slope)), degrees

  def _spread(self, slope: Array) -> tuple[Array, Array]:
    """Variance of the noise for quantities with gradients (count, free); degrees of freedom."""
    if self.interval == 'robust':
      phi = np.tile(self._phi, (len(slope), 1))
      residuals = np.broadcast_to(self.residuals, (len(slope), len(self.residuals)))
      return uncertainty.inflation(self._problem, phi, residuals, slope)
    return np.full(len(slope), self.noise**2), np.full(len(slope), float(self._left))

  def intervals(self, level: float) -> dict[str, tuple[float, float]]:
    """As `ci`, at another level."""
    free = self._problem.free
    low, high = self._ends(self._problem.natural, free, level)
    bound = self._problem.law.ranges(self._problem.data)[0]
    natural = self._problem.law.natural(bound[None], self._problem.centre)[0][0]
    out = {}
    for i, place in enumerate(free):
      name, ends = self.law.params[place], (low[i], high[i])
      if self.law.logs[place]:
        ends = tuple(exp(ends))
        if self.params[name] == 0 or (
          name in self.law.vanishing and low[i] <= natural[place] + 1e-6
        ):
          ends = (0.0, ends[1])
        if self.params[name] == 0 and self.interval == 'bootstrap' and np.isfinite(high[i]):
          # Nothing can be stretched about the logarithm of 0.
          upper = np.quantile(self.draws[name], (1 + level) / 2)
          ends = (0.0, self._stretch(level) * upper)
      out[name] = (float(ends[0]), float(ends[1]))
    return out

  def ci_of(
    self, function: Callable[[dict[str, Array]], Array], level: float | None = None
  ) -> tuple[float, float, float]:
    """What follows from the parameters, with an interval: `ci_of(sovit_exponent)`.

    Args:
      function: of published parameters, each an array of shape (batch,), to an array of that shape.
      level: of the interval.

    Returns:
      Value, lower and upper end.
    """
    value = float(function(self._problem.published(self._phi[None]))[0])
    log = value > 0

    def quantity(phi: Array) -> tuple[Array, Array]:
      steps = np.concatenate([np.eye(phi.shape[1]), -np.eye(phi.shape[1])]) * 1e-5
      around = np.concatenate([phi[:, None], phi[:, None] + steps], 1)
      values = function(self._problem.published(around.reshape(-1, phi.shape[1])))
      values = np.asarray(values).reshape(around.shape[:2])
      values = np.log(np.maximum(values, 1e-300)) if log else values
      ahead, back = np.split(values[:, 1:], 2, axis=1)
      return values[:, :1], ((ahead - back) / 2e-5)[:, None]

    level = self.level if level is None else level
    low, high = (float(end[0]) for end in self._ends(quantity, np.zeros(1, int), level))
    return (value, float(exp(low)), float(exp(high))) if log else (value, low, high)

  def _ends(
    self, function: Callable[[Array], tuple[Array, Array]], places: np.ndarray, level: float
  ) -> tuple[Array, Array]:
    """Intervals of the columns `places` of a function of phi with Jacobian; shapes (count,)."""
    value, jacobian = function(self._phi[None])
    value, slope = value[0, places], jacobian[0, places]
    opened = self._opened(slope)
    if self.interval == 'bootstrap':
      ends = self._quantiles(function(self._resampled)[0][:, places], value, level)
      return _opened(opened, *ends)
    sides = np.repeat(places, 2)

    def quantity(phi: Array, rows: np.ndarray) -> tuple[Array, Array]:
      value, jacobian = function(phi)
      every = np.arange(len(phi))
      return value[every, sides[rows]], jacobian[every, sides[rows]]

    return _opened(opened, *self._profile(quantity, slope, level))

  def _profile(self, quantity: Quantity, slope: Array, level: float) -> tuple[Array, Array]:
    """Ends of quantities, of which rows 2 i and 2 i + 1 are the i-th, with gradients `slope`."""
    count = len(slope)
    phi = np.tile(self._phi, (2 * count, 1))
    variance, degrees = self._spread(slope)
    rise = stats.t.ppf((1 + level) / 2, degrees) ** 2 * variance / 2
    ends = uncertainty.profile(
      self._problem, phi, np.full(2 * count, self.convergence.objective), quantity,
      np.tile([-1.0, 1.0], count), np.repeat(rise, 2),
    )  # fmt: skip
    return ends[::2], ends[1::2]

  def _quantiles(self, drawn: Array, value: Array, level: float) -> tuple[Array, Array]:
    """Ends of draws (draws, count), stretched about the estimate for the number of runs."""
    half = (1 + level) / 2
    spread = self._stretch(level) * (drawn - value)
    low, high = np.quantile(value + spread, [1 - half, half], axis=0)
    return low, high

  def _stretch(self, level: float) -> float:
    """By how much the deviations of draws are too small."""
    half, left = (1 + level) / 2, self._left
    stretch = np.sqrt(len(self._problem.members) / left)
    if self._problem.runs is not None:  # few runs have thin tails
      stretch *= stats.t.ppf(half, left) / stats.norm.ppf(half)
    return float(stretch)

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
    value, low, high = self._band(u, level)
    # A new run has its own error, which adds to that of the curve in squares.
    fitted = self._problem.data.z - self.residuals
    noise = uncertainty.noise_at(self._problem, self.residuals[None], fitted[None], value[None])[0]
    own = noise * stats.t.ppf((1 + level) / 2, self._left)
    new = value - np.hypot(value - low, own), value + np.hypot(high - value, own)
    y = self._problem.centre.y
    return Prediction(*(exp(a + y).reshape(shape) for a in (value, low, high, *new)))

  def _band(self, u: Array, level: float) -> tuple[Array, Array, Array]:
    """log y, centred, and the ends of its band at centred inputs of shape (inputs, m)."""
    value, slope = (a[0] for a in self._problem.curve(self._phi[None], u))
    data = self._problem.data.u
    outside = (u < data.min(1, keepdims=True) - 1e-9) | (u > data.max(1, keepdims=True) + 1e-9)
    opened = outside.any(0) & bool(self.doubts)
    if self.interval == 'bootstrap':
      drawn = self._problem.curve(self._resampled, u)[0]
      return (value, *_opened(opened, *self._quantiles(drawn, value, level)))
    at = np.repeat(u, 2, axis=1)

    def quantity(phi: Array, rows: np.ndarray) -> tuple[Array, Array]:
      value, gradient = self._problem.curve(phi, at[:, rows, None])
      return value[:, 0], gradient[:, 0]

    return (value, *_opened(opened, *self._profile(quantity, slope, level)))

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

  def limit(self, tolerance: float = 0.1, level: float | None = None) -> float | None:
    """How far the curve may be extrapolated, by its band alone: a wrong law has a narrow one too.

    Args:
      tolerance: largest half-width of the band of the curve, relative to y.
      level: of the band.

    Returns:
      The largest value of the law's scale (compute, say) with a narrower band, 0 if there is none,
      None if there is no end up to a million times the data. Other inputs follow the scale as they
      do in the data. Where there are `doubts` it lies inside the data.
    """
    level = self.level if level is None else level
    return self._end(tolerance, self._band(self._outwards, level))

  @functools.cached_property
  def _outwards(self) -> Array:
    """Centred inputs from the smallest scale of the data to far beyond; shape (inputs, m)."""
    u = self._problem.data.u
    scale = u[self.law.scale]
    steps = np.linspace(scale.min(), scale.max() + np.log(FURTHEST), 40)
    return (u @ scale / (scale @ scale))[:, None] * steps

  def _end(self, tolerance: float, band: tuple[Array, Array, Array]) -> float | None:
    """As for `limit`, of any band at `_outwards`."""
    value, low, high = band
    steps = self._outwards[self.law.scale]
    excess = np.maximum(value - low, high - value) - np.log1p(tolerance)
    good = np.flatnonzero(excess <= 0)
    if not good.size:
      return 0.0
    last = good[-1]
    if last == len(steps) - 1:
      return None
    share = excess[last] / (excess[last] - excess[last + 1])  # 0 if the next band has no end
    end = steps[last] + share * (steps[last + 1] - steps[last])
    return float(np.exp(end + self._problem.centre.x[self.law.scale]))

  @functools.cached_property
  def influence(self) -> list[Influence]:
    """On every exponent of every run, and of the worst 2 % of runs together; largest first.

    Of many runs only the `LOOKED_AT` are tried that seem to matter most.
    """
    problem, phi, members = self._problem, self._phi, self._problem.members
    # Cook's distance: how far leaving a run out moves the fit, to first order.
    scores = problem.curve(phi[None], problem.data.u)[1][0] * self.residuals[:, None]
    scores = np.array([scores[points].sum(0) for points in members])
    curvature = uncertainty.curvature(problem, phi[None])[0]
    distance = (scores * np.linalg.solve(curvature, scores.T).T).sum(1)
    single = np.sort(np.argsort(-distance, kind='stable')[:LOOKED_AT])
    misfit = [np.abs(self.residuals[points]).mean() for points in members]
    worst = np.argsort(misfit)[::-1][: max(2, len(members) // 50)]
    left_out = [*([run] for run in single), worst]
    weights = np.ones((len(left_out), len(problem.y)))
    for row, runs in zip(weights, left_out, strict=True):
      row[np.concatenate([members[run] for run in runs])] = 0
    left_out = [runs for runs, row in zip(left_out, weights, strict=True) if row.sum() > len(phi)]
    weights = weights[weights.sum(1) > len(phi)]
    if not left_out:
      return []
    many = np.tile(phi, (len(weights), 1))
    without = problem.solve(many, weights=weights, tolerance=1e-9).theta
    shifts = problem.natural(without)[0] - problem.natural(phi[None])[0]
    residuals = problem.data.z - problem.curve(without, problem.data.u)[0]
    quieter = (weights * residuals**2).sum(1) / weights.sum(1)
    quieter /= max(float((self.residuals**2).mean()), 1e-300)
    slopes = problem.natural(phi[None])[1][0]
    out = []
    for place, name in enumerate(self.law.params):
      if self.law.logs[place] or not np.isfinite(self.se.get(name, np.inf)):
        continue
      slope = np.tile(slopes[place], (len(weights), 1))
      wider = uncertainty.variance(problem, without, slope, weights)
      wider /= uncertainty.variance(problem, many, slope)
      error = np.maximum(self.se[name] * np.sqrt(wider * quieter), 1e-300)
      for left, shift in zip(left_out, shifts[:, place] / error, strict=True):
        runs = tuple(self._runs[members[run][0]].item() for run in left)
        out.append(Influence(runs, name, float(shift)))
    return sorted(out, key=lambda i: -abs(i.shift))


def _opened(opened: np.ndarray, low: Array, high: Array) -> tuple[Array, Array]:
  """Ends of intervals, infinite where they are open."""
  return np.where(opened, -np.inf, low), np.where(opened, np.inf, high)
