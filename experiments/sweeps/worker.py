"""Works off the jobs of a sweep, alone or with others, and keeps the record of all of them.

A sweep has a directory that all workers see, which may be in an object store:

    runs/NAME/         the directory of each job, as `vit_jax.train` leaves it
    rows/NAME.jsonl    what came out: one line for each lane, written when the job has ended
    locks/NAME         claimed by the worker that is on the job, until its process ends
    table.jsonl        all rows, made anew whenever there are more
    workers/I/taken/   what worker I of a launcher has taken, and ended

A job without rows is begun, or gone on with where a worker was killed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.sweeps.jobs import Job, section
from experiments.sweeps.runs import DIVERGED, FINISHED, TRUNK
from vit_jax.core import claims, paths
from vit_jax.core.errors import DivergedError, PassingError, RunError
from vit_jax.costs import flops
from vit_jax.scaling import design
from vit_jax.scaling.cost import Machine
from vit_jax.train import train
from vit_jax.training import config as config_lib

FAILED = 'failed'
WAIT, DONE = -1, -2
# Relative difference of FLOPs by which design and run may count one step in another way: whole
# examples of a subset.
APART = 0.02
# What came out of phases of a run that are worth a column.
PHASES = ('step', 'input', 'compile', 'eval', 'checkpoint', 'init')


def status(folder: paths.Path, job: Job) -> str:
  """Of a job: one of the states above, 'running' under somebody's lock, 'begun' or ''."""
  path = _rows(folder, job)
  if path.exists():
    states = {json.loads(line)['status'] for line in path.read_text().splitlines()}
    return next(iter(states)) if len(states) == 1 else FINISHED
  if (folder / 'locks' / job.name).exists():
    with _claim(folder, job) as mine:
      if not mine:
        return 'running'
  return 'begun' if (folder / 'runs' / job.name / 'config.json').exists() else ''


def work(
  folder: paths.Path, jobs: Sequence[Job], *, retry: bool = False, poll: float = 5.0,
  machine: Machine | None = None, own: paths.Path | None = None,
  say: Callable[[str], None] = print,
) -> bool:  # fmt: skip
  """Trains until nothing is left to do, here or at other workers that this one could wait for.

  Args:
    folder: of the sweep.
    jobs: all of them.
    retry: try again what has failed.
    poll: seconds between looks at what others do.
    machine: whose predictions of time go into the record.
    own: a directory for what this worker has taken, NAME, and ended, NAME.jsonl: whoever restarts
      it sees by that how it gets on.
    say: tells people.

  Returns:
    Whether every job has ended; False after a signal.

  Raises:
    RunError: if the models that are trained are not those of the design.
  """
  for path in (*(folder / name for name in ('runs', 'rows', 'locks')), *filter(None, [own])):
    path.mkdir(parents=True, exist_ok=True)
  if retry and jax.process_index() == 0:
    for job in jobs:
      if status(folder, job) == FAILED:
        _rows(folder, job).unlink(missing_ok=True)  # another worker may have, too
  while True:
    number, held = _next(folder, jobs)
    with held:
      if number == DONE:
        return True
      if number == WAIT:
        time.sleep(poll)
        continue
      job = jobs[number]
      say(f'[{sum(_rows(folder, j).exists() for j in jobs) + 1}/{len(jobs)}] {job.name}')
      if own and jax.process_index() == 0:
        paths.write_text(own / job.name, '')
      rows = _run(folder, job, machine)
      if rows is None:
        return False
      if jax.process_index() == 0:
        _write(_rows(folder, job), rows)
        collect(folder)
        if own:
          paths.write_text(own / f'{job.name}.jsonl', '')
    states = ' '.join(f'{row["status"]} {_shown(row)}'.strip() for row in rows[:8])
    say(f'    {states}')


def collect(folder: paths.Path) -> list[dict[str, Any]]:
  """All rows so far, in the order of their names; also written to table.jsonl."""
  found = lambda: sorted((folder / 'rows').glob('*.jsonl'))  # noqa: E731
  there, rows = None, []
  while there != (there := found()):  # another worker may have written an older table meanwhile
    rows = [json.loads(line) for path in there for line in path.read_text().splitlines()]
    _write(folder / 'table.jsonl', rows)
  return rows


def _next(folder: paths.Path, jobs: Sequence[Job]) -> tuple[int, contextlib.ExitStack]:
  """The next job that can be begun, and the lock on it; or WAIT for others, or all is DONE.

  Of several processes of one worker the first decides.
  """
  stack, number = contextlib.ExitStack(), DONE
  if jax.process_index() == 0:
    for i, job in enumerate(jobs):
      if _rows(folder, job).exists():
        continue
      number = WAIT
      if not _trunk_is_done(folder, job, jobs):
        continue
      if stack.enter_context(_claim(folder, job)) and not _rows(folder, job).exists():
        number = i
        break
  if jax.process_count() > 1:
    number = int(multihost_utils.broadcast_one_to_all(np.int32(number)))
  return number, stack


def _trunk_is_done(folder: paths.Path, job: Job, jobs: Sequence[Job]) -> bool:
  if not job.trunk:
    return True
  trunk = next(other for other in jobs if other.name == job.trunk)
  return _rows(folder, trunk).exists()


