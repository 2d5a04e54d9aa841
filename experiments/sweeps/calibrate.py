"""How fast this machine trains the models of a sweep, from a minute on some of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.sweeps.jobs import Job
from vit_jax.core import paths, schema
from vit_jax.costs.chips import PEAKS
from vit_jax.nn import sharding
from vit_jax.scaling.cost import Machine, calibrated
from vit_jax.training import config as config_lib
from vit_jax.training import lanes
from vit_jax.training.workdir import Workdir

SECONDS = 2.0  # for each model, at least
STEPS = 20  # in a round


def measure(jobs: Sequence[Job], folder: paths.Path, count: int = 6) -> Machine:
  """Times training as the sweep in `folder` does it, for `count` models from small to large."""
  different = list({(job.cell.model, len(job.lanes)): job for job in jobs}.values())
  places = np.unique(np.linspace(0, len(different) - 1, count).round().astype(int))
  chosen = [different[place] for place in places]
  fixed, seconds = zip(*(_seconds(job, folder) for job in chosen), strict=True)
  kind = jax.devices()[0].device_kind
  name = kind if kind in PEAKS else f'{kind} with {jax.local_device_count()} device'
  cells = [job.cell for job in chosen]
  return calibrated(
    name, [cell.work for cell in cells], [cell.batch_size for cell in cells],
    [len(job.lanes) for job in chosen], seconds, chips=jax.device_count(),
    fixed=float(np.median(fixed)),
  )  # fmt: skip


def _seconds(job: Job, folder: paths.Path) -> tuple[float, float]:
  """Of a run apart from its steps; of a step, the median of several rounds."""
  cfg = schema.build(config_lib.Config, config_lib.to_dict(job.config))
  Workdir(folder / 'runs' / job.name).keep_compiled(cfg.compilation_cache)
  with jax.set_mesh(sharding.make_mesh(cfg.mesh)):
    _begin(cfg)[0].close()
    begin = time.perf_counter()  # nearly all runs find their data in memory and their programs made
    resources, experiment, step, state, batches = _begin(cfg)
    fixed = time.perf_counter() - begin
    rounds: list[float] = []
    with resources:
      state, metrics = step(state, experiment.frozen, next(batches), experiment.hyper(0))
      while len(rounds) < 4 or sum(rounds[1:]) < SECONDS:
        start = time.perf_counter()
        for i in range(STEPS):
          batch, hyper, before = next(batches), experiment.hyper(i), metrics
          state, metrics = step(state, experiment.frozen, batch, hyper)
          jax.device_get(before)
        jax.block_until_ready(state)
        rounds.append(time.perf_counter() - start)
  return fixed, float(np.median(rounds[1:])) / STEPS  # the first finds batches made before


def _begin(cfg: config_lib.Config) -> tuple[contextlib.ExitStack, Any, Any, Any, Any]:
  """What a run does apart from its steps; what to close, experiment, step, state, batches."""
  experiment = lanes.experiment(cfg)
  state = experiment.split(experiment.init())
  resources = contextlib.ExitStack()
  batches = resources.enter_context(contextlib.closing(experiment.batches(0)))
  batch, hyper = next(batches), experiment.hyper(0)
  step = experiment.train_step().lower(state, experiment.frozen, batch, hyper).compile()
  experiment.evaluate(experiment.evaluators(), state)
  return resources, experiment, step, state, batches
