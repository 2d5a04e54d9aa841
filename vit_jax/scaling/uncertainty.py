"""How far the data leave parameters and predictions open: profiles and bootstraps."""

from __future__ import annotations

import numpy as np

from vit_jax.scaling.forms import VANISHED, Array
from vit_jax.scaling.problem import Problem, Pull, Quantity

TREND = 1.0  # squared standard errors of a trend in the noise that are taken off it
FAR = 60.0  # a logarithm that moved by this much has no end


def curvature(problem: Problem, phi: Array, weights: Array | None = None) -> Array:
  """Gauss-Newton curvature of the sum of squares, shape (batch, free, free); 1 where at a bound."""
  stuck = (phi <= problem.bounds[0]) | (phi >= problem.bounds[1])
  jacobian = np.where(stuck[:, None, :], 0, problem.curve(phi, problem.data.u)[1])
  weighted = jacobian if weights is None else jacobian * weights[..., None]
  out = weighted.transpose(0, 2, 1) @ jacobian
  diagonal = np.eye(phi.shape[1], dtype=bool)
  size = out[:, diagonal]
  out[:, diagonal] = np.where(size == 0, 1, size * (1 + 1e-12) + 1e-12)
  return out


def variance(problem: Problem, phi: Array, slope: Array, weights: Array | None = None) -> Array:
  """Of quantities with the gradients `slope` (batch, free), in units of the noise's; (batch,)."""
  solved = np.linalg.solve(curvature(problem, phi, weights), slope[..., None])[..., 0]
  return (slope * solved).sum(1)


def profile(
  problem: Problem, phi: Array, objective: Array, quantity: Quantity, side: Array, rise: Array, *,
  z: Array | None = None,
) -> Array:  # fmt: skip
  """Where the profile of the objective over a quantity has risen by a given amount.

  A pull towards a target adds one residual to the fit. Whatever its weight, the fit then lies on
  the profile: its objective without the pull is the least for the value that its quantity has.

  Args:
    problem: of sums of squares.
    phi: best fits, shape (batch, free).
    objective: theirs, shape (batch,).
    quantity: of phi.
    side: -1 for the lower end, 1 for the upper one, shape (batch,).
    rise: of the objective, shape (batch,).
    z: targets of each fit, shape (batch, n), if not the data's.

  Returns:
    The ends, shape (batch,); infinite where there is none.
  """
  batch, every = len(phi), np.arange(len(phi))
  rise = np.maximum(rise, 1e-20)  # what rounding lets through
  origin, slope = quantity(phi, every)
  spread = np.maximum(variance(problem, phi, slope), 1e-30)
  weight = 100 / spread
  lag = np.zeros(batch)  # by which a pull misses its target
  # The bracket: a point inside (with its fit) and one outside, and the roots of their rises.
  inner, low, fit = origin.copy(), np.zeros(batch), phi.copy()
  outer, high = np.full(batch, np.nan), np.full(batch, np.nan)
  stride = np.minimum(np.sqrt(2 * rise * spread), 5.0)
  end, idle, a = np.full(batch, np.nan), np.zeros(batch, int), every
  for count in range(60):
    seeks = np.isnan(outer[a])
    share = np.clip((1 - low[a]) / (high[a] - low[a]), 0.02, 0.98)
    share = np.where((idle[a] > 0) | (high[a] > 3) | (count % 4 == 3), 0.5, share)
    goal = inner[a] + np.where(seeks, side[a] * stride[a], share * (outer[a] - inner[a]))
    target = goal + lag[a]
    pull = Pull(lambda p, rows, a=a: quantity(p, a[rows]), target, weight[a])
    found = problem.solve(
      fit[a], z=None if z is None else z[a], pull=pull, tolerance=1e-9, steps=40
    )
    value = quantity(found.theta, a)[0]
    cost = found.objective - weight[a] * (value - target) ** 2 / 2
    root = np.sqrt(np.maximum(cost - objective[a], 0) / rise[a])
    ahead = side[a] * (value - inner[a])
    within = (ahead > 0) & ~(side[a] * (value - outer[a]) >= 0)
    enters, leaves = within & (root <= 1), within & (root > 1)
    # A profile that has become flat, or a pull too weak for one that is steep.
    slow = ~(enters | leaves) | (seeks & enters & (ahead < 0.2 * stride[a]))
    idle[a] = np.where(slow, idle[a] + 1, 0)
    weight[a] *= np.where(slow, 10, 1)
    wanted = side[a] * (value - origin[a]) * (1 / np.maximum(root, 1e-3) - 1)
    stride[a] = np.where(enters & seeks, np.clip(wanted, stride[a], 3 * stride[a]), stride[a])
    i, o = a[enters], a[leaves]
    inner[i], low[i], fit[i] = value[enters], root[enters], found.theta[enters]
    lag[i] = (target - value)[enters]
    outer[o], high[o] = value[leaves], root[leaves]
    seeks = np.isnan(outer[a])
    endless = seeks & ((np.abs(inner[a] - origin[a]) > FAR) | (idle[a] > 4))
    gap = outer[a] - inner[a]
    close = (np.abs(gap) <= 2e-3 * np.abs(outer[a] - origin[a])) | (idle[a] > 6)
    near = (np.abs(np.where(leaves, high[a], low[a]) - 1) < 1e-3) & ~seeks
    between = inner[a] + gap * (1 - low[a]) / (high[a] - low[a])
    end[a] = np.where(seeks, side[a] * np.inf, between)
    a = a[~(endless | close | near)]
    if not len(a):
      break
  return end


