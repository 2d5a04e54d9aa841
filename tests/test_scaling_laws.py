"""The laws: their published formulas, gradients and coordinates."""

import numpy as np
import pytest

from vit_jax.core.errors import RunError
from vit_jax.scaling import LAWS, sovit_exponent, sovit_optimum
from vit_jax.scaling.forms import Centre, Data

# The formulas as they are printed, of parameters by name and inputs in order.
FORMULAS = {
  'power': lambda p, x: p['a'] * x ** -p['b'],
  'power_floor': lambda p, x: p['a'] * x ** -p['b'] + p['c'],
  'zhai': lambda p, x: p['a'] * (x + p['d']) ** -p['b'] + p['c'],
  'm1': lambda p, x: p['beta'] * x ** p['c'],
  'm2': lambda p, x: p['beta'] * x ** p['c'] + p['e_inf'],
  'm3': lambda p, x: p['beta'] * (1 / x + p['gamma']) ** p['c'],
  'chinchilla': lambda p, n, d: p['E'] + p['A'] / n ** p['a'] + p['B'] / d ** p['b'],
  'sovit': lambda p, x, t: (
    p['alpha'] * x ** -p['a'] + (p['beta'] * x ** p['b'] + p['xi']) * t ** -p['c'] + p['eps']
  ),
  'overtraining': lambda p, c, m: (
    p['E'] + (p['a'] * m ** p['eta'] + p['b'] * m ** -p['eta']) * c ** -p['eta']
  ),
  'broken': lambda p, x: p['a'] + p['b'] * x ** -p['c0'] * bend(p, x, 1),
  'broken2': lambda p, x: p['a'] + p['b'] * x ** -p['c0'] * bend(p, x, 1) * bend(p, x, 2),
}


def bend(p, x, i):
  return (1 + (x / p[f'd{i}']) ** (1 / p[f'f{i}'])) ** (-p[f'c{i}'] * p[f'f{i}'])


def example(law, count=7, n=9):
  """Internal parameters where starts are drawn, centred inputs, and what they are centred on."""
  rng = np.random.default_rng(len(law.name))
  u = rng.uniform(-3, 3, (len(law.inputs), n))
  u -= u.mean(1, keepdims=True)
  z = -0.3 * u[0] + rng.normal(0, 0.1, n)
  theta = law.starts(Data(u, z - z.mean()), count)
  return theta, u, Centre(rng.uniform(-3, 3, len(law.inputs)), 0.7)


def published(law, theta, centre):
  natural = law.natural(theta, centre)[0]
  values = np.where(law.logs, np.exp(natural), natural)
  return dict(zip(law.params, values.T[..., None], strict=True))


@pytest.mark.parametrize('name', FORMULAS)
def test_curves_are_the_printed_formulas(name):
  law = LAWS[name]
  theta, u, centre = example(law)
  x = np.exp(u + centre.x[:, None])
  want = FORMULAS[name](published(law, theta, centre), *x[:, None])
  np.testing.assert_allclose(np.exp(law.curve(theta, u)[0] + centre.y), want, rtol=1e-11)


