"""Trains a sweep: `python -m experiments.sweep experiments/scaling/classification.py --dir=DIR`.

--dry-run shows what would be trained. Any number of workers, here or on other machines that see
DIR, may run the same command: each takes the next job that nobody has, and goes on with what was
interrupted. With --engine the command is given to one of the engines of `experiments.launch`, once
for each of --workers.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.launch import engines
from experiments.launch.job import Job as Launched
from experiments.sweeps import worker
from experiments.sweeps.jobs import Job, Sweep, expand
from vit_jax.core import command, modules, paths
from vit_jax.core.errors import RESTART, RunError
from vit_jax.core.text import number
from vit_jax.costs import flops
from vit_jax.costs.footprint import memory as footprint
from vit_jax.launch import memory, start
from vit_jax.launch.cluster import join
from vit_jax.scaling.cost import Machine

# Runs that are left out, by name.
SHOWN = 12


def load(name: str) -> Sweep:
  """The sweep of a file, 'experiments/scaling/classification.py:cpu' with an argument or without.

  Raises:
    RunError: if there is no such file, or no function `get_sweep` in it.
  """
  return modules.call(name, 'get_sweep')


def planned(jobs: Sequence[Job], machine: Machine | None) -> list[dict[str, Any]]:
  """What each job will cost: FLOPs and bytes, and with a machine seconds and money."""
  rows = []
  for job in jobs:
    cell = job.cell
    needs = _bytes_per_chip(job, machine.chips if machine else 1)
    seconds = money = fits = None
    if machine:
      seconds = worker.predicted_seconds(job, machine)
      money, fits = machine.money(seconds), needs <= machine.memory if machine.memory else None
    rows.append({
      'job': job.name, 'lanes': len(job.lanes), 'parameters': flops.costs(cell.model).parameters(),
      'images': cell.images, 'steps': cell.steps - job.start, 'flops': job.flops, 'bytes': needs,
      'seconds': seconds, 'money': money, 'fits': fits,
    })  # fmt: skip
  return rows


def _bytes_per_chip(job: Job, chips: int) -> int:
  """Of training, where the batch is cut over all chips, and the state by 'fsdp'."""
  needs = footprint(job.cell.work[0].model, math.ceil(job.cell.batch_size / chips))
  state = needs.parameters + needs.gradients + needs.optimizer
  shards = chips if job.config.mesh == 'fsdp' else 1
  return (needs.total - state + state // shards) * len(job.lanes)


def show(sweep: Sweep, jobs: Sequence[Job], folder: paths.Path | None, machine: Any) -> None:
  """A table of the jobs, what was left out, and the sum."""
  table = Table(title=f'{len(sweep.design.cells)} runs x {max(1, len(sweep.combinations))} lanes')
  names = ('job', 'parameters', 'images', 'steps', 'FLOPs', 'GiB/chip', 'time', 'cost', 'state')
  for name in names:
    table.add_column(name, justify='left' if name in ('job', 'state') else 'right')
  rows = planned(jobs, machine)
  for job, row in zip(jobs, rows, strict=True):
    state = worker.status(folder, job) if folder and folder.exists() else ''
    state = 'does not fit' if row['fits'] is False else state
    table.add_row(
      row['job'], number(row['parameters']), number(row['images']), number(row['steps']),
      f'{row["flops"]:.3g}', f'{row["bytes"] / 2**30:.2g}', duration(row['seconds']),
      '' if not row['money'] else f'{row["money"]:,.2f}', state,
    )  # fmt: skip
  console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
  console.print(table)
  for left in sweep.design.left_out[:SHOWN]:
    console.print(f'left out: {left.group}, {left.model}: {left.reason}')
  if (more := len(sweep.design.left_out) - SHOWN) > 0:
    console.print(f'left out: {more} more, which --json names')
  total = f'{len(jobs)} jobs, {sum(row["flops"] for row in rows):.3g} FLOPs'
  scratch = sweep.design.flops * max(1, len(sweep.combinations))
  total += f' ({scratch:.3g} if every run began from scratch)' if sweep.forks else ''
  if machine:
    seconds = sum(row['seconds'] for row in rows)
    total += f', {duration(seconds)} on one {machine.name}'
    total += f', {machine.money(seconds):,.0f} {machine.currency}' if machine.price else ''
    total += f' (steps within a factor of {machine.error:.2f})' if machine.error else ''
  console.print(total)


def duration(seconds: float | None) -> str:
  """For people."""
  if seconds is None:
    return ''
  for unit, size in (('d', 86400), ('h', 3600), ('min', 60)):
    if seconds >= 2 * size:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds:.1f} s'


def main(
  sweep: str, dir: paths.Path, dry_run: bool, engine: str, workers: int, submit: bool,
  retry: bool, json: bool, calibrate: bool, take_over: bool, worker_number: int | None,
  coordinator: str | None, num_processes: int | None, process_id: int | None,
  texts: Mapping[str, str],
) -> int:  # fmt: skip
  """The command; returns its exit status."""
  if texts and engine == 'here':
    raise RunError(f'unknown argument --{next(iter(texts))} (--help lists all arguments)')
  if calibrate and engine != 'here':
    raise RunError('--calibrate measures the machine it is run on: leave --engine out')
  found = load(sweep)
  jobs = expand(found)
  if engine == 'here' and not (dry_run or json):
    memory.keep()
    join(coordinator, num_processes, process_id)  # before anything asks for devices
  machine = _machine(found, dir, calibrate, jobs)
  if json:
    print(_json(found, jobs, machine))
  elif dry_run:
    show(found, jobs, dir, machine)
  elif engine != 'here':
    words = ('python', '-m', 'experiments.sweep', sweep, f'--dir={dir}', *['--retry'] * retry)
    for job in launched(words, dir, engine, workers, texts):
      engines.launch(job, submit=submit, take_over=take_over)
  else:
    own = None if worker_number is None else _taken(dir, worker_number)
    if not worker.work(dir, jobs, retry=retry, machine=machine, own=own):
      print(f'stopped by a signal: run the same command to go on with {dir}')
      return RESTART
    rows = worker.collect(dir)
    states = [row['status'] for row in rows]
    print(f'{dir}/table.jsonl: ' + ', '.join(f'{states.count(s)} {s}' for s in sorted({*states})))
  return 0


def launched(
  words: tuple[str, ...], folder: paths.Path, engine: str, workers: int,
  options: Mapping[str, str],
) -> list[Launched]:  # fmt: skip
  """The jobs of workers, each with its record in DIR/workers/N.

  Args:
    words: the command of a worker.
    folder: of the sweep.
    engine: that starts them.
    workers: how many.
    options: of the engine, and `name`.
  """
  own = dict(options)
  name = own.pop('name', 'sweep')
  return [
    Launched(
      f'{name}-{i}', engine, (*words, f'--worker_number={i}'), f'{folder}/workers/{i}',
      (f'{_taken(folder, i)}', f'{folder}/runs/*/checkpoints'), own, root=os.getcwd(),
    )
    for i in range(workers)
  ]  # fmt: skip


def _taken(folder: paths.Path, number: int) -> paths.Path:
  return folder / 'workers' / str(number) / 'taken'


def _machine(sweep: Sweep, folder: paths.Path, calibrate: bool, jobs: Sequence[Job]) -> Any:
  """What the sweep says it runs on, or what was measured here, or None."""
  path = folder / 'machine.json'
  if calibrate:
    from experiments.sweeps.calibrate import measure

    folder.mkdir(parents=True, exist_ok=True)
    paths.write_text(path, measure(jobs, folder).to_json())
  if path.exists():
    return Machine.from_json(path.read_text())
  return sweep.machine


def _json(sweep: Sweep, jobs: Sequence[Job], machine: Any) -> str:
  left = [tuple(each) for each in sweep.design.left_out]
  return json.dumps(dict(jobs=planned(jobs, machine), left_out=left), indent=1)


if __name__ == '__main__':
  parser = command.Parser(
    'experiments.sweep', 'Trains a sweep; any number of workers may run the same command.',
    ('experiments/scaling/classification.py:cpu --dir=runs/fashion --dry-run',
     'experiments/scaling/classification.py:gpu --dir=/shared/gpu --engine=slurm --workers=8'),
  )  # fmt: skip
  parser.add_argument('sweep', help='file with get_sweep(profile), and :profile')
  parser.add_argument(
    '--dir', type=paths.at, required=True, metavar='DIR', help='directory of the sweep'
  )
  parser.switch('--dry-run', 'only show what would be trained')
  parser.switch('--json', 'the same as JSON')
  parser.switch('--calibrate', 'measure the speed of this machine first')
  parser.switch('--retry', 'train failed runs again')
  parser.add_argument(
    '--engine', default='here', choices=('here', *engines.ENGINES),
    help='who starts the workers; its options are written --NAME=VALUE (here)',
  )  # fmt: skip
  parser.add_argument(
    '--workers', type=int, default=1, metavar='N', help='how many the engine starts (1)'
  )
  parser.switch('--submit', 'with --engine: submit the jobs instead of printing them')
  parser.switch('--take_over', 'with --submit, from supervisors on a machine that is gone')
  parser.add_argument(
    '--worker_number', type=int, metavar='I', help='of this one, given by the engine'
  )
  start.several(parser)
  command.run(parser, main)
