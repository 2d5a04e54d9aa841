"""Classes are compared by name: the numbers of two data sets need not mean the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example, Source, Wrapped, with_names
from vit_jax.data.files import few

if TYPE_CHECKING:
  import numpy as np


def aligned(source: Source, names: Sequence[str], field: str = 'label') -> Source:
  """A source whose classes are places in `names`.

  Args:
    source: of `data.sources`.
    names: of the classes a model knows.
    field: whose classes these are.

  Returns:
    `source` itself where its numbers are right already, or have no names.

  Raises:
    RunError: if it has a class that is not among `names`.
  """
  names, own = list(names), list(source.fields[field].names)
  if own in (names, []):
    return source
  if unknown := [name for name in own if name not in names]:
    raise RunError(
      f'{source.name} has classes that the model does not know, {few(unknown)}; '
      f'it knows {few(names)}'
    )
  return _Aligned(source, field, names, [names.index(name) for name in own])


class _Aligned(Wrapped):
  """A source with other numbers for the same classes."""

  def __init__(self, source: Source, field: str, names: list[str], numbers: list[int]):
    super().__init__(source)
    self._field, self._numbers = field, numbers
    self.fields = with_names(source.fields, field, names)
    if field == 'label' and source.labels is not None:
      self.labels = [numbers[label] for label in source.labels]

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    name, kind = self._field, self.fields[self._field].kind
    return [
      {**example, name: self._renumbered(kind, example[name])}
      for example in self.source.read(indices)
    ]

  def _renumbered(self, kind: str, value: Any) -> Any:
    import numpy as np

    numbers = np.asarray(self._numbers)
    if kind == 'class':
      return self._numbers[value]
    if kind == 'classes':
      return numbers[np.asarray(value, np.int64)]
    if kind in ('boxes', 'masks'):
      return value._replace(label=numbers[value.label])
    if kind == 'panoptic':
      segments = {n: (self._numbers[c], crowd) for n, (c, crowd) in value.segments.items()}
      return value._replace(segments=segments)
    return self._map(value, numbers)

  def _map(self, value: Any, numbers: np.ndarray) -> np.ndarray:
    """What is ignored, or no class at all, stays what it is."""
    import numpy as np

    from vit_jax.data.masks import decode_map

    values = decode_map(value)
    known = (
      (values >= 0) & (values < len(numbers)) & ~np.isin(values, self.fields[self._field].ignore)
    )
    return np.where(known, numbers[np.where(known, values, 0)], values)

  def summary(self) -> list[str]:
    """See `Source`."""
    return [*self.source.summary(), f'{self.name}: labels are matched to classes by name']
