"""Whether the processes of a run live and get on; one that does not ends them all, by name.

A process that waits for another one on its devices waits for ever. So each says every few seconds,
through the service that they found each other by, where it is and since when. Process 0 judges; the
others look whether it still speaks. Whoever hears a verdict writes the stacks of its threads to a
file, says what happened, and ends at once: by `RESTART` where starting again may help, for the next
start goes on from the last checkpoint.

A process alone is not ended: it says that it does not get on, and leaves its stacks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import math
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from etils import epy

from vit_jax.core import paths
from vit_jax.core.errors import RESTART, PassingError, RunError
from vit_jax.core.text import first_line
from vit_jax.processes import peers

# Configurations are read before JAX is there.
with epy.lazy_imports():
  import jax

BEAT = 2.0  # seconds between two signs of life
# Until a run says otherwise: seconds without one after which a process is taken for dead, and that
# a phase may take which is no step.
SILENT, WAIT = 20.0, peers.LONG
ENDED = 'ended'
# What a device or the network says when a person must act, not when a peer is gone.
_REPEATS = ('RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT', 'UNIMPLEMENTED')


_UNHEARD = dict(host='unknown', phase='init', step=0, waits=0.0, limit=WAIT, seconds={})


@dataclasses.dataclass
class _Place:
  """Where a process is: `since` is of the monotonic clock, `limit` in seconds."""

  phase: str
  step: int
  since: float
  limit: float


class _Health:
  """Of this process."""

  def __init__(self):
    self.silent, self.wait = SILENT, WAIT
    self.place = _Place('init', 0, time.monotonic(), WAIT)
    self.folder: paths.Path = paths.temporary('health')  # until it is known
    self.seconds: Mapping[str, float] = {}
    # What they said last; at first that they are there, or they would not have been found.
    known = range(peers.count() if peers.index() == 0 else 1)
    self.others: dict[int, dict[str, Any]] = {number: dict(_UNHEARD) for number in known}
    self._said = 0.0
    self._beats = 0
    # Of each process: its last beat, and when that was heard.
    self._heard = dict.fromkeys(known, (0, time.monotonic()))
    self._stop = threading.Event()
    self._last = time.monotonic()
    self._thread = threading.Thread(target=self._watch, daemon=True, name='health')

  def start(self) -> None:
    if peers.count() > 1:
      self._speak()
    self._thread.start()

  def stop(self) -> None:
    self._stop.set()
    self._thread.join()
    if peers.count() > 1:
      self.place = _Place(ENDED, self.place.step, time.monotonic(), self.wait)
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._speak()

  def _watch(self) -> None:
    while not self._stop.wait(BEAT):
      now = time.monotonic()
      if (gap := now - self._last) > 5 * BEAT:  # this process was frozen: that does not count
        self.place.since += gap
        self._heard = {number: (beat, at + gap) for number, (beat, at) in self._heard.items()}
      self._last = now
      if peers.count() == 1:
        self._alone(now)
        continue
      try:
        self._speak()
        verdict = self._read('verdict')
        self._listen(now)
      except jax.errors.JaxRuntimeError:
        continue  # the service is gone: JAX ends this process
      if not verdict and (verdict := self._judged(now)):
        verdict = tell(verdict)
      if verdict:
        self._end(verdict)

  def _alone(self, now: float) -> None:
    waited = now - self.place.since
    if waited < self.place.limit:
      self._said = 0.0
    elif waited > 2 * self._said:
      self._said = waited
      where, send = self._stacks(f'no progress in {self.place.phase} at step {self.place.step}')
      print(
        f'no progress in {self.place.phase} for {waited:.0f} s, at step {self.place.step}: {where}',
        file=sys.stderr, flush=True,
      )  # fmt: skip
      send()

  def _speak(self) -> None:
    self._beats += 1
    place, now = self.place, time.monotonic()
    said = {
      'beat': self._beats, 'host': platform.node(), 'phase': place.phase, 'step': place.step,
      'waits': now - place.since, 'limit': place.limit,
      'seconds': {name: self.seconds.get(name, 0.0) for name in ('input', 'step')},
    }  # fmt: skip
    # A directory of each one's own, which can be asked for alone.
    peers.client().key_value_set(f'vit_jax/health/{peers.index()}/said', json.dumps(said), True)

  def _read(self, name: str) -> dict[str, Any] | None:
    found = peers.client().key_value_dir_get(f'vit_jax/{name}')
    return json.loads(found[0][1]) if found else None

  def _listen(self, now: float) -> None:
    """Process 0 to all, and all others to it."""
    which = 'vit_jax/health/0' if peers.index() else 'vit_jax/health'
    for key, text in peers.client().key_value_dir_get(which):
      number, said = int(key.split('/')[2]), json.loads(text)
      self.others[number] = said
      if self._heard[number][0] != said['beat']:
        self._heard[number] = said['beat'], now

  def _judged(self, now: float) -> dict[str, Any] | None:
    """What ends the run, if anything does."""
    going = {n: said for n, said in self.others.items() if said['phase'] != ENDED}
    for number, said in going.items():
      if now - self._heard[number][1] > self.silent:
        return _verdict(number, said, f'gave no sign of life for {self.silent:.0f} s')
    if peers.index() or not any(said['waits'] > said['limit'] for said in going.values()):
      return None
    # The one that is furthest behind keeps the others waiting.
    behind = lambda n: (going[n]['step'], going[n]['phase'] == 'step', -going[n]['waits'])  # noqa: E731
    number = min(going, key=behind)
    said = going[number]
    waits = f'has not got on for {said["waits"]:.0f} s'
    if len({(said['step'], said['phase']) for said in going.values()}) == 1:
      return _verdict(number, said, f'and all others: {waits}')
    return _verdict(number, said, waits)

  def _end(self, verdict: Mapping[str, Any]) -> None:
    """Ends this process."""
    _once()
    own = f'process {peers.index()} was in {self.place.phase} at step {self.place.step}'
    where, send = self._stacks(f'{verdict["text"]}; {own}')
    print(f'error: {verdict["text"]}. {own}: {where}', file=sys.stderr, flush=True)
    send()
    _leave(verdict['code'])

  def _stacks(self, why: str) -> tuple[str, Callable[[], None]]:
    """Writes those of all threads; says where, and gives what sends them to a store."""
    name = f'stacks-{peers.index()}.txt'
    place, folder = self.folder / 'health' / name, self.folder
    local = place
    try:
      if isinstance(folder, paths.StorePath):
        local = paths.temporary(f'{folder} stacks {peers.index()}')
      assert isinstance(local, paths.LocalPath)
      local.parent.mkdir(parents=True, exist_ok=True)
      with local.open('w') as file:
        when = time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())
        file.write(f'{when} {platform.node()}: {why}\n\n')
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    except OSError as error:
      said = f'the stacks of its threads could not be written to {place}: {error.strerror}'
      return said, lambda: None

    def send() -> None:
      if isinstance(place, paths.StorePath):
        sending = threading.Thread(target=_tried, args=(place, local.read_bytes()), daemon=True)
        sending.start()
        sending.join(BEAT)

    return f'the stacks of its threads are in {place}', send


def _tried(place: paths.StorePath, data: bytes) -> None:
  with contextlib.suppress(OSError):
    place.write_bytes(data)


_ending = threading.Lock()


def _once() -> None:
  """Lets one thread end this process; another one that comes to its end waits for that."""
  if not _ending.acquire(blocking=False):
    threading.Event().wait()


_own: _Health | None = None


def start() -> None:
  """Begins to watch over this process and its peers, which have found each other."""
  global _own
  if _own is None:
    _own = _Health()
    _own.start()


def stop() -> None:
  """This process has done what it was to do."""
  global _own
  if _own is not None:
    _own.stop()
    _own = None


def configure(
  folder: paths.Path, seconds: Mapping[str, float], *, silent: float = SILENT, wait: float = WAIT
) -> None:
  """Says what a run is like.

  Args:
    folder: of the run; stacks are written to health/ in it.
    seconds: by phase, which the run goes on to count.
    silent: seconds without a sign of life after which a process is taken for dead.
    wait: seconds that a phase may take; 0 for as long as it takes.
  """
  if _own is not None:
    _own.folder, _own.seconds = folder, seconds
    _own.silent, _own.wait = silent, wait or math.inf
    _own.place = dataclasses.replace(_own.place, limit=_own.wait)


def reached(phase: str, step: int = -1, limit: float | None = None) -> None:
  """Says where this process is: its time begins again.

  Args:
    phase: it has come to.
    step: of the run; that of the call before if not given.
    limit: seconds that this may take, instead of `wait` of `configure`.
  """
  if _own is not None:
    step = _own.place.step if step < 0 else step
    limit = _own.wait if limit is None else limit
    _own.place = _Place(phase, step, time.monotonic(), limit)


def others() -> dict[int, dict[str, Any]]:
  """What all processes said last, in process 0: host, step, and seconds of step and input."""
  found = dict(_own.others) if _own is not None else {}
  return found if all(said['seconds'] for said in found.values()) else {}


def tell(verdict: Mapping[str, Any]) -> dict[str, Any]:
  """Makes something the end of all processes; of several such things, the first."""
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one already
    peers.client().key_value_set('vit_jax/verdict/first', json.dumps(verdict))
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    if found := peers.client().key_value_dir_get('vit_jax/verdict'):
      return json.loads(found[0][1])
  return dict(verdict)


def fail(error: BaseException) -> None:
  """Ends this process of several because of an error, and the others soon after.

  Left to itself, it would wait five minutes for them to come to their end.
  """
  _once()
  code = 1
  if isinstance(error, PassingError) or (
    isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(_REPEATS)
  ):
    code = RESTART  # the network, or a process that is gone
  if isinstance(error, RunError):
    text, name = str(error), ''
  else:
    text, name = traceback.format_exc(), f'{type(error).__name__}: '
  phase, step = (_own.place.phase, _own.place.step) if _own else ('init', 0)
  verdict = _verdict(peers.index(), dict(host=platform.node(), phase=phase, step=step), '', code)
  verdict['text'] += f'failed: {name}{first_line(error)}'
  known = tell(verdict)
  if known['process'] != peers.index():
    text = f'{text}\n{known["text"]}'
  print(f'error: process {peers.index()}: {text}', file=sys.stderr, flush=True)
  _leave(known['code'])


def _verdict(number: int, said: Mapping[str, Any], why: str, code: int = RESTART) -> dict[str, Any]:
  text = (
    f'process {number} of {peers.count()} (host {said["host"]}), in {said["phase"]} at step '
    f'{said["step"]}, {why}'
  )
  return {'process': number, 'text': text, 'code': code}


def _leave(code: int) -> None:
  """Ends without waiting for anybody; process 0, without whom nobody hears anything, last."""
  if peers.index() == 0:
    time.sleep(2.5 * BEAT)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
