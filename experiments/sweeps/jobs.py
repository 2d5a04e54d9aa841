"""A sweep as a list of jobs: which configurations to train, in which order, under which names."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.architecture import encoders
from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs.step import Pass
from vit_jax.scaling import design as design_lib
from vit_jax.scaling.cost import Machine
from vit_jax.scaling.design import Cell, Design
from vit_jax.training import config as config_lib
from vit_jax.training import hyper

# What runs of a sweep do not take from its configuration, but from design and cooldown.
DESIGNED = ('batch_size', 'total', 'optim.schedule', 'optim.cooldown')


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Everything about a sweep; files in `experiments/` return one from `get_sweep(profile)`.

  Attributes:
    base: a ConfigDict, the configuration of every run; the design replaces the size of the model,
      the batch size and the duration.
    design: which models, and how long.
    lanes: values of fields of the configuration by the end of their names, as in `config.lanes`;
      every combination of them is trained. Those that one program can train are lanes of one job.
    cooldown: share of each run in which the learning rate falls to 0. With a schedule of 'wsd' the
      runs of one model fork from one trunk; 0, or another schedule, trains each from scratch.
    machine: what it is planned for; None if its speed is to be measured.
  """

  base: Any
  design: Design
  lanes: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
  cooldown: float = 0.2
  machine: Machine | None = None

  @property
  def forks(self) -> bool:
    """Whether runs of one model share a trunk."""
    return self.base.optim.schedule == 'wsd' and self.cooldown > 0

  @property
  def combinations(self) -> list[dict[str, Any]]:
    """What is trained of each cell: values by the names of `lanes`."""
    return [
      dict(zip(self.lanes, values, strict=True))
      for values in itertools.product(*self.lanes.values())
    ]

  @property
  def programs(self) -> list[Program]:
    """These combinations, those together that are lanes of one program.

    Raises:
      RunError: for a field that there is not, or that the design decides.
    """
    cfg = schema.build(config_lib.Config, self.base)
    names = {name: _field(cfg, name) for name in self.lanes}
    found: dict[tuple, list[dict[str, Any]]] = {}
    for point in self.combinations:
      found.setdefault(hyper.program(cfg, point), []).append(point)
    out = []
    for points in found.values():
      side = [name for name in self.lanes if hyper.is_lane(cfg, name)]
      fields = {names[n]: value for n, value in points[0].items() if n not in side}
      lanes = {name: tuple(point[name] for point in points) for name in side}
      columns = tuple({column(names[n]): value for n, value in p.items()} for p in points)
      out.append(Program(fields, lanes, columns))
    return out


@dataclasses.dataclass(frozen=True)
class Program:
  """Combinations of hyperparameters that are trained side by side.

  Attributes:
    fields: values of what they share, by dotted name.
    lanes: as in `config.lanes`.
    points: one after another, values by their columns in the table.
  """

  fields: Mapping[str, Any]
  lanes: Mapping[str, tuple]
  points: tuple[dict[str, Any], ...]


def column(field: str) -> str:
  """Of a field of the configuration in the table of a sweep: 'lr', 'task.temperature'."""
  return field.removeprefix('optim.')


def _field(cfg: Any, name: str) -> str:
  """The dotted name of a field that combinations differ in."""
  every = [each for each in schema.leaves(cfg) if not each.startswith('lanes.')]
  if hyper.is_lane(cfg, name):
    return hyper.lane_field(cfg, name)
  found = hyper.field_of(every, name)
  if len(found) != 1:
    ends = sorted({each.rpartition('.')[2] for each in every})
    ways = f'write {" or ".join(found).replace(".", "/")}' if found else suggest(name, ends)
    raise RunError(f'lanes of a sweep: {name!r} is not the name of one field: {ways}')
  if found[0].startswith('model.') or found[0] in DESIGNED:
    raise RunError(f'lanes of a sweep: {found[0]} is decided by its design')
  return found[0]


@dataclasses.dataclass(frozen=True)
class Job:
  """One call of `train`.

  Attributes:
    name: of its directory; the same whoever expands the sweep.
    config: a ConfigDict, of the run.
    cell: what it trains.
    lanes: one after another, hyperparameters by their columns; of a run alone a single one.
    trunk: name of the job it forks from, '' if none.
    is_trunk: it is one, and only ends where the longest fork begins.
    start: steps that its trunk has done already.
  """

  name: str
  config: Any
  cell: Cell
  lanes: tuple[dict[str, Any], ...]
  trunk: str = ''
  is_trunk: bool = False
  start: int = 0

  @property
  def flops(self) -> int:
    """That the job itself computes, all lanes together, by `flops.CONVENTION`."""
    done = self.cell.flops // self.cell.steps * (self.cell.steps - self.start)
    return done * len(self.lanes)


