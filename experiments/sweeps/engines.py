"""Hands the command of a worker to what people have: Slurm, GKE through xpk, TPU VMs.

Workers need nothing in common but the directory of the sweep, on a file system with file locks that
all of them see: Lustre, NFS 4, Filestore. Each engine says first what it would do; options are
those of the engine.
"""

from __future__ import annotations

import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.core.errors import RunError

ENGINES: dict[str, Callable[..., list[list[str]]]] = {}


def launch(
  engine: str, command: Sequence[str], workers: int, *, submit: bool, options: Mapping[str, Any]
) -> None:
  """Prints what starts the workers, and with `submit` does it.

  Args:
    engine: one of `ENGINES` or 'slurm'.
    command: of a worker.
    workers: how many.
    submit: or only print.
    options: of the engine.

  Raises:
    RunError: for missing options or programs.
  """
  if engine == 'slurm':
    _slurm(command, workers, submit, dict(options))
    return
  for line in ENGINES[engine](command, workers, dict(options)):
    print(shlex.join(line))
    if submit:
      if not shutil.which(line[0]):
        raise RunError(f'{line[0]} is not installed here: run the commands where it is')
      subprocess.run(line, check=True)


def _slurm(command: Sequence[str], workers: int, submit: bool, options: dict[str, Any]) -> None:
  """A job array of workers, submitted by submitit; options as of its `update_parameters`.

  `partition`, `account` and `qos` are understood without their prefix 'slurm_'; `cluster=local`
  starts the workers here. They run the Python that this runs in, which the nodes see, too.
  """
  command = [sys.executable if word == 'python' else word for word in command]
  cluster = options.pop('cluster', 'slurm')
  prefixed = {'partition', 'account', 'qos', 'constraint', 'array_parallelism'}
  parameters = {f'slurm_{k}' if k in prefixed else k: v for k, v in options.items()}
  parameters = {'name': 'sweep', 'timeout_min': 24 * 60, **parameters}
  print(f'{workers} x {shlex.join(command)}')
  print('\n'.join(f'  {name}={value}' for name, value in parameters.items()))
  if not submit:
    return
  try:
    import submitit  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise RunError('Slurm is reached through submitit: pip install submitit') from None
  folder = next(a.partition('=')[2] for a in command if a.startswith('--dir='))
  executor = submitit.AutoExecutor(folder=pathlib.Path(folder) / 'slurm', cluster=cluster)
  executor.update_parameters(**parameters)
  with executor.batch():
    jobs = [
      executor.submit(submitit.helpers.CommandFunction(list(command))) for _ in range(workers)
    ]
  print('submitted', ', '.join(job.job_id for job in jobs))
  if cluster == 'local':
    for job in jobs:
      job.result()


def _xpk(command: Sequence[str], workers: int, options: dict[str, Any]) -> list[list[str]]:
  """A workload for each worker, on a slice of a GKE cluster.

  Options: cluster and tpu_type (or device_type), and any other of `xpk workload create`.
  """
  if not {'cluster'} <= options.keys() or not {'tpu_type', 'device_type'} & options.keys():
    raise RunError('--engine=xpk needs --cluster=NAME and --tpu_type=v5litepod-16')
  name = str(options.pop('workload', 'sweep'))
  flags = [f'--{key.replace("_", "-")}={value}' for key, value in options.items()]
  return [
    ['xpk', 'workload', 'create', f'--workload={name}-{i}', *flags,
     f'--command={shlex.join(command)}']
    for i in range(workers)
  ]  # fmt: skip


def _tpu_vm(command: Sequence[str], workers: int, options: dict[str, Any]) -> list[list[str]]:
  """A worker on each of the slices NAME-0, NAME-1, ..., which exist, on all of its hosts.

  Options: name, zone and any other of `gcloud compute tpus tpu-vm ssh`; `root`, the folder of
  the project there.
  """
  if not {'name', 'zone'} <= options.keys():
    raise RunError('--engine=tpu-vm needs --name=NAME and --zone=ZONE')
  name, root = options.pop('name'), options.pop('root', 'vit_jax')
  flags = [f'--{key.replace("_", "-")}={value}' for key, value in options.items()]
  # The worker goes on when the connection ends.
  remote = (
    f'cd {shlex.quote(str(root))} && nohup {shlex.join(command)} > sweep.log 2>&1 < /dev/null &'
  )
  return [
    ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', f'{name}-{i}', *flags, '--worker=all',
     f'--command={remote}']
    for i in range(workers)
  ]  # fmt: skip


ENGINES |= {'xpk': _xpk, 'tpu-vm': _tpu_vm}
NAMES = ('slurm', *ENGINES)
