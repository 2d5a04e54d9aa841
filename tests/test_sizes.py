"""Sizes of images and patches that change from step to step, or in evaluation."""

import collections
import math

import jax
import numpy as np
import pytest

import vit_jax
from tests import runs
from tests.conftest import tiers
from tests.test_conformance import assert_same, built, configured, one_device, program_of, stepped
from tests.test_costs import products
from vit_jax.convert.adapt import changed, resized
from vit_jax.core.errors import RunError
from vit_jax.nn.encoder import split_layers
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training.evaluation import evaluate_checkpoint
from vit_jax.training.sizes import SizesConfig

# Of the digits, 8 x 8 pixels in patches of 4.
RANDOM = dict(sizes__images=(8, 16), sizes__patches=(2,))
STAGES = dict(sizes__images=(4, 8, 12), sizes__order='stages')
FEW = dict(
  total='8 steps', batch_size=16, optim__eps=1e-3, optim__warmup='2 steps', log__every='1 step',
  checkpoint__every='2 steps', model__drop_path=0.2,
)  # fmt: skip


def test_the_order_of_sizes():
  """Drawn evenly, of each step for itself; stages of equal length, whatever divides the run."""
  drawn = SizesConfig(images=(96, 128), patches=(8, 16, 32))
  assert drawn.every[:2] == [
    {'image_size': 96, 'patch_size': 8}, {'image_size': 96, 'patch_size': 16}
  ]  # fmt: skip
  counts = collections.Counter(drawn.at(step, 10) for step in range(6000))
  assert all(abs(counts[i] - 1000) < 5 * math.sqrt(1000) for i in range(6)), counts
  assert drawn.at(7, 10) == drawn.at(7, 10**6)
  assert len({tuple(drawn.at(step + at, 1) for step in range(20)) for at in range(50)}) == 50
  for total in (3, 10, 11, 12):
    staged = SizesConfig(images=(96, 128, 160), patches=(8,), order='stages')
    found = [staged.at(step, total) for step in range(total)]
    lengths = [found.count(i) for i in range(3)]
    assert found == sorted(found)
    assert max(lengths) - min(lengths) <= 1
    assert staged.shares(total) == [length / total for length in lengths]
    assert staged.at(total + 5, total) == 2


@pytest.mark.parametrize(
  'options',
  tiers([
    dict(variant='mu/4', posemb='learned', posemb_tokens='class', interpolation='bicubic_aa'),
    dict(variant='mu/4', posemb='factorised', scan=False),
    dict(variant='mu/4', posemb='none', relative_bias='layer', pool='mean', class_token=False),
  ], 0),
)  # fmt: skip
def test_a_model_of_other_sizes(options, monkeypatch):
  """As the same parameters read from a file for these sizes, and as the model by itself."""
  model = vit_jax.create(image_size=(16, 16), num_classes=3, depth=2, width=32, mlp_dim=32,
                         num_heads=2, **options)  # fmt: skip
  rng = np.random.default_rng(0)
  model = jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(x.dtype), model)
  images = rng.normal(size=(2, 24, 24, 3)).astype(np.float32)
  sizes = {'image_size': (24, 24), 'patch_size': 3}
  config = changed(model.config, sizes)

  def gradients(model):
    return jax.grad(lambda model: (resized(model, config)(images) ** 2).sum())(model)

  got = resized(model, config)
  held = resized(split_layers(jax.tree.map(lambda x: x + 0, model)), config)
  if options.get('relative_bias') is None:  # which the model by itself cannot interpolate
    np.testing.assert_allclose(got(images), model(images, patch_size=3), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(held(images), got(images), rtol=1e-4, atol=1e-5)
  # It is linear in the parameters: a small step changes the output as the gradient says.
  step = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), model)
  loss = lambda model: float((resized(model, config)(images) ** 2).sum())  # noqa: E731
  ends = (
    loss(jax.tree.map(lambda x, d, s=sign: x + s * 1e-3 * d, model, step)) for sign in (1, -1)
  )
  want = np.subtract(*ends) / 2e-3
  slope = sum(float((g * d).sum()) for g, d in zip(
    jax.tree.leaves(gradients(model)), jax.tree.leaves(step), strict=True
  ))  # fmt: skip
  assert slope == pytest.approx(want, rel=2e-2)
  assert resized(model, model.config) is model


