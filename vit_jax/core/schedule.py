"""Numbers that change during a run, written as text: '0.996->1 cosine'."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

from vit_jax.core.errors import RunError, suggest

# How far a piece has come from its first value to its last, by the share of its duration.
SHAPES: dict[str, Callable[[float], float]] = {
  'linear': lambda x: x,
  'cosine': lambda x: 0.5 - 0.5 * math.cos(math.pi * x),
  # What is left falls like the power 0.9 of the time that is left (Chen et al. 2018, 'DeepLab').
  'poly': lambda x: 1 - (1 - x) ** 0.9,
}
_NUMBER = r'[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?'
_PIECE = re.compile(
  rf'(?P<first>{_NUMBER})\s*(?:->\s*(?P<last>{_NUMBER})\s+(?P<shape>[a-z]+)(?:\s+(?P<over>.+))?'
  rf'|until\s+(?P<until>.+))?'
)
WAYS = (
  "write a number, '0.996->1 cosine', '0.04->0.07 linear 30 epochs' or '0 until 1 epoch then 1'"
)


@dataclasses.dataclass(frozen=True)
class Piece:
  """From `first` to `last` in one of `SHAPES`, for a duration ('' is the rest of the run)."""

  first: float
  last: float
  shape: str
  duration: str


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A number for each step of a run.

  Attributes:
    text: a number; 'FIRST->LAST SHAPE DURATION', which then stays at LAST; 'VALUE until DURATION'.
      Several are joined by 'then'. Durations are as everywhere in a configuration, and without one
      a piece takes the rest of the run. SHAPE is one of `SHAPES`.
  """

  text: str | float

  def __post_init__(self):
    self.pieces  # noqa: B018  raises RunError

  @classmethod
  def of(cls, value: Schedule | str | float) -> Schedule:
    """A number or a text as a schedule."""
    return value if isinstance(value, Schedule) else cls(value)

  @functools.cached_property
  def pieces(self) -> tuple[Piece, ...]:
    """One after another; the last value stays."""
    parts = re.split(r'\s+then\s+', str(self.text).strip())
    return tuple(_piece(part, at == len(parts) - 1) for at, part in enumerate(parts))

  @property
  def constant(self) -> float | None:
    """The number, if it never changes."""
    first, *others = self.pieces
    return None if others or first.duration or first.first != first.last else first.first

  @property
  def values(self) -> list[float]:
    """Where its pieces begin and end."""
    return [value for piece in self.pieces for value in (piece.first, piece.last)]

  def check(self, name: str, *, below: float = math.inf) -> None:
    """Raises RunError, with the name of the field, for values that are negative or not below."""
    if not all(0 <= value < below for value in self.values):
      limit = f' and less than {below:g}' if math.isfinite(below) else ''
      raise RunError(f'{name}={self.text} must be at least 0{limit}')

  def at(self, step: int, total: int, steps: Callable[[str], int]) -> float:
    """The number of a step.

    Args:
      step: counted from 0.
      total: steps of the run.
      steps: of a duration.
    """
    begin = 0
    for piece in self.pieces:
      length = steps(piece.duration) if piece.duration else total - begin
      if step < begin + length or piece is self.pieces[-1]:
        share = min(1.0, (step - begin) / length) if length else 1.0
        return piece.first + (piece.last - piece.first) * SHAPES[piece.shape](share)
      begin += length
    raise AssertionError


def _piece(text: str, last: bool) -> Piece:
  match = _PIECE.fullmatch(text)
  if not match:
    raise RunError(f'{text!r} is not a schedule: {WAYS}')
  found = match.groupdict()
  shape = found['shape'] or 'linear'
  if shape not in SHAPES:
    raise RunError(f'{text!r} has an unknown shape: {suggest(shape, SHAPES)}')
  duration = (found['over'] or found['until'] or '').strip()
  if not last and not duration:
    raise RunError(f'{text!r} is followed by another piece, so it needs a duration: {WAYS}')
  first = float(found['first'])
  return Piece(first, float(found['last'] or first), shape, duration)
