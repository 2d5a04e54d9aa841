"""Rows: what becomes of examples in a batch. No JAX: processes that prepare batches have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from vit_jax.data.examples import Example


class Array(NamedTuple):
  """One of the arrays of a row."""

  shape: tuple[int, ...]
  dtype: Any


class Rows(Protocol):
  """Makes rows of a batch from examples: picklable, and a function of the example and `rng` alone.

  Attributes:
    needs: fields that every example must have, and their kinds: {'image': 'image'}.
  """

  @property
  def needs(self) -> Mapping[str, str]:
    """See above."""
    ...

  def arrays(self) -> Mapping[str, Array]:
    """Of one row, by name; in a batch each has a leading axis."""
    ...

  def make(self, example: Example, rng: np.random.Generator) -> Any:
    """The arrays of a row, exactly as `arrays` says.

    Args:
      example: with the fields that are needed.
      rng: of this example alone.

    Raises:
      ValueError: for an example that cannot be used, saying why; it may be skipped.
      RunError: for what stops the run.
    """
    ...

  def about(self, example: Example) -> list[str]:
    """Lines for people: what is done to examples like this one, where that is worth saying."""
    ...


@runtime_checkable
class Grouped(Rows, Protocol):
  """Rows that are made of several examples at once; `make` gives what `join` needs of each.

  Attributes:
    takes: examples of a group.
    gives: rows of a group; batches are whole groups.
    slots: places for examples in a row; mask and index of a batch have them as their second axis.
  """

  @property
  def takes(self) -> int:
    """See above."""
    ...

  @property
  def gives(self) -> int:
    """See above."""
    ...

  @property
  def slots(self) -> int:
    """See above."""
    ...

  def join(self, items: Sequence[Any]) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """The rows of a group.

    Args:
      items: what `make` gave for each example; None where there is none.

    Returns:
      Arrays of all rows, and which of the examples is in which slot: int (gives, slots), -1 where
      none is.
    """
    ...


def group(rows: Rows) -> tuple[int, int, tuple[int, ...]]:
  """Examples and rows of a group, and the axes of a row's mask."""
  if isinstance(rows, Grouped):
    return rows.takes, rows.gives, (rows.slots,)
  return 1, 1, ()
