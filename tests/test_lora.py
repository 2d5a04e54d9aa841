"""Low-rank changes of frozen matrices: what they add, and what is trained, kept and handed on."""

import jax
import numpy as np
import pytest

import vit_jax
from tests import runs
from tests.conftest import tiers
from tests.test_conformance import (
  CASES,
  FEW,
  assert_costs,
  assert_same,
  built,
  configured,
  one_device,
  registered,  # noqa: F401
  stepped,
)
from vit_jax.compile.plan import plan
from vit_jax.convert import read
from vit_jax.core.errors import RunError
from vit_jax.nn import sharding, tree
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training.evaluation import evaluate, restore
from vit_jax.training.workdir import Workdir

# Of every kind of matrix: one with several axes in, one with several out, one of no layer.
PATTERNS = ('.*attn/(query|value|out)/kernel', '.*/up/kernel', 'embed/proj/kernel')
LORA = dict(lora__rank=2, lora__alpha=8.0, lora__patterns=PATTERNS)


def low_rank(data_dir, task='toy_set', **changes):
  return configured(task, data_dir, **{**LORA, **changes})


def test_what_is_added_is_the_law_of_peft(data_dir):
  """W + alpha / rank * B A, in float64, of each layer; nothing at the start, bit for bit.

  In peft's words W is (outputs, inputs), lora_A (rank, inputs) and lora_B (outputs, rank).
  """
  with one_device():
    experiment = built(low_rank(data_dir))
    state, plain = experiment.init(), built(configured('toy_set', data_dir)).init()
    frozen = experiment.frozen
    start = tree.flatten(tree.merge(state.model, frozen))
    for name, leaf in tree.flatten(plain.model).items():
      np.testing.assert_array_equal(start[name], leaf, err_msg=name)
    rng = np.random.default_rng(0)
    model = jax.tree.map(
      lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32), x.sharding), state.model
    )
    merged = tree.flatten(tree.merge(model, frozen))
  factors, base = tree.flatten(model), tree.flatten(frozen)
  changed = {tree.whole(name) for name in factors} - factors.keys()
  ends = ('query', 'value', 'out', 'up', 'proj')
  assert {name.split('/')[-2] for name in changed} == {*ends}
  for name in changed:
    w = np.float64(base[name])
    stacked = '/blocks/' in name
    ins = {'out': 2, 'proj': 3}.get(name.split('/')[-2], 1)
    for layer in range(len(w) if stacked else 1):
      own, a, b = (x[layer] if stacked else x for x in (
        w, *(np.float64(factors[f'{name}/{factor}']) for factor in tree.FACTORS)
      ))  # fmt: skip
      inputs = int(np.prod(own.shape[:ins]))
      lora_a, lora_b = a.reshape(inputs, 2).T, b.reshape(2, -1).T
      want = own.reshape(inputs, -1).T + 8.0 / 2 * lora_b @ lora_a
      got = np.asarray(merged[name])[layer] if stacked else np.asarray(merged[name])
      np.testing.assert_allclose(got.reshape(inputs, -1).T, want, rtol=1e-6, atol=1e-6)
  assert factors.keys() - {f'{n}/{f}' for n in changed for f in tree.FACTORS} == {
    'head/bias', 'head/kernel'
  }  # fmt: skip
  bound = 1 / np.sqrt(16)
  drawn = np.abs(tree.flatten(state.model)['encoder/blocks/mlp/up/kernel/lora_a'])
  assert 0.9 * bound < drawn.max() <= bound


@pytest.mark.parametrize('name', tiers(('toy_set', 'toy_moco'), 0))
def test_a_step_is_the_same_however_it_is_computed(name, data_dir):
  """In parts, unrolled and on a mesh; what is not trained has no gradient and no moments."""
  own = dict(lora__train=('encoder/norm/.*',)) if name == 'toy_moco' else {}  # it has no head
  plain = stepped(low_rank(data_dir, name, **own))
  assert not [n for n in plain[1] if n.startswith('model/posemb')]
  moments = {n.removeprefix('opt/mu/') for n in plain[1] if n.startswith('opt/mu/')}
  assert moments == {n.removeprefix('model/') for n in plain[1] if n.startswith('model/')}
  assert any(np.abs(leaf).max() > 0 for n, leaf in plain[1].items() if n.endswith('lora_b'))
  parts = low_rank(data_dir, name, optim__accumulate=4, model__scan=False, **own)
  assert_same(stepped(parts), plain)
  assert_same(stepped(low_rank(data_dir, name, optim__accumulate=2, **own), '2x2x2'), plain)


