"""The scaling laws that `fit` knows, in their published forms."""

from __future__ import annotations

import numpy as np
from scipy import special

from vit_jax.core.errors import RunError
from vit_jax.scaling.forms import (
  Array,
  Break,
  Centre,
  Data,
  Input,
  Inverse,
  Law,
  Power,
  Shifted,
  Term,
)


class Sigmoidal(Law):
  """(y - e_inf) / (e0 - y)^alpha = beta x^c, solved for y.

  With w = (y - e_inf) / (e0 - e_inf) it reads log w - alpha log(1 - w) = B + c log x, where
  B = log beta + (alpha - 1) log(e0 - e_inf). Inside, theta is (the logit of e_inf / e0, log e0,
  log alpha, B, c).
  """

  def curve(self, theta: Array, u: Array) -> tuple[Array, Array]:
    """As for `Law`; Newton's method finds s = logit w, the gradient is that of the equation."""
    r, e0, power, b, c = theta.T[..., None]
    alpha, x = np.exp(power), u[0]
    level = b + c * x
    # h(s) = log w - alpha log(1 - w) rises with a slope between 1 and alpha and bends one way only,
    # so that Newton's method converges from anywhere.
    s = np.where(level < 0, level, level / alpha)
    for _ in range(60):
      w = special.expit(s)
      slope = 1 - w + alpha * w
      step = (alpha * np.logaddexp(0, s) - np.logaddexp(0, -s) - level) / slope
      s = s - step
      if np.abs(step).max() < 1e-13 * (1 + np.abs(s).max()):
        break
    w = special.expit(s)
    slope = 1 - w + alpha * w
    # y = e0 (p + (1 - p) w) with p = e_inf / e0
    top = np.logaddexp(special.log_expit(r), special.log_expit(-r) + special.log_expit(s))
    dw = np.exp(special.log_expit(-r) + special.log_expit(s) + special.log_expit(-s) - top)
    gradient = np.empty((*level.shape, 5))
    gradient[..., 0] = np.exp(special.log_expit(r) + special.log_expit(-r) - top) * (1 - w)
    gradient[..., 1] = 1
    gradient[..., 2] = -dw / slope * alpha * np.logaddexp(0, s)
    gradient[..., 3] = dw / slope
    gradient[..., 4] = dw / slope * x
    return e0 + top, gradient

  def natural(self, theta: Array, centre: Centre) -> tuple[Array, Array]:
    """As for `Law`."""
    r, e0, power, b, c = theta.T
    alpha = np.exp(power)
    gap = e0 + centre.y + special.log_expit(-r)
    mean = centre.x[0]
    beta = b - c * mean - (alpha - 1) * gap
    natural = np.stack([e0 + centre.y + special.log_expit(r), e0 + centre.y, power, beta, c], -1)
    jacobian = np.zeros((len(theta), 5, 5))
    jacobian[:, [0, 0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4]] = 1
    jacobian[:, 0, 0] = special.expit(-r)
    jacobian[:, 3, 0] = (alpha - 1) * special.expit(r)
    jacobian[:, 3, 1] = 1 - alpha
    jacobian[:, 3, 2] = -alpha * gap
    jacobian[:, 3, 4] = -mean
    return natural, jacobian

  def internal(self, natural: Array, centre: Centre) -> Array:
    """The inverse of `natural`."""
    e_inf, e0, power, beta, c = natural.T
    # logit of exp(e_inf - e0)
    r = (e_inf - e0) - np.log(-np.expm1(e_inf - e0))
    b = beta + c * centre.x[0] + (np.exp(power) - 1) * (e0 + special.log_expit(-r))
    return np.stack([r, e0 - centre.y, power, b, c], -1)

  def hold(self, held: dict[str, float], centre: Centre) -> tuple[Array, Array]:
    """As for `Law`, for e0, alpha and c."""
    if set(held) & {'e_inf', 'beta'}:
      raise RunError(f'm4 can hold e0, alpha and c, not {", ".join(held)}')
    free = ~np.isin(self.params, list(held))
    shift = np.array([held.get(name, 0.0) for name in self.params])
    shift[1] -= centre.y * ('e0' in held)
    return np.eye(5)[:, free], shift

  def starts(self, data: Data, count: int) -> Array:
    """As for `Law`: the curve in the middle of the data goes through their middle."""
    theta = super().starts(data, count)
    theta[:, 0] = np.minimum(theta[:, 0], special.logit(np.exp(data.z.min() - theta[:, 1])) - 0.05)
    middle = np.exp(-theta[:, 1])  # y at z = 0 over e0
    w = (middle - special.expit(theta[:, 0])) / special.expit(-theta[:, 0])
    w = np.clip(w, 1e-6, 1 - 1e-6)
    theta[:, 3] = np.log(w) - np.exp(theta[:, 2]) * np.log1p(-w)
    return theta


def _powers(**exponents: str) -> tuple[Power, ...]:
  """x='-b' is x^-b."""
  return tuple(
    Power(-1 if exponent[0] == '-' else 1, exponent.lstrip('-'), Input(x))
    for x, exponent in exponents.items()
  )


def _broken(breaks: int) -> tuple[dict[str, str], tuple[Term, ...]]:
  numbers = range(1, breaks + 1)
  roles = {'a': 'floor', 'b': 'coefficient', 'c0': 'exponent'}
  roles |= {f'c{i}': 'exponent' for i in numbers} | {f'd{i}': 'break' for i in numbers}
  roles |= {f'f{i}': 'width' for i in numbers}
  bends = tuple(Power(-1, f'c{i}', Break('x', f'd{i}', f'f{i}')) for i in numbers)
  return roles, (Term('a'), Term('b', (*_powers(x='-c0'), *bends)))


