"""Files of columns: CSV, TSV and JSON lines."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest

_SEPARATORS = {'.csv': ',', '.tsv': '\t'}
_OBJECTS = ('.jsonl', '.ndjson')
_UNIT = re.compile(r'(.*?)\s*[\[(]([^\[\]()]*)[\])]')


@dataclasses.dataclass(frozen=True)
class Table:
  """A file as columns.

  Attributes:
    file: its path.
    columns: values by name, texts in CSV; None for what an object lacks.
    lines: of the file, by row; where a row takes several, the last of them.
  """

  file: str
  columns: dict[str, list[Any]]
  lines: list[int]

  def __len__(self) -> int:
    return len(self.lines)

  def take(self, rows: Sequence[int]) -> Table:
    """Some rows."""
    columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
    return Table(self.file, columns, [self.lines[row] for row in rows])

  def column(self, name: str) -> list[Any]:
    """The values of a column; raises RunError if it is not there."""
    if name not in self.columns:
      raise RunError(f'{self.file} has no column {name!r}: {suggest(name, self.columns)}')
    return self.columns[name]

  def wrong(self, row: int, text: str) -> RunError:
    """What is wrong with a row."""
    return RunError(f'{self.file} line {self.lines[row]}: {text}')

  def find(self, column: str, unit: str = '') -> tuple[str, str]:
    """The column that somebody means, with or without its unit, and that unit.

    Raises:
      RunError: if there is none, or several, or its unit is another.
    """
    exact = column in self.columns
    bare, own = (column, '') if exact else split_unit(column)
    unit = unit or own
    there = [column] if exact else [each for each in self.columns if _bare(each) == bare]
    if not there:
      self.column(column)
    fit = [each for each in there if not unit or split_unit(each)[1] in ('', unit)]
    if len(fit) != 1:
      what = 'several columns' if fit else 'no column'
      raise RunError(
        f'{self.file}: {what} fit {bare!r} [{unit}] of data.source.fields; there is '
        f'{", ".join(there)}'
      )
    return fit[0], unit or split_unit(fit[0])[1]


def _bare(column: str) -> str:
  return split_unit(column)[0]


def split_unit(column: str) -> tuple[str, str]:
  """'age [years]' and 'age (years)' are age in years."""
  match = _UNIT.fullmatch(column)
  return (match[1], match[2].strip()) if match and match[1] else (column, '')


def read_table(path: paths.AnyPath) -> Table:
  """Reads a file.

  Raises:
    RunError: if it cannot be read, naming the line.
  """
  file, suffix = str(path), path.suffix.lower()
  if suffix not in (*_SEPARATORS, *_OBJECTS):
    known = ', '.join((*_SEPARATORS, *_OBJECTS))
    raise RunError(f'{file} is of no kind that is read here: its name must end with one of {known}')
  text = paths.read_text(path)
  table = _objects(file, text) if suffix in _OBJECTS else _rows(file, text, _SEPARATORS[suffix])
  if not table.lines:
    raise RunError(f'{file} has no rows')
  return table


def _rows(file: str, text: str, separator: str) -> Table:
  reader = csv.reader(
    io.StringIO(text, newline=''), delimiter=separator, skipinitialspace=True, strict=True
  )
  columns: dict[str, list[Any]] = {}
  lines: list[int] = []
  try:
    for row in reader:
      values = [value.strip() for value in row]
      if len(values) < 2 and not any(values):  # a blank line
        continue
      if not columns:
        columns = {name: [] for name in values}
        _check_header(file, values, separator)
        continue
      if len(values) != len(columns):
        raise RunError(
          f'{file} line {reader.line_num}: {len(values)} values, and the header has {len(columns)} '
          'names; values with a separator in them are put in quotes'
        )
      lines.append(reader.line_num)
      for column, value in zip(columns.values(), values, strict=True):
        column.append(value)
  except csv.Error as error:
    raise RunError(f'{file} line {reader.line_num}: {error}') from None
  return Table(file, columns, lines)


def _check_header(file: str, names: list[str], separator: str) -> None:
  if twice := [name for name in names if names.count(name) > 1]:
    raise RunError(f'{file}: two columns are called {twice[0]!r}')
  for other in (';', '\t', ','):
    if len(names) == 1 and other != separator and other in names[0]:
      raise RunError(
        f'{file}: columns seem to be separated by {other!r}: use commas in .csv, tabs in .tsv'
      )


def _objects(file: str, text: str) -> Table:
  columns: dict[str, list[Any]] = {}
  lines: list[int] = []
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      value = json.loads(line, object_pairs_hook=_flat)
    except (ValueError, RecursionError) as error:
      raise RunError(f'{file} line {number} is not JSON: {error}') from None
    if not isinstance(value, dict):
      raise RunError(f'{file} line {number} is not an object: write {{"image": "a.jpg", ...}}')
    for name in value:
      columns.setdefault(name, [None] * len(lines))
    for name, column in columns.items():
      column.append(value.get(name))
    lines.append(number)
  return Table(file, columns, lines)


def _flat(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object, those in it as 'outer/inner'."""
  found: dict[str, Any] = {}
  for name, value in pairs:
    inner = {f'{name}/{n}': v for n, v in value.items()} if isinstance(value, dict) else {}
    if twice := found.keys() & (inner or {name: value}):
      raise ValueError(f'{min(twice)!r} is there twice')
    found |= inner or {name: value}
  return found
