"""Evaluation of a run: `python -m vit_jax.evaluate --workdir=DIR [--config=configs/NAME.py]`.

Without --config the run's own configuration is used.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from vit_jax import config as config_lib
from vit_jax import lanes, schema, sharding
from vit_jax.checkpoint import Checkpoints
from vit_jax.convert import bridge
from vit_jax.errors import RunError
from vit_jax.experiment import Experiment
from vit_jax.metrics import Reporter, read_json


def restore(workdir: str, config: Mapping[str, Any] | None = None) -> tuple[Experiment, Any]:
  """A run's experiment and the state in its newest checkpoint, on the mesh in context.

  Raises:
    RunError: if there is no checkpoint, or it does not fit the model of `config`.
  """
  folder = pathlib.Path(workdir)
  if config is None and not (folder / 'config.json').exists():
    raise RunError(f'{folder} holds no run: there is no config.json')
  given = read_json(folder / 'config.json') if config is None else config
  cfg: config_lib.Config = schema.build(config_lib.Config, given)
  experiment = lanes.experiment(cfg, bridge.stored_model(folder) if cfg.init else None)
  if not (folder / 'checkpoints').is_dir():
    raise RunError(f'{folder} holds no checkpoints')
  checkpoints = Checkpoints(folder / 'checkpoints', read_only=True)
  try:
    if checkpoints.latest is None:
      raise RunError(f'{folder} holds no finished checkpoint yet')
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
    scores = experiment.evaluate(experiment.evaluators(), state)
    step = int(state.step)
  reporter = Reporter(step, step, visible=jax.process_index() == 0)
  reporter.close()
  reporter.table(f'{workdir}: step {step}', scores)
  return scores


if __name__ == '__main__':
  from absl import flags

  from vit_jax import launch

  flags.mark_flag_as_required('workdir')
  launch.run(lambda: evaluate(launch.WORKDIR.value, launch.CONFIG.value))
