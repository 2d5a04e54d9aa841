"""Fields from the columns of a table, by kind."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.fields import Boxes, Field, Mapped
from vit_jax.data.sources import conversations
from vit_jax.data.sources.paired import map_field
from vit_jax.data.sources.tables import Table, split_unit

if TYPE_CHECKING:
  import numpy as np

_UNKNOWN = ('', 'nan', 'na')


class Part(NamedTuple):
  """What a field is made of.

  Attributes:
    config: with names of classes.
    name: of the field.
    columns, units: of the table.
    table: with a row for each example, or for each box.
    whole: the table whose classes count.
    groups: rows of each example.
  """

  config: Mapped
  name: str
  columns: tuple[str, ...]
  units: tuple[str, ...]
  table: Table
  whole: Table
  groups: list[Sequence[int]]


class _Classes:
  """Classes by name; `several` where values are lists, or texts separated by '|'."""

  def __init__(self, part: Part, column: str, *, several: bool):
    self._column, self._several, self._table = column, several, part.table
    self.names = part.config.field(part.name, Field('class')).names
    self._where = f'data.source.names.{part.name}' if self.names else part.whole.file
    if self.names and not any(map(_is_number, self.names)):
      self._places = {str(place): place for place in range(len(self.names))}
    else:
      self._places = {}
    if not self.names:
      values = enumerate(part.whole.column(column))
      every = {text for row, value in values for text in self._texts(part.whole, row, value)}
      by_size = all(map(_is_number, every))
      self.names = tuple(sorted(every, key=lambda t: (int(t), t) if by_size else (0, t)))
    self._places |= {name: place for place, name in enumerate(self.names)}

  def of(self, row: int) -> list[int]:
    """Places of the classes of a row of the table."""
    value = self._table.columns[self._column][row]
    places = []
    for text in self._texts(self._table, row, value):
      if text not in self._places:
        names = files.few(list(self.names))
        raise self._table.wrong(
          row, f'{self._column}={text!r} is no class of {self._where}, which has {names}'
        )
      places.append(self._places[text])
    return places

  def _texts(self, table: Table, row: int, value: Any) -> list[str]:
    if self._several and isinstance(value, str):
      value = value.split('|')
    texts = []
    for each in value if self._several and isinstance(value, list) else [value]:
      if not isinstance(each, str | int | None):
        raise table.wrong(row, f'{self._column}={each!r} is no name of a class')
      texts.append(json.dumps(each) if isinstance(each, int) else (each or '').strip())
    return [text for text in texts if text]


def _is_number(text: str) -> bool:
  return bool(re.fullmatch(r'-?\d+', text))


def _image(part: Part) -> tuple[Field, list[str]]:
  values = part.table.columns[part.columns[0]]
  for row, value in enumerate(values):
    if not isinstance(value, str) or not value:
      raise part.table.wrong(row, f'{part.columns[0]}={value!r} is no path')
  return Field('image'), values


def _map(part: Part) -> tuple[Field, list[str]]:
  return map_field(part.config, part.name), _image(part)[1]


def _class(part: Part) -> tuple[Field, list[int]]:
  classes = _Classes(part, part.columns[0], several=False)
  values = [classes.of(row) for row in range(len(part.table))]
  if [] in values:
    raise part.table.wrong(values.index([]), f'{part.columns[0]} is empty: of which class is it?')
  return Field('class', classes.names), [place for (place,) in values]


def _classes(part: Part) -> tuple[Field, list[tuple[int, ...]]]:
  table = part.table
  if len(part.columns) == 1:
    classes = _Classes(part, part.columns[0], several=True)
    return Field('classes', classes.names), [tuple(classes.of(i)) for i in range(len(table))]
  found: list[tuple[int, ...]] = [() for _ in table.lines]
  for place, column in enumerate(part.columns):
    for row, value in enumerate(table.columns[column]):
      if value not in (None, '', 0, 1, '0', '1'):
        raise table.wrong(row, f'{column}={value!r} is not 0 or 1, whether the class is there')
      found[row] += (place,) * (value in (1, '1'))
  return Field('classes', part.columns), found


def _vector(part: Part) -> tuple[Field, Any]:
  import numpy as np

  found = [_numbers(part.table, column) for column in part.columns]
  names = tuple(split_unit(column)[0] for column in part.columns)
  if len(found) == 1 and found[0].ndim == 2:
    count = found[0].shape[1]
    names = tuple(f'{names[0]}[{i}]' for i in range(count))
    return Field('vector', names, part.units * count), found[0]
  if any(each.ndim == 2 for each in found):
    raise RunError(f'{part.table.file}: a list of numbers is a field of its own ({part.name})')
  names = names if len({*names}) == len(names) else part.columns
  return Field('vector', names, part.units), np.stack(found, 1)


def _points(part: Part) -> tuple[Field, Any]:
  import numpy as np

  if len(part.columns) == 1:
    if not any(isinstance(value, list) for value in part.table.column(part.columns[0])):
      raise RunError(
        f'data.source.fields.{part.name}={part.columns[0]}: points are pairs of columns, x, y, x, '
        'y, ..., or one column of lists in JSON lines'
      )
    found = _numbers(part.table, part.columns[0], 2)
    return Field('points', tuple(f'p{i}' for i in range(found.shape[1]))), found
  names = names_of_points(part.name, part.columns)
  found = np.stack([_numbers(part.table, column) for column in part.columns], 1)
  known = np.isfinite(found.reshape(len(found), -1, 2))
  if len(half := np.argwhere(known.any(-1) & ~known.all(-1))):
    row, point = half[0].tolist()
    x, y = part.columns[2 * point : 2 * point + 2]
    raise part.table.wrong(row, f'of {x} and {y} one is there, and the other not')
  return Field('points', names), found.reshape(len(found), -1, 2)


def names_of_points(field: str, columns: Sequence[str]) -> tuple[str, ...]:
  """Names of points from those of columns of x, y, x, y, ...; p0, p1, ... where they say none.

  Raises:
    RunError: if the columns are of other axes, or two of them of different points.
  """
  sides = [_side(split_unit(column)[0]) for column in columns]
  axes = ''.join(axis for axis, _ in sides)
  if len(axes) % 2 or set(axes[::2]) - set('x?') or set(axes[1::2]) - set('y?'):
    raise RunError(
      f'data.source.fields.{field}: columns of points are x, y, x, y, ..., and these are '
      f'{", ".join(columns)}'
    )
  for at in range(0, len(sides), 2):
    (_, one), (_, other) = sides[at : at + 2]
    if one != other and one and other:
      raise RunError(
        f'data.source.fields.{field}: {columns[at]} and {columns[at + 1]} are x and y of different '
        'points'
      )
  names = [one if one == other else '' for (_, one), (_, other) in zip(sides[::2], sides[1::2])]  # noqa: B905
  if len({*names}) < len(names) or any(not name or name.isdigit() for name in names):
    names = [f'p{i}' for i in range(len(names))]
  return tuple(names)


def _side(column: str) -> tuple[str, str]:
  """Which axis a column seems to be, x, y or ?, and of which point."""
  if match := re.fullmatch(r'(.*?)[ _.-]*([xy])', column, re.IGNORECASE):
    return match[2].lower(), match[1]
  if match := re.fullmatch(r'([xy])[ _.-]*(.*)', column, re.IGNORECASE):
    return match[1].lower(), match[2]
  return '?', ''


def _boxes(part: Part) -> tuple[Field, list[Boxes]]:
  import numpy as np

  table, columns = part.table, part.columns
  if len(columns) not in (1, 2, 4, 5):
    raise RunError(
      f'data.source.fields.{part.name}: boxes are four columns or one of lists, and one of classes'
    )
  flat = len(columns) > 2
  classes = _Classes(part, columns[-1], several=not flat) if len(columns) in (2, 5) else None
  found = []
  for rows in part.groups:
    corners, labels = [], []
    for row in rows:
      boxes: Any = table.columns[columns[0]][row]
      if flat:
        sides = [table.columns[column][row] for column in columns[:4]]
        boxes = [] if all(side in ('', None) for side in sides) else [sides]
      if not isinstance(boxes, list):
        raise table.wrong(row, f'{columns[0]}={boxes!r} is no list of boxes; of none it is []')
      own = classes.of(row) if classes else [0] * len(boxes)
      if len(own) != len(boxes):
        raise table.wrong(row, f'boxes: {len(boxes)}, classes of boxes: {len(own)}')
      labels += own
      corners += [_corners(table, row, box) for box in boxes]
    sides = np.array(corners, np.float64).reshape(-1, 4)
    crowd, area = np.zeros(len(sides), bool), np.prod(sides[:, 2:] - sides[:, :2], axis=1)
    found.append(Boxes(sides, np.array(labels, np.int64), crowd, area))
  return Field('boxes', classes.names if classes else ('object',)), found


def _corners(table: Table, row: int, box: Any) -> list[float]:
  try:
    left, top, right, bottom = map(_number, box)
    if left <= right and top <= bottom:  # and all are known
      return [left, top, right, bottom]
  except (ValueError, TypeError, OverflowError):
    pass
  raise table.wrong(row, f'{box!r} is no box: they are left, top, right, bottom in pixels')


def _text(part: Part) -> tuple[Field, list[Any]]:
  (name,) = part.columns
  values = part.table.columns[name]
  for row, value in enumerate(values):
    every = value if isinstance(value, list) and value else [value]
    if not all(isinstance(each, str) for each in every):
      raise part.table.wrong(row, f'{name}={value!r} is no text')
  return Field('text'), [tuple(value) if isinstance(value, list) else value for value in values]


def _dialogue(part: Part) -> tuple[Field, list[Any]]:
  (name,), found = part.columns, []
  for row, value in enumerate(part.table.columns[name]):
    try:
      found.append(conversations.turns(value))
    except ValueError as error:
      raise part.table.wrong(row, f'{name} {error}') from None
  return Field('dialogue'), found


def _number(value: Any) -> float:
  """A number, NaN if it is not known; raises ValueError for anything else."""
  if value is None or (isinstance(value, str) and value.strip().casefold() in _UNKNOWN):
    return math.nan
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise ValueError
  found = float(value)
  if math.isinf(found):
    raise ValueError
  return found


def _numbers(table: Table, name: str, width: int = 0) -> np.ndarray:
  """A column of numbers or of lists of as many, or, with a width, of lists of lists of so many.

  Returns:
    float64 (rows,), (rows, n) or (rows, n, width), NaN for what is not known.

  Raises:
    RunError: naming the line, for anything else.
  """
  import numpy as np

  column = table.columns[name]
  first = next((value for value in column if isinstance(value, list)), None)
  if first is None and width:
    raise table.wrong(0, f'{name}={column[0]!r} is no list')
  shape = () if first is None else (len(first), width) if width else (len(first),)
  found = np.full((len(column), *shape), np.nan)
  for row, value in enumerate(column):
    try:
      if not shape:
        found[row] = _number(value)
      elif value is not None:
        made = [_several(each, width) if width else _number(each) for each in value]
        if not isinstance(value, list) or np.shape(made) != shape:
          raise ValueError
        found[row] = made
    except (ValueError, TypeError, OverflowError):
      sides = ' x '.join(map(str, shape))
      what = f'no list of {sides} numbers, as in other lines' if shape else 'no number'
      raise table.wrong(
        row, f'{name}={value!r} is {what}; what is not known is empty, nan or NA'
      ) from None
  return found


def _several(value: Any, width: int) -> list[float]:
  return [math.nan] * width if value is None else [_number(each) for each in value]


MAKE: Mapping[str, Callable[[Part], tuple[Field, Sequence[Any]]]] = {
  'image': _image, 'class': _class, 'classes': _classes, 'vector': _vector, 'points': _points,
  'boxes': _boxes, 'map': _map, 'text': _text, 'dialogue': _dialogue,
}  # fmt: skip
