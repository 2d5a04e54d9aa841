"""Schedules, groups by name, and AdamW against Optax's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vit_jax import models
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import encoder, tree
from vit_jax.optim import groups, schedules, transforms
from vit_jax.optim.config import OPTIMIZERS, AdamW
from vit_jax.training import config as config_lib
from vit_jax.training import hyper as hyper_lib


def rates(total=100, warmup=10, cooldown=0, **config):
  config = AdamW(lr=2.0, **config)
  durations = dict(total=total, warmup=warmup, cooldown=cooldown)
  schedules.check(config, **durations, batch_size=1)
  return np.array([schedules.learning_rate(t, config, int, **durations) for t in range(total)])


def test_warmup_is_linear_and_never_zero():
  np.testing.assert_allclose(rates(schedule='wsd')[:12], [*np.arange(1, 11) * 0.2, 2, 2])


def test_cosine():
  lr = rates(schedule='cosine')
  np.testing.assert_allclose(lr[10:], 1 + np.cos(np.pi * np.arange(90) / 90))
  assert lr[-1] > 0


def test_rsqrt_halves_when_the_step_quadruples():
  lr = rates(schedule='rsqrt', cooldown=20)
  np.testing.assert_allclose(lr[39], lr[9] / 2)
  np.testing.assert_allclose(
    lr[80:], 2 * np.sqrt(10 / np.arange(81, 101)) * np.arange(20, 0, -1) / 20
  )


def test_wsd_is_flat_between_warmup_and_cooldown():
  lr = rates(schedule='wsd', cooldown=20)
  np.testing.assert_allclose(lr[10:81], 2)
  np.testing.assert_allclose(lr[80:], np.arange(20, 0, -1) / 10)


def test_linear_falls_to_a_last_rate():
  """Of vision_transformer's `create_learning_rate_schedule`, with its warm-up from 0."""
  lr, share = rates(schedule='linear', lr_last=0.5, lr_first=0.0), np.arange(90) / 90
  np.testing.assert_allclose(lr[:10], 2 * np.arange(10) / 10)
  np.testing.assert_allclose(lr[10:], 0.5 + 1.5 * (1 - share))


def test_cosine_of_timm():
  """`CosineLRScheduler._get_lr` of timm 0.3.2: the warm-up covers the beginning of the fall."""
  lr = rates(lr_first=1e-3, lr_last=0.1, fall_from='start')
  np.testing.assert_allclose(lr[:10], 1e-3 + np.arange(10) * (2 - 1e-3) / 10)
  fall = 0.1 + 0.5 * (2 - 0.1) * (1 + np.cos(np.pi * np.arange(100) / 100))
  np.testing.assert_allclose(lr[10:], fall[10:])


def test_a_schedule_that_is_written_out():
  """`MultiStepLRScheduler._get_lr` of SimMIM: milestones are counted from the first step."""
  lr = rates(schedule='1 until 70 then 0.1 until 20 then 0.01', lr_first=0.5)
  np.testing.assert_allclose(lr[:10], 0.5 + np.arange(10) * (2 - 0.5) / 10)
  milestones = np.searchsorted([70, 90], np.arange(10, 100), side='right')
  np.testing.assert_allclose(lr[10:], 2 * 0.1**milestones)


@pytest.mark.parametrize(
  ('config', 'durations', 'message'),
  [
    (dict(lr_last=3.0), {}, 'lr_last=3.0 must be at least 0 and at most optim.lr=2.0'),
    (dict(lr_first=1e-6), dict(warmup=0), 'where optim.warmup begins, which is 0'),
    (dict(schedule='wsd', lr_last=0.1), {}, 'changes nothing about optim.schedule=wsd'),
    (dict(schedule='rsqrt', fall_from='start'), {}, 'cosine and linear'),
    (dict(fall_from='begin'), {}, 'unknown optim.fall_from'),
    (dict(schedule='cosin'), {}, 'did you mean cosine'),
    (dict(schedule='1 then 0.1'), {}, 'unknown .*; or write a factor on optim.lr'),
    (dict(schedule='1 until 30 then -1'), {}, 'optim.schedule=.* must be at least 0'),
    (dict(schedule='1->0 linear', lr_last=0.1), {}, 'changes nothing about optim.schedule=1->0'),
    (dict(schedule='rsqrt'), dict(warmup=0), 'timescale'),
    ({}, dict(warmup=60, cooldown=50), 'exceed the total'),
    (dict(ema=1.0), {}, 'less than 1'),
  ],
)
def test_impossible_schedules(config, durations, message):
  with pytest.raises(RunError, match=message):
    rates(**durations, **config)


