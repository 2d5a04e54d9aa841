"""The engines that a job can be given to. A new one is a class and a line here."""

from __future__ import annotations

import dataclasses
import secrets

from experiments.launch import job as job_lib
from experiments.launch.engine import Engine, shown
from experiments.launch.job import Job
from experiments.launch.local import Local
from experiments.launch.slurm import Slurm
from experiments.launch.supervise import ElsewhereError
from experiments.launch.tpu_vm import TpuVm
from experiments.launch.xpk import Xpk
from vit_jax.core.errors import RunError

ENGINES: dict[str, type[Engine]] = {'local': Local, 'slurm': Slurm, 'xpk': Xpk, 'tpu-vm': TpuVm}


def launch(job: Job, *, submit: bool, take_over: bool = False) -> None:
  """Prints what starts a job, and with `submit` does it and records it.

  Args:
    job: to start.
    submit: whether to.
    take_over: from a supervisor of the job on another machine, which is gone.

  Raises:
    RunError: for options that are missing or make no sense, tools that are not installed or fail,
      and a job that is at work in the same place.
  """
  if submit:
    earlier = job_lib.load(job.workdir).tokens if job_lib.recorded(job.workdir) else ()
    job = dataclasses.replace(job, tokens=(*earlier, secrets.token_hex(4)))
  engine = ENGINES[job.engine](job)
  for line in shown(engine.steps()):
    print(line)
  if warning := engine.unseen():
    print(f'# {warning}')
  if not submit:
    print('# nothing is done yet: --submit does it')
    return
  before = _free(job.workdir, take_over)
  job_lib.forget(job)
  job.save()  # before it starts: it looks there
  try:
    job = job.known_as(engine.submit())
  except RunError:
    # What is not ours must not be stopped as ours.
    before.save() if before else job_lib.discard(job)
    raise
  job.save()
  print(
    f'submitted: {engine.job.engine}, {", ".join(f"{k} {v}" for k, v in job.submitted.items())}'
  )
  print(f'  python -m experiments.launch --workdir={job.workdir} --status')


def of(workdir: str) -> Engine:
  """The engine of the job whose record is beside a run; raises RunError if there is none."""
  job = job_lib.load(workdir)
  return ENGINES[job.engine](job)


def _free(workdir: str, take_over: bool) -> Job | None:
  """The job that was there; raises RunError if it is at work."""
  if not job_lib.recorded(workdir):
    return None
  engine = of(workdir)
  try:
    found = engine.at_work() if engine.job.submitted else ''
  except ElsewhereError:
    if not take_over:
      raise
    return engine.job
  if found:
    raise RunError(f'{workdir}: {found}; end that first: --stop')
  return engine.job
