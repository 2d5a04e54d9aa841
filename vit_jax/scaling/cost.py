"""What runs cost on a machine: seconds, chip-hours and money."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from vit_jax.architecture import encoders
from vit_jax.core.errors import RunError
from vit_jax.costs import step as costs
from vit_jax.costs.parts import sequences
from vit_jax.costs.step import Pass

# What the time of a step is made of; each has a coefficient in seconds.
TERMS = ('step', 'blocks', 'flops', 'elements')


@dataclasses.dataclass(frozen=True)
class Machine:
  """Something that training runs on.

  Attributes:
    name: for people.
    seconds: for each of `TERMS`: of every step, of every block in it, of every training FLOP, of
      every number of its activations.
    chips: of the machine, which the coefficients are of all together.
    memory: bytes on each; 0 if not known.
    price: of an hour of one chip.
    currency: of the price.
    fixed: seconds that a run takes in addition to its steps: start, compilation, evaluation.
    error: geometric standard deviation of measured over predicted steps; None where there were
      too few to tell.
  """

  name: str
  seconds: tuple[float, ...]
  chips: int = 1
  memory: int = 0
  price: float = 0.0
  currency: str = 'USD'
  fixed: float = 0.0
  error: float | None = None

  @classmethod
  def assumed(
    cls, name: str, flops_per_second: float, *, overhead: float = 0.0, **fields: Any
  ) -> Machine:
    """A machine of which only guesses are known.

    Args:
      name: of the machine.
      flops_per_second: of training that a chip will reach with large models.
      overhead: seconds that every step takes however small.
      **fields: others of `Machine`.
    """
    chips = fields.get('chips', 1)
    return cls(name, (overhead, 0.0, 1 / (flops_per_second * chips), 0.0), **fields)

  def step_seconds(self, work: Any, batch_size: int, lanes: int = 1) -> float:
    """Of a training step of so many models side by side; `work` as for `terms`."""
    return float(terms(work, batch_size, lanes) @ np.array(self.seconds))

  def run_seconds(self, work: Any, batch_size: int, steps: int, lanes: int = 1) -> float:
    """Of so many steps, and of what every run takes in addition."""
    return self.fixed + steps * self.step_seconds(work, batch_size, lanes)

  def money(self, seconds: float) -> float:
    """What so much time costs on all chips."""
    return seconds / 3600 * self.chips * self.price

  def flops(self, *, chip_hours: float = 0.0, money: float = 0.0) -> float:
    """The training FLOPs that time or money buys, overheads left out.

    Raises:
      RunError: if the price or the speed is not known, or neither or both budgets are given.
    """
    if (chip_hours > 0) == (money > 0):
      raise RunError('a budget is either chip_hours or money')
    if money and not self.price:
      raise RunError(f'the price of {self.name} is not known: Machine(price=...)')
    if not self.seconds[2]:
      raise RunError(f'the speed of {self.name} is not known')
    hours = chip_hours or money / self.price
    return hours * 3600 / (self.seconds[2] * self.chips)

  def to_json(self) -> str:
    """All of it."""
    return json.dumps(dataclasses.asdict(self), indent=1)

  @classmethod
  def from_json(cls, text: str) -> Machine:
    """The inverse of `to_json`."""
    fields = json.loads(text)
    return cls(**{**fields, 'seconds': tuple(fields['seconds'])})


def terms(work: Any, batch_size: int, lanes: int = 1) -> np.ndarray:
  """How much of each of `TERMS` is in a step.

  Args:
    work: what it computes for an image, passes as of `design.Cell.work`; of a model, which may take
      their place, it is one pass.
    batch_size: of each model.
    lanes: models that are trained side by side.
  """
  passes = work if isinstance(work, tuple) else (Pass(work),)
  blocks = elements = 0.0
  for one in passes:
    model = costs.sized(one)
    towers, every = encoders(model), sequences(model, training=True)
    for prefix, run in every.items():
      tower = towers[prefix.rstrip('/')]
      features = 4 * tower.width + 2 * tower.mlp_dim + tower.num_heads * run.tokens
      blocks += one.times * tower.depth
      elements += one.times * run.tokens * tower.depth * features
  images = batch_size * lanes
  return np.array([1.0, blocks, costs.step(passes) * images, images * elements], float)


def calibrated(
  name: str, work: Sequence[Any], batch_sizes: Sequence[int], lanes: Sequence[int],
  seconds: Sequence[float], **fields: Any,
) -> Machine:  # fmt: skip
  """A machine from measured steps: the non-negative coefficients with the least relative error.

  Args:
    name: of the machine.
    work, batch_sizes, lanes, seconds: of each measurement, as for `terms`; at least two.
    **fields: others of `Machine`.

  Raises:
    RunError: for fewer measurements.
  """
  if len(seconds) < 2:
    raise RunError(f'{len(seconds)} measured steps do not tell a speed: measure several models')
  matrix = np.array([terms(*each) for each in zip(work, batch_sizes, lanes, strict=True)])
  relative = matrix / np.array(seconds)[:, None]
  scale = relative.max(0)
  found, _ = nnls(relative / scale, np.ones(len(seconds)))
  free = len(seconds) - int((found > 0).sum())
  squares = np.sum(np.log(relative @ (found / scale)) ** 2)
  error = float(np.exp(np.sqrt(squares / free))) if free else None
  return Machine(name, tuple((found / scale).tolist()), error=error, **fields)
