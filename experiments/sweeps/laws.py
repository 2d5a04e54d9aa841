"""The laws of a sweep: which are fitted to what, and how well they predict what was left out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.scaling import Fit, frontier
from vit_jax.scaling.choice import Choice, choose
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.table import Table

SIZE, IMAGES, FLOPS = 'parameters', 'images', 'flops'
UNITS = {SIZE: 'parameters', IMAGES: 'images', 'tokens': 'tokens', FLOPS: 'FLOP'}
LEVEL = 0.95
# Approach 3 as Hoffmann et al. 2022 do it; runs of one shape share what is odd about it, and are
# resampled together if there are `SHAPES` of them: of fewer, draws often have too few to fit.
SHAPES = 6
JOINT: dict[str, Any] = dict(loss='huber', group='shape', level=LEVEL, units=UNITS)
TOLERANCE = 0.1  # see `tolerance_of`
EXPECTED = 0.8  # share of runs inside their bands of 95 %, which few runs may miss by chance
MANY = 8  # budgets from which on laws with more parameters are asked, too


@dataclasses.dataclass(frozen=True)
class HoldOut:
  """How well the laws, fitted without the largest budget, predict it.

  Attributes:
    budget: FLOPs of what was left out.
    factor: it over the largest that was fitted.
    observed: the lowest loss at that budget.
    edge: whether it is that of the smallest or the largest size there and a better one may have
      been left untried.
    end: whether it is that of the smallest or the largest size there, whatever `edge` says.
    law: fitted to the frontier below, None if that could not be.
    value: the prediction.
    low: lower end of the band for a new run, of all laws that the data below do not reject.
    high: upper end.
    others: the same three of the laws that were not chosen, by name.
    joint: law in size and data fitted below, None if that could not be.
    inside: runs of the budget inside the band that was predicted for each.
    runs: of the budget.
    rmse: of its log loss over them.
  """

  budget: float
  factor: float
  observed: float
  edge: bool
  end: bool
  law: Fit | None = None
  value: float = np.nan
  low: float = np.nan
  high: float = np.nan
  others: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  joint: Fit | None = None
  inside: int = 0
  runs: int = 0
  rmse: float = np.nan

  @property
  def passed(self) -> bool:
    """Whether the lowest loss lies where the law of the frontier said."""
    return self.low <= self.observed <= self.high

  @property
  def narrow(self) -> bool:
    """Whether fewer runs than expected lie inside the bands of the law in size and data."""
    return self.inside < EXPECTED * self.runs


def frontier_of(cells: Table, y: str) -> tuple[Table, np.ndarray]:
  """The best cell of each budget that several sizes share, and which of them a law may use.

  A budget at which the smallest or the largest of its sizes is best might have a better one beyond,
  unless the parabola of `frontier.isoflop` has its minimum between them: these are left out where
  four others remain. Without shared budgets the frontier is that of Pareto over all cells.
  """
  rows, edge, near = [], [], tolerance_of(cells, y)
  for budget in np.unique(cells['budget']):
    members = np.flatnonzero(cells['budget'] == budget)
    sizes = cells[SIZE][members]
    if len(np.unique(sizes)) > 1:
      best = members[cells[y][members].argmin()]
      rows.append(best)
      ends = cells[SIZE][best] in (sizes.min(), sizes.max())
      edge.append(ends and not _has_minimum(cells.take(members), y, near))
  if not rows:
    rows = frontier.pareto(cells[FLOPS], cells[y])
    edge = [False] * len(rows)
  best = cells.take(np.array(rows))
  best['edge'] = np.array(edge, float)
  inner = best['edge'] == 0
  return best, inner if inner.sum() >= 4 else np.ones(len(rows), bool)


def _has_minimum(members: Table, y: str, near: float) -> bool:
  """Whether the losses of one budget have one between the sizes."""
  try:
    optima = frontier.isoflop(members, flops=FLOPS, size=SIZE, loss=y, near=near)
    return optima['flag'][0] == ''
  except RunError:
    return False


def tolerance_of(cells: Table, y: str) -> float:
  """The relative error of y up to which a prediction counts as right: `TOLERANCE`, or less.

  Where most of y is a floor, as of the loss of pixels, it falls by little in all: then a tenth of
  what it spans over the sweep.
  """
  return min(TOLERANCE, float(np.expm1(np.ptp(np.log(cells[y])) / 10)) or TOLERANCE)


def chosen(points: Table, y: str, tolerance: float = TOLERANCE) -> Choice:
  """The law of a frontier."""
  laws = ['power', 'power_floor'] + ['m3', 'zhai'] * (points.rows >= MANY)
  return choose(laws, points, x=FLOPS, y=y, tolerance=tolerance, level=LEVEL, units=UNITS)


def joint(cells: Table, y: str, data: str = IMAGES) -> Fit:
  """The law in size and data, by approach 3 of Hoffmann et al. 2022."""
  if len(np.unique(cells['shape'])) < 3:
    raise RunError(f'a law in size and {data} takes three sizes at least')
  if len(np.unique(cells['budget'])) < 2:
    raise RunError(f'size and {data} cannot be told apart by runs of one budget')
  law = fit('chinchilla', cells, x=(SIZE, data), y=y, **joint_settings(cells))
  try:
    assert law.ci
  except np.linalg.LinAlgError:
    raise RunError('its runs are too few to be resampled for intervals') from None
  return law


def joint_settings(cells: Table) -> dict[str, Any]:
  """Of the fit of that law to these runs."""
  return JOINT if len(np.unique(cells['shape'])) >= SHAPES else {**JOINT, 'group': None}


def hold_out(cells: Table, y: str, data: str = IMAGES) -> HoldOut:
  """Fits both laws without the largest budget of the frontier, and compares.

  Raises:
    RunError: if neither could be fitted.
  """
  budgets = np.unique(cells['budget'])
  # Beyond it there may be runs of one size alone, if the sweep is not complete.
  whole = frontier_of(cells, y)[0]
  top, edge = float(whole['budget'][-1]), bool(whole['edge'][-1])
  budgets = budgets[budgets <= top]
  if len(budgets) < 3:
    raise RunError(f'{len(budgets)} budgets: none can be left out and predicted')
  below = float(budgets[-2])
  inner, outer = cells.take(cells['budget'] < top), cells.take(cells['budget'] == top)
  best = int(outer[y].argmin())
  facts: dict[str, Any] = {}
  reasons = []
  try:
    points, used = frontier_of(inner, y)
    choice = chosen(points.take(used), y, tolerance_of(inner, y))
    _speaks(choice.fit)
    bands = {name: found.predict(outer[FLOPS][best]) for name, found in choice.fits.items()}
    bands = {
      name: tuple(map(float, (band.value, band.new_low, band.new_high)))
      for name, band in bands.items()
    }
    del bands[choice.law]
    band = choice.predict(outer[FLOPS][best])
    value, low, high = float(band.value), float(band.new_low), float(band.new_high)
    facts |= dict(law=choice.fit, value=value, low=low, high=high, others=bands)
  except RunError as error:
    reasons.append(str(error))
  try:
    found = joint(inner, y, data)
    _speaks(found)
    bands = found.predict({SIZE: outer[SIZE], data: outer[data]})
    within = (bands.new_low <= outer[y]) & (outer[y] <= bands.new_high)
    rmse = float(np.sqrt(np.mean(np.log(outer[y] / bands.value) ** 2)))
    facts |= dict(joint=found, inside=int(within.sum()), runs=outer.rows, rmse=rmse)
  except RunError as error:
    reasons.append(str(error))
  if not facts:
    raise RunError('; '.join(reasons))
  end = outer[SIZE][best] in (outer[SIZE].min(), outer[SIZE].max())
  return HoldOut(top, top / below, float(outer[y][best]), edge, bool(end), **facts)


def _speaks(law: Fit) -> None:
  """Raises RunError if the law says nothing beyond its data, so that nothing can be held to it."""
  if law.doubts:
    raise RunError(f'below the largest budget, {law.doubts[0]}')
