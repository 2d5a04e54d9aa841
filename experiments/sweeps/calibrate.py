"""How fast this machine trains the models of a sweep, from a minute on some of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.sweeps.jobs import Job
from vit_jax import config as config_lib
from vit_jax import lanes, schema, sharding
from vit_jax.chips import PEAKS
from vit_jax.scaling.cost import Machine, calibrated

SECONDS = 4.0  # for each model, at least
STEPS = 20  # in a round


def measure(jobs: Sequence[Job], count: int = 4) -> Machine:
  """Times training as the sweep does it, for `count` jobs from small to large models."""
  different = list({(job.cell.model, len(job.lanes)): job for job in jobs}.values())
  places = np.unique(np.linspace(0, len(different) - 1, count).round().astype(int))
  chosen = [different[place] for place in places]
  fixed, seconds = zip(*(_seconds(job) for job in chosen), strict=True)
  kind = jax.devices()[0].device_kind
  name = kind if kind in PEAKS else f'{kind} with {jax.local_device_count()} device'
  cells = [job.cell for job in chosen]
  return calibrated(
    name, [cell.model for cell in cells], [cell.batch_size for cell in cells],
    [len(job.lanes) for job in chosen], seconds, chips=jax.device_count(),
    fixed=float(np.median(fixed)),
  )  # fmt: skip


def _seconds(job: Job) -> tuple[float, float]:
  """Of a run beside its steps; of a step, the median of several rounds."""
  begin = time.perf_counter()
  cfg = schema.build(config_lib.Config, config_lib.to_dict(job.config))
  rounds: list[float] = []
  with jax.set_mesh(sharding.make_mesh(cfg.mesh)):
    experiment = lanes.experiment(cfg)
    state = experiment.split(experiment.init())
    with contextlib.closing(experiment.batches(0)) as batches:
      batch, hyper = next(batches), experiment.hyper(0)
      step = experiment.train_step().lower(state, batch, hyper).compile()
      state, metrics = step(state, batch, hyper)
      experiment.evaluate(experiment.evaluators(), state)
      fixed = time.perf_counter() - begin
      while len(rounds) < 4 or sum(rounds[1:]) < SECONDS:
        start = time.perf_counter()
        for i in range(STEPS):
          batch, hyper, before = next(batches), experiment.hyper(i), metrics
          state, metrics = step(state, batch, hyper)
          jax.device_get(before)
        jax.block_until_ready(state)
        rounds.append(time.perf_counter() - start)
  return fixed, float(np.median(rounds[1:])) / STEPS  # the first finds batches made before