ALABDULMOHSIN = (
  'Alabdulmohsin, Neyshabur, Zhai 2022, Revisiting Neural Scaling Laws (arXiv:2209.06640)'
)
CABALLERO = 'Caballero et al. 2023, Broken Neural Scaling Laws, equation 1 (arXiv:2210.14891)'

LAWS = {
  law.name: law
  for law in (
    Law(
      'power', 'y = a x^-b',
      'Hestness et al. 2017, Deep Learning Scaling is Predictable (arXiv:1712.00409)',
      ('x',), {'a': 'coefficient', 'b': 'exponent'}, (Term('a', _powers(x='-b')),),
    ),
    Law(
      'power_floor', 'y = a x^-b + c', 'Henighan et al. 2020, equation 1.1 (arXiv:2010.14701)',
      ('x',), {'a': 'coefficient', 'b': 'exponent', 'c': 'floor'},
      (Term('a', _powers(x='-b')), Term('c')),
    ),
    Law(
      'zhai', 'y = a (x + d)^-b + c',
      'Zhai et al. 2022, Scaling Vision Transformers (arXiv:2106.04560)',
      ('x',), {'a': 'coefficient', 'b': 'exponent', 'c': 'floor', 'd': 'offset'},
      (Term('a', (Power(-1, 'b', Shifted('x', 'd')),)), Term('c')),
    ),
    Law(
      'm1', 'y = beta x^c', ALABDULMOHSIN,
      ('x',), {'beta': 'coefficient', 'c': 'exponent'}, (Term('beta', _powers(x='c')),),
      grows=True,
    ),
    Law(
      'm2', 'y = beta x^c + e_inf', ALABDULMOHSIN,
      ('x',), {'beta': 'coefficient', 'c': 'exponent', 'e_inf': 'floor'},
      (Term('beta', _powers(x='c')), Term('e_inf')),
    ),
    Law(
      'm3', 'y = beta (1/x + gamma)^c', ALABDULMOHSIN,
      ('x',), {'beta': 'coefficient', 'c': 'exponent', 'gamma': 'offset'},
      (Term('beta', (Power(1, 'c', Inverse('x', 'gamma')),)),),
    ),
    Sigmoidal(
      'm4', '(y - e_inf) / (e0 - y)^alpha = beta x^c', ALABDULMOHSIN, ('x',),
      {'e_inf': 'share', 'e0': 'ceiling', 'alpha': 'power', 'beta': 'coefficient', 'c': 'exponent'},
      (Term('beta', _powers(x='c')),),
    ),
    Law(
      'chinchilla', 'L = E + A / N^a + B / D^b',
      'Hoffmann et al. 2022, equation 2, approach 3 (arXiv:2203.15556)',
      ('n', 'd'),
      {'A': 'coefficient', 'B': 'coefficient', 'E': 'floor', 'a': 'exponent', 'b': 'exponent'},
      (Term('A', _powers(n='-a')), Term('B', _powers(d='-b')), Term('E')),
    ),
    Law(
      'sovit', 'f = alpha x^-a + (beta x^b + xi) t^-c + eps',
      'Alabdulmohsin et al. 2023, Getting ViT in Shape (arXiv:2305.13035)', ('x', 't'),
      {
        'alpha': 'coefficient', 'a': 'exponent', 'beta': 'coefficient', 'b': 'exponent',
        'xi': 'coefficient', 'c': 'exponent', 'eps': 'floor',
      },
      (
        Term('alpha', _powers(x='-a')), Term('beta', _powers(x='b', t='-c')),
        Term('xi', _powers(t='-c')), Term('eps'),
      ),
      scale=1,
    ),
    Law(
      'overtraining', 'L = E + (a M^eta + b M^-eta) C^-eta',
      'Gadre et al. 2024, Language Models Scale Reliably With Over-training (arXiv:2403.08540)',
      ('c', 'm'),
      {'a': 'coefficient', 'b': 'coefficient', 'eta': 'exponent', 'E': 'floor'},
      (Term('a', _powers(m='eta', c='-eta')), Term('b', _powers(m='-eta', c='-eta')), Term('E')),
    ),
    Law(
      'broken', 'y = a + b x^-c0 (1 + (x/d1)^(1/f1))^(-c1 f1)', CABALLERO, ('x',), *_broken(1)
    ),
    Law(
      'broken2', 'y = a + b x^-c0 (1 + (x/d1)^(1/f1))^(-c1 f1) (1 + (x/d2)^(1/f2))^(-c2 f2)',
      CABALLERO, ('x',), *_broken(2),
    ),
  )
}  # fmt: skip


def sovit_exponent(params: dict[str, float]) -> float:
  """s, where the best x grows as t^s: c / (a + b).

  Args:
    params: of the law 'sovit'; `Fit.interval` calls it with arrays.
  """
  return params['c'] / (params['a'] + params['b'])


def sovit_optimum(params: dict[str, float], t: float) -> float:
  """The x with the least f at compute `t`: (alpha a t^c / (beta b))^(1 / (a + b)).

  Alabdulmohsin et al. 2023 (arXiv:2305.13035).

  Args:
    params: of the law 'sovit'.
    t: compute, in the units of the fit.
  """
  log = np.log(params['alpha'] * params['a']) - np.log(params['beta'] * params['b'])
  return np.exp((log + params['c'] * np.log(t)) / (params['a'] + params['b']))
