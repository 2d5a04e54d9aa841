"""Which law is chosen, and when two families are called different."""

import json

import numpy as np
import pytest

from vit_jax.core.errors import RunError
from vit_jax.scaling import fit, frontier, published
from vit_jax.scaling.choice import choose
from vit_jax.scaling.compare import compare, crossing, multiplier
from vit_jax.scaling.table import Table, where

LAWS = ('power', 'power_floor', 'm3')
TABLE6 = published.load('vit2020_table6')


def runs(curve, count, decades, noise, seed):
  """Runs along a curve over x from 1e18."""
  x = 1e18 * np.logspace(0, decades, count)
  return {
    'flops': x,
    'loss': curve(x) * np.exp(noise * np.random.default_rng(seed).normal(size=count)),
  }


def frontier_of_zhai(error):
  rows = where(published.load('zhai2022'), f'{error}!=')
  return rows.take(frontier.pareto(rows['flops'], rows[error]))


@pytest.mark.parametrize('count', [4, 5, 6])
def test_few_points_make_no_floor(count):
  """Where saturating laws extrapolate wrongly from a handful of frontier points, none is taken.

  The curve is the published one of OpenCLIP's frontier on ImageNet, 5.86 C^-.11.
  """
  worst = 0
  for seed in range(6):
    data = runs(lambda x: 5.86 * (x / 1e10) ** -0.11, count, 1.5, 0.02, seed)
    choice = choose(LAWS, data, x='flops', y='loss', starts=8)
    assert choice.law == 'power'
    beyond = 50 * data['flops'].max()
    truth = 5.86 * (beyond / 1e10) ** -0.11
    assert choice.fit.predict(beyond).value == pytest.approx(truth, rel=0.25)
    others = [f.predict(beyond).value for law, f in choice.fits.items() if law != 'power']
    worst = max([worst, *(float(o / truth - 1) for o in others)])
  assert count < 5 or worst > 0.15  # the trap is there


def test_a_floor_that_is_there_is_found():
  def curve(x):
    return (x / 1e18) ** -0.3 + 0.08

  found = [
    choose(LAWS, runs(curve, 14, 3.5, 0.01, seed), x='flops', y='loss', starts=8).law
    for seed in range(8)
  ]
  assert found.count('power_floor') >= 7


def test_a_power_law_stays_one():
  found = [
    choose(LAWS, runs(lambda x: x**-0.2, 14, 3, 0.02, seed), x='flops', y='loss', starts=8).law
    for seed in range(12)
  ]
  assert found.count('power') >= 11


def test_what_a_choice_says():
  data = runs(lambda x: (x / 1e18) ** -0.3 + 0.1, 12, 3, 0.005, 0)
  choice = choose((*LAWS, 'zhai'), Table(data), x='flops', y='loss', starts=16)
  assert choice.law == 'power_floor'
  assert choice.fit is choice.fits['power_floor']
  table = choice.table
  assert set(table['law']) == set(choice.fits)
  # Cut-offs leave out the largest values, half of the range at most.
  cuts = np.unique(table['cutoff'])
  np.testing.assert_array_equal(cuts, np.sort(data['flops'])[6:-1])
  np.testing.assert_allclose(table['factor'] * table['cutoff'], data['flops'].max())
  np.testing.assert_array_equal(table['fitted'] + table['predicted'], 12)
  # A score is what a fit by hand gives.
  row = where(table, f'law=power,fitted={8}')
  by_hand = fit('power', {k: v[:8] for k, v in data.items()}, x='flops', y='loss')
  errors = np.log(data['loss'][8:] / by_hand.predict(data['flops'][8:]).value)
  assert row['rmse'][0] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-6)
  # The limit is what was tested and what the band allows, whichever is less.
  assert choice.factor == pytest.approx(table['factor'].max())
  assert choice.factor <= 10**1.5
  band = choice.fit.limit(0.1) or np.inf
  assert choice.limit == pytest.approx(min(band, data['flops'].max() * choice.factor))
  assert choice.sentence() in choice.report()
  assert 'power_floor' in choice.sentence()
  for law in (*LAWS, 'zhai'):
    assert law in choice.report()
  assert json.loads(json.dumps(choice.to_dict()))['law'] == 'power_floor'