def inflation(problem: Problem, phi: Array, residuals: Array, slope: Array) -> tuple[Array, Array]:
  """What the variance of quantities is multiplied by, for noise that points of a run may share.

  `variance` times this is what it is for noise of any size in every run. Residuals of a run are
  divided by the root of what the fit left of them, so that the result is the variance of equal and
  independent noise if that is what there is. Its degrees of freedom are those of a chi-squared
  variable with the same first two moments (Bell and McCaffrey 2002, Bias Reduction in Standard
  Errors for Linear Regression with Multi-Stage Samples).

  Args:
    problem: of sums of squares.
    phi: best fits, shape (batch, free).
    residuals: theirs, shape (batch, n).
    slope: gradients of the quantities, shape (batch, free).

  Returns:
    The factors, shape (batch,), and their degrees of freedom, at least 2, shape (batch,).
  """
  # Parameters at a bound count as well, however little they do: only ratios matter here.
  jacobian = problem.curve(phi, problem.data.u)[1]
  scale = np.sqrt((jacobian**2).sum(1))
  scale = np.maximum(scale, 1e-12 * scale.max(1, keepdims=True) + 1e-100)
  jacobian, slope = jacobian / scale[:, None], slope / scale
  values, axes = np.linalg.eigh(jacobian.transpose(0, 2, 1) @ jacobian)
  root = axes / np.sqrt(np.maximum(values, 1e-13))[:, None, :]
  w, eta = jacobian @ root, (slope[:, None] @ root)[:, 0]
  eta /= np.maximum(np.sqrt((eta**2).sum(1)), 1e-300)[:, None]
  batch, _, p = w.shape
  total, trace, squares = np.zeros(batch), np.zeros(batch), np.zeros(batch)
  outer = np.zeros((batch, p, p))
  for points in problem.members:
    part, error = w[:, points], residuals[:, points, None]
    turned = part.transpose(0, 2, 1)
    share, axes = np.linalg.eigh(turned @ part)
    left = 1 - share  # of noise in these directions; where nothing is left nothing is known
    stretch = np.where(left > 1e-6, 1 / np.sqrt(np.maximum(left, 1e-6)), 0)
    along = (eta[:, None] @ axes)[:, 0]
    score = (axes.transpose(0, 2, 1) @ (turned @ error))[..., 0]
    total += (along * stretch * score).sum(1) ** 2
    own = (along**2 * share * stretch**2 * left).sum(1)
    pulled = (axes @ (along * stretch * share)[..., None])[..., 0]
    trace += own
    squares += own**2 - (pulled**2).sum(1) ** 2
    outer += pulled[:, :, None] * pulled[:, None, :]
  squares += (outer**2).sum((1, 2))
  known = trace > 1e-3  # else all of it hangs on runs that the fit goes through
  count = len(problem.members)
  equal = (residuals**2).mean(1) * count / max(count - p, 1)
  factor = np.where(known, total / np.maximum(trace, 1e-3), equal)
  degrees = np.where(known, trace**2 / np.maximum(squares, 1e-12), max(count - p, 1))
  return factor, np.maximum(degrees, 2)


def noise_at(problem: Problem, residuals: Array, curve: Array, at: Array) -> Array:
  """Standard deviation of a single point, where the curve has the values `at`.

  It may grow or shrink with log y, by a trend in the logarithms of the residuals that is shrunk
  towards none by how unsure it is. Beyond the data it stays as it is at their end.

  Args:
    problem: of the fits.
    residuals: of the fits, shape (batch, n).
    curve: their values at the data, shape (batch, n).
    at: of the curves, shape (batch, m).
  """
  count = len(problem.members)
  left = max(count - len(problem.free), 1)
  middle = curve.mean(1, keepdims=True)
  span = curve - middle
  sizes = np.log(
    np.maximum(np.abs(residuals), 1e-12 * np.abs(residuals).max(1, keepdims=True) + 1e-30)
  )
  spread = np.maximum((span**2).sum(1), 1e-12)
  trend = (span * (sizes - sizes.mean(1, keepdims=True))).sum(1) / spread
  unsure = np.pi**2 / 8 / spread * residuals.shape[1] / count  # the variance of log |normal|
  trend *= np.maximum(trend**2 - TREND * unsure, 0) / np.maximum(trend**2, 1e-300)
  there = np.clip(at, curve.min(1, keepdims=True), curve.max(1, keepdims=True)) - middle
  scaled = (residuals * np.exp(-trend[:, None] * span)) ** 2
  return np.sqrt(scaled.mean(1) * count / left)[:, None] * np.exp(trend[:, None] * there)


def resample(problem: Problem, phi: Array, draws: int, seed: int) -> Array:
  """Fits to pairs drawn with replacement, whole runs at a time; shape (draws, free).

  Args:
    problem: what was fitted.
    phi: the best fit, shape (free,).
    draws: how many.
    seed: of the generator.
  """
  count = len(problem.members)
  rng = np.random.default_rng(seed)
  chosen = rng.multinomial(count, np.full(count, 1 / count), draws)
  weights = np.empty((draws, len(problem.y)))
  for members, times in zip(problem.members, chosen.T, strict=True):
    weights[:, members] = times[:, None]
  # From the best fit, and from inside the bounds in case it lies on one that a draw would leave.
  low, high = problem.bounds
  starts = np.stack([phi, np.where(phi <= low, np.minimum(low - VANISHED - 1, high), phi)])
  starts = starts[: 1 + bool((phi <= low).any())]
  tries = [
    problem.solve(np.tile(start, (draws, 1)), weights=weights, tolerance=1e-8) for start in starts
  ]
  best = np.argmin([t.objective for t in tries], 0)
  return problem.ordered(np.stack([t.theta for t in tries])[best, np.arange(draws)])
