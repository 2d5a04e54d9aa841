"""Tables of runs: reading them from files, and picking rows."""

from __future__ import annotations

import csv
import importlib
import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest

MISSING = ('', 'nan', 'na', 'n/a', 'none', 'null')
COMPRESSED = ('.gz', '.bz2', '.xz', '.zst', '.zip')
OPERATORS = {
  '<=': operator.le, '>=': operator.ge, '!=': operator.ne, '==': operator.eq, '=': operator.eq,
  '<': operator.lt, '>': operator.gt,
}  # fmt: skip


class Table(dict[str, np.ndarray]):
  """Columns of equal length by name: float64 with NaN for what is missing, or str with ''.

  Attributes:
    metadata: what the file says of itself, such as 'source', 'licence' and 'unit flops'.
  """

  def __init__(self, columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None):
    super().__init__({name: np.asarray(values) for name, values in columns.items()})
    self.metadata = dict(metadata or {})

  @property
  def units(self) -> dict[str, str]:
    """Units of the columns that have one: {'flops': 'FLOP'}."""
    named = ((*name.partition(' ')[::2], unit) for name, unit in self.metadata.items())
    return {column: unit for word, column, unit in named if word == 'unit'}

  @property
  def rows(self) -> int:
    """How many."""
    return len(next(iter(self.values()), ()))

  def take(self, index: Any) -> Table:
    """The rows at `index`, a mask or positions, in that order."""
    return Table({name: values[index] for name, values in self.items()}, self.metadata)


def read(path: str | paths.Path) -> Table:
  """Reads .csv, .tsv, .jsonl or .parquet.

  Cells of CSV files are separated by commas, semicolons or tabs, whichever their header has; a
  first column without a name, as pandas writes it, is 'index'. Lines that start with '#' before the
  header are metadata, '# name: value'. Columns of which every cell is a number or missing are
  float64. JSON objects inside JSON objects become columns 'outer.inner'; keys that a line lacks are
  missing there. A last line of JSON that was cut off, as of a run that was killed, is left out and
  named in metadata['cut off'].

  Args:
    path: of the file; its ending says what it is.

  Returns:
    The table.

  Raises:
    RunError: there is no such file, it holds no rows, or a row does not fit, named by its line.
  """
  path = paths.at(path)
  readers = {'.csv': _read_csv, '.tsv': _read_csv, '.jsonl': _read_jsonl, '.parquet': _read_parquet}
  ending = path.suffix.lower()
  try:
    if not path.exists():
      raise RunError(f'{path}: cannot be read: No such file or directory')
    if path.is_dir():
      raise RunError(f'{path}: is a directory, not a table; tables are {", ".join(readers)} files')
    if ending in COMPRESSED:
      raise RunError(f'{path}: is compressed; unpack it and give {path.with_suffix("")}')
    if ending not in readers:
      raise RunError(
        f'{path}: tables are {", ".join(readers)} files, by their ending, which here is {ending!r}'
      )
    table = readers[ending](path)
  except OSError as error:
    raise RunError(f'{path}: cannot be read: {error.strerror or error}') from error
  except UnicodeDecodeError as error:
    raise RunError(
      f'{path}: is not text in UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); '
      'save it as UTF-8'
    ) from error
  if not table.rows:
    raise RunError(f'{path}: holds no rows')
  return table


def where(table: Mapping[str, Any], conditions: str) -> Table:
  """The rows that meet all of some conditions.

  Args:
    table: columns of equal length.
    conditions: 'model=L/16,data!=30M,flops<=1e20'. Nothing behind = or != stands for what is
      missing: 'error!=' keeps the rows that have one.

  Returns:
    A table with the same columns and at least one row.

  Raises:
    RunError: a condition cannot be read or compares what cannot be compared, a column is unknown,
      or no row is left.
  """
  table = table if isinstance(table, Table) else Table(table)
  keep = np.ones(table.rows, bool)
  for condition in conditions.split(','):
    match = re.fullmatch(r'\s*([^<>=!]+?)\s*(<=|>=|!=|==|=|<|>)\s*([^<>=!]*?)\s*', condition)
    if not match:
      raise RunError(f'{condition.strip()!r} is not a condition such as model=L/16 or flops<=1e20')
    name, sign, value = match.groups()
    keep &= _compare(column(table, name), sign, value, condition.strip())
  if not keep.any():
    raise RunError(f'none of {table.rows} rows has {conditions}')
  return table.take(keep)


