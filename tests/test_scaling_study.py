"""The committed sweeps: tables give their cards, cards and plans the numbers of the README."""

import json
import math
import pathlib

import numpy as np
import pytest

from experiments.sweep import duration, load, planned
from experiments.sweeps import laws, runs
from experiments.sweeps.analysis import analyse
from experiments.sweeps.jobs import expand
from vit_jax.scaling import design, frontier

STUDY = pathlib.Path(__file__).parent.parent / 'experiments' / 'scaling'
RESULTS = STUDY / 'results' / 'fashion_mnist'
Y = 'test_loss'
README = ' '.join((STUDY / 'README.md').read_text().split())


@pytest.fixture(scope='module')
def card():
  return json.loads((RESULTS / 'card.json').read_text())


def test_the_table_gives_the_card(card):
  found = analyse(RESULTS)
  rows = [json.loads(line) for line in (RESULTS / 'table.jsonl').read_text().splitlines()]
  assert card['runs'] == rows
  assert found.choice.law == card['frontier']['choice']['law']
  fits = {
    'frontier': (found.choice.fit, card['frontier']['choice']['fit']),
    'joint': (found.joint, card['joint']['law']),
    **{name: (fit, card['isoflop']['exponents'][name]) for name, fit in found.exponents.items()},
  }  # fmt: skip
  for name, (fit, written) in fits.items():
    for parameter, value in written['params'].items():
      assert fit.params[parameter] == pytest.approx(value, rel=1e-3), (name, parameter)
      np.testing.assert_allclose(fit.ci[parameter], written['ci'][parameter], rtol=0.02)
  # Advice, too: the card says what else the models have in common.
  for advice, written in zip(found.advice, card['advice'], strict=True):
    assert design.shape_of(advice.model) == written['model']
    assert (advice.trusted, advice.reason) == (written['trusted'], written['reason'])
  for name in ('value', 'low', 'high', 'observed', 'inside', 'runs', 'rmse'):
    assert getattr(found.holdout, name) == pytest.approx(card['holdout'][name], rel=1e-3), name


def test_what_was_asked_of_the_sweep(card):
  """40 runs, 2.5 decades, the largest budget predicted."""
  budgets = card['design']['budgets']
  assert len(card['cells']) >= 40
  assert math.log10(max(budgets) / min(budgets)) >= 2.5
  assert card['holdout']['passed']
  assert card['holdout']['inside'] >= 0.8 * card['holdout']['runs']


def band(low, high, digits=3):
  return f'({low:.{digits}f} to {high:.{digits}f})'


def test_the_readme_has_the_numbers_of_the_card(card):
  main = [row for row in card['runs'] if row['lr'] != 0.01]  # the others are those of `noise`
  finished = [row for row in main if row['status'] == 'finished']
  cells = {(row['width'], row['depth'], row['steps']) for row in finished}
  shapes = {(row['width'], row['depth']) for row in finished}
  assert {row['status'] for row in card['runs']} == {'finished', 'trunk'}
  firsts = {row['run']: row for row in main}.values()
  took, predicted = (
    sum(row[name] for row in firsts) / 60 for name in ('seconds', 'predicted_seconds')
  )
  sweep = load(f'{STUDY}/classification.py:cpu')
  saved = 1 - sum(job.flops for job in expand(sweep)) / (sweep.design.flops * 4)
  law, held = card['frontier']['choice']['fit'], card['holdout']
  power = held['others']['power']
  size, images = (card['isoflop']['exponents'][name] for name in ('parameters', 'images'))
  moved, joint = card['transfer'], card['joint']['law']
  tuned = card['learning_rates']
  now, far, _ = card['advice']
  near = [row['test_loss'] for row in finished if all(row[k] == v for k, v in now['model'].items())
          and row['images'] == pytest.approx(now['images'], rel=1e-3)]  # fmt: skip
  seeds = [row for row in card['runs'] if row['lr'] == 0.01 and row['status'] == 'finished']
  last = max(row['steps'] for row in seeds)
  longest = [math.log(row['test_loss']) for row in seeds if row['steps'] == last]
  assert len(longest) == 6 == len(seeds) / 3
  assert law['law'] == 'power_floor'
  assert held['law']['law'] == 'power_floor'
  assert set(card['frontier']['choice']['plausible']) == {'power_floor', 'm3', 'zhai'}
  said = [
    f'trained {len(finished)} runs, four learning rates for each of {len(cells)} combinations of '
    f'{len(shapes)} shapes and durations; none diverged and none failed',
    f'It took {took:.0f} minutes; {predicted:.0f} were predicted',
    f'Trunks saved {100 * saved:.0f} % of the FLOPs',
    f'{law["params"]["a"]:.0f} C^-{law["params"]["b"]:.3f} + {law["params"]["c"]:.3f} with compute '
    f'C, the floor between {law["ci"]["c"][0]:.3f} and {law["ci"]["c"][1]:.3f}',
    f'predicts {held["value"]:.3f} {band(held["low"], held["high"])}; {held["observed"]:.3f} was '
    f'measured. The power law predicts {power[0]:.3f} {band(*power[1:])}.',
    f'All {held["inside"]} runs of that budget lie inside',
    f'grows as C^{size["params"]["c"]:.3f} {band(*size["ci"]["c"])}, images as '
    f'C^{images["params"]["c"]:.3f} {band(*images["ci"]["c"])}',
    f'width {now["model"]["width"]} and depth {now["model"]["depth"]}, on '
    f'{now["images"] / 1e3:.0f} thousand images, for a loss of {now["loss"]:.3f} '
    f'{band(now["low"], now["high"])}; it was trained, too, and has the {held["observed"]:.3f}',
    f'width {far["model"]["width"]} and a loss of {far["loss"]:.3f} '
    f'{band(far["low"], far["high"])}',
    f'warnings: {far["reason"].partition(",")[0].replace("; ", ", and ")}.',
    f'cost the others {100 * moved["median"]:.1f} % of their loss in the median, and '
    f'{100 * moved["worst"]:.1f} % at worst',
    f'six seeds of one model differ by {100 * card["noise"]["seeds"]:.1f} % (standard deviation '
    f'over three durations), by {100 * np.std(longest, ddof=1):.1f} % at the longest',
    f'its noise is {100 * joint["noise"]:.1f} % and its exponent of the size lies anywhere between '
    f'{joint["ci"]["a"][0]:.2f} and {joint["ci"]["a"][1]:.2f}',
    f'Data are seen up to {max(row["epochs"] for row in finished):.1f} times',
    f'of {len(tuned)}, {sum(t["edge"] for t in tuned)} are the lowest or the highest tried',
  ]
  for sentence in said:
    assert sentence in README
  assert held['inside'] == held['runs']
  assert [advice['trusted'] for advice in card['advice']] == [True, False, False]
  assert min(near) == held['observed']
  assert {advice['method'] for advice in card['advice']} == {'optima'}
  assert {row['lr'] for row in finished} == set(sweep.lanes['lr'])


