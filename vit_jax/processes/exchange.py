"""What processes tell each other by their devices: more than the service of `peers` is made for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.core.errors import RunError

# Bytes that are exchanged at a time.
_CHUNK = 1 << 26
_T = TypeVar('_T')


def from_first(make: Callable[[], _T]) -> _T:
  """What `make` gives in the first process, in all of them; it must be possible to pickle it.

  Raises:
    RunError: in all of them, if the first one does.
  """
  if jax.process_count() == 1:
    return make()
  if jax.process_index():
    packed = _broadcast(None)
    value, error = pickle.loads(packed)
    if error:
      raise error
    return value
  try:
    value = make()
  except Exception as error:
    told = error if isinstance(error, RunError) else RunError(f'process 0: {error!r}')
    _broadcast(pickle.dumps((None, told)))
    raise
  _broadcast(pickle.dumps((value, None)))
  return value


def _broadcast(packed: bytes | None) -> bytes:
  """Bytes of the first process; the others have none."""
  # Numbers of more than 32 bits do not get through, nor arrays that fill a device.
  own = np.array(divmod(len(packed or b''), _CHUNK), np.int32)
  chunks, rest = map(int, multihost_utils.broadcast_one_to_all(own))
  parts = []
  for number, size in enumerate([*[_CHUNK] * chunks, rest]):
    part = np.zeros(size, np.uint8)
    if packed is not None:
      part = np.frombuffer(packed, np.uint8, size, number * _CHUNK)
    parts.append(np.asarray(multihost_utils.broadcast_one_to_all(part)).tobytes())
  return b''.join(parts)


def gathered(own: Any) -> list[Any]:
  """What all processes have, of each; it must be possible to pickle it."""
  if jax.process_count() == 1:
    return [own]
  packed = np.frombuffer(pickle.dumps(own), np.uint8)
  halves = multihost_utils.process_allgather(np.array(divmod(packed.size, _CHUNK), np.int32))
  sizes = [int(chunks) * _CHUNK + int(rest) for chunks, rest in halves]
  parts: list[list[np.ndarray]] = [[] for _ in sizes]
  for first in range(0, max(sizes), _CHUNK):
    padded = np.zeros(min(_CHUNK, max(sizes) - first), np.uint8)
    here = packed[first : first + len(padded)]
    padded[: len(here)] = here
    for part, found in zip(parts, multihost_utils.process_allgather(padded), strict=True):
      part.append(found)
  return [
    pickle.loads(np.concatenate(part)[:size].tobytes())
    for part, size in zip(parts, sizes, strict=True)
  ]
