"""Writing to object stores while a run goes on: nobody waits for the network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vit_jax.core import paths
from vit_jax.core.errors import PassingError, RunError

# Seconds between two writes of the same object, and how many times what the last one took: a store
# may refuse more than one a second, and what grows is written whole.
SPACING, TIMES = 5.0, 20.0
AGAIN = 10.0  # seconds after which what a store did not take is tried again
LAST = 60.0  # seconds that `close` waits


class Behind:
  """Does things at once where files are local, else one after the other in a thread.

  There what may pass (a store that does not answer, or is busy) is tried again until it has.
  """

  def __init__(self, path: paths.Path):
    """`path` says where files are."""
    self._waiting: dict[str, Callable[[], None]] = {}
    self._next: dict[str, float] = {}
    self._error: RunError | None = None
    self._closing = self._closed = False
    self._change = threading.Condition()
    self._busy = False
    self._thread: threading.Thread | None = None
    if isinstance(path, paths.StorePath):
      self._thread = threading.Thread(target=self._work, daemon=True, name='behind')
      self._thread.start()

  def do(self, key: str, work: Callable[[], None]) -> None:
    """Does `work`, or takes it instead of what waits under the same key.

    Raises:
      RunError: of this work, or of earlier work.
    """
    if self._thread is None:
      work()
      return
    self.check()
    with self._change:
      self._waiting[key] = work
      self._change.notify_all()

  def check(self) -> None:
    """Raises RunError if something could not be done."""
    if self._error:
      raise self._error

  def close(self) -> None:
    """As `flush`, and nothing can be done afterwards."""
    try:
      self.flush()
    finally:
      with self._change:
        self._closed = True
        self._change.notify_all()

  def drop(self) -> None:
    """Leaves undone what waits."""
    with self._change:
      self._waiting.clear()

  def flush(self) -> None:
    """Returns when all is done.

    Raises:
      RunError: if something could not be, or not in time.
    """
    if self._thread is None:
      return
    with self._change:
      self._closing = True
      self._change.notify_all()
      done = lambda: self._error or not (self._waiting or self._busy)  # noqa: E731
      finished = self._change.wait_for(done, LAST)
      self._closing = False
    self.check()
    if not finished:
      raise PassingError(
        f'not written after {LAST:.0f} s: {", ".join(self._waiting) or "the last file"}. What the '
        'last checkpoint holds is not lost: run the same command again.'
      )

  def _work(self) -> None:
    while True:
      with self._change:
        key = None
        while key is None:
          if self._closed:
            return
          now = time.monotonic()
          due = {k: 0.0 if self._closing else self._next.get(k, 0.0) - now for k in self._waiting}
          key = next((k for k, left in due.items() if left <= 0), None)
          if key is None:
            self._change.wait(min(due.values(), default=None))
        work, self._busy = self._waiting.pop(key), True
      began = time.monotonic()
      try:
        work()
        pause = max(SPACING, TIMES * (time.monotonic() - began))
      except Exception as error:
        pause = AGAIN
        if isinstance(error, PassingError) or paths.is_passing(error):
          with self._change:
            self._waiting.setdefault(key, work)
        elif isinstance(error, RunError):
          self._error = error
        else:  # nobody else would hear of it
          self._error = RunError(f'{key}: {type(error).__name__}: {error}')
      with self._change:
        self._busy, self._next[key] = False, time.monotonic() + pause
        self._change.notify_all()
