"""Features of images instead of these: the tables that `vit_jax.embed` writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.data.examples import Example, NoDataError, NoSplitError, Source, Wrapped, headline
from vit_jax.data.fields import Field

if TYPE_CHECKING:
  import numpy as np

_KEY = b'vit_jax'
_COARSE = 7  # squares along each side of the test image


def sample_image(shape: Sequence[int]) -> np.ndarray:
  """An image of whose features a table keeps a copy, by which their model is known again.

  Args:
    shape: height, width, channels.

  Returns:
    uint8 of that shape: coarse squares of random colours, with some noise, always the same.
  """
  import numpy as np

  height, width, channels = shape
  rng = np.random.default_rng(0)
  coarse = rng.integers(32, 224, (_COARSE, _COARSE, channels))
  rows, columns = (np.arange(side) * _COARSE // side for side in (height, width))
  noise = rng.integers(-32, 32, (height, width, channels))
  return (coarse[rows][:, columns] + noise).astype(np.uint8)


def table_of(source: Source) -> FeaturesSource | None:
  """The table that a source reads, or a part of it; None if it is another source."""
  while isinstance(source, Wrapped):
    source = source.source
  return source if isinstance(source, FeaturesSource) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
  """Examples of a table of `vit_jax.embed`: their features are the field 'vector'.

  Beside it are the fields that were kept: label, labels, vectors of a unit, texts. All of a split
  is held in memory, features of the type that they were stored with.

  Attributes:
    file: the table.
    features: which of them, by the name of their column, where there are several.
  """

  file: str
  features: str = ''

  def open(self, split: str) -> FeaturesSource:
    """A split, as it was called where features were computed.

    Raises:
      NoDataError: if there is no such table, no such split (NoSplitError), or no such features.
    """
    return FeaturesSource(self, split)


class FeaturesSource(Source):
  """See `Features`.

  Attributes:
    card: what the table says of its features: checkpoint, digest, preprocessing.
    feature: its name in the table.
    sample: features of `sample_image`; None in a table of an earlier version.
  """

  def __init__(self, config: Features, split: str):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = paths.at(config.file)
    if not path.is_file():
      raise NoDataError(f'there is no file {path}: data.source.file is a table of vit_jax.embed')
    try:
      local = paths.fetched(path)
      metadata: Mapping[bytes, bytes] = pq.read_metadata(local).metadata or {}
      if _KEY not in metadata:
        raise RunError(
          f'{path} has no card, as python -m vit_jax.embed writes it: data.source.name=parquet '
          'reads other tables'
        )
      self.card: dict[str, Any] = json.loads(metadata[_KEY])
      splits, columns = [*self.card['examples']], [*self.card['features']]
      if split not in splits:
        raise NoSplitError(f'{path} has no split {split!r}: {suggest(split, splits)}')
      if not config.features and len(columns) > 1:
        raise RunError(f'{path} has several features: data.source.features={" or ".join(columns)}')
      column = config.features or columns[0]
      if column not in columns:
        raise RunError(f'{path} has no features {column!r}: {suggest(column, columns)}')
      kept = self.card['fields']
      wanted = ['name', *kept, column]
      table = pq.read_table(local, columns=wanted, filters=[('split', '==', split)])
    except (pa.ArrowException, OSError) as error:
      raise RunError(f'{path} is damaged, or no Parquet file: {error}') from None
    self.name = f'{path.name}/{split}'
    self.feature = column
    self.sample: list[float] | None = self.card.get('sample', {}).get(column)
    width = self.card['features'][column]
    self.fields = {'vector': Field('vector', tuple(f'{column}[{i}]' for i in range(width)))}
    for name, of in kept.items():
      self.fields[name] = Field(of['kind'], tuple(of['names']), tuple(of['units']))
    flat = table.column(column).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    self._vectors = flat.reshape(-1, width)
    self._columns = {name: table.column(name).combine_chunks() for name in ('name', *kept)}
    self._said = (
      f'{self.name}: the field vector is {column} of {self.card["checkpoint"]}, {width} numbers'
    )
    if 'label' in kept:
      self.labels = self._columns['label'].to_numpy(zero_copy_only=False).tolist()

  def __len__(self) -> int:
    return len(self._vectors)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    import numpy as np

    example: dict[str, Any] = {'vector': self._vectors[index].astype(np.float64)}
    for name, column in self._columns.items():
      value = column[index].as_py()
      kind = self.fields[name].kind if name in self.fields else ''
      if kind == 'text':
        value = value[0] if len(value) == 1 else tuple(value)
      example[name] = np.asarray(value) if kind in ('classes', 'vector') else value
    return example

  def summary(self) -> list[str]:
    """How many there are, and whose features they have."""
    unknown = f'{self.name}: whose features they are cannot be checked, as it has no sample of them'
    return [headline(self), self._said, *([unknown] if self.sample is None else [])]
