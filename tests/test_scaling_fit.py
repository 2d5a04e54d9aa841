"""Fits: optima, intervals, predictions, and what a fit says of itself."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import optimize, special, stats

from vit_jax.core.errors import RunError
from vit_jax.scaling import LAWS, fit, fitting, solve, table
from vit_jax.scaling.forms import Centre

ROOT = pathlib.Path(__file__).parent.parent
DATA = pathlib.Path(os.environ.get('VIT_JAX_SCALING_DATA', ROOT.parent / 'shared' / 'data'))
TRUE = {
  'power': dict(a=5e3, b=0.3),
  'power_floor': dict(a=5e3, b=0.3, c=0.3),
  'zhai': dict(a=5e3, b=0.3, c=0.1, d=3e14),
  'm1': dict(beta=5e3, c=-0.3),
  'm2': dict(beta=5e3, c=-0.3, e_inf=0.3),
  'm3': dict(beta=5e3, c=0.3, gamma=1e-16),
  'm4': dict(e_inf=0.1, e0=1.2, alpha=1.5, beta=5e3, c=-0.3),
  'chinchilla': dict(A=482.0, B=2085.0, E=1.82, a=0.348, b=0.366),
  'sovit': dict(alpha=20.0, a=0.6, beta=0.02, b=0.5, xi=1.5, c=0.4, eps=0.05),
  'overtraining': dict(a=100.0, b=200.0, eta=0.15, E=1.8),
  'broken': dict(a=0.3, b=5e2, c0=0.2, c1=0.3, d1=1e16, f1=0.3),
  'broken2': dict(a=0.1, b=5e2, c0=0.2, c1=0.3, c2=-0.25, d1=1e15, d2=1e17, f1=0.1, f2=0.15),
}
RANGES = {
  'chinchilla': ((5e7, 1e10), (1e9, 3e11)),
  'sovit': ((100, 4000), (1, 1e5)),
  'overtraining': ((1e18, 1e22), (5, 640)),
}


def sample(name, n=40, noise=0.0, seed=0):
  """A table of a law with its true parameters: columns are the law's inputs, and y."""
  law, rng = LAWS[name], np.random.default_rng(seed)
  if name in RANGES:
    x = [np.exp(rng.uniform(*np.log(ends), n)) for ends in RANGES[name]]
  else:
    x = [np.geomspace(1e14, 1e18, n)]
  natural = np.array([[np.log(v) if log else v
                       for v, log in zip(TRUE[name].values(), law.logs, strict=True)]])  # fmt: skip
  nowhere = Centre(np.zeros(len(x)), 0.0)
  y = law.curve(law.internal(natural, nowhere), np.log(x))[0][0] + noise * rng.normal(size=n)
  return {**dict(zip(law.inputs, x, strict=True)), 'y': np.exp(y)}


def fitted(name, data, **options):
  return fit(name, data, x=LAWS[name].inputs, y='y', **options)


@pytest.mark.parametrize('name', TRUE)
def test_every_law_is_recovered(name):
  found = fitted(name, sample(name, 60))
  for parameter, value in TRUE[name].items():
    assert found.params[parameter] == pytest.approx(value, rel=1e-4), parameter


@pytest.mark.parametrize('name', TRUE)
def test_no_search_of_scipy_finds_better(name):
  data = sample(name, 40, noise=0.002 if name == 'broken2' else 0.02, seed=3)
  found = fitted(name, data)
  problem = found._problem
  low, high = problem.bounds

  def residuals(phi):
    return problem.curve(phi[None], problem.data.u)[0][0] - problem.data.z

  def jacobian(phi):
    return problem.curve(phi[None], problem.data.u)[1][0]

  rng = np.random.default_rng(0)
  starts = [found._phi, *(found._phi + rng.normal(0, 0.3, (3, len(found._phi))))]
  costs = [
    optimize.least_squares(residuals, np.clip(start, low + 1e-6, high - 1e-6), jacobian,
                           bounds=(low, high), xtol=1e-12, ftol=1e-12).cost for start in starts
  ]  # fmt: skip
  assert found.convergence.objective <= min(costs) * (1 + 1e-7)
  assert found.convergence.objective == pytest.approx((found.residuals**2).sum() / 2)
  assert found.convergence.gradient < 1e-5


