"""Data that cannot carry a law, through the command: said so, and no number that sounds sure."""

import importlib
import json
import sys

import numpy as np
import pytest
from scipy import stats

from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.scaling import evidence, fit
from vit_jax.scaling.choice import choose

COMMAND = importlib.import_module('vit_jax.scaling.fit')  # the package has a function of that name
FLOPS = np.geomspace(1e14, 1e18, 8)
NOISE = np.random.default_rng(0).normal(size=8)
FALLING = 5e3 * FLOPS**-0.3 + 0.3
U = np.linspace(-1, 1, 8)
LAWS = ('power', 'power_floor', 'zhai', 'm2', 'm3', 'm4')
BAD = {
  'the same in all rows': np.full(8, 2.5),
  'not shown to depend': 2.5 * np.exp(0.01 * NOISE),
  'grows with': 1e-3 * FLOPS**0.2 * np.exp(0.01 * NOISE),
  'not monotone': np.exp(U**2 + 0.01 * NOISE),
}


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
  """The command on columns: exit status, output, errors."""

  def run(columns, *arguments, x='flops'):
    path = tmp_path / 'runs.csv'
    rows = zip(*columns.values(), strict=True)
    path.write_text('\n'.join([','.join(columns), *(','.join(map(str, row)) for row in rows)]))
    monkeypatch.setattr(sys, 'argv', ['fit', str(path), f'--x={x}', '--y=loss', *arguments])
    with pytest.raises(SystemExit) as left:
      command.run(COMMAND.parser(), COMMAND.main)
    return (left.value.code, *capsys.readouterr())

  return run


@pytest.mark.parametrize('law', ['best', *LAWS])
@pytest.mark.parametrize('said', BAD)
def test_data_that_carry_no_law(run, law, said):
  data = {'flops': FLOPS, 'loss': BAD[said]}
  for more in ((), ('--loss=huber', '--draws=40')):
    status, out, err = run(data, f'--law={law}', '--predict=1e17,1e20', '--json', '--starts=16',
                           *more)  # fmt: skip
    assert (status, err) == (0, '')
    card = json.loads(out)
    found = card.get('fit', card)
    assert said in found['doubts'][0]
    assert found['flags'][0] == found['doubts'][0]
    assert found['limit']['flops'] is not None
    assert found['limit']['flops'] <= 1e18
    inside, beyond = card['predictions']
    assert inside['high'] is not None
    assert (beyond['low'], beyond['high']) == (beyond['new_low'], None) == (0, None)
    if law == 'best':
      assert card['sentence'].startswith('Do not extrapolate')
      assert card['limit'] <= 1e18


@pytest.mark.parametrize('law', LAWS)
def test_parameters_of_a_constant_are_not_identified(run, law):
  """a x^-b + c = 2.5 for b = 0 and any a + c = 2.5, or a = 0 and any b."""
  status, out, _ = run({'flops': FLOPS, 'loss': np.full(8, 2.5)}, f'--law={law}')
  assert status == 0
  card = fit(law, {'flops': FLOPS, 'loss': np.full(8, 2.5)}, x='flops', y='loss').to_dict()
  for name, value in card['params'].items():
    assert f'{name} is not identified' in out
    assert card['ci'][name][1] is card['se'][name] is None
    assert value is not None
  assert 'nothing beyond the data, flops 1e+18' in out
  assert 'million' not in out


def test_only_what_is_not_identified_is_called_so(run):
  """Of 1.8 + 480 n^-0.35, in both inputs of Chinchilla's law."""
  n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
  noise = np.exp(0.002 * np.random.default_rng(0).normal(size=25))
  data = {'n': n, 'd': d, 'loss': (1.8 + 480 * n**-0.35) * noise}
  status, out, _ = run(data, '--law=chinchilla', '--json', x='n,d')
  card = json.loads(out)
  assert status == 0
  assert 'loss is not shown to depend on d in addition to n' in card['doubts'][0]
  assert {name for name, ends in card['ci'].items() if ends[1] is None} == {'B', 'b', 'E'}
  low, high = card['ci']['a']
  assert low < 0.35 < high < 0.5
  # With both, there is nothing to say.
  data['loss'] = (1.8 + 480 * n**-0.35 + 2000 * d**-0.37) * noise
  assert json.loads(run(data, '--law=chinchilla', '--json', x='n,d')[1])['doubts'] == []
  # Inputs that go together cannot be told apart.
  n = np.geomspace(1e6, 1e9, 25)
  data = {'n': n, 'd': 20 * n, 'loss': (1.8 + 480 * n**-0.35) * noise}
  found = json.loads(run(data, '--law=chinchilla', '--json', x='n,d')[1])
  assert all('in addition to' in doubt for doubt in found['doubts'])
  assert {name for name, ends in found['ci'].items() if ends[1] is None} == set('ABEab')