@contextlib.contextmanager
def _claim(folder: paths.Path, job: Job) -> Iterator[bool]:
  """Whether this process has the job to itself for as long as the context lasts."""
  try:
    claim = claims.take(folder / 'locks' / job.name)
  except claims.HeldError:
    yield False
    return
  with contextlib.closing(claim):
    yield True


def _run(folder: paths.Path, job: Job, machine: Machine | None) -> list[dict[str, Any]] | None:
  """Trains; the rows of its lanes, or None if a signal has stopped it."""
  config, path = job.config.copy_and_resolve_references(), folder / 'runs' / job.name
  trunk = folder / 'runs' / job.trunk if job.trunk else None
  begin = time.time()
  # Without its trunk a fork trains from the start.
  if trunk and (trunk / 'result.json').exists():
    config.fork = str(trunk)
  result, error, state = None, '', FINISHED
  try:
    result = train(config, str(path))
    if result is None:
      return None
  except DivergedError as exception:
    state, error = DIVERGED, str(exception)
  except PassingError:  # it is gone on with
    raise
  except RunError as exception:
    state, error = FAILED, str(exception)
  except Exception as exception:  # one broken run must not keep workers from the others
    traceback.print_exc()
    state, error = FAILED, f'{type(exception).__name__}: {exception}'
  result = result or {}
  facts = {
    **_facts(job, config),
    'epochs': result.get('epochs'),
    'forked': result.get('forked', {}).get('step', 0),
    'seconds': sum(result.get('seconds', {}).values()) or time.time() - begin,
    **{f'seconds_{phase}': result.get('seconds', {}).get(phase) for phase in PHASES},
    'predicted_seconds': machine and predicted_seconds(job, machine),
    'images_per_second': result.get('images_per_second_per_chip'),
    'device': result.get('device'), 'devices': result.get('devices'),
    'host': platform.node(), 'git': result.get('git'), 'packages': result.get('packages'),
    'ended': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'error': error.splitlines()[0] if error else '',
  }  # fmt: skip
  if result and result['parameters'] != facts['parameters']:  # every law would be wrong
    raise RunError(
      f'{job.name} has {result["parameters"]:,} parameters, and {facts["parameters"]:,} in the '
      'design: give its models the num_classes of the data, and whatever else config.model sets'
    )
  if result and abs(result['flops']['training_per_image'] / job.cell.each - 1) > APART:
    raise RunError(
      f'{job.name} computes {result["flops"]["training_per_image"]:,.0f} FLOPs for an example, and '
      f'{job.cell.each:,} in the design: make it with the passes of the task, '
      'design.isoflop(..., passes=task.passes), and without parameters that are frozen'
    )
  rows, values = [], {**result.get('metrics', {}), **(_reported(path) if result else {})}
  for lane, own in enumerate(job.lanes):
    gone = result.get('diverged', {}).get(str(lane))
    scores = {
      name.replace('/', '_'): value[lane] if isinstance(value, list) else value
      for name, value in values.items()
    }
    what = DIVERGED if gone is not None else TRUNK if job.is_trunk and not error else state
    rows.append({
      'id': f'{job.name}/{lane}', 'run': job.name, 'lane': lane, 'status': what,
      **{**facts, **own}, 'diverged_at': gone, **scores,
    })  # fmt: skip
  return rows


def _reported(path: paths.Path) -> dict[str, Any]:
  """What training has reported last, by name: the means over `log.every`."""
  file = path / 'metrics.jsonl'
  lines = map(json.loads, file.read_text().splitlines() if file.exists() else ())
  reports = [{n: v for n, v in line.items() if n.startswith('train/')} for line in lines]
  return next((report for report in reversed(reports) if report), {})


def predicted_seconds(job: Job, machine: Machine) -> float:
  """Of a whole job on a machine."""
  cell, steps = job.cell, job.cell.steps - job.start
  return machine.run_seconds(cell.work, cell.batch_size, steps, len(job.lanes))


def _facts(job: Job, config: Any) -> dict[str, Any]:
  """What is known of a job before it is run."""
  cell, optim = job.cell, config.optim
  found = flops.costs(cell.model)
  tower = section(config.model, design.varied(cell.model))
  return {
    'group': cell.group, **cell.shape, 'batch_size': cell.batch_size, 'steps': cell.steps,
    'images': cell.images, 'tokens': cell.tokens, 'parameters': found.parameters(),
    'parameters_non_embedding': found.parameters(without=('embedding',)), 'flops': cell.flops,
    **{name: optim.get(name) for name in ('lr', 'weight_decay', 'b1', 'b2')},
    'seed': config.seed, 'schedule': optim.schedule, 'warmup': optim.warmup,
    'cooldown': optim.cooldown, 'mup_width': tower.mup_width, 'mup_depth': tower.mup_depth,
    'varied': list(job.lanes[0]), 'task': config.task.name,
    'config_hash': config_lib.run_hash(config_lib.to_dict(config)),
  }  # fmt: skip


def _shown(row: dict[str, Any]) -> str:
  losses = [value for name, value in row.items() if name.endswith('_loss') and value is not None]
  return f'{losses[0]:.4f}' if losses else row['error'][:60]


def _rows(folder: paths.Path, job: Job) -> paths.Path:
  return folder / 'rows' / f'{job.name}.jsonl'


def _write(path: paths.Path, rows: Sequence[dict[str, Any]]) -> None:
  paths.write_text(path, ''.join(f'{json.dumps(row)}\n' for row in rows))
