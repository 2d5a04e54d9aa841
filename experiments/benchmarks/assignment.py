"""Ways to assign targets to queries: `python -m experiments.benchmarks.assignment`.

Costs of the kind that detection has, one class probability, four coordinates and an overlap each,
of boxes drawn at random, which is harder than what a trained model gives, and of queries that are
near their targets. Targets are padded to a fixed number, as they are in a batch. The contestants:
`vit_jax.nn.assignment`, all problems side by side (`vmap`) and one after another (`lax.map`), the
same without being told which targets are padding, Optax's `hungarian_algorithm`, and SciPy, by a
callback from the compiled program. Before anything is timed the sum of the costs of each must be
that of SciPy in float64; a greedy choice takes part to show what is lost without that.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

from experiments.benchmarks import report
from experiments.benchmarks.timing import Timed, measure
from vit_jax.nn.assignment import assigned

# Of sums of costs: float32, and the last of its bits.
TOLERANCE = 1e-5
PADDING = 0.0  # what a target costs that is not there, for those who are not told of it


class Race(NamedTuple):
  """What contestants have in common.

  Attributes:
    problems: images times layers.
    targets: with padding.
    queries: to choose from.
    real: targets that are no padding.
    trained: whether there is a query near every target.
  """

  problems: int
  targets: int
  queries: int
  real: int
  trained: bool

  @classmethod
  def parse(cls, text: str) -> Race:
    """Of '48,100,300,20' or '48,100,300,20,trained'."""
    problems, targets, queries, real = map(int, text.split(',')[:4])
    return cls(problems, targets, queries, real, text.endswith(',trained'))


RACES = (
  Race(8, 20, 100, 20, False), Race(48, 20, 100, 8, False), Race(48, 20, 100, 8, True),
  Race(8, 100, 100, 20, False), Race(8, 100, 100, 100, False), Race(48, 100, 300, 20, True),
)  # fmt: skip
QUICK = (Race(3, 6, 9, 4, False), Race(2, 4, 4, 4, True))


def problem(race: Race, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Costs, float32 (problems, targets, queries), and which targets are there."""
  rng = np.random.default_rng(seed)
  boxes = lambda count: rng.uniform(0.05, 0.95, (race.problems, count, 4))  # noqa: E731
  targets, queries = boxes(race.targets), boxes(race.queries)
  if race.trained:
    own = np.stack([rng.permutation(race.queries)[: race.targets] for _ in queries])
    near = targets + rng.normal(scale=0.02, size=targets.shape)
    np.put_along_axis(queries, own[..., None], near, 1)
  apart = np.abs(targets[:, :, None] - queries[:, None]).sum(-1)
  classes = rng.beta(0.5, 3, apart.shape)
  valid = np.arange(race.targets) < np.full((race.problems, 1), race.real)
  cost = np.where(valid[..., None], 5 * apart + 2 * np.tanh(apart) - classes, PADDING)
  return cost.astype(np.float32), valid


def mapped(one: Callable[..., Any]) -> Callable[..., Any]:
  """A function of one problem, of many: one after another."""
  return lambda *args: jax.lax.map(lambda each: one(*each), args)


def by_scipy(cost: jax.Array, valid: jax.Array) -> jax.Array:
  """On the host: each problem without its padding."""

  def solve(cost: Any, valid: Any) -> np.ndarray:
    cost, valid = np.asarray(cost), np.asarray(valid)
    places = np.full(valid.shape, -1, np.int32)
    for at, (each, there) in enumerate(zip(cost, valid, strict=True)):
      rows, columns = linear_sum_assignment(each[there])
      places[at, np.flatnonzero(there)[rows]] = columns
    return places

  return jax.pure_callback(solve, jax.ShapeDtypeStruct(valid.shape, jnp.int32), cost, valid)


def by_optax(cost: jax.Array, valid: jax.Array) -> jax.Array:
  """Of one problem; it knows nothing of padding, which costs the same everywhere."""
  rows, columns = optax.assignment.hungarian_algorithm(cost)
  return jnp.where(valid, jnp.zeros_like(rows).at[rows].set(columns), -1)


