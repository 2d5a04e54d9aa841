"""Intervals and bands of one fit; how often they hold the truth is in test_scaling_coverage."""

import json

import numpy as np
import pytest
from scipy import stats

from tests.test_scaling_fit import fitted, sample
from vit_jax.scaling import LAWS, fit, sovit_exponent, uncertainty


def test_intervals_of_a_power_law_are_those_of_a_regression():
  data = sample('power', 12, noise=0.05)
  found = fitted('power', data, interval='profile', level=0.9)
  line = stats.linregress(np.log(data['x']), np.log(data['y']))
  t = stats.t.ppf(0.95, 10)
  assert found.params['b'] == pytest.approx(-line.slope)
  np.testing.assert_allclose(
    found.ci['b'], [-line.slope - t * line.stderr, -line.slope + t * line.stderr], rtol=1e-3
  )
  np.testing.assert_allclose(
    np.log(found.ci['a']),
    [line.intercept - t * line.intercept_stderr, line.intercept + t * line.intercept_stderr],
    rtol=1e-3,
  )
  assert found.se['b'] == pytest.approx(line.stderr)
  assert found.degrees['b'] == 10
  # The classical bands, one decade beyond the data.
  u = np.log(data['x']) - np.log(data['x']).mean()
  at = np.log(1e19) - np.log(data['x']).mean()
  s, lever = found.noise, 1 / 12 + at**2 / (u @ u)
  assert s == pytest.approx(np.sqrt((found.residuals**2).sum() / 10))
  there = found.predict(1e19)
  middle = np.log(there.value)
  for ends, part in (
    ((there.low, there.high), lever),
    ((there.new_low, there.new_high), 1 + lever),
  ):
    want = [middle - t * s * np.sqrt(part), middle + t * s * np.sqrt(part)]
    np.testing.assert_allclose(np.log(ends), want, rtol=1e-3, atol=1e-4)


def test_bands_of_new_runs_follow_noise_that_grows():
  data = sample('power', 200)
  rng = np.random.default_rng(0)
  size = np.geomspace(0.005, 0.1, 200)
  data['y'] *= np.exp(size * rng.normal(size=200))
  there = fitted('power', data).predict(data['x'])
  width = np.log(there.new_high / there.new_low) / (2 * 1.97)
  assert np.abs(np.log(width / size)).max() < 0.4


@pytest.mark.parametrize('name', ['power_floor', 'chinchilla'])
def test_ends_of_profiles_are_where_the_sum_of_squares_has_risen(name):
  data = sample(name, 30, noise=0.02)
  found = fitted(name, data, interval='profile')
  n, p = 30, len(found.params)
  want = found.convergence.objective * (1 + stats.f.ppf(0.95, 1, n - p) / (n - p))
  for parameter, ends in found.ci.items():
    for end in ends:
      held = fitted(name, data, fixed={parameter: end})
      assert held.params[parameter] == pytest.approx(end, rel=1e-10)
      assert held.convergence.objective == pytest.approx(want, rel=2e-3), parameter


@pytest.mark.parametrize('per_run', [1, 3])
def test_the_sandwich_is_the_one_of_bell_and_mccaffrey(per_run):
  """Against their matrices, of which the code never makes one of n x n."""
  data = sample('power_floor', 24, noise=0.02)
  data['run'] = np.arange(24) // per_run
  problem = fitted('power_floor', data, group='run')._problem
  phi = fitted('power_floor', data)._phi[None]
  value, jacobian = (a[0] for a in problem.curve(phi, problem.data.u))
  slope = problem.natural(phi)[1][0, 1]
  hat = jacobian @ np.linalg.solve(jacobian.T @ jacobian, jacobian.T)
  weight = jacobian @ np.linalg.solve(jacobian.T @ jacobian, slope)
  residuals = problem.data.z - value
  total, forms = 0.0, []
  for points in problem.members:
    left = (np.eye(24) - hat)[np.ix_(points, points)]
    values, axes = np.linalg.eigh(left)
    row = weight[points] @ (axes / np.sqrt(values)) @ axes.T
    total += (row @ residuals[points]) ** 2
    forms.append(row @ (np.eye(24) - hat)[points])
  spectrum = np.linalg.eigvalsh(np.array(forms) @ np.array(forms).T)
  factor, degrees = uncertainty.inflation(problem, phi, residuals[None], slope[None])
  got = factor * uncertainty.variance(problem, phi, slope[None])
  assert got[0] == pytest.approx(total, rel=1e-6)
  assert degrees[0] == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-6)


