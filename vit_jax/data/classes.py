"""Classes are compared by name: the numbers of two data sets need not mean the same classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example, Source, Wrapped, with_names
from vit_jax.data.fields import CLASSED, VOID, Changed, Field
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
  if not names or own in (names, []):
    return source
  places = {name: place for place, name in enumerate(names)}
  if unknown := [name for name in own if name not in places]:
    raise RunError(
      f'{source.name} has classes that the model does not know, {few(unknown)}; '
      f'it knows {few(names)}'
    )
  return _Aligned(source, field, names, [places[name] for name in own])


def voided(source: Source, field: str) -> Source:
  """A source of maps in which what is ignored is `VOID`, which no source has for a class."""
  return _Voided(source, field)


def matched(source: Source, fields: Mapping[str, Field], needs: Iterable[str]) -> Source:
  """A source whose classes, numbers and points are those that a model knows, in their order.

  Args:
    source: of `data.sources`.
    fields: of the examples that the model was trained on.
    needs: names of the fields that matter.

  Raises:
    RunError: for classes that the model does not know, numbers of other names or units.
  """
  for name in needs:
    if name not in fields or name not in source.fields:
      continue
    own, known = source.fields[name], fields[name]
    if own.kind == 'map' and (own.ignore, own.names) != (known.ignore, known.names):
      source = voided(source, name)  # or a class would get a number that is ignored
    if own.kind in CLASSED:
      source = aligned(source, known.names, name)
    elif own.kind in ('vector', 'points') and known.names:
      source = _ordered(source, name, known)
  return source


def _ordered(source: Source, name: str, known: Field) -> Source:
  own = source.fields[name]
  written = lambda field: few([  # noqa: E731
    f'{n} [{u}]' if u else n
    for n, u in zip(field.names, field.units or ('',) * len(field.names), strict=True)
  ])  # fmt: skip
  units = lambda field: dict(zip(field.names, field.units or ('',) * len(field.names), strict=True))  # noqa: E731
  if units(own) != units(known):
    raise RunError(
      f'{source.name}: {name} is {written(own)}, and the model was trained on {written(known)}'
    )
  if own.names == known.names:
    return source
  return _Reordered(source, name, known, [own.names.index(n) for n in known.names])


class _Reordered(Wrapped):
  """A source with numbers, or points, in another order."""

  def __init__(self, source: Source, field: str, known: Field, places: list[int]):
    super().__init__(source)
    self._field, self._places = field, places
    self.fields = {
      **source.fields, field: dataclasses.replace(known, kind=source.fields[field].kind)
    }  # fmt: skip

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    import numpy as np

    name = self._field
    return [
      {**example, name: np.asarray(example[name])[self._places]}
      for example in self.source.read(indices)
    ]


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
    ignored = self.fields[self._field].ignore
    return Changed(value, functools.partial(_renumbered, numbers=numbers, ignored=ignored))

  def summary(self) -> list[str]:
    """See `Source`."""
    return [*self.source.summary(), f'{self.name}: labels are matched to classes by name']


def _renumbered(values: np.ndarray, numbers: np.ndarray, ignored: Sequence[int]) -> np.ndarray:
  """A map with other numbers; what is ignored, or no class at all, stays what it is."""
  import numpy as np

  known = (values >= 0) & (values < len(numbers)) & ~np.isin(values, ignored)
  return np.where(known, numbers[np.where(known, values, 0)], values)


class _Voided(Wrapped):
  """See `voided`."""

  def __init__(self, source: Source, field: str):
    super().__init__(source)
    self._field = field
    self._change = functools.partial(_void, ignored=source.fields[field].ignore)
    own = dataclasses.replace(source.fields[field], ignore=(VOID,))
    self.fields = {**source.fields, field: own}

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    name = self._field
    return [
      {**example, name: Changed(example[name], self._change)}
      for example in self.source.read(indices)
    ]


def _void(values: np.ndarray, ignored: Sequence[int]) -> np.ndarray:
  import numpy as np

  return np.where(np.isin(values, ignored), VOID, values)
