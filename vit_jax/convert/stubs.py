"""Arrays in files that have not been read yet."""

from __future__ import annotations

from typing import Any

import numpy as np


class Stub:
  """Shape and dtype of an array, which `np.asarray` fetches."""

  def __init__(self, shape: tuple[int, ...], dtype: Any, fetch: Any):
    self.shape, self.dtype, self._fetch = tuple(shape), np.dtype(dtype), fetch

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    """The array itself."""
    del copy
    array = np.asarray(self._fetch())
    return array if dtype is None else array.astype(dtype)


Arrays = dict[str, Stub]
