"""What data can carry: whether y depends on an input at all, and which way it goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from vit_jax.scaling.forms import Array, Break, Law
from vit_jax.scaling.problem import Problem

ROUNDING = 1e-9  # of log y: smaller differences are not noise but rounding
EXACT = 1e-6  # residuals of a law that goes through its points, as far as a search ends there
SHOWN = 0.05  # p-value below which y is shown to depend on an input
TURNS = 1e-3  # p-value below which y is shown to turn around
AGAINST = 0.25  # of its way along the trend that y must go against it
FEW = 2  # runs beyond the parameters, by which no noise can be judged
STARTS = 16  # of the search for the best fit without an input


class Unseen(NamedTuple):
  """An input on which y is not shown to depend.

  Attributes:
    input: its place among the law's.
    p: of an F-test of the law against itself without the input.
    open: directions in which the free parameters may move without an effect, if y does not depend
      on the input; shape (free, count).
  """

  input: int
  p: float
  open: Array


def unseen(problem: Problem, phi: Array) -> list[Unseen]:
  """The inputs on which y is not shown to depend.

  The law without an input is the law where that input is the same for all points. If it fits as
  well, and has lost more than one parameter, then some of its parameters have no meaning: with
  b = 0 only a + c of a x^-b + c is known, and with a = 0 any b will do. Points of a run count as
  independent: what they share is a matter of the intervals.

  Args:
    problem: what was fitted.
    phi: the best fit, shape (free,).
  """
  out, n, free = [], len(problem.y), len(phi)
  own = float(problem.solve(phi[None], steps=1).objective[0])
  for i in range(len(problem.x)):
    p = _trend(problem, i)
    if p <= SHOWN:
      continue
    x = problem.x.copy()
    x[i] = x[i].mean()
    without = dataclasses.replace(problem, x=x)
    starts = np.concatenate([without.starts(STARTS), phi[None]])
    slopes = without.curve(starts, without.data.u)[1]
    space = min((_kernel(slope) for slope in slopes[:STARTS]), key=lambda s: s.shape[1])
    lost = max(space.shape[1], 1)
    rest = float(without.solve(starts, tolerance=1e-9, steps=100).objective.min())
    p = min(p, _chance(rest, own, lost, n - free))
    if np.ptp(problem.data.z) <= ROUNDING:  # without noise nothing limits any parameter
      out.append(Unseen(i, p, np.eye(free)))
    elif p > SHOWN:
      out.append(Unseen(i, p, space if lost > 1 else space[:, :0]))
  return out


def _chance(without: float, own: float, lost: int, left: int) -> float:
  """The p-value of an F-test: halves of sums of squares, and their parameters and the rest."""
  noise = max(own / max(left, 1), ROUNDING**2)
  return float(stats.f.sf(max(without - own, 0) / lost / noise, lost, max(left, 1)))


def _trend(problem: Problem, i: int) -> float:
  """The p-value of an input among powers of all inputs: few points show little else."""
  u, z = problem.data
  without, own = (
    float(((z - columns.T @ np.linalg.lstsq(columns.T, z)[0]) ** 2).sum()) / 2
    for columns in (np.delete(u, i, 0), u)
  )
  return _chance(without, own, 1, len(z) - len(u) - 1)


def _kernel(slopes: Array) -> Array:
  """Directions of the parameters that slopes of shape (n, free) do not see; (free, count)."""
  size = np.sqrt((slopes**2).sum(0))
  size = np.maximum(size, 1e-9 * max(size.max(), 1e-9))
  _, values, axes = np.linalg.svd(slopes / size)
  rank = int((values > 1e-6 * max(values.max(initial=0), 1e-300)).sum())
  basis = axes[rank:].T / size[:, None]
  return basis / np.sqrt((basis**2).sum(0))


def doubts(
  problem: Problem, phi: Array, x: Sequence[str], y: str, unseen: Sequence[Unseen]
) -> list[str]:
  """Why a fit says nothing beyond its data, a sentence each.

  Args:
    problem: what was fitted.
    phi: the best fit, shape (free,).
    x: columns of the inputs.
    y: column of the target.
    unseen: the inputs on which y is not shown to depend.
  """
  law, count, out = problem.law, len(problem.y), []
  if np.ptp(problem.data.z) <= ROUNDING:
    return [
      f'{y} is the same in all rows: it does not depend on {" or ".join(x)}, and no law can be '
      'identified'
    ]
  turned = len(x) == 1 and not _bends(law) and turns(problem.x[0], problem.y)
  if turned:
    out.append(f'{y} is not monotone: it both falls and rises along {x[0]}, and {law.name} cannot')
  for i, p, _ in [] if turned else unseen:
    others = ' and '.join(name for k, name in enumerate(x) if k != i)
    beside = f' in addition to {others}' if others else ''
    out.append(
      f'{y} is not shown to depend on {x[i]}{beside} (F-test, p = {p:.2g}): no law in {x[i]} can '
      'be identified'
    )
  out += [
    f'{y} grows with {x[i]}: laws of scaling are of a loss or an error, which falls'
    for i in rising(problem, phi)
    if not law.grows and i not in {each.input for each in unseen}
  ]
  residuals = problem.curve(phi[None], problem.data.u)[0][0] - problem.data.z
  runs, free = len(problem.members), len(phi)
  if runs <= free:
    out.append(f'{runs} runs for {free} parameters: what runs share is not told from the law')
  elif runs - free <= FEW and np.abs(residuals).max() < EXACT:
    out.append(
      f'{law.name} goes through all {count} rows, which are too few to tell how large the noise is'
    )
  return out


def rising(problem: Problem, phi: Array) -> list[int]:
  """Inputs along which the fit grows, on average over the data, though its law is of what falls."""
  law, u, out = problem.law, problem.data.u, []
  for i, name in enumerate(law.inputs):
    if name not in _directed(law):
      continue
    step = np.zeros((len(u), 1))
    step[i] = 1e-4
    ahead, back = (problem.curve(phi[None], u + s * step)[0][0] for s in (1, -1))
    if (ahead - back).mean() > 0:
      out.append(i)
  return out


def _directed(law: Law) -> set[str]:
  """The inputs that a law takes one way: not the shape of a model, which has a best value."""
  signs: dict[str, set[int]] = {}
  for term in law.terms:
    for sign, _, basis in term.powers:
      if not isinstance(basis, Break):
        signs.setdefault(basis.x, set()).add(sign * basis.sign)
  return {name for name, found in signs.items() if len(found) == 1}


def _bends(law: Law) -> bool:
  return any(isinstance(power.basis, Break) for term in law.terms for power in term.powers)


def turns(x: Array, y: Array) -> bool:
  """Whether y goes one way along x and then back.

  Two monotone pieces must fit better than one (F-test), and the way back must be a part of the way.
  Of a few points that two pieces go through, none tells noise from a turn: then that part decides.

  Args:
    x: shape (n,).
    y: logarithms, shape (n,).
  """
  values, place = np.unique(x, return_inverse=True)
  weights = np.bincount(place).astype(float)
  means = np.bincount(place, y) / weights
  ways = (np.maximum.accumulate(means) - means).max(), (means - np.minimum.accumulate(means)).max()
  if min(ways) <= max(AGAINST * max(ways), ROUNDING):
    return False

  def monotone(part: slice, increasing: bool) -> tuple[float, int]:
    w, z = weights[part], means[part]
    found = optimize.isotonic_regression(z, weights=w, increasing=increasing)
    return float((w * (z - found.x) ** 2).sum()), len(found.blocks) - 1

  count = len(values)
  least = 1 if count < 6 else 2  # one point alone may be an outlier
  whole, levels = min(monotone(slice(None), way) for way in (False, True))
  pieces, steps = min(
    tuple(np.add(monotone(slice(cut), way), monotone(slice(cut, None), not way)))
    for cut in range(least, count - least + 1) for way in (False, True)
  )  # fmt: skip
  within = float(((y - means[place]) ** 2).sum())
  left = len(y) - steps
  if left < 1:
    return True
  gain = (whole - pieces) / max(steps - levels, 1)
  noise = max((pieces + within) / left, ROUNDING**2)
  return bool(stats.f.sf(max(gain, 0) / noise, max(steps - levels, 1), left) < TURNS)
