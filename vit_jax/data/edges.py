"""How well the edges of what is found lie: the boundary IoU of Cheng et al. 2021, equation 2."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np


def edge(mask: np.ndarray, share: float) -> np.ndarray:
  """The pixels of a mask that are near what is not in it; beyond the image nothing is.

  Args:
    mask: bool (height, width).
    share: of the diagonal of the image: how near. Rounded to whole pixels, of rows or of columns,
      and at least one; 0.02 in the paper.

  Returns:
    bool (height, width).
  """
  near = max(1, round(share * float(np.hypot(*mask.shape))))
  apart = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_C, 3)[1:-1, 1:-1]
  return mask & (apart <= near)


def overlaps(
  truth: np.ndarray, said: np.ndarray, there: np.ndarray, classes: Iterable[int], share: float
) -> dict[int, tuple[int, int]]:
  """Pixels in the edges of both maps, and in that of either one, by class.

  What has no class in the truth is of none in both maps, so that both end there, and is not
  counted.

  Args:
    truth, said: classes, int (height, width).
    there: which pixels have one, bool (height, width).
    classes: that are looked at.
    share: see `edge`.
  """
  found = {}
  for number in classes:
    one, other = (edge((each == number) & there, share) for each in (truth, said))
    if either := int((one | other).sum()):
      found[number] = int((one & other).sum()), either
  return found
