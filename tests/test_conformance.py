"""Every kind of task through everything the loop does: none of it knows what a task is."""

import json
import shutil

import jax
import numpy as np
import pytest

import vit_jax
from tests import runs, toy_tasks
from tests.conftest import tiers
from tests.test_costs import products, traced
from vit_jax.compile.plan import plan
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.costs.step import step as step_flops
from vit_jax.data.pipeline import arrays
from vit_jax.evaluators import EVALUATORS
from vit_jax.nn import sharding, tree
from vit_jax.tasks import TASKS
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training import hyper, lanes
from vit_jax.training.workdir import Workdir

VIT = dict(variant='mu/4', image_size=(8, 8), in_channels=1, depth=2, width=16, mlp_dim=32,
           num_heads=2, posemb='sincos2d', pool='mean', drop_path=0.2)  # fmt: skip
TEXT = dict(vocab_size=20, context_length=4, width=16, depth=1, mlp_dim=32, num_heads=2, eot=19)
CASES = {
  'toy_dino': dict(
    evals=dict(test=dict(name='toy_spread', every='100%', batch_size=64)), model=VIT,
    lanes={'temperature': (0.05, 0.2)},
  ),
  'toy_set': dict(
    evals=dict(test=dict(name='toy_precision', every='100%', batch_size=64)), model=VIT,
    lanes={'lr': (1e-3, 1e-2)},
  ),
  'toy_lit': dict(
    task=dict(name='toy_lit', frozen=('image/.*',)),
    evals=dict(test=dict(name='toy_spread', output='said', every='100%', batch_size=64)),
    model=dict(name='two_towers', variant='clip:B/16', image={**VIT, 'variant': 'clip:B/16',
               'patch_size': 4, 'drop_path': 0.0, 'pool': None},
               text={**TEXT, 'variant': 'clip:B', 'num_classes': 16}),
    lanes={'temperature': (0.05, 0.2)},
  ),
  'toy_captions': dict(
    evals=dict(test=dict(name='toy_spoken', every='100%', batch_size=64)), model=VIT,
    lanes={'seed': (0, 1)},
  ),
}  # fmt: skip
NAMES = tuple(CASES)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  for there, ours in ((TASKS, toy_tasks.TASKS), (EVALUATORS, toy_tasks.EVALUATORS)):
    for name, cls in ours.items():
      monkeypatch.setitem(there, name, cls)


def configured(name, data_dir, optimizer='adamw', **changes):
  """A run of a few steps."""
  case = CASES[name]
  config = dict(
    total='6 steps', batch_size=16, model=json.loads(json.dumps(case['model'])),
    task=case.get('task', dict(name=name)),
    data=dict(source=dict(name='tfds', dataset='digits', dir=data_dir)),
    optim=dict(name=optimizer, lr=1e-2, warmup='2 steps', schedule='wsd',
               **({'eps': 1e-3} if optimizer in ('adamw', 'lamb', 'muon') else {})),
    evals=case['evals'],
    log=dict(every='1 step'), checkpoint=dict(every='2 steps', at=('2 steps',)),
    compilation_cache='',
  )  # fmt: skip
  config = config_lib.complete(config).unlock()
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config_lib.complete(config.to_dict())


def stepped(config, layout=None, steps=3):
  """Metrics of some steps, and the state at their end, of an experiment under a mesh."""
  with (
    jax.set_mesh(sharding.make_mesh(layout, jax.devices()[: 8 if layout else 1]))
    if (layout)
    else jax.set_mesh(jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1]))
  ):
    experiment = lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))
    state, step = experiment.split(experiment.init()), experiment.train_step()
    history, stream = [], experiment.batches(0)
    for number, batch in zip(range(steps), stream, strict=False):
      state, metrics = step(state, experiment.frozen, batch, experiment.hyper(number))
      history.append({name: np.asarray(value) for name, value in metrics.items()})
    stream.close()
    leaves = tree.flatten(experiment.stack(state))
    return history, {name: np.asarray(leaf) for name, leaf in leaves.items()}, step


