"""Compute-optimal runs: Pareto frontiers, envelopes of training curves, minima at equal FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import Akima1DInterpolator

from vit_jax.core.errors import RunError
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.result import Fit
from vit_jax.scaling.table import Table, column, numbers

METHODS = ('parabola', 'akima')
RUNS = 'points share'  # metadata of an envelope: the column that names the runs
GRID = 100  # points between two sizes, where noisy splines are searched for their minimum


def pareto(x: ArrayLike, y: ArrayLike) -> np.ndarray:
  """The rows that no other beats: none has as little of `x` and of `y`, and less of one.

  Args:
    x: shape (n,), compute, say.
    y: shape (n,), loss, say. Rows in which either is NaN are left out.

  Returns:
    Positions of the frontier's rows by increasing x, so that y decreases; the first of equal rows.
  """
  x, y = np.asarray(x, float), np.asarray(y, float)
  if x.shape != y.shape or x.ndim != 1:
    raise RunError(f'a frontier needs as many x as y in one row, not {x.shape} and {y.shape}')
  order = np.lexsort((y, x))
  order = order[~np.isnan(x[order] + y[order])]
  lowest = np.minimum.accumulate(np.concatenate([[np.inf], y[order]]))
  return order[y[order] < lowest[:-1]]


def envelope(
  table: Mapping[str, Any],
  *,
  run: str,
  flops: str,
  loss: str,
  size: str,
  data: str | None = None,
  points: int = 50,
) -> Table:
  """The lowest of all training curves at any compute: approach 1 of Hoffmann et al. 2022.

  Curves are interpolated between their own points in logarithms and never extended. Noise of the
  curves is not averaged out: smooth them first, or the envelope lies too low.

  Args:
    table: a row per point of a curve.
    run: the column that names the run.
    flops: the column of compute spent up to the point.
    loss: the column of the loss there.
    size: the column of the model's size, one value per run.
    data: the column of images or tokens seen up to the point.
    points: how many values of compute, equidistant in the logarithm over all curves.

  Returns:
    A table of the columns `flops`, `size`, `data`, `loss` and `run` under the names given, and
    `edge`: 1 where the best run has the smallest or the largest size of those that reach that
    compute, so that a size beyond might be better. `exponent` leaves these out, and knows that
    neighbours share their runs.

  Raises:
    RunError: a column is missing or not positive, or a run has several sizes or too few points.
  """
  names = [flops, size, loss, *([data] if data else [])]
  columns = dict(zip(names, np.log(numbers(table, *names)), strict=True))
  runs = column(table, run)
  grid = np.linspace(columns[flops].min(), columns[flops].max(), points)
  labels = list(dict.fromkeys(runs.tolist()))
  losses = np.full((len(labels), points), np.inf)
  sizes = np.empty(len(labels))
  seen = np.empty((len(labels), points))
  for i, label in enumerate(labels):
    rows = np.flatnonzero(runs == label)
    rows = rows[np.argsort(columns[flops][rows])]
    c = columns[flops][rows]
    if np.ptp(columns[size][rows]) > 1e-9:
      raise RunError(f'run {label!r} has several values of {size!r}')
    if len(rows) < 2 or (np.diff(c) <= 0).any():
      raise RunError(f'run {label!r} needs at least two points, each at another value of {flops!r}')
    covered = (grid >= c[0] - 1e-9) & (grid <= c[-1] + 1e-9)
    losses[i, covered] = np.interp(grid[covered], c, columns[loss][rows])
    sizes[i] = columns[size][rows[0]]
    if data:
      seen[i] = np.interp(grid, c, columns[data][rows])
  best = losses.argmin(axis=0)
  reach = np.isfinite(losses)
  keep = reach.any(axis=0)
  span = np.where(reach, sizes[:, None], np.nan)[:, keep]
  best, at = best[keep], np.flatnonzero(keep)
  found = {
    flops: np.exp(grid[at]), size: np.exp(sizes[best]), loss: np.exp(losses[best, at]),
    run: np.array(labels)[best],
    'edge': ((sizes[best] == np.nanmin(span, axis=0))
             | (sizes[best] == np.nanmax(span, axis=0))).astype(float),
  }  # fmt: skip
  if data:
    found[data] = np.exp(seen[best, at])
  return Table(found, _units(table, names) | {RUNS: run})


def isoflop(
  table: Mapping[str, Any],
  *,
  flops: str,
  size: str,
  loss: str,
  data: str | None = None,
  method: str = 'parabola',
  near: float = 0.1,
  repeats: str = 'lowest',
  noise: float | None = None,
  tolerance: float = 0.05,
  draws: int = 200,
  seed: int = 0,
) -> Table:
  """The best size at each compute budget: approach 2 of Hoffmann et al. 2022.

  Args:
    table: a row per finished run.
    flops: the column of compute; runs whose values differ by less than `tolerance` share a budget.
    size: the column of the model's size.
    loss: the column of the loss.
    data: the column of images or tokens seen, which follow from the size at a given compute.
    method: 'parabola' fits log loss over log size near the lowest point, as Hoffmann et al. do.
      'akima' minimises an Akima spline through all points, as Porian et al. 2024 do; it assumes no
      shape, and follows the noise: its exponents scatter several times as much.
    near: a parabola is fitted to the points whose loss is at most this share above the lowest one,
      and to the lowest five at least; further away the curve is none. Where most of the loss is a
      floor, take less: a tenth of it may be decades of sizes, and the exponent is then biased by
      more than its interval says.
    repeats: of the same size at a budget: take the 'lowest' loss, as of a sweep of learning rates,
      or the 'mean' of its logarithm, as over seeds.
    noise: relative standard deviation of the loss between seeds; by default that of the points
      around the parabola.
    tolerance: relative difference of compute within a budget.
    draws: noisy copies of a budget from which the standard deviation of its optimum is taken.
    seed: of these.

  Returns:
    A row per budget, by increasing compute: `flops`, `size`, `data`, `loss` at the optimum under
    the names given; `std_log_size`, NaN where no noise is known; `points`; and `flag`, which is ''
    where the optimum can be used, 'edge' where the lowest loss is at the smallest or the largest
    size, 'downward' where the parabola has no minimum, 'noisy' where a quarter of the draws have
    none between the sizes or the others scatter over a fifth of their range. Flagged optima are
    NaN.

  Raises:
    RunError: a column is missing or not positive; a budget has fewer than three sizes, losses that
      are all equal, or is not a budget.
  """
  if method not in METHODS or repeats not in ('lowest', 'mean'):
    raise RunError(f'method must be one of {METHODS}, not {method!r}; '
                   f'repeats lowest or mean, not {repeats!r}')  # fmt: skip
  names = [flops, size, loss, *([data] if data else [])]
  columns = dict(zip(names, np.log(numbers(table, *names)), strict=True))
  order = np.argsort(columns[flops], kind='stable')
  steps = np.diff(columns[flops][order]) > np.log1p(tolerance)
  rng = np.random.default_rng(seed)
  budgets = []
  for rows in np.split(order, np.flatnonzero(steps) + 1):
    c = columns[flops][rows]
    budget = f'the budget of {np.exp(c.mean()):.3g} {flops}'
    if np.ptp(c) > 2 * np.log1p(tolerance):
      raise RunError(f'{budget} reaches from {np.exp(c[0]):.3g} to {np.exp(c[-1]):.3g}: points of '
                     'training curves? envelope() is for these')  # fmt: skip
    x, y = _one_per_size(columns[size][rows], columns[loss][rows], repeats)
    if len(x) < 3:
      raise RunError(f'{budget} has {len(x)} sizes; a minimum takes at least three')
    if np.ptp(y) < 1e-12:
      raise RunError(f'{budget} has {len(x)} sizes with the same {loss}')
    sigma = _scatter(x, y, near) if noise is None else noise
    best, lowest, std, flag = _minimum(x, y, method, near, sigma, draws, rng)
    row = {flops: np.exp(c.mean()), size: np.exp(best), loss: np.exp(lowest)}
    if data:
      where = np.argsort(columns[size][rows])
      row[data] = np.exp(np.interp(best, columns[size][rows][where], columns[data][rows][where]))
    budgets.append(row | {'std_log_size': std, 'points': float(len(rows)), 'flag': flag})
  return Table({name: np.array([b[name] for b in budgets]) for name in budgets[0]},
               _units(table, names))  # fmt: skip


def exponent(optima: Table, of: str, *, flops: str, **options: Any) -> Fit:
  """How an optimum grows with compute: `of` = beta flops^c.

  The c of the size is the exponent a of Hoffmann et al. 2022, that of the data their b.

  Args:
    optima: what `isoflop` or `envelope` returns; flagged rows and edges are left out.
    of: the column of the size, the data or the loss.
    flops: the column of compute.
    **options: of `fit`; points of an envelope that share their run are a group unless it says
      otherwise.

  Returns:
    The fit, with `params['c']` and its interval `ci['c']`.

  Raises:
    RunError: too few budgets have an optimum.
  """
  good = optima['flag'] == '' if 'flag' in optima else optima['edge'] == 0
  if good.sum() < 3:
    others = ', '.join(sorted(set(optima['flag'][~good]))) if 'flag' in optima else 'edge'
    raise RunError(
      f'an exponent takes three optima, found {good.sum()} of {optima.rows}; others: {others}'
    )
  options = {'group': optima.metadata.get(RUNS), **options}
  return fit('m1', optima.take(good), x=flops, y=of, units=optima.units, **options)


def _one_per_size(x: np.ndarray, y: np.ndarray, repeats: str) -> tuple[np.ndarray, np.ndarray]:
  sizes, index = np.unique(x, return_inverse=True)
  if repeats == 'mean':
    return sizes, np.bincount(index, y) / np.bincount(index)
  lowest = np.full(len(sizes), np.inf)
  np.minimum.at(lowest, index, y)
  return sizes, lowest


def _window(y: np.ndarray, near: float) -> np.ndarray:
  """Which points a parabola is fitted to."""
  return y <= max(y.min() + np.log1p(near), np.sort(y)[: min(5, len(y))][-1])


def _vertex(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Curvature, position and depth of parabolas through y, shape (n, ...)."""
  middle = x.mean()
  c0, c1, c2 = np.polynomial.polynomial.polyfit(x - middle, y, 2)
  with np.errstate(divide='ignore', invalid='ignore'):
    return c2, middle - c1 / (2 * c2), c0 - c1**2 / (4 * c2)