@pytest.mark.parametrize('delta', [1e-3, 1e-2, 0.1])
def test_no_search_of_scipy_improves_hubers_loss(delta):
  data = sample('power_floor', 40, noise=0.02)
  data['y'][[3, 17]] *= 1.5
  found = fitted('power_floor', data, loss='huber', delta=delta)
  problem = found._problem

  def objective(phi):
    value, gradient = problem.curve(phi[None], problem.data.u)
    r = value[0] - problem.data.z
    # scaled, or its default tolerance would stop at once
    return 1e4 * solve.rho(r, delta).sum(), 1e4 * gradient[0].T @ np.clip(r, -delta, delta)

  better = optimize.minimize(objective, found._phi, jac=True, method='BFGS').fun / 1e4
  assert found.convergence.objective == pytest.approx(special.huber(delta, found.residuals).sum())
  assert found.convergence.objective <= better * (1 + 1e-6)
  assert found.params['c'] == pytest.approx(TRUE['power_floor']['c'], rel=0.15)


def test_batches_agree_with_a_loop_over_scipy():
  problem = fitted('power_floor', sample('power_floor', 20, noise=0.02))._problem
  rng = np.random.default_rng(0)
  z = problem.data.z + rng.normal(0, 0.02, (50, 20))
  phi = problem.starts(1)

  def one(target):
    return optimize.least_squares(
      lambda p: problem.curve(p[None], problem.data.u)[0][0] - target, phi[0],
      lambda p: problem.curve(p[None], problem.data.u)[1][0], method='lm', xtol=1e-10, ftol=1e-10,
    ).cost  # fmt: skip

  batch = problem.solve(np.tile(phi, (50, 1)), z=z).objective
  np.testing.assert_allclose(batch, [one(target) for target in z], rtol=1e-7)


# --- Chinchilla ---


def chinchilla(drop):
  path = DATA / 'chinchilla_epoch_svg_extracted.csv'
  if not path.exists():
    pytest.skip(f'{path} is not there: its licence is not known, so it is not part of the project')
  data = table.read(path)
  data['tokens'] = data['Training FLOP'] / (6 * data['Model Size'])
  return data.take(np.argsort(data['loss'])[: len(data['loss']) - drop])


def fit_chinchilla(data, **options):
  return fit('chinchilla', data, x=('Model Size', 'tokens'), y='loss', loss='huber', **options)


def test_the_replication_of_chinchilla():
  """Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt."""
  found = fit_chinchilla(chinchilla(5))
  wanted = dict(A=(477.83, 2), B=(2143.4, 10), E=(1.8172, 3e-4), a=(0.3473, 3e-4),
                b=(0.3672, 3e-4))  # fmt: skip
  for name, (value, tolerance) in wanted.items():
    assert found.params[name] == pytest.approx(value, abs=tolerance), name
  assert found.convergence.objective <= 0.00101828
  assert found.convergence.share == 1
  # Their bootstrap: 2.5 and 97.5 %, and the mean and deviation of the exponent of compute.
  published = dict(a=(0.317, 0.373), b=(0.331, 0.415), E=(1.769, 1.871))
  for name, (low, high) in published.items():
    width = high - low
    np.testing.assert_allclose(found.ci[name], (low, high), atol=0.12 * width)
  share = found.draws['b'] / (found.draws['a'] + found.draws['b'])
  assert share.mean() == pytest.approx(0.513, abs=0.006)
  assert share.std() == pytest.approx(0.020, abs=0.003)


def test_five_points_of_chinchilla_matter():
  found = fit_chinchilla(chinchilla(0))
  assert found.params['b'] == pytest.approx(0.453, abs=0.005)
  worst = found.influence[0]
  assert worst.parameter == 'b'
  assert abs(worst.shift) > 2.5
  assert len(worst.runs) == 4
  losses = chinchilla(0)['loss']
  assert set(worst.runs) <= set(np.argsort(losses)[-5:].tolist())
  assert 'influence' in found.report()


def test_a_mean_with_default_tolerances_stops_early():
  """How the fit of the Chinchilla paper went wrong, on a part of its grid of starts."""
  data = chinchilla(5)
  n, d, y = (np.log(data[name]) for name in ('Model Size', 'tokens', 'loss'))
  delta = 1e-3

  def total(p):
    terms = np.stack([p[0] - p[3] * n, p[1] - p[4] * d, np.full_like(n, p[2])])
    level = special.logsumexp(terms, axis=0)
    psi = np.clip(level - y, -delta, delta) * np.exp(terms - level)
    slope = np.array([psi[0].sum(), psi[1].sum(), psi[2].sum(), -psi[0] @ n, -psi[1] @ d])
    return special.huber(delta, level - y).sum(), slope

  def mean(p):
    value, slope = total(p)
    return value / len(y), slope / len(y)

  grid = np.array(list(itertools.product((0, 20), (0, 20), (0,), (0, 2), (0, 2))), float)
  ends = [optimize.minimize(mean, start, jac=True, method='L-BFGS-B') for start in grid]
  assert all(end.success for end in ends)  # it says
  found = fit_chinchilla(data)
  best = found.convergence.objective
  reached = np.array([total(end.x)[0] for end in ends])
  assert reached.min() > 1.02 * best
  assert np.median(reached) > 2 * best
  # The same starts, here.
  problem = found._problem
  again = problem.solve(LAWS['chinchilla'].internal(grid, problem.centre))
  assert (again.objective <= best * (1 + 1e-6)).mean() > 0.8


