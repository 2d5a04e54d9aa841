"""What processes tell each other by their devices: more than the service of `peers` is made for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
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
    value, error = pickle.loads(_broadcast(b''))
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


def gathered(own: Any) -> list[Any]:
  """What all processes have, of each; it must be possible to pickle it."""
  if jax.process_count() == 1:
    return [own]
  packed = pickle.dumps(own)
  sizes = [_size(halves) for halves in multihost_utils.process_allgather(_halves(packed))]
  parts = [multihost_utils.process_allgather(part) for part in _pieces(packed, max(sizes))]
  return [
    pickle.loads(np.concatenate([part[number] for part in parts])[:size].tobytes())
    for number, size in enumerate(sizes)
  ]


def largest(own: int) -> int:
  """The largest number that a process has."""
  return own if jax.process_count() == 1 else int(multihost_utils.process_allgather(own).max())


def _broadcast(packed: bytes) -> bytes:
  """Bytes of the first process; what the others have does not count."""
  size = _size(multihost_utils.broadcast_one_to_all(_halves(packed)))
  parts = [multihost_utils.broadcast_one_to_all(part) for part in _pieces(packed, size)]
  return b''.join(np.asarray(part).tobytes() for part in parts)


# Numbers of more than 32 bits do not get through, nor arrays that fill a device.


def _halves(packed: bytes) -> np.ndarray:
  return np.array(divmod(len(packed), _CHUNK), np.int32)


def _size(halves: Any) -> int:
  chunks, rest = map(int, halves)
  return chunks * _CHUNK + rest


def _pieces(packed: bytes, total: int) -> Iterator[np.ndarray]:
  """Arrays of bytes that are `total` together, zeros behind `packed`."""
  for first in range(0, total, _CHUNK):
    part = np.zeros(min(_CHUNK, total - first), np.uint8)
    here = np.frombuffer(packed, np.uint8)[first : first + part.size]
    part[: here.size] = here
    yield part
