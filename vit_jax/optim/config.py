"""What a run says of its optimizer. Plain Python."""

from __future__ import annotations

import dataclasses
import math

from vit_jax.core.errors import RunError, suggest
from vit_jax.core.schedule import Schedule

SCHEDULES = ('cosine', 'rsqrt', 'wsd')
Groups = tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW (Loshchilov & Hutter 2019): p -= lr * (adam(grad) + weight_decay * p).

  Attributes:
    lr: peak learning rate.
    weight_decay: multiplied by the scheduled learning rate.
    b1, b2, eps: of Adam.
    clip: largest global norm of the gradient; 0 does not clip.
    schedule: after a linear warm-up, 'cosine' decays to 0 at the end of the run (Loshchilov &
      Hutter 2017), 'rsqrt' with the inverse square root of the step, the warm-up being its
      timescale (Zhai et al. 2022, section 3.5), 'wsd' stays at the peak (warmup-stable-decay).
    warmup: duration of the linear rise.
    cooldown: duration of the linear fall to 0 at the end, on top of any schedule.
    accumulate: batches are cut into this many equal parts, one after another, to save memory.
    ema: decay per step of the moving average of the parameters that is evaluated; 0 for none.
    decay: factors on weight_decay by parameter name. Each entry is a regular expression that must
      match the whole name and a factor; the first match counts, every parameter needs one and
      every entry must match something.
    lr_scale: factors on the learning rate, likewise; 0 freezes.
  """

  lr: float = 1e-3
  weight_decay: Schedule = Schedule(1e-4)
  b1: Schedule = Schedule(0.9)
  b2: Schedule = Schedule(0.999)
  eps: float = 1e-8
  clip: float = 1.0
  schedule: str = 'cosine'
  warmup: str = '5%'
  cooldown: str = '0'
  accumulate: int = 1
  ema: float = 0.0
  decay: Groups = (('.*kernel', 1.0), ('.*', 0.0))
  lr_scale: Groups = (('.*', 1.0),)

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise RunError(
        f'unknown optim.schedule {self.schedule!r}: {suggest(self.schedule, SCHEDULES)}'
      )
    for name in ('lr', 'eps', 'clip'):
      if not 0 <= getattr(self, name) < float('inf'):
        raise RunError(f'optim.{name}={getattr(self, name)} must be at least 0')
    for name, below in (('weight_decay', math.inf), ('b1', 1), ('b2', 1)):
      schedule = Schedule.of(getattr(self, name))
      schedule.check(f'optim.{name}', below=below)
      object.__setattr__(self, name, schedule)
    if not 0 <= self.ema < 1:
      raise RunError(f'optim.ema={self.ema} must be at least 0 and less than 1')