def test_runs_are_drawn_whole():
  """Copies of every point, each in the run of its original, say nothing new."""
  data = sample('power', 10, noise=0.05)
  data['run'] = np.array([f'r{i}' for i in range(10)])
  twice = {name: np.repeat(values, 3) for name, values in data.items()}
  once = fitted('power', data, interval='bootstrap', group='run')
  copies = fitted('power', twice, interval='bootstrap', group='run')
  np.testing.assert_allclose(copies.draws['b'], once.draws['b'], rtol=1e-5)
  np.testing.assert_allclose(copies.ci['b'], once.ci['b'], rtol=1e-4)
  blind = fitted('power', twice, interval='bootstrap')
  assert blind.draws['b'].std() < 0.75 * once.draws['b'].std()
  robust = fitted('power', data), fitted('power', twice, group='run')
  np.testing.assert_allclose(robust[0].ci['b'], robust[1].ci['b'], rtol=1e-4)


def test_what_follows_from_the_parameters_has_an_interval_too():
  found = fitted('sovit', sample('sovit', 80, noise=0.01))
  value, low, high = found.ci_of(sovit_exponent)
  assert low < 0.4 / 1.1 < high
  assert low < value < high
  for interval in ('robust', 'profile', 'bootstrap'):
    found = fitted('power_floor', sample('power_floor', 30, noise=0.02), interval=interval)
    for parameter in ('b', 'c'):
      _, low, high = found.ci_of(lambda p, parameter=parameter: p[parameter])
      np.testing.assert_allclose((low, high), found.ci[parameter], rtol=2e-3)


def test_a_floor_that_is_not_there():
  data = sample('power', 30, noise=0.02)
  found = fitted('power_floor', data)
  assert found.ci['c'][0] == 0
  assert found.ci['b'][0] < 0.3 < found.ci['b'][1]
  assert any('c is' in flag for flag in found.flags())
  for seed in range(20):  # sooner or later the best floor is none
    found = fitted('power_floor', sample('power', 30, noise=0.02, seed=seed))
    if found.params['c'] == 0:
      break
  assert found.convergence.at_bound == ('c',)
  assert found.ci['c'][0] == 0
  assert 0 < found.ci['c'][1] < 0.1
  assert np.isfinite(found.predict(1e22)).all()
  assert 'c is 0' in found.flags()
  line = fitted('power', sample('power', 30, noise=0.02, seed=seed))
  assert found.params['b'] == pytest.approx(line.params['b'], rel=1e-6)


@pytest.mark.parametrize('name', ['power_floor', 'zhai', 'm3', 'm4', 'chinchilla', 'broken'])
def test_data_that_say_nothing_break_nothing(name):
  law, rng = LAWS[name], np.random.default_rng(0)
  n = len(law.params) + 3
  columns = {x: np.exp(rng.uniform(-2, 2, n) - 60) for x in law.inputs}
  for y in (np.full(n, 3.0), np.exp(rng.normal(size=n))):
    for options in ({}, {'loss': 'huber', 'draws': 40}):
      found = fitted(name, {**columns, 'y': y}, starts=8, **options)
      json.dumps(found.to_dict(), allow_nan=False)
      assert not np.isnan([*found.ci.values()]).any()
      there = found.predict({x: [1e-30, 1.0] for x in law.inputs})
      assert not np.isnan(there).any()
      assert np.isfinite(there.value).all()


def test_levels_and_seeds():
  data = sample('power_floor', 30, noise=0.02)
  found = fitted('power_floor', data)
  wide, narrow = found.intervals(0.99)['b'], found.intervals(0.5)['b']
  assert wide[0] < found.ci['b'][0] < narrow[0] < narrow[1] < found.ci['b'][1] < wide[1]
  assert found.predict(1e16, level=0.5).high < found.predict(1e16).high
  a, b = (fitted('power_floor', data, interval='bootstrap', seed=seed) for seed in (0, 1))
  again = fitted('power_floor', data, interval='bootstrap', seed=0)
  assert a.ci == again.ci != b.ci
  assert len(fitted('power', data, draws=50).draws['a']) == 50


def test_a_floor_that_is_not_there_stays_below_the_data():
  """Draws of a few runs, of which some have a floor, when the best fit has none."""
  n, d = (
    each.ravel() for each in np.meshgrid(np.geomspace(1e3, 1e6, 7), np.geomspace(1e4, 1e7, 6))
  )
  for seed in range(20):
    noise = 0.03 * np.random.default_rng(seed).normal(size=n.size)
    data = dict(n=n, d=d, y=(8 * n**-0.4 + 5 * d**-0.3) * np.exp(noise), run=n)
    found = fit('chinchilla', data, x=('n', 'd'), y='y', loss='huber', group='run', draws=100)
    if found.params['E'] == 0 < found.draws['E'].max():
      break
  low, high = found.ci['E']
  assert low == found.params['E'] == 0 < found.draws['E'].max()
  assert np.quantile(found.draws['E'], 0.975) <= high < data['y'].min()
