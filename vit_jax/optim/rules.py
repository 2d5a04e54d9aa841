"""What optimizers make of gradients: updates before learning rate and weight decay.

Each rule has an `init` of parameters, and an `update` of (gradients, state, parameters) that gives
updates and the new state. Whatever needs a whole tensor goes through `tree.per_tensor`, so that
nothing depends on how layers lie.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax.core.errors import RunError
from vit_jax.nn import sharding, tree
from vit_jax.optim import config as config_lib


class Rule(NamedTuple):
  """See above."""

  init: Any
  update: Any


def rule(config: Any, hyper: Mapping[str, Any], eps: Any) -> Rule:
  """The rule of one of `config.OPTIMIZERS`.

  Args:
    config: of the optimizer.
    hyper: scalars by dotted name, may be traced.
    eps: of Adam, a number or a tree with one for each parameter.
  """
  own = {name.removeprefix('optim.'): value for name, value in hyper.items()}
  if isinstance(config, config_lib.Sgd):
    return momentum(own['momentum'], config.nesterov, config.mu_dtype)
  if isinstance(config, config_lib.Adafactor):
    return adafactor(config, own['momentum'])
  adamw = adam(own['b1'], own['b2'], eps, config.mu_dtype)
  return muon(config, own['momentum'], adamw) if isinstance(config, config_lib.Muon) else adamw


def zeros(params: Any, dtype: str = 'float32') -> Any:
  """Of every parameter, laid out like it."""
  return jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params)


def adam(b1: Any, b2: Any, eps: Any, mu_dtype: str = 'float32') -> Rule:
  """As `optax.scale_by_adam`, but with one division for each parameter.

  Optax divides both moments by their bias corrections, which are scalars. The update is a seventh
  of a step of L/16 on TPU, and there not only memory bounds it.
  """

  def update(grad, state, params):
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grad)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grad)
    mean, square = 1 / (1 - b1**count), 1 / (1 - b2**count)
    own = jax.tree.structure(eps) == jax.tree.structure(mu)
    every = eps if own else jax.tree.map(lambda _: eps, mu)
    updates = jax.tree.map(lambda m, v, e: mean * m / (jnp.sqrt(square * v) + e), mu, nu, every)
    mu = jax.tree.map(lambda m: m.astype(mu_dtype), mu)
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return Rule(lambda p: optax.ScaleByAdamState(jnp.int32(0), zeros(p, mu_dtype), zeros(p)), update)


def momentum(decay: Any, nesterov: bool, dtype: str) -> Rule:
  """The decaying sum of gradients, as `optax.trace`."""

  def update(grad, state, params):
    del params
    mu = jax.tree.map(lambda m, g: g + decay * m, state, grad)
    updates = jax.tree.map(lambda m, g: g + decay * m, mu, grad) if nesterov else mu
    return updates, jax.tree.map(lambda m: m.astype(dtype), mu)

  return Rule(lambda params: zeros(params, dtype), update)


class AdafactorState(NamedTuple):
  """Steps; squares as means over rows and columns, or each (one zero for none); momentum."""

  count: Any  # type: ignore  # of a tuple that is a method
  rows: Any
  columns: Any
  each: Any
  mu: Any


def adafactor(config: config_lib.Adafactor, decay: Any) -> Rule:
  """See `config.Adafactor`; as `optax.scale_by_factored_rms` on the tensors of one layer."""
  nothing = lambda p: jnp.zeros((1,), p.dtype)  # noqa: E731

  def init_one(_, p):
    axes = _largest(p.shape, config.smallest)
    if axes is None:
      return nothing(p), nothing(p), jnp.zeros_like(p)
    return jnp.zeros_like(p.mean(axes[1])), jnp.zeros_like(p.mean(axes[0])), nothing(p)

  def init(params):
    rows, columns, each = tree.per_tensor(init_one, params, outputs=3)
    mu = zeros(params, config.mu_dtype)
    return AdafactorState(jnp.int32(0), rows, columns, each, mu)

  def update(grad, state, params):
    del params
    count = state.count + 1
    b2 = jnp.minimum(config.b2_cap, 1 - count.astype(jnp.float32) ** -config.decay_rate)

    def one(_, g, rows, columns, each):
      square, axes = g * g + 1e-30, _largest(g.shape, config.smallest)
      if axes is None:
        each = b2 * each + (1 - b2) * square
        return g * each**-0.5, rows, columns, each
      second, first = axes
      rows = b2 * rows + (1 - b2) * square.mean(first)
      columns = b2 * columns + (1 - b2) * square.mean(second)
      left = second - 1 if second > first else second
      scale = (rows / rows.mean(left, keepdims=True)) ** -0.5
      g = g * jnp.expand_dims(scale, first) * jnp.expand_dims(columns**-0.5, second)
      return g, rows, columns, each

    updates, rows, columns, each = tree.per_tensor(
      one, grad, state.rows, state.columns, state.each, outputs=4
    )
    mu = jax.tree.map(lambda m, u: decay * m + (1 - decay) * u, state.mu, updates)
    kept = jax.tree.map(lambda m: m.astype(config.mu_dtype), mu)
    return mu, AdafactorState(count, rows, columns, each, kept)

  return Rule(init, update)


def _largest(shape: tuple[int, ...], smallest: int) -> tuple[int, int] | None:
  """The axes of the second largest and the largest dimension, if both are to be factored."""
  order = sorted(range(len(shape)), key=lambda axis: shape[axis])
  if len(shape) < 2 or shape[order[-2]] < smallest:
    return None
  return order[-2], order[-1]


class MuonState(NamedTuple):
  """Momentum of matrices, and Adam's state, which has moments for the others alone."""

  mu: Any
  adam: optax.ScaleByAdamState


