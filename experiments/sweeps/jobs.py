"""A sweep as a list of jobs: which configurations to train, in which order, under which names."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.core import schema
from vit_jax.scaling import design as design_lib
from vit_jax.scaling.cost import Machine
from vit_jax.scaling.design import Cell, Design
from vit_jax.training import config as config_lib
from vit_jax.training import hyper


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Everything about a sweep; files in `experiments/` return one from `get_sweep(profile)`.

  Attributes:
    base: a ConfigDict, the configuration of every run; the design replaces the size of the model,
      the batch size and the duration.
    design: which models, and how long.
    lanes: values of hyperparameters, as in `config.lanes`; every combination of them is trained,
      all of a cell in one program.
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
    """The lanes of each cell."""
    return [
      dict(zip(self.lanes, values, strict=True))
      for values in itertools.product(*self.lanes.values())
    ]


@dataclasses.dataclass(frozen=True)
class Job:
  """One call of `train`.

  Attributes:
    name: of its directory; the same whoever expands the sweep.
    config: a ConfigDict, of the run.
    cell: what it trains.
    lanes: one after another, a dict of hyperparameters each; of a run alone a single one.
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
    RunError: for lanes of something that is not a hyperparameter.
  """
  by_model: dict[str, list[Cell]] = {}
  for cell in sweep.design.cells:
    by_model.setdefault(f'{design_lib.name_of(cell.model)}-b{cell.batch_size}', []).append(cell)
  jobs = []
  for name, cells in by_model.items():
    # Several groups of a design may want the same run.
    different = {cell.steps: cell for cell in sorted(cells, key=lambda cell: cell.steps)}
    own = list(different.values())
    if sweep.forks and len(own) > 1:
      trunk = _trunk(sweep, name, own)
      jobs += [trunk, *(_job(sweep, name, cell, trunk.name) for cell in own)]
    else:
      jobs += [_job(sweep, name, cell) for cell in own]
  key = lambda job: (job.cell.flops // job.cell.steps, not job.is_trunk, job.cell.steps)  # noqa: E731
  return sorted(jobs, key=key)


def _trunk(sweep: Sweep, model: str, cells: list[Cell]) -> Job:
  starts = sorted({cell.steps - _cooldown(sweep, cell) for cell in cells})
  cell = dataclasses.replace(cells[-1], steps=starts[-1])
  config = _configured(sweep, cell, cooldown=0)
  with config.unlocked():
    config.checkpoint.at = tuple(f'{step} steps' for step in starts)
    config.evals = ConfigDict()
  return _named(f'{model}-trunk', config, cell, sweep, is_trunk=True)


def _job(sweep: Sweep, model: str, cell: Cell, trunk: str = '') -> Job:
  cooldown = _cooldown(sweep, cell)
  config = _configured(sweep, cell, cooldown=cooldown)
  start = cell.steps - cooldown if trunk else 0
  return _named(f'{model}-n{cell.steps}', config, cell, sweep, trunk=trunk, start=start)


def _cooldown(sweep: Sweep, cell: Cell) -> int:
  return max(1, round(sweep.cooldown * cell.steps)) if sweep.cooldown else 0


def _configured(sweep: Sweep, cell: Cell, *, cooldown: int) -> Any:
  config = sweep.base.copy_and_resolve_references()
  with config.unlocked():
    config.total, config.batch_size = f'{cell.steps} steps', cell.batch_size
    for name in design_lib.DIMENSIONS:
      config.model[name] = getattr(cell.model, name)
    if sweep.base.optim.schedule == 'wsd':
      config.optim.cooldown = f'{cooldown} steps'
    config.lanes = {name: tuple(each[name] for each in sweep.combinations) for name in sweep.lanes}
  hyper.lanes(schema.build(config_lib.Config, config))  # or RunError
  return config


def _named(prefix: str, config: Any, cell: Cell, sweep: Sweep, **fields: Any) -> Job:
  digest = config_lib.run_hash(config_lib.to_dict(config))[:8]
  return Job(f'{prefix}-{digest}', config, cell, tuple(sweep.combinations), **fields)