PARAMS = {'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}, 'posemb': jnp.ones(4)}


def test_groups_take_the_first_match():
  factors = groups.groups((('head/kernel', 7.0), ('head/.*', 0.5), ('.*', 1.0)), PARAMS, 'decay')
  assert factors == {'head': {'kernel': 7.0, 'bias': 0.5}, 'posemb': 1.0}


@pytest.mark.parametrize(
  ('entries', 'message'),
  [
    ((('head/.*', 1.0),), 'no entry for the parameter posemb'),
    ((('haed/kernel', 1.0), ('.*', 0.0)), 'head/kernel'),
    ((('kernel', 1.0), ('.*', 0.0)), 'first match of no parameter'),
  ],
)
def test_groups_cover_everything_and_waste_nothing(entries, message):
  with pytest.raises(RunError, match=message):
    groups.groups(entries, PARAMS, 'decay')


@pytest.mark.parametrize('limit', [0.5, 1e3])
def test_adamw_is_optax_adamw(limit):
  config = AdamW(lr=0.1, weight_decay=0.2, b1=0.8, b2=0.95, clip=limit)
  mask = {'head': {'kernel': True, 'bias': False}, 'posemb': False}
  theirs = optax.chain(
    optax.clip_by_global_norm(limit),
    optax.adamw(0.1, b1=0.8, b2=0.95, weight_decay=0.2, mask=mask),
  )
  hyper = {
    'optim.lr': 0.1, 'optim.weight_decay': 0.2, 'optim.b1': 0.8, 'optim.b2': 0.95,
  }  # fmt: skip
  mine = transforms.optimizer(config, PARAMS, hyper)
  a, b = PARAMS, PARAMS
  state_a, state_b = mine.init(a), theirs.init(b)
  for step in range(3):
    grad = jax.tree.map(lambda x, s=step: x * (s + 1) * jnp.arange(x.size).reshape(x.shape), a)
    update, state_a = mine.update(grad, state_a, a)
    a = optax.apply_updates(a, update)
    update, state_b = theirs.update(grad, state_b, b)
    b = optax.apply_updates(b, update)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6)


def test_lr_scale_zero_freezes():
  config = AdamW(lr_scale=(('posemb', 0.0), ('.*', 1.0)))
  hyper = dict.fromkeys(transforms.hyperparameters(config), 0.5)
  tx = transforms.optimizer(config, PARAMS, hyper)
  update, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  assert (update['posemb'] == 0).all()
  assert (update['head']['kernel'] != 0).all()


def test_accumulate_divides_the_batch():
  with pytest.raises(RunError, match='accumulate=3 does not divide batch_size=8'):
    schedules.check(
      dataclasses.replace(AdamW(), accumulate=3), total=9, warmup=1, cooldown=0, batch_size=8
    )


# --- every optimizer, on layers stacked and split, against Optax on one layer ---

SETTINGS = {
  'adamw': dict(mu_dtype='bfloat16'), 'sgd': dict(nesterov=True), 'lamb': {},
  'adafactor': dict(smallest=4, mu_dtype='float32'), 'muon': {},
}  # fmt: skip
HYPER = {'optim.lr': 0.1, 'optim.weight_decay': 0.1, 'optim.b1': 0.9, 'optim.b2': 0.99,
         'optim.momentum': 0.9}  # fmt: skip


