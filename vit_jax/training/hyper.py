"""Hyperparameters: what may change from step to step and from run to run without compiling anew.

Every field of a configuration whose type is `Schedule` is one, by its dotted name, and so is the
learning rate. A step gets all of them as one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.schedule import Schedule
from vit_jax.optim import schedules

LR = 'optim.lr'


class Hyper(NamedTuple):
  """The argument of a step that is not data.

  Attributes:
    values: float32 (n,), in the order of `names`; with lanes (lanes, n).
    seed: uint32, of augmentation on the device and of dropping; with lanes (lanes,).
  """

  values: Any
  seed: Any

  def named(self, names: Sequence[str]) -> dict[str, Any]:
    """Scalars by dotted name."""
    return Named({name: self.values[i] for i, name in enumerate(names)})


class Named(dict[str, Any]):
  """Values by name, of which a missing one is called by the names that there are."""

  def __missing__(self, name: str) -> Any:
    raise KeyError(f'{name} is not a hyperparameter: {suggest(name, list(self))}')


def names(cfg: Any) -> tuple[str, ...]:
  """Dotted names of the hyperparameters of a configuration, in the order of the vector."""
  return (LR, *schema.scheduled(cfg))


def lanes(cfg: Any) -> list[Any]:
  """The configuration of each lane by itself; none if there are no lanes.

  Raises:
    RunError: for lanes of something else, or of different numbers.
  """
  given = {name: values for name, values in cfg.lanes.items() if len(values)}
  counts = {name: len(values) for name, values in given.items()}
  if len(set(counts.values())) > 1:
    raise RunError(f'every field of lanes needs the same number of values, found {counts}')
  alone = schema.replaced(cfg, 'lanes', {})
  every = [alone] * next(iter(counts.values()), 0)
  known = (*names(cfg), 'seed')
  for name, values in given.items():
    field = _field(name, known)
    make = Schedule if field not in (LR, 'seed') else int if field == 'seed' else float
    try:
      every = [
        schema.replaced(lane, field, make(value)) for lane, value in zip(every, values, strict=True)
      ]
    except (TypeError, ValueError):
      raise RunError(f'lanes.{name}={values!r} must be numbers') from None
  return every


def _field(name: str, known: Sequence[str]) -> str:
  """The dotted name of a field that lanes call by the end of it, or with '/' for every dot."""
  found = [each for each in known if each == name.replace('/', '.')]
  found = found or [each for each in known if each.rpartition('.')[2] == name]
  if len(found) > 1:
    ways = ' or '.join(f'lanes.{each.replace(".", "/")}' for each in found)
    raise RunError(f'lanes.{name} may be any of {", ".join(found)}: write {ways}')
  if not found:
    ends = [each.rpartition('.')[2] for each in known]
    raise RunError(f'lanes.{name} is not a hyperparameter: {suggest(name, ends)}')
  return found[0]


class Table:
  """The hyperparameters of a run at each of its steps.

  Args:
    cfg: of the run, or of one of its lanes.
    steps: of a duration.
    total, warmup, cooldown: in steps.
  """

  def __init__(self, cfg: Any, steps: Callable[[str], int], *, total: int, **durations: int):
    self._cfg, self._steps = cfg, steps
    self._durations = dict(total=total, **durations)
    self._scheduled = schema.scheduled(cfg)

  def __call__(self, step: int) -> Hyper:
    """Of a step, computed in float64."""
    lr = schedules.learning_rate(step, self._cfg.optim, **self._durations)
    total = self._durations['total']
    rest = {name: each.at(step, total, self._steps) for name, each in self._scheduled.items()}
    if self._cfg.optim.decay_with == 'schedule' and self._cfg.optim.lr:  # undoes that factor
      rest['optim.weight_decay'] /= self._cfg.optim.lr
    return Hyper(np.array([lr, *rest.values()], np.float32), np.uint32(self._cfg.seed))
