"""What the table of a sweep says: best runs, laws, how they did on what they had not seen, advice.

Every part that the table is too small for is left out, and `Analysis.missing` says why.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.sweeps import runs as runs_lib
from experiments.sweeps.runs import Runs
from vit_jax.architecture import ViTArchitecture
from vit_jax.errors import RunError
from vit_jax.scaling import Fit, fit, frontier
from vit_jax.scaling.advise import Advice, advise, between
from vit_jax.scaling.choice import Choice, choose
from vit_jax.scaling.table import Table

SIZE, IMAGES, FLOPS = 'parameters', 'images', 'flops'
UNITS = {SIZE: 'parameters', IMAGES: 'images', FLOPS: 'FLOP'}
LEVEL = 0.95
# Approach 3 as Hoffmann et al. 2022 do it; runs of one shape share what is odd about it.
JOINT = dict(loss='huber', group='shape', level=LEVEL, units=UNITS)
TOLERANCE = 0.1  # relative error of the loss up to which an extrapolation counts as right
MANY = 8  # budgets from which on laws with more parameters are asked, too


@dataclasses.dataclass(frozen=True)
class HoldOut:
  """How the laws, fitted without the largest budget, foretell it.

  Attributes:
    budget: FLOPs of what was left out.
    factor: it over the largest that was fitted.
    observed: the lowest loss at that budget.
    edge: whether it is that of the smallest or the largest size there, so that a better size may
      have been left untried.
    law: fitted to the frontier below, None if that could not be.
    value: it foretold.
    low: lower end of its band for a new run.
    high: upper end.
    joint: law in size and images fitted below, None if that could not be.
    inside: runs of the budget inside the band that it foretold for each.
    runs: of the budget.
    rmse: of its log loss over them.
  """

  budget: float
  factor: float
  observed: float
  edge: bool
  law: Fit | None = None
  value: float = np.nan
  low: float = np.nan
  high: float = np.nan
  joint: Fit | None = None
  inside: int = 0
  runs: int = 0
  rmse: float = np.nan

  @property
  def passed(self) -> bool:
    """Whether the lowest loss lies where the law of the frontier said."""
    return self.low <= self.observed <= self.high


@dataclasses.dataclass
class Analysis:
  """All of it; what could not be made is None or empty.

  Attributes:
    runs: of the table.
    frontier: a row for each budget, its best cell; `edge` where that is the smallest or the largest.
    used: rows of it that the law is fitted to.
    choice: of the law of the frontier.
    optima: the best sizes by approach 2, as `frontier.isoflop` returns them.
    method: 'parabola' or 'akima'.
    exponents: fits of `optima`, by column.
    joint: law in size and images, approach 3.
    backtest: of it, leaving out more and more budgets.
    holdout: the largest budget foretold.
    models: of the sweep by shape.
    advice: for each budget that was asked for.
    missing: why a part is not there, by part.
  """

  runs: Runs
  frontier: Table
  used: np.ndarray
  choice: Choice | None = None
  optima: Table | None = None
  method: str = 'parabola'
  exponents: dict[str, Fit] = dataclasses.field(default_factory=dict)
  joint: Fit | None = None
  backtest: Choice | None = None
  holdout: HoldOut | None = None
  models: dict[str, ViTArchitecture] = dataclasses.field(default_factory=dict)
  advice: list[Advice] = dataclasses.field(default_factory=list)
  missing: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def y(self) -> str:
    """Column of the loss."""
    return self.runs.y

  @property
  def reach(self) -> float:
    """How far beyond its data the law in size and images was right."""
    return self.backtest.factor if self.backtest else 1.0


def analyse(
  folder: pathlib.Path, *, budgets: Sequence[float] = (), y: str = ''
) -> Analysis:
  """Everything that the table in a sweep's directory allows.

  Args:
    folder: of the sweep.
    budgets: training FLOPs to give advice for; the largest of the sweep, 10 and 100 times it if
      none are given.
    y: column of the loss; by default that of the test set.

  Raises:
    RunError: if there is no table or no finished run in it.
  """
  runs = runs_lib.read(folder, y)
  best, used = frontier_of(runs.cells, runs.y)
  out = Analysis(runs, best, used)
  out.choice = _attempt(out, 'frontier', lambda: _chosen(best.take(used), runs.y))
  _isoflop(out)
  cells = runs.cells
  out.joint = _attempt(out, 'joint', lambda: _joint(cells, runs.y))
  if out.joint:
    out.backtest = _attempt(out, 'backtest', lambda: choose(
      ['chinchilla'], cells, x=(SIZE, IMAGES), y=runs.y, scale='budget', tolerance=TOLERANCE,
      **JOINT))  # fmt: skip
  out.holdout = _attempt(out, 'holdout', lambda: _hold_out(cells, runs.y))
  out.models = _attempt(out, 'models', lambda: runs_lib.architectures(folder, runs)) or {}
  top = float(cells['budget'].max())
  for budget in budgets or (top, 10 * top, 100 * top):
    advice = _attempt(out, 'advice', lambda budget=budget: _advice(out, budget))
    out.advice += [advice] if advice else []
  return out


def _attempt(out: Analysis, part: str, make: Callable[[], Any]) -> Any:
  """What `make` returns, or None and the reason in `missing`."""
  try:
    return make()
  except RunError as error:
    out.missing[part] = str(error)
    return None


def frontier_of(cells: Table, y: str) -> tuple[Table, np.ndarray]:
  """The best cell of each budget that several sizes share, and which of them a law may use.

  A budget at which the smallest or the largest of its sizes is best might have a better one beyond:
  these are left out where four others remain. Without three shared budgets the frontier is that of
  Pareto over all cells.
  """
  rows, edge = [], []
  for budget in np.unique(cells['budget']):
    members = np.flatnonzero(cells['budget'] == budget)
    sizes = cells[SIZE][members]
    if len(np.unique(sizes)) > 1:
      best = members[cells[y][members].argmin()]
      rows.append(best)
      edge.append(cells[SIZE][best] in (sizes.min(), sizes.max()))
  if len(rows) < 3:
    rows = frontier.pareto(cells[FLOPS], cells[y])
    edge = [False] * len(rows)
  best = cells.take(np.array(rows))
  best['edge'] = np.array(edge, float)
  inner = best['edge'] == 0
  return best, inner if inner.sum() >= 4 else np.ones(len(rows), bool)


def _chosen(points: Table, y: str) -> Choice:
  laws = ['power', 'power_floor'] + ['m3', 'zhai'] * (points.rows >= MANY)
  return choose(laws, points, x=FLOPS, y=y, tolerance=TOLERANCE, level=LEVEL, units=UNITS)


def _joint(cells: Table, y: str) -> Fit:
  if len(np.unique(cells['shape'])) < 3:
    raise RunError('a law in size and images takes three sizes at least')
  return fit('chinchilla', cells, x=(SIZE, IMAGES), y=y, **JOINT)


def _isoflop(out: Analysis) -> None:
  """Approach 2; where parabolas fail at most budgets, splines."""
  cells, y = out.runs.cells, out.y
  shared = [
    budget for budget in np.unique(cells['budget'])
    if len(np.unique(cells[SIZE][cells['budget'] == budget])) >= 3
  ]  # fmt: skip
  if not shared:
    out.missing['isoflop'] = 'no budget is shared by three sizes'
    return
  table = cells.take(np.isin(cells['budget'], shared))
  found = {
    method: _attempt(out, 'isoflop', lambda method=method: frontier.isoflop(
      table, flops=FLOPS, size=SIZE, loss=y, data=IMAGES, method=method, noise=out.runs.noise))
    for method in frontier.METHODS
  }  # fmt: skip
  good = {method: (o['flag'] == '').sum() for method, o in found.items() if o is not None}
  if not good:
    return
  if good.get('parabola', 0) < min(3, max(good.values())):
    out.method = max(good, key=good.__getitem__)
  out.optima = found[out.method]
  for name in (SIZE, IMAGES):
    found_fit = _attempt(out, 'exponents', lambda name=name: frontier.exponent(
      out.optima, name, flops=FLOPS, level=LEVEL))  # fmt: skip
    if found_fit:
      out.exponents[name] = found_fit


def _hold_out(cells: Table, y: str) -> HoldOut:
  budgets = np.unique(cells['budget'])
  if len(budgets) < 3:
    raise RunError(f'{len(budgets)} budgets: nothing can be left out and foretold')
  top, below = float(budgets[-1]), float(budgets[-2])
  inner, outer = cells.take(cells['budget'] < top), cells.take(cells['budget'] == top)
  best = int(outer[y].argmin())
  sizes = outer[SIZE]
  edge = bool(sizes[best] in (sizes.min(), sizes.max()))
  facts: dict[str, Any] = {}
  reasons = []
  try:
    points, used = frontier_of(inner, y)
    law = _chosen(points.take(used), y).fit
    band = law.predict(outer[FLOPS][best])
    facts |= dict(law=law, value=float(band.value), low=float(band.new_low),
                  high=float(band.new_high))  # fmt: skip
  except RunError as error:
    reasons.append(str(error))
  try:
    joint = _joint(inner, y)
    bands = joint.predict({SIZE: sizes, IMAGES: outer[IMAGES]})
    within = (bands.new_low <= outer[y]) & (outer[y] <= bands.new_high)
    rmse = float(np.sqrt(np.mean(np.log(outer[y] / bands.value) ** 2)))
    facts |= dict(joint=joint, inside=int(within.sum()), runs=outer.rows, rmse=rmse)
  except RunError as error:
    reasons.append(str(error))
  if not facts:
    raise RunError('; '.join(reasons))
  return HoldOut(top, top / below, float(outer[y][best]), edge, **facts)


def _advice(out: Analysis, budget: float) -> Advice:
  if not out.joint:
    raise RunError(f'it needs the law in size and images: {out.missing["joint"]}')
  if not out.models:
    raise RunError(f'it needs the models: {out.missing["models"]}')
  family = between(list(out.models.values()))
  return advise(out.joint, family, budget, reach=max(out.reach, 1.0), tolerance=TOLERANCE)


def transfer(runs: Runs) -> Mapping[str, Any] | None:
  """What it costs to keep the learning rate of the smallest model of each budget for the others.

  Returns:
    `median` and `worst` relative rise of the loss over the best of each, `cells` it was asked of, and
    `same`, the share of cells whose best rate is that of the smallest; None with one rate only.
  """
  if len({rate for tuned in runs.tuning for rate in tuned.rates}) < 2:
    return None
  rises, same = [], []
  for budget in np.unique(runs.cells['budget']):
    members = [t for t in runs.tuning if t.budget == budget and len(t.rates) > 1]
    members.sort(key=lambda t: t.parameters)
    for other in members[1:]:
      losses = dict(zip(other.rates, other.losses, strict=True))
      if members[0].best in losses:
        rises.append(losses[members[0].best] / min(other.finite) - 1)
        same.append(members[0].best == other.best)
  if not rises:
    return None
  rises = np.where(np.isnan(rises), np.inf, rises)  # of a rate that diverged
  return dict(median=float(np.median(rises)), worst=float(rises.max()), cells=len(rises),
              same=float(np.mean(same)))  # fmt: skip
