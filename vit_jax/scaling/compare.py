"""Whether two families scale differently: differences with intervals, not slopes by eye.

Intervals of two fits are joined as Zou and Donner do (2008, Construction of confidence intervals
about effect measures): distances from the estimates to the ends of their intervals add in squares.
Distances are counted in standard errors first, and the sum has Welch's degrees of freedom, so that
small samples are neither called different nor alike too often.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from vit_jax.core.errors import RunError, suggest
from vit_jax.scaling.forms import Array
from vit_jax.scaling.result import Fit

GRID = 192  # values of x at which bands are followed


class Difference(NamedTuple):
  """Of a parameter of two fits.

  Attributes:
    parameter: its name.
    value: of the first fit minus that of the second.
    ci: interval of the difference.
    p: how often chance alone makes a difference of this size; below 1 - level, 0 is outside `ci`.
    level: of the interval.
  """

  parameter: str
  value: float
  ci: tuple[float, float]
  p: float
  level: float

  def __str__(self) -> str:
    """One sentence."""
    low, high = self.ci
    verdict = 'differ' if self.p < 1 - self.level else 'are not shown to differ'
    return (
      f'{self.parameter}: {self.value:+.3g} [{low:+.3g}, {high:+.3g}], p = {self.p:.2g}: at '
      f'{self.level:.0%} the families {verdict}'
    )


class Multiplier(NamedTuple):
  """How many times more of x the second family takes to reach the same y.

  Attributes:
    at: the y.
    value: x of the second fit over x of the first.
    ci: interval; an end is 0 or infinite where a band never reaches y.
    inside: whether both families have runs on both sides of y.
  """

  at: float
  value: float
  ci: tuple[float, float]
  inside: bool


class Crossing(NamedTuple):
  """Where two curves cross.

  Attributes:
    x: of the crossing.
    ci: the values of x around it at which the curves are not shown to differ; an end is 0 or
      infinite where this goes on to the end of what was searched.
  """

  x: float
  ci: tuple[float, float]


def compare(fit_a: Fit, fit_b: Fit, parameter: str = 'b', level: float = 0.95) -> Difference:
  """The difference of a parameter between two families.

  Args:
    fit_a: of the first family.
    fit_b: of the second: the same law, columns and units, other runs.
    parameter: by published name.
    level: of the interval.

  Raises:
    RunError: the fits are not of one kind, or the parameter is not fitted in both.
  """
  _check(fit_a, fit_b)
  if fit_a.law.name != fit_b.law.name:
    raise RunError(
      f'parameters of different laws cannot be compared: {fit_a.law.name} and {fit_b.law.name}'
    )
  ends = [fit.intervals(level) for fit in (fit_a, fit_b)]
  for fit, end in zip((fit_a, fit_b), ends, strict=True):
    if parameter not in fit.params:
      raise RunError(
        f'{fit.law.name} has no parameter {parameter!r}: {suggest(parameter, fit.params)}'
      )
    if parameter not in end:
      raise RunError(f'{parameter} of {fit.law.name} was given, not fitted')
  a, b = (
    _Spread.of(fit.params[parameter], *end[parameter], fit.degrees[parameter], level)
    for fit, end in zip((fit_a, fit_b), ends, strict=True)
  )
  low, high, p = _minus(a, b, level)
  return Difference(parameter, float(a.value - b.value), (float(low), float(high)), float(p), level)


def multiplier(
  fit_a: Fit, fit_b: Fit, at: ArrayLike, *, level: float = 0.95, reach: float = 1e3
) -> list[Multiplier]:
  """How much more compute the second family takes to reach what the first does.

  Args:
    fit_a: of the first family, y falling in one input.
    fit_b: of the second.
    at: values of y, losses say, at which the x of both are compared.
    level: of the intervals.
    reach: how far beyond the data curves are followed, as a factor.

  Returns:
    One per value, in order. Above 1 the first family is the cheaper one.

  Raises:
    RunError: the fits are not of one kind, or a curve does not reach a value.
  """
  _check(fit_a, fit_b)
  wanted = np.log(np.atleast_1d(np.asarray(at, float)))
  grid, bands = _bands(fit_a, fit_b, level, reach)
  spreads = []
  for fit, (value, low, high) in zip((fit_a, fit_b), bands, strict=True):
    ends = []
    for y in wanted:
      places = np.flatnonzero((value[1:] <= y) != (value[:-1] <= y))
      if not places.size:
        raise RunError(
          f'{fit.law.name} does not reach {fit.y} {np.exp(y):.4g} within a factor of {reach:g} of '
          f'the data: it goes from {np.exp(value.max()):.4g} to {np.exp(value.min()):.4g}'
        )
      x = _root(grid, value - y, places[0])
      ends.append((x, *_around(grid, np.maximum(low - y, y - high), places[0])))
    x, left, right = np.array(ends).T
    spreads.append(_Spread.of(x, left, right, _degrees(fit, x), level))
  a, b = spreads
  low, high, _ = _minus(b, a, level)
  measured = [fit._problem.y for fit in (fit_a, fit_b)]
  return [
    Multiplier(
      float(np.exp(y)), float(np.exp(b.value[i] - a.value[i])),
      (float(np.exp(low[i])), float(np.exp(high[i]))),
      all(m.min() <= y <= m.max() for m in measured),
    )
    for i, y in enumerate(wanted)
  ]  # fmt: skip


def crossing(
  fit_a: Fit, fit_b: Fit, *, level: float = 0.95, reach: float = 10.0
) -> Crossing | None:
  """Where the curves of two families cross.

  Args:
    fit_a: of the first family, in one input.
    fit_b: of the second.
    level: of the interval.
    reach: how far beyond the data to search, as a factor.

  Returns:
    The crossing, of several the one nearest to the middle of the data; None if there is none.

  Raises:
    RunError: the fits are not of one kind.
  """
  _check(fit_a, fit_b)
  grid, bands = _bands(fit_a, fit_b, level, reach)
  a, b = (
    _Spread.of(*band, _degrees(fit, grid), level)
    for fit, band in zip((fit_a, fit_b), bands, strict=True)
  )
  gap = a.value - b.value
  places = np.flatnonzero((gap[1:] <= 0) != (gap[:-1] <= 0))
  if not places.size:
    return None
  place = places[np.abs(places - len(grid) / 2).argmin()]
  low, high, _ = _minus(a, b, level)
  ends = _around(grid, np.maximum(low, -high), place)
  return Crossing(float(np.exp(_root(grid, gap, place))), (float(np.exp(ends[0])),
                  float(np.exp(ends[1]))))  # fmt: skip


class _Spread(NamedTuple):
  """Estimates with their standard errors downwards and upwards, and degrees of freedom."""

  value: Array
  down: Array
  up: Array
  degrees: Array

  @classmethod
  def of(
    cls, value: ArrayLike, low: ArrayLike, high: ArrayLike, degrees: ArrayLike, level: float
  ) -> _Spread:
    """From the ends of intervals, arrays of one shape."""
    value, low, high, degrees = (np.asarray(v, float) for v in (value, low, high, degrees))
    t = stats.t.ppf((1 + level) / 2, degrees)
    return cls(value, (value - low) / t, (high - value) / t, degrees)


def _degrees(fit: Fit, x: Array) -> Array:
  """Degrees of freedom of the band of the curve at log x."""
  slope = fit._problem.curve(fit._phi[None], x[None] - fit._problem.centre.x[0])[1][0]
  return fit._errors(slope)[1]


def _minus(a: _Spread, b: _Spread, level: float) -> tuple[Array, Array, Array]:
  """Ends of the interval of a - b, and the probability of a difference at least as large."""
  value = a.value - b.value
  down, down_degrees = _add((a.down, a.degrees), (b.up, b.degrees))
  up, up_degrees = _add((a.up, a.degrees), (b.down, b.degrees))
  half = (1 + level) / 2
  low = value - stats.t.ppf(half, down_degrees) * down
  high = value + stats.t.ppf(half, up_degrees) * up
  # Towards zero.
  error, degrees = (np.where(value > 0, *pair) for pair in ((down, up), (down_degrees, up_degrees)))
  return low, high, 2 * stats.t.sf(np.abs(value) / np.maximum(error, 1e-300), degrees)


def _add(*errors: tuple[Array, Array]) -> tuple[Array, Array]:
  """The standard error of a sum, and Welch and Satterthwaite's degrees of freedom."""
  sizes = np.broadcast_arrays(*(error for error, _ in errors))
  top = np.maximum(np.max(sizes, axis=0), 1e-300)
  with np.errstate(invalid='ignore'):  # an error without end is all there is
    squares = [np.where(np.isinf(size), 1, size / top) ** 2 for size in sizes]
  total = np.sum(squares, axis=0)
  shares = np.sum([s**2 / d for s, (_, d) in zip(squares, errors, strict=True)], axis=0)
  degrees = np.where(total > 0, total**2 / np.maximum(shares, 1e-300), 1)  # 1 without any error
  return top * np.sqrt(total), degrees