def test_a_size_may_grow():
  found = fit('m1', {'flops': FLOPS, 'loss': FLOPS**0.5 * np.exp(0.01 * NOISE)}, x='flops',
              y='loss')  # fmt: skip
  assert found.doubts == []
  assert 'loss grows with flops, as a size may and a loss does not' in found.flags()
  assert np.isfinite(found.predict(1e20).high)


def test_good_data_are_not_doubted(run):
  for y in (FALLING, FLOPS**-0.1, (FLOPS + 1e15) ** -0.2 + 1e-4):
    for law in LAWS[:5]:
      data = {'flops': FLOPS, 'loss': y * np.exp(0.005 * NOISE)}
      assert fit(law, data, x='flops', y='loss').doubts == [], law
  # The F-test calls a slope shown as often by chance as it says.
  rng, count = np.random.default_rng(0), 0
  for _ in range(200):
    data = {'x': FLOPS, 'y': np.exp(0.02 * rng.normal(size=8))}
    count += not fit('power', data, x='x', y='y', starts=1)._unseen
  assert stats.binomtest(count, 200, evidence.SHOWN).pvalue > 1e-3


def test_turns():
  """Of a monotone curve and noise it is hardly ever said; of one that goes back it is."""
  rng, x = np.random.default_rng(0), np.linspace(0, 9, 12)
  said = [evidence.turns(x, -0.3 * x + 0.05 * rng.normal(size=12)) for _ in range(100)]
  assert not any(said)
  for back in ([3, 1, 2], [5, 4, 3, 2, 1, 1.2, 1.4, 1.6], [1, 2, 3, 3, 2, 1], [4, 2, 1, 1, 2, 4]):
    assert evidence.turns(np.arange(len(back), dtype=float), np.log(back)), back
  for on in ([3, 2, 1], [3, 3, 1, 1], [1, 2, 4, 4], [8, 4, 2, 1, 1.05, 1]):
    assert not evidence.turns(np.arange(len(on), dtype=float), np.log(on)), on


def test_few_points_that_a_law_goes_through(run):
  data = {'flops': FLOPS[:3], 'loss': FLOPS[:3] ** -0.1}
  _, out, _ = run(data, '--law=power', '--predict=1e17')
  assert 'power goes through all 3 rows, which are too few' in out
  assert 'flops 1e+17: 0.01995 [0, no end] [0, no end]' in out
  both = {name: np.repeat(values, 2) for name, values in data.items()} | {'run': [*'aaabbb']}
  assert '2 runs for 2 parameters' in run(both, '--law=power', '--group=run')[1]


