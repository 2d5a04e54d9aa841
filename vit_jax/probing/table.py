"""Tables of features: one Parquet file, written in parts that survive a kill.

A row is an example: `split`, `index` (in the split), `name`, its fields (`label`, ...), and a
column for each of its features, lists of a fixed number of floats. The metadata of the file has,
under `vit_jax`, a card in JSON: checkpoint, digest of its parameters, features, preprocessing,
data, names of the classes, features of an image that is always the same (`sample`).

While it is computed, OUT.parts/ beside it holds a file for each so many examples, each whole or not
there. They become the row groups of OUT, which appears at once, and are deleted then.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vit_jax.core import claims, paths, schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.text import number
from vit_jax.data.examples import Source
from vit_jax.probing.embedder import KEPT, Embedded, Embedder
from vit_jax.processes import exchange

FORMAT = 1
KEY = b'vit_jax'
# Columns that are no features.
FIXED = ('split', 'index', 'name')
# Examples of a part, or the next multiple of the batch.
PART = 4096
# Facts of a card that another start may write differently.
_FREE = ('checkpoint', 'version', 'sample')
_TYPES = {
  'class': pa.int32(), 'classes': pa.list_(pa.int32()), 'vector': pa.list_(pa.float64()),
  'text': pa.list_(pa.string()),
}  # fmt: skip
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Rows:
  """The examples of a split.

  Attributes:
    index, names: of them.
    labels: int64 (examples,); None without.
    features: by name, (examples, features), of the type that was stored.
  """

  index: np.ndarray
  names: list[str]
  labels: np.ndarray | None
  features: Mapping[str, np.ndarray]


class Table:
  """A file of features that is complete.

  Attributes:
    card: see above.
    features: names of its columns of features.
  """

  def __init__(self, path: str | paths.Path):
    """Opens it; raises RunError unless it is one."""
    self._path = paths.at(path)
    self._local = paths.fetched(self._path) if self._path.is_file() else self._path
    try:
      if not self._path.is_file():
        raise RunError(f'there is no file {self._path}')
      metadata = pq.read_metadata(self._local).metadata or {}
      self._split = pq.read_table(self._local, columns=['split']) if KEY in metadata else None
    except (pa.ArrowException, OSError) as error:
      raise RunError(f'{self._path} is damaged, or no Parquet file: {error}') from None
    if KEY not in metadata:
      raise RunError(
        f'{self._path} has no card, as python -m vit_jax.embed writes it: nobody knows which of '
        'its columns are features'
      )
    self.card: dict[str, Any] = json.loads(metadata[KEY])
    self.features = tuple(self.card['features'])

  @property
  def splits(self) -> tuple[str, ...]:
    """Their names."""
    return tuple(self.card['examples'])

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes of `label`."""
    return tuple(self.card['fields'].get('label', {}).get('names', ()))

  def rows(self, split: str, features: Sequence[str] | None = None) -> Rows:
    """The examples of a split.

    Args:
      split: its name.
      features: that are read; all if not given.

    Raises:
      RunError: if there is no such split, or a column of features is not there.
    """
    if split not in self.splits:
      raise RunError(f'{self._path} has no split {split!r}: {suggest(split, self.splits)}')
    wanted = self.features if features is None else tuple(features)
    for name in wanted:
      if name not in self.features:
        raise RunError(f'{self._path} has no features {name!r}: {suggest(name, self.features)}')
    assert self._split is not None
    own = np.asarray(self._split.column(0).to_numpy(zero_copy_only=False) == split)
    labelled = 'label' in self.card['fields']

    def column(name: str) -> Any:
      return pq.read_table(self._local, columns=[name]).column(0).filter(pa.array(own))

    found = {}
    for name in wanted:
      flat = column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
      found[name] = flat.reshape(int(own.sum()), -1)
    return Rows(
      column('index').to_numpy(), column('name').to_pylist(),
      column('label').to_numpy().astype(np.int64) if labelled else None, found,
    )  # fmt: skip


