"""Which law to extrapolate with: the simplest that none clearly beats beyond the data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from vit_jax.core.errors import RunError, suggest
from vit_jax.scaling.evidence import ROUNDING
from vit_jax.scaling.fitting import fit
from vit_jax.scaling.laws import LAWS
from vit_jax.scaling.report import plain
from vit_jax.scaling.result import Fit, Prediction
from vit_jax.scaling.table import Table, column, numbers, read
from vit_jax.scaling.table import where as pick

CUTS = 8  # rolling cut-offs, at most
NEEDED = 3  # cut-offs at which a law must have been tested to displace a simpler one
REJECTED = 0.01  # p-value below which more parameters do not fit better by chance alone
MOST = 0.6  # of them at which it must be the better one


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
  """The law that `choose` took.

  Attributes:
    law: its name.
    fit: of that law to all data.
    fits: of all laws that could be fitted, by name.
    table: a row per law and cut-off: `law`, `parameters`, `cutoff` (the largest scale that was
      fitted), `factor` (the largest scale that was predicted over it), `fitted` and `predicted`
      (points), `rmse` of log y; NaN where there were too few points to fit.
    plausible: the law, and the others that the data do not reject in favour of one with more
      parameters (F-test).
    verdicts: why each law was taken or not, by name.
    scale: the column along which was extrapolated.
    largest: value of it in the data.
    tolerance: relative error up to which an extrapolation counts as right.
  """

  law: str
  fit: Fit
  fits: dict[str, Fit]
  table: Table
  plausible: tuple[str, ...]
  verdicts: dict[str, str]
  scale: str
  largest: float
  tolerance: float

  @property
  def factor(self) -> float:
    """How far the law was right beyond what it was fitted to, and at all factors up to there.

    1 if the nearest test failed.
    """
    tested = self.table.take((self.table['law'] == self.law) & ~np.isnan(self.table['rmse']))
    reached = 1.0
    for i in np.argsort(tested['factor'], kind='stable'):
      if tested['rmse'][i] > np.log1p(self.tolerance):
        break
      reached = float(tested['factor'][i])
    return reached

  def predict(self, x: Any, **options: Any) -> Prediction:
    """As `Fit.predict`, with the bands of all plausible laws together.

    Those of the law alone know nothing of its having been chosen, and are much too narrow beyond
    the data: ten points often do not tell a power law from one with a floor.
    """
    bands = {law: self.fits[law].predict(x, **options) for law in self._asked}
    _, low, high, new_low, new_high = zip(*bands.values(), strict=True)
    return bands[self.law]._replace(
      low=np.min(low, 0), high=np.max(high, 0),
      new_low=np.min(new_low, 0), new_high=np.max(new_high, 0),
    )  # fmt: skip

  @property
  def _asked(self) -> list[str]:
    """The plausible laws that say something beyond the data, and the one that was taken."""
    return [law for law in self.plausible if law == self.law or not self.fits[law].doubts]

  @property
  def limit(self) -> float:
    """The largest scale to extrapolate to: as far as was tested, and as the band stays narrow."""
    tested = self.largest * (1 if self.fit.doubts else self.factor)
    return min(tested, np.inf if self._band is None else self._band)

  @property
  def _band(self) -> float | None:
    """Where the band of the curve gets wide, infinite if nowhere; None along another column."""
    if self.scale != self.fit.x[self.fit.law.scale]:
      return None
    own, fits = self.fit, [self.fits[law] for law in self._asked]
    _, low, high = zip(*(fit._band(own._outwards, own.level) for fit in fits), strict=True)
    value = own._band(own._outwards, own.level)[0]
    end = own._end(self.tolerance, (value, np.min(low, 0), np.max(high, 0)))
    return np.inf if end is None else end

  def sentence(self) -> str:
    """How far to extrapolate, and why."""
    never = f'Do not extrapolate {self.law} beyond the data, {self.scale} {self.largest:.3g}'
    if self.fit.doubts:
      return f'{never}: {self.fit.doubts[0]}.'
    right, band = f'{self.tolerance:.0%}', self._band
    tested = (
      f'back-tests were right to {right} up to {self.factor:.3g} times what was fitted'
      if self.factor > 1
      else f'no back-test was right to {right}'
    )
    if band is not None:
      end = f' up to {band:.3g}' if np.isfinite(band) else ''
      laws = f' ({" or ".join(self.plausible)})' if len(self.plausible) > 1 else ''
      tested += f', and the band of the curve{laws} stays within {right}{end}'
    times = self.limit / self.largest
    advice = (
      f'Extrapolate {self.law} up to {self.scale} {self.limit:.3g}, {times:.3g} times the data'
      if times > 1
      else never
    )
    return f'{advice}: {tested}.'

  def report(self) -> str:
    """Scores of all laws, the reasons, and how far to extrapolate; for people."""
    factors = np.unique(self.table['factor'])
    width = max(map(len, self.verdicts))
    head = ' '.join(f'{f"{factor:.3g}x":>7}' for factor in factors)
    lines = [
      f'error of log {self.fit.y} beyond the fitted {self.scale}, by factor',
      f'  {"":{width}}  {head}',
    ]
    for law, verdict in self.verdicts.items():
      rmse = dict(zip(*(self.table[k][self.table['law'] == law] for k in ('factor', 'rmse')),
                      strict=True))  # fmt: skip
      cells = (
        f'{rmse[f]:7.2%}' if np.isfinite(rmse.get(f, np.nan)) else '      -' for f in factors
      )
      lines.append(f'  {law:{width}}  {" ".join(cells)}  {verdict}')
    return '\n'.join([*lines, '', self.sentence()])

  def to_dict(self) -> dict[str, Any]:
    """What JSON can hold: scores, verdicts, the limit, and the fit's own card."""
    rows = zip(*self.table.values(), strict=True)
    return plain({
      'law': self.law, 'plausible': self.plausible, 'verdicts': self.verdicts, 'scale': self.scale,
      'scores': [dict(zip(self.table, row, strict=True)) for row in rows],
      'factor': self.factor, 'limit': self.limit, 'sentence': self.sentence(),
      'fit': self.fit.to_dict(),
    })  # fmt: skip


