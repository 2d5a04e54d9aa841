"""Faults on demand: to prove, on a cluster of your own, that a kill changes nothing.

`VIT_JAX_FAULT='ACTION PLACE' python -m vit_jax.train ...` does ACTION once, at a place that is
named by what the run does there, not by a clock:

    kill at step 7                                   after step 7, before it is reported or saved,
                                                     and once earlier saves are complete
    kill in restore                                  on entering a phase: init, restore, input,
                                                     compile, step, eval or checkpoint
    kill before rename */checkpoints/8               everything is written, nothing is committed
    kill before remove */checkpoints/4.deleting/*    an old checkpoint is half deleted
    kill before any */runs/x/* 57                    before the 57th operation on files of a run
    kill before put gs://*/metrics.jsonl             an object of a store is not written
    fail before open */metrics.jsonl                 the operation fails as on a full disk

ACTION is kill (SIGKILL), sigterm, sigint or fail. Operations on files are mkdir, open (to write),
rename (by its target), remove, rmdir or any of them: those that Python reports of itself
(https://docs.python.org/3/library/audit_events.html), in any thread and of any library; in object
stores put and remove, of this project alone.
"""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from vit_jax.core.errors import RunError

VARIABLE = 'VIT_JAX_FAULT'
SIGNALS = {'kill': signal.SIGKILL, 'sigterm': signal.SIGTERM, 'sigint': signal.SIGINT}
PHASES = ('init', 'restore', 'input', 'compile', 'step', 'eval', 'checkpoint')
# Of an audit event: the operation, which argument is the path, and which the directory it is in.
_EVENTS = {
  'os.mkdir': ('mkdir', 0, 2), 'open': ('open', 0, None), 'os.rename': ('rename', 1, 3),
  'os.remove': ('remove', 0, 1), 'os.rmdir': ('rmdir', 0, 1),
}  # fmt: skip
_STORE = {
  'pipe_file': 'put',
  'put_file': 'put',
  'cp_file': 'put',
  'rm_file': 'remove',
}  # methods of fsspec
_OPERATIONS = ('any', 'put', *(operation for operation, _, _ in _EVENTS.values()))


@dataclasses.dataclass
class _Fault:
  action: str
  place: str = ''
  operation: str = ''
  pattern: str = ''
  count: int = 1  # matching operations left, this one included

  def strike(self, path: str = '') -> None:
    """Once: disarms, then does it."""
    global _armed
    _armed = None
    if self.action == 'fail':
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    if self.action == 'kill':
      os.kill(os.getpid(), signal.SIGKILL)  # no handler, no cleanup
    signal.raise_signal(SIGNALS[self.action])


_armed: _Fault | None = None
_listening = False


def arm() -> str:
  """Prepares what the environment asks for, if anything; returns the text of it.

  Raises:
    RunError: if it cannot be read.
  """
  global _armed, _listening
  text = os.environ.get(VARIABLE, '')
  _armed = _read(text) if text else None
  if _armed and _armed.operation and not _listening:
    sys.addaudithook(_audit)  # for good: there is no way to remove one
    _listening = True
  return text


def reached(place: str, first: Callable[[], object] = lambda: None) -> None:
  """Says that the run is at a place; costs one comparison where no fault is asked for.

  Args:
    place: where it is.
    first: what to wait for if a fault is due, so that its outcome does not depend on a race.
  """
  if _armed is not None and _armed.place == place:
    first()
    _armed.strike()


def _read(text: str) -> _Fault:
  match text.split():
    case [action, 'at', 'step', number] if action in SIGNALS and number.isdecimal():
      return _Fault(action, f'at step {int(number)}')
    case [action, 'in', phase] if action in SIGNALS and phase in PHASES:
      return _Fault(action, f'in {phase}')
    case [action, 'before', operation, pattern, *count] if (
      action in ('fail', *SIGNALS)
      and operation in _OPERATIONS
      and (not count or (len(count) == 1 and count[0].isdecimal() and int(count[0]) > 0))
    ):
      return _Fault(action, '', operation, pattern, int(count[0]) if count else 1)
  raise RunError(
    f'{VARIABLE}={text!r} cannot be read: write "kill at step 7", "kill in PHASE" '
    f'({", ".join(PHASES)}) or "kill before OPERATION PATTERN [COUNT]" ({", ".join(_OPERATIONS)}); '
    'instead of kill sigterm or sigint, or fail for operations'
  )


def _audit(event: str, args: tuple[Any, ...]) -> None:
  if _armed is None:
    return
  if event == 'vit_jax.store' and args[0] in _STORE:
    _count(_STORE[args[0]], args[1])
  if event not in _EVENTS:
    return
  operation, at, folder = _EVENTS[event]
  if _armed.operation not in ('any', operation) or isinstance(args[at], int):
    return
  if operation == 'open' and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
    return
  path = os.fsdecode(args[at])
  if folder is not None and args[folder] >= 0:  # relative to a directory that is open
    path = os.path.join(os.readlink(f'/proc/self/fd/{args[folder]}'), path)
  _count(operation, os.path.abspath(path))


def _count(operation: str, path: str) -> None:
  """Strikes if this is the operation that is asked for."""
  if _armed is None or _armed.operation not in ('any', operation):
    return
  if fnmatch.fnmatchcase(path, _armed.pattern):
    _armed.count -= 1
    if not _armed.count:
      _armed.strike(path)