def test_failed_back_tests_forbid_extrapolation():
  x = np.logspace(18, 21, 10)
  data = {'flops': x, 'loss': np.where(x > 1e20, 0.5, 1) * x**-0.1}  # a jump no small run shows
  choice = choose(('power',), data, x='flops', y='loss')
  assert choice.factor == 1
  assert choice.limit <= x[-1]
  assert choice.sentence().startswith('Do not extrapolate')


def test_laws_at_their_bounds_fall_back():
  """Zhai's law without its shift is a power law with a floor, and so it is called."""
  choice = choose(('zhai', *LAWS), frontier_of_zhai('error_finetune'), x='flops',
                  y='error_finetune')  # fmt: skip
  assert choice.law == 'power_floor'
  assert 'd at a bound' in choice.verdicts['zhai']
  assert choice.fits['zhai'].params['d'] == 0


def test_the_published_law_is_chosen_for_few_shot_errors():
  """Zhai et al. 2022 needed a shift of compute as well as a floor for these."""
  choice = choose(('power', 'power_floor', 'zhai'), frontier_of_zhai('error_10shot'), x='flops',
                  y='error_10shot')  # fmt: skip
  assert choice.law == 'zhai'


def test_choice_along_another_column():
  rng = np.random.default_rng(0)
  n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
  loss = (1.7 + 400 * n**-0.34 + 410 * d**-0.28) * np.exp(0.002 * rng.normal(size=25))
  data = {'n': n, 'd': d, 'flops': 6 * n * d, 'loss': loss}
  choice = choose(('chinchilla',), data, x=('n', 'd'), y='loss', scale='flops', starts=16)
  assert choice.scale == 'flops'
  assert choice.table['factor'].max() <= 100 * 1.001
  assert choice.limit == pytest.approx(choice.largest * choice.factor)
  # How wide the band gets along it depends on what the inputs of the law do there.
  assert 'band' not in choice.sentence()


def test_predictions_know_that_the_law_was_chosen():
  """Ten points do not tell a floor from none: the band of the law taken is too narrow."""
  chosen, plausible = 0, 0
  for seed in range(24):
    rng, x = np.random.default_rng(seed), np.logspace(17, 20, 10)
    curve = lambda x: 400 * x**-0.12 + 1.7  # noqa: E731
    data = {'flops': x, 'loss': curve(x) * np.exp(0.01 * rng.normal(size=10))}
    choice = choose(('power', 'power_floor'), data, x='flops', y='loss', starts=8)
    own, band = choice.fit.predict(1e21), choice.predict(1e21)
    assert band.value == own.value
    assert band.low <= own.low < own.high <= band.high
    chosen += bool(own.low < curve(1e21) < own.high)
    plausible += bool(band.low < curve(1e21) < band.high)
  assert chosen < 18
  assert plausible >= 22


def test_a_law_that_is_rejected_is_not_taken():
  """However its back-tests were: the floor is seen at the end only."""
  data = runs(lambda x: (x / 1e18) ** -0.3 + 0.1, 9, 3, 0.003, 0)
  choice = choose(('power', 'power_floor'), data, x='flops', y='loss', gate=100)
  assert choice.law == 'power_floor'
  assert choice.plausible == ('power_floor',)
  assert 'F-test' in choice.verdicts['power']
  assert choice.to_dict()['plausible'] == ['power_floor']


def test_laws_that_cannot_be_fitted_say_why():
  data = runs(lambda x: x**-0.2, 8, 3, 0.01, 0)
  choice = choose(['power', 'chinchilla'], data, x='flops', y='loss')
  assert 'has the inputs n, d' in choice.verdicts['chinchilla']
  assert choose('power', data, x='flops', y='loss').law == 'power'


