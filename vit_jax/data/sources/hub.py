"""How the Hugging Face hub lays out data sets: the files of each split, and what columns hold."""

from __future__ import annotations

import collections
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.examples import NoDataError, NoSplitError
from vit_jax.data.fields import USUAL, Boxes

LAYOUT = 'SPLIT.parquet, SPLIT-00000-of-00003.parquet or SPLIT/0000.parquet'
# Older files have a hash behind their number.
_FILE = re.compile(
  r'(?P<split>.*?)((^|[-_.])(part|shard)?[-_.]?(?P<number>\d+)(-of-(?P<of>\d+))?(-[0-9a-f]{16})?)?'
  r'\.parquet'
)
_SPLITS = re.compile('train|test|val|dev|eval', re.IGNORECASE)
_KINDS = {**USUAL, 'caption': 'text', 'captions': 'text'}
# What may stand beside boxes: their classes, whether they are crowds, their areas.
_BESIDE = (
  ('category', 'categories', 'label', 'labels', 'category_id'), ('iscrowd', 'is_crowd'), ('area',),
)  # fmt: skip
# Kinds of fields that a column can be, by what its values are and in how many lists.
_ABLE = {
  ('image', 0): ('image', 'map'),
  ('label', 0): ('class',), ('label', 1): ('classes',),
  ('boxes', 0): ('boxes',), ('boxes', 1): ('boxes',),
  ('number', 0): ('vector', 'points'), ('number', 1): ('vector',), ('number', 2): ('points',),
  ('whole', 0): ('class', 'vector', 'points'), ('whole', 1): ('classes', 'vector'),
  ('whole', 2): ('points',),
  ('text', 0): ('text', 'class'), ('text', 1): ('text', 'classes'),
}  # fmt: skip


def split_files(root: paths.Path, split: str) -> tuple[dict[str, list[str]], str, list[str]]:
  """The files of all splits of a data set, in the order of their numbers.

  Args:
    root: the directory with the files, or with one directory that has them.
    split: that is asked for.

  Returns:
    Paths by split; the directory; and lines for people, about what was passed over.

  Raises:
    NoDataError: if the directory is not there, has no such file, or several data sets.
    NoSplitError: if there is no such split.
    RunError: if a file of the split is missing, or there twice.
  """
  if not root.is_dir():
    raise NoDataError(f'there is no directory {root}: set data.source.dir')
  own = _splits(root)
  inside = [e for e in paths.entries(root) if e.is_dir() and not files.is_hidden(e.name)]
  folders = [paths.at(entry.path) for entry in inside if entry.name not in own]
  others = {folder: found for folder in folders if (found := _splits(folder))}
  if not own and not others:
    raise NoDataError(f'no Parquet files in {root}: expected are {LAYOUT}, there or in one folder')
  if not own and len(others) > 1:
    names = files.few([folder.name for folder in others])
    raise NoDataError(f'{root} has several data sets, {names}: set data.source.dir to one of them')
  place, found = (root, own) if own else next(iter(others.items()))
  if not split or split not in found:
    there = [name or f'files that name no split ({each[0].name})' for name, each in found.items()]
    raise NoSplitError(f'{place} has no split {split!r}: it has {files.few(there)}')
  _check_series(place, split, found[split])
  passed = [str(folder.name) for folder in others] if own else []
  names = [entry.name for entry in paths.entries(place) if not entry.is_dir()]
  passed += [n for n in names if not n.endswith('.parquet') and not files.is_hidden(n)]
  said = [f'passed over: {files.few(passed)}'] if passed else []
  return {name: [str(path) for path in each] for name, each in found.items()}, str(place), said


def _splits(folder: paths.Path) -> dict[str, list[paths.Path]]:
  """Files by the split that they or, of those of a split's own directory, this names."""
  found = collections.defaultdict[str, list[paths.Path]](list)
  for entry in paths.entries(folder):
    path = paths.at(entry.path)
    if files.is_hidden(entry.name):
      continue
    if entry.is_dir():
      inside = [each for each in path.glob('*.parquet') if not files.is_hidden(each.name)]
      # Others hold a configuration, with files of splits.
      own = path.name != 'data' and not any(_SPLITS.match(each.name) for each in inside)
      if own or _SPLITS.match(path.name):
        found[path.name] += inside
    elif match := _FILE.fullmatch(path.name):
      found[match['split']].append(path)
  return {name: sorted(each, key=_order) for name, each in sorted(found.items()) if each}


def _order(path: paths.Path) -> list[Any]:
  """Sorts numbers in names by their values."""
  return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'(\d+)', path.name))]


