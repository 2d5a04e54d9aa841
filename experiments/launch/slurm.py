"""Slurm: a batch script of our own, which puts itself back into the queue."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.launch.engine import Command, Engine, File, Step, exports, run
from vit_jax.core.errors import RESTART, RunError

# TERM goes to the tasks, not to this script: two minutes before the time is up, to save the state.
SCRIPT = """#!/bin/bash
{directives}
cd {root} || exit 1
{exports}
# Counts what Slurm has restarted, too, and ends the job when that has been in vain.
{python} -m experiments.launch.attempt {workdir}
code=$?
if [ $code = {stopped} ]; then scontrol requeue $SLURM_JOB_ID && sleep 60; fi
if [ $code != 0 ]; then exit $code; fi
rm -f {folder}/first
srun --kill-on-bad-exit=1 --open-mode=append --output={folder}/process-%t.log \\
  ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} bash {folder}/task.sh
code=$?
if [ -e {folder}/first ]; then code=$(cat {folder}/first); fi
echo "$(date +%FT%T) ended with status $code"
# {stopped}: stopped by a signal, and saved. From 128 on: killed. Anything else would come again.
if [ $code = {stopped} ] || [ $code -ge 128 ]; then
  scontrol requeue $SLURM_JOB_ID && sleep 60
fi
exit $code
"""
# In every task.
TASK = """#!/bin/bash
trap : TERM
{command}
code=$?
# The first that ends badly says why: the others only suffer from it.
if [ $code != 0 ]; then (set -C; echo $code > {folder}/first) 2> /dev/null; fi
exit $code
"""


class Slurm(Engine):
  """Options: nodes (1), tasks_per_node (1), gpus (of each node, 0) and any other of sbatch.

  A task takes all GPUs of its node; or there is a task for each, with tasks_per_node=gpus. The code
  and the Python are those of the directory that the job is submitted from, which all nodes see.
  """

  def prepare(self) -> None:
    """See `Engine`."""
    self.nodes, self.tasks = self.count('nodes', 1), self.count('tasks_per_node', 1)
    self.gpus = self.count('gpus', 0)
    if self.gpus and self.tasks not in (1, self.gpus):
      raise RunError(
        f'--tasks_per_node={self.tasks} with --gpus={self.gpus}: one task for all GPUs of a node, '
        f'or {self.gpus}, one for each, is expected'
      )

  def steps(self) -> Iterator[Step]:
    """See `Engine`."""
    job = self.job
    directives = {
      'job-name': job.name, 'nodes': str(self.nodes), 'ntasks-per-node': str(self.tasks),
      **({'gpus-per-node': str(self.gpus)} if self.gpus else {}),
      'requeue': 'true', 'open-mode': 'append', 'signal': 'TERM@120',
      'output': f'{job.folder}/slurm.log', **self.options,
    }  # fmt: skip
    more = {}
    if self.gpus > 1 and self.tasks == 1:  # JAX would take the first alone
      more = {'JAX_LOCAL_DEVICE_IDS': ','.join(map(str, range(self.gpus)))}
    folder = shlex.quote(str(job.folder))
    yield File(
      job.folder / 'task.sh', TASK.format(command=job.written(sys.executable), folder=folder)
    )
    text = SCRIPT.format(
      directives='\n'.join(f'#SBATCH {flag}' for flag in self.flags(directives)), folder=folder,
      root=shlex.quote(job.root), workdir=shlex.quote(job.workdir), stopped=RESTART,
      exports=exports(self.environment(self.nodes * self.tasks, **more)),
      python=shlex.quote(sys.executable),
    )  # fmt: skip
    path = job.folder / 'job.sh'
    yield File(path, text)
    yield Command(['sbatch', '--parsable', str(path)])

  def submit(self) -> Mapping[str, Any]:
    """See `Engine`."""
    return {'job': str(super().submit()['said']).partition(';')[0]}

  @property
  def _number(self) -> str:
    return str(self.job.submitted['job'])

  def at_work(self) -> str:
    """See `Engine`."""
    # Without --job: of one that is long gone squeue says that its number is invalid.
    out = run(Command(['squeue', '--me', '--noheader', '--format=%A %T %r']))
    found = [line.split(' ', 1)[1] for line in out.splitlines() if line.split()[0] == self._number]
    return f'Slurm job {self._number}: {found[0]}' if found else ''

  def status(self) -> str:
    """See `Engine`."""
    return self.at_work() or f'Slurm job {self._number}: no longer in the queue'

  def logs(self) -> Command:
    """See `Engine`."""
    folder = self.job.folder
    return Command(['tail', '-n', '50', f'{folder}/slurm.log', f'{folder}/process-0.log'])

  def stop(self) -> None:
    """See `Engine`."""
    run(Command(['scancel', self._number]))
