"""Forms with soft edges, by the distance of pixels from these."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import numpy as np

_TIPS = 5  # of a star
_INNER = 0.45  # radius of its inner corners, of that of its tips


def grid(size: tuple[int, int]) -> np.ndarray:
  """x and y of the centres of pixels, float64 (height, width, 2)."""
  import numpy as np

  y, x = np.mgrid[: size[0], : size[1]] + 0.5
  return np.stack([x, y], -1)


def turned(points: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
  """x and y of points in axes that are turned by an angle."""
  cos, sin = math.cos(angle), math.sin(angle)
  return points[..., 0] * cos + points[..., 1] * sin, points[..., 1] * cos - points[..., 0] * sin


def soft(distance: np.ndarray) -> np.ndarray:
  """What of a pixel is inside, by the distance of its centre from an edge, negative inside."""
  import numpy as np

  return np.clip(0.5 - distance, 0, 1)


def over(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
  """A colour, or one for each pixel, over an image where `alpha` is."""
  alpha = alpha[..., None]
  return image * (1 - alpha) + colour * alpha


def covered(kind: str, points: np.ndarray, radius: float, angle: float) -> np.ndarray:
  """What of each pixel a form covers.

  Args:
    kind: disc, square, triangle, ring, cross or star.
    points: of pixels, from its middle.
    radius: of the circle around it.
    angle: by which it is turned.
  """
  import numpy as np

  x, y = turned(points, angle)
  away = np.hypot(x, y)
  if kind == 'disc':
    return soft(away - radius)
  if kind == 'ring':
    return soft(np.maximum(away - radius, radius / 2 - away))
  if kind == 'square':
    return soft(np.maximum(abs(x), abs(y)) - radius / math.sqrt(2))
  if kind == 'triangle':
    third = 2 * math.pi / 3
    sides = [x * math.cos(n * third) + y * math.sin(n * third) for n in range(3)]
    return soft(np.max(sides, axis=0) - radius / 2)
  if kind == 'star':
    # All its edges are one, between a tip and the next inner corner, turned and mirrored.
    step = math.pi / _TIPS
    around = np.arctan2(y, x)
    around = abs((around + step) % (2 * step) - step)
    inner = _INNER * radius * np.array([math.cos(step), math.sin(step)])
    edge = inner - (radius, 0.0)
    normal = np.array([edge[1], -edge[0]]) / math.hypot(*edge)
    return soft((away * np.cos(around) - radius) * normal[0] + away * np.sin(around) * normal[1])
  half = 0.3 * radius  # of an arm of the cross
  end = math.sqrt(radius**2 - half**2)
  arm = lambda a, b: np.maximum(abs(a) - end, abs(b) - half)  # noqa: E731
  return soft(np.minimum(arm(x, y), arm(y, x)))
