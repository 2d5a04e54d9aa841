"""Assignments against those of SciPy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vit_jax.nn import assignment, sharding

PROBLEMS = 16


def drawn(kind, rng, shape):
  """Costs as they may come."""
  targets, queries = shape[-2:]
  cost = rng.normal(size=shape)
  if kind == 'tied':
    cost = rng.integers(0, 3, shape)
  if kind == 'constant':
    cost = np.zeros(shape)
  if kind == 'peaked':  # as in training: each target has its query, which others want, too
    own = rng.integers(0, queries, (*shape[:-2], targets, 1))
    cost = 0.1 * cost - 5 * (np.arange(queries) == own)
  if kind == 'large':
    cost = 1e6 * cost + 1e7
  if kind == 'contested':  # products of ranks: every target wants the same query
    cost = np.multiply.outer(rng.random(shape[:-1]), np.ones(queries)) * np.arange(queries)
  if kind == 'not finite':
    cost = np.where(rng.random(shape) < 0.6, rng.choice([np.nan, np.inf, -np.inf], shape), cost)
    cost[0] = np.nan
  return cost.astype(np.float32)


def best(cost):
  """The least sum, with 1e6 for each cost that is not finite."""
  cost = np.where(np.isfinite(cost), cost.astype(np.float64), 1e6)
  rows, columns = linear_sum_assignment(cost)
  return cost[rows, columns].sum()


def assert_best(cost, valid, found):
  for problem, there, place in zip(cost, valid, found, strict=True):
    assert (place[~there] == -1).all()
    problem, place = problem[there], place[there]
    kept = place >= 0
    assert kept.sum() == min(problem.shape) == len(set(place[kept]))
    own = problem[kept, place[kept]].astype(np.float64)
    total = np.where(np.isfinite(own), own, 1e6).sum()
    assert total == pytest.approx(best(problem), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize('shape', [(6, 9), (7, 7), (9, 4), (1, 3), (3, 1)])
def test_the_cost_is_the_least(shape):
  """Of every kind of cost, with holes among the targets, and none at all in one problem."""
  kinds = ('random', 'tied', 'constant', 'peaked', 'large', 'contested', 'not finite')
  rng = np.random.default_rng(0)
  cost = np.stack([drawn(kind, rng, (PROBLEMS, *shape)) for kind in kinds])
  valid = rng.random(cost.shape[:-1]) < 0.7
  valid[:, 0], valid[:, 1] = True, False
  # What padding holds does not matter.
  cost = np.where(valid[..., None], cost, rng.choice([np.nan, -1e9, 0], cost.shape))
  cost = cost.astype(np.float32)
  found = np.asarray(jax.jit(assignment.assigned)(cost, valid))
  assert found.dtype == np.int32
  for each in zip(cost, valid, found, strict=True):
    assert_best(*each)


def test_one_problem_alone_in_a_map_and_on_a_mesh():
  rng = np.random.default_rng(1)
  cost, valid = drawn('random', rng, (8, 3, 5, 6)), rng.random((8, 1, 5)) < 0.8
  whole = np.asarray(assignment.assigned(cost, valid))
  assert whole.shape == (8, 3, 5)
  alone = jax.jit(assignment.assigned)
  np.testing.assert_array_equal(alone(cost[2, 1], valid[2, 0]), whole[2, 1])
  mapped = jax.jit(lambda *args: jax.lax.map(lambda x: assignment.assigned(*x), args))
  np.testing.assert_array_equal(mapped(cost[:, 0], valid[:, 0]), whole[:, 0])
  lanes = jax.jit(jax.vmap(assignment.assigned, in_axes=(0, None)))
  for layout in (None, '2x2x2'):
    with jax.set_mesh(sharding.make_mesh(layout)) if layout else jax.set_mesh(one_device()):
      there = [sharding.reshard(jnp.asarray(x), 'batch', *(None,) * (x.ndim - 1))
               for x in (cost, valid)]  # fmt: skip
      np.testing.assert_array_equal(jax.jit(assignment.assigned)(*there), whole)
      both = jnp.stack([there[0], 2 * there[0]])
      found = lanes(both, there[1])
      np.testing.assert_array_equal(found, np.stack([whole, whole]))


def one_device():
  return jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])


def test_nothing_to_assign_and_nothing_to_differentiate():
  for shape in ((2, 0, 3), (2, 3, 0)):
    found = assignment.assigned(jnp.zeros(shape), jnp.ones(shape[:-1], bool))
    np.testing.assert_array_equal(found, np.full(shape[:-1], -1))

  def chosen(cost):
    place = assignment.assigned(cost, jnp.ones(cost.shape[:-1], bool))
    return jnp.take_along_axis(cost, place[..., None], -1).sum()

  cost = jnp.array(drawn('random', np.random.default_rng(2), (2, 3, 4)))
  gradient = jax.jit(jax.grad(chosen))(cost)
  assert set(np.unique(gradient)) == {0, 1}
  assert gradient.sum() == 6
