"""How a process becomes one of several."""

from __future__ import annotations

import os
import warnings
from typing import Any

from vit_jax.core.errors import RunError
from vit_jax.processes import peers

# Seconds: without a sign of life of a process, which is late if `processes.health` has not seen it;
# until all have come, of which some may have to be started by a queue; and to end together.
_TIMES: dict[str, Any] = dict(
  heartbeat_timeout_seconds=60, initialization_timeout=1800, shutdown_timeout_seconds=60
)
# Where the number of processes is promised: by whoever starts them, then by Slurm.
VARIABLE = 'VIT_JAX_PROCESSES'
PROMISES = (VARIABLE, 'SLURM_NTASKS')


def join(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Joins the other processes, if there are any; call it before JAX looks for devices.

  Args:
    coordinator: HOST:PORT of process 0. Nothing of this is needed on one machine, on TPU pods,
      under Slurm and on Kubernetes.
    num_processes: of the run.
    process_id: of this process, from 0.

  Raises:
    RunError: if some of them are given, but not all; or if there are not as many processes as the
      environment promises, each of which would be a run of its own.
  """
  import jax

  by_hand = (coordinator, num_processes, process_id)
  if any(value is not None for value in by_hand):
    if None in by_hand:
      raise RunError('--coordinator, --num_processes and --process_id must be given together')
    jax.distributed.initialize(*by_hand, **_TIMES)
  else:
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        jax.distributed.initialize(**_TIMES)
    except ValueError:
      pass  # no cluster around us: one process
  promise = next((name for name in PROMISES if name in os.environ), None)
  count = peers.count()  # what JAX says itself would wait for devices
  if promise and os.environ[promise] != str(count):
    raise RunError(
      f'{promise}={os.environ[promise]}, but JAX has found {count} '
      f'process{"es" * (count > 1)} here: start them all (under Slurm with srun), or set '
      f'{VARIABLE}={count} if this is meant'
    )
