"""Evaluation of a run on its newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.nn import sharding
from vit_jax.training import config as config_lib
from vit_jax.training import lanes
from vit_jax.training.experiment import Experiment
from vit_jax.training.progress import Reporter
from vit_jax.training.workdir import Workdir


def restore(workdir: str, config: Mapping[str, Any] | None = None) -> tuple[Experiment, Any]:
  """A run's experiment and the state in its newest checkpoint, on the mesh in context.

  Raises:
    RunError: if there is no checkpoint, or it does not fit the model of `config`.
  """
  run = Workdir(workdir)
  cfg = run.config() if config is None else schema.build(config_lib.Config, config)
  experiment = lanes.experiment(cfg, run.described())
  if not run.has_checkpoints:
    raise RunError(f'{run} holds no checkpoints')
  checkpoints = run.checkpoints(read_only=True)
  try:
    if checkpoints.latest is None:
      raise RunError(f'{run} holds no finished checkpoint yet')
    state, _ = checkpoints.restore(experiment.abstract_state)
  finally:
    checkpoints.close()
  return experiment, state


def evaluate(workdir: str, config: Mapping[str, Any] | None = None) -> dict[str, float]:
  """Runs the evaluations of `config`, by default the run's own, on its newest checkpoint.

  Returns:
    Values by name, {'test/top1': 0.98, ...}.
  """
  mesh = config['mesh'] if config is not None else 'data'
  with jax.set_mesh(sharding.make_mesh(mesh)):
    experiment, state = restore(workdir, config)
    step, evaluators = int(state.step), experiment.evaluators()
    reporter = Reporter(step, step, visible=jax.process_index() == 0)
    reporter.close()
    reporter.lines(experiment.summary(evaluators))
    scores = experiment.evaluate(evaluators, state)
  reporter.table(f'{workdir}: step {step}', scores)
  return scores
