"""What a scaling law is to the solver: log y and its gradient, in coordinates that suit it.

A fit works on u = log x - mean(log x) and log y - mean(log y), with the internal parameters theta:
logarithms of what is positive, exponents as they are. There the coefficient of a term is its size
in the middle of the data, which hardly depends on its exponent; the published coefficient is its
size at x = 1, which may be twenty decades away, and hardly depends on anything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.stats import qmc

Array = NDArray[np.float64]
VANISHED = -20.0  # log of a share of y, or of x, that is as good as nothing


def exp(log: ArrayLike) -> Array:
  """Infinite where it is beyond what a float can hold, as a coefficient at x = 1 may be."""
  with np.errstate(over='ignore'):
    return np.exp(np.asarray(log, float))


class Centre(NamedTuple):
  """Means of the logarithms: of the inputs, shape (inputs,), and of y."""

  x: Array
  y: float


class Data(NamedTuple):
  """Centred logarithms.

  Attributes:
    u: of the inputs, shape (inputs, n).
    z: of y, shape (n,).
  """

  u: Array
  z: Array


class Input(NamedTuple):
  """log x of an input."""

  x: str
  sign = 1

  def __call__(self, u: Array, theta: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Values, shape (batch, n), and their derivatives by parameters of the basis itself."""
    return u, {}


