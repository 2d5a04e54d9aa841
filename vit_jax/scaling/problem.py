"""A law and the data it is fitted to: what is minimised, from where, within which bounds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vit_jax.scaling import solve
from vit_jax.scaling.forms import Array, Centre, Data, Law, exp

# (phi of some fits, which of all fits they are) -> a quantity (b,), its gradient (b, free)
Quantity = Callable[[Array, np.ndarray], tuple[Array, Array]]


class Pull(NamedTuple):
  """One more residual for each fit of a batch: quantity - target, of the given weight.

  Attributes:
    quantity: the function.
    target: shape (batch,).
    weight: shape (batch,).
  """

  quantity: Quantity
  target: Array
  weight: Array


@dataclasses.dataclass(frozen=True)
class Problem:
  """Parameters phi are the free ones of the law's internal parameters theta.

  Attributes:
    law: of which `held` parameters are given.
    x: log inputs, shape (inputs, n).
    y: log targets, shape (n,).
    delta: of Huber's loss, None for squares.
    held: published parameters that are given, logarithms of the positive ones.
    runs: number of the run that each point belongs to, shape (n,); None if points are independent.
  """

  law: Law
  x: Array
  y: Array
  delta: float | None = None
  held: dict[str, float] = dataclasses.field(default_factory=dict)
  runs: np.ndarray | None = None

  @functools.cached_property
  def centre(self) -> Centre:
    """Of the data."""
    return Centre(self.x.mean(1), float(self.y.mean()))

  @functools.cached_property
  def data(self) -> Data:
    """Centred."""
    return Data(self.x - self.centre.x[:, None], self.y - self.centre.y)

  @functools.cached_property
  def members(self) -> list[np.ndarray]:
    """Points of each run."""
    runs = np.arange(len(self.y)) if self.runs is None else self.runs
    return [np.flatnonzero(runs == run) for run in range(int(runs.max()) + 1)]

  @functools.cached_property
  def _basis(self) -> tuple[Array, Array]:
    return self.law.hold(self.held, self.centre)

  @functools.cached_property
  def free(self) -> np.ndarray:
    """Places of the parameters that are fitted."""
    return np.flatnonzero([name not in self.held for name in self.law.params])

  @functools.cached_property
  def bounds(self) -> tuple[Array, Array]:
    """Of phi."""
    low, high, _ = self.law.ranges(self.data)
    return low[self.free], high[self.free]

  def theta(self, phi: Array) -> Array:
    """All internal parameters, shape (batch, parameters)."""
    matrix, shift = self._basis
    return phi @ matrix.T + shift

  def curve(self, phi: Array, u: Array) -> tuple[Array, Array]:
    """As `Law.curve`, with derivatives by phi."""
    value, gradient = self.law.curve(self.theta(phi), u)
    return value, gradient @ self._basis[0] if self.held else gradient

  def natural(self, phi: Array) -> tuple[Array, Array]:
    """As `Law.natural`, with derivatives by phi."""
    value, jacobian = self.law.natural(self.theta(phi), self.centre)
    return value, jacobian @ self._basis[0]

  def published(self, phi: Array) -> dict[str, Array]:
    """Parameters as they are published, by name; what has vanished is zero."""
    natural, low = self.natural(phi)[0], self.law.ranges(self.data)[0]
    theta = self.theta(phi)
    out = {}
    for i, (name, log) in enumerate(zip(self.law.params, self.law.logs, strict=True)):
      out[name] = exp(natural[:, i]) if log else natural[:, i]
      if name in self.law.vanishing:
        out[name] = np.where(theta[:, i] <= low[i], 0.0, out[name])
    return out

  def ordered(self, phi: Array) -> Array:
    """The same fits with their breaks in order, if none of their parameters is held."""
    return phi if self.held else self.law.ordered(phi)

  def starts(self, count: int) -> Array:
    """Where to search from; shape (count, free)."""
    return self.law.starts(self.data, count)[:, self.free]

  def solve(
    self, phi: Array, *, z: Array | None = None, weights: Array | None = None,
    pull: Pull | None = None, tolerance: float = 1e-13, steps: int = 500,
  ) -> solve.Solution:  # fmt: skip
    """Minimises from every row of `phi`.

    Args:
      phi: starts, shape (batch, free).
      z: centred log targets if not those of the data, shape (batch, n).
      weights: of the points, shape (n,) or (batch, n).
      pull: one more residual.
      tolerance: as for `solve.minimise`.
      steps: as well.
    """
    n = len(self.y)
    weights = np.ones(n) if weights is None else weights
    if pull is not None:
      weights = np.broadcast_to(weights, (len(phi), n))
      weights = np.concatenate([weights, pull.weight[:, None]], 1)

    def residuals(phi: Array, rows: np.ndarray) -> tuple[Array, Array]:
      value, gradient = self.curve(phi, self.data.u)
      r = value - (self.data.z if z is None else z[rows])
      if pull is None:
        return r, gradient
      value, slope = pull.quantity(phi, rows)
      r = np.concatenate([r, (value - pull.target[rows])[:, None]], 1)
      return r, np.concatenate([gradient, slope[:, None]], 1)

    return solve.minimise(
      residuals, phi, weights, self.bounds, delta=self.delta, tolerance=tolerance, steps=steps
    )
