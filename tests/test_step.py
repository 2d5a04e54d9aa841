"""One step: the same on every mesh, with every way of cutting the batch, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import slices
from tests.conftest import tiers
from tests.runs import assert_close
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.nn import sharding, tree
from vit_jax.nn.sharding import BatchLayout
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.task import Context
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment
from vit_jax.training.hyper import Hyper, names


def build(**changes):
  """A tiny run on random images in which every feature of the step is on.

  A large eps, because key biases have no gradient but rounding errors (softmax does not see them),
  which Adam would blow up to steps of full size.
  """
  config = dict(
    total='9', batch_size=16,
    model=dict(variant='mu/4', image_size=(8, 8), in_channels=1, depth=2, width=16, mlp_dim=32,
               num_heads=2, pool='map', remat='names'),
    task=dict(label_smoothing=0.1, mixup=0.3, cutmix=1.0, mix_prob=0.9, mix_mode='elem', flip=True),
    data=dict(source=dict(name='synthetic', num_classes=4, image_size=(8, 8))),
    optim=dict(lr=1e-2, weight_decay=0.1, warmup='2', ema=0.5, clip=0.7, eps=1e-3),
  )  # fmt: skip
  config = config_lib.complete(config).unlock()
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return schema.build(config_lib.Config, config)


def batch_of(cfg, step):
  rng = np.random.default_rng(step)
  mask = np.ones(cfg.batch_size, np.float32)
  mask[[1, 6]] = 0
  return {
    'image': rng.integers(0, 256, (cfg.batch_size, 8, 8, 1), dtype=np.uint8),
    'label': rng.integers(0, 4, cfg.batch_size, dtype=np.int32),
    'mask': mask,
    'erased': rng.integers(0, 5, (cfg.batch_size, 1, 4), dtype=np.int32),  # by noise
  }


def run(steps=3, **changes):
  """Metrics of each step and the final state, as NumPy."""
  return run_each([changes], steps)[0]


def run_each(runs, steps=3):
  """As `run`, of several whose fields differ only in what is an argument of one program."""
  found, step_fn = [], None
  for changes in runs:
    cfg = build(**changes)
    experiment = Experiment(cfg)
    step_fn = step_fn or experiment.train_step()
    state, history = experiment.split(experiment.init()), []
    for step in range(steps):
      batch = experiment.layout.place(batch_of(cfg, step))
      state, metrics = step_fn(state, experiment.frozen, batch, experiment.hyper(step))
      history.append({name: float(value) for name, value in metrics.items()})
    assert step_fn._cache_size() == 1
    leaves = tree.flatten(experiment.stack(state))
    found.append((history, {name: np.asarray(leaf) for name, leaf in leaves.items()}))
  return found


@pytest.fixture(scope='module')
def plain():
  """Without any mesh."""
  return run()


def assert_same(got, want):
  for a, b in zip(got[0], want[0], strict=True):
    assert a == pytest.approx(b, rel=1e-5)
  for name, value in want[1].items():
    np.testing.assert_allclose(got[1][name], value, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
  'layout', tiers([[1, 1, 1], [8, 1, 1], [1, 8, 1], [2, 2, 2], [4, 1, 2]], 3)
)
def test_every_mesh_gives_the_same_training(plain, mesh, layout):
  with mesh(*layout):
    assert_same(run(), plain)


def test_a_block_for_each_layer_gives_the_same_training(plain, mesh):
  with mesh(2, 2, 2):
    assert_same(run(model__scan=False), plain)


def test_groups_of_parameters_know_nothing_of_layers(plain):
  """Their names are the same with a block for each layer."""
  groups = (('encoder/blocks/mlp/.*', 0.5), ('.*', 1.0))
  want = run(optim__lr_scale=groups, optim__decay=groups)
  assert want[0][-1]['loss'] != pytest.approx(plain[0][-1]['loss'], rel=1e-5)
  assert_same(run(model__scan=False, optim__lr_scale=groups, optim__decay=groups), want)


def test_splitting_layers_and_stacking_them(mesh):
  with mesh(2, 2, 2):
    experiment = Experiment(build(model__scan=False))
    want = tree.flatten(experiment.init())
    split = experiment.split(experiment.init())
    name = 'opt/mu/encoder/blocks/1/mlp/up/kernel'
    assert tree.flatten(split)[name].sharding.spec == jax.P('fsdp', 'tensor')
    got = tree.flatten(experiment.stack(split))
    assert got.keys() == want.keys()
    for name, leaf in want.items():
      assert got[name].sharding == leaf.sharding, name
      np.testing.assert_array_equal(got[name], leaf)


# (8, 1, 1): one example on each device at a time.
@pytest.mark.parametrize(
  'layout', [None, (2, 2, 2), pytest.param((8, 1, 1), marks=pytest.mark.slow)]
)
def test_accumulation_gives_the_same_training(plain, mesh, layout):
  if layout is None:
    assert_same(run(optim__accumulate=4), plain)
  else:
    with mesh(*layout):
      assert_same(run(optim__accumulate=2), plain)


@pytest.mark.parametrize('layout', [pytest.param(None, marks=pytest.mark.slow), (2, 2, 2)])
def test_what_is_dropped_does_not_depend_on_the_parts(mesh, layout):
  """Stochastic depth and patch dropout, of every example as in the whole batch."""
  dropped = dict(model__drop_path=0.4, model__patch_dropout=0.5)
  whole = run(**dropped)
  if layout is None:
    assert_same(run(optim__accumulate=4, **dropped), whole)
  else:
    with mesh(*layout):
      assert_same(run(optim__accumulate=2, **dropped), whole)


def test_bfloat16_on_a_mesh_is_near_float32(plain, mesh):
  with mesh(2, 2, 2):
    history, _ = run(model__dtype='bfloat16')
  for a, b in zip(history, plain[0], strict=True):
    assert a['loss'] == pytest.approx(b['loss'], rel=1e-2)


def test_parameters_and_optimizer_are_sharded(mesh):
  with mesh(2, 2, 2):
    leaves = tree.flatten(Experiment(build()).init())
    kernel = 'encoder/blocks/mlp/up/kernel'
    for name in (f'model/{kernel}', f'opt/mu/{kernel}', f'opt/nu/{kernel}', f'ema/{kernel}'):
      assert leaves[name].sharding.spec == jax.P(None, 'fsdp', 'tensor'), name
      assert leaves[name].addressable_shards[0].data.shape == (2, 8, 16)


def test_changing_hyperparameters_compiles_nothing(mesh):
  with mesh(2, 2, 2):
    experiment = Experiment(build())
    state, step_fn = experiment.init(), experiment.train_step()
    batch = experiment.layout.place(batch_of(experiment.config, 0))
    norms = []
    for lr, decay, b1, b2 in ((0.1, 0.2, 0.9, 0.99), (0.0, 0.5, 0.8, 0.9), (1e-3, 0.0, 0.7, 0.95)):
      values = {'optim.lr': lr, 'optim.weight_decay': decay, 'optim.b1': b1, 'optim.b2': b2}
      order = [values[name] for name in names(experiment.config)]
      hyper = Hyper(np.array(order, np.float32), np.uint32(0))
      before = [np.asarray(leaf) for leaf in jax.tree.leaves(state.model)]
      state, _ = step_fn(state, experiment.frozen, batch, hyper)
      after = jax.tree.leaves(state.model)
      norms.append(sum(np.abs(a - b).sum() for a, b in zip(after, before, strict=True)))
    assert step_fn._cache_size() == 1
    assert norms[1] == 0 < norms[2] < norms[0]


def test_the_state_is_donated():
  experiment = Experiment(build())
  state = experiment.init()
  batch = experiment.layout.place(batch_of(experiment.config, 0))
  experiment.train_step()(state, experiment.frozen, batch, experiment.hyper(0))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.model))


def test_masked_examples_count_for_nothing():
  experiment = Experiment(build(task__mixup=0.0, task__cutmix=0.0))
  step_fn = experiment.train_step()
  results = []
  for filler in (0, 255):
    batch = batch_of(experiment.config, 0)
    batch['image'][[1, 6]] = filler
    batch['label'][[1, 6]] = filler % 4
    state, metrics = step_fn(experiment.init(), experiment.frozen, batch, experiment.hyper(0))
    assert metrics['skipped'] == 2
    results.append([np.asarray(leaf) for leaf in jax.tree.leaves((state, metrics))])
  for a, b in zip(*results, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('warmup', [True, False])
def test_ema_follows_the_model(warmup):
  experiment = Experiment(build(optim__ema_warmup=warmup))
  state, step_fn = experiment.init(), experiment.train_step()
  average = np.asarray(state.model.head.kernel[...])
  for step in range(4):
    state, _ = step_fn(
      state, experiment.frozen, batch_of(experiment.config, step), experiment.hyper(step)
    )
    decay = min(0.5, (1 + step) / (10 + step)) if warmup else 0.5
    average = decay * average + (1 - decay) * np.asarray(state.model.head.kernel[...])
  judged = experiment.config.task.judged(state, experiment.frozen)
  np.testing.assert_allclose(judged.head.kernel[...], average, rtol=1e-5, atol=1e-7)


def test_clipping_bounds_the_gradient():
  experiment = Experiment(build(optim__clip=1e-12, optim__eps=1.0, optim__weight_decay=0.0))
  state = experiment.init()
  before = np.asarray(state.model.head.kernel[...])
  state, metrics = experiment.train_step()(
    state, experiment.frozen, batch_of(experiment.config, 0), experiment.hyper(0)
  )
  assert metrics['grad_norm'] > 1e-3
  np.testing.assert_allclose(state.model.head.kernel[...], before, atol=1e-12)


# --- the objective ---


def test_cross_entropy_with_smoothing_and_mixup():
  task = Classification(label_smoothing=0.2)
  batch = {'label': jnp.array([0, 2]), 'mask': jnp.ones(2), 'image': None}
  np.testing.assert_allclose(task.targets(batch, 4)[0], [0.85, 0.05, 0.05, 0.05])
  batch |= {'label2': jnp.array([2, 0]), 'share': jnp.array([0.75, 0.75])}
  np.testing.assert_allclose(task.targets(batch, 4)[0], [0.65, 0.05, 0.25, 0.05], rtol=1e-6)
  logits = jnp.array([[1.0, 2.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])
  ctx = Context({}, {'examples': 2}, {}, None, 0, None)
  loss, sums, seen = task.loss(lambda image, key: logits, batch, ctx)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  want = -(np.asarray(task.targets(batch, 4)) * np.log(p)).sum()
  np.testing.assert_allclose(sums['loss'][0], want, rtol=1e-6)
  np.testing.assert_allclose(loss, want / 2, rtol=1e-6)
  assert sums['top1'] == (1, 'examples')
  assert seen == {}


def test_augmentation_mixes_and_flips():
  images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1), dtype=np.uint8)
  batch = {'image': images, 'label': jnp.arange(64), 'mask': jnp.ones(64)}
  clean = Classification(mean=(0.0,), std=(1.0,)).augment(batch, None, {})['image']
  np.testing.assert_allclose(clean, images / 255, rtol=1e-6)
  flip = Classification(mean=(0.0,), std=(1.0,), flip=True).augment(batch, jax.random.key(0), {})[
    'image'
  ]
  mirrored = [bool((f == c[:, ::-1]).all()) for f, c in zip(flip, clean, strict=True)]
  assert all(m or (f == c).all() for m, f, c in zip(mirrored, flip, clean, strict=True))
  assert 16 < sum(mirrored) < 48
  mix = Classification(mean=(0.0,), std=(1.0,), mixup=1.0).augment(batch, jax.random.key(0), {})
  share = float(mix['share'][0])
  assert 0 < share < 1
  np.testing.assert_allclose(
    mix['image'], share * clean + (1 - share) * clean[::-1], rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(mix['label2'], np.arange(64)[::-1])


# --- meshes ---


@pytest.mark.parametrize(
  ('layout', 'sizes'),
  [('data', (8, 1, 1)), ('fsdp', (1, 8, 1)), ('2x2x2', (2, 2, 2)), ('-1x4x1', (2, 4, 1))],
)
def test_meshes_by_name_and_number(layout, sizes):
  assert tuple(sharding.make_mesh(layout).shape.values()) == sizes


@pytest.mark.parametrize('layout', ['fdsp', '2x2', '3x1x1', '0x8x1', '-1x3x1', '-1x-1x8', ''])
def test_bad_meshes(layout):
  with pytest.raises(RunError, match='mesh='):
    sharding.make_mesh(layout)


@pytest.mark.parametrize(
  ('layout', 'sizes'),
  [('data', (8, 1, 1)), ('fsdp', (2, 4, 1)), ('tensor', (2, 1, 4)), ('-1x2x2', (2, 2, 2))],
)
def test_only_data_goes_across_slices(layout, sizes, monkeypatch):
  monkeypatch.setattr(sharding, 'slice_of', slices.of(2))
  made = sharding.make_mesh(layout)
  assert tuple(made.shape.values()) == sizes
  first, second = np.split(made.devices, 2)
  assert [*first.flat] == jax.devices()[:4]
  assert [*second.flat] == jax.devices()[4:]
  # A slice has rows of a batch that follow one another.
  place = NamedSharding(made, P(sharding.RULES['batch']))
  starts = {d: index[0].indices(8)[0] for d, index in place.devices_indices_map((8,)).items()}
  assert all((start < 4) == (device in [*first.flat]) for device, start in starts.items())


@pytest.mark.parametrize('layout', ['1x8x1', '1x2x4'])
def test_slices_that_do_not_divide_data(layout, monkeypatch):
  monkeypatch.setattr(sharding, 'slice_of', slices.of(2))
  with pytest.raises(RunError, match=f'mesh=.{layout}.* multiple of the 2 slices.* 2x4x1'):
    sharding.make_mesh(layout)


def test_two_slices_train_as_one(finished, tmp_path, digits, monkeypatch, capsys):
  """Four devices each, with a part of the parameters on each of them."""
  workdir, result, _ = finished
  monkeypatch.setattr(sharding, 'slice_of', slices.of(2))
  two = train(digits(mesh='fsdp'), str(tmp_path / 'two'))
  assert '8 x cpu, 2 slices of 4, mesh 2 data x 4 fsdp x 1 tensor' in capsys.readouterr().out
  assert_close(tmp_path / 'two', workdir)
  assert two['metrics'] == pytest.approx(result['metrics'], rel=1e-3)


def test_what_a_mesh_cannot_divide(mesh):
  with mesh(8, 1, 1), pytest.raises(RunError, match=r'batch_size=12 .* try 8 or 16'):
    BatchLayout(12)
  with mesh(1, 1, 8), pytest.raises(RunError, match='num_heads=2 cannot be divided among the 8'):
    Experiment(build())
  with mesh(1, 8, 1), pytest.raises(RunError, match="has 20 'embed' features"):
    Experiment(build(model__width=20))


def test_place_puts_rows_where_they_belong(mesh):
  x = np.arange(16)[:, None] * np.ones(3)
  with mesh(2, 2, 2):
    layout = BatchLayout(16)
    assert layout.rows == list(range(16))
    placed = layout.place({'x': x})['x']
    np.testing.assert_array_equal(placed, x)
    assert placed.addressable_shards[0].data.shape == (4, 3)


def test_evaluation_is_exact_on_a_mesh_that_does_not_divide_the_data(digits, mesh):
  """360 images in batches of 256, 64 and 8: the same numbers, and those of a plain loop."""
  scores = []
  for size in (256, 64, 8):
    with mesh(2, 2, 2):
      cfg = schema.build(config_lib.Config, digits(evals__test__batch_size=size))
      experiment = Experiment(cfg)
      scores.append(experiment.evaluate(experiment.evaluators(), experiment.init())[0])
  assert scores[0]['test/examples'] == 360
  for other in scores[1:]:
    assert other == pytest.approx(scores[0], rel=1e-5)


def test_evaluation_counts_ties_of_an_untrained_model_honestly(digits):
  """All logits are 0 before training: the first class is predicted for every image."""
  experiment = Experiment(schema.build(config_lib.Config, digits()))
  scores = experiment.evaluate(experiment.evaluators(), experiment.init())[0]
  source = experiment.config.data.source.open('test')
  zeros = sum(source[i]['label'] == 0 for i in range(360))
  assert scores['test/top1'] == zeros / 360
  assert scores['test/loss'] == pytest.approx(np.log(10), rel=1e-5)
