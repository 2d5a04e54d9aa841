"""Several runs of one model, trained side by side by one program."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.training import config as config_lib
from vit_jax.training import hyper as hyper_lib
from vit_jax.training.experiment import Experiment
from vit_jax.training.hyper import Hyper
from vit_jax.training.state import State


def experiment(cfg: config_lib.Config, *arguments: Any, **options: Any) -> Experiment:
  """What `cfg` describes, arguments as for `Experiment`: one run, or several as `Lanes`."""
  return (Lanes if cfg.lane_count else Experiment)(cfg, *arguments, **options)


class Lanes(Experiment):
  """Runs that differ only in `Hyper`.

  Evaluations know nothing of that: what a task names as `traced` must not change what it predicts.

  Every array of the state has a leading axis over the lanes, and so have metrics and
  hyperparameters; scores are lists. Frozen parameters are shared. A lane computes what it would
  compute alone, but for rounding.
  """

  layer_axis = 1

  def __init__(self, cfg: config_lib.Config, *arguments: Any, **options: Any):
    self.lanes = hyper_lib.lanes(cfg)
    super().__init__(hyper_lib.shared(cfg, self.lanes[0]), *arguments, **options)
    if self.batch_axes and cfg.task.frozen:
      self.notes.append(f'all lanes have the frozen parameters of one run, that of seed={cfg.seed}')

  @property
  def examples_per_step(self) -> int:
    """How many the compiled step trains on, all lanes together."""
    return self.examples * len(self.lanes)

  @property
  def batch_axes(self) -> tuple[int, ...]:
    """One over the lanes, where they have seeds of their own."""
    return (len(self.lanes),) if len(set(self._seeds().tolist())) > 1 else ()

  def hyper(self, step: int) -> Hyper:
    """The arguments of the compiled step number `step`, with a leading axis over the lanes."""
    every = [table(step) for table in self._tables]
    return Hyper(*(np.stack(values) for values in zip(*every, strict=True)))

  def _alone(self) -> list[config_lib.Config]:
    return self.lanes

  def batches(self, start: int) -> Generator[dict[str, jax.Array], None, None]:
    """As of one run where the lanes have one seed; else with a leading axis over the lanes."""
    seeds = self._seeds().tolist()
    different = list(dict.fromkeys(seeds))
    if not self.batch_axes:
      yield from self._batches(different[0], start)
      return
    with contextlib.ExitStack() as stack:
      streams = [
        stack.enter_context(contextlib.closing(self._batches(seed, start))) for seed in different
      ]
      for parts in zip(*streams, strict=True):
        every = [parts[different.index(seed)] for seed in seeds]
        yield jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)

  def _seeds(self) -> Any:
    return np.array([lane.seed for lane in self.lanes], np.uint32)

  def _of_one(self, model: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], model)

  def _init(self, seed: Any, taken: Any = MappingProxyType({})) -> tuple[State, Any]:
    _, frozen = super()._init(np.uint32(self.config.seed), taken)
    return jax.vmap(lambda seed: super(Lanes, self)._init(seed, taken)[0])(seed), frozen

  def _step(
    self, size: int, state: State, frozen: Any, batch: Any, hyper: Hyper
  ) -> tuple[State, dict[str, Any]]:
    shared = not self.batch_axes
    alone = functools.partial(super()._step, size)
    step = jax.vmap(alone, in_axes=(0, None, None if shared else 0, 0))
    return step(state, frozen, batch, hyper)
