"""Labels are compared by name: the numbers of two data sets need not mean the same classes."""

from __future__ import annotations

from collections.abc import Sequence

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example, Source
from vit_jax.data.files import few


def aligned(source: Source, names: Sequence[str]) -> Source:
  """A source whose labels are places in `names`.

  Args:
    source: of `data.sources`.
    names: of the classes a model knows.

  Returns:
    `source` itself where its numbers are right already.

  Raises:
    RunError: if it has a class that is not among `names`.
  """
  names, own = list(names), list(source.class_names)
  if own == names:
    return source
  if unknown := [name for name in own if name not in names]:
    raise RunError(
      f'{source.name} has classes that the model does not know, {few(unknown)}; '
      f'it knows {few(names)}'
    )
  return _Aligned(source, names, [names.index(name) for name in own])


class _Aligned:
  """A source with other numbers for the same classes."""

  def __init__(self, source: Source, names: list[str], numbers: list[int]):
    self._source, self._numbers = source, numbers
    self.name, self.class_names = source.name, names

  @property
  def labels(self) -> Sequence[int] | None:
    """See `Source`."""
    labels = self._source.labels
    return None if labels is None else [self._numbers[label] for label in labels]

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    example = self._source[index]
    return {**example, 'label': self._numbers[example['label']]}

  def summary(self) -> list[str]:
    """See `Source`."""
    return [*self._source.summary(), f'{self.name}: labels are matched to classes by name']
