"""A file that lists examples: CSV, TSV or JSON lines."""

from __future__ import annotations

import array
import dataclasses
import posixpath
import re
from collections.abc import Sequence
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.examples import (
  Example,
  NoDataError,
  NoSplitError,
  Source,
  headline,
  without_images,
)  # fmt: skip
from vit_jax.data.fields import USUAL, Mapped, Wanted
from vit_jax.data.sources.columns import MAKE, Part
from vit_jax.data.sources.tables import Table, read_table, split_unit

# Columns that become fields unasked, whatever their case; of several the first. Besides a map needs
# names, points, boxes and dialogues must be lists, questions and answers texts or lists of texts.
COLUMNS = {
  'image': ('image', 'path', 'file', 'filename', 'file_name', 'image_path', 'filepath'),
  'label': ('label', 'class', 'category'),
  'map': ('map', 'mask'),
  'text': ('text', 'caption'),
  'question': ('question',),
  'answer': ('answer', 'answers'),
  'dialogue': ('dialogue', 'conversations'),
  **{name: (name,) for name in ('labels', 'classes', 'target', 'vector', 'points', 'boxes')},
}
# Of more files than these only some are looked for.
_ALL, _SOME = 100_000, 1_000


@dataclasses.dataclass(frozen=True)
class Manifest(Mapped):
  """A file with a line for each example: CSV (.csv), TSV (.tsv) or JSON lines (.jsonl, .ndjson).

  Columns called as `COLUMNS` says become fields, others where `fields` names them; in JSON lines
  'objects/bbox' is what is in an object. What makes a field of each kind:

  - image, map: a path. The classes of a map are in `names`.
  - class: a name. Names are sorted, numbers by size, unless `names` are given; then a number is a
    place among those, unless one of them is a number itself.
  - classes: names separated by '|', or a list; or columns of 0 and 1, called like the classes.
  - vector: numbers, of several columns or a list; empty, nan and NA are unknown. A unit may be in
    the name of the column, 'age [years]' or 'age (years)'.
  - points: columns of x, y, x, y, ... in pixels, or a list of [x, y].
  - boxes: columns of left, top, right and bottom in pixels, and one of the class, a line for each
    box: lines of the same image are one example, and where all are empty there is no box. Or a
    list of [left, top, right, bottom], and one of classes. Without classes all are 'object'.
  - text: a text, or a list of texts that say the same.
  - dialogue: a list of messages, {"from": "human", "value": TEXT}, {"from": "gpt", "value": TEXT}
    and so on, or with "role", "content", "user" and "assistant".

  Attributes:
    file: its path, '{split}' for the name of the split; may be in a zip file.
    split_column: of which split a line is, where the path does not say it, whatever its case.
      Without such a column all is train.
    root: the directory that paths in the file start from; '' is that of the file.
  """

  file: str
  split_column: str = 'split'
  root: str = ''

  def open(self, split: str) -> ManifestSource:
    """A split; its classes are those of the whole file, or of the file of train, if that is there.

    Raises:
      NoDataError: if the file is not there, or the split (NoSplitError).
      RunError: for what is wrong in the file, naming the line.
    """
    return ManifestSource(self, split)


class ManifestSource(Source):
  """See `Manifest`."""

  def __init__(self, config: Manifest, split: str):
    self._lines: list[str] = []
    table, whole, self.name, by = self._opened(config, split)
    self._root = str(paths.inside(config.root) if config.root else paths.inside(table.file).parent)
    asked, unused = _asked(config, table, by)
    if unused:
      self._lines.append(f'{self.name}: columns not used: {files.few(unused)}')
    if by:
      _grouped(whole, asked, by)  # no image is in two splits
    groups = _grouped(table, asked, by)
    first = table
    if len(groups) < len(table):
      self._lines.append(f'{self.name}: {len(table):,} lines, those of the same image together')
      first = table.take([rows[0] for rows in groups])
    self.fields, self._values = {}, {}
    self._files = [n for kind in ('image', 'map') for n, w in asked.items() if w.kind == kind]
    for name, wanted in asked.items():
      part = table if wanted.kind == 'boxes' else first
      part = Part(config, name, wanted.columns, wanted.units, part, whole, groups)
      field, self._values[name] = MAKE[wanted.kind](part)
      self.fields[name] = config.field(name, field)
      if len(self.fields[name].names) != len(field.names):
        raise RunError(
          f'data.source.names.{name} has {len(self.fields[name].names)} names, and the field '
          f'{name!r} has {len(field.names)}'
        )
      if name in self._files:
        self._look_for(first, self._values[name])
        self._values[name] = files.Names(self._values[name])
    config.check(self.fields)
    self._named = self._values[self._files[0]] if self._files else None
    self._places = array.array('Q', first.lines)
    if 'label' in self.fields and self.fields['label'].kind == 'class':
      self.labels = self._values['label']

  def _opened(self, config: Manifest, split: str) -> tuple[Table, Table, str, str]:
    """The rows of a split, those whose classes count, a name, and the column of splits if any."""
    path = paths.inside(files.put(config.file, split))
    if not path.is_file():
      if '{split}' not in config.file:
        raise NoDataError(f'there is no file {path}: set data.source.file')
      there = [
        each
        for each in files.splits(config.file)
        if paths.inside(files.put(config.file, each)).is_file()
      ]
      found = files.few(there) or 'none'
      raise NoSplitError(f'there is no file {path}: of {config.file} there is {found}')
    table, name = read_table(path), files.printable(str(path))
    if '{split}' in config.file:
      train = paths.inside(files.put(config.file, 'train'))
      other = split != 'train' and train.is_file()
      return table, read_table(train) if other else table, name, ''
    name = f'{name}/{split}'
    alike = [c for c in table.columns if c.lower() == config.split_column.lower()]
    by = next(iter(sorted(alike, key=lambda c: c != config.split_column)), '')
    if not by:
      self._lines.append(f'{name}: there is no column {config.split_column!r}, so all is train')
      if split != 'train':
        raise NoSplitError(
          f'{path} has no split {split!r}: without a column {config.split_column!r} all is train'
        )
      return table, table, name, ''
    column = ['' if v is None else str(v) for v in table.columns[by]]
    if split not in column:
      there = files.few(list(filter(None, dict.fromkeys(column)))) or 'none'
      raise NoSplitError(f'{path} has no split {split!r}: its column {by!r} has {there}')
    if without := column.count(''):
      self._lines.append(f'{name}: {without:,} of {len(table):,} lines are of no split')
    own = table.take([row for row, its in enumerate(column) if its == split])
    return own, table, name, by

  def _look_for(self, table: Table, values: Sequence[Any]) -> None:
    """Raises RunError for files that are not there."""
    count = len(values) if len(values) <= _ALL else _SOME
    if count < len(values):
      self._lines.append(f'{self.name}: of its files only the first {_SOME:,} were looked for')
    there: dict[str, set[str]] = {}  # directories are listed: that is faster than to ask for files
    missing = []
    for row, value in enumerate(values[:count]):
      folder, name = posixpath.split(self._path(value))
      if folder not in there:
        place = paths.inside(folder)
        there[folder] = {e.name for e in paths.entries(place)} if place.is_dir() else set()
      if name not in there[folder]:
        missing.append(row)
    if missing:
      path = self._path(values[missing[0]])
      raise table.wrong(
        missing[0],
        f'there is no file {path} ({len(missing):,} of {count:,} are missing); paths start from '
        f'data.source.root, {self._root}',
      )

  def _path(self, value: str) -> str:
    return value if re.match(r'/|\w+://', value) else f'{self._root}/{value}'

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Example:
    example = {name: values[index] for name, values in self._values.items()}
    example |= {name: files.read(self._path(example[name])) for name in self._files}
    if self._named is None:
      return {**example, 'name': f'{self.name} line {self._places[index]}'}
    return {**example, 'name': self._path(self._named[index])}

  def summary(self) -> list[str]:
    """What was found, and what was not used or is not known."""
    lines = [headline(self), *self._lines]
    if empty := without_images(self):
      lines.append(f'{self.name}: no images of {files.few(empty)}')
    return lines


