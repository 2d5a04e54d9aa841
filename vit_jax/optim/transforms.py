"""AdamW, written as the Optax chain of one step."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.nn import tree
from vit_jax.optim import mup
from vit_jax.optim.config import OptimConfig
from vit_jax.optim.groups import groups

# For the structure of the state alone, which does not depend on them.
NONE: dict[str, Any] = dict.fromkeys(
  ('optim.lr', 'optim.weight_decay', 'optim.b1', 'optim.b2'), 0.0
)


def optimizer(
  config: OptimConfig, params: Any, hyper: Mapping[str, Any] = NONE
) -> optax.GradientTransformation:
  """The Optax chain of one step.

  Args:
    config: of the optimizer.
    params: a tree of parameters; that of a model with `mup` has their factors applied.
    hyper: by dotted name, may be traced; the state does not depend on them.
  """
  lr, weight_decay, b1, b2 = (hyper[name] for name in NONE)
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
    add = lambda u, p, d: u + weight_decay * d * p if d else u  # noqa: E731
    return jax.tree.map(add, updates, params, decay)

  return optax.chain(
    optax.stateless(lambda updates, _: clip(updates, config.clip)),
    adam(b1, b2, eps),
    optax.stateless(add_decay),
    optax.stateless(lambda u, _: jax.tree.map(lambda x, s: -lr * s * x, u, lr_scale)),
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