# --- what a fit says ---


def test_the_limit_of_a_power_law():
  data = sample('power', 12, noise=0.05)
  found = fitted('power', data, interval='profile')
  u = np.log(data['x'])
  t, spread = stats.t.ppf(0.975, 10), ((u - u.mean()) ** 2).sum()
  for tolerance in (0.06, 0.1):
    reach = np.sqrt(((np.log1p(tolerance) / (t * found.noise)) ** 2 - 1 / 12) * spread)
    assert np.log(found.limit(tolerance)) == pytest.approx(u.mean() + reach, abs=0.05)
  assert found.limit(1e-4) == 0
  assert fitted('power', sample('power', 40, noise=1e-3)).limit() is None


def test_influence_is_that_of_a_fit_without_the_run():
  data = sample('power', 20, noise=0.02)
  data['y'][-1] *= 1.3
  found = fitted('power', data)
  first = next(i for i in found.influence if len(i.runs) == 1)
  without = fitted('power', {name: values[:-1] for name, values in data.items()})
  shift = without.params['b'] - found.params['b']
  assert first.runs == (19,)
  assert np.sign(first.shift) == np.sign(shift)
  assert abs(first.shift) > 3
  named = fitted('power', {**data, 'run': np.array([f'r{i}' for i in range(20)])}, group='run')
  assert ('r19',) in [i.runs for i in named.influence[:2]]


def test_flags():
  x = np.geomspace(1, 1e4, 60)
  rng = np.random.default_rng(0)
  noise = rng.normal(size=60)

  def flags(y, law='power', **options):
    return ' '.join(fit(law, {'x': x, 'y': y}, x='x', y='y', **options).flags())

  assert flags(x**-0.3 * np.exp(0.02 * noise)) == ''
  assert 'larger where y is small' in flags(x**-0.3 * np.exp(noise * np.geomspace(0.002, 0.1, 60)))
  assert 'neighbours err alike' in flags((x**-0.5 + 0.05) * np.exp(0.01 * noise))
  assert 'b is indistinguishable from 0' in flags(np.exp(0.02 * noise))
  assert 'no end' in flags(x**-0.3 * np.exp(0.02 * noise), 'broken')
  # A law that is wrong is seen with few points, too, and one that is right seldom blamed.
  few = np.geomspace(1e3, 1e7, 8)
  for floor, least, most in ((0.05, 20, 20), (0.0, 0, 2)):
    odd = 0
    for seed in range(20):
      y = (floor + 2 * few**-0.35) * np.exp(0.02 * np.random.default_rng(seed).normal(size=8))
      odd += 'bend along x' in ' '.join(fit('power', {'x': few, 'y': y}, x='x', y='y').flags())
    assert least <= odd <= most
  few = fit('power', {'x': x[:4], 'y': 1 / x[:4]}, x='x', y='y')
  assert 'hardly anything is left' in ' '.join(few.flags())


def test_data_that_is_no_table():
  x = [1.0, 2, 3, 4]
  for data, message in (
    ({'x': x, 'y': x[:3]}, 'differ in length'), ({'x': [x] * 4, 'y': x}, 'not of shape'),
    ([{'x': 1, 'y': 2}], 'must have columns'), (np.ones((4, 2)), 'must have columns'),
    ({'x': list('abcd'), 'y': x}, "'x' holds text: a in row 0"), ({'x': x}, 'among x'),
    ({'x': x, 'y': [*x[:3], np.nan]}, "nan in row 3 .*where='y>0' leaves them out"),
  ):  # fmt: skip
    with pytest.raises(RunError, match=message):
      fit('power', data, x='x', y='y')


def test_reports_and_cards():
  data = sample('chinchilla', 40, noise=0.01)
  data['run'] = np.arange(40) // 2
  found = fitted('chinchilla', data, units={'d': 'tokens'}, group='run', fixed={'E': 1.82})
  text = found.report()
  for part in ('L = E + A / N^a + B / D^b', 'd = d [tokens]', '40 points in 20 runs (run)', '1.82',
               'given', 'squared', '95%', '64 of 64 starts'):  # fmt: skip
    assert part in text
  card = json.loads(json.dumps(found.to_dict(), allow_nan=False))
  assert card['params'] == found.params
  assert 'E' not in card['ci']
  assert card['settings']['fixed'] == {'E': 1.82}
  assert card['runs'] == 20
  assert card['convergence']['share'] == 1