@pytest.mark.slow
def test_lanes_are_the_runs_alone(data_dir):
  """They have factors of their own, of their own seeds, and share what is frozen."""
  rates = (1e-3, 1e-2)
  config = low_rank(data_dir).to_dict() | {'lanes': {'lr': rates}}
  together = stepped(config_lib.complete(config))
  for lane, lr in enumerate(rates):
    alone = stepped(low_rank(data_dir, optim__lr=lr))
    one = ([{n: v[lane] for n, v in line.items()} for line in together[0]],
           {n: leaf[lane] for n, leaf in together[1].items()})  # fmt: skip
    assert_same(one, alone[:2])


@pytest.mark.slow
def test_a_run_is_killed_resumed_forked_and_exported(data_dir, tmp_path):
  """Checkpoints hold what is trained; whatever reads a run gets the sum, as it was judged."""
  config = low_rank(data_dir, optim__ema=0.5)
  result = train(config, str(tmp_path / 'whole'))
  runs.cut_off(tmp_path / 'cut', config, 'at step 3')
  train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'whole', tmp_path / 'cut')
  cooled = dict(total='4 steps', optim__cooldown='2 steps', optim__ema=0.5)
  alone = train(low_rank(data_dir, **cooled), str(tmp_path / 'alone'))
  forked = train(low_rank(data_dir, fork=str(tmp_path / 'whole'), **cooled), str(tmp_path / 'fork'))
  assert alone['metrics'] == forked['metrics']
  again = evaluate(str(tmp_path / 'whole'))
  assert all(again[n] == pytest.approx(v, rel=1e-5) for n, v in result['metrics'].items())
  shapes, facts = Workdir(tmp_path / 'whole').checkpoints().peek()
  assert not [n for n in shapes if n.endswith('/query/kernel')]
  assert facts['lora'] == {'scale': 4.0}
  with one_device():
    experiment, state = restore(str(tmp_path / 'whole'))
    judged = tree.flatten(experiment.config.task.judged(state, experiment.frozen))
    plain = tree.flatten(tree.merge(state.model, experiment.frozen))
  assert result['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(state.model))
  for part, want in (('', judged), ('model', plain)):
    read = tree.flatten(vit_jax.load(tmp_path / 'whole', part=part))
    assert read.keys() == want.keys()
    for name, leaf in read.items():
      np.testing.assert_allclose(leaf, want[name], rtol=1e-6, atol=1e-6, err_msg=name)
  with jax.set_mesh(sharding.make_mesh('2x2x2')):  # read part by part, and changed there
    for name, leaf in tree.flatten(vit_jax.load(tmp_path / 'whole')).items():
      np.testing.assert_allclose(leaf, judged[name], rtol=1e-6, atol=1e-6, err_msg=name)
  vit_jax.save(vit_jax.load(tmp_path / 'whole'), tmp_path / 'merged', 'vit_jax')
  images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  outputs = [vit_jax.load(tmp_path / name)(images) for name in ('whole', 'merged')]
  np.testing.assert_allclose(*outputs, rtol=1e-6)


def test_costs_and_plans_know_what_is_trained(data_dir):
  """FLOPs are the products that a step traces; no moments are held for what is frozen.

  Products of factors do not grow with the batch, and do not count.
  """
  model = {**CASES['toy_set']['model'], 'no_bias': FEW, 'drop_path': 0.0, 'width': 32,
           'mlp_dim': 128}  # fmt: skip
  config = configured('toy_set', data_dir, lora__rank=1, batch_size=64).to_dict()
  config |= {'task': dict(name='classification'), 'model': model, 'evals': {}}
  with one_device():
    assert_costs(config_lib.complete(config))
    experiment = built(low_rank(data_dir))
  found = plan(low_rank(data_dir, mesh='2x2x1'), 'v5e:2x2')
  trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(held))
                     for held in (experiment.abstract_state.model, experiment.frozen))  # fmt: skip
  assert found.parameters <= 4 * (trained + frozen)
  assert found.optimizer <= 4 * (2 * trained + 1)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(lora__patterns=('.*querry/kernel',)), r"lora\.patterns: '.*querry/kernel' matches no"),
    (dict(lora__train=('haed/.*',)), r"lora\.train: 'haed/\.\*' matches no parameter"),
    (dict(lora__patterns=('.*norm1/scale',)), 'norm1/scale, which is no matrix'),
    (dict(lora__patterns=('head/kernel',)), r"lora\.patterns: 'head/kernel' matches no parameter"),
    (dict(lora__rank=-1), r'lora\.rank=-1 must be at least 0'),
    (dict(lora__alpha=0.0), r'lora\.alpha=0\.0 must be more than 0'),
    (dict(model__mup_width=8), r'mup_depth have no rule for low-rank changes'),
  ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(changes, message, data_dir):
  with one_device(), pytest.raises(RunError, match=message):
    built(low_rank(data_dir, **changes))


def test_muon_is_refused(data_dir):
  with one_device(), pytest.raises(RunError, match='muon has no rule for low-rank changes'):
    built(configured('toy_set', data_dir, 'muon', **LORA))


