"""Attempts at a job, one after another, by a process that outlives the terminal it came from.

For engines without a scheduler that restarts what was lost: `python -m experiments.launch.supervise
WORKDIR` is started by `Supervised.submit`.
"""

from __future__ import annotations

import abc
import contextlib
import datetime
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.launch import job as job_lib
from experiments.launch.engine import Command, Engine, Note, Step, do
from vit_jax.core import command, paths
from vit_jax.core.errors import RunError

GRACE = 120  # seconds to save the state in


class Stopped(Exception):  # noqa: N818  it is no error
  """Somebody has asked the supervisor to stop."""


class ElsewhereError(RunError):
  """The supervisor is on another machine, where nobody can look from here."""


class Supervised(Engine):
  """An engine that a process on this machine looks after."""

  @abc.abstractmethod
  def attempt(self) -> int:
    """Runs the job once, to its end; returns its exit status. Raises `Stopped`."""

  @abc.abstractmethod
  def each(self) -> Iterator[Step]:
    """What an attempt does, for people."""

  def ready(self) -> Iterator[Step]:
    """What is done before the supervisor starts."""
    yield from ()

  def finish(self) -> None:
    """After the last attempt."""

  def steps(self) -> Iterator[Step]:
    """See `Engine`."""
    yield from self.ready()
    yield Command([sys.executable, '-m', 'experiments.launch.supervise', self.job.workdir])
    yield Note(
      f'which goes on when this terminal is closed, writes to {self.job.folder}/supervisor.log, '
      f'and makes attempts until one ends well, or with an error that would come again, or '
      f'{self.job.max_restarts} restarts have brought no new checkpoint. Each of them:'
    )
    yield from self.each()

  def submit(self) -> Mapping[str, Any]:
    """Starts the supervisor."""
    self.job.folder.mkdir(parents=True, exist_ok=True)
    do(self.ready())
    words = [sys.executable, '-m', 'experiments.launch.supervise', self.job.workdir]
    with paths.appending(self.job.folder / 'supervisor.log') as log:
      process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        cwd=self.job.root,
      )  # fmt: skip
    return {'pid': process.pid, 'host': platform.node()}

  @property
  def pid(self) -> int | None:
    """Of the supervisor, if it is alive.

    Raises:
      ElsewhereError: if it is another machine's.
    """
    pid, host = self.job.submitted.get('pid'), self.job.submitted.get('host')
    if host and host != platform.node():
      raise ElsewhereError(
        f'the supervisor of {self.job.workdir} is process {pid} of {host}: ask there; if that '
        'machine is gone for good, submit with --take_over'
      )
    if not pid:
      return None
    # Numbers are given again: it must still be the one that was started.
    done = subprocess.run(
      ['ps', '-ww', '-o', 'args=', '-p', str(pid)], capture_output=True, text=True
    )
    return pid if f'experiments.launch.supervise {self.job.workdir}' in done.stdout else None

  def at_work(self) -> str:
    """See `Engine`."""
    return f'supervised by process {self.pid} of {platform.node()}' if self.pid else ''

  def status(self) -> str:
    """See `Engine`."""
    lines = [b'']
    with contextlib.suppress(OSError):
      lines = (self.job.folder / 'supervisor.log').read_bytes().strip().splitlines() or lines
    return f'{self.at_work() or "ended"}: {lines[-1].decode(errors="replace")}'

  def stop(self) -> None:
    """See `Engine`."""
    if pid := self.pid:
      os.kill(pid, signal.SIGTERM)
      end = time.monotonic() + 2 * GRACE
      while self.pid and time.monotonic() < end:
        time.sleep(0.2)


def say(text: str) -> None:
  """A line of the log."""
  print(datetime.datetime.now().astimezone().isoformat(timespec='seconds'), text, flush=True)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
  """In here nobody is `Stopped`; one that was asked to stop is on leaving."""
  waits, before = [], signal.getsignal(signal.SIGTERM)
  signal.signal(signal.SIGTERM, lambda *_: waits.append(True))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
  if waits:
    signal.raise_signal(signal.SIGTERM)


def supervise(engine: Supervised) -> int:
  """Attempts until it is no use; returns the exit status of the last."""

  def asked(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once
    raise Stopped

  before = signal.signal(signal.SIGTERM, asked)
  try:
    while True:
      job_lib.begin(engine.job, say)
      code = engine.attempt()
      if code == 0:
        say('done')
        return code
      if not job_lib.helps(code):
        say(f'failed with status {code}, which a restart does not mend: see {engine.job.folder}')
        return code
      say(f'ended with status {code}: starting it again')
  except Stopped:
    say('stopped: submit the same command to go on')
    return 0
  except RunError as error:
    say(f'failed: {error}')
    return 1
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left to do is done in any case
    engine.finish()
    signal.signal(signal.SIGTERM, before)


def main(workdir: str) -> None:
  """The command; leaves with its exit status."""
  from experiments.launch import engines

  with command.errors():
    engine = engines.of(workdir)
    assert isinstance(engine, Supervised)
    sys.exit(supervise(engine))


if __name__ == '__main__':
  # Under its own name, so that there is one class `Stopped`.
  from experiments.launch import supervise as own

  own.main(sys.argv[1])
