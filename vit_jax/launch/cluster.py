"""How a process becomes one of several."""

from __future__ import annotations

import warnings

from vit_jax.core.errors import RunError


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
    RunError: if some of them are given, but not all.
  """
  import jax

  by_hand = (coordinator, num_processes, process_id)
  if any(value is not None for value in by_hand):
    if None in by_hand:
      raise RunError('--coordinator, --num_processes and --process_id must be given together')
    jax.distributed.initialize(*by_hand)
    return
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      jax.distributed.initialize()
  except ValueError:
    pass  # no cluster around us: one process