def layered(scan):
  """A small model with everything a rule may stumble over."""
  config = ViTConfig(
    'mu/4', image_size=(8, 8), in_channels=1, depth=3, width=8, mlp_dim=16, num_heads=2,
    num_classes=3, scan=scan, registers=1,
  ).resolve()  # fmt: skip
  model = jax.jit(lambda key: models.create(config, nnx.Rngs(key)))(jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: p + jnp.float32(rng.normal(0, 0.1, p.shape)), model)


def trained(name, scan, steps=10, **changes):
  """After some steps on gradients that do not depend on how layers lie."""
  config = OPTIMIZERS[name](**{'lr': 0.1, 'weight_decay': 0.1, **SETTINGS[name], **changes})
  lay = lambda tree: tree if scan else encoder.split_layers(tree)  # noqa: E731
  model = layered(scan)
  state = lay(transforms.optimizer(config, model).init(model))

  @jax.jit
  def step(model, state, grad):
    update, state = transforms.optimizer(config, model, HYPER).update(grad, state, model)
    return optax.apply_updates(model, update), state

  rng, model, like = np.random.default_rng(1), lay(model), model
  for _ in range(steps):
    grad = jax.tree.map(lambda p: jnp.float32(rng.normal(0, 1, p.shape)), like)
    model, state = step(model, state, lay(grad))
  if not scan:
    model, state = encoder.stack_layers(model), encoder.stack_layers(state)
  return tree.flatten(model) | {f'opt/{n}': leaf for n, leaf in tree.flatten(state).items()}


@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    *((name, {}) for name in SETTINGS), ('adamw', dict(clip_by='parameter', clip=0.5)),
    ('adamw', dict(clip_by='part', clip=0.5)), ('adamw', dict(layer_decay=0.5)),
  ],
)  # fmt: skip
def test_layers_stacked_and_split_are_the_same(name, changes):
  stacked, split = (trained(name, scan, **changes) for scan in (True, False))
  assert stacked.keys() == split.keys()
  for key, leaf in stacked.items():
    scale = max(1.0, float(np.abs(np.float32(leaf)).max()))
    np.testing.assert_allclose(
      np.float32(leaf), np.float32(split[key]), atol=1e-6 * scale, rtol=1e-5, err_msg=key
    )


def bv_decay(step, exponent):
  return jnp.minimum(0.999, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** (-exponent))


REFERENCES = {
  'sgd': (dict(nesterov=True), lambda: optax.trace(0.9, nesterov=True)),
  'adafactor': (dict(smallest=4, mu_dtype='float32'), lambda: optax.chain(
    optax.scale_by_factored_rms(
      decay_rate=0.8, min_dim_size_to_factor=4, epsilon=1e-30, decay_rate_fn=bv_decay
    ),
    optax.ema(0.9, debias=False),
  )),
  'lamb': (dict(eps=1e-6), lambda: optax.chain(
    optax.scale_by_adam(0.9, 0.99, eps=1e-6), optax.add_decayed_weights(0.1),
    optax.scale_by_trust_ratio(),
  )),
  'muon': (dict(rms=0.2), lambda: optax.chain(
    optax.contrib.scale_by_muon(
      beta=0.9, weight_dimension_numbers=optax.contrib.MuonDimensionNumbers()
    ),
  )),
  'adamw': (dict(mu_dtype='bfloat16'), lambda: optax.scale_by_adam(
    0.9, 0.99, eps=1e-8, mu_dtype='bfloat16'
  )),
}  # fmt: skip


@pytest.mark.parametrize('name', REFERENCES)
@pytest.mark.parametrize('shape', [(6, 10), (12, 5)])
def test_one_layer_is_as_in_optax(name, shape):
  changes, reference = REFERENCES[name]
  config = OPTIMIZERS[name](**{'clip': 0.0, **changes})
  hyper = {**HYPER, 'optim.lr': 1.0, 'optim.weight_decay': 0.1 if name == 'lamb' else 0.0}
  rng = np.random.default_rng(2)
  inside = lambda kernel: {'blocks': {'0': {'kernel': kernel}}}  # noqa: E731
  kernel = jnp.float32(rng.normal(size=shape))
  tx, theirs = transforms.optimizer(config, inside(kernel), hyper), reference()
  state, other = tx.init(inside(kernel)), theirs.init(kernel)
  scale = 0.2 * np.sqrt(max(shape)) if name == 'muon' else 1.0  # Liu et al. 2025, equation 4
  for _ in range(4):
    grad = jnp.float32(rng.normal(size=shape))
    update, state = tx.update(inside(grad), state, inside(kernel))
    want, other = theirs.update(grad, other, kernel)
    np.testing.assert_allclose(
      update['blocks']['0']['kernel'], -scale * want, rtol=2e-5, atol=2e-6, err_msg=name
    )


