"""What the table of a sweep says: best runs, laws, how they did on what they had not seen, advice.

Every part that the table is too small for is left out, and `Analysis.missing` says why.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.sweeps import laws
from experiments.sweeps import runs as runs_lib
from experiments.sweeps.laws import FLOPS, LEVEL, SIZE, HoldOut
from experiments.sweeps.runs import Runs
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.scaling import Fit, frontier
from vit_jax.scaling.advise import NEAR, Advice, advise, advise_by_optima, between
from vit_jax.scaling.choice import Choice, choose
from vit_jax.scaling.cost import Machine
from vit_jax.scaling.design import Passes, named
from vit_jax.scaling.table import Table


@dataclasses.dataclass(frozen=True)
class Time:
  """Seconds of one run, lanes together."""

  parameters: int
  predicted: float
  measured: float


@dataclasses.dataclass
class Analysis:
  """All of it; what could not be made is None or empty.

  Attributes:
    runs: of the table.
    frontier: a row for each budget, its best cell; `edge` where that is the smallest or the largest
      size there.
    used: rows of it that the law is fitted to.
    choice: of the law of the frontier.
    optima: the best sizes by approach 2, as `frontier.isoflop` returns them.
    method: 'parabola' or 'akima'.
    exponents: fits of `optima`, by column.
    joint: law in size and data, approach 3.
    backtest: of it, leaving out more and more budgets.
    holdout: the prediction of the largest budget.
    models: of the sweep by shape.
    passes: of a step of its task for an image, by the model.
    advice: for each budget that was asked for.
    times: of runs on the machine that the sweep was calibrated for.
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
  models: dict[str, Any] = dataclasses.field(default_factory=dict)
  passes: Passes | None = None
  advice: list[Advice] = dataclasses.field(default_factory=list)
  times: list[Time] = dataclasses.field(default_factory=list)
  missing: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def y(self) -> str:
    """Column of what laws are fitted to."""
    return self.runs.y

  @property
  def data(self) -> str:
    """Column in which data are counted."""
    return self.runs.data

  @property
  def tolerance(self) -> float:
    """See `laws.tolerance_of`."""
    return laws.tolerance_of(self.runs.cells, self.y)

  @property
  def reach(self) -> float:
    """How far beyond its data the law in size and data was right."""
    return self.backtest.factor if self.backtest else 1.0


def analyse(
  folder: paths.Path, *, budgets: Sequence[float] = (), y: str = '', **options: Any
) -> Analysis:
  """Everything that the table in a sweep's directory allows.

  Args:
    folder: of the sweep.
    budgets: training FLOPs to give advice for; the largest of the sweep, 10 and 100 times it if
      none are given.
    y: any number of its runs; by default the loss on the test set.
    **options: as for `runs.read`: which numbers are better, and in what data are counted.

  Raises:
    RunError: if there is no table or no finished run in it.
  """
  runs = runs_lib.read(folder, y, **options)
  best, used = laws.frontier_of(runs.cells, runs.y)
  out = Analysis(runs, best, used)
  close = out.tolerance
  out.choice = _attempt(out, 'frontier', lambda: laws.chosen(best.take(used), runs.y, close))
  _isoflop(out)
  cells = runs.cells
  out.joint = _attempt(out, 'joint', lambda: laws.joint(cells, runs.y, runs.data))
  if out.joint:
    out.backtest = _attempt(out, 'backtest', lambda: choose(
      ['chinchilla'], cells, x=(SIZE, runs.data), y=runs.y, scale='budget', tolerance=close,
      **laws.joint_settings(cells)))  # fmt: skip
  out.holdout = _attempt(out, 'holdout', lambda: laws.hold_out(cells, runs.y, runs.data))
  found = _attempt(out, 'models', lambda: runs_lib.architectures(folder, runs))
  out.models, out.passes = found or ({}, None)
  top = float(cells['budget'].max())
  for budget in budgets or (top, 10 * top, 100 * top):
    advice = _attempt(out, 'advice', lambda budget=budget: _advice(out, budget))
    out.advice += [advice] if advice else []
  out.times = _attempt(out, 'times', lambda: _times(folder, out)) or []
  return out