LEARNED = dict(variant='mu/4', image_size=(16, 16), in_channels=1, depth=2, width=16, mlp_dim=32,
               num_heads=2)  # fmt: skip


@pytest.fixture
def based(tmp_path, data_dir):
  """A checkpoint of larger images, and a run that changes it: by name of the task's fields."""
  base = vit_jax.create(**LEARNED)
  rng = np.random.default_rng(0)
  base = jax.tree.map(lambda x: np.asarray(rng.normal(0, 0.2, x.shape), np.float32), base)
  vit_jax.save(base, tmp_path / 'base.npz', 'vit')

  def run(name, **changes):
    config = configured('toy_set', data_dir).to_dict()
    config |= dict(init=str(tmp_path / 'base.npz'), task=dict(name='classification'))
    config |= dict(model=dict(name='vit', image_size=(8, 8), num_heads=2))
    config |= dict(evals=dict(test=dict(every='100%', batch_size=64)), total='3 steps')
    config['optim']['warmup'] = '0'
    config = config_lib.complete(config).unlock()
    config.update_from_flattened_dict({n.replace('__', '.'): v for n, v in changes.items()})
    return train(config_lib.complete(config.to_dict()), str(tmp_path / name))

  return run


@pytest.mark.slow
def test_a_file_of_changes_is_a_checkpoint(based, tmp_path, typed, capsys):
  """Of low-rank changes and a head, and of a head alone: each is the run, and much smaller."""
  frozen = ('embed/.*', 'encoder/.*', 'posemb', 'token')
  runs_of = {
    'low': based('low', lora__rank=2), 'probe': based('probe', task__frozen=frozen),
    'half': based('half', lora__rank=1, task__frozen_dtype='bfloat16'),
  }  # fmt: skip
  for name in runs_of:
    status, out, err = typed(
      'vit_jax.convert', tmp_path / name, tmp_path / f'{name}.safetensors', '--to=changes'
    )
    assert status == 0, err
    got, want = (tree.flatten(vit_jax.load(tmp_path / each))
                 for each in (f'{name}.safetensors', name))  # fmt: skip
    assert got.keys() == want.keys()
    for path, leaf in want.items():
      near = 1e-2 if name == 'half' else 1e-6
      np.testing.assert_allclose(got[path], leaf, rtol=near, atol=near, err_msg=path)
    assert vit_jax.load(tmp_path / f'{name}.safetensors').card.class_names == tuple('0123456789')
  assert (tmp_path / 'probe.safetensors').stat().st_size < 6000
  # It goes on, is evaluated and inspected as any checkpoint.
  low = str(tmp_path / 'low.safetensors')
  again = based('again', init=low, total='1 step')
  assert 'head: kept' in capsys.readouterr().out
  assert again['metrics']['test/examples'] == 360
  status, out, _ = typed('vit_jax.inspect', low, '--no-names')
  assert 'everything fits' in out
  # Its base may move, and may not be another one.
  (tmp_path / 'base.npz').rename(tmp_path / 'moved.npz')
  with pytest.raises(RunError, match=r'which cannot be read: .*\n.*--base=PATH'):
    vit_jax.load(low)
  moved = tmp_path / 'moved.npz'
  vit_jax.load(low, base=str(moved))
  based('moved', init=f'{low}?base={moved}', total='1 step')
  other = vit_jax.load(moved)
  other = jax.tree.map(lambda x: np.asarray(x) * 1.01, other)
  vit_jax.save(other, tmp_path / 'other.npz', 'vit')
  with pytest.raises(RunError, match=r'is not the checkpoint that was changed: its .* has a norm'):
    vit_jax.load(low, base=str(tmp_path / 'other.npz'))
  with pytest.raises(RunError, match=r'of a file of changes, and .* is none'):
    vit_jax.load(moved, base='x')


def test_what_has_no_changes_is_refused(based, data_dir, tmp_path):
  based('whole', total='1 step')
  train(low_rank(data_dir, total='1 step', optim__warmup='0'), str(tmp_path / 'random'))
  for name, message in (
    ('whole', 'has trained all of its parameters'),
    ('random', 'started from no checkpoint'),
    ('base.npz', 'is not the directory of a run'),
  ):
    with pytest.raises(RunError, match=message):
      read.save_changes(tmp_path / name, tmp_path / 'x.safetensors')


def test_what_is_new_is_not_frozen(based, tmp_path):
  """A pooling that the checkpoint has not would keep its random values."""
  pooled = dict(init=f'{tmp_path}/base.npz?ignore=MAPHead_0/.*', model__pool='map')
  with pytest.raises(RunError, match=r'lora\.rank=2 would freeze what is new.*map_head'):
    based('new', lora__rank=2, **pooled)
  result = based('named', lora__rank=2, total='1 step', lora__train=('head/.*', 'map_head/.*'),
                 **pooled)  # fmt: skip
  assert np.isfinite(result['metrics']['test/loss'])
