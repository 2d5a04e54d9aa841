"""The learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Callable

from vit_jax.core.errors import RunError
from vit_jax.optim.config import FALLING, OptimConfig


def learning_rate(
  step: int, config: OptimConfig, steps: Callable[[str], int], *, total: int, warmup: int,
  cooldown: int,
) -> float:  # fmt: skip
  """The learning rate of a step.

  Neither the first nor the last step has a learning rate of 0, unless `lr_first` is, or what a
  schedule that is written out says.

  Args:
    step: counted from 0.
    config: of the optimizer.
    steps: of a duration in such a schedule.
    total, warmup, cooldown: durations in steps.
  """
  fall = min(1.0, (total - step) / cooldown) if cooldown else 1.0
  if step < warmup:
    if config.lr_first is None:
      return config.lr * ((step + 1) / warmup) * fall
    return (config.lr_first + (config.lr - config.lr_first) * step / warmup) * fall
  body = 1.0
  if config.schedule in FALLING:
    begin = warmup if config.fall_from == 'warmup' else 0
    share = (step - begin) / max(1, total - begin)
    body = 1 - share if config.schedule == 'linear' else 0.5 + 0.5 * math.cos(math.pi * share)
  elif config.schedule == 'rsqrt':
    body = math.sqrt(warmup / max(warmup, step + 1))
  elif config.written:
    body = config.written.at(step, total, steps)
  if config.lr_last:
    return (config.lr_last + (config.lr - config.lr_last) * body) * fall
  return config.lr * body * fall


def check(
  config: OptimConfig, *, total: int, warmup: int, cooldown: int, batch_size: int, devices: int = 1
) -> None:
  """Raises RunError for an impossible schedule or accumulation.

  Args:
    config: of the optimizer.
    total, warmup, cooldown: durations in steps.
    batch_size: of the global batch.
    devices: among which it is divided; they divide it.
  """
  if warmup + cooldown > total:
    raise RunError(
      f'optim.warmup ({warmup} steps) and optim.cooldown ({cooldown}) exceed the total of {total}'
    )
  if config.schedule == 'rsqrt' and not warmup:
    raise RunError('optim.schedule=rsqrt takes its timescale from optim.warmup, which is 0')
  if config.lr_first is not None and not warmup:
    raise RunError(
      f'optim.lr_first={config.lr_first} is where optim.warmup begins, which is 0: leave it out'
    )
  each = batch_size // devices
  if config.accumulate < 1 or each % config.accumulate:
    among = f', of which each of {devices} devices has {each}' if devices > 1 else ''
    fitting = [str(parts) for parts in range(1, each + 1) if each % parts == 0]
    raise RunError(
      f'optim.accumulate={config.accumulate} does not divide batch_size={batch_size}{among}: '
      f'choose it from {", ".join(fitting)}, or a batch_size that is a multiple of '
      f'{max(config.accumulate, 1) * devices}'
    )
