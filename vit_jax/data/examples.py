"""What every source of data gives: random access to examples, and what is known of all of them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.core.errors import RunError
from vit_jax.data.fields import USUAL, Field
from vit_jax.data.files import few

# A value for each field, and 'name', for messages. Images are as they are stored.
Example = Mapping[str, Any]


class NoDataError(RunError):
  """A data set, or a split of it, that is not there."""


class NoSplitError(NoDataError):
  """A split that a data set does not have.

  Attributes:
    field: of an evaluator, that names it.
  """

  def __init__(self, message: str, field: str = 'split'):
    super().__init__(message)
    self.field = field


class Portion(NamedTuple):
  """A part of a mixture: how many examples it has, and its weight."""

  examples: int
  weight: float


class Source(abc.ABC):
  """A picklable sequence of examples.

  Attributes:
    name: of the data set and the split, for messages.
    fields: that all examples have.
    labels: of all examples, the field 'label', where they are known without reading these.
    parts: of a mixture, with counts and weights; else nothing.
    made_up: whether examples mean nothing, or are drawn by a function: there is nothing to audit.
  """

  name: str
  fields: Mapping[str, Field]
  labels: Sequence[int] | None = None
  parts: Sequence[Portion] = ()
  made_up = False

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Example: ...

  def read(self, indices: Sequence[int]) -> list[Example]:
    """Several examples; a source may know a faster way than one by one."""
    return [self[index] for index in indices]

  def summary(self) -> list[str]:
    """Lines for people: what was found, and what was passed over."""
    return [headline(self)]

  @property
  def class_names(self) -> tuple[str, ...]:
    """Of the field 'label'."""
    return self.fields['label'].names if 'label' in self.fields else ()


class Wrapped(Source):
  """A source that is another one, but for what a subclass says."""

  def __init__(self, source: Source):
    self.source = source
    self.name, self.fields, self.labels = source.name, source.fields, source.labels
    self.parts, self.made_up = source.parts, source.made_up

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Example:
    return self.read([index])[0]

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    return self.source.read(indices)

  def summary(self) -> list[str]:
    """See `Source`."""
    return self.source.summary()


def headline(source: Source, of: str = '') -> str:
  """The first line of a summary; `of` says what there is more of."""
  count = f'{source.name}: {len(source):,}{of}'
  kinds = {field.kind for field in source.fields.values()}
  if kinds == {'image', 'class'} and source.class_names:
    names = source.class_names
    classes = f'{len(names):,} class{"es"[: 2 * (len(names) != 1)]}'
    return f'{count} images of {classes}: {few(list(names))}'
  return f'{count} examples of {", ".join(_described(n, f) for n, f in source.fields.items())}'


def _described(name: str, field: Field) -> str:
  own = '' if USUAL.get(name) == field.kind else f'{field.kind}, '
  if field.names:
    one, several = {
      'vector': ('number', 'numbers'), 'points': ('point', 'points'), 'text': ('word', 'words'),
    }.get(field.kind, ('class', 'classes'))  # fmt: skip
    what = one if len(field.names) == 1 else several
    names = [
      f'{n} [{u}]' if u else n
      for n, u in zip(field.names, field.units or ('',) * len(field.names), strict=True)
    ]
    own += f'{len(names):,} {what}: {few(names)}'
  return f'{name} ({own.removesuffix(", ")})' if own else name


def without_images(source: Source) -> list[str]:
  """Names of the classes of which it is known that no image is there."""
  if source.labels is None:
    return []
  there = set(source.labels)
  return [name for label, name in enumerate(source.class_names) if label not in there]


def check_classes(source: Source) -> None:
  """Raises RunError if all examples are of one class."""
  empty = without_images(source)
  gone = set(empty)
  names = [name for name in source.class_names if name not in gone]
  if len(names) < 2:
    others = f', and none of {few(empty)}' if empty else ''
    raise RunError(
      f'{source.name} has images of one class ({few(names)}){others}: there is nothing to learn'
    )


def read(source: Any, indices: Iterable[int]) -> list[Example]:
  """Several examples of anything with `__getitem__`, as its `read` does it if it has one."""
  indices = list(indices)
  together: Any = getattr(source, 'read', None)
  return together(indices) if together else [source[index] for index in indices]


def with_names(fields: Mapping[str, Field], name: str, names: Sequence[str]) -> dict[str, Field]:
  """Fields, one of them with other names."""
  return {**fields, name: dataclasses.replace(fields[name], names=tuple(names))}
