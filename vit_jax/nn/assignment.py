"""Which of the guesses of a model each target belongs to, at the least cost, on the devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.nn import sharding

# Costs beyond this count as not finite: sums of them stay far from the largest float32.
_MOST = 1e30


def assigned(cost: jax.Array, valid: jax.Array) -> jax.Array:
  """Of each target its query, no query twice, so that the sum of the costs is the least there is.

  Successive shortest paths with dual variables (Jonker and Volgenant 1987; for other than square
  costs Crouse 2016, 'On implementing 2D rectangular assignment algorithms', which is SciPy's), one
  valid target after another: targets that are only padding cost nothing, which decides more than
  the algorithm (`experiments.benchmarks.assignment`). All problems run side by side, on each device
  those of its part of the batch. Nothing is differentiated.

  A cost that is not finite is chosen only where there is no other way. Which of several equally
  good assignments is given is not said.

  Args:
    cost: (..., targets, queries); compared in float32. The first axis is the batch.
    valid: which targets there are, bool (..., targets), or what broadcasts to it.

  Returns:
    int32 (..., targets): the query of each target; -1 where a target is not valid, or is left over
    where there are more valid ones than queries: of these the cheapest are assigned.
  """
  cost = jax.lax.stop_gradient(cost).astype(jnp.float32)
  leading = cost.ndim - 2
  if 0 in cost.shape or not leading:
    return _many(cost, valid)
  axes = lambda x: ('batch', *(None,) * (x.ndim - 1))  # noqa: E731
  out = ('batch', *(None,) * leading)
  return sharding.per_shard(_many, [axes(cost), axes(valid)], out)(cost, valid)


def _many(cost: jax.Array, valid: jax.Array) -> jax.Array:
  """See `assigned`, on one device."""
  valid = jnp.broadcast_to(valid, cost.shape[:-1])
  if not cost.size:
    return jnp.full(valid.shape, -1, jnp.int32)
  one: Any = _one
  return functools.reduce(lambda f, _: jax.vmap(f), range(cost.ndim - 2), one)(cost, valid)


def _one(cost: jax.Array, valid: jax.Array) -> jax.Array:
  """See `assigned`: (targets, queries) and (targets,) -> (targets,)."""
  targets, queries = cost.shape
  usable = (jnp.abs(cost) <= _MOST) & valid[:, None]
  high = jnp.max(cost, initial=-_MOST, where=usable)
  low = jnp.min(cost, initial=_MOST, where=usable)
  # One of these outweighs whatever all other targets could gain by it.
  cost = jnp.where(usable, cost, high + (high - low + 1) * targets)
  cost = jnp.where(usable.any(), cost, 0)
  # Where all queries may be taken there is one more place, which any number of targets goes to.
  places = queries + (targets > queries)
  cost = jnp.pad(cost, ((0, 0), (0, places - queries)), constant_values=jnp.inf)
  order = jnp.argsort(~valid, stable=True).astype(jnp.int32)
  rows, columns = jnp.arange(targets), jnp.arange(places)

  def add(number: Any, state: Any) -> Any:
    # u and v, the dual variables of targets and places: cost - u - v is at least 0, and 0 where a
    # target is. `owner` is the target of each place, `place` the place of each target.
    u, v, owner, place, cost = state
    target = order[number]
    if places > queries:
      # All places taken: from now on one target too many is left over, at the same price for each.
      # It is the least at which none would have gone before, so that dual variables stay good.
      price = jnp.where(number == queries, u.max(), cost[:, queries])
      cost = cost.at[:, queries].set(price)

    def look(state: Any) -> Any:
      row, near, distance, before, seen, _ = state
      through = near + cost[row] - u[row] - v
      better = ~seen & (through < distance)
      distance, before = jnp.where(better, through, distance), jnp.where(better, row, before)
      open_ = jnp.where(seen, jnp.inf, distance)
      near = open_.min()
      # Of places at the same distance a free one, which ends the search.
      place = jnp.argmax(jnp.where(open_ == near, 1 + (owner < 0), 0)).astype(jnp.int32)
      return owner[place], near, distance, before, seen | (columns == place), place

    start = (
      target, jnp.float32(0), jnp.full(places, jnp.inf), jnp.zeros(places, jnp.int32),
      jnp.zeros(places, bool), jnp.int32(0),
    )  # fmt: skip
    with _turns(2):
      found = jax.lax.while_loop(lambda state: state[0] >= 0, look, start)
    _, near, distance, before, seen, free = found
    gain = jnp.where(seen, near - distance, 0)
    u = u + jnp.where(place >= 0, gain[place], 0) + jnp.where(rows == target, near, 0)

    def back(state: Any) -> Any:
      to, owner, place, _ = state
      mover = before[to]
      return place[mover], owner.at[to].set(mover), place.at[mover].set(to), mover == target

    with _turns(1):
      path = jax.lax.while_loop(lambda state: ~state[3], back, (free, owner, place, False))
    _, owner, place, _ = path
    return u, v - gain, owner.at[queries:].set(-1), place, cost

  nobody = functools.partial(jnp.full, fill_value=-1, dtype=jnp.int32)
  state = (jnp.zeros(targets), jnp.zeros(places), nobody(places), nobody(targets), cost)
  with _turns(targets):
    *_, place, _ = jax.lax.fori_loop(0, valid.sum(), add, state)
  return jnp.where(place < queries, place, -1)


def _turns(count: int) -> Any:
  """Says in the name of a loop how often it goes round or so, which depends on values, to plans."""
  return jax.named_scope(f'about_{count}_times')
