"""What every source of data gives: random access to encoded images and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from vit_jax.core.errors import RunError
from vit_jax.data.files import few

if TYPE_CHECKING:
  import numpy as np


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


class Example(TypedDict):
  """One image, encoded (bytes) or as uint8 (height, width, channels), and what it shows."""

  image: bytes | np.ndarray | None
  label: int
  name: str


class Source(Protocol):
  """A picklable sequence of examples.

  Attributes:
    name: of the data set and the split, for messages.
    class_names: by label.
    labels: of all examples, where they are known without reading these; else None.
  """

  name: str
  class_names: list[str]

  @property
  def labels(self) -> Sequence[int] | None:
    """See above."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def summary(self) -> list[str]:
    """Lines for people: what was found, and what was passed over."""
    ...


def headline(source: Source, of: str = '') -> str:
  """The first line of a summary; `of` says what there is more of."""
  names = source.class_names
  return f'{source.name}: {len(source):,}{of} images of {len(names):,} classes: {few(list(names))}'


def without_images(source: Source) -> list[str]:
  """Names of the classes of which it is known that no image is there."""
  if source.labels is None:
    return []
  there = set(source.labels)
  return [name for label, name in enumerate(source.class_names) if label not in there]


def check_classes(source: Source) -> None:
  """Raises RunError if all examples are of one class."""
  empty = without_images(source)
  names = [name for name in source.class_names if name not in set(empty)]
  if len(names) < 2:
    others = f', and none of {few(empty)}' if empty else ''
    raise RunError(
      f'{source.name} has images of one class ({few(names)}){others}: there is nothing to learn'
    )


def read(source: Source, indices: Iterable[int]) -> list[Example]:
  """Several examples at once, where the source knows a faster way than one by one."""
  indices = list(indices)
  together: Any = getattr(source, 'read', None)
  return together(indices) if together else [source[index] for index in indices]