def _check_series(place: paths.Path, split: str, found: list[paths.Path]) -> None:
  """Raises RunError unless there is one file of each number."""
  if len({path.parent for path in found}) > 1:
    raise RunError(f'{place} has the split {split} as a directory and as files: keep one of them')
  series = collections.defaultdict[str, list[tuple[int, str]]](list)
  for path in found:
    if (match := _FILE.fullmatch(path.name)) and match['of']:
      series[match['split']].append((int(match['number']), match['of']))
  for name, each in series.items():
    count, numbers = each[0][1], [number for number, _ in each]
    if len({of for _, of in each}) > 1 or len(numbers) > min(int(count), len({*numbers})):
      raise RunError(
        f'{found[0].parent} has files of several series {name}-*-of-*: delete those of the old one'
      )
    first = min(1, *numbers) if int(count) in numbers else 0
    if missing := sorted({*range(first, first + int(count))} - {*numbers}):
      names = [f'{name}-{number:0{len(count)}}-of-{count}.parquet' for number in missing]
      raise RunError(f'{found[0].parent} lacks {files.few(names)}: download the data set again')


class Column(NamedTuple):
  """A column of a file.

  Attributes:
    type: of Arrow, as text.
    able: kinds of fields that it can be.
    kind: that it is without being asked for; '' for none.
    classes: names that are noted for it.
    text: whether classes are texts.
    lists: how many its values are in.
    beside: what stands beside boxes: classes, crowds and areas; '' where there is none.
  """

  type: str
  able: tuple[str, ...]
  kind: str
  classes: tuple[str, ...]
  text: bool
  lists: int
  beside: tuple[str, ...]


def columns(path: str, schema: Any) -> dict[str, Column]:
  """The columns of a file by name, from its Arrow schema and what the hub notes in that.

  Raises:
    RunError: if the notes cannot be read.
  """
  noted = (schema.metadata or {}).get(b'huggingface', b'{}')
  try:
    features = json.loads(noted).get('info', {}).get('features') or {}
    return {each.name: _column(each.name, each.type, features.get(each.name)) for each in schema}
  except (ValueError, AttributeError, TypeError, LookupError) as error:
    raise RunError(f'{path}: what is noted for the hub cannot be read: {error}') from None


def _column(name: str, type_: Any, feature: Any) -> Column:
  (inner, lists), feature = _listed(type_), _noted(feature)
  sort, beside = _sort(inner), ('',) * len(_BESIDE)
  if sort == 'struct':
    members = {inner.field(i).name: inner.field(i).type for i in range(inner.num_fields)}
    if 'bbox' in members:
      sort = 'boxes'
      beside = tuple(next((n for n in names if n in members), '') for names in _BESIDE)
      inner = _listed(members.get(beside[0], inner))[0]
      feature = _noted(feature.get(beside[0])) if beside[0] else {'names': ['object']}
    elif members.keys() == {'bytes', 'path'} and feature.get('_type', 'Image') == 'Image':
      sort = 'image'
  elif sort == 'whole' and feature.get('_type') == 'ClassLabel':
    sort = 'label'
  able = _ABLE.get((sort, lists), ())
  kind = able[0] if able and sort in ('image', 'boxes', 'label') else ''
  kind = _KINDS[name] if _KINDS.get(name) in able else kind
  classes = tuple(feature.get('names') or ())
  return Column(str(type_), able, kind, classes, _sort(inner) == 'text', lists, beside)


def _listed(type_: Any) -> tuple[Any, int]:
  """The type of what is in lists, and in how many."""
  from pyarrow import types

  lists = 0
  while types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
    type_, lists = type_.value_type, lists + 1
  return (type_.value_type if types.is_dictionary(type_) else type_), lists


def _noted(feature: Any) -> dict[str, Any]:
  """What the hub notes of what is in lists."""
  while isinstance(feature, list) or (
    isinstance(feature, dict) and feature.get('_type') in ('Sequence', 'List', 'LargeList')
  ):
    feature = feature[0] if isinstance(feature, list) else feature['feature']
  return feature or {}


def _sort(type_: Any) -> str:
  from pyarrow import types

  if types.is_string(type_) or types.is_large_string(type_):
    return 'text'
  if types.is_binary(type_) or types.is_large_binary(type_):
    return 'image'
  if types.is_integer(type_) or types.is_boolean(type_):
    return 'whole'
  return 'number' if types.is_floating(type_) else 'struct' if types.is_struct(type_) else ''


def check_columns(
  one: str, first: Mapping[str, Column], other: str, second: Mapping[str, Column],
  used: Collection[str],
) -> None:  # fmt: skip
  """Raises RunError unless two files of a split have the same columns, and those used agree."""
  if lone := sorted(first.keys() ^ second.keys()):
    raise RunError(f'{one} and {other} do not both have the columns {files.few(lone)}')
  for name in used:
    a, b = first[name], second[name]
    if a.type != b.type:
      raise RunError(f'the column {name} is {a.type} in {one}, and {b.type} in {other}')
    if a != b:
      classes = [files.few([*each.classes]) or 'unknown' for each in (a, b)]
      raise RunError(
        f'classes of the column {name} are {classes[0]} in {one}, and {classes[1]} in {other}'
      )


