"""A run that begins where another one has been: many durations from one trunk.

With a learning rate that stays constant after its warm-up, runs of different durations are the same
until each begins its cooldown (Zhai et al. 2022, section 3.5; Hägele et al. 2024). As a batch is a
function of seed and step, a fork ends bit for bit as a run that was trained from the start.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vit_jax.checkpoints.store import Found
from vit_jax.core.errors import RunError
from vit_jax.training import config as config_lib
from vit_jax.training import hyper, lanes
from vit_jax.training.experiment import Experiment
from vit_jax.training.workdir import Workdir

# Hyperparameters may differ as long as they are the same at every step; so may what makes them.
_DURATIONS = (
  'total', 'optim.schedule', 'optim.warmup', 'optim.cooldown', 'optim.lr_first', 'optim.lr_last',
  'optim.fall_from',
)  # fmt: skip


def restore(experiment: Experiment, record: dict[str, Any], there: Workdir, own: Workdir) -> Found:
  """The newest sound state of another run that this one would have come through.

  Args:
    experiment: of this run.
    record: of this run.
    there: directory of the other one, which may be going on.
    own: directory of this one.

  Returns:
    As `Checkpoints.newest`; the history in `extra` is that of this run until then.

  Raises:
    RunError: if there is no such run, it differs in more than its duration, or has no checkpoint
      from before it does.
  """
  if not there.exists:
    raise RunError(f'fork={there}: there is no run')
  if there.path.resolve() == own.path.resolve():
    raise RunError(f'fork={there} is the directory of this run itself')
  lines = [
    f'  {name}: {old!r} there, {new!r} here'
    for name, (old, new) in there.changes(record).items()
    if not judged_by_step(name, experiment.config)
  ]
  if lines:
    raise RunError(f'fork={there} is a run of another configuration:\n' + '\n'.join(lines))
  shared, steps = _shared(experiment, there)
  if not steps:
    raise RunError(
      f'fork={there} is the same run until step {shared}, but has no checkpoint up to there: its '
      f'steps are {_listed(there)}. Durations of warm-up and cooldown in percent change with the '
      'total; checkpoint.at saves where forks begin.'
    )
  found = there.checkpoints().newest(experiment.to_restore()[0], steps)
  forked = {'from': str(there), 'step': found.step}
  found.extra['history'] = {**found.extra.get('history', {}), 'forked': forked}
  return found


def ways_on(cfg: config_lib.Config, workdir: Workdir, changes: Iterable[str]) -> str:
  """How a run can go on from one in `workdir`, from which it differs in the fields `changes`."""
  if not all(judged_by_step(name, cfg) for name in changes):
    return ''
  try:
    shared, steps = _shared(lanes.experiment(cfg, workdir.known()), workdir)
  except RunError:
    return ''
  if not workdir.checkpoints().steps:
    return ''
  if steps:
    return (
      f'Up to step {steps[-1]}, of which there is a checkpoint, both are the same: '
      f'--config.fork={workdir} with another --workdir goes on from there.\n'
    )
  return (
    f'They part after step {shared}, and the checkpoints there are of later steps '
    f'({_listed(workdir)}), so this run cannot continue from any of them: '
    f'--config.init={workdir} with another --workdir starts from its weights.\n'
  )


def judged_by_step(name: str, cfg: config_lib.Config) -> bool:
  """Whether a field may differ as long as every step has the same hyperparameters."""
  return name in (*_DURATIONS, *hyper.names(cfg)) or name.startswith(('evals.', 'sizes.'))


def _shared(experiment: Experiment, there: Workdir) -> tuple[int, list[int]]:
  """Until which step both runs are the same, and the checkpoints that the other has until then."""
  other = lanes.experiment(there.config(), there.known())
  common = min(other.total, experiment.total)
  for step in range(common):
    sizes = [each.models[each.size(step)] for each in (other, experiment)]
    hypers = zip(other.hyper(step), experiment.hyper(step), strict=True)
    if sizes[0] != sizes[1] or any((a != b).any() for a, b in hypers):
      common = step
      break
  return common, [step for step in there.checkpoints().steps if step <= common]


def _listed(workdir: Workdir) -> str:
  return ', '.join(map(str, workdir.checkpoints().steps)) or 'none'
