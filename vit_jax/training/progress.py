"""What a run reports: lines of metrics, wall time by phase, progress."""

from __future__ import annotations

import collections
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vit_jax.core import faults, paths
from vit_jax.core.behind import Behind
from vit_jax.core.text import number
from vit_jax.processes import health


class MetricsFile:
  """One JSON object per line, with its step; what came after a restored step is dropped.

  Objects of a store are written whole: there all lines are kept, and written behind the run. A
  checkpoint carries those that may not be there yet (`missing`), so that none is lost with them.

  Attributes:
    damaged: numbers of lines, from 1, that could not be read and were dropped.
  """

  def __init__(
    self, path: paths.Path, behind: Behind, *, after: int, source: paths.Path | None = None,
    carried: Mapping[str, Any] | None = None,
  ):  # fmt: skip
    """Reads the lines of steps up to `after`, or those of `source`; writes nothing yet.

    Args:
      path: of the file.
      behind: writes it if it is in a store.
      after: the last step to keep.
      source: a file to begin with, instead of the one that is there.
      carried: what `missing` said when the checkpoint of that step was saved.
    """
    origin = source or path
    lines = origin.read_text(errors='replace').splitlines() if origin.exists() else []
    # A kill cuts the last one short, which is no damage.
    self.damaged = [n for n, line in enumerate(lines[:-1], 1) if _step(line) is None]
    kept = _up_to(after, lines)
    if carried:
      kept = _up_to(after, [*kept[: carried['before']], *carried['lines']])
    self._path, self._behind = path, behind
    self._file: IO[bytes] | None = None
    self._lines = kept
    self._is_open, self._is_same = False, source in (None, path) and kept == lines
    self._there = len(kept) if self._is_same else 0  # of the lines, those that the store has

  def open(self) -> None:
    """Makes the file what it is to be: until then it is as it was found."""
    if self._is_open:
      return
    self._is_open = True
    if isinstance(self._path, paths.StorePath):
      if not self._is_same:
        self._upload()
      return
    if not self._is_same:
      paths.write_text(self._path, _text(self._lines))
    self._file = paths.appending(self._path)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line and hands it to the operating system, or to what writes to the store."""
    self.open()
    line = json.dumps({'step': step, **values})
    if self._file is None:
      self._lines.append(line)
      self._upload()
      return
    data = f'{line}\n'.encode()
    with paths.writing(self._path):
      while data := data[self._file.write(data) :]:
        pass  # a full disk takes a part of it, and then raises

  def missing(self) -> dict[str, Any]:
    """Lines that may not be in the file, and how many come before them; empty if there are none."""
    if isinstance(self._path, paths.LocalPath):
      return {}
    there = self._there
    lines = self._lines[there:]
    return {'before': there, 'lines': lines} if lines else {}

  def cut(self, after: int) -> None:
    """Drops the lines of later steps."""
    self.open()
    if self._file is None:
      self._lines, self._there = _up_to(after, self._lines), 0
      self._upload()
      return
    self._file.close()
    paths.write_text(self._path, _text(_up_to(after, self._path.read_text().splitlines())))
    assert isinstance(self._path, paths.LocalPath)
    self._file = paths.appending(self._path)

  def close(self) -> None:
    """Closes the file."""
    if self._file:
      self._file.close()

  def _upload(self) -> None:
    def write() -> None:
      kept = self._lines
      count = len(kept)
      paths.write_text(self._path, _text(kept[:count]))
      if kept is self._lines:  # or lines were dropped meanwhile, and it is written once more
        self._there = count

    self._behind.do(self._path.name, write)


def _up_to(after: int, lines: Iterable[str]) -> list[str]:
  """The lines of steps up to one, those that are damaged left out."""
  steps = ((line, _step(line)) for line in lines)
  return [line for line, step in steps if step is not None and step <= after]


def _text(lines: Iterable[str]) -> str:
  return ''.join(f'{line}\n' for line in lines)


def _step(line: str) -> int | None:
  try:
    step = json.loads(line)['step']
  except (ValueError, KeyError, TypeError, RecursionError):
    return None
  return step if type(step) is int else None


class Chrono:
  """Wall time by phase, in seconds, over all sessions of a run; a phase is a place of `faults`."""

  def __init__(self, seconds: Mapping[str, float] | None = None):
    self.seconds: dict[str, float] = collections.defaultdict(float, seconds or {})
    self.limits: dict[str, float | None] = {}  # seconds a phase may take at a time; see `health`
    self._open: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    """Adds the time spent inside to `phase`."""
    faults.reached(f'in {phase}')
    health.reached(phase, limit=self.limits.get(phase))
    self._open[phase] = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[phase] += time.perf_counter() - self._open.pop(phase)

  def running(self, phase: str) -> float:
    """Seconds spent in `phase` so far, up to now if it is going on."""
    now = time.perf_counter()
    return self.seconds[phase] + now - self._open.get(phase, now)


def say(text: str) -> None:
  """A line for people, from one process of all."""
  if jax.process_index() == 0:
    print(text, flush=True)


class Reporter:
  """A progress bar with rate and remaining time on a terminal, plain lines elsewhere."""

  def __init__(self, total: int, start: int, *, visible: bool):
    self._console = Console(file=sys.stdout, quiet=not visible, soft_wrap=True, highlight=False)
    self._total = total
    self._bar = Progress(
      TextColumn('{task.fields[title]}'), BarColumn(),
      TextColumn('{task.completed}/{task.total} {task.fields[text]}'), TimeRemainingColumn(),
      console=self._console, disable=not self._console.is_terminal, transient=True,
    )  # fmt: skip
    self._task = self._bar.add_task('', total=total, completed=start, title='train', text='')
    self._bar.start()

  def say(self, text: str) -> None:
    """A line above the bar."""
    self._console.print(text, markup=False)

  def lines(self, texts: Iterable[str]) -> None:
    """Several lines."""
    for text in texts:
      self.say(text)

  def advance(self, step: int) -> None:
    """Moves the bar to `step`."""
    self._bar.update(self._task, completed=step)

  def train(self, step: int, values: Mapping[str, Any], rate: float) -> None:
    """The training metrics of a step; `rate` in images per second."""
    loss = values['train/loss']
    shown = number(loss) if isinstance(loss, list) else f'{loss:.4f}'
    text = f'loss {shown}  {rate:,.0f} img/s'
    if self._bar.disable:
      self.say(f'step {step}/{self._total}  {text}')
    self._bar.update(self._task, completed=step, text=text)

  def table(self, title: str, rows: Mapping[str, Any]) -> None:
    """Two columns under a title."""
    table = Table(title=title, show_header=False, title_justify='left')
    for name, value in rows.items():
      table.add_row(name, value if isinstance(value, str) else number(value))
    self._console.print(table)

  def close(self) -> None:
    """Takes the bar away."""
    self._bar.stop()
