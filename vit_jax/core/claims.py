"""One process at a time: who writes to a directory, or works on a job.

On local file systems a lock of the kernel, which goes when the process does. In an object store, an
object that its owner writes anew every few seconds: if it stays as it is, the owner is dead, and
the next one makes an object with the next number, which can be made only once. An owner that finds
such an object has lost its claim.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError

BEAT = 10.0  # seconds between two signs of life
DEAD = 60.0  # seconds without one, all tries of it included, after which the owner is dead


class HeldError(RunError):
  """Another process has it.

  Attributes:
    who: it is, and since when.
    alive: whether it has given a sign of life since it was first looked at; None if that is not
      known yet.
  """

  def __init__(self, path: paths.Path, who: str, alive: bool | None):
    super().__init__(f'{path} is in use by {who}: stop that process, or use another directory')
    self.who, self.alive = who, alive


class Claim:
  """What this process has, until it is closed. `check` raises RunError once it is lost.

  Attributes:
    note: what people should know about it, or ''.
  """

  note = ''

  def check(self) -> None:
    """Raises RunError if another process has taken it over."""

  def close(self) -> None:
    """Gives it back."""


def take(path: paths.Path) -> Claim:
  """Takes a name for this process, whatever is at `path`; its directory must be there.

  Raises:
    HeldError: if another process has it, or may have it.
    RunError: if that cannot be found out.
  """
  if isinstance(path, paths.StorePath):
    return _Lease(path)
  return _Lock(path)


def insist(path: paths.Path, say: Callable[[str], None]) -> Claim:
  """As `take`, but waits as long as it takes to know whether the other process is alive."""
  said = False
  while True:
    try:
      claim = take(path)
      if claim.note:
        say(claim.note)
      return claim
    except HeldError as error:
      if error.alive is not None:
        raise
      if not said:
        say(f'{path} was in use by {error.who}: waiting up to {DEAD:.0f} s for a sign of life')
      said = True
    time.sleep(1)


class _Lock(Claim):
  def __init__(self, path: paths.LocalPath):
    self._path = path
    while True:
      try:
        self._file = path.open('a+')
      except OSError as error:
        raise RunError(f'cannot write {path}: {error.strerror}') from None
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        self._file.seek(0)
        who = _described(self._file.read())
        self._file.close()
        raise HeldError(path, who, alive=True) from None
      except OSError as error:
        self.note = (
          f'{path.parent} is on a file system without locks ({error.strerror}): nobody notices if '
          'another run writes there'
        )
        return
      if self._is_there():
        break
      self._file.close()  # it was given back between opening and locking it
    self._file.truncate(0)
    self._file.write(json.dumps(_self()))
    self._file.flush()

  def _is_there(self) -> bool:
    try:
      there = self._path.stat()
    except FileNotFoundError:
      return False
    own = os.fstat(self._file.fileno())
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)

  def close(self) -> None:
    """See `Claim`."""
    if not self._file.closed:
      self._path.unlink(missing_ok=True)
      self._file.close()


@dataclasses.dataclass
class _Seen:
  """An object of another owner: what it held, since when, and whether it changed then."""

  text: str
  since: float
  alive: bool


_seen: dict[tuple[paths.StorePath, int], _Seen] = {}


class _Lease(Claim):
  def __init__(self, path: paths.StorePath):
    self._path, self._beats, self._lost = path, 0, ''
    self._owner = {**_self(), 'token': secrets.token_hex(8)}
    with paths.writing(path):
      newest = self._newest()
      if newest:
        self._look(newest)
      self._number = newest + 1
      try:
        self._object(self._number).make(self._text())
      except FileExistsError:  # by another one, or by a try of ours whose answer was lost
        if not self._is_own():
          raise HeldError(path, 'a process that came first', alive=True) from None
      for number in range(1, newest + 1):
        self._object(number).unlink(missing_ok=True)
    self._stop, self._renewing = threading.Event(), threading.Lock()
    self._good = time.monotonic()
    self._thread = threading.Thread(target=self._beat, daemon=True, name='claim')
    self._thread.start()

  def check(self) -> None:
    """See `Claim`."""
    if time.monotonic() - self._good > DEAD:  # this process was frozen, or the store did not serve
      self._renew()
    if self._lost:
      raise RunError(self._lost)

  def close(self) -> None:
    """See `Claim`."""
    self._stop.set()
    self._thread.join()
    if not self._lost:
      with contextlib.suppress(OSError):  # or it will be taken for dead
        self._object(self._number).unlink(missing_ok=True)

  def _newest(self) -> int:
    """The highest number there is; 0 for none."""
    names = [each.name for each in self._path.parent.glob(f'{self._path.name}.*')]
    ends = [re.fullmatch(r'\d+', name.rpartition('.')[2]) for name in names]
    return max([int(end[0]) for end in ends if end], default=0)

  def _object(self, number: int) -> paths.StorePath:
    return self._path.with_name(f'{self._path.name}.{number:06d}')

  def _look(self, number: int) -> None:
    """Raises HeldError unless the owner of an object is dead."""
    try:
      text = self._object(number).read_text()
    except FileNotFoundError:
      return  # given back
    if _is_gone(text):
      return
    now, who = time.monotonic(), _described(text)
    seen = _seen.get((self._path, number))
    if seen is None or seen.text != text:
      alive = seen is not None and _owner(seen.text) == _owner(text)
      seen = _seen[self._path, number] = _Seen(text, now, alive)
    if now - seen.since < DEAD:
      raise HeldError(self._path, who, alive=seen.alive or None)

  def _text(self) -> bytes:
    return json.dumps({**self._owner, 'beats': self._beats}).encode()

  def _is_own(self) -> bool:
    """Whether the object is ours: numbers are used again."""
    try:
      found = json.loads(self._object(self._number).read_text())
      return found.get('token') == self._owner['token']
    except (FileNotFoundError, ValueError, AttributeError):
      return False

  def _beat(self) -> None:
    while not self._lost and not self._stop.wait(BEAT):
      with contextlib.suppress(OSError):  # a store that does not answer: perhaps the next time
        self._renew()

  def _renew(self) -> None:
    with self._renewing:
      if self._lost or not self._is_own() or self._object(self._number + 1).exists():
        self._lost = (
          f'{self._path.parent} was taken over by another process, which took this one for dead'
        )
        return
      self._beats += 1
      self._object(self._number).write_bytes(self._text())
      self._good = time.monotonic()


def _self() -> dict[str, Any]:
  """This process, so that others on this machine know whether it lives."""
  return {
    'host': platform.node(), 'pid': os.getpid(), 'space': _space(), 'begun': _begun(os.getpid()),
    'since': time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()),
  }  # fmt: skip


def _space() -> str:
  """Where numbers of processes mean the same: a boot of a machine, and a namespace of it."""
  boot = paths.at('/proc/sys/kernel/random/boot_id')
  space = '/proc/self/ns/pid'
  return f'{boot.read_text().strip()} {os.readlink(space)}' if boot.exists() else ''


def _begun(pid: int) -> str:
  """When a process was started, in the kernel's words; '' for one that is not there."""
  try:
    text = paths.at(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  return text.rpartition(')')[2].split()[19]


def _owner(text: str) -> dict[str, Any]:
  """What does not change with a sign of life."""
  try:
    return {**json.loads(text), 'beats': 0}
  except (ValueError, TypeError):
    return {}


def _is_gone(text: str) -> bool:
  """Whether the owner ran on this machine, and does no more."""
  try:
    owner = json.loads(text)
    return bool(_space()) and owner['space'] == _space() and _begun(owner['pid']) != owner['begun']
  except (ValueError, KeyError, TypeError):
    return False


def _described(text: str) -> str:
  try:
    owner = json.loads(text)
    return f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}'
  except (ValueError, KeyError, TypeError):
    return 'another process'