@pytest.mark.slow
def test_a_step_is_the_same_however_it_is_computed(digits):
  """In parts, unrolled, cut over devices; a lane is the run alone; FLOPs are those of programs."""
  config = digits(**FEW, **RANDOM)
  plain = stepped(config, steps=6)
  kernel = plain[1]['model/embed/proj/kernel']
  assert kernel.shape[:2] == (4, 4)
  assert plain[1]['model/posemb'].shape[1] == 1 + 4
  assert_same(stepped(digits(**FEW, **RANDOM, optim__accumulate=4), steps=6), plain)
  unrolled = digits(**FEW, **RANDOM, model__scan=False, optim__accumulate=2)
  assert_same(stepped(unrolled, '1x4x2', steps=6), plain)
  rates = (1e-3, 1e-2)
  together = stepped(digits(**FEW, **RANDOM, lanes__lr=rates), steps=6)
  alone = stepped(digits(**FEW, **RANDOM, optim__lr=1e-2), steps=6)
  one = ([{n: v[1] for n, v in line.items()} for line in together[0]],
         {n: leaf[1] for n, leaf in together[1].items()})  # fmt: skip
  assert_same(one, alone[:2])
  with one_device():
    experiment = built(config)
    every = []
    for size, side in enumerate((8, 16)):
      fixed = built(digits(**FEW, model__image_size=(side, side), model__patch_size=2))
      every.append(experiment.flops(size=size))
      assert every[size] == fixed.flops()
      here, there = (products(each) for each in (program_of(experiment, size), program_of(fixed)))
      assert there < here < 1.02 * there  # with the resampling
    assert experiment.flops() == pytest.approx(np.mean(every))
    batches = experiment.batches(0)
    for step, batch in zip(range(6), batches, strict=False):
      side = experiment.models[experiment.size(step)].image_size
      assert batch['image'].shape == (16, *side, 1)
      abstract = experiment.abstract_batch(experiment.size(step))
      assert {n: (a.shape, a.dtype) for n, a in abstract.items()} == {
        n: (a.shape, a.dtype) for n, a in batch.items()
      }
    batches.close()


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated_at_other_sizes(digits, tmp_path, capsys):
  """Killed in one stage, resumed in the next; scores are those of the model read at that size."""
  config = digits(**FEW, **STAGES, evals__test__every='4 steps').to_dict()
  plain = config['evals']['test']
  config['evals'] = {'test': plain, 'large': {**plain, 'image_size': 16, 'patch_size': 2}}
  config = config_lib.complete(config)
  result = train(config, str(tmp_path / 'whole'))
  said = capsys.readouterr().out
  assert 'compiling the training step for 3 sizes' in said
  assert 'sizes: 4x4 in patches of 4 (2 tokens) up to step 3, 8x8 in patches of 4 (5' in said
  runs.cut_off(tmp_path / 'cut', config, 'at step 5')
  train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'cut', tmp_path / 'whole')
  model = vit_jax.load(tmp_path / 'whole', image_size=16, patch_size=2)
  vit_jax.save(model, tmp_path / 'large', 'vit_jax')
  config['evals'] = {'test': plain}
  found = evaluate_checkpoint(str(tmp_path / 'large'), config.to_dict())
  metrics = result['metrics']
  assert found['test/loss'] == pytest.approx(metrics['large/loss'], rel=1e-5)
  assert found['test/loss'] != pytest.approx(metrics['test/loss'], rel=1e-5)


@pytest.mark.slow
def test_a_fork_begins_before_sizes_differ(digits, tmp_path):
  """Stages of another number of steps are the same run until the first of them ends."""
  train(digits(**FEW, **STAGES, optim__schedule='wsd'), str(tmp_path / 'trunk'))
  longer = {**FEW, 'total': '12 steps', 'optim__schedule': 'wsd', **STAGES}
  train(digits(**longer), str(tmp_path / 'scratch'))
  fork = digits(**longer, fork=str(tmp_path / 'trunk'))
  with pytest.raises(RunError, match=r'until step 3, but has no checkpoint'):
    train(fork, str(tmp_path / 'fork'))
  kept = dict(optim__schedule='wsd', checkpoint__at=('2 steps',))
  train(digits(**FEW, **STAGES, **kept), str(tmp_path / 'kept'))
  found = train(digits(**longer, fork=str(tmp_path / 'kept')), str(tmp_path / 'fork'))
  assert found['forked']['step'] == 2
  runs.assert_bit_identical(tmp_path / 'fork', tmp_path / 'scratch')


@pytest.mark.slow
def test_two_processes_train_on_the_same_sizes(digits, tmp_path):
  config = digits(**FEW, **RANDOM)
  runs.together(tmp_path / 'two', config, devices=2)
  train(config, str(tmp_path / 'one'))
  runs.assert_close(tmp_path / 'two', tmp_path / 'one')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(sizes__images=(8, 8)), 'sizes.images=.8, 8. must be different'),
    (dict(sizes__images=(8, 10)), r'patch_size=4 does not divide image_size=\(10, 10\)'),
    (dict(sizes__order='rising'), 'unknown sizes.order'),
    (dict(sizes__images=(8, 16), sizes__patches=(1, 2, 4), sizes__order='stages'), 'as many'),
  ],
)
def test_what_is_wrong_is_said(digits, tmp_path, changes, message):
  with pytest.raises(RunError, match=message):
    train(digits(**changes), str(tmp_path / 'run'))


def test_images_that_have_sizes_of_their_own_get_no_other(data_dir):
  message = 'each image of this task has a size of its own'
  with one_device():
    with pytest.raises(RunError, match=message):
      built(configured('packed', data_dir, sizes__images=(8, 16)))
    with pytest.raises(RunError, match=message):
      built(configured('packed', data_dir, evals__test__image_size=16)).evaluators()
