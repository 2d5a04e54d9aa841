"""Hyperparameters that change: as text, by name, in one vector."""

import re

import numpy as np
import pytest

from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.core.schedule import Schedule
from vit_jax.training import config as config_lib
from vit_jax.training import hyper


def steps(duration):
  """Ten steps an epoch."""
  number, unit = re.fullmatch(r'([\d.]+) *(\w*)', duration).groups()
  return int(float(number) * (10 if unit.startswith('epoch') else 1))


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    (0.5, {0: 0.5, 99: 0.5}),
    ('0.5', {0: 0.5, 99: 0.5}),
    # DINO's momentum: final + (base - final) (1 + cos(pi t / T)) / 2.
    ('0.996->1 cosine', {t: 1 - 0.004 * (1 + np.cos(np.pi * t / 100)) / 2 for t in (0, 1, 50, 99)}),
    ('0.04->0.07 linear 30 steps', {0: 0.04, 10: 0.05, 29: 0.069, 30: 0.07, 99: 0.07}),
    ('0 until 1 epoch then 1', {0: 0, 9: 0, 10: 1, 99: 1}),
    ('2->1 poly', {t: 1 + (1 - t / 100) ** 0.9 for t in (0, 1, 50, 99)}),
    ('1e-6->1 linear 2 epochs then 1->0 cosine', {0: 1e-6, 10: 0.5, 20: 1, 60: 0.5, 99: 0.00038}),
    ('3 until 5 steps then 2 until 5 steps then 1', {4: 3, 5: 2, 9: 2, 10: 1}),
  ],
)
def test_a_schedule(text, want):
  schedule = Schedule(text)
  for step, value in want.items():
    assert schedule.at(step, 100, steps) == pytest.approx(value, rel=1e-4, abs=2e-5)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'is not a schedule: write a number'), ('soon', 'is not a schedule'),
    ('1->2', 'is not a schedule'), ('1->2 cosin', 'did you mean cosine'),
    ('1 then 2', 'is followed by another piece'),
    ('0->1 linear 2 weeks', "task.mixing='2 weeks' is not a duration"),
  ],
)  # fmt: skip
def test_what_is_not_a_schedule(text, message):
  with pytest.raises(RunError, match=message):
    Schedule(text).at(0, 9, lambda duration: config_lib.steps(
      duration, batch_size=1, epoch=1, total=9, field='task.mixing'
    ))  # fmt: skip


def built(digits, **changes):
  return schema.build(config_lib.Config, config_lib.to_dict(digits(**changes)))


def test_every_schedule_is_in_the_vector(digits):
  cfg = built(digits, optim__weight_decay='0.04->0.4 cosine')
  assert hyper.names(cfg) == ('optim.lr', 'optim.b1', 'optim.b2', 'optim.weight_decay')
  table = hyper.Table(cfg, steps, total=12, warmup=4, cooldown=0)
  named = table(6).named(hyper.names(cfg))
  assert named['optim.weight_decay'] == np.float32(0.22)
  assert named['optim.b1'] == np.float32(0.9)
  assert table(6).values.dtype == np.float32


def test_lanes_by_the_end_of_a_name(digits):
  cfg = built(digits, lanes={'lr': (1e-3, 1e-2), 'weight_decay': ('0->1 linear', 0.5)})
  first, second = hyper.lanes(cfg)
  assert (first.optim.lr, second.optim.lr) == (1e-3, 1e-2)
  assert first.optim.weight_decay == Schedule('0->1 linear')
  assert second.optim.weight_decay.constant == 0.5
  assert built(digits, lanes={'optim/b1': (0.8,)}).lane_count == 1


def test_points_that_one_program_trains(digits):
  cfg = built(digits)
  program = lambda **point: hyper.program(cfg, point)  # noqa: E731
  assert program(lr=1e-3, seed=1, eps=1e-8, clip=1.0) == program(lr=1, seed=2, eps=1e-6, clip=2.0)
  assert program(clip=0.0) != program(clip=1.0)
  off = built(digits, lanes={'clip': (0, 0), 'eps': (1e-8, 1e-6)})
  assert hyper.names(off)[-1] == 'optim.eps'  # what is off is no argument of the step
  assert hyper.shared(off, hyper.lanes(off)[0]).optim.clip == 0
  assert program(mixup=0.1) != program(mixup=0.2)


@pytest.mark.parametrize(
  ('lanes', 'message'),
  [
    ({'lrr': (1,)}, r'lanes\.lrr is not a hyperparameter: did you mean lr'),
    ({'lr': (1e-3,), 'seed': (0, 1)}, 'the same number of values'),
    ({'lr': ('much',)}, 'must be numbers'), ({'seed': (-1,)}, 'seed=-1'),
    ({'batch_size': (1, 2)}, 'is not a hyperparameter: batch_size is of the run: lanes go through'),
    ({'model/width': (8, 16)}, 'model.width says what the compiled step computes'),
    ({'mixup': (0.1, 0.2)}, 'task.mixup is a constant of the compiled step'),
    ({'ema': (0.0, 0.9)}, 'train the run without optim.ema by itself'),
  ],
)  # fmt: skip
def test_lanes_that_cannot_be(digits, lanes, message):
  with pytest.raises(RunError, match=message):
    hyper.lanes(built(digits, lanes=lanes))
