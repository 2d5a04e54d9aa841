"""Launches a run: `python -m experiments.launch --engine=ENGINE --config=FILE --workdir=DIR`.

It prints what it would do; --submit does it. What was submitted is recorded beside the run, so that
--status, --logs and --stop need --workdir alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from experiments.launch import engines
from experiments.launch import job as job_lib
from experiments.launch.engine import Engine
from experiments.launch.job import Job
from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.training import config as config_lib


def training(config: str, fields: Sequence[tuple[str, str]], workdir: str, **about: object) -> Job:
  """The job that trains a run, with a doctor's look at every process first.

  Args:
    config: file of it.
    fields: (name, text) pairs, set on the command line.
    workdir: of the run.
    about: other fields of the job.

  Raises:
    RunError: for a configuration that would be refused where it runs.
  """
  built = config_lib.override(config_lib.load(config), fields)
  built, _ = config_lib.started(built, {name for name, _ in fields})
  config_lib.check(built)
  words = ['python', '-m', 'vit_jax.train', '--doctor', f'--config={config}']
  words += [f'--config.{name}={text}' for name, text in fields]
  return Job(
    command=(*words, f'--workdir={workdir}'), workdir=workdir, watched=(f'{workdir}/checkpoints',),
    root=os.getcwd(), **about,  # pyright: ignore[reportArgumentType]
  )  # fmt: skip


def main(
  config: str | None, workdir: str, engine: str | None, name: str, max_restarts: int, submit: bool,
  take_over: bool, status: bool, logs: bool, stop: bool, texts: Mapping[str, str],
) -> int:  # fmt: skip
  """The command; returns its exit status."""
  if status or logs or stop:
    if config or engine or texts:
      raise RunError('--status, --logs and --stop are of the job in --workdir: give nothing else')
    return _about(engines.of(workdir), logs=logs, stop=stop)
  if not config or not engine:
    raise RunError('give --engine and --config to launch a run, or --status, --logs or --stop')
  fields = [(n.removeprefix('config.'), t) for n, t in texts.items() if n.startswith('config.')]
  own = {n: t for n, t in texts.items() if not n.startswith('config.')}
  job = training(
    config, fields, workdir, engine=engine, name=name or job_lib.name_of(workdir), options=own,
    max_restarts=max_restarts,
  )  # fmt: skip
  engines.launch(job, submit=submit, take_over=take_over)
  return 0


def _about(engine: Engine, *, logs: bool, stop: bool) -> int:
  if not engine.job.submitted:
    raise RunError(f'{engine.job.workdir}: no job was submitted; the last attempt to has failed')
  if logs:
    return subprocess.run(list(engine.logs().words)).returncode
  if stop:
    engine.stop()
  print(engine.status())
  print(job_lib.progress(engine.job))
  return 0


if __name__ == '__main__':
  parser = command.Parser(
    'experiments.launch',
    'Starts a run somewhere and keeps it going. Prints what it would do; --submit does it.\n'
    'Options of an engine are written --NAME=VALUE; fields of the run --config.FIELD=VALUE.',
    (
      '--engine=local --processes=2 --config=configs/digits.py --workdir=runs/digits',
      '--engine=slurm --nodes=4 --gpus=8 --time=24:00:00 --config=configs/tfds.py:imagenet2012 \\\n'
      '    --workdir=/shared/runs/imagenet --submit',
      '--workdir=/shared/runs/imagenet --status',
    ),
  )
  parser.add_argument('--engine', choices=tuple(engines.ENGINES), help='who starts it')
  parser.add_argument('--config', metavar='FILE', help='of the run')
  parser.add_argument(
    '--workdir', required=True, metavar='DIR', help='of the run; gs://... as well'
  )
  parser.add_argument('--name', default='', help="of the job (made of the workdir's)")
  parser.add_argument(
    '--max_restarts', type=int, default=10, metavar='N',
    help='how often it is restarted in a row without a new checkpoint (10)',
  )  # fmt: skip
  parser.switch('--submit', 'do it')
  parser.switch('--take_over', 'with --submit, from a supervisor on a machine that is gone')
  parser.switch('--status', 'how the job in --workdir is')
  parser.switch('--logs', 'the end of its output')
  parser.switch('--stop', 'save its state and end it')
  command.run(parser, main)
