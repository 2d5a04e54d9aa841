"""What a run says of its optimizer. Plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from vit_jax.core.errors import RunError, suggest
from vit_jax.core.schedule import Schedule

SCHEDULES = ('cosine', 'linear', 'rsqrt', 'wsd')
FALLING = ('cosine', 'linear')  # from the peak to a last learning rate
FALLS = ('warmup', 'start')
CLIPS = ('global', 'part', 'parameter')
DECAYS = ('lr', 'schedule')
DTYPES = ('float32', 'bfloat16')
WINDOW = 128  # steps, of which the median is the usual gradient norm or loss
Groups = tuple[tuple[str, float], ...]
UNSET: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
  """What all optimizers have: p -= lr * (update + weight_decay * p).

  Attributes:
    lr: peak learning rate.
    weight_decay: decoupled (Loshchilov & Hutter 2019); see `decay_with`.
    decay_with: 'lr' multiplies weight_decay by the learning rate, as in AdamW, PyTorch and timm;
      'schedule' only by its share of the peak, as in big_vision: its 1e-4 with a learning rate of
      1e-3 is 0.1 with 'lr'.
    clip: largest norm of the gradient; 0 does not clip.
    clip_by: norm of what: 'global', of all; 'part', of everything whose name has the same
      beginning, 'image/' or 'encoder/'; 'parameter', of each parameter of each layer.
    schedule: after a linear warm-up, 'cosine' falls to lr_last at the end of the run (Loshchilov &
      Hutter 2017), and so does 'linear', evenly; 'rsqrt' falls with the inverse square root of the
      step, the warm-up being its timescale (Zhai et al. 2022, section 3.5), 'wsd' stays at the peak
      (warmup-stable-decay). Or a factor on the peak, as it changes from the beginning of the run:
      '1 until 700 epochs then 0.1'.
    warmup: duration of the linear rise.
    cooldown: duration of the linear fall to 0 at the end, on top of any schedule.
    lr_first: learning rate of the first step, from which it rises to that of step number `warmup`:
      0 in big_vision, 1e-6 in DeiT. Unset: it rises from 0 before the first step, one step earlier.
    lr_last: learning rate that 'cosine' and 'linear' would have behind the last step.
    fall_from: where their fall begins: 'warmup', at its end, as in big_vision; 'start', at the
      first step, as in timm, so that the warm-up ends below lr.
    skip_above: an update whose gradient has a norm of more than this many times the median of the
      last 128 is not taken, nor is one that is not finite; 0 takes all. See `optim.skipping`.
    accumulate: batches are cut into this many equal parts, one after another, to save memory.
    ema: decay per step of the moving average of the parameters that is evaluated; 0 for none.
    ema_warmup: whether it is less at first, (1 + step) / (10 + step), so that the average covers
      the steps there have been; without, as in timm, initial parameters stay in it for long.
    decay: factors on weight_decay by parameter name. Each entry is a regular expression that must
      match the whole name and a factor; the first match counts, every parameter needs one and
      every entry must match something.
    lr_scale: factors on the learning rate, likewise. See task.frozen for what is not to be trained.
    layer_decay: factor on the learning rate for every layer further from the output: layer i of
      an encoder of depth L has layer_decay^(L - i), what precedes it layer_decay^(L + 1)
      (Clark et al. 2020; Bao et al. 2021).
  """

  lr: float = 1e-3
  weight_decay: Schedule = Schedule(1e-4)
  decay_with: str = 'lr'
  clip: float = 1.0
  clip_by: str = 'global'
  schedule: str = 'cosine'
  warmup: str = '5%'
  cooldown: str = '0'
  lr_first: float = UNSET
  lr_last: float = 0.0
  fall_from: str = 'warmup'
  skip_above: float = 0.0
  accumulate: int = 1
  ema: float = 0.0
  ema_warmup: bool = True
  decay: Groups = (('.*kernel', 1.0), ('.*', 0.0))
  lr_scale: Groups = (('.*', 1.0),)
  layer_decay: float = 1.0
  # Fields with a largest value, which they must be below.
  _BELOW_ONE: ClassVar[tuple[str, ...]] = ()
  # Constants that lanes may differ in: nothing but the arithmetic of a step depends on them.
  traced: ClassVar[tuple[str, ...]] = ('clip', 'ema', 'skip_above')

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      self._check_written()
    for name, choices in (
      ('clip_by', CLIPS), ('decay_with', DECAYS), ('mu_dtype', DTYPES), ('fall_from', FALLS)
    ):  # fmt: skip
      value = getattr(self, name, choices[0])
      if value not in choices:
        raise RunError(f'unknown optim.{name} {value!r}: {suggest(value, choices)}')
    for name in ('lr', 'eps', 'clip'):
      if not 0 <= getattr(self, name, 0.0) < math.inf:
        raise RunError(f'optim.{name}={getattr(self, name)} must be at least 0')
    self._check_ends()
    for name, below in (('weight_decay', math.inf), *((n, 1) for n in self._BELOW_ONE)):
      schedule = Schedule.of(getattr(self, name))
      schedule.check(f'optim.{name}', below=below)
      object.__setattr__(self, name, schedule)
    if self.skip_above and not 1 < self.skip_above < math.inf:
      raise RunError(
        f'optim.skip_above={self.skip_above} must be more than 1, or 0 to take every update'
      )
    if not 0 <= self.ema < 1:
      raise RunError(f'optim.ema={self.ema} must be at least 0 and less than 1')
    if not 0 < self.layer_decay <= 1:
      raise RunError(f'optim.layer_decay={self.layer_decay} must be more than 0 and at most 1')

  @property
  def written(self) -> Schedule | None:
    """The factor on the peak, where `schedule` is none of the names."""
    return None if self.schedule in SCHEDULES else Schedule(self.schedule)

  def _check_written(self) -> None:
    """Raises RunError for a schedule that is neither a name nor a factor."""
    try:
      factor = Schedule(self.schedule)
    except RunError:
      raise RunError(
        f'unknown optim.schedule {self.schedule!r}: {suggest(self.schedule, SCHEDULES)}; or write '
        "a factor on optim.lr as it changes, '1 until 30 epochs then 0.1'"
      ) from None
    factor.check('optim.schedule')

  def _check_ends(self) -> None:
    """Raises RunError for learning rates of the first and the last step that cannot be."""
    for name in ('lr_first', 'lr_last'):
      if not 0 <= (getattr(self, name) or 0.0) <= self.lr:
        raise RunError(
          f'optim.{name}={getattr(self, name)} must be at least 0 and at most optim.lr={self.lr}'
        )
    for name, default in (('lr_last', 0.0), ('fall_from', 'warmup')):
      if self.schedule not in FALLING and (value := getattr(self, name)) != default:
        raise RunError(
          f'optim.{name}={value} is of the schedules {" and ".join(FALLING)}, and changes nothing '
          f'about optim.schedule={self.schedule}: leave it out'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(OptimConfig):
  """AdamW (Loshchilov & Hutter 2019).

  Attributes:
    b1, b2, eps: of Adam.
    mu_dtype: of the first moment, which 'bfloat16' halves.
  """

  b1: Schedule = Schedule(0.9)
  b2: Schedule = Schedule(0.999)
  eps: float = 1e-8
  mu_dtype: str = 'float32'
  _BELOW_ONE: ClassVar[tuple[str, ...]] = ('b1', 'b2')
  traced: ClassVar[tuple[str, ...]] = (*OptimConfig.traced, 'eps')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd(OptimConfig):
  """Stochastic gradient descent with momentum, as the ViT paper fine-tunes.

  Attributes:
    momentum: of the sum of gradients; 0 for none.
    nesterov: whether to look ahead (Sutskever et al. 2013).
    mu_dtype: of the momentum; the ViT paper's is bfloat16.
  """

  momentum: Schedule = Schedule(0.9)
  nesterov: bool = False
  mu_dtype: str = 'float32'
  _BELOW_ONE: ClassVar[tuple[str, ...]] = ('momentum',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lamb(AdamW):
  """LAMB (You et al. 2020) as in timm: AdamW's update, scaled to the norm of each parameter.

  What is not decayed is not scaled. DeiT-III clips at 1 as well.
  """

  eps: float = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(OptimConfig):
  """Adafactor as big_vision has it (Shazeer & Stern 2018; Zhai et al. 2022, section 3.4).

  Second moments of the two largest dimensions are kept as their means over rows and columns.

  Attributes:
    momentum: of the updates.
    mu_dtype: of the momentum.
    decay_rate: the second moments of step t, from 1, decay by 1 - t^-decay_rate.
    b2_cap: largest decay.
    smallest: dimensions of fewer entries are not factored.
  """

  momentum: Schedule = Schedule(0.9)
  mu_dtype: str = 'bfloat16'
  decay_rate: float = 0.8
  b2_cap: float = 0.999
  smallest: int = 32
  _BELOW_ONE: ClassVar[tuple[str, ...]] = ('momentum',)
  traced: ClassVar[tuple[str, ...]] = (*OptimConfig.traced, 'decay_rate', 'b2_cap')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
  """Muon (Jordan et al. 2024): the momentum of each matrix of the blocks, orthogonalised.

  Everything else, and matrices outside of blocks, learn by AdamW with the same learning rate.

  Attributes:
    momentum: of the gradients of matrices, with Nesterov's look ahead.
    rms: root mean square of the updates (Liu et al. 2025; 0.2 makes AdamW's learning rates fit), or
      0 for a scale of sqrt(max(1, outputs / inputs)).
  """

  momentum: Schedule = Schedule(0.95)
  rms: float = 0.2
  _BELOW_ONE: ClassVar[tuple[str, ...]] = ('b1', 'b2', 'momentum')


OPTIMIZERS = {'adamw': AdamW, 'sgd': Sgd, 'lamb': Lamb, 'adafactor': Adafactor, 'muon': Muon}
