"""What training changes from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.nn.sharding import spec
from vit_jax.optim.config import OptimConfig
from vit_jax.optim.schedules import Hyper
from vit_jax.optim.transforms import optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  """Step (int32), model (its own parameter tree), Optax state, moving average (or None)."""

  step: jax.Array
  model: Any
  opt: Any
  ema: Any

  @property
  def eval_model(self) -> Any:
    """What evaluations look at: the moving average where there is one."""
    return self.model if self.ema is None else self.ema


def init_state(model: Any, config: OptimConfig) -> State:
  """The state before the first step."""
  opt = optimizer(config, model, Hyper(*np.zeros(4, np.float32))).init(model)
  ema = jax.tree.map(jnp.copy, model) if config.ema else None
  return State(jnp.int32(0), model, opt, ema)


def train_step(state: State, batch: Any, hyper: Hyper, *, task, config: OptimConfig):
  """One optimizer step.

  Args:
    state: donated by the caller.
    batch: a global batch as `data.pipeline` makes it, on the devices.
    hyper: learning rate and the like, traced; its seed is, with the step, that of augmentation on
      the device.
    task: the objective; see `tasks`.
    config: of the optimizer.

  Returns:
    The new state and a dict of float32 scalars: the task's metrics, averaged over the examples
    that are not masked, grad_norm (before clipping) and skipped.
  """
  rng = jax.random.fold_in(jax.random.key(hyper.seed), state.step)
  augment_rng, model_rng = jax.random.split(rng)
  batch = task.augment(batch, augment_rng)
  examples = jnp.maximum(batch['mask'].sum(), 1.0)

  def loss_fn(model, part, rng):
    sums = task.metrics(model, part, rng)
    return sums['loss'] / examples, sums

  grad_fn = jax.grad(loss_fn, has_aux=True)
  if config.accumulate == 1:
    grad, sums = grad_fn(state.model, batch, model_rng)
  else:

    def add_part(total, item):
      return jax.tree.map(jnp.add, total, grad_fn(state.model, *item)), None

    # Part i takes every accumulate-th example, so that each device keeps its own examples.
    def cut(x):
      shape = (-1, config.accumulate, *x.shape[1:])
      return x.reshape(shape, out_sharding=spec('batch', *(None,) * x.ndim)).swapaxes(0, 1)

    parts = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], parts)
    names = jax.eval_shape(task.metrics, state.model, first, model_rng)
    zeros = jax.tree.map(jnp.zeros_like, state.model), dict.fromkeys(names, jnp.float32(0))
    (grad, sums), _ = jax.lax.scan(
      add_part, zeros, (parts, jax.random.split(model_rng, config.accumulate))
    )

  update, opt = optimizer(config, state.model, hyper).update(grad, state.opt, state.model)
  model = optax.apply_updates(state.model, update)
  ema = state.ema
  if ema is not None:
    # Early on the average covers the steps there have been (as in TF's ExponentialMovingAverage).
    decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, model)
  metrics = {name: value / examples for name, value in sums.items()}
  metrics |= {'grad_norm': optax.tree.norm(grad), 'skipped': (1 - batch['mask']).sum()}
  return State(state.step + 1, model, opt, ema), metrics
