"""Parquet files, as the Hugging Face hub lays data sets out."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.data import files
from vit_jax.data.examples import Example, Source, headline
from vit_jax.data.fields import CLASSED, USUAL, Field, Mapped, Wanted
from vit_jax.data.sources import hub
from vit_jax.data.sources.columns import names_of_points

# Bytes of decoded row groups that a source keeps.
HELD = 256 * 2**20
# Labels of more examples are not read ahead.
MOST = 20_000_000
# What the only column of a kind is called.
_ONLY = {'image': 'image', 'class': 'label', 'classes': 'labels', 'boxes': 'boxes', 'text': 'text'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Mapped):
  """A data set in Parquet files, with or without what the Hugging Face hub notes in them.

  The only column of images is the field 'image', the only one of classes 'label', whatever they are
  called. Classes have the names that are noted in the files; where there are none, all values that
  the data set has are classes, sorted. Columns of boxes are structs of lists, or lists of structs:
  `bbox` is left, top, width and height in pixels; `category` or `label`, `iscrowd` and `area` may
  stand beside it. Points are columns of x, y, x, y, ... in pixels, or one of lists of [x, y].

  Examples are read by row group, and 256 MB of decoded groups are kept. In random order, of a data
  set that is larger, every example costs a whole group: 100 images, or up to 100 MB, in files of
  the hub. `data.cache` avoids that where the data set fits into memory.

  Attributes:
    dir: holds the files of the splits, SPLIT.parquet, SPLIT-00000-of-00003.parquet or
      SPLIT/0000.parquet, or one directory with these, such as data/ or that of a configuration.
  """

  dir: str

  def open(self, split: str) -> ParquetSource:
    """A split.

    Raises:
      NoDataError: if there is no such directory, no Parquet file, or no such split (NoSplitError).
      RunError: if files are missing, damaged or differ, or a column is not what is asked for.
    """
    return ParquetSource(self, split)


class ParquetSource(Source):
  """See `Parquet`."""

  def __init__(self, config: Parquet, split: str):
    import numpy as np

    splits, place, self._said = hub.split_files(paths.at(config.dir), split)
    self.name, self._files = files.printable(f'{place}/{split}'), splits[split]
    self._held = _Held()
    every = self._each(lambda path, file: hub.columns(path, file.schema_arrow))
    footers = [self._held.footers[path] for path in self._files]
    rows = [[f.row_group(i).num_rows for i in range(f.num_row_groups)] for f in footers]
    self._groups = [(file, i) for file, each in enumerate(rows) for i in range(len(each))]
    # The first row of each group and each file, and what is behind the last.
    self._starts = np.cumsum([0, *(count for each in rows for count in each)])
    self._file_starts = np.cumsum([0, *map(sum, rows)])
    if not len(self):
      raise RunError(f'{self.name} has no examples')
    columns, fields, self._readers = every[0], {}, {}
    wanted = self._wanted(config, columns)
    used = {column for each in wanted.values() for column in each.columns}
    self._columns = [name for name in columns if name in used]
    if unused := [name for name in columns if name not in used]:
      self._said.append(f'columns that make no field: {files.few(unused)}')
    for path, others in zip(self._files, every, strict=True):
      hub.check_columns(self._files[0], columns, path, others, self._columns)
    for name, each in wanted.items():
      fields[name], self._readers[name] = self._made(config, name, each, columns, splits)
    config.check(fields)
    self.fields = fields
    self.labels = self._labels() if 'label' in fields and fields['label'].kind == 'class' else None
    self._say_cost(footers)

  def _each(self, read: Callable[[str, Any], Any]) -> list[Any]:
    """What is read of each file of the split."""

    def one(path: str) -> Any:
      with _opened(path, self._held.footers) as file:
        return read(path, file)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      return list(pool.map(one, self._files))

  def _wanted(self, config: Parquet, columns: Mapping[str, hub.Column]) -> dict[str, Wanted]:
    """The fields that are asked for, and those of other columns that are known by themselves."""
    found = config.wanted()
    for name, (kind, names, _) in found.items():
      if len(names) > 1 and kind not in ('vector', 'points'):
        raise RunError(f'fields.{name}: in Parquet files, a field of the kind {kind} is one column')
      for each in names:
        if each not in columns:
          hint = suggest(each, columns)
          raise RunError(f'{self.name} has no column {each!r} for the field {name!r}: {hint}')
        if kind not in (able := columns[each].able):
          raise RunError(
            f'the column {each!r} of {self.name} is {columns[each].type[:60]}, which makes '
            f'{" or ".join(able) or "no field"}, not {kind}'
          )
    asked = [each.kind for each in found.values()]
    used = {column for each in found.values() for column in each.columns}
    free = {name: c.kind for name, c in columns.items() if c.kind and name not in used}
    for column, kind in free.items():
      name, usual = column, _ONLY.get(kind, column)
      alone = [*free.values(), *asked].count(kind) == 1 and usual not in {*free, *found}
      if alone and name != usual and name not in USUAL:
        self._said.append(f'the column {column} is the field {usual}')
        name = usual
      if name not in found and name != 'name':
        found[name] = Wanted(kind, (column,), ('',))
    return found

  def _made(
    self, config: Parquet, name: str, wanted: Wanted, columns: Mapping[str, hub.Column],
    splits: Mapping[str, list[str]],
  ) -> tuple[Field, hub.Reader]:  # fmt: skip
    """A field, and how its values are made."""
    kind, column, values = wanted.kind, columns[wanted.columns[0]], ()
    field = config.field(name, Field(kind, column.classes if kind in CLASSED else ()))
    if kind in ('class', 'classes', 'boxes') and not field.names:
      values = _distinct(wanted.columns[0], column, splits)
      field = dataclasses.replace(field, names=tuple(map(str, values)))
      if not values:
        raise RunError(f'{self.name} has no values in {wanted.columns[0]}: set names.{name}')
    elif kind in ('class', 'classes', 'boxes') and column.text:
      values = field.names
    elif kind == 'vector':
      names, units = self._numbers(wanted)
      field = dataclasses.replace(field, names=names, units=units)
    elif kind == 'points':
      field = dataclasses.replace(field, names=self._points(name, wanted.columns, column.lists))
    places = {value: place for place, value in enumerate(values)}
    return field, hub.Reader(kind, wanted.columns, len(field.names), places, column.beside)

  def _numbers(self, wanted: Wanted) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and units of the numbers of a vector: as many as the first example has."""
    names, units = [], []
    values = self._first(wanted.columns)
    for name, unit, value in zip(wanted.columns, wanted.units, values, strict=True):
      own = [f'{name}[{i}]' for i in range(len(value))] if isinstance(value, list) else [name]
      names, units = names + own, units + [unit] * len(own)
    return tuple(names), tuple(units)

  def _points(self, field: str, columns: Sequence[str], lists: int) -> tuple[str, ...]:
    """Names of points: those of columns of x and y, or of as many as the first example has."""
    if not lists:
      return names_of_points(field, columns)
    (value,) = self._first(columns) if len(columns) == 1 else (None,)
    if not value:
      raise RunError(
        f'data.source.fields.{field}: points are columns of numbers, x, y, x, y, ..., or one of '
        'lists of [x, y], of which the first example must have some'
      )
    return tuple(f'p{i}' for i in range(len(value)))

  def _first(self, columns: Sequence[str]) -> list[Any]:
    """The values that the first example has in some columns."""
    file, group = self._groups[int(self._starts.searchsorted(0, 'right')) - 1]
    with _opened(self._files[file], self._held.footers) as opened:
      first = next(opened.iter_batches(1, [group], list(columns)))
    return [first.column(name)[0].as_py() for name in columns]

  def _labels(self) -> list[int] | None:
    """The field 'label' of all examples; None, which is said, if some have none."""
    import numpy as np

    if len(self) > MOST:
      self._said.append(f'the labels of more than {MOST:,} examples are not counted')
      return None
    reader = self._readers['label']
    labels = np.concatenate(self._each(lambda _, file: reader.all_places(file)))
    if lacking := int((labels < 0).sum()):
      self._said.append(f'{lacking:,} examples have no class that is known, and cannot be read')
    return None if lacking else labels.tolist()

  def _say_cost(self, footers: list[Any]) -> None:
    """Says how much is read for an example where the groups cannot all be kept."""
    chunks = (
      group.column(i)
      for footer in footers
      for group in map(footer.row_group, range(footer.num_row_groups))
      for i in range(group.num_columns)
    )
    used, count = {*self._columns}, len(self._groups)
    size = sum(
      c.total_uncompressed_size for c in chunks if c.path_in_schema.partition('.')[0] in used
    )
    if size > HELD:
      self._said.append(
        f'{size / 1e6:,.0f} MB in {count:,} row groups, of which {HELD / 1e6:.0f} MB are kept: in '
        f'random order an example costs a group, {len(self) / count:,.0f} examples of '
        f'{size / count / 1e6:,.1f} MB; data.cache=True reads all of them once'
      )

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, index: int) -> Example:
    return self.read([index])[0]

  def read(self, indices: Sequence[int]) -> list[Example]:
    """Several examples; each row group that has some is looked up once."""
    import numpy as np

    at = np.asarray(indices, np.int64)
    if len(at) and not (at.min() >= 0 and at.max() < len(self)):
      raise IndexError(f'{self.name} has {len(self):,} examples')
    groups = np.searchsorted(self._starts, at, 'right') - 1
    order, found = np.argsort(groups, kind='stable'), dict[int, Example]()
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    for places in np.split(order, cuts) if len(at) else ():
      number = int(groups[places[0]])
      part = self._group(number).take(at[places] - self._starts[number])
      values = {name: part.column(name).to_pylist() for name in self._columns}
      file = self._groups[number][0]
      for i, place in enumerate(places.tolist()):
        row = {name: values[name][i] for name in self._columns}
        found[place] = self._example(file, int(at[place] - self._file_starts[file]), row)
    return [found[place] for place in range(len(at))]

  def _group(self, number: int) -> Any:
    file, group = self._groups[number]

    def decoded() -> Any:
      with _opened(self._files[file], self._held.footers) as opened:
        return opened.read_row_group(group, self._columns, use_threads=False)

    return self._held(number, decoded)

  def _example(self, file: int, row: int, values: Mapping[str, Any]) -> Example:
    path = self._files[file]
    name, example = files.printable(f'{path}[{row}]'), {}
    for field, reader in self._readers.items():
      try:
        example[field] = reader([values[column] for column in reader.columns], path)
      except (ValueError, RunError) as error:
        raise RunError(f'{name}: the column {", ".join(reader.columns)} {error}') from None
    return {**example, 'name': name}

  def summary(self) -> list[str]:
    """What was found, how it was understood, and what was passed over."""
    return [headline(self), *(f'{self.name}: {line}' for line in self._said)]