def test_heads_are_part_of_what_attention_gives():
  """Muon sees queries as (width, heads * size) and outputs as (heads * size, width)."""
  rng = np.random.default_rng(3)
  for name, shape, matrix in (('query', (8, 2, 4), (8, 8)), ('out', (2, 4, 6), (8, 6))):
    config = OPTIMIZERS['muon'](clip=0.0)
    params = {'blocks': {'0': {name: {'kernel': jnp.zeros(shape)}}}}
    grad = {'blocks': {'0': {name: {'kernel': jnp.float32(rng.normal(size=shape))}}}}
    tx = transforms.optimizer(config, params, {**HYPER, 'optim.lr': 1.0})
    update, _ = tx.update(grad, tx.init(params), params)
    found = np.asarray(update['blocks']['0'][name]['kernel']).reshape(matrix)
    sizes = np.linalg.svd(found, compute_uv=False) / (0.2 * np.sqrt(max(matrix)))
    assert 0.3 < sizes.min() <= sizes.max() < 1.3


def test_mup_is_refused_with_anything_but_adam():
  config = ViTConfig('mu/4', image_size=(8, 8), width=16, mup_width=8, num_classes=2).resolve()
  model = jax.eval_shape(lambda key: models.create(config, nnx.Rngs(key)), jax.random.key(0))
  with pytest.raises(RunError, match='rules for Adam'):
    transforms.optimizer(OPTIMIZERS['sgd'](), model)


def test_layer_decay_counts_from_the_output():
  """He et al. 2022 and BEiT: patches d^(L+1), block i d^(L-i), the last norm and the head 1."""
  model = layered(True)
  ones = jax.tree.map(jnp.ones_like, model)
  found = tree.flatten(transforms._by_layer(ones, 0.5))
  assert float(found['embed/proj/kernel'].max()) == float(found['registers'].max()) == 0.5**4
  np.testing.assert_allclose(found['encoder/blocks/mlp/up/bias'][:, 0], [0.5**3, 0.5**2, 0.5])
  assert float(found['head/kernel'].max()) == float(found['encoder/norm/scale'].max()) == 1


def test_layer_decay_of_towers_is_by_their_whole_names():
  tree_of = lambda depth: {'encoder': {'blocks': {'w': jnp.ones((depth, 2))}}}  # noqa: E731
  ones = {'eye': tree_of(3), 'eye_bridge': {'kernel': jnp.ones(2)}, 'ear': tree_of(1)}
  found = tree.flatten(transforms._by_layer(ones, 0.5))
  np.testing.assert_allclose(found['eye/encoder/blocks/w'][:, 0], [0.5**3, 0.5**2, 0.5])
  np.testing.assert_allclose(found['ear/encoder/blocks/w'][:, 0], [0.5])
  np.testing.assert_array_equal(found['eye_bridge/kernel'], 1)


def test_weight_decay_of_big_vision(digits):
  """p -= s (lr u + wd p), with s the share of the peak: 1e-4 at 1e-3 is our 0.1."""
  cfg = schema.build(config_lib.Config, config_lib.to_dict(digits(
    optim__decay_with='schedule', optim__lr=1e-3, optim__weight_decay=1e-4,
  )))  # fmt: skip
  table = hyper_lib.Table(cfg, int, total=12, warmup=4, cooldown=0)
  named = table(5).named(hyper_lib.names(cfg))
  assert named['optim.weight_decay'] == pytest.approx(0.1)
