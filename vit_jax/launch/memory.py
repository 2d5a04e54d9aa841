"""Memory of a process that computes on CPUs."""

from __future__ import annotations

import ctypes

from vit_jax.core import paths

ACCELERATORS = ('nvidia[0-9]*', 'kfd', 'accel*', 'vfio/[0-9]*')
# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def accelerators() -> bool:
  """Whether this machine has any, by its device files."""
  return any(True for pattern in ACCELERATORS for _ in paths.at('/dev').glob(pattern))


def keep() -> bool:
  """Lets glibc keep freed memory; does nothing where there are accelerators or other libraries.

  XLA frees all temporary memory of a step at its end. Left alone, glibc gives such large blocks
  back to the kernel, which clears every page again in the next step: a sixth of the time of ViT-S.
  Call it before JAX starts its threads, whose allocations would otherwise bypass the heap.

  Returns:
    Whether memory is kept from now on.
  """
  if accelerators():
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  options = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
  return mallopt is not None and all(mallopt(*option) for option in options)
