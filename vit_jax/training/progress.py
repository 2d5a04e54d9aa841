"""What a run reports: lines of metrics, wall time by phase, progress."""

from __future__ import annotations

import collections
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vit_jax.core import faults, paths
from vit_jax.core.text import number


class MetricsFile:
  """One JSON object per line, with its step; what came after a restored step is dropped.

  Attributes:
    damaged: numbers of lines, from 1, that could not be read and were dropped.
  """

  def __init__(self, path: paths.Path, *, after: int, source: paths.Path | None = None):
    """Keeps the lines of steps up to `after`, or takes those of `source`."""
    self.damaged = _keep_lines(source or path, path, after=after)
    self._file = paths.appending(path)
    self._path = path

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line and hands it to the operating system."""
    line = (json.dumps({'step': step, **values}) + '\n').encode()
    with paths.writing(self._path):
      while line := line[self._file.write(line) :]:
        pass  # a full disk takes a part of it, and then raises

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def _keep_lines(source: paths.Path, target: paths.Path, *, after: int) -> list[int]:
  """Makes `target` the lines of `source` (none if there is no such file) of steps up to `after`.

  Returns:
    Numbers of lines that cannot be read; a kill cuts the last one short, which is no damage.
  """
  lines = source.read_text(errors='replace').splitlines() if source.exists() else []
  steps = [_step(line) for line in lines]
  kept = [n for n, step in zip(lines, steps, strict=True) if step is not None and step <= after]
  if source != target or kept != lines:
    paths.write_text(target, ''.join(f'{line}\n' for line in kept))
  return [number for number, step in enumerate(steps[:-1], 1) if step is None]


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
    self._open: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    """Adds the time spent inside to `phase`."""
    faults.reached(f'in {phase}')
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