def assert_same(a, b, rtol=2e-4):
  for x, y in zip(a[0], b[0], strict=True):
    assert x.keys() == y.keys()
    for name, value in x.items():
      np.testing.assert_allclose(value, y[name], rtol=rtol, atol=1e-5, err_msg=name)
  assert a[1].keys() == b[1].keys()
  for name, leaf in a[1].items():
    np.testing.assert_allclose(leaf, b[1][name], rtol=2e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize('name', NAMES)
def test_a_step_is_the_same_however_it_is_computed(name, data_dir):
  """On one device, in parts, unrolled, and all of that on a mesh."""
  plain = stepped(configured(name, data_dir))
  assert all(np.isfinite(line['loss']) for line in plain[0])
  unrolled = 'model__image__scan' if name == 'toy_lit' else 'model__scan'
  assert_same(stepped(configured(name, data_dir, optim__accumulate=4, **{unrolled: False})), plain)
  assert_same(stepped(configured(name, data_dir, optim__accumulate=2), '2x2x2'), plain)


@pytest.mark.parametrize('optimizer', ['sgd', 'lamb', 'adafactor', 'muon'])
def test_every_optimizer_on_a_mesh(optimizer, data_dir):
  """Unrolled, too: what an optimizer does to a layer does not depend on where it lies.

  Without biases of keys, whose gradients are rounding errors, which Adafactor makes large.
  """
  own = dict(optim__layer_decay=0.7, model__no_bias='key')
  plain = stepped(configured('toy_set', data_dir, optimizer, **own))
  own |= dict(optim__accumulate=2, model__scan=False)
  assert_same(stepped(configured('toy_set', data_dir, optimizer, **own), '2x2x2'), plain)


@pytest.mark.parametrize('name', NAMES)
def test_lanes_are_the_runs_alone(name, data_dir):
  """Over the seed, the learning rate, and a hyperparameter that only this task has."""
  own = CASES[name]['lanes']
  together = stepped(config_lib.complete({**configured(name, data_dir).to_dict(), 'lanes': own}))
  cfg = schema.build(config_lib.Config, configured(name, data_dir).to_dict() | {'lanes': own})
  step = None
  for lane, alone in enumerate(hyper.lanes(cfg)):
    field, values = next(iter(own.items()))
    known = {'seed': 'seed', 'lr': 'optim__lr'}.get(field, f'task__{field}')
    got = stepped(configured(name, data_dir, **{known: values[lane]}))
    one = ([{n: v[lane] for n, v in line.items()} for line in together[0]],
           {n: leaf[lane] for n, leaf in together[1].items()})  # fmt: skip
    assert_same(one, got[:2])
    assert alone.lane_count == 0
    step = got[2]
  assert step._cache_size() == 1


@pytest.mark.parametrize('name', NAMES)
def test_a_run_is_killed_resumed_forked_and_exported(name, data_dir, tmp_path):
  config = configured(name, data_dir)
  result = train(config, str(tmp_path / 'whole'))
  runs.cut_off(tmp_path / 'cut', config, 'at step 3')
  train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'whole', tmp_path / 'cut')
  # With another end, from the checkpoint before the cooldown begins.
  cooled = dict(total='4 steps', optim__cooldown='2 steps')
  alone = train(configured(name, data_dir, **cooled), str(tmp_path / 'alone'))
  forked = train(
    configured(name, data_dir, fork=str(tmp_path / 'whole'), **cooled), str(tmp_path / 'fork')
  )
  runs.assert_bit_identical(tmp_path / 'alone', tmp_path / 'fork')
  assert alone['metrics'] == forked['metrics']
  # What an evaluation left, and what is exported: the model that is judged.
  scores = {key: value for key, value in result['metrics'].items() if key.startswith('test/')}
  assert scores['test/examples'] == 360
  model = vit_jax.load(tmp_path / 'whole')
  stored = runs.leaves(tmp_path / 'whole')
  assert sum(np.asarray(leaf).size for leaf in jax.tree.leaves(model)) <= sum(
    leaf.size for leaf in stored
  ) + sum(leaf.size for leaf in jax.tree.leaves(model)) * bool(config.task.frozen)
  if name in ('toy_set', 'toy_captions'):
    assert np.load(tmp_path / 'whole' / 'evals' / 'test.npz').files
  shutil.rmtree(tmp_path / 'whole')


@pytest.mark.parametrize('name', tiers(NAMES, 2))
def test_a_plan(name, data_dir):
  """The step compiled for a slice; frozen parameters are held, and nothing is held for them."""
  config = configured(name, data_dir, mesh='2x2x1')
  found = plan(config, 'v5e:2x2')
  assert found.fits
  assert found.step_time
  with jax.set_mesh(jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])):
    experiment = lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))
  size = lambda held: sum(leaf.size for leaf in jax.tree.leaves(held))  # noqa: E731
  trained, frozen = size(experiment.abstract_state.model), size(experiment.frozen)
  assert bool(frozen) == bool(experiment.config.task.frozen)
  assert found.parameters <= 4 * (trained + frozen)
  assert found.optimizer <= 4 * (3 * trained + size(experiment.abstract_state.extra)) + 4


