"""AdamW, its schedules, and the one regular-expression language for groups of parameters."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import mup, tree
from vit_jax.errors import RunError, suggest

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
  weight_decay: float = 1e-4
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip: float = 1.0
  schedule: str = 'cosine'
  warmup: str = '5%'
  cooldown: str = '0'
  accumulate: int = 1
  ema: float = 0.0
  decay: Groups = (('.*kernel', 1.0), ('.*', 0.0))
  lr_scale: Groups = (('.*', 1.0),)


class Hyper(NamedTuple):
  """What may differ from step to step or run to run: scalar arguments of the compiled step.

  All are float32 but for the seed, uint32.
  """

  lr: Any
  weight_decay: Any
  b1: Any
  b2: Any
  seed: Any = np.uint32(0)


def learning_rate(
  step: int, config: OptimConfig, *, total: int, warmup: int, cooldown: int
) -> float:
  """The learning rate of step `step`, counted from 0; durations in steps.

  Neither the first nor the last step has a learning rate of 0.
  """
  rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
  fall = min(1.0, (total - step) / cooldown) if cooldown else 1.0
  body = 1.0
  if config.schedule == 'cosine' and step >= warmup:
    body = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, total - warmup))
  elif config.schedule == 'rsqrt':
    body = math.sqrt(warmup / max(warmup, step + 1))
  return config.lr * rise * body * fall


def check(config: OptimConfig, *, total: int, warmup: int, cooldown: int, batch_size: int) -> None:
  """Raises RunError for an impossible schedule, accumulation or moving average."""
  if config.schedule not in SCHEDULES:
    raise RunError(
      f'unknown optim.schedule {config.schedule!r}: {suggest(config.schedule, SCHEDULES)}'
    )
  if warmup + cooldown > total:
    raise RunError(
      f'optim.warmup ({warmup} steps) and optim.cooldown ({cooldown}) exceed the total of {total}'
    )
  if config.schedule == 'rsqrt' and not warmup:
    raise RunError('optim.schedule=rsqrt takes its timescale from optim.warmup, which is 0')
  if not 0 <= config.ema < 1:
    raise RunError(f'optim.ema={config.ema} must be at least 0 and less than 1')
  if config.accumulate < 1 or batch_size % config.accumulate:
    raise RunError(f'optim.accumulate={config.accumulate} does not divide batch_size={batch_size}')


def hyper(step: int, config: OptimConfig, *, seed: int, **durations: int) -> Hyper:
  """The arguments of step `step` of a run with this seed; `durations` as for `learning_rate`."""
  lr = learning_rate(step, config, **durations)
  lr, decay, b1, b2 = (np.float32(x) for x in (lr, config.weight_decay, config.b1, config.b2))
  return Hyper(lr, decay, b1, b2, np.uint32(seed))


def optimizer(config: OptimConfig, params: Any, hyper: Hyper) -> optax.GradientTransformation:
  """The Optax chain of one step.

  Args:
    config: of the optimizer.
    params: a tree of parameters; that of a model with `mup` has their factors applied.
    hyper: may be traced; the state does not depend on it.
  """
  decay = groups(config.decay, params, 'decay')
  lr_scale = groups(config.lr_scale, params, 'lr_scale')
  eps: Any = config.eps
  model = getattr(params, 'config', None)
  if getattr(model, 'mup_width', 0) or getattr(model, 'mup_depth', 0):
    own = jax.tree_util.tree_map_with_path(
      lambda path, _: mup.factors(model, tree.group(path)), params
    )
    pick = lambda field: jax.tree.map(lambda _, f: getattr(f, field), params, own)  # noqa: E731
    decay, lr_scale = (
      jax.tree.map(operator.mul, ours, pick(field))
      for ours, field in ((decay, 'decay'), (lr_scale, 'lr'))
    )
    eps = jax.tree.map(lambda factor: config.eps * factor, pick('eps'))

  def add_decay(updates, params):
    add = lambda u, p, d: u + hyper.weight_decay * d * p if d else u  # noqa: E731
    return jax.tree.map(add, updates, params, decay)

  return optax.chain(
    optax.stateless(lambda updates, _: clip(updates, config.clip)),
    adam(hyper.b1, hyper.b2, eps),
    optax.stateless(add_decay),
    optax.stateless(lambda u, _: jax.tree.map(lambda x, s: -hyper.lr * s * x, u, lr_scale)),
  )


def clip(updates: Any, limit: float) -> Any:
  """`updates`, scaled down to a global norm of `limit` if theirs is larger (Pascanu et al. 2013).

  As `optax.clip_by_global_norm`, with one multiplication where that divides every number; a limit
  of 0 does nothing.
  """
  if not limit:
    return updates
  scale = jnp.minimum(1.0, limit / optax.tree.norm(updates))
  return jax.tree.map(lambda u: u * scale, updates)


def adam(b1: Any, b2: Any, eps: Any) -> optax.GradientTransformation:
  """As `optax.scale_by_adam` and with its state, but with one division for each parameter.

  `eps` may be a tree with one for each.

  Optax divides both moments by their bias corrections, which are scalars. The update is a seventh
  of a step of L/16 on TPU, and there not only memory bounds it.
  """
  zeros = lambda params: jax.tree.map(jnp.zeros_like, params)  # noqa: E731

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
    mean, square = 1 / (1 - b1**count), 1 / (1 - b2**count)
    every = jax.tree.map(lambda _: eps, mu) if isinstance(eps, float) else eps
    updates = jax.tree.map(lambda m, v, e: mean * m / (jnp.sqrt(square * v) + e), mu, nu, every)
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(
    lambda params: optax.ScaleByAdamState(jnp.int32(0), zeros(params), zeros(params)), update
  )


def groups(entries: Groups, params: Any, field: str) -> Any:
  """The factor of every parameter: a tree of floats like `params`.

  Raises:
    RunError: for a parameter that no entry matches, or an entry that matches none.
  """
  used = set()

  def factor(path, _):
    name = tree.group(path)
    for pattern, value in entries:
      if re.fullmatch(pattern, name):
        used.add(pattern)
        return float(value)
    raise RunError(f'optim.{field} has no entry for the parameter {name}')

  factors = jax.tree_util.tree_map_with_path(factor, params)
  for pattern, _ in entries:
    # A catch-all at the end may be left with nothing to catch.
    if pattern not in used and pattern != '.*':
      names = tree.flatten(params)
      raise RunError(f'optim.{field}: {pattern!r} is the first match of no parameter: '
                     f'{suggest(pattern, names)}')  # fmt: skip
  return factors