def _attempt(out: Analysis, part: str, make: Callable[[], Any]) -> Any:
  """What `make` returns, or None and the reason in `missing`."""
  try:
    return make()
  except RunError as error:
    out.missing[part] = str(error)
    return None


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
  noise = out.runs.noise and out.runs.noise / float(np.sqrt(table['seeds'].min()))
  found = {
    method: _attempt(out, 'isoflop', lambda method=method: frontier.isoflop(
      table, flops=FLOPS, size=SIZE, loss=y, data=out.data, method=method, noise=noise,
      near=out.tolerance))
    for method in frontier.METHODS
  }  # fmt: skip
  good = {method: (o['flag'] == '').sum() for method, o in found.items() if o is not None}
  if not good:
    return
  if good.get('parabola', 0) < min(3, max(good.values())):
    out.method = max(good, key=good.__getitem__)
  optima = found[out.method]
  assert optima is not None
  out.optima = optima
  for name in (SIZE, out.data):
    found_fit = _attempt(out, 'exponents', lambda name=name: frontier.exponent(
      optima, name, flops=FLOPS, level=LEVEL))  # fmt: skip
    if found_fit:
      out.exponents[name] = found_fit


def _advice(out: Analysis, budget: float) -> Advice:
  """By the law in size and data; if that is not to be trusted, by the best sizes alone."""
  if not out.models:
    raise RunError(f'it needs the models: {out.missing["models"]}')
  family = between(list(out.models.values()))
  law, size, choice, held = out.joint, out.exponents.get(SIZE), out.choice, out.holdout
  options: dict[str, Any] = dict(tolerance=out.tolerance, passes=out.passes)
  found = []
  if law:
    advice = advise(law, family, budget, reach=max(out.reach, NEAR), **options)
    if held and held.joint and held.narrow:
      said = f'{held.inside} of the {held.runs} runs of the largest budget fell inside theirs'
      advice = _doubted(advice, f'its intervals are TOO NARROW, {said}')
    other = choice and choice.predict(budget)
    if other and not (other.new_low <= advice.high and advice.low <= other.new_high):
      said = f'the law of the frontier expects another loss, {other.value:.4g}'
      advice = _doubted(advice, said)
    found.append(advice)
  if size and choice:
    reach = max(choice.factor, NEAR)
    advice = advise_by_optima(size, choice, family, budget, reach=reach, **options)
    if held and held.law and not held.passed:
      advice = _doubted(advice, 'the law of the frontier did not predict the largest budget')
    found.append(advice)
  if not found:
    raise RunError(f'it needs the law in size and {out.data}: {out.missing["joint"]}')
  found = [_of_fresh_data(advice, out.runs) for advice in found]
  return next((advice for advice in found if advice.trusted), found[-1])


def _of_fresh_data(advice: Advice, runs: Runs) -> Advice:
  """Doubted if it repeats the data more often than the runs have done."""
  seen = [(row['epochs'], row['images']) for row in runs.finished if row.get('epochs')]
  if not seen:
    return advice
  most = max(epochs for epochs, _ in seen)
  again = advice.images * seen[0][0] / seen[0][1]
  if again <= max(1.0, most) * NEAR:
    return advice
  said = f'the data would be seen {again:.3g} times, and were seen {most:.3g} times at most'
  return _doubted(advice, said)


def _doubted(advice: Advice, doubt: str) -> Advice:
  reason = doubt if advice.trusted else f'{advice.reason}; {doubt}'
  return dataclasses.replace(advice, trusted=False, reason=reason)


def rate_for(runs: Runs, budget: float) -> Mapping[str, Any] | None:
  """The learning rate of the best run at the nearest budget.

  Returns:
    `lr`, of which many were `tried` at the budget `at`, and whether it is at the `edge` of these;
    None if only one was tried.
  """
  tuning = [t for t in runs.tuning if len(t.rates) > 1]
  if not tuning:
    return None
  at = min({t.budget for t in tuning}, key=lambda known: abs(np.log(known / budget)))
  best = min((t for t in tuning if t.budget == at), key=lambda t: min(t.finite))
  return dict(lr=best.best, tried=len(best.rates), at=at, edge=best.edge)


def _times(folder: paths.Path, out: Analysis) -> list[Time]:
  if not (folder / 'machine.json').exists():
    raise RunError('there is no machine.json: the sweep was run without --calibrate')
  machine = Machine.from_json((folder / 'machine.json').read_text())
  lanes = collections.Counter(row.get('run') for row in out.runs.rows)
  found = []
  for row in out.runs.rows:
    model, seconds = out.models.get(named(row)), row.get('seconds')
    if model and seconds and not row.get('lane'):
      steps = row['steps'] - (row.get('forked') or 0)
      work = tuple(out.passes(model)) if out.passes else model
      predicted = machine.run_seconds(work, row['batch_size'], steps, lanes[row['run']])
      found.append(Time(row['parameters'], predicted, seconds))
  if not found:
    raise RunError('no run of a known model says how long it took')
  return found


def transfer(runs: Runs) -> Mapping[str, Any] | None:
  """What it costs to keep the learning rate of the smallest model of each budget for the others.

  Returns:
    `median` and `worst` relative rise of the loss over the best of each, `cells` it was asked of,
    and `same`, the share of cells whose best rate is that of the smallest; None with one rate only.
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