def test_m4_solves_its_equation():
  law = LAWS['m4']
  theta, u, centre = example(law, 40)
  p = published(law, theta, centre)
  y = np.exp(law.curve(theta, u)[0] + centre.y)
  assert ((p['e_inf'] < y) & (y < p['e0'])).all()
  seen = (y / p['e_inf'] > 1 + 1e-6) & (y / p['e0'] < 1 - 1e-6)  # the rest cancels
  left = np.log(y - p['e_inf']) - p['alpha'] * np.log(p['e0'] - y)
  right = np.log(p['beta']) + p['c'] * (u[0] + centre.x[0])
  assert seen.mean() > 0.8
  np.testing.assert_allclose(left[seen], right[seen], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('name', LAWS)
def test_gradients_agree_with_differences(name):
  law = LAWS[name]
  theta, u, centre = example(law)
  gradient = law.curve(theta, u)[1]
  jacobian = law.natural(theta, centre)[1]
  for i, step in enumerate(1e-5 * np.eye(len(law.params))):
    ahead, back = law.curve(theta + step, u)[0], law.curve(theta - step, u)[0]
    np.testing.assert_allclose(gradient[..., i], (ahead - back) / 2e-5, rtol=1e-6, atol=1e-8)
    ahead, back = law.natural(theta + step, centre)[0], law.natural(theta - step, centre)[0]
    np.testing.assert_allclose(jacobian[..., i], (ahead - back) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('name', LAWS)
def test_coordinates_go_there_and_back(name):
  law = LAWS[name]
  theta, u, centre = example(law)
  back = law.internal(law.natural(theta, centre)[0], centre)
  np.testing.assert_allclose(back, theta, atol=1e-10)
  # Inputs may differ between the fits of a batch.
  many = np.repeat(u[:, None], len(theta), 1)
  np.testing.assert_array_equal(law.curve(theta, many)[0], law.curve(theta, u)[0])


@pytest.mark.parametrize('name', LAWS)
def test_starts_lie_within_the_bounds(name):
  law = LAWS[name]
  rng = np.random.default_rng(0)
  u = rng.uniform(-4, 4, (len(law.inputs), 30))
  u -= u.mean(1, keepdims=True)
  for slope in (-0.2, 0.2):
    z = slope * u[0] + rng.normal(0, 0.05, 30)
    data = Data(u, z - z.mean())
    theta = law.starts(data, 50)
    low, high, _ = law.ranges(data)
    assert theta.shape == (50, len(law.params))
    assert len(np.unique(theta, axis=0)) == 50
    assert ((low <= theta) & (theta <= high)).all()
    if len(law.inputs) == 1 and name != 'm4':
      rises = np.diff(law.curve(theta, np.sort(u))[0], axis=1).mean(1) > 0
      assert np.mean(rises == (slope > 0)) > 0.6  # breaks may turn a curve


@pytest.mark.parametrize('name', LAWS)
def test_held_parameters_stay(name):
  law = LAWS[name]
  theta, _, centre = example(law)
  wanted = law.natural(theta, centre)[0]
  rng = np.random.default_rng(1)
  for held in ('e0', 'alpha', 'c') if name == 'm4' else law.params:
    place = law.params.index(held)
    matrix, shift = law.hold({held: wanted[0, place]}, centre)
    natural = law.natural(rng.normal(size=(5, len(law.params) - 1)) @ matrix.T + shift, centre)[0]
    np.testing.assert_allclose(natural[:, place], wanted[0, place], rtol=1e-12, atol=1e-12)


def test_m4_says_what_it_cannot_hold():
  with pytest.raises(RunError, match='m4 can hold e0, alpha and c, not beta'):
    LAWS['m4'].hold({'beta': 0.0}, Centre(np.zeros(1), 0.0))


def test_breaks_are_put_in_order():
  law = LAWS['broken2']
  theta, u, _ = example(law, 20)
  ordered = law.ordered(theta)
  first, second = law.params.index('d1'), law.params.index('d2')
  assert (theta[:, first] > theta[:, second]).any()
  assert (ordered[:, first] <= ordered[:, second]).all()
  np.testing.assert_allclose(law.curve(ordered, u)[0], law.curve(theta, u)[0], atol=1e-12)


def test_the_best_shape_of_sovit():
  p = dict(alpha=2.0, a=0.6, beta=1e-3, b=0.3, xi=0.1, c=0.4, eps=0.05)
  for t in (10.0, 1e4):
    best = sovit_optimum(p, t)
    around = FORMULAS['sovit'](p, best * np.array([0.99, 1, 1.01]), t)
    assert around.argmin() == 1
  grown = np.log(sovit_optimum(p, 1e4) / sovit_optimum(p, 10.0)) / np.log(1e3)
  assert grown == pytest.approx(sovit_exponent(p))
