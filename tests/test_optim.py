"""Schedules, groups by name, and AdamW against Optax's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.core.errors import RunError
from vit_jax.optim import groups, schedules, transforms
from vit_jax.optim.config import OptimConfig


def rates(total=100, warmup=10, cooldown=0, **config):
  config = OptimConfig(lr=2.0, **config)
  durations = dict(total=total, warmup=warmup, cooldown=cooldown)
  schedules.check(config, **durations, batch_size=1)
  return np.array([schedules.learning_rate(t, config, **durations) for t in range(total)])


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


@pytest.mark.parametrize(
  ('config', 'durations', 'message'),
  [
    (dict(schedule='cosin'), {}, 'did you mean cosine'),
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
  config = OptimConfig(lr=0.1, weight_decay=0.2, b1=0.8, b2=0.95, clip=limit)
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
  config = OptimConfig(lr_scale=(('posemb', 0.0), ('.*', 1.0)))
  tx = transforms.optimizer(config, PARAMS, {**transforms.NONE, 'optim.lr': 0.1})
  update, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  assert (update['posemb'] == 0).all()
  assert (update['head']['kernel'] != 0).all()


def test_accumulate_divides_the_batch():
  with pytest.raises(RunError, match='accumulate=3 does not divide batch_size=8'):
    schedules.check(
      dataclasses.replace(OptimConfig(), accumulate=3), total=9, warmup=1, cooldown=0, batch_size=8
    )