def test_units_are_locked():
  data = sample('power', 12, noise=0.02)
  found = fitted('power', data, units={'x': 'FLOP'})
  assert found.predict(1e15, unit='FLOP') == found.predict({'x': 1e15})
  with pytest.raises(RunError, match='x of this fit is in FLOP, not core-days'):
    found.predict(1e15, unit='core-days')
  with pytest.raises(RunError, match='the fit has the inputs x, found steps'):
    found.predict({'steps': 10})
  with pytest.raises(RunError, match='positive'):
    found.predict([1e15, -1])
  both = fitted('chinchilla', sample('chinchilla', 30, noise=0.01), units={'n': 'parameters'})
  with pytest.raises(RunError, match='give a mapping'):
    both.predict(1e9)
  assert both.predict({'n': [1e9, 1e10], 'd': 1e11}, unit={'n': 'parameters'}).value.shape == (2,)
  assert fitting.fit('power', table.Table(data, {'unit x': 'FLOP'}), x='x', y='y').units == {
    'x': 'FLOP', 'y': 'y'
  }  # fmt: skip


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(law='powr'), "no law 'powr'.*power"),
    (dict(law='chinchilla'), 'inputs n, d'),
    (dict(y='loss'), "no column 'loss'"),
    (dict(bad=(3, np.nan)), "column 'y' .* nan in row 3"),
    (dict(bad=(5, -1.0)), "column 'y' .* -1 in row 5"),
    (dict(rows=2), '2 free parameters and needs 3 rows of different x at least, found 2 rows'),
    (dict(rows=1), 'needs 3 rows of different x at least, found 1 row'),
    (dict(loss='absolute'), 'absolute'),
    (dict(interval='exact'), 'exact'),
    (dict(interval='profile', loss='huber'), 'bootstrap'),
    (dict(level=95), 'between 0.5 and 1'),
    (dict(level=0.05), 'such as 0.95'),
    (dict(starts=0), 'a whole number from 1'),
    (dict(starts=2.5), 'a whole number from 1'),
    (dict(seed=-1), 'a whole number from 0'),
    (dict(delta=np.nan, loss='huber'), 'between 1e-9 and'),
    (dict(draws=20, interval='bootstrap'), 'takes 40 draws at least, not 20'),
    (dict(fixed={'b': 1e300}), 'at most 100 either way'),
    (dict(fixed={'a': 1.0, 'b': 0.3}), 'no parameter left to fit'),
    (dict(y='x'), 'must be different columns'),
    (dict(law='chinchilla', x=('x', 'x')), 'must be different columns'),
    (dict(fixed={'q': 1.0}), "no parameter 'q'"),
    (dict(fixed={'a': -1.0}), 'cannot be -1'),
    (dict(group='y', same=True), 'two runs at least, found 1'),
  ],
)
def test_what_cannot_be_fitted_is_said(changes, message):
  data = sample('power', changes.pop('rows', 10), noise=0.02)
  if 'bad' in changes:
    row, value = changes.pop('bad')
    data['y'][row] = value
  if changes.pop('same', False):
    data['y'][:] = 1
  arguments = {'law': 'power', 'x': 'x', 'y': 'y', **changes}
  with pytest.raises(RunError, match=message):
    fit(arguments.pop('law'), data, **arguments)


# --- the command ---


def test_the_command(tmp_path):
  """As a process of its own, in which no warning passes."""
  data = sample('power_floor', 30, noise=0.02)
  lines = [
    'flops,loss,run',
    *(f'{x},{y},{i // 2}' for i, (x, y) in enumerate(zip(*data.values(), strict=True))),
  ]
  path = tmp_path / 'runs.csv'
  path.write_text('\n'.join(lines))
  command = [sys.executable, '-W', 'error', '-m', 'vit_jax.scaling.fit', str(path), '--x=flops',
             '--y=loss', '--law=power_floor', '--unit=flops=FLOP']  # fmt: skip

  def run(*more):
    return subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT)

  done = run('--predict=1e19,1e20')
  assert done.returncode == 0, done.stderr
  assert 'x = flops [FLOP]' in done.stdout
  assert 'flops 1e+20: ' in done.stdout
  done = run('--json', '--group=run', '--where=flops<1e17', '--predict=1e19', '--fixed=c=0.3',
             '--loss=huber', '--draws=50')  # fmt: skip
  card = json.loads(done.stdout)
  assert card['runs'] < 15
  assert card['interval'] == 'bootstrap'
  assert card['params']['c'] == 0.3
  (there,) = card['predictions']
  assert there['new_low'] < there['low'] < there['value'] < there['high'] < there['new_high']
  done = run('--rows=x')
  assert done.returncode == 1
  assert done.stderr.startswith('error: unknown argument --rows: did you mean --draws')
