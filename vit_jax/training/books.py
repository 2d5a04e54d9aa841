"""What a run writes down while it goes on: metrics, pictures, and how long everything took."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from vit_jax.core import paths
from vit_jax.core.behind import Behind
from vit_jax.core.errors import RunError
from vit_jax.evaluators.evaluator import SHOWN, Drawn, Scores
from vit_jax.processes import peers
from vit_jax.training import config as config_lib
from vit_jax.training import report, writers
from vit_jax.training.progress import Chrono
from vit_jax.training.sessions import goodput
from vit_jax.training.workdir import Workdir


class Books:
  """Of one session, kept by process 0; what the others are told comes to nothing."""

  def __init__(self, workdir: Workdir, say: Callable[[str], None]):
    """Touches nothing yet; `say` is told what goes wrong without stopping the run."""
    self._workdir, self._say = workdir, say
    self._behind = Behind(workdir.path)
    self._open = contextlib.ExitStack()
    self._open.callback(self._behind.close)
    self._kept = False

  def begin(
    self, chrono: Chrono, config: config_lib.Config, *, step: int, total: int, started: float,
    before: Mapping[str, float], trunk: Workdir | None, carried: Mapping[str, Any],
  ) -> None:  # fmt: skip
    """Opens them, in process 0; what was written of later steps is dropped.

    Args:
      chrono: seconds by phase, of all sessions, which the run goes on to count.
      config: of the run.
      step: that it goes on from.
      total: of its steps.
      started: seconds since 1970.
      before: what of the seconds is of earlier sessions.
      trunk: whose metrics come before those of this run.
      carried: what `unwritten` said when the checkpoint was saved.
    """
    self._sessions = self._workdir.sessions(
      self._behind, chrono.seconds, command=_command(), step=step, total=total, started=started,
      before=before,
    )  # fmt: skip
    self._writers = writers.Writers(
      config.log.writers, self._workdir.path, step, self._say, self._behind
    )
    self._open.callback(self._writers.close)
    source = trunk.metrics_path if trunk else None
    self._metrics = self._workdir.metrics(self._behind, after=step, source=source, carried=carried)
    self._open.callback(self._metrics.close)
    if lines := ', '.join(map(str, self._metrics.damaged)):
      path = source or self._workdir.metrics_path
      self._say(f'{path}: line {lines} cannot be read and is left out')
    self._kept = True

  def close(self) -> None:
    """Returns when all is written; raises RunError if something is not."""
    self._open.close()

  def check(self) -> None:
    """Raises RunError if something could not be written, or the directory is another run's now."""
    self._behind.check()
    try:
      self._workdir.check()
    except RunError:
      self._behind.drop()  # it is not ours to write to
      raise

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Numbers by name, or lists of them over lanes."""
    if self._kept:
      self._metrics.write(step, values)
      self._writers.scalars(step, values)

  def evaluated(
    self, step: int, name: str, facts: Mapping[str, Any], found: Scores, drawn: Sequence[Drawn]
  ) -> None:
    """What an evaluation leaves in evals/, and its pictures for other writers."""
    if not self._kept:
      return
    leave = functools.partial(self._workdir.leave, name, facts, found, drawn)
    self._behind.do(f'evals/{name}', leave)
    for number, each in enumerate(drawn):
      self._writers.picture(step, f'{name}/{each.shown.group}/{number % SHOWN}', each.picture)

  def unwritten(self) -> dict[str, Any]:
    """Lines of metrics that a checkpoint must carry, as they may not be in the file yet."""
    if not self._kept:
      return {}
    self._metrics.open()  # the lines before, which may be those of a trunk
    return self._metrics.missing()

  def note(self, step: int) -> None:
    """The run has made a step."""
    if self._kept:
      self._sessions.note(step)

  def back(self, step: int, seconds: float) -> None:
    """The run goes back to a step: those after it, which took so long, have come to nothing."""
    if self._kept:
      self._sessions.lost(seconds)
      self._metrics.cut(step)

  def stopped(self, step: int) -> None:
    """The session ends after a step, by a signal."""
    if self._kept:
      self._sessions.note(step, now=True)
      self._behind.flush()
      self._report()

  def complete(self, step: int, result: dict[str, Any]) -> None:
    """The run is complete: adds to its result what the time was spent on, and writes it."""
    if self._kept:
      self._sessions.note(step, now=True)
      result['goodput'] = goodput(self._sessions.all, time.time())
      self._behind.flush()  # where there is a result, nobody comes back for the rest
      self._workdir.finish(result)
      self._report()

  @contextlib.contextmanager
  def profile(self) -> Iterator[None]:
    """Records what the devices do inside, in profile/ of the run, in every process."""
    path = self._workdir.path / 'profile'
    local = isinstance(path, paths.LocalPath)
    place = path if local else paths.temporary(f'{path} {peers.index()}')
    options = jax.profiler.ProfileOptions()
    # Recording every call of Python in every thread slows the step down that is to be seen.
    options.python_tracer_level = 0
    with jax.profiler.trace(str(place), profiler_options=options):
      yield
    if not local:  # uploaded now that it is complete
      self._behind.do('profile', functools.partial(_moved, place, path))

  def _report(self) -> None:
    """Writes report.html; what goes wrong with it does not stop a run."""
    try:
      report.write(self._workdir.path)
    except Exception as error:
      self._say(f'report.html is not written: {type(error).__name__}: {error}')


def _moved(place: paths.LocalPath, path: paths.Path) -> None:
  assert isinstance(path, paths.StorePath)
  with paths.writing(path):
    paths.upload(place, path)
  paths.delete(place)


def _command() -> str:
  """The command line of this process, if it is one of ours."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  if spec is None or not spec.name.startswith('vit_jax.'):
    return ''
  return f'python -m {spec.name} {shlex.join(sys.argv[1:])}'
