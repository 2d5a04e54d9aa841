"""Runs side by side, and runs that fork from others: the same as each by itself."""

import json

import jax
import numpy as np
import pytest

from tests.conftest import tiers
from tests.runs import assert_bit_identical, cut_off, leaves, lines
from tests.test_step import assert_same, batch_of, build
from tests.test_step import run as run_step
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.train import train
from vit_jax.training import lanes

LRS, DECAYS, SEEDS = (1e-2, 3e-3, 3e-3), (0.1, 0.1, 0.3), (0, 0, 7)


def run_lanes(batches, steps=3, **changes):
  """As `tests.test_step.run`, for every lane; `batches` makes the batch of a step."""
  experiment = lanes.experiment(build(**changes))
  state = experiment.split(experiment.init())
  args = state, batches(experiment, 0), experiment.hyper(0)
  step_fn = experiment.train_step().lower(*args).compile()  # one program for all steps
  histories = [[] for _ in experiment.lanes]
  for step in range(steps):
    state, metrics = step_fn(state, batches(experiment, step), experiment.hyper(step))
    for lane, history in enumerate(histories):
      history.append({name: float(value[lane]) for name, value in metrics.items()})
  leaves = tree.flatten(experiment.stack(state))
  return [
    (history, {name: np.asarray(leaf)[lane] for name, leaf in leaves.items()})
    for lane, history in enumerate(histories)
  ]


def shared(experiment, step):
  return experiment.layout.place(batch_of(experiment.config, step))


@pytest.mark.parametrize(('layout', 'scan'), tiers([((1, 1, 1), True), ((2, 2, 2), False)], 0))
def test_a_lane_is_the_run_alone(mesh, layout, scan):
  """On every mesh, layers scanned or not: learning rates and weight decays of their own."""
  with mesh(*layout):
    got = run_lanes(
      shared, model__scan=scan, lanes__lr=LRS, lanes__weight_decay=DECAYS, lanes__b1=(0.9, 0.8, 0.9)
    )
    for lane, b1 in enumerate((0.9, 0.8, 0.9)):
      alone = run_step(
        model__scan=scan, optim__lr=LRS[lane], optim__weight_decay=DECAYS[lane], optim__b1=b1
      )
      assert_same(got[lane], alone)
  assert got[0][0][-1]['loss'] != pytest.approx(got[1][0][-1]['loss'], rel=1e-6)


@pytest.mark.slow
def test_seeds_of_their_own(digits, tmp_path):
  """Parameters, order of the data and augmentation: all that the seed of a run decides."""
  config = digits(lanes__seed=SEEDS, lanes__lr=LRS)
  result = train(config, str(tmp_path / 'all'))
  rows = lines(tmp_path / 'all')
  alone = train(digits(seed=SEEDS[2], optim__lr=LRS[2]), str(tmp_path / 'alone'))
  for row, want in zip(rows, lines(tmp_path / 'alone'), strict=True):
    got = {k: v[2] if isinstance(v, list) else v for k, v in row.items()}
    assert got == pytest.approx(want, rel=1e-3, abs=1e-4)
  for name, value in alone['metrics'].items():
    assert result['metrics'][name][2] == pytest.approx(value, rel=1e-3, abs=3e-3)
  assert result['parameters'] == alone['parameters']
  # Before the first update all logits are 0.
  assert rows[1]['train/loss'][0] != pytest.approx(rows[1]['train/loss'][2], rel=1e-4)


@pytest.mark.slow
def test_a_lane_that_diverges_leaves_the_others_alone(digits, tmp_path):
  config = digits(lanes__lr=(3e-3, 1e30, 1e-3), total='8 steps', optim__clip=0.0)
  result = train(config, str(tmp_path / 'run'))
  assert list(result['diverged']) == ['1']
  assert result['metrics']['test/loss'][1] is None
  assert min(result['metrics']['test/top1'][::2]) > 0.1
  assert json.loads((tmp_path / 'run' / 'result.json').read_text()) == result
  alone = train(digits(optim__lr=1e-3, total='8 steps', optim__clip=0.0), str(tmp_path / 'alone'))
  assert result['metrics']['test/loss'][2] == pytest.approx(alone['metrics']['test/loss'], rel=1e-4)
  with pytest.raises(RunError, match='gradient norm'):
    train(digits(lanes__lr=(1e30, 1e31), optim__clip=0.0), str(tmp_path / 'none'))


@pytest.mark.slow
def test_lanes_that_were_killed_go_on(digits, tmp_path):
  config = digits(lanes__lr=(3e-3, 1e30), lanes__seed=(0, 1), optim__clip=0.0)
  want = train(config, str(tmp_path / 'whole'))
  cut_off(tmp_path / 'killed', config, 'at step 6')
  got = train(config, str(tmp_path / 'killed'))
  assert_bit_identical(tmp_path / 'killed', tmp_path / 'whole')
  assert got['metrics'] == want['metrics']
  assert got['diverged'] == want['diverged']