class Reader(NamedTuple):
  """Makes the value of a field.

  Attributes:
    kind: of the field.
    columns: that it is made of.
    size: how many classes, numbers or points there are.
    places: of values that are no places among the classes themselves.
    beside: see `Column`.
  """

  kind: str
  columns: tuple[str, ...]
  size: int
  places: Mapping[Any, int]
  beside: tuple[str, ...]

  def __call__(self, values: list[Any], path: str) -> Any:
    """Of the columns in a row of a file; errors go on from the name of the column."""
    import numpy as np

    value = values[0]
    if self.kind == 'vector':
      return self._vector(values)
    if self.kind == 'points' and len(values) > 1:
      return self._points([values[i : i + 2] for i in range(0, len(values), 2)])
    if value is None:
      raise ValueError(f'has no {self.kind}')
    if self.kind in ('image', 'map'):
      return _image(value, path)
    if self.kind == 'text':
      return _text(value)
    if self.kind == 'class':
      return self._place(value)
    if self.kind == 'classes':
      return np.array([self._place(each) for each in value], np.int64)
    if self.kind == 'points':
      return self._points(value)
    return self._boxes(value)

  def all_places(self, file: Any) -> Any:
    """Of the only column of a file, int64 (rows,); -1 for values that are no class."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    column = file.read([*self.columns], use_threads=False).column(0)
    if pa.types.is_dictionary(column.type):
      column = column.cast(column.type.value_type)
    if self.places:
      column = pc.index_in(column, pa.array([*self.places], column.type))  # type: ignore
    labels = np.asarray(pc.fill_null(column.cast(pa.int64()), -1))
    return np.where((labels >= 0) & (labels < self.size), labels, -1)

  def _vector(self, values: list[Any]) -> Any:
    import numpy as np

    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    if len(flat) != self.size:
      raise ValueError(f'has {len(flat)} numbers, and that of the first example {self.size}')
    return np.array([math.nan if each is None else each for each in flat], np.float64)

  def _points(self, value: list[Any]) -> Any:
    import numpy as np

    try:
      points = np.array([(None, None) if each is None else each for each in value], np.float64)
      known = np.isfinite(points.reshape(self.size, 2))
    except (ValueError, TypeError):
      raise ValueError(f'has no {self.size} pairs of x and y, as the first example') from None
    if (known.any(1) & ~known.all(1)).any():
      raise ValueError('has a point of which x is known and y is not, or the reverse')
    return points

  def _place(self, value: Any) -> int:
    """The number of a class."""
    place = self.places.get(value) if self.places else value
    if value is None or place == -1:
      raise ValueError('has no class (-1)' if value is not None else 'has no class')
    if place is None or not 0 <= place < self.size:
      raise ValueError(f'has the class {value!r}, which is none of the {self.size:,} known')
    return int(place)

  def _boxes(self, value: Any) -> Boxes:
    import numpy as np

    def member(name: str) -> Any:
      return [each[name] for each in value] if isinstance(value, list) else value[name]

    try:
      given = np.array(member('bbox'), np.float64)
      corners = given.reshape(len(given), 4)
      label, crowd, area = (member(name) if name else [0] * len(corners) for name in self.beside)
      counts = {len(label), len(crowd), len(area)}
    except (ValueError, TypeError):
      raise ValueError('has a box that is not four numbers, or nothing beside it') from None
    if counts != {len(corners)}:
      raise ValueError(f'has {len(corners)} boxes, and not as many values beside them')
    if not np.isfinite(corners).all() or (corners[:, 2:] < 0).any():
      raise ValueError('has a box whose place, width or height is not known, or less than none')
    areas = np.array(area, np.float64)
    known = np.isfinite(areas) & bool(self.beside[2])
    areas = np.where(known, areas, corners[:, 2:].prod(1))
    corners[:, 2:] += corners[:, :2]
    labels = np.array([self._place(each) for each in label], np.int64)
    return Boxes(corners, labels, np.array(crowd, bool), areas)


def leaves(value: Any, member: str) -> Iterator[Any]:
  """What is in lists and, of dictionaries, in one of their members; what is None left out."""
  if isinstance(value, list | dict):
    for each in value if isinstance(value, list) else [value[member]]:
      yield from leaves(each, member)
  elif value is not None:
    yield value


def _text(value: Any) -> Any:
  if isinstance(value, str):
    return value
  if not value or None in value:
    raise ValueError('has no text')
  return tuple(value)


def _image(value: Any, path: str) -> bytes:
  """The bytes that are stored, or those of the file that is named, which lies beside `path`."""
  data, name = (value, '') if isinstance(value, bytes) else (value['bytes'], value['path'])
  if data is not None:
    return data
  if not name:
    raise ValueError('has neither the bytes of an image nor a path')
  try:
    place = paths.at(name)
    return (
      place if isinstance(place, paths.StorePath) else paths.at(path).parent / name
    ).read_bytes()
  except OSError as error:
    raise ValueError(f'names {name}, which cannot be read: {error.strerror}') from None
