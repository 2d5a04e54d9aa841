"""Runs side by side, and runs that fork from others: the same as each by itself."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.conftest import make_digits, tiers
from tests.runs import assert_bit_identical, cut_off, leaves, lines
from tests.test_step import assert_same, batch_of, build, run, run_each
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.train import train
from vit_jax.training import lanes

# Learning rate, weight decay and b1 of each lane.
LANES = ((1e-2, 0.1, 0.9), (3e-3, 0.1, 0.8), (3e-3, 0.3, 0.9))


def run_lanes(batches, steps=3, **changes):
  """As `tests.test_step.run`, for every lane; `batches` makes the batch of a step."""
  experiment = lanes.experiment(build(**changes))
  state = experiment.split(experiment.init())
  args = state, experiment.frozen, batches(experiment, 0), experiment.hyper(0)
  step_fn = experiment.train_step().lower(*args).compile()  # one program for all steps
  histories = [[] for _ in experiment.lanes]
  for step in range(steps):
    state, metrics = step_fn(
      state, experiment.frozen, batches(experiment, step), experiment.hyper(step)
    )
    for lane, history in enumerate(histories):
      history.append({name: float(value[lane]) for name, value in metrics.items()})
  leaves = tree.flatten(experiment.stack(state))
  return [
    (history, {name: np.asarray(leaf)[lane] for name, leaf in leaves.items()})
    for lane, history in enumerate(histories)
  ]


def shared(experiment, step):
  return experiment.layout.place(batch_of(experiment.config, step))


@pytest.mark.parametrize(('layout', 'scan'), tiers([((1, 1, 1), True), ((2, 2, 2), False)], 1))
def test_a_lane_is_the_run_alone(mesh, layout, scan):
  """On every mesh, layers scanned or not: learning rates and weight decays of their own."""
  own = [dict(zip(('lr', 'weight_decay', 'b1'), each, strict=True)) for each in LANES]
  with mesh(*layout):
    got = run_lanes(
      shared, model__scan=scan,
      **{f'lanes__{name}': tuple(lane[name] for lane in own) for name in own[0]},
    )  # fmt: skip
    alone = run_each([
      dict(model__scan=scan, **{f'optim__{name}': value for name, value in lane.items()})
      for lane in own
    ])  # fmt: skip
  for each, want in zip(got, alone, strict=True):
    assert_same(each, want)
  assert got[0][0][-1]['loss'] != pytest.approx(got[1][0][-1]['loss'], rel=1e-6)


# What is a constant of a run alone.
OWN = dict(
  optim__eps=(1e-3, 1e-2), optim__clip=(0.7, 0.1), optim__ema=(0.5, 0.9),
  optim__lr_last=(0.0, 5e-3), optim__skip_above=(2.0, 3.0), task__label_smoothing=(0.0, 0.3),
)  # fmt: skip


def test_constants_of_their_own(mesh):
  small = dict(model__depth=1, model__pool='mean', task__mixup=0.0, task__cutmix=0.0)
  with mesh(1, 1, 1):
    own = {f'lanes__{name.partition("__")[2]}': values for name, values in OWN.items()}
    first, second = run_lanes(shared, **small, **own)
    assert_same(second, run(**small, **{name: values[1] for name, values in OWN.items()}))
  assert first[0][-1]['loss'] != pytest.approx(second[0][-1]['loss'], rel=1e-3)


# Two lanes of seeds of their own, and between them one whose learning rate is far too large.
APART = dict(lanes__lr=(1e-3, 1e30, 3e-3), lanes__seed=(0, 0, 7), total='8 steps', optim__clip=0.0)


@pytest.fixture(scope='module')
def side_by_side(data_dir, tmp_path_factory):
  """Directory and result of these lanes, and of the last of them alone."""
  folder = tmp_path_factory.mktemp('lanes')
  alone = make_digits(data_dir, seed=7, optim__lr=3e-3, total='8 steps', optim__clip=0.0)
  together = train(make_digits(data_dir, **APART), str(folder / 'all'))
  return folder, together, train(alone, str(folder / 'alone'))


def test_seeds_of_their_own(side_by_side):
  """Parameters, order of the data and augmentation: all that the seed of a run decides."""
  folder, result, alone = side_by_side
  rows = lines(folder / 'all')
  for row, want in zip(rows, lines(folder / 'alone'), strict=True):
    got = {k: v[2] if isinstance(v, list) else v for k, v in row.items()}
    assert got == pytest.approx(want, rel=1e-3, abs=1e-4)
  for name, value in alone['metrics'].items():
    assert result['metrics'][name][2] == pytest.approx(value, rel=1e-3, abs=3e-3)
  assert result['parameters'] == alone['parameters']
  # Before the first update all logits are 0.
  assert rows[1]['train/loss'][0] != pytest.approx(rows[1]['train/loss'][2], rel=1e-4)


def test_a_lane_that_diverges_leaves_the_others_alone(side_by_side, digits, tmp_path):
  folder, result, alone = side_by_side
  assert list(result['diverged']) == ['1']
  assert result['metrics']['test/loss'][1] is None
  sound = result['metrics']['test/loss'][::2]
  assert max(sound) < np.log(10)  # of a model that was not trained
  assert json.loads((folder / 'all' / 'result.json').read_text()) == result
  assert result['metrics']['test/loss'][2] == pytest.approx(alone['metrics']['test/loss'], rel=1e-4)
  with pytest.raises(RunError, match='gradient norm'):
    train(digits(**APART | dict(lanes__lr=(1e30, 1e31, 1e32))), str(tmp_path / 'none'))


def test_lanes_that_were_killed_go_on(side_by_side, digits, tmp_path):
  folder, want, _ = side_by_side
  config = digits(**APART)
  cut_off(tmp_path / 'killed', config, 'at step 6')
  got = train(config, str(tmp_path / 'killed'))
  assert_bit_identical(tmp_path / 'killed', folder / 'all')
  assert got['metrics'] == want['metrics']
  assert got['diverged'] == want['diverged']


def test_lanes_that_make_no_sense(digits, tmp_path):
  with pytest.raises(RunError, match="'lr': 1, 'seed': 2"):
    train(digits(lanes__lr=(1e-3,), lanes__seed=(0, 1)), str(tmp_path / 'run'))


# --- forks ---

TRUNK = dict(optim__schedule='wsd', checkpoint__every='100 steps', total='12 steps')
SHORT = dict(TRUNK, total='9 steps', optim__cooldown='3 steps')


@pytest.fixture(scope='module')
def trunk(data_dir, tmp_path_factory):
  """Directory of a run with checkpoints to fork from; copy it to change it."""
  folder = tmp_path_factory.mktemp('trunk') / 'trunk'
  config = make_digits(data_dir, **TRUNK, checkpoint__at=('4 steps', '6 steps'), checkpoint__keep=1)
  train(config, str(folder))
  assert {p.name for p in (folder / 'checkpoints').iterdir()} == {'4', '6', '12'}
  return folder


@pytest.fixture(scope='module')
def scratch(data_dir, tmp_path_factory):
  """Directory and result of the run that forks at step 6 must equal."""
  folder = tmp_path_factory.mktemp('scratch') / 'scratch'
  return folder, train(make_digits(data_dir, **SHORT), str(folder))


def test_a_fork_is_the_run_from_scratch(digits, trunk, scratch, tmp_path):
  """Bit by bit: parameters, optimizer and every line of metrics.jsonl."""
  folder, result = scratch
  forked = train(digits(**SHORT, fork=str(trunk)), str(tmp_path / 'fork'))
  assert forked['forked'] == {'from': str(trunk), 'step': 6}
  assert_bit_identical(tmp_path / 'fork', folder)
  assert forked['metrics'] == result['metrics']
  assert forked['config_hash'] == result['config_hash']
  assert not np.array_equal(leaves(tmp_path / 'fork')[3], leaves(trunk)[3])


def test_a_fork_may_be_longer_than_its_trunk(digits, trunk, tmp_path):
  longer = dict(TRUNK, total='15 steps')
  train(digits(**longer), str(tmp_path / 'scratch'))
  assert train(digits(**longer, fork=str(trunk)), str(tmp_path / 'fork'))['forked']['step'] == 12
  assert_bit_identical(tmp_path / 'fork', tmp_path / 'scratch')


def test_a_fork_that_was_killed_goes_on_without_its_trunk(digits, trunk, scratch, tmp_path):
  own = shutil.copytree(trunk, tmp_path / 'trunk')
  config = digits(**dict(SHORT, fork=str(own), checkpoint__every='2 steps'))
  cut_off(tmp_path / 'fork', config, 'before mkdir */checkpoints')
  cut_off(tmp_path / 'fork', config, 'at step 9')
  assert (tmp_path / 'fork' / 'checkpoints' / '8').exists()
  (own / 'config.json').unlink()
  result = train(config, str(tmp_path / 'fork'))
  assert result['forked']['step'] == 6
  assert_bit_identical(tmp_path / 'fork', scratch[0])


@pytest.mark.slow
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
      state, metrics = step_fn(state, experiment.frozen, batch, hyper)
      losses.append(float(metrics['loss']))
    assert step_fn._cache_size() == 1
    assert len({*losses}) == 3
    assert jax.tree.leaves(state)
