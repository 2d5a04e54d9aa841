"""A run that begins where another one has been: many durations from one trunk.

With a learning rate that stays constant after its warm-up, runs of different durations are the same
until each begins its cooldown (Zhai et al. 2022, section 3.5; Hägele et al. 2024). As a batch is a
function of seed and step, a fork ends bit for bit as the run that did everything by itself.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax

from vit_jax.core.errors import RunError
from vit_jax.training import lanes
from vit_jax.training.experiment import Experiment
from vit_jax.training.progress import copy_metrics
from vit_jax.training.state import State
from vit_jax.training.workdir import Workdir

# What may differ as long as every step has the same hyperparameters, and what trains nothing.
_JUDGED_BY_STEP = ('total', 'optim.lr', 'optim.weight_decay', 'optim.b1', 'optim.b2',
                   'optim.schedule', 'optim.warmup', 'optim.cooldown')  # fmt: skip


def restore(experiment: Experiment, trunk: str, own: Workdir) -> tuple[State, int, dict[str, Any]]:
  """The newest state of another run that this one would have come through.

  Args:
    experiment: of this run.
    trunk: directory of the other one, which may be going on.
    own: directory of this run; gets the lines of metrics.jsonl up to there.

  Returns:
    The state, its step, and the history of the run until then.

  Raises:
    RunError: if there is no such run, it differs in more than its duration, or has no checkpoint
      from before it does.
  """
  there = Workdir(trunk)
  if not there.exists:
    raise RunError(f'fork={trunk}: there is no run')
  lines = [
    f'  {name}: {old!r} there, {new!r} here'
    for name, (old, new) in there.changes(own.record()).items()
    if name not in _JUDGED_BY_STEP and not name.startswith('evals.')
  ]
  if lines:
    raise RunError(f'fork={trunk} is a run of something else:\n' + '\n'.join(lines))
  other = lanes.experiment(there.config())
  common = min(other.total, experiment.total)
  for step in range(common):
    if any((a != b).any() for a, b in zip(other.hyper(step), experiment.hyper(step), strict=True)):
      common = step
      break
  with contextlib.closing(there.checkpoints(read_only=True)) as checkpoints:
    steps = [step for step in checkpoints.steps if step <= common]
    if not steps:
      raise RunError(
        f'fork={trunk} does the same until step {common}, but has no checkpoint from before: its '
        f'steps are {", ".join(map(str, checkpoints.steps)) or "none"}. Durations of warm-up and '
        'cooldown in percent change with the total; checkpoint.at saves where forks begin.'
      )
    state, extra = checkpoints.restore(experiment.abstract_state, steps[-1])
  if jax.process_index() == 0:
    copy_metrics(there.metrics_path, own.metrics_path, after=steps[-1])
  history = {**extra.get('history', {}), 'forked': {'from': trunk, 'step': steps[-1]}}
  return state, steps[-1], history