def test_cutoffs_can_be_given():
  data = runs(lambda x: x**-0.2, 10, 3, 0.01, 0)
  choice = choose(('power',), data, x='flops', y='loss', holdout=[1e19, 1e20])
  assert np.unique(choice.table['cutoff']).tolist() == [1e19, 1e20]
  with pytest.raises(RunError, match='on both sides'):
    choose(('power',), data, x='flops', y='loss', holdout=[1e21])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(laws=('powr',)), 'did you mean power'),
    (dict(laws=()), 'name the laws'),
    (dict(x='flop'), 'did you mean flops'),
    (dict(holdout='last'), "must be 'largest'"),
    (dict(where='flops<=1e19'), 'needs 3 rows'),
    (dict(y='broken'), 'row 0'),
  ],
)
def test_what_choose_refuses(change, message):
  data = {'flops': [1e18, 1e19, 1e20], 'loss': [3.0, 2, 1], 'broken': [-1.0, 1, 1]}
  with pytest.raises(RunError, match=message):
    choose(**{'laws': ('power',), 'data': data, 'x': 'flops', 'y': 'loss', **change})


# --- differences between families ---


@pytest.fixture(scope='module')
def families():
  return {
    family: fit('power', where(TABLE6, f'family={family}'), x='exaflops', y='error',
                interval='profile')
    for family in ('ViT', 'ResNet', 'hybrid')
  }  # fmt: skip


def test_vits_do_not_scale_with_a_larger_exponent(families):
  """Dosovitskiy et al. 2020, Table 6: the exponents do not differ, and ViT's is the smaller one."""
  found = {family: f.params['b'] for family, f in families.items()}
  assert found == pytest.approx({'ViT': 0.108, 'ResNet': 0.129, 'hybrid': 0.058}, abs=1e-3)
  difference = compare(families['ViT'], families['ResNet'])
  assert difference.value == pytest.approx(found['ViT'] - found['ResNet'])
  assert difference.ci[0] < 0 < difference.ci[1]
  assert difference.p > 0.05
  assert 'not shown to differ' in str(difference)
  assert compare(families['ViT'], families['hybrid']).p < 0.05


def test_vits_cost_less_by_a_factor_that_shrinks(families):
  """2.45, 1.89 and 1.51 times less compute at ViTs of 100, 500 and 2000 exaFLOPs."""
  errors = families['ViT'].predict(np.array([100.0, 500, 2000])).value
  found = multiplier(families['ViT'], families['ResNet'], errors)
  assert [m.value for m in found] == pytest.approx([2.45, 1.89, 1.51], rel=5e-3)
  assert all(m.ci[0] < m.value < m.ci[1] for m in found)
  assert [m.ci[0] > 1 for m in found] == [True, True, False]
  assert [m.at for m in found] == pytest.approx(errors)
  # ResNets reach the error of a ViT of 2000 exaFLOPs only beyond their own runs.
  assert [m.inside for m in found] == [True, True, False]
  back = multiplier(families['ResNet'], families['ViT'], errors[0])[0]
  assert back.value == pytest.approx(1 / found[0].value)
  assert back.ci == pytest.approx((1 / found[0].ci[1], 1 / found[0].ci[0]), rel=1e-6)


def test_a_crossing_is_where_the_multiplier_is_one(families):
  """Hybrids lose their advantage within the range of the data."""
  found = crossing(families['hybrid'], families['ViT'])
  assert found is not None
  assert 50 < found.ci[0] < found.x < found.ci[1]
  error = families['ViT'].predict(found.x).value
  assert multiplier(families['hybrid'], families['ViT'], error)[0].value == pytest.approx(
    1, rel=1e-3
  )
  assert crossing(families['ViT'], families['ResNet'], reach=2) is None
  # By hand: ln(a1/a2) / (b1 - b2) is the logarithm of x.
  a, b = families['hybrid'].params, families['ViT'].params
  by_hand = np.exp(np.log(a['a'] / b['a']) / (a['b'] - b['b']))
  assert found.x == pytest.approx(by_hand, rel=1e-3)