def test_the_readme_has_what_is_not_on_the_card():
  cells = runs.read(RESULTS).cells
  added = np.isin(cells['width'], 4) | ((cells['width'] == 16) & (cells['depth'] == 1))
  first = cells.take(~added)
  held = laws.hold_out(first, Y)
  optima = frontier.isoflop(first, flops=laws.FLOPS, size=laws.SIZE, loss=Y)
  low, high = frontier.exponent(optima, laws.SIZE, flops=laws.FLOPS).ci['c']
  best, used = laws.frontier_of(first, Y)
  smallest = best['budget'][best[laws.SIZE] == cells[laws.SIZE][~added].min()]
  assert smallest.max() == pytest.approx(1.8e10, rel=0.02)
  assert f'({low:.2f} to {high:.2f} for the size)' in README
  assert f'{held.value:.3f} {band(held.low, held.high)}' in README
  assert held.passed
  # Without the budget of 3.2e11, which has its best model at an end of the sizes.
  best, used = laws.frontier_of(cells.take(cells['budget'] < 5e11), Y)
  choice = laws.chosen(best.take(used & (best['budget'] < 3e11)), Y)
  there = choice.predict(cells['budget'].max())
  assert choice.law == 'power'
  assert f'{float(there.value):.3f} {band(there.new_low, there.new_high)}.' in README
  joint = laws.joint(cells, Y)
  off = np.abs(joint.residuals)
  assert f'by up to {100 * np.expm1(off[cells["width"] == 4].max()):.0f} %' in README
  assert off.argmax() in np.flatnonzero(cells['width'] == 4)


def test_what_was_trained_beyond_the_sweep():
  """The advice for more compute than any run had, and what came out."""
  found = analyse(RESULTS, budgets=[1e12])
  (advice,) = found.advice
  rows = [json.loads(line) for line in (RESULTS / 'beyond.jsonl').read_text().splitlines()]
  assert advice.reason == 'the curve is known to 12% only'
  for row in rows:
    assert row['status'] == 'finished'
    assert design.shape_of(advice.model).items() <= row.items()
    assert row['images'] == pytest.approx(advice.images, rel=1e-3)
    assert row['flops'] == pytest.approx(1e12, rel=1e-3)
    assert row['seed'] == 0
  best = min(rows, key=lambda row: row[Y])
  assert advice.low < best[Y] < advice.high
  assert best['lr'] == min(row['lr'] for row in rows)
  assert (
    f'for 1e12 FLOPs, {advice.factor:.2f} times its largest budget, the report advises the same '
    f'model on {advice.images / 1e6:.2f} million images and expects {advice.loss:.3f} '
    f'{band(advice.low, advice.high)}, with the warning that {advice.reason}. Then it was trained '
    f'(`beyond`): {best[Y]:.3f} at the best of four learning rates, the lowest of them'
  ) in README
  alone = found.choice.fit.predict(advice.budget)
  assert alone.new_low < best[Y] < alone.new_high
  assert f'those of the chosen law alone: {alone.new_low:.3f} to {alone.new_high:.3f}.' in README


@pytest.mark.parametrize('profile', ['gpu', 'pod'])
def test_the_readme_has_the_plans(profile):
  sweep = load(f'{STUDY}/classification.py:{profile}')
  rows = planned(expand(sweep), sweep.machine)
  seconds = sum(row['seconds'] for row in rows)
  said = (
    f'| `{profile}` | {len(sweep.design.cells)} | {sum(row["flops"] for row in rows):.2g} | '
    f'{duration(seconds)} on {sweep.machine.name} | {sweep.machine.money(seconds):,.0f} USD |'
  )
  assert said in README
  assert all(row['fits'] for row in rows)