@pytest.mark.parametrize(
  ('rows', 'law', 'message'),
  [
    ((0,), 'best', 'power has 2 free parameters and needs 3 rows of different flops'),
    ((0,), 'zhai', 'zhai has 4 free parameters and needs 5 rows of different flops'),
    ((0, 1, 2), 'power_floor', 'needs 4 rows of different flops at least, found 3 rows'),
    ((0,) * 6, 'power', 'at least, found 6 rows of 1 different'),
    ((0, 1) * 3, 'power', 'at least, found 6 rows of 2 different'),
  ],
)
def test_too_few_rows(run, rows, law, message):
  data = {'flops': FLOPS[list(rows)], 'loss': FALLING[list(rows)]}
  status, out, err = run(data, f'--law={law}')
  assert (status, out) == (1, '')
  assert err.startswith('error: ')
  assert message in err
  assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--starts=0',), 'starts must be a whole number from 1'),
    (('--starts=-3',), 'found -3'),
    (('--starts=1.5',), "invalid int value: '1.5'"),
    (('--starts=nan',), "invalid int value: 'nan'"),
    (('--starts=99999999999',), 'from 1 to 100000'),
    (('--loss=huber', '--draws=0'), 'draws must be a whole number from 1'),
    (('--loss=huber', '--draws=3'), 'takes 40 draws at least, not 3'),
    (('--loss=huber', '--seed=-1'), 'seed must be a whole number from 0'),
    (('--draws=100',), '--draws changes nothing without --interval=bootstrap'),
    (('--delta=1',), '--delta changes nothing without --loss=huber'),
    (('--loss=huber', '--delta=0'), 'delta, in log y, must be between'),
    (('--loss=huber', '--delta=inf'), 'delta, in log y, must be between'),
    (('--level=1.5',), 'level must be between 0.5 and 1'),
    (('--level=0',), 'level must be between 0.5 and 1'),
    (('--level=nan',), 'level must be between 0.5 and 1'),
    (('--level=x',), "invalid float value: 'x'"),
    (('--predict=-1',), '--predict takes positive numbers, found flops -1'),
    (('--predict=0',), '--predict takes positive numbers'),
    (('--predict=nan',), "--predict takes numbers, found 'nan'"),
    (('--predict=1e999',), "--predict takes numbers, found '1e999'"),
    (('--predict=ten',), "--predict takes numbers, found 'ten'"),
    (('--predict',), 'expected one argument'),
    (('--fixed=a=nan',), '--fixed takes numbers'),
    (('--fixed=b=1e300',), 'at most 100 either way'),
    (('--law=power', '--fixed=a=1,b=1'), 'no parameter left to fit'),
    (('--law=powr',), 'did you mean power'),
    (('--x=loss',), 'x and y must be different columns'),
    (('--x=flops,flops', '--law=chinchilla'), 'x and y must be different columns'),
    (('--y=nope',), "no column 'nope'"),
    (('--unit=x=FLOP',), "--unit is of flops, loss, found 'x'"),
    (('--where=flops>1e30',), 'none of 8 rows has flops>1e30'),
    (('--where=flops',), "'flops' is not a condition"),
    (('--where=flops<=big',), "'big' is none"),
    (('--where=run=a',), 'must name'),
    (('--group=run', '--where=run='), 'must name the run of every row'),
    (('--rows=x',), 'unknown argument --rows'),
    (('more.csv',), "unexpected argument 'more.csv'"),
  ],
)
def test_mistakes_are_one_line(run, arguments, message):
  data = {'flops': FLOPS, 'loss': FALLING, 'run': ['a', 'b', 'c', 'd', '', '', '', '']}
  if arguments == ('--where=run=a',):
    data['run'], arguments = ['a'] * 8, ('--group=run', *arguments)
  status, out, err = run(data, *arguments)
  assert (status, out) == (1, '')
  assert err.startswith('error: ')
  assert message in err
  assert len(err.splitlines()) == 1


@pytest.mark.parametrize('column', ['flops', 'loss'])
@pytest.mark.parametrize('cell', ['', 'nan', 'inf', '-1', '0', '1e999', 'abc', '50%', '1_0', '0x1'])
def test_cells_that_are_not_numbers(run, column, cell):
  """The message names the column, the row and the condition, which then helps."""
  data = {'flops': [*FLOPS], 'loss': [*FALLING]}
  data[column][3] = cell
  status, out, err = run(data)
  assert (status, out) == (1, '')
  assert f'column {column!r}' in err
  assert 'in row 3 (from 0' in err
  conditions = err.split("where='")[1].split("'")[0]
  status, out, _ = run(data, f'--where={conditions}', '--law=power_floor', '--json')
  assert status == 0
  assert json.loads(out)['points'] == 7


def test_a_choice_among_equals_takes_the_simplest():
  """Differences of rounding are no evidence."""
  found = choose(LAWS[:4], {'x': FLOPS, 'y': np.full(8, 2.5)}, x='x', y='y')
  assert found.law == 'power'
  with pytest.raises(RunError, match='did you mean'):  # which the module stands for
    COMMAND('powr', {'x': FLOPS, 'y': FLOPS}, x='x', y='y')