def draw(rng, count, a, b, noise, top, **options):
  x = np.geomspace(50, top, count)
  y = a * x**-b * np.exp(noise * rng.normal(size=count))
  return fit('power', {'x': x, 'y': y}, x='x', y='y', starts=2, **options)


@pytest.mark.slow
def test_families_that_are_alike_differ_in_five_percent():
  """Of 500 pairs with the same exponent; and multipliers hold the truth in 95 %."""
  rng = np.random.default_rng(0)
  rejected, held = 0, 0
  for i in range(500):
    first = draw(rng, 8, 0.3, 0.1, 0.03, 4000)
    second = draw(rng, 10, 0.4, 0.1, 0.03, 3000)
    rejected += compare(first, second).p < 0.05
    if i < 60:
      low, high = multiplier(first, second, 0.17)[0].ci
      held += low <= (4 / 3) ** 10 <= high
  assert 0.03 <= rejected / 500 <= 0.07
  assert held >= 54


def test_unequal_noise_and_few_runs_do_not_fool_the_test():
  """Welch's case: 6 quiet runs against 7 loud ones."""
  rng = np.random.default_rng(1)
  pairs = (
    (draw(rng, 6, 0.3, 0.1, 0.01, 4000, interval='profile'),
     draw(rng, 7, 0.4, 0.1, 0.04, 3000, interval='profile')) for _ in range(200)
  )  # fmt: skip
  rejected = np.mean([compare(*pair).p < 0.05 for pair in pairs])
  assert 0.02 <= rejected <= 0.08


def test_a_difference_that_is_there_is_found():
  rng = np.random.default_rng(2)
  found = [
    compare(draw(rng, 12, 0.3, 0.1, 0.02, 4000), draw(rng, 12, 0.3, 0.15, 0.02, 4000))
    for _ in range(30)
  ]
  assert np.mean([d.p < 0.05 for d in found]) > 0.9
  assert all((d.p < 0.05) == (not d.ci[0] <= 0 <= d.ci[1]) for d in found)
  assert np.mean([d.ci[0] <= -0.05 <= d.ci[1] for d in found]) > 0.85


def test_intervals_without_an_end_stay_without():
  """A floor that ends in nothing, and an error that the other family may never reach."""
  data = runs(lambda x: (x / 1e18) ** -0.3 + 0.1, 12, 3, 0.03, 3)
  floor = fit('power_floor', data, x='flops', y='loss')
  other = fit(
    'power_floor', runs(lambda x: (x / 1e18) ** -0.25, 12, 3, 0.03, 4), x='flops', y='loss'
  )
  difference = compare(floor, other, 'c')
  assert difference.ci[0] < difference.value < difference.ci[1]
  lowest = floor.predict(1e22).value
  found = multiplier(other, floor, lowest)[0]
  assert found.ci[1] == np.inf
  assert not found.inside


def test_what_cannot_be_compared(families):
  vit = families['ViT']
  rows = where(TABLE6, 'family=ResNet')
  other = dict(x='exaflops', y='error')
  with pytest.raises(RunError, match='different units'):
    compare(vit, fit('power', rows, **other, units={'exaflops': 'core-day'}))
  with pytest.raises(RunError, match='different columns'):
    multiplier(vit, fit('power', rows, x='exaflops', y='imagenet'), 0.15)
  with pytest.raises(RunError, match='different laws'):
    compare(vit, fit('m1', rows, **other))
  with pytest.raises(RunError, match='no parameter'):
    compare(vit, families['ResNet'], 'c')
  with pytest.raises(RunError, match='given, not fitted'):
    compare(vit, fit('power', rows, **other, fixed={'b': 0.1}))
  with pytest.raises(RunError, match=r'does not reach error 0\.0001'):
    multiplier(vit, families['ResNet'], 1e-4)
  grid = {'n': np.geomspace(1, 2, 8), 'd': np.geomspace(1, 9, 8)[::-1], 'l': np.geomspace(2, 1, 8)}
  two = fit('chinchilla', grid, x=('n', 'd'), y='l', starts=2)
  with pytest.raises(RunError, match='one input'):
    crossing(two, two)