def test_what_does_not_go_together_is_refused(data_dir, monkeypatch):
  """A coupled task without `embed` and `joint`; patterns that match nothing; another model."""
  monkeypatch.setattr(toy_tasks.Dino, 'coupled', True)
  build = lambda *args, **kwargs: lanes.experiment(  # noqa: E731
    schema.build(config_lib.Config, config_lib.to_dict(configured(*args, data_dir, **kwargs)))
  )
  with pytest.raises(RunError, match='couples the examples of a batch'):
    build('toy_dino', optim__accumulate=2)
  with pytest.raises(RunError, match=r"task\.frozen: 'haed.*' matches no parameter"):
    build('toy_set', task__frozen=('haed.*',))
  config = configured('toy_lit', data_dir).to_dict() | {'evals': {}}
  config = config_lib.complete(config | {'task': dict(name='classification')})
  cfg = schema.build(config_lib.Config, config_lib.to_dict(config))
  with pytest.raises(RunError, match=r'needs model\.name=vit, not two_towers'):
    lanes.experiment(cfg)


def test_frozen_parameters_cost_nothing(data_dir, tmp_path):
  """No gradient, no moments, one copy for all lanes and one for all checkpoints."""
  config = configured('toy_lit', data_dir)
  train(config, str(tmp_path / 'run'))
  names = {path.name for path in (tmp_path / 'run').iterdir()}
  assert 'frozen' in names
  many = config_lib.complete({**config.to_dict(), 'lanes': {'temperature': (0.1,) * 4}})
  compiled, held = [], []
  for each in (config, many):
    with jax.set_mesh(jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])):
      experiment = lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(each)))
      state = experiment.split(experiment.init())
      batch = next(experiment.batches(0))
      step = experiment.train_step().lower(state, experiment.frozen, batch, experiment.hyper(0))
      compiled.append(step.compile().memory_analysis().argument_size_in_bytes)
      size = lambda held: sum(leaf.nbytes for leaf in jax.tree.leaves(held))  # noqa: E731
      held.append((size(state), size(experiment.frozen), size(batch)))
      trained = tree.flatten(state.model)
      assert not any(name.startswith('image/') for name in trained)
      assert not any('/image/' in name for name in tree.flatten(state.opt))
  (state, frozen, batch), (states, same, _) = held
  assert frozen == same > 0
  assert states == 4 * state
  for found, own in zip(compiled, (state, states), strict=True):
    assert found == pytest.approx(own + frozen + batch, rel=0.02)


def test_frozen_parameters_of_unrolled_lanes(data_dir, tmp_path):
  """In checkpoints they lie as those of one scanned run, and such a run goes on from there."""
  rolled = configured('toy_lit', data_dir)
  config = configured('toy_lit', data_dir, model__image__scan=False)
  config = config_lib.complete({**config.to_dict(), 'lanes': {'temperature': (0.05, 0.2)}})
  train(config, str(tmp_path / 'whole'))
  runs.cut_off(tmp_path / 'cut', config, 'at step 3')
  train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'whole', tmp_path / 'cut')
  with jax.set_mesh(jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])):
    experiment = lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(rolled)))
    saved = Workdir(tmp_path / 'cut').frozen(experiment.frozen)
    experiment.init()
    jax.tree.map(np.testing.assert_array_equal, saved, experiment.frozen)


@pytest.mark.parametrize('name', ['toy_dino', 'toy_lit'])
def test_what_a_step_costs(name, data_dir):
  """By passes, and as the traced program counts its products: teachers, frozen towers."""
  config = configured(name, data_dir)
  if name == 'toy_dino':  # what is dropped costs nothing, and is drawn
    config = configured(name, data_dir, model__drop_path=0.0)
  experiment = lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))
  batch = {
    n: jax.ShapeDtypeStruct((config.batch_size, *array.shape), array.dtype)
    for n, array in arrays(experiment.rows).items()
  }
  state = experiment.abstract_state
  program = traced(experiment.train_step(), state, experiment.frozen, batch, experiment.hyper(0))
  cfg = experiment.config
  counted = step_flops(cfg.task.passes(cfg.model)) * config.batch_size
  assert 2 * products(program) == pytest.approx(counted, rel=0.05)
