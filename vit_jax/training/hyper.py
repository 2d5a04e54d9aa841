"""Hyperparameters: what may change from step to step and from run to run without compiling anew.

Every field of a configuration whose type is `Schedule` is one, by its dotted name, and so is the
learning rate. A step gets all of them as one vector. Numbers that a task or an optimizer names as
`traced` are constants of a run alone; where lanes differ in one, it is in the vector, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.schedule import Schedule
from vit_jax.optim import schedules

LR = 'optim.lr'
# What the host makes the learning rate of.
_OF_LR = ('optim.lr_first', 'optim.lr_last')
# Without these, at 0, the compiled step is another one.
_OFF = ('optim.clip', 'optim.ema', 'optim.skip_above')


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
  return (LR, *schema.scheduled(cfg), *varied(cfg))


def varied(cfg: Any) -> tuple[str, ...]:
  """Constants of a run alone, in which the lanes of this one differ."""
  given = {lane_field(cfg, name): values for name, values in cfg.lanes.items() if len(values)}
  off = [name for name in _OFF if name in given and not any(map(float, given[name]))]
  return tuple(name for name in _traced(cfg) if name in given and name not in off)


def shared(cfg: Any, lane: Any) -> Any:
  """A configuration with lanes whose constants are those of one lane: what there is of a state."""
  leaves = schema.leaves(lane)
  for name in _traced(cfg):
    cfg = schema.replaced(cfg, name, leaves[name])
  return cfg


def _traced(cfg: Any) -> list[str]:
  return [f'{part}.{n}' for part in ('optim', 'task') for n in getattr(cfg, part).traced]


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
  scheduled = schema.scheduled(cfg)
  for name, values in given.items():
    field = lane_field(cfg, name)
    make = Schedule if field in scheduled else int if field == 'seed' else float
    try:
      every = [
        schema.replaced(lane, field, make(value)) for lane, value in zip(every, values, strict=True)
      ]
    except (TypeError, ValueError):
      raise RunError(f'lanes.{name}={values!r} must be numbers') from None
    if field in _OFF and len({bool(float(value)) for value in values}) > 1:
      raise RunError(
        f'lanes.{name}={values!r}: with 0 the compiled step is another one: train the run without '
        f'{field} by itself'
      )
  return every


def lane_field(cfg: Any, name: str) -> str:
  """The dotted name of what lanes call `name`: the end of it, or all with '/' for every dot.

  Raises:
    RunError: if there is no such field, or lanes cannot differ in it.
  """
  known = (LR, *_OF_LR, *schema.scheduled(cfg), *_traced(cfg), 'seed')
  found = field_of(known, name)
  if not found:
    ends = [each.rpartition('.')[2] for each in known]
    every = field_of([n for n in schema.leaves(cfg) if not n.startswith('lanes.')], name)
    why = f'{every[0]} {_reason(every[0])}' if every else suggest(name, ends)
    raise RunError(f'lanes.{name} is not a hyperparameter: {why}')
  if len(found) > 1:
    ways = ' or '.join(f'lanes.{each.replace(".", "/")}' for each in found)
    raise RunError(f'lanes.{name} may be any of {", ".join(found)}: write {ways}')
  return found[0]


def field_of(known: Sequence[str], name: str) -> list[str]:
  """Those of some dotted names that `name` may stand for, as for `lane_field`."""
  found = [each for each in known if each == name.replace('/', '.')]
  return found or [each for each in known if each.rpartition('.')[2] == name]


def _reason(field: str) -> str:
  """Why lanes cannot differ in a field."""
  if field.startswith('model.'):
    return 'says what the compiled step computes, which all lanes share'
  if field.startswith(('optim.', 'task.')) and field not in ('optim.warmup', 'optim.cooldown'):
    return 'is a constant of the compiled step, or of the rows that all lanes get'
  return 'is of the run: lanes go through their data together, from its beginning to its end'


def is_lane(cfg: Any, name: str) -> bool:
  """Whether lanes may differ in what they call `name`."""
  try:
    return bool(lane_field(cfg, name))
  except RunError:
    return False


def program(cfg: Any, point: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
  """What of some hyperparameters by name, as lanes call them, lanes of one program must share."""
  shared: list[tuple[str, Any]] = []
  for name, value in point.items():
    if not is_lane(cfg, name):
      shared.append((name, value))
    elif lane_field(cfg, name) in _OFF:
      shared.append((name, bool(value)))
  return tuple(shared)


def within(cfg: Any, named: Mapping[str, Any]) -> Any:
  """A configuration in which constants that lanes differ in are those of a lane, perhaps traced.

  Args:
    cfg: of all lanes.
    named: hyperparameters by dotted name.
  """
  for name in varied(cfg):
    cfg = _put(cfg, name, named[name])
  return cfg


def _put(section: Any, name: str, value: Any) -> Any:
  """As `schema.replaced`, of a value that cannot be looked at."""
  first, _, rest = name.partition('.')
  new = copy.copy(section)
  object.__setattr__(new, first, _put(getattr(section, first), rest, value) if rest else value)
  return new


class Table:
  """The hyperparameters of a run at each of its steps.

  Args:
    cfg: of the run, or of one of its lanes.
    steps: of a duration.
    own: names of constants in which that lane differs from others.
    total, warmup, cooldown: in steps.
  """

  def __init__(
    self, cfg: Any, steps: Callable[[str], int], own: Sequence[str] = (), *, total: int,
    **durations: int,
  ):  # fmt: skip
    self._cfg, self._steps = cfg, steps
    leaves = schema.leaves(cfg)
    self._own = [leaves[name] for name in own]
    self._durations = dict(total=total, **durations)
    self._scheduled = schema.scheduled(cfg)

  def __call__(self, step: int) -> Hyper:
    """Of a step, computed in float64."""
    lr = schedules.learning_rate(step, self._cfg.optim, self._steps, **self._durations)
    total = self._durations['total']
    rest = {name: each.at(step, total, self._steps) for name, each in self._scheduled.items()}
    if self._cfg.optim.decay_with == 'schedule' and self._cfg.optim.lr:  # undoes that factor
      rest['optim.weight_decay'] /= self._cfg.optim.lr
    return Hyper(np.array([lr, *rest.values(), *self._own], np.float32), np.uint32(self._cfg.seed))
