"""What an evaluator has prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A function from a model, as trained and frozen parameters, to (name, value) pairs.

  Attributes:
    function: it.
    summary: lines for people about the data.
  """

  function: Callable[[Any, Any], Iterator[tuple[str, Any]]]
  summary: list[str]

  def __call__(self, judged: Any, frozen: Any) -> Iterator[tuple[str, Any]]:
    """Evaluates a model."""
    return self.function(judged, frozen)
