"""Labels are compared by name: the numbers of two data sets need not mean the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vit_jax.core.errors import RunError

_SHOWN = 5


def aligned(source: Any, names: Sequence[str], where: str) -> Any:
  """A source whose labels are places in `names`.

  Args:
    source: of `data.sources`.
    names: of the classes a model knows.
    where: names the source in messages.

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
      f'{where} has classes that the model does not know: {shown(unknown)}. It knows {shown(names)}'
    )
  return _Aligned(source, names, [names.index(name) for name in own])


def shown(names: Sequence[str]) -> str:
  """The first of them."""
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more


class _Aligned:
  """A source with other numbers for the same classes."""

  def __init__(self, source: Any, names: list[str], numbers: list[int]):
    self._source, self._numbers, self.class_names = source, numbers, names

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Any:
    example = self._source[index]
    return {**example, 'label': self._numbers[example['label']]}