class Shifted(NamedTuple):
  """log(x + d)."""

  x: str
  shift: str
  sign = 1

  def __call__(self, u: Array, theta: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """As for `Input`."""
    d = theta[self.shift]
    return np.logaddexp(u, d), {self.shift: special.expit(d - u)}


class Inverse(NamedTuple):
  """log(1/x + gamma)."""

  x: str
  shift: str
  sign = -1

  def __call__(self, u: Array, theta: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """As for `Input`."""
    gamma = theta[self.shift]
    return np.logaddexp(-u, gamma), {self.shift: special.expit(gamma + u)}


class Break(NamedTuple):
  """f log(1 + (x/d)^(1/f)): nothing below d, log(x/d) above it."""

  x: str
  at: str
  width: str
  sign = 0

  def __call__(self, u: Array, theta: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """As for `Input`."""
    f = np.exp(theta[self.width])
    s = (u - theta[self.at]) / f
    soft, share = np.logaddexp(0, s), special.expit(s)
    return f * soft, {self.at: -share, self.width: f * (soft - s * share)}


class Power(NamedTuple):
  """A factor of a term: exp(sign * exponent * basis)."""

  sign: int
  exponent: str
  basis: Input | Shifted | Inverse | Break


class Term(NamedTuple):
  """A coefficient times powers; without powers a constant."""

  coefficient: str
  powers: tuple[Power, ...] = ()


@dataclasses.dataclass(frozen=True)
class Law:
  """A sum of terms.

  Attributes:
    name: by which `fit` finds it.
    formula: for people.
    source: where it was published.
    inputs: names, in the order of `x`.
    roles: by name of parameter, in published order: 'coefficient', 'floor', 'exponent', 'offset',
      'break' or 'width'. All but exponents are positive.
    terms: whose sum is y.
    scale: the input along which one extrapolates.
    grows: whether y may grow along it, as the best size of a model does.
  """

  name: str
  formula: str
  source: str
  inputs: tuple[str, ...]
  roles: dict[str, str]
  terms: tuple[Term, ...]
  scale: int = 0
  grows: bool = False

  @property
  def params(self) -> tuple[str, ...]:
    """Names of the parameters."""
    return tuple(self.roles)

  @property
  def logs(self) -> NDArray[np.bool_]:
    """Which parameters are positive, and logarithms inside; shape (parameters,)."""
    return np.array([role != 'exponent' for role in self.roles.values()])

  @property
  def vanishing(self) -> tuple[str, ...]:
    """The parameters that may be zero."""
    return tuple(name for name, role in self.roles.items() if role in ('floor', 'offset', 'share'))

  def curve(self, theta: Array, u: Array) -> tuple[Array, Array]:
    """log y, centred, and its gradient.

    Args:
      theta: internal parameters, shape (batch, parameters).
      u: centred log inputs, shape (inputs, n), or (inputs, batch, n).

    Returns:
      Values, shape (batch, n), and derivatives, shape (batch, n, parameters).
    """
    columns = dict(zip(self.params, theta.T[..., None], strict=True))
    at = dict(zip(self.inputs, u, strict=True))
    place = {name: i for i, name in enumerate(self.params)}
    bases = {
      power.basis: power.basis(at[power.basis.x], columns)
      for term in self.terms for power in term.powers
    }  # fmt: skip
    shape = (theta.shape[0], u.shape[-1])
    logs = np.empty((len(self.terms), *shape))
    for log, term in zip(logs, self.terms, strict=True):
      log[:] = columns[term.coefficient]
      for sign, exponent, basis in term.powers:
        log += sign * columns[exponent] * bases[basis][0]
    top = logs.max(0)
    shares = np.exp(logs - top)
    total = shares.sum(0)
    shares /= total
    gradient = np.zeros((*shape, theta.shape[1]))
    for share, term in zip(shares, self.terms, strict=True):
      gradient[..., place[term.coefficient]] += share
      for sign, exponent, basis in term.powers:
        value, inner = bases[basis]
        gradient[..., place[exponent]] += sign * share * value
        for name, derivative in inner.items():
          gradient[..., place[name]] += sign * share * columns[exponent] * derivative
    return top + np.log(total), gradient

  def _matrix(self, centre: Centre) -> tuple[Array, Array]:
    """The published parameters (logarithms of positive ones) are matrix @ theta + constant."""
    place = {name: i for i, name in enumerate(self.params)}
    mean = dict(zip(self.inputs, centre.x, strict=True))
    matrix, constant = np.eye(len(place)), np.zeros(len(place))
    for term in self.terms:
      row = place[term.coefficient]
      constant[row] = centre.y
      for sign, exponent, basis in term.powers:
        matrix[row, place[exponent]] -= sign * basis.sign * mean[basis.x]
        if isinstance(basis, Shifted | Inverse):
          constant[place[basis.shift]] = basis.sign * mean[basis.x]
        elif isinstance(basis, Break):
          constant[place[basis.at]] = mean[basis.x]
    return matrix, constant

  def natural(self, theta: Array, centre: Centre) -> tuple[Array, Array]:
    """Published parameters, logarithms of the positive ones: (batch, p), Jacobian (batch, p, p)."""
    matrix, constant = self._matrix(centre)
    return theta @ matrix.T + constant, np.broadcast_to(matrix, (len(theta), *matrix.shape))

  def internal(self, natural: Array, centre: Centre) -> Array:
    """The inverse of `natural`."""
    matrix, constant = self._matrix(centre)
    return (natural - constant) @ np.linalg.inv(matrix).T

  def hold(self, held: dict[str, float], centre: Centre) -> tuple[Array, Array]:
    """theta = matrix @ (the free ones) + constant, where some published parameters are held.

    Args:
      held: by name, logarithms of positive ones.
      centre: of the data.

    Returns:
      The matrix, shape (parameters, free), and the constant, shape (parameters,).
    """
    matrix, constant = self._matrix(centre)
    fixed = np.isin(self.params, list(held))
    values = np.array([held[name] for name in self.params if name in held])
    # rows: matrix[fixed] @ theta + constant[fixed] = values; the fixed ones are their pivots.
    pivot = matrix[np.ix_(fixed, fixed)]
    out, shift = np.zeros((len(fixed), int((~fixed).sum()))), np.zeros(len(fixed))
    out[~fixed] = np.eye(out.shape[1])
    out[fixed] = -np.linalg.solve(pivot, matrix[np.ix_(fixed, ~fixed)])
    shift[fixed] = np.linalg.solve(pivot, values - constant[fixed])
    return out, shift

  def ordered(self, theta: Array) -> Array:
    """The same curves with their breaks from left to right."""
    breaks = [p for term in self.terms for p in term.powers if isinstance(p.basis, Break)]
    if len(breaks) < 2:
      return theta
    columns = np.array(
      [[self.params.index(name) for name in (p.exponent, *p.basis[1:])] for p in breaks]
    )
    order = np.argsort(theta[:, columns[:, 1]], axis=1)
    out, rows = theta.copy(), np.arange(len(theta))[:, None]
    for place, chosen in zip(columns, order.T, strict=True):
      out[:, place] = theta[rows, columns[chosen]]
    return out

  def ranges(self, data: Data) -> tuple[Array, Array, Array]:
    """Where theta may be, and where starts are drawn from.

    Returns:
      Lower and upper bounds, shape (parameters,), and the starts' lower and upper ends, shape
      (2, parameters). Exponents start at exp of that, with the sign that the data show.
    """
    lower, upper, ends = [], [], []
    powers = [power for term in self.terms for power in term.powers]
    for name, role in self.roles.items():
      basis = next((p.basis for p in powers if name in (p.exponent, *p.basis[1:])), Input('x'))
      u = data.u[self.inputs.index(basis.x) if basis.x in self.inputs else 0]
      low, high = float(u.min()), float(u.max())
      span = max(high - low, 1e-3)
      if isinstance(basis, Inverse):
        low, high = -high, -low
      drop = max(float(np.ptp(data.z)), 0.05)
      lowest = float(data.z.min())
      bounds, start = {
        'coefficient': ((-40.0, 40.0), (-3.0, 0.5)),
        'floor': ((lowest + VANISHED, float(data.z.max()) + 5), (lowest - 3, lowest - 0.01)),
        'exponent': ((-60 / span, 60 / span), (np.log(0.3 * drop / span), np.log(8 / span))),
        'offset': ((low + VANISHED, high + 10), (low - 2, high)),
        'break': ((low - span, high + span), (low, high)),
        'width': ((np.log(1e-3 * span), np.log(3 * span)), (np.log(0.01 * span), np.log(span / 2))),
        'ceiling': ((lowest, 40.0), (float(data.z.max()) + 0.01, float(data.z.max()) + 2)),
        'share': ((VANISHED, 12.0), (-4.0, 3.0)),
        'power': ((-4.0, 5.0), (-1.5, 2.0)),
      }[role]
      lower.append(bounds[0])
      upper.append(bounds[1])
      ends.append(start)
    return np.array(lower), np.array(upper), np.array(ends).T

  def starts(self, data: Data, count: int) -> Array:
    """Quasi-random internal parameters from which to search; shape (count, parameters)."""
    _, _, (low, high) = self.ranges(data)
    bits = max(count - 1, 1).bit_length()
    cube = qmc.Sobol(len(low), scramble=False).random_base2(bits)[:count] + 2.0 ** -(bits + 1)
    theta = low + (high - low) * cube
    rises = len(self.inputs) == 1 and float(data.u[0] @ data.z) > 0
    for i in np.flatnonzero(~self.logs):
      sign, _, basis = _power(self.terms, self.params[i])
      if isinstance(basis, Break):
        signs = np.where(np.arange(count) % 2, -1, 1)
      elif len(self.inputs) == 1:
        signs = sign * basis.sign * (1 if rises else -1)
      else:
        signs = 1
      theta[:, i] = signs * np.exp(theta[:, i])
    return theta


def _power(terms: Sequence[Term], exponent: str) -> Power:
  """Where an exponent stands."""
  return next(p for term in terms for p in term.powers if p.exponent == exponent)
