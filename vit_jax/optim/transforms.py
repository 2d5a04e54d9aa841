"""Optimizers: gradients to updates, with clipping, weight decay and learning rates."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.optim import config as config_lib
from vit_jax.optim import mup, rules
from vit_jax.optim.config import OptimConfig
from vit_jax.optim.groups import groups


def hyperparameters(config: OptimConfig) -> tuple[str, ...]:
  """Dotted names of what `optimizer` wants to be told at every step."""
  return ('optim.lr', *(f'optim.{name}' for name in schema.scheduled(config)))


def optimizer(
  config: OptimConfig,
  params: Any,
  hyper: Mapping[str, Any] | None = None,
  rates: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
  """The optimizer of one step.

  Args:
    config: of the optimizer.
    params: a tree of parameters; that of a model with `mup` has their factors applied.
    hyper: by dotted name, may be traced; the state does not depend on them, and without them only
      its structure can be asked for.
    rates: factors on the learning rate besides those of the configuration, of `Task.rates`.

  Raises:
    RunError: for groups that do not fit the parameters, or muP with anything but Adam.
  """
  hyper = hyper or dict.fromkeys(hyperparameters(config), 0.0)
  lr, weight_decay = hyper['optim.lr'], hyper['optim.weight_decay']
  decay = groups(config.decay, params, 'decay')
  scale = groups(config.lr_scale, params, 'lr_scale')
  eps: Any = getattr(config, 'eps', 0.0)
  own = mup.of_parameters(params)
  if own is not None:
    if type(config) is not config_lib.AdamW:
      raise RunError(
        'model.mup_width and model.mup_depth are rules for Adam: use optim.name=adamw with them'
      )
    pick = lambda field: jax.tree.map(lambda _, f: getattr(f, field), params, own)  # noqa: E731
    decay, scale = (
      jax.tree.map(operator.mul, ours, pick(field))
      for ours, field in ((decay, 'decay'), (scale, 'lr'))
    )
    eps = jax.tree.map(lambda factor: eps * factor, pick('eps'))
  for pattern, rate in (rates or {}).items():
    scale = jax.tree_util.tree_map_with_path(
      lambda path, s, p=pattern, r=rate: s * r if re.fullmatch(p, tree.name(path)) else s, scale
    )
  rule = rules.rule(config, hyper, eps)

  def update(updates, state, params=None):
    updates, state = rule.update(clip(updates, config.clip, config.clip_by), state, params)
    add = lambda u, p, d: u + weight_decay * d * p if d else u  # noqa: E731
    updates = jax.tree.map(add, updates, params, decay)
    if isinstance(config, config_lib.Lamb):
      updates = _trusted(updates, params, decay)
    if config.layer_decay < 1:
      updates = _by_layer(updates, config.layer_decay)
    return jax.tree.map(lambda u, s: -lr * s * u, updates, scale), state

  return optax.GradientTransformation(rule.init, update)


def clip(updates: Any, limit: float, by: str = 'global') -> Any:
  """`updates`, scaled down to a norm of `limit` if theirs is larger (Pascanu et al. 2013).

  As `optax.clip_by_global_norm`, with one multiplication where that divides every number; a limit
  of 0 does nothing. `by` is one of `config.CLIPS`.
  """
  if isinstance(limit, float | int) and not limit:
    return updates
  factor = lambda norm: jnp.minimum(1.0, limit / norm)  # noqa: E731
  if by == 'global':
    scale = factor(optax.tree.norm(updates))
    return jax.tree.map(lambda u: u * scale, updates)
  if by == 'parameter':
    return tree.per_tensor(lambda _, u: u * factor(jnp.sqrt(jnp.square(u).sum())), updates)
  parts: dict[str, Any] = {}
  for name, leaf in tree.flatten(updates).items():
    parts[name.split('/')[0]] = parts.get(name.split('/')[0], 0.0) + jnp.square(leaf).sum()
  scales = {part: factor(jnp.sqrt(square)) for part, square in parts.items()}
  return jax.tree_util.tree_map_with_path(
    lambda path, u: u * scales[tree.name(path).split('/')[0]], updates
  )


def _trusted(updates: Any, params: Any, decay: Any) -> Any:
  """Updates of what is decayed, as long as the parameters themselves (You et al. 2020)."""
  leaves = jax.tree_util.tree_leaves_with_path(decay)
  decayed = {tree.group(path) for path, factor in leaves if factor}

  def one(name, u, p):
    if name not in decayed:
      return u
    own, wanted = (jnp.sqrt(jnp.square(x).sum()) for x in (u, p))
    return u * jnp.where((own > 0) & (wanted > 0), wanted / jnp.where(own > 0, own, 1.0), 1.0)

  return tree.per_tensor(one, updates, params)


def _by_layer(updates: Any, factor: float) -> Any:
  """Updates scaled by how far a layer is from the output of its encoder."""
  names = tree.flatten(updates)
  depths: dict[str, int] = {}
  for name, leaf in names.items():
    if match := re.match(r'(.*?)(?:^|/)?encoder/blocks/(\d+)?', name):
      depth = int(match[2]) + 1 if match[2] else leaf.shape[0]
      depths[match[1]] = max(depths.get(match[1], 0), depth)

  def one(path, u):
    name = tree.name(path)
    longest = sorted(depths, key=len, reverse=True)
    tower = next((t for t in longest if not t or name.startswith(f'{t}/')), None)
    if tower is None:
      return u
    depth, rest = depths[tower], name.removeprefix(tower).removeprefix('/')
    if tree.is_stacked(path):
      distance = jnp.arange(depth, 0, -1.0).reshape(-1, *(1,) * (u.ndim - 1))
      return u * factor**distance
    if match := re.match(r'encoder/blocks/(\d+)/', rest):
      return u * factor ** (depth - int(match[1]))
    last = rest.startswith(('encoder/', 'head', 'distill_head', 'pool', 'map_head', 'pre_logits'))
    return u if last else u * factor ** (depth + 1)

  return jax.tree_util.tree_map_with_path(one, updates)