def card_of(
  embedder: Embedder, sources: Mapping[str, Source], *, checkpoint: str, dialect: str, data: str,
  dtype: str, seed: int,
) -> dict[str, Any]:  # fmt: skip
  """What the metadata of a table say.

  Args:
    embedder: that computes the features.
    sources: by the names of their splits.
    checkpoint: its path.
    dialect: of it.
    data: where the sources are from.
    dtype: of the features.
    seed: of random parameters.
  """
  from vit_jax import __version__

  first = next(iter(sources.values()))
  fields = {
    name: {'kind': field.kind, 'names': list(field.names), 'units': list(field.units)}
    for name, field in first.fields.items() if field.kind in KEPT
  }  # fmt: skip
  per = -(-PART // embedder.batch_size)
  return {
    'format': FORMAT, 'version': __version__, 'checkpoint': checkpoint, 'dialect': dialect,
    'digest': f'sha256:{embedder.digest()}', 'features': embedder.widths, 'dtype': dtype,
    'seed': seed, 'preprocessing': embedder.preprocessing, 'data': data,
    'examples': {split: len(source) for split, source in sources.items()}, 'fields': fields,
    'batch_size': embedder.batch_size, 'part': per * embedder.batch_size,
    'sample': embedder.sample(),
  }  # fmt: skip


def begun(path: str | paths.Path) -> int | None:
  """The batch size with which a table was begun that is not complete; None if none was."""
  place = paths.at(path)
  card = place.with_name(f'{place.name}.parts') / 'card.json'
  return int(paths.read_object(card)['batch_size']) if card.exists() else None


def size(widths: Mapping[str, int], examples: int, dtype: str) -> int:
  """Bytes of features."""
  return sum(widths.values()) * examples * np.dtype(dtype).itemsize


def write(
  path: str | paths.Path, embedder: Embedder, sources: Mapping[str, Source],
  card: Mapping[str, Any], *, overwrite: bool = False,
  broken: Callable[[str, ValueError], None] | None = None, say: Say = print,
) -> bool:  # fmt: skip
  """Computes a table, or what is missing of it; with several processes called in each of them.

  Args:
    path: of the file.
    embedder: that computes the features.
    sources: by the names of their splits, with the same fields.
    card: of `card_of`.
    overwrite: replace what another command has left.
    broken: is told of examples that cannot be used, which are left out; without it, RunError.
    say: is told what happens, in the first process.

  Returns:
    Whether anything was missing.

  Raises:
    RunError: if the file, or parts of it, are of another command, or cannot be written; if features
      are not finite, or too large for float16.
  """
  path = paths.at(path)
  parts = _Parts(path, dict(card))
  begun = exchange.from_first(lambda: parts.begin(overwrite, say))
  if begun is None:
    return False
  try:
    for number_, (split, source) in enumerate(sources.items()):
      _compute(parts, number_, split, source, begun[number_], embedder, broken, say)
    exchange.from_first(parts.finish)
  finally:
    parts.close()
  return True


def _compute(
  parts: _Parts, number_: int, split: str, source: Source, done: int, embedder: Embedder,
  broken: Any, say: Say,
) -> None:  # fmt: skip
  """What is missing of a split, part by part."""
  per = parts.card['part'] // embedder.batch_size
  total, since = embedder.steps(source), time.monotonic()
  stream = embedder(source, start=done * per, broken=broken)
  first = done * per * embedder.batch_size
  for part in range(done, -(-total // per)):
    own = [next(stream) for _ in range(min(per, total - part * per))]
    every = exchange.gathered(Embedded.joined(own))
    exchange.from_first(lambda p=part, e=every: parts.add(number_, p, split, Embedded.joined(e)))
    if jax.process_index() == 0:
      there = min((part + 1) * parts.card['part'], len(source))
      rate = number((there - first) / (time.monotonic() - since))
      say(f'{split}: {there:,} of {len(source):,} examples, {rate} a second')


class _Parts:
  """The directory with the parts of a file that is not complete; of the first process alone."""

  def __init__(self, path: paths.Path, card: dict[str, Any]):
    self.card, self._path = card, path
    self._folder = path.with_name(f'{path.name}.parts')
    self._claim: claims.Claim | None = None
    kinds = {name: _TYPES[field['kind']] for name, field in card['fields'].items()}
    item = pa.float16() if card['dtype'] == 'float16' else pa.float32()
    self._schema = pa.schema(
      [
        pa.field('split', pa.string()), pa.field('index', pa.int64()),
        pa.field('name', pa.string()), *(pa.field(name, kind) for name, kind in kinds.items()),
        *(pa.field(name, pa.list_(item, width)) for name, width in card['features'].items()),
      ],
      metadata={KEY: json.dumps(card).encode()},
    )  # fmt: skip

  def begin(self, overwrite: bool, say: Say) -> list[int] | None:
    """How many parts are there of each split; None if the file is complete."""
    if self._path.exists():
      if not overwrite:
        self._same(Table(self._path).card, str(self._path))
        paths.delete(self._folder)  # a kill may have come before
        say(f'{self._path} is complete: there is nothing to do')
        return None
      paths.delete(self._path)
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise paths.failure(f'cannot write {self._folder}', error) from None
    self._claim = claims.insist(self._folder / 'claim', say)
    card = self._folder / 'card.json'
    if overwrite:
      paths.delete(card)  # without it, parts are nobody's
    if not card.exists():
      for file in self._folder.glob('*.parquet'):
        paths.delete(file)
      paths.write_json(card, self.card)
    self._same(paths.read_object(card), str(self._folder))
    found = []
    for split in range(len(self.card['examples'])):
      there = 0
      while self._file(split, there).exists():
        there += 1
      found.append(there)
    if any(found):
      say(f'continuing {self._path}: {sum(found)} parts of {self.card["part"]:,} are there')
    return found

  def _same(self, there: Mapping[str, Any], where: str) -> None:
    """Raises RunError unless a card is that of this command."""
    kept = lambda card: {n: v for n, v in card.items() if n not in _FREE}  # noqa: E731
    for name, (one, other) in schema.differences(kept(there), kept(self.card)).items():
      raise RunError(
        f'{where} is of another command: there {name} is {one}, and now {other}. Give another '
        '--out, or --overwrite to replace it'
      )

  def _file(self, split: int, part: int) -> paths.Path:
    return self._folder / f'{split:02d}-{part:06d}.parquet'

  def add(self, split: int, part: int, name: str, rows: Embedded) -> None:
    """Writes a part, whole or not at all."""
    if self._claim:
      self._claim.check()
    buffer = io.BytesIO()
    with self._writer(buffer) as writer:
      writer.write_table(self._arrow(name, rows))
    paths.write_bytes(self._file(split, part), buffer.getvalue())

  def _writer(self, place: Any) -> pq.ParquetWriter:
    # Floats of features do not compress, and have no minimum that anybody looks for.
    plain: Any = [name for name in self._schema.names if name not in self.card['features']]
    return pq.ParquetWriter(
      place, self._schema, compression='snappy', use_dictionary=plain, write_statistics=plain
    )

  def _arrow(self, split: str, rows: Embedded) -> pa.Table:
    columns: dict[str, Any] = {
      'split': [split] * len(rows.index), 'index': rows.index, 'name': rows.names,
    }  # fmt: skip
    for name, field in self.card['fields'].items():
      given = rows.values[name]
      if field['kind'] == 'text':
        given = [[text] if isinstance(text, str) else list(text) for text in given]
      elif field['kind'] != 'class':
        given = [np.asarray(value).tolist() for value in given]
      columns[name] = given
    for name, array in rows.features.items():
      columns[name] = self._cast(name, array)
    arrays = []
    for field in self._schema:
      value = columns[field.name]
      if isinstance(field.type, pa.FixedSizeListType):
        flat = pa.array(value.reshape(-1), field.type.value_type)
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
      else:
        arrays.append(pa.array(value, field.type))
    return pa.Table.from_arrays(arrays, schema=self._schema)

  def _cast(self, name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
      raise RunError(f'the features {name!r} have values that are not finite')
    largest = float(np.abs(array).max(initial=0))
    if self.card['dtype'] == 'float16' and largest > float(np.finfo(np.float16).max):
      raise RunError(
        f'the features {name!r} are up to {largest:.3g}, too large for float16: --dtype=float32'
      )
    return array.astype(self.card['dtype'])

  def _there(self) -> Iterator[paths.Path]:
    for split, examples in enumerate(self.card['examples'].values()):
      for part in range(-(-examples // self.card['part'])):
        yield self._file(split, part)

  def finish(self) -> None:
    """Makes the file of the parts, and deletes them."""
    with paths.whole(self._path) as whole, self._writer(whole) as writer:
      for file in self._there():
        writer.write_table(pq.read_table(io.BytesIO(file.read_bytes()), schema=self._schema))
    paths.delete(self._folder)

  def close(self) -> None:
    """Lets others write."""
    if self._claim:
      self._claim.close()
