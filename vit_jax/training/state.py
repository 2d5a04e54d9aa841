"""What training changes from step to step, and the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.nn import tree
from vit_jax.nn.noise import Noise
from vit_jax.nn.sharding import spec
from vit_jax.optim import skipping
from vit_jax.optim.config import OptimConfig
from vit_jax.optim.transforms import optimizer
from vit_jax.tasks.task import Context, average
from vit_jax.training.hyper import Hyper


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  """All that changes.

  Attributes:
    step: int32.
    model: trainable parameters, in the tree of the model; None where one is frozen.
    opt: state of the optimizer.
    ema: moving average of `model`, or None.
    extra: state of the task.
    skipping: what decides which updates are not taken, or None.
  """

  step: jax.Array
  model: Any
  opt: Any
  ema: Any
  extra: Any
  skipping: skipping.Skipping | None = None


def init_state(model: Any, config: OptimConfig, task: Any, key: jax.Array) -> State:
  """The state before the first step, of trainable parameters."""
  opt = optimizer(config, model).init(model)
  ema = jax.tree.map(jnp.copy, model) if config.ema else None
  skips = skipping.start() if config.skip_above else None
  return State(jnp.int32(0), model, opt, ema, task.start(model, key), skips)


def train_step(
  state: State, frozen: Any, batch: Any, hyper: Hyper, *, task: Any, config: OptimConfig,
  names: Sequence[str], sized: Callable[[Any], Any] = lambda model: model,
) -> tuple[State, dict[str, jax.Array]]:  # fmt: skip
  """One step of the optimizer.

  Args:
    state: donated by the caller.
    frozen: parameters that are not trained, in the tree of the model; None where one is.
    batch: a global batch as `data.pipeline` makes it, on the devices.
    hyper: traced; its seed is, with the step, that of augmentation on the device.
    task: the objective; see `tasks.task`.
    config: of the optimizer.
    names: of the values in `hyper`.
    sized: the model at the sizes of this step.

  Returns:
    The new state and a dict of float32 scalars: the sums that the task reports, divided by their
    totals, what else it reports, grad_norm (of what is trained, before clipping) and skipped, or
    images of packed rows; where updates may be skipped, how many have been, and how many just now,
    one after another.
  """
  named = hyper.named(names)
  augment_key, model_key = jax.random.split(
    jax.random.fold_in(jax.random.key(hyper.seed), state.step)
  )
  batch = task.augment(batch, augment_key, named)
  totals = {name: jnp.maximum(total, 1.0) for name, total in task.totals(batch).items()}
  noise = Noise(model_key, examples=len(batch['mask']))
  ctx = Context(state.extra, totals, named, noise, state.step, frozen, sized)
  grad, sums, seen = _gradient(task, state.model, batch, ctx, config.accumulate)
  rates = task.rates(named)
  update, opt = optimizer(config, state.model, named, rates).update(grad, state.opt, state.model)
  model = task.kept(optax.apply_updates(state.model, update))
  ema = state.ema
  if ema is not None:
    decay = config.ema
    if config.ema_warmup:  # as in TF's ExponentialMovingAverage
      decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    ema = average(ema, model, decay)
  extra = task.update(state.extra, model, seen, ctx)
  _same_kind(state.extra, extra, f'{type(task).__name__}.update gives another state than it got')
  metrics = {name: value / totals[total] for name, (value, total) in sums.items()}
  metrics |= task.report(extra, model, seen, ctx)
  metrics['grad_norm'] = optax.tree.norm(grad)
  if batch['mask'].ndim == 1:
    metrics['skipped'] = (1 - batch['mask']).sum()
  else:  # rows have room for more images than there are
    metrics['images'] = batch['mask'].sum()
  new = State(state.step + 1, model, opt, ema, extra, state.skipping)
  if state.skipping is not None:
    skip, skips = skipping.judged(
      state.skipping, state.step, metrics['grad_norm'], metrics['loss'], config.skip_above
    )
    new = jax.tree.map(lambda old, new: jnp.where(skip, old, new), state, new)
    new = dataclasses.replace(new, step=state.step + 1, skipping=skips)
    metrics |= {'skipped_updates': skips.count, 'skipped_in_a_row': skips.row}
  return new, metrics


def _gradient(
  task: Any, model: Any, batch: Any, ctx: Context, count: int
) -> tuple[Any, dict[str, Any], Any]:
  """Gradient of the task's loss, and its other results; the batch is cut into `count` parts."""
  named: dict[str, str] = {}

  def scalar(value, sums, seen):
    """What a loss returned, as `jax.grad` takes it; the names of totals, no arrays, go aside."""
    _check_sums(sums, ctx.totals, type(task).__name__)
    named.update({name: total for name, (_, total) in sums.items()})
    return value, ({name: value for name, (value, _) in sums.items()}, seen)

  def one(part, ctx):
    loss = lambda model: scalar(*task.loss(ctx.whole(model), part, ctx))  # noqa: E731
    grad, (sums, seen) = jax.grad(loss, has_aux=True)(model)
    return grad, sums, seen

  def embed(model, part, number):
    return task.embed(ctx.whole(model), part, _part(ctx, number, count))

  def back(item):
    part, number, wanted = item
    return jax.vjp(lambda model: embed(model, part, number), model)[1](wanted)[0]

  def in_two_passes(items):
    _, z = jax.lax.scan(lambda _, item: (None, embed(model, *item)), None, items)
    if odd := [n for n, x in tree.flatten(z).items() if not jnp.issubdtype(x.dtype, jnp.floating)]:
      raise TypeError(f'{type(task).__name__}.embed must give float arrays; {odd[0]} is not')
    joint = lambda model, z: scalar(*task.joint(ctx.whole(model), z, ctx))  # noqa: E731
    (grad, grad_z), (sums, seen) = jax.grad(joint, (0, 1), has_aux=True)(
      model, jax.tree.map(_joined, z)
    )
    wanted = jax.tree.map(lambda x: _cut(x, count), grad_z)
    return jax.tree.map(jnp.add, grad, _sum(back, (*items, wanted))), sums, seen

  if count == 1:
    grad, sums, seen = one(batch, ctx)
  else:
    # Part i takes every count-th example, so that each device keeps its own examples.
    items = jax.tree.map(lambda x: _cut(x, count), batch), jnp.arange(count)
    if task.coupled:
      grad, sums, seen = in_two_passes(items)
    else:
      grad, sums, seen = _sum(lambda item: one(item[0], _part(ctx, item[1], count)), items)
      if jax.tree.leaves(seen):
        whole_batch = jax.eval_shape(lambda: task.loss(ctx.whole(model), batch, ctx)[2])
        what = f'what {type(task).__name__}.loss gives for update is no sum over the batch'
        _same_kind(whole_batch, seen, f'{what}: a Coupled task may keep examples apart')
  return grad, {name: (value, named[name]) for name, value in sums.items()}, seen