def _scatter(x: np.ndarray, y: np.ndarray, near: float) -> float:
  """Standard deviation of log loss around the parabola, NaN where it goes through all points."""
  x, y = x[_window(y, near)], y[_window(y, near)]
  if len(x) < 4:
    return np.nan
  rest = y - np.polynomial.Polynomial.fit(x, y, 2)(x)
  return float(np.sqrt((rest**2).sum() / (len(x) - 3)))


def _minimum(
  x: np.ndarray,
  y: np.ndarray,
  method: str,
  near: float,
  sigma: float,
  draws: int,
  rng: np.random.Generator,
) -> tuple[float, float, float, str]:
  """Position and depth of the minimum of y over x, the former's standard deviation, and a flag."""
  flagged = (np.nan, np.nan, np.nan)
  if method == 'parabola':
    keep = _window(y, near)
    x, y = x[keep], y[keep]
    curvature, best, lowest = map(float, _vertex(x, y))
    if curvature <= 0:
      return *flagged, 'downward'
  else:
    spline = Akima1DInterpolator(x, y)
    turns = spline.derivative().roots(extrapolate=False)
    places = np.concatenate([x, turns[np.isfinite(turns)]])
    best = float(places[spline(places).argmin()])
    lowest = float(spline(best))
  if not x[0] < best < x[-1]:
    return *flagged, 'edge'
  if np.isnan(sigma):
    return best, lowest, np.nan, ''
  noisy = y[:, None] + sigma * rng.standard_normal((len(y), draws))
  if method == 'parabola':
    curvature, places, _ = _vertex(x, noisy)
    inside = (curvature > 0) & (places > x[0]) & (places < x[-1])
  else:
    grid = np.linspace(x[0], x[-1], GRID * (len(x) - 1) + 1)
    index = Akima1DInterpolator(x, noisy)(grid).argmin(axis=0)
    places, inside = grid[index], (index > 0) & (index < len(grid) - 1)
  if inside.mean() < 0.75 or places[inside].std() > np.ptp(x) / 5:
    return *flagged, 'noisy'
  return best, lowest, float(places[inside].std()), ''


def _units(table: Mapping[str, Any], names: list[str]) -> dict[str, str]:
  units = table.units if isinstance(table, Table) else {}
  return {f'unit {name}': units[name] for name in names if name in units}