def greedy(cost: jax.Array, valid: jax.Array) -> jax.Array:
  """Of one problem: always the cheapest pair of those that are left."""

  def take(_: Any, state: Any) -> Any:
    left, place = state
    target, query = jnp.unravel_index(jnp.argmin(left), left.shape)
    there = jnp.isfinite(left[target, query])
    place = place.at[target].set(jnp.where(there, query, place[target]))
    return left.at[target].set(jnp.inf).at[:, query].set(jnp.inf), place

  state = jnp.where(valid[:, None], cost, jnp.inf), jnp.full(len(valid), -1, jnp.int32)
  return jax.lax.fori_loop(0, valid.sum(), take, state)[1]


CONTESTANTS: dict[str, Callable[..., Any]] = {
  'ours, vmap': assigned,
  'ours, lax.map': mapped(assigned),
  'ours, not told of padding': lambda cost, valid: jnp.where(
    valid, assigned(cost, jnp.ones_like(valid)), -1
  ),
  'optax, vmap': jax.vmap(by_optax),
  'optax, lax.map': mapped(by_optax),
  'scipy, by callback': by_scipy,
  'greedy, vmap': jax.vmap(greedy),
}


def excess(cost: np.ndarray, valid: np.ndarray, places: np.ndarray) -> float:
  """How much more than the least a sum is, the largest of all problems; inf if it is none."""
  worst = 0.0
  for each, there, place in zip(cost.astype(np.float64), valid, places, strict=True):
    each, place = each[there], place[there]
    if place.min(initial=0) < 0 or len(set(place.tolist())) < len(place):
      return float('inf')
    rows, columns = linear_sum_assignment(each)
    worst = max(worst, each[np.arange(len(each)), place].sum() - each[rows, columns].sum())
  return worst


def compare(race: Race, rounds: int, least: float) -> list[dict[str, Any]]:
  """A row for each contestant."""
  cost, valid = problem(race)
  there = jnp.asarray(cost), jnp.asarray(valid)
  rows: dict[str, dict[str, Any]] = {}
  timed: dict[str, Timed] = {}
  for name, solve in CONTESTANTS.items():
    start = time.perf_counter()
    compiled: Any = jax.jit(solve).lower(*there).compile()
    seconds = time.perf_counter() - start
    off = excess(cost, valid, np.asarray(compiled(*there)))
    right = off < TOLERANCE * np.abs(cost).max() * race.real
    assert right or name.startswith('greedy'), (race, name, off)
    rows[name] = {
      **race._asdict(), 'contestant': name, 'compile s': seconds, 'ms': None, 'excess': off,
      'status': 'right' if right else 'not the least',
    }  # fmt: skip
    timed[name] = Timed(lambda compiled=compiled: compiled(*there), jax.block_until_ready)
  for name, seconds in measure(timed, rounds=rounds, least=least).items():
    rows[name]['ms'] = 1e3 * float(np.median(seconds))
  jax.clear_caches()  # another race may have the same shapes
  return list(rows.values())


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
  """Measures, writes the report and returns its rows."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument(
    '--races', type=Race.parse, nargs='+', default=list(RACES),
    help='problems, targets, queries, real targets, and whether predictions are near them: '
    '48,100,300,20,trained',
  )  # fmt: skip
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--folder', type=pathlib.Path, help='for results, if not the usual one')
  parser.add_argument('--quick', action='store_true', help='small ones, to see that it works')
  args = parser.parse_args(argv)
  if args.quick:
    args.races, args.rounds = list(QUICK), 2
  before, least = os.getloadavg(), 0.001 if args.quick else 0.05
  rows = [row for race in args.races for row in compare(race, args.rounds, least)]
  report.write(
    'assignment', rows, title=f'Assigning targets to queries, {jax.devices()[0].device_kind}',
    note='ms: of all problems together, the median of rounds. excess: of the sum of costs over the '
    'one of SciPy in float64, the largest of all problems.',
    facts={'rounds': args.rounds, 'load before': before, 'load after': os.getloadavg()},
    folder=args.folder,
  )  # fmt: skip
  return rows


if __name__ == '__main__':
  main()