def _check_sums(sums: Any, totals: Any, task: str) -> None:
  """Raises TypeError unless a loss reports sums as `tasks.task` says."""
  for name, value in sums.items():
    if not isinstance(value, tuple) or len(value) != 2 or value[1] not in totals:
      raise TypeError(
        f'{task}: what is reported as {name!r} must be a sum and the name of its total, one of '
        f'{", ".join(totals)}'
      )
  if 'loss' not in sums:
    raise TypeError(f"{task}: among the sums that are reported must be 'loss'")


def _same_kind(one: Any, other: Any, message: str) -> None:
  """Raises TypeError, with a message and names, unless two trees have equal shapes and dtypes."""
  kinds = [
    {name: f'{leaf.dtype}{list(leaf.shape)}' for name, leaf in tree.flatten(each).items()}
    for each in jax.eval_shape(lambda: (one, other))
  ]
  for name in sorted(kinds[0].keys() | kinds[1].keys()):
    first, second = (kind.get(name, 'missing') for kind in kinds)
    if first != second:
      raise TypeError(f'{message}: {name} is {second}, not {first}')


def _sum(function: Any, items: Any) -> Any:
  """The sum of a function of each item along their leading axis."""
  first = jax.tree.map(lambda x: x[0], items)
  zeros = jax.tree.map(
    lambda a: jnp.zeros(a.shape, a.dtype, out_sharding=getattr(a.sharding, 'spec', None)),
    jax.eval_shape(function, first),
  )
  add = lambda total, item: (jax.tree.map(jnp.add, total, function(item)), None)  # noqa: E731
  return jax.lax.scan(add, zeros, items)[0]


def _part(ctx: Context, number: jax.Array, count: int) -> Context:
  """The context of one of `count` parts."""
  return dataclasses.replace(ctx, noise=dataclasses.replace(ctx.noise, part=number, parts=count))


def _cut(x: jax.Array, count: int) -> jax.Array:
  """(batch, ...) -> (count, batch / count, ...)."""
  shape = (-1, count, *x.shape[1:])
  return x.reshape(shape, out_sharding=spec('batch', *(None,) * x.ndim)).swapaxes(0, 1)


def _joined(x: jax.Array) -> jax.Array:
  """The inverse of `_cut`."""
  shape = (-1, *x.shape[2:])
  return x.swapaxes(0, 1).reshape(shape, out_sharding=spec('batch', *(None,) * (x.ndim - 2)))
