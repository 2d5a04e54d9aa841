"""What a fit says of itself, to people and to programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from vit_jax.scaling import evidence
from vit_jax.scaling.forms import Array, Law
from vit_jax.scaling.problem import Problem

INTERVALS = {
  'robust': 'profiles of the sum of squares, for noise of any size, shared within runs',
  'profile': 'profiles of the sum of squares, for equal and independent noise',
  'bootstrap': 'bootstrap of whole runs',
}
CLEAR = 0.01  # p-value below which residuals are called odd
TOLERANCE = 0.1  # relative half-width of the band up to which a report extrapolates


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


class Influence(NamedTuple):
  """What a fit without some runs would be.

  Attributes:
    runs: their names, or rows (from 0, of those fitted) if points are runs.
    parameter: an exponent.
    shift: of it, in the standard errors of that fit.
  """

  runs: tuple[Any, ...]
  parameter: str
  shift: float


class Reported:
  """A fit as far as it is reported; `result.Fit` documents the attributes."""

  law: Law
  params: dict[str, float]
  x: tuple[str, ...]
  y: str
  units: dict[str, str]
  interval: str
  level: float
  convergence: Convergence
  settings: dict[str, Any]
  ci: Any
  se: Any
  noise: Any
  residuals: Any
  influence: Any
  limit: Any
  doubts: Any
  unidentified: Any
  _problem: Problem
  _phi: Array

  def flags(self) -> list[str]:
    """What to be wary of, a sentence each."""
    return flags(self)

  def report(self) -> str:
    """For people: the law with its numbers, and what they are worth."""
    return text(self)

  def to_dict(self) -> dict[str, Any]:
    """Everything of `report`, and the settings, as what JSON can hold."""
    return card(self)


def flags(fit: Reported) -> list[str]:
  """What to be wary of, a sentence each."""
  out = list(fit.doubts)
  scale = fit.law.scale
  if fit.law.grows and scale in evidence.rising(fit._problem, fit._phi) and not out:
    out.append(f'{fit.y} grows with {fit.x[scale]}, as a size may and a loss does not')
  for name in fit.convergence.at_bound:
    zero = fit.params[name] == 0
    out.append(f'{name} is 0' if zero else f'{name} ended at the bound of the search')
  for name, (low, high) in fit.ci.items():
    if name in fit.unidentified:
      out.append(f'{name} is not identified')
    elif name in fit.law.vanishing and low == 0 and fit.params[name] > 0:
      out.append(f'{name} is indistinguishable from 0')
    elif not math.isfinite(high) or (low == 0 and name not in fit.law.vanishing):
      out.append(f'{name} is not identified: its interval has no end')
    elif fit.law.roles[name] == 'exponent' and low <= 0 <= high:
      out.append(f'{name} is indistinguishable from 0')
  found = fit.convergence
  if found.share < 0.1:
    reached = round(found.share * found.starts)
    out.append(f'only {reached} of {found.starts} starts reached the best fit: give more starts')
  if found.gradient > 1e-3 and found.objective > 1e-20 * len(fit.residuals):
    out.append(f'the search did not end at a minimum (gradient {found.gradient:.1g})')
  runs = len(fit._problem.members)
  if 0 < runs - len(fit.ci) <= 2:
    out.append(f'{runs} runs for {len(fit.ci)} parameters: hardly anything is left to judge by')
  return out + _odd_residuals(fit)


def _odd_residuals(fit: Reported) -> list[str]:
  """Trends in the residuals that a good fit does not have."""
  residuals, n = fit.residuals, len(fit.residuals)
  if np.abs(residuals).max() < 1e-9:
    return []
  out = []
  if fit.settings['group'] is None and _bend(fit) < CLEAR:
    out.append(f'residuals bend along {fit.x[fit.law.scale]}: another law would fit better')
  if n < 10:
    return out
  curve = fit._problem.data.z - residuals
  ranks = np.argsort(np.argsort([np.abs(residuals), curve]))
  trend = np.atleast_2d(np.corrcoef(ranks))[0, 1]  # Spearman's
  if abs(trend) * math.sqrt(n - 1) > stats.norm.isf(CLEAR / 2):
    out.append(f'the noise is larger where {fit.y} is {"large" if trend > 0 else "small"}')
  if fit.settings['group'] is None:
    order = np.argsort(fit._problem.x[fit.law.scale], kind='stable')
    ahead, back = residuals[order][1:], residuals[order][:-1]
    likeness = (ahead * back).sum() / (residuals**2).sum()
    if likeness * math.sqrt(n) > stats.norm.isf(CLEAR):
      out.append(
        'neighbours err alike: another law would fit better, or points share runs (give group)'
      )
  return out


def _bend(fit: Reported) -> float:
  """The p-value of one more term, in the square of the logarithm of the scale."""
  problem, r = fit._problem, fit.residuals
  slopes = problem.curve(fit._phi[None], problem.data.u)[1][0]
  left = len(r) - slopes.shape[1] - 1
  term = problem.data.u[fit.law.scale] ** 2
  term = term - slopes @ np.linalg.lstsq(slopes, term)[0]
  size = float(term @ term)
  if left < 1 or size < 1e-9 * float((problem.data.u**4).sum()):
    return 1.0
  along = float(term @ r) / math.sqrt(size)
  rest = max(float(r @ r) - along**2, 1e-300)
  return float(2 * stats.t.sf(abs(along) / math.sqrt(rest / left), left))


def text(fit: Reported) -> str:
  """For people."""
  law, n = fit.law, len(fit.residuals)
  names = dict(zip(law.inputs, fit.x, strict=True))
  where = ', '.join(f'{a} = {_quantity(fit, b)}' for a, b in names.items())
  lines = [
    f'{law.name}: {law.formula}', f'  {where}; y = {_quantity(fit, fit.y)}', f'  {law.source}', '',
  ]  # fmt: skip
  width = max(map(len, fit.params))
  for name, value in fit.params.items():
    ends = fit.ci.get(name)
    said = f'[{number(ends[0])}, {number(ends[1])}]' if ends else 'given'
    said = 'not identified' if name in fit.unidentified else said
    lines.append(f'  {name:{width}}  {number(value):>10}  {said}')
  group = fit.settings['group']
  runs = f' in {len(fit._problem.members)} runs ({group})' if group else ''
  loss = fit.settings['loss'] + (f' (delta {fit._problem.delta:g})' if fit._problem.delta else '')
  ranges = ', '.join(
    f'{name} {low:.3g} to {high:.3g}' for name, (low, high) in _ranges(fit).items()
  )
  found = fit.convergence
  lines += [
    '',
    f'  data        {n} points{runs}, {ranges}',
    f'  loss        {loss}, of log {fit.y}; noise {fit.noise:.2%}',
    f'  intervals   {fit.level:.0%}: {INTERVALS[fit.interval]}',
    f'  search      {round(found.share * found.starts)} of {found.starts} starts reached the best '
    f'fit; gradient {found.gradient:.0e}',
    f'  trust       {_trust(fit)}',
  ]
  worst = [i for i in fit.influence[:3] if abs(i.shift) >= 1]
  lines += [
    f'  influence   without {_runs(fit, i.runs)}, {i.parameter} moves by {i.shift:+.1f} standard '
    'errors' for i in worst
  ]  # fmt: skip
  lines += [f'  flag        {flag}' for flag in flags(fit)]
  return '\n'.join(lines)


def _runs(fit: Reported, runs: tuple[Any, ...]) -> str:
  return f'{fit.settings["group"] or "row"} {", ".join(map(str, runs))}'


def _trust(fit: Reported) -> str:
  scale = fit.x[fit.law.scale]
  end, (_, top) = fit.limit(TOLERANCE), _ranges(fit)[scale]
  if fit.doubts:
    return f'nothing beyond the data, {scale} {top:.3g}: see the first flag'
  if end is None:
    return f'if this law holds, to within {TOLERANCE:.0%} to a million times the data'
  if end == 0:
    return f'the band of the curve is nowhere within {TOLERANCE:.0%}'
  factor = end / top
  times = f'{factor:.3g} times the data' if factor > 1 else 'inside the data'
  return f'if this law holds, to within {TOLERANCE:.0%} up to {scale} {end:.3g}, {times}'


def _quantity(fit: Reported, name: str) -> str:
  unit = fit.units[name]
  return name if unit == name else f'{name} [{unit}]'


def number(value: float) -> str:
  """Four digits, or that an interval has no end there."""
  return f'{value:.4g}' if math.isfinite(value) else 'no end'


def _ranges(fit: Reported) -> dict[str, tuple[float, float]]:
  """Of the columns in the data."""
  columns = zip((*fit.x, fit.y), (*fit._problem.x, fit._problem.y), strict=True)
  return {name: (float(np.exp(c.min())), float(np.exp(c.max()))) for name, c in columns}


def card(fit: Reported) -> dict[str, Any]:
  """What JSON can hold."""
  return plain({
    'law': fit.law.name, 'formula': fit.law.formula, 'source': fit.law.source,
    'x': dict(zip(fit.law.inputs, fit.x, strict=True)), 'y': fit.y, 'units': fit.units,
    'params': fit.params, 'ci': fit.ci, 'se': fit.se, 'level': fit.level, 'interval': fit.interval,
    'noise': fit.noise, 'points': len(fit.residuals), 'runs': len(fit._problem.members),
    'ranges': _ranges(fit), 'convergence': fit.convergence._asdict(),
    'limit': {'tolerance': TOLERANCE, fit.x[fit.law.scale]: fit.limit(TOLERANCE)},
    'influence': [i._asdict() for i in fit.influence[:5]],
    'doubts': fit.doubts, 'flags': flags(fit), 'settings': fit.settings,
  })  # fmt: skip


def plain(value: Any) -> Any:
  """The same as JSON can hold it: None for numbers that are not finite."""
  if isinstance(value, Mapping):
    return {name: plain(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [plain(each) for each in value]
  value = value.item() if isinstance(value, np.generic) else value
  return None if isinstance(value, float) and not math.isfinite(value) else value