def choose(
  laws: str | Sequence[str],
  data: Any,
  *,
  x: str | Sequence[str],
  y: str,
  scale: str | None = None,
  holdout: str | Sequence[float] = 'largest',
  gate: float = 1.25,
  tolerance: float = 0.1,
  where: str | None = None,
  **options: Any,
) -> Choice:
  """Chooses a law by how well it predicts the largest scales from the smaller ones.

  Each law is fitted to the points below several cut-offs, and the error of its logarithm beyond
  them is what counts; Alabdulmohsin et al. 2022 (arXiv:2209.06640) choose likewise. With few points
  a floor that is not there fits well and extrapolates badly. So, starting from the law with the
  fewest parameters, a law with more takes its place only if none of its parameters ended at a
  bound, and it was tested at three cut-offs or more with an error smaller by the factor `gate` at
  three of five of them and in their geometric mean; or an F-test rejects the simpler law (p < 0.01)
  and the back-tests do not speak for it. Of laws with as many parameters that do not beat each
  other, the one with the lower AICc is taken.

  Args:
    laws: names, such as ('power', 'power_floor', 'm3', 'zhai').
    data: as for `fit`.
    x: as for `fit`.
    y: as for `fit`.
    scale: the column along which to extrapolate; by default the law's own, compute or size.
    holdout: 'largest' for up to eight cut-offs that leave out the largest scale, the two largest
      and so on, up to half of them and of their range; or the cut-offs, in units of `scale`.
    gate: factor by which the error must be smaller.
    tolerance: relative error up to which an extrapolation counts as right.
    where: rows to take, as for `table.where`.
    **options: more arguments of `fit`.

  Returns:
    The choice, with scores of all laws.

  Raises:
    RunError: a law or a column is unknown, a cut-off leaves nothing on one side, or not even the
      simplest law can be fitted.
  """
  laws = [laws] if isinstance(laws, str) else laws
  for law in laws:
    if law not in LAWS:
      raise RunError(f'there is no law {law!r}; {suggest(law, LAWS)}')
  if not laws:
    raise RunError(f'name the laws to choose from: {", ".join(LAWS)}')
  laws = sorted(dict.fromkeys(laws), key=lambda law: len(LAWS[law].params))
  names = (x,) if isinstance(x, str) else tuple(x)
  scale = scale or names[LAWS[laws[0]].scale]
  data = read(os.fspath(data)) if isinstance(data, str | os.PathLike) else data
  needed = {*names, y, scale, *([options['group']] if options.get('group') else [])}
  table = pick(data, where) if where else data
  table = Table({name: column(table, name) for name in needed})
  table |= dict(zip((*names, y, scale), numbers(table, *names, y, scale), strict=True))

  fits = {laws[0]: fit(laws[0], table, x=x, y=y, **options)}
  failed = {}
  for law in laws[1:]:
    try:
      fits[law] = fit(law, table, x=x, y=y, **options)
    except RunError as error:
      failed[law] = str(error)
  rows = []
  for cut in _cutoffs(table[scale], holdout, scale):
    below = table[scale] <= cut
    inner, outer = table.take(below), table.take(~below)
    for law in fits:
      found = _try(law, inner, x=x, y=y, **options)
      rows.append({
        'law': law, 'parameters': float(len(LAWS[law].params)), 'cutoff': cut,
        'factor': float(table[scale].max() / cut), 'fitted': float(inner.rows),
        'predicted': float(outer.rows),
        'rmse': np.nan if found is None else _error(found, outer),
      })  # fmt: skip
  scores = Table({name: np.array([row[name] for row in rows]) for name in rows[0]})
  law, reasons = _champion(fits, scores, gate)
  verdicts = {law: reasons.get(law, f'not fitted: {failed.get(law)}') for law in laws}
  plausible = tuple(
    name for name in fits
    if name == law or not any(_rejects(fits[name], other) for other in fits.values())
  )  # fmt: skip
  top = float(table[scale].max())
  return Choice(law, fits[law], fits, scores, plausible, verdicts, scale, top, tolerance)