def _asked(config: Manifest, table: Table, by: str) -> tuple[dict[str, Wanted], list[str]]:
  """Fields, with the names that their columns have in the file, and the columns of none.

  Rows are cut into splits by the column `by`.
  """
  asked: dict[str, Wanted] = {}
  for name, wanted in config.wanted().items():
    if wanted.kind not in MAKE:
      kinds = ', '.join(MAKE)
      raise RunError(f'data.source.fields.{name}: a manifest has no {wanted.kind}, only {kinds}')
    found = [table.find(*each) for each in zip(wanted.columns, wanted.units, strict=True)]
    asked[name] = Wanted(wanted.kind, *zip(*found, strict=True))
  used = {column for wanted in asked.values() for column in wanted.columns}
  known = {split_unit(c)[0].lower(): c for c in table.columns if c not in {*used, by}}
  usual = {}
  for name, synonyms in COLUMNS.items():
    column = next((known[each] for each in synonyms if each in known), None)
    if column is None or name in asked or (name == 'map' and name not in config.names):
      continue
    columns = (column,)
    if name in ('question', 'answer') and not all(map(_is_text, table.columns[column])):
      continue
    if name in ('points', 'boxes', 'dialogue'):
      if not any(isinstance(value, list) for value in table.columns[column]):
        continue
      columns += ('boxes_label',) * (name == 'boxes' and 'boxes_label' in table.columns)
    usual[name] = Wanted(USUAL[name], columns, tuple(split_unit(column)[1] for column in columns))
    used |= {*columns}
  asked = usual | asked
  if not asked:
    there = files.few(list(table.columns))
    raise RunError(
      f'{table.file} has the columns {there}: say which is what, as in '
      '--config.data.source.fields.image=COLUMN'
    )
  maps = [known.get(each) for each in COLUMNS['map']]
  unused = [
    (column or 'one without a name') + ' (no data.source.names.map)' * (column in maps)
    for column in table.columns
    if column not in {*used, by}
  ]
  return asked, unused


def _is_text(value: Any) -> bool:
  every = value if isinstance(value, list) and value else [value]
  return all(isinstance(each, str) for each in every)


def _grouped(table: Table, asked: dict[str, Wanted], by: str) -> list[Sequence[int]]:
  """Rows by example: one, or all of the same image where each is a box."""
  boxes = [
    wanted for wanted in asked.values() if wanted.kind == 'boxes' and len(wanted.columns) > 2
  ]
  if not boxes:
    return [(row,) for row in range(len(table))]
  mine = {column for wanted in boxes for column in wanted.columns}
  others = [column for wanted in asked.values() for column in wanted.columns if column not in mine]
  others += [by] if by else []
  images = [wanted.columns[0] for wanted in asked.values() if wanted.kind == 'image']
  if not images:
    raise RunError(f'{table.file}: boxes with a line each need a field of the kind image')
  groups: dict[Any, list[int]] = {}
  for row, image in enumerate(table.columns[images[0]]):
    groups.setdefault(image, []).append(row)
  for rows in groups.values():
    for row in rows[1:]:
      for column in others:
        one, other = (table.columns[column][at] for at in (rows[0], row))
        if one != other:
          raise table.wrong(
            row,
            f'{column}={other!r}, but {one!r} in line {table.lines[rows[0]]} of the same image: '
            'only columns of the boxes may differ',
          )
  return list(groups.values())
