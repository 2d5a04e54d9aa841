"""How fast this machine trains the models of a sweep, from a few seconds on some of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.sweeps.jobs import Job
from vit_jax import config as config_lib
from vit_jax import lanes, schema, sharding
from vit_jax.chips import PEAKS
from vit_jax.data.sources import Synthetic
from vit_jax.scaling.cost import Machine, calibrated

SECONDS = 2.0


def measure(jobs: Sequence[Job], count: int = 4) -> Machine:
  """Times the real training step on random images, for `count` jobs from small to large models."""
  different = list({(job.cell.model, len(job.lanes)): job for job in jobs}.values())
  places = np.unique(np.linspace(0, len(different) - 1, count).round().astype(int))
  chosen = [different[place] for place in places]
  seconds = [_step_seconds(job) for job in chosen]
  kind = jax.devices()[0].device_kind
  name = kind if kind in PEAKS else f'{kind} with {jax.local_device_count()} device'
  cells = [job.cell for job in chosen]
  return calibrated(
    name, [cell.model for cell in cells], [cell.batch_size for cell in cells],
    [len(job.lanes) for job in chosen], seconds, chips=jax.device_count(),
  )  # fmt: skip


def _step_seconds(job: Job) -> float:
  """The shortest of several rounds."""
  cfg = schema.build(config_lib.Config, config_lib.to_dict(job.config))
  classes = cfg.model.num_classes or 10
  source = Synthetic(num_classes=classes, image_size=job.cell.model.image_size)
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source=source))
  with jax.set_mesh(sharding.make_mesh(cfg.mesh)):
    experiment = lanes.experiment(cfg)
    state, batches = experiment.split(experiment.init()), experiment.batches(0)
    batch, hyper = next(batches), experiment.hyper(0)
    batches.close()
    step = experiment.train_step().lower(state, batch, hyper).compile()
    state, _ = step(state, batch, hyper)
    jax.block_until_ready(state)
    best, begin, rounds = np.inf, time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - begin < SECONDS:
      start = time.perf_counter()
      for _ in range(10):
        state, _ = step(state, batch, hyper)
      jax.block_until_ready(state)
      best, rounds = min(best, (time.perf_counter() - start) / 10), rounds + 1
  return float(best)