def expand(sweep: Sweep) -> list[Job]:
  """The jobs of a sweep, the cheapest models first, each trunk before its forks.

  Raises:
    RunError: for lanes of fields that there are not, or a configuration that is not of the models.
  """
  programs = sweep.programs
  by_model: dict[str, list[Cell]] = {}
  for cell in sweep.design.cells:
    by_model.setdefault(f'{design_lib.name_of(cell.model)}-b{cell.batch_size}', []).append(cell)
  jobs = []
  for name, cells in by_model.items():
    # Several groups of a design may want the same run.
    different = {cell.steps: cell for cell in sorted(cells, key=lambda cell: cell.steps)}
    own = list(different.values())
    for program in programs:
      if sweep.forks and len(own) > 1:
        trunk = _trunk(sweep, program, name, own)
        jobs += [trunk, *(_job(sweep, program, name, cell, trunk.name) for cell in own)]
      else:
        jobs += [_job(sweep, program, name, cell) for cell in own]
  key = lambda job: (job.cell.flops // job.cell.steps, not job.is_trunk, job.cell.steps)  # noqa: E731
  return sorted(jobs, key=key)


def _trunk(sweep: Sweep, program: Program, model: str, cells: list[Cell]) -> Job:
  starts = sorted({cell.steps - _cooldown(sweep, cell) for cell in cells})
  cell = dataclasses.replace(cells[-1], steps=starts[-1])
  config, cell = _configured(sweep, program, cell, cooldown=0)
  with config.unlocked():
    config.checkpoint.at = tuple(f'{step} steps' for step in starts)
    config.evals = ConfigDict()
  return _named(f'{model}-trunk', config, cell, program, is_trunk=True)


def _job(sweep: Sweep, program: Program, model: str, cell: Cell, trunk: str = '') -> Job:
  cooldown = _cooldown(sweep, cell)
  config, cell = _configured(sweep, program, cell, cooldown=cooldown)
  start = cell.steps - cooldown if trunk else 0
  return _named(f'{model}-n{cell.steps}', config, cell, program, trunk=trunk, start=start)


def _cooldown(sweep: Sweep, cell: Cell) -> int:
  return max(1, round(sweep.cooldown * cell.steps)) if sweep.cooldown else 0


def _configured(sweep: Sweep, program: Program, cell: Cell, *, cooldown: int) -> tuple[Any, Cell]:
  """The configuration of a cell; and the cell, at the cost that it has by this configuration."""
  config = sweep.base.copy_and_resolve_references()
  with config.unlocked():
    config.total, config.batch_size = f'{cell.steps} steps', cell.batch_size
    varied = design_lib.varied(cell.model)
    for name, tower in encoders(cell.model).items():
      for field in design_lib.DIMENSIONS if name == varied else design_lib.INNER:
        section(config.model, name)[field] = getattr(tower, field)
    if sweep.base.optim.schedule == 'wsd':
      config.optim.cooldown = f'{cooldown} steps'
    for field, value in program.fields.items():
      inside, _, name = field.rpartition('.')
      section(config, inside.replace('.', '/'))[name] = value
    config.lanes = dict(program.lanes)
  cfg = schema.build(config_lib.Config, config)
  hyper.lanes(cfg)  # or RunError
  if cell.passes and any(field.startswith('task.') for field in program.fields):
    cell = dataclasses.replace(cell, passes=tuple(described(config)[1](cell.model)))
  return config, cell


def section(config: Any, path: str) -> Any:
  """What is in a nested configuration under names that are joined by '/'; all of it under ''."""
  return functools.reduce(operator.getitem, filter(None, path.split('/')), config)


def _named(prefix: str, config: Any, cell: Cell, program: Program, **fields: Any) -> Job:
  digest = config_lib.run_hash(config_lib.to_dict(config))[:8]
  return Job(f'{prefix}-{digest}', config, cell, program.points, **fields)


def described(config: Any) -> tuple[Any, Callable[[Any], Sequence[Pass]]]:
  """What designs need of a configuration: its model, resolved, and what a step of it computes.

  Only the data tell how many classes a model has: of one with a head for them give `num_classes`.
  Where the task has networks of its own, teachers, their checkpoints and the data are opened.
  """
  cfg: config_lib.Config = schema.build(config_lib.Config, config)
  task, model = cfg.task, cfg.task.adapt(cfg.model.resolve(), {})
  if task.networks:
    from vit_jax.training.initial import owned  # only here designs need JAX

    fields = cfg.data.open(cfg.data.split).fields
    model = task.adapt(model, fields)
    found = {each.name: each.network for each in owned(task, model, fields)}
    task = dataclasses.replace(task, **found)
  return model, task.passes