def column(table: Mapping[str, Any], name: str) -> np.ndarray:
  """The column of that name; RunError if there is none."""
  if name not in table:
    raise RunError(f'there is no column {name!r}; {suggest(name, table)}')
  return np.asarray(table[name])


def numbers(table: Mapping[str, Any], *names: str) -> list[np.ndarray]:
  """Columns as float64, of which every value must be positive and finite.

  Args:
    table: columns of equal length.
    *names: of the columns.

  Returns:
    One array per name, all of the same length.

  Raises:
    RunError: a column is unknown, of another length or holds another value; rows count from 0.
  """
  found = [positive(column(table, name), name) for name in names]
  for values in found:
    if values.shape != found[0].shape:
      raise RunError(f'columns {names} differ in length: {[len(f) for f in found]}')
  return found


def positive(values: Any, name: str) -> np.ndarray:
  """A column as float64, of which every value must be positive and finite.

  Raises:
    RunError: if one is not; rows count from 0.
  """
  values = floats(values, name)
  wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
  if wrong.size:
    some = ', '.join(f'{values[row]:g} in row {row}' for row in wrong[:3])
    more = ', ...' if wrong.size > 3 else ''
    end = f',{name}<inf' if np.isposinf(values).any() else ''
    out = '' if wrong.size == len(values) else f"; where='{name}>0{end}' leaves them out"
    raise RunError(
      f'column {name!r} must be positive and finite, and is not in {wrong.size} of {len(values)} '
      f'rows: {some}{more} (from 0){out}'
    )
  return values


def floats(values: Any, name: str) -> np.ndarray:
  """A column as float64; integers may be of any size.

  Raises:
    RunError: if it holds text, or is not a column.
  """
  values = np.asarray(values)
  if values.ndim != 1:
    raise RunError(f'column {name!r} must be a row of numbers, not of shape {values.shape}')
  if values.dtype.kind in 'biuf':
    return values.astype(np.float64)
  cells = [_number(cell) for cell in values.tolist()]
  words = [row for row, cell in enumerate(cells) if cell is None]
  if words:
    out = f"; where='{name}>0' leaves them out" if len(words) < len(cells) else ''
    raise RunError(
      f'column {name!r} holds text: {values[words[0]]!s} in row {words[0]} (from 0; '
      f'{len(words)} of {len(cells)} rows){out}'
    )
  return np.array(cells, np.float64)


def _compare(values: np.ndarray, sign: str, value: str, condition: str) -> np.ndarray:
  numeric = values.dtype.kind in 'biuf'
  if value.lower() in MISSING and sign in ('=', '==', '!='):
    missing = np.isnan(values.astype(float)) if numeric else values == ''
    return missing if sign != '!=' else ~missing
  number = _number(value)
  if numeric and number is None:
    raise RunError(f'{condition!r}: the column holds numbers, and {value!r} is none')
  if not numeric and sign not in ('=', '==', '!='):
    # Words among the numbers of a column are neither more nor less than a number.
    cells = [_number(cell) for cell in values.tolist()]
    if number is None or all(cell is None or np.isnan(cell) for cell in cells):
      known = ', '.join(sorted(set(map(str, values)))[:5])
      raise RunError(f'{condition!r}: the column holds text ({known}), which = and != compare')
    return OPERATORS[sign](np.array([np.nan if c is None else c for c in cells]), number)
  return OPERATORS[sign](values, number if numeric else value)


def _number(cell: Any) -> float | None:
  """The number that a cell stands for, NaN if it is missing, None if it is a word."""
  if cell is None:
    return np.nan
  if isinstance(cell, str):
    if cell.strip().lower() in MISSING:
      return np.nan
    if '_' in cell:  # which Python takes for a digit separator
      return None
  try:
    return float(cell)
  except (TypeError, ValueError):
    return None


