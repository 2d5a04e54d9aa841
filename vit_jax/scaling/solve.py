"""Levenberg-Marquardt for many small fits at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vit_jax.scaling.forms import Array

# (theta of some fits, which of all fits they are) -> residuals (b, n), their gradient (b, n, p)
Residuals = Callable[[Array, np.ndarray], tuple[Array, Array]]


class Solution(NamedTuple):
  """Of every fit of a batch.

  Attributes:
    theta: parameters, shape (batch, p).
    objective: weighted sum of rho(residual), shape (batch,).
    gradient: the largest cosine between the residuals and a column of their Jacobian, of the
      parameters that are not at a bound; shape (batch,).
    steps: evaluations, shape (batch,).
  """

  theta: Array
  objective: Array
  gradient: Array
  steps: np.ndarray


def rho(r: Array, delta: float | None) -> Array:
  """r^2 / 2, or Huber's delta (|r| - delta / 2) where |r| > delta."""
  if delta is None:
    return r * r / 2
  size = np.abs(r)
  return np.where(size <= delta, r * r / 2, delta * (size - delta / 2))


def minimise(
  residuals: Residuals, theta: Array, weights: Array, bounds: tuple[Array, Array], *,
  delta: float | None = None, steps: int, tolerance: float,
) -> Solution:  # fmt: skip
  """Minimises sum_i w_i rho(r_i(theta)) from each row of `theta`: sums, so that nothing shrinks.

  Args:
    residuals: the function.
    theta: starts, shape (batch, p).
    weights: shape (n,) or (batch, n).
    bounds: least and greatest theta, shapes (p,).
    delta: of Huber's loss, None for squares.
    steps: at most.
    tolerance: stop when a step promises to lower the objective by less than this part of it.

  Returns:
    The solutions, in the order of the starts.
  """
  batch, p = theta.shape
  weights = np.broadcast_to(weights, (batch, np.shape(weights)[-1]))
  theta, active = np.clip(theta, *bounds), np.arange(batch)
  objective, cosine = np.empty(batch), np.full(batch, np.inf)
  used = np.zeros(batch, int)
  # Of the active ones: parameters, objective, gradient and curvature there, damping.
  at = theta
  value, slope, curvature, cosines = _expand(residuals, at, active, weights, delta, bounds)
  damping, growth = np.full(batch, 1e-3), np.full(batch, 2.0)
  diagonal = np.eye(p, dtype=bool)
  for count in range(steps):
    scale = np.maximum(curvature[:, diagonal], 1e-12 * curvature.max((1, 2))[:, None] + 1e-300)
    lhs = curvature.copy()
    lhs[:, diagonal] += damping[:, None] * scale
    step = -np.linalg.solve(lhs, slope[..., None])[..., 0]
    blocked = ((at <= bounds[0]) & (step < 0)) | ((at >= bounds[1]) & (step > 0))
    if blocked.any():
      free, lhs = _freeze(slope, lhs, blocked)
      step = -np.linalg.solve(lhs, free[..., None])[..., 0]
    step *= np.minimum(1, 3 / np.maximum(np.abs(step).max(1), 1e-300))[:, None]
    trial = np.clip(at + step, *bounds)
    step = trial - at
    promised = -(slope * step).sum(1) - np.einsum('bi,bij,bj->b', step, curvature, step) / 2
    new = _expand(residuals, trial, active, weights, delta, bounds)
    gain = np.clip((value - new[0]) / np.maximum(promised, 1e-100), 0, 2)
    better = new[0] < value
    used[active] += 1
    # Nielsen's rule: the damping follows how well the quadratic model predicted the gain.
    damping = np.where(better, damping * np.clip(1 - (2 * gain - 1) ** 3, 0.1, 2), damping * growth)
    damping = np.maximum(damping, 1e-11)  # what rounding would leave of it
    growth = np.where(better, 2.0, growth * 2)
    done = (promised <= tolerance * value) & (better | (promised <= 0) | (damping < 1e3))
    done |= (damping > 1e14) | (new[0] < 1e-28)
    at = np.where(better[:, None], trial, at)
    value = np.where(better, new[0], value)
    slope = np.where(better[:, None], new[1], slope)
    curvature = np.where(better[:, None, None], new[2], curvature)
    cosines = np.where(better, new[3], cosines)
    finished = done | (count == steps - 1)
    if finished.any():
      rows = active[finished]
      theta[rows], objective[rows], cosine[rows] = at[finished], value[finished], cosines[finished]
      keep = ~finished
      if not keep.any():
        break
      active, at, value, slope = active[keep], at[keep], value[keep], slope[keep]
      curvature, cosines = curvature[keep], cosines[keep]
      damping, growth = damping[keep], growth[keep]
  return Solution(theta, objective, cosine, used)


def _expand(
  residuals: Residuals, theta: Array, rows: np.ndarray, weights: Array, delta: float | None,
  bounds: tuple[Array, Array],
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
  """Objective, gradient and Gauss-Newton curvature, bounds taken into account; and the cosine."""
  r, jacobian = residuals(theta, rows)
  w = weights[rows]
  value = (w * rho(r, delta)).sum(1)
  value = np.where(np.isfinite(value), value, np.inf)
  if delta is None:
    psi, bend = w * r, w
  else:
    share = np.minimum(1, delta / np.maximum(np.abs(r), 1e-300))
    psi, bend = w * r * share, w * share  # curvature of the quadratic that touches rho at r
  transposed = jacobian.transpose(0, 2, 1)
  slope = (transposed @ psi[..., None])[..., 0]
  curvature = transposed @ (bend[..., None] * jacobian)
  # What would leave the box stays where it is.
  low, high = bounds
  stuck = ((theta <= low) & (slope > 0)) | ((theta >= high) & (slope < 0))
  slope, curvature = _freeze(slope, curvature, stuck)
  lengths = np.sqrt(np.einsum('bii->bi', curvature) * (2 * value[:, None]))
  cosine = (np.abs(slope) / np.maximum(lengths, 1e-300)).max(1)
  return value, slope, curvature, cosine


def _freeze(slope: Array, curvature: Array, stuck: np.ndarray) -> tuple[Array, Array]:
  """Gradient and curvature of an objective that does not depend on the stuck parameters."""
  curvature = np.where(stuck[:, :, None] | stuck[:, None, :], 0, curvature)
  return np.where(stuck, 0, slope), curvature + np.eye(stuck.shape[1]) * stuck[:, None, :]