class _Held:
  """Decoded row groups, those used last, and footers by path; pickled without them.

  A group that several threads want at once is decoded once.
  """

  def __init__(self):
    self.footers: dict[str, Any] = {}
    self._lock, self._sizes = threading.Lock(), dict[int, int]()
    self._kept = collections.OrderedDict[int, concurrent.futures.Future[Any]]()

  def __reduce__(self):
    return _Held, ()

  def __call__(self, number: int, decoded: Callable[[], Any]) -> Any:
    with self._lock:
      known = self._kept.get(number)
      future = self._kept[number] = known or concurrent.futures.Future()
      self._kept.move_to_end(number)
    if not known:
      try:
        future.set_result(decoded())
      except BaseException as error:
        future.set_exception(error)
      with self._lock:
        self._trim(number, future)
    return future.result()

  def _trim(self, number: int, future: concurrent.futures.Future[Any]) -> None:
    """Forgets a failure, and what was used longest ago until the rest is small enough."""
    if future.exception():
      del self._kept[number]
      return
    self._sizes[number] = future.result().nbytes
    while sum(self._sizes.values()) > HELD and len(self._sizes) > 1:
      oldest = next(each for each in self._kept if each in self._sizes)
      del self._kept[oldest], self._sizes[oldest]


@contextlib.contextmanager
def _opened(path: str, footers: dict[str, Any]) -> Iterator[Any]:
  """A Parquet file, for one thread; whatever goes wrong while it is open is its damage."""
  import pyarrow.parquet as pq

  place, opened = paths.at(path), contextlib.nullcontext(path)
  if isinstance(place, paths.StorePath):
    opened = place.open('rb')
  options = dict(memory_map=True, page_checksum_verification=True)
  try:
    with opened as source, pq.ParquetFile(source, metadata=footers.get(path), **options) as file:
      footers[path] = file.metadata
      yield file
  except (RunError, MemoryError):
    raise
  except (FileNotFoundError, PermissionError, TimeoutError) as error:
    where = isinstance(place, paths.StorePath)
    reason = error.strerror if where else os.strerror(error.errno or 0)
    raise RunError(f'cannot read {path}: {reason}') from None
  except Exception as error:
    if paths.head(paths.at(path), 64).startswith(b'version https://git-lfs'):
      raise RunError(f'{path} only stands for a file of Git LFS: run git lfs pull') from None
    line = ' '.join(str(error).split())[:300] or type(error).__name__
    raise RunError(f'{path} is damaged, or no Parquet file: {line}. Copy it again') from None


def _distinct(name: str, column: hub.Column, splits: Mapping[str, Sequence[str]]) -> list[Any]:
  """All values of a column of classes in all splits, sorted."""
  found, (member, *_) = set(), column.beside
  for path in itertools.chain(*splits.values()):
    with _opened(path, {}) as file:
      if name in file.schema_arrow.names:
        values = file.read([name]).column(0)
        values = values if column.lists or member else values.unique()
        found.update(hub.leaves(values.to_pylist(), member))
  return sorted(found, key=lambda value: (isinstance(value, str), value))