# Jordan et al. 2024: the slope at zero is as large as can be.
_NEWTON_SCHULZ, _STEPS = (3.4445, -4.7750, 2.0315), 5


def muon(config: config_lib.Muon, decay: Any, adamw: Rule) -> Rule:
  """See `config.Muon`; as `optax.contrib.muon` on the matrices of one layer."""
  matrix = '(.*/)?blocks/.*kernel'
  rest = lambda params: tree.partition(params, (matrix,), 'muon')  # noqa: E731

  def init(params):
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if any(tree.whole(tree.name(path)) != tree.name(path) for path in paths):
      raise RunError('optim.name=muon has no rule for low-rank changes (lora.rank): use adamw')
    if not any(re.fullmatch(matrix, tree.group(path)) for path in paths):
      raise RunError('optim.name=muon: no matrix of a block is trained: use adamw')
    others, matrices = rest(params)
    return MuonState(zeros(matrices, config.mu_dtype), adamw.init(others))

  def update(grad, state, params):
    del params
    others, matrices = rest(grad)
    count = state.adam.count + 1
    mu = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, state.mu, matrices)
    ahead = 1 - decay ** (count + 1), 1 - decay**count

    def one(name, m, g):
      m = decay * m / ahead[0] + (1 - decay) * g / ahead[1]
      return _orthogonal(_as_matrix(name, m), config.rms).reshape(m.shape, out_sharding=_layout(m))

    first = tree.per_tensor(one, mu, matrices)
    second, adam_state = adamw.update(others, state.adam, None)
    mu = jax.tree.map(lambda m: m.astype(config.mu_dtype), mu)
    return tree.merge(first, second), MuonState(mu, adam_state)

  return Rule(init, update)


def _layout(x: jax.Array) -> Any:
  """The layout of an array under a mesh."""
  return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding


def _as_matrix(name: str, x: jax.Array) -> jax.Array:
  """(inputs, outputs), whole on each device: heads are part of what attention gives."""
  x = sharding.whole(x)
  rows = math.prod(x.shape[:-1]) if name.endswith('out/kernel') else x.shape[0]
  return x.reshape(rows, -1)


def _orthogonal(x: jax.Array, rms: float) -> jax.Array:
  """The nearest matrix with singular values near 1, scaled."""
  inputs, outputs = x.shape
  tall = inputs > outputs
  x = x.T if tall else x
  x = x / (jnp.linalg.norm(x) + 1e-8)
  a, b, c = _NEWTON_SCHULZ
  for _ in range(_STEPS):
    square = x @ x.T
    x = a * x + (b * square + c * square @ square) @ x
  scale = rms * math.sqrt(max(x.shape)) if rms else math.sqrt(max(1, outputs / inputs))
  return scale * (x.T if tall else x)