def _columns(path: paths.Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
  """Cells in rows, as columns with their types."""
  twice = {name for name in names if names.count(name) > 1}
  if twice or not all(names):
    raise RunError(f'{path}: columns need a name each, but has {", ".join(names)}')
  columns = {}
  for name, cells in zip(names, zip(*rows, strict=True), strict=False):
    values = [_number(cell) for cell in cells]
    if all(value is not None for value in values):
      columns[name] = np.array(values, np.float64)
    else:
      words = [cell if isinstance(cell, str) else _word(cell) for cell in cells]
      columns[name] = np.array([w.strip() for w in words], str)
  return Table(columns)


def _word(cell: Any) -> str:
  return '' if cell is None else json.dumps(cell)


def _text(path: paths.Path) -> str:
  text = path.read_text('utf-8-sig')
  if '\0' in text:
    raise RunError(f'{path}: is not text in UTF-8 (it holds zero bytes); save it as UTF-8')
  return text


def _read_csv(path: paths.Path) -> Table:
  lines = _text(path).splitlines(keepends=True)
  metadata = {}
  start = 0
  while start < len(lines) and (not lines[start].strip() or lines[start].startswith('#')):
    name, _, value = lines[start].lstrip('#').partition(':')
    if name.strip():
      metadata[name.strip()] = value.strip()
    start += 1
  head = lines[start] if start < len(lines) else ''
  reader = csv.reader(lines[start:], delimiter=max(',;\t', key=head.count), strict=True)
  try:
    names = [name.strip() for name in next(reader, [])]
    if len(names) > 1 and not names[0] and 'index' not in names:
      names[0] = 'index'
    rows = []
    for row in reader:
      if row and len(row) != len(names):
        raise RunError(
          f'{path}: line {start + reader.line_num} has {len(row)} cells, the header {len(names)}'
        )
      if row:
        rows.append(row)
  except csv.Error as error:
    raise RunError(f'{path}: line {start + reader.line_num}: {error}') from error
  table = _columns(path, names, rows)
  table.metadata = metadata
  return table


def _flat(value: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for name, inner in value.items():
    flat.update(_flat(inner, f'{prefix}{name}.') if isinstance(inner, dict)
                else {f'{prefix}{name}': inner})  # fmt: skip
  return flat


def _read_jsonl(path: paths.Path) -> Table:
  lines = [(n, line) for n, line in enumerate(_text(path).split('\n'), 1) if line.strip()]
  records = []
  metadata = {}
  for number, line in lines:
    try:
      record = json.loads(line, object_pairs_hook=_once)
      if not isinstance(record, dict):
        raise RunError(f'{path}: line {number} is no JSON object: {line[:40]}')
      records.append(_flat(record))
    except json.JSONDecodeError as error:
      if number != lines[-1][0]:
        raise RunError(f'{path}: line {number} is not JSON: {error}') from error
      metadata['cut off'] = f'line {number}'
    except ValueError as error:
      raise RunError(f'{path}: line {number}: {error}') from error
  names = list(dict.fromkeys(name for record in records for name in record))
  table = _columns(path, names, ([record.get(name) for name in names] for record in records))
  table.metadata = metadata
  return table


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of JSON in which no key comes twice."""
  made = dict(pairs)
  if len(made) < len(pairs):
    raise ValueError(f'a key comes twice in {[name for name, _ in pairs]}')
  return made


def _read_parquet(path: paths.Path) -> Table:
  try:
    parquet = importlib.import_module('pyarrow.parquet')
  except ImportError as error:
    raise RunError(f'{path}: reading Parquet needs pyarrow: pip install pyarrow') from error
  try:
    table = parquet.read_table(path)
  except ValueError as error:  # pyarrow's own errors are ValueErrors
    raise RunError(f'{path}: is not Parquet: {error}') from error
  cells = [column.to_pylist() for column in table.columns]
  return _columns(path, table.column_names, list(zip(*cells, strict=True)))
