"""Finer grids above the patches of a plain encoder, in plain Python."""

from __future__ import annotations

import math

# Of a convolution: side of its kernel, inputs, outputs, whether something norms it, and at how many
# places of an image it is computed.
Convolution = tuple[int, int, int, bool, int]


def ups(width: int, grid: tuple[int, ...]) -> dict[str, Convolution]:
  """The transposed convolutions of `models.pyramid.Pyramid`, by name."""
  places = math.prod(grid)
  return {
    'up4_first': (2, width, width, True, places), 'up4': (2, width, width, False, 4 * places),
    'up2': (2, width, width, False, places),
  }  # fmt: skip


def costs(
  convolutions: dict[str, Convolution], *, norm: bool, bias: bool = False
) -> list[tuple[str, int, int]]:
  """Names, parameters, and multiply-adds for an image.

  Args:
    convolutions: by name.
    norm: whether norms that may be there are, each with a scale and an offset.
    bias: whether convolutions have one before a norm, too.
  """
  found = []
  for name, (side, inputs, outputs, normed, places) in convolutions.items():
    normed &= norm
    kernel = side * side * inputs * outputs
    extra = 2 * outputs * normed + outputs * (bias or not normed)
    found.append((name, kernel + extra, kernel * places))
  return found
