"""Evaluation of a run on one of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.nn import sharding
from vit_jax.training import config as config_lib
from vit_jax.training import lanes
from vit_jax.training.experiment import Experiment
from vit_jax.training.progress import Reporter
from vit_jax.training.workdir import Workdir


def restore(
  workdir: str, config: Mapping[str, Any] | None = None, *, step: int | None = None
) -> tuple[Experiment, Any]:
  """A run's experiment and the state in a checkpoint as steps have it, on the mesh in context.

  Args:
    workdir: of the run.
    config: the run's own if not given.
    step: of the checkpoint; the newest if not given.

  Raises:
    RunError: if there is no checkpoint, it is damaged, or does not fit the model of `config`.
  """
  run = Workdir(workdir)
  cfg = run.config() if config is None else schema.build(config_lib.Config, config)
  experiment = lanes.experiment(cfg, run.known(), training=False)
  try:
    state, _ = run.checkpoints().restore(experiment.abstract_state, step)
  except RunError as error:
    if config is None or 'does not fit' not in str(error):
      raise
    raise RunError(
      f'{error}\nThe configuration is of another model than {workdir}. Leave it out to evaluate as '
      "the run does; single fields can be changed, such as --config.data.source.dir='DIR'."
    ) from None
  experiment.adopt(run.frozen(experiment.frozen))
  return experiment, experiment.split(state)


def evaluate(
  workdir: str, config: Mapping[str, Any] | None = None, *, step: int | None = None
) -> dict[str, float]:
  """Runs the evaluations of `config` on a checkpoint; arguments as for `restore`.

  Returns:
    Values by name, {'test/top1': 0.98, ...}.
  """
  mesh = config['mesh'] if config is not None else 'data'
  with jax.set_mesh(sharding.make_mesh(mesh)):
    experiment, state = restore(workdir, config, step=step)
    done, evaluators = int(np.max(state.step)), experiment.evaluators()
    if not evaluators:
      raise RunError('the configuration has no evaluations: there is nothing to do')
    reporter = Reporter(done, done, visible=jax.process_index() == 0)
    reporter.close()
    reporter.lines(experiment.summary(evaluators))
    scores, _ = experiment.evaluate(evaluators, state)
  reporter.table(f'{workdir}: step {done}', scores)
  return scores
