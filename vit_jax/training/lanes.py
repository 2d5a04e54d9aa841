"""Several runs of one model, trained side by side by one program."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.optim import schedules
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment
from vit_jax.training.state import State


def experiment(cfg: config_lib.Config, *arguments: Any, **options: Any) -> Experiment:
  """What `cfg` describes, arguments as for `Experiment`: one run, or several as `Lanes`."""
  return (Lanes if cfg.lanes.count else Experiment)(cfg, *arguments, **options)


class Lanes(Experiment):
  """Runs that differ only in the fields of `Hyper`.

  Every array of the state has a leading axis over the lanes, and so have metrics and
  hyperparameters; scores are lists. A lane computes what it would compute alone, but for rounding.
  """

  def __init__(self, cfg: config_lib.Config, *arguments: Any, **options: Any):
    self.lanes = [
      {name: values[i] for name, values in vars(cfg.lanes).items() if values}
      for i in range(cfg.lanes.count)
    ]
    super().__init__(cfg, *arguments, **options)

  @property
  def examples_per_step(self) -> int:
    """How many the compiled step trains on, all lanes together."""
    return self.config.batch_size * len(self.lanes)

  def hyper(self, step: int) -> schedules.Hyper:
    """The arguments of the compiled step number `step`, each a vector over the lanes."""
    every = []
    for lane, seed in zip(self.lanes, self._seeds(), strict=True):
      own = {name: value for name, value in lane.items() if name != 'seed'}
      config = dataclasses.replace(self.config.optim, **own)
      every.append(schedules.hyper(step, config, seed=seed, **self._durations))
    return schedules.Hyper(*(np.stack(values) for values in zip(*every, strict=True)))

  def batches(self, start: int) -> Generator[dict[str, jax.Array], None, None]:
    """As of one run where the lanes have one seed; else with a leading axis over the lanes."""
    seeds = self._seeds().tolist()
    different = list(dict.fromkeys(seeds))
    if len(different) == 1:
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
    seeds = self.config.lanes.seed or (self.config.seed,) * len(self.lanes)
    return np.array(seeds, np.uint32)

  def _init(self, seed: Any) -> State:
    return jax.vmap(super()._init)(seed)

  def _split(self, state: State) -> State:
    return jax.vmap(super()._split)(state)

  def _stack(self, state: State) -> State:
    return jax.vmap(super()._stack)(state)

  def _started(self, model: Any) -> State:
    state = super()._started(model)
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(self.lanes)), state)

  def _step(self, state: State, batch: Any, hyper: schedules.Hyper) -> tuple[State, dict[str, Any]]:
    shared = batch['mask'].ndim == 1
    return jax.vmap(super()._step, in_axes=(0, None if shared else 0, 0))(state, batch, hyper)