def test_lanes_that_make_no_sense(digits, tmp_path):
  with pytest.raises(RunError, match="'lr': 1, 'seed': 2"):
    train(digits(lanes__lr=(1e-3,), lanes__seed=(0, 1)), str(tmp_path / 'run'))


# --- forks ---

TRUNK = dict(optim__schedule='wsd', checkpoint__every='100 steps', total='12 steps')
SHORT = dict(TRUNK, total='9 steps', optim__cooldown='3 steps')


@pytest.fixture
def trunk(digits, tmp_path):
  config = digits(**TRUNK, checkpoint__at=('4 steps', '6 steps'), checkpoint__keep=1)
  train(config, str(tmp_path / 'trunk'))
  assert {p.name for p in (tmp_path / 'trunk' / 'checkpoints').iterdir()} == {'4', '6', '12'}
  return tmp_path / 'trunk'


def test_a_fork_is_the_run_from_scratch(digits, trunk, tmp_path):
  """Bit by bit: parameters, optimizer and every line of metrics.jsonl."""
  scratch = train(digits(**SHORT), str(tmp_path / 'scratch'))
  forked = train(digits(**SHORT, fork=str(trunk)), str(tmp_path / 'fork'))
  assert forked['forked'] == {'from': str(trunk), 'step': 6}
  assert_bit_identical(tmp_path / 'fork', tmp_path / 'scratch')
  assert forked['metrics'] == scratch['metrics']
  assert forked['config_hash'] == scratch['config_hash']
  assert not np.array_equal(leaves(tmp_path / 'fork')[3], leaves(trunk)[3])


def test_a_fork_may_be_longer_than_its_trunk(digits, trunk, tmp_path):
  longer = dict(TRUNK, total='15 steps')
  train(digits(**longer), str(tmp_path / 'scratch'))
  assert train(digits(**longer, fork=str(trunk)), str(tmp_path / 'fork'))['forked']['step'] == 12
  assert_bit_identical(tmp_path / 'fork', tmp_path / 'scratch')


def test_a_fork_that_was_killed_goes_on_without_its_trunk(digits, trunk, tmp_path):
  config = digits(**dict(SHORT, fork=str(trunk), checkpoint__every='2 steps'))
  train(digits(**SHORT), str(tmp_path / 'scratch'))
  cut_off(tmp_path / 'fork', config, 'before mkdir */checkpoints')
  cut_off(tmp_path / 'fork', config, 'at step 9')
  assert (tmp_path / 'fork' / 'checkpoints' / '8').exists()
  (trunk / 'config.json').unlink()
  result = train(config, str(tmp_path / 'fork'))
  assert result['forked']['step'] == 6
  assert_bit_identical(tmp_path / 'fork', tmp_path / 'scratch')


def test_lanes_fork_too(digits, tmp_path):
  own = dict(lanes__lr=(3e-3, 1e-3), lanes__seed=(0, 5))
  train(digits(**TRUNK, **own, checkpoint__at=('6 steps',)), str(tmp_path / 'trunk'))
  train(digits(**SHORT, **own), str(tmp_path / 'scratch'))
  train(digits(**SHORT, **own, fork=str(tmp_path / 'trunk')), str(tmp_path / 'fork'))
  assert_bit_identical(tmp_path / 'fork', tmp_path / 'scratch')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(model__depth=3), r'model.depth: 2 there, 3 here'),
    (dict(seed=1), r'seed: 0 there, 1 here'),
    (dict(optim__lr=1e-3), r'until step 0, but has no checkpoint .* 4, 6, 12'),
    (dict(optim__warmup='50%'), r'until step 0, .* in percent'),
  ],
)
def test_what_cannot_be_forked(digits, trunk, tmp_path, changes, message):
  with pytest.raises(RunError, match=message):
    train(digits(**{**SHORT, 'fork': str(trunk), **changes}), str(tmp_path / 'fork'))


def test_a_fork_of_nothing(digits, tmp_path):
  with pytest.raises(RunError, match='there is no run'):
    train(digits(**SHORT, fork=str(tmp_path / 'none')), str(tmp_path / 'fork'))


def test_a_new_seed_compiles_nothing(mesh):
  with mesh(1, 1, 1):
    experiment = lanes.experiment(build())
    state, step_fn = experiment.init(), experiment.train_step()
    batch = shared(experiment, 0)
    losses = []
    for seed in (0, 1, 2):
      hyper = experiment.hyper(0)._replace(seed=np.uint32(seed))
      state, metrics = step_fn(state, batch, hyper)
      losses.append(float(metrics['loss']))
    assert step_fn._cache_size() == 1
    assert len({*losses}) == 3
    assert jax.tree.leaves(state)
