"""Processes on this machine, over loopback."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from experiments.launch import supervise
from experiments.launch.engine import Command, Note, Step
from experiments.launch.job import shell_status
from vit_jax.core import paths

# Seconds that the others get to notice that one has died, to say so, and to end.
ALONE = 75


class Local(supervise.Supervised):
  """Options: processes, how many (1). The devices of the machine are those that JAX finds."""

  def prepare(self) -> None:
    """See `Engine`."""
    self.processes = self.count('processes', 1)
    self.no_more()

  def _words(self, process: int, port: str) -> list[str]:
    words = shlex.split(self.job.written(sys.executable))
    if self.processes > 1:
      words += [
        f'--coordinator=127.0.0.1:{port}', f'--num_processes={self.processes}',
        f'--process_id={process}',
      ]  # fmt: skip
    return words

  def each(self) -> Iterator[Step]:
    """See `Supervised`."""
    environment = self.environment(self.processes)
    yield Note('PORT is a free one')
    yield Note(' '.join(f'{name}={value}' for name, value in environment.items()))
    for i in range(self.processes):
      yield Command(self._words(i, 'PORT'))
      yield Note(f'with its output in {self.job.folder}/process-{i}.log')

  def attempt(self) -> int:
    """See `Supervised`."""
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = str(free.getsockname()[1])
    children: dict[int, subprocess.Popen] = {}
    for i in range(self.processes):
      with paths.appending(self.job.folder / f'process-{i}.log') as log:
        child = subprocess.Popen(
          self._words(i, port), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
          cwd=self.job.root, env={**os.environ, **self.environment(self.processes)},
        )  # fmt: skip
      children[child.pid] = child
    try:
      return self._ended(children)
    except supervise.Stopped:
      for child in children.values():
        child.send_signal(signal.SIGTERM)
      self._rest(children, supervise.GRACE)
      raise

  def _ended(self, children: dict[int, subprocess.Popen]) -> int:
    """Waits for all; the first that ends badly decides, the others may only suffer from it."""
    while children:
      pid, status = os.wait()
      code = shell_status(os.waitstatus_to_exitcode(status))
      children.pop(pid).returncode = code
      if code:
        supervise.say(f'a process has ended with status {code}')
        orderly = code < 128 and code != 1
        self._rest(children, supervise.GRACE if orderly else ALONE)
        return code
    return 0

  def _rest(self, children: dict[int, subprocess.Popen], seconds: float) -> None:
    """Waits, and then kills."""
    end = time.monotonic() + seconds
    for child in children.values():
      try:
        child.wait(max(0, end - time.monotonic()))
      except subprocess.TimeoutExpired:
        child.kill()
        child.wait()

  def logs(self) -> Command:
    """See `Engine`."""
    files = [f'{self.job.folder}/process-{i}.log' for i in range(self.processes)]
    return Command(['tail', '-n', '50', f'{self.job.folder}/supervisor.log', *files])