def _check(fit_a: Fit, fit_b: Fit) -> None:
  """Raises RunError unless both fits are of the same columns in the same units."""
  for what, a, b in (
    ('columns', (*fit_a.x, fit_a.y), (*fit_b.x, fit_b.y)),
    ('units', fit_a.units, fit_b.units),
  ):
    if a != b:
      raise RunError(f'fits with different {what} cannot be compared: {a} and {b}')


def _bands(
  fit_a: Fit, fit_b: Fit, level: float, reach: float
) -> tuple[Array, list[tuple[Array, Array, Array]]]:
  """log x around the data of both, and per fit the logarithms of its curve and its band there."""
  if len(fit_a.x) > 1:
    raise RunError(f'curves of one input can be compared, not of {", ".join(fit_a.x)}')
  x = np.concatenate([fit_a._problem.x[0], fit_b._problem.x[0]])
  grid = np.linspace(x.min() - np.log(reach), x.max() + np.log(reach), GRID)
  bands = (fit.predict(np.exp(grid), level=level) for fit in (fit_a, fit_b))
  return grid, [(np.log(b.value), np.log(b.low), np.log(b.high)) for b in bands]


def _root(grid: Array, line: Array, place: int) -> float:
  """Where a line that changes sign between `place` and the next point is zero."""
  a, b = line[place], line[place + 1]
  return float(grid[place] + (grid[place + 1] - grid[place]) * a / (a - b))


def _around(grid: Array, margin: Array, place: int) -> tuple[float, float]:
  """The ends of where `margin` is not positive, around a place where it is not; else infinite."""
  beyond = np.flatnonzero(margin > 0)
  left, right = beyond[beyond <= place], beyond[beyond > place]
  return (
    _root(grid, margin, left[-1]) if left.size else -np.inf,
    _root(grid, margin, right[0] - 1) if right.size else np.inf,
  )
