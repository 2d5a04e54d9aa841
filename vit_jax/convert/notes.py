"""What is chosen, guessed, changed or left out on the way from one checkpoint to another.

It is logged as a warning, once, so that nobody has to pass it on; commands print it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator
from typing import IO

# Of a layer, in the name of a parameter.
_NUMBER = re.compile(r'(?<![^./_])(?:0|[1-9]\d*)(?![^./])')
LOG = logging.getLogger('vit_jax.convert')


def say(text: str) -> None:
  """Logs one note."""
  LOG.warning('%s', text)


class _Printer(logging.Handler):
  def __init__(self, file: IO[str]):
    super().__init__()
    self.file = file

  def emit(self, record: logging.LogRecord) -> None:
    print(f'note: {record.getMessage()}', file=self.file)


@contextlib.contextmanager
def printed(file: IO[str] | None = None) -> Iterator[None]:
  """Notes are printed, to `file` or standard output, instead of logged."""
  printer, propagate = _Printer(file or sys.stdout), LOG.propagate
  LOG.addHandler(printer)
  LOG.propagate = False
  try:
    yield
  finally:
    LOG.removeHandler(printer)
    LOG.propagate = propagate


def names(found: Iterable[str]) -> str:
  """Every one of many names of parameters, those of several layers as one: 'blocks.{0-11}.w'."""
  groups: dict[str, list[str]] = {}
  for name in found:
    groups.setdefault(_NUMBER.sub('\0', name), []).append(name)
  lines = []
  for template, members in groups.items():
    numbers = [set(column) for column in zip(*map(_NUMBER.findall, members), strict=True)]
    if math.prod(map(len, numbers)) == len(members):
      texts = iter(map(_numbers, numbers))
      lines.append(re.sub('\0', lambda _, texts=texts: next(texts), template))
    else:
      lines += members
  return ', '.join(lines)


def _numbers(found: set[str]) -> str:
  """'{0-3,7}'; one alone as it is."""
  runs: list[list[int]] = []
  for number in sorted(map(int, found)):
    if runs and number == runs[-1][1] + 1:
      runs[-1][1] = number
    else:
      runs.append([number, number])
  text = ','.join(f'{a}-{b}' if a < b else str(a) for a, b in runs)
  return f'{{{text}}}' if len(found) > 1 else text


def shown(value: object) -> str:
  """A value, cut if it is long: of class names the first few."""
  if isinstance(value, tuple) and len(value) > 4:
    return f'({", ".join(map(repr, value[:3]))}, ... {len(value)} in all)'
  if isinstance(value, float):
    return f'{value:.4g}'
  return repr(value)
