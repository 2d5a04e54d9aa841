"""How sure a share is."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # of the standard normal distribution, 95 % are nearer to 0


def wilson(right: float, count: float) -> tuple[float, float]:
  """The 95 % interval of a share that is `right` of `count` independent examples.

  The score interval (Wilson 1927, equation 12 solved); from 0 to 1 if there are none.
  """
  if not count:
    return 0.0, 1.0

  def low(right: float) -> float:
    half = _Z * math.sqrt(right * (1 - right / count) + _Z * _Z / 4)
    return (right + _Z * _Z / 2 - half) / (count + _Z * _Z)

  return low(right), 1 - low(count - right)