def _cutoffs(scale: np.ndarray, holdout: str | Sequence[float], name: str) -> list[float]:
  """The largest scale to fit to, in turn."""
  values = np.unique(scale)
  if not isinstance(holdout, str):
    for cut in holdout:
      if not values[0] <= cut < values[-1]:
        raise RunError(
          f'a cut-off must have {name} on both sides, between {values[0]:.4g} and '
          f'{values[-1]:.4g}, found {cut:.4g}'
        )
    return [float(values[values <= cut][-1]) for cut in holdout]
  if holdout != 'largest':
    raise RunError(f"holdout must be 'largest' or a list of cut-offs, not {holdout!r}")
  if len(values) < 3:
    raise RunError(f'{name} has {len(values)} values; a back-test takes three at least')
  # Two values at least, half of the values, and half of their range are fitted.
  logs = np.log(values)
  enough = 2 * logs >= logs[0] + logs[-1] - 1e-9
  enough &= np.arange(len(values)) >= max(1, (len(values) - 1) // 2)
  cuts = values[enough][:-1]
  if not cuts.size:
    cuts = values[-2:-1]
  places = np.linspace(0, len(cuts) - 1, min(CUTS, len(cuts))).round().astype(int)
  return cuts[places].tolist()


def _try(law: str, table: Table, **options: Any) -> Fit | None:
  """A fit, or None where there are too few points for one."""
  try:
    return fit(law, table, **options)
  except RunError:
    return None


def _error(found: Fit, table: Table) -> float:
  """Root mean square of log y - log of the fit."""
  u = np.log([table[name] for name in found.x]) - found._problem.centre.x[:, None]
  curve = found._problem.curve(found._phi[None], u)[0][0] + found._problem.centre.y
  return float(np.sqrt(np.mean((np.log(table[found.y]) - curve) ** 2)))


def _aic(found: Fit) -> float:
  """Akaike's criterion, corrected for small samples."""
  n, k = len(found.residuals), len(found._phi) + 1
  if n <= k + 1:
    return np.inf
  return n * np.log(max(found.convergence.objective, 1e-300) / n) + 2 * k * n / (n - k - 1)


def _rejects(simple: Fit, other: Fit) -> bool:
  """Whether the other law, which has more parameters, fits better than chance would have it."""
  more = len(other._phi) - len(simple._phi)
  left = len(other._problem.members) - len(other._phi)
  if more < 1 or left < 1:
    return False
  small, large = (float((fit.residuals**2).sum()) for fit in (other, simple))
  ratio = (large - small) / more / max(small / left, len(simple.residuals) * ROUNDING**2)
  return bool(stats.f.sf(max(ratio, 0.0), more, left) < REJECTED)


def _champion(fits: dict[str, Fit], scores: Table, gate: float) -> tuple[str, dict[str, str]]:
  """The name of the law to take, and what became of each."""
  rmse = {law: scores['rmse'][scores['law'] == law] for law in fits}
  champion, *others = fits
  reasons = {}
  for law in others:
    bound = fits[law].convergence.at_bound
    both = np.isfinite(rmse[law] + rmse[champion])
    ratio = np.maximum(rmse[champion], ROUNDING)[both] / np.maximum(rmse[law], ROUNDING)[both]
    mean = float(np.exp(np.log(ratio).mean())) if len(ratio) else 1.0
    alike = len(fits[law].params) == len(fits[champion].params)
    if bound:
      reasons[law] = f'not taken: {", ".join(bound)} at a bound'
    elif mean > 1 / gate and _rejects(fits[champion], fits[law]):
      reasons[champion] = f'rejected by an F-test against {law}'
      reasons[law] = f'{champion} is rejected (F-test, p < {REJECTED:g})'
      champion = law
    elif len(ratio) < NEEDED:
      reasons[law] = f'not taken: tested at {len(ratio)} cut-offs, {NEEDED} needed'
    else:
      most = float((ratio > gate).mean())
      said = f'error {1 / mean:.2g} of that of {champion}, below 1/{gate:g} at {most:.0%}'
      better = mean > gate and most >= MOST
      tie = alike and not better and mean > 1 / gate and _aic(fits[law]) < _aic(fits[champion])
      if better or tie:
        said += ', and the lower AICc' if tie else ''
        reasons[champion] = f'beaten by {law}'
        champion = law
        reasons[law] = said
      else:
        reasons[law] = f'not taken: {said}'
  reasons[champion] = f'taken: {reasons[champion]}' if champion in reasons else 'taken: none better'
  return champion, reasons
