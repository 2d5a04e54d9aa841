"""What a function of windows says of an image that is larger than they are.

Windows overlap, and what they say of a pixel is averaged, each with a weight that falls towards its
edges. Weights are products of one for the row and one for the column, so that those of all windows
of a pixel add up to 1 when those along each axis do; where only one window is, it counts alone. So
an image is gone through in strips, from top to bottom, and what is said of a constant is constant.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.nn.sharding import reshard, whole
from vit_jax.nn.sharding import shards as shards_of

# Of the window at its very edge, where it is the only one.
_LEAST = 1e-3


def starts(length: int, window: int, overlap: int) -> list[int]:
  """Where windows begin along an axis; the last one is moved inwards, to end with the image.

  Args:
    length: of the axis, at least that of a window.
    window: its length.
    overlap: of two neighbours at least, less than that.
  """
  step = window - overlap
  return [min(at, length - window) for at in range(0, length - overlap, step)] or [0]


def shares(length: int, window: int, overlap: int) -> np.ndarray:
  """Of each window along an axis its weights: float32 (windows, window), those of a place add to 1.

  Before they are divided by their sum they are those of a Hann window.
  """
  each = np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2 + _LEAST
  places = starts(length, window, overlap)
  total = np.zeros(length)
  for at in places:
    total[at : at + window] += each
  return np.stack([each / total[at : at + window] for at in places]).astype(np.float32)


def along(
  function: Callable[[Any], jax.Array], strip: Any, places: jax.Array, weights: jax.Array,
  batch: int,
) -> jax.Array:  # fmt: skip
  """What windows say of a strip that is as high as they are.

  Args:
    function: of windows, a tree of arrays (batch, height, window, ...), cut along the batch, to
      float32 (batch, height, window, values).
    strip: such a tree of arrays (height, width, ...), all on every device.
    places: where windows begin, int32 (n,), a multiple of `batch` of them.
    weights: of their columns, float32 (n, window).
    batch: windows at a time.

  Returns:
    float32 (height, width, values), all on every device.
  """
  window = weights.shape[1]

  def cut(at: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, window, axis=1), strip)

  def said(places: jax.Array) -> jax.Array:
    windows = jax.tree.map(lambda *x: jnp.stack(x), *[cut(places[i]) for i in range(batch)])
    lay = lambda x: reshard(x, 'batch', *(None,) * (x.ndim - 1))  # noqa: E731
    return whole(function(jax.tree.map(lay, windows)))

  def some(total: jax.Array, item: Any) -> tuple[jax.Array, None]:
    places, weights = item
    values = said(places) * weights[:, None, :, None]
    for i in range(batch):
      old = jax.lax.dynamic_slice_in_dim(total, places[i], window, axis=1)
      total = jax.lax.dynamic_update_slice_in_dim(total, old + values[i], places[i], axis=1)
    return total, None

  kinds = jax.eval_shape(said, places[:batch])
  height, width = jax.tree.leaves(strip)[0].shape[:2]
  total = whole(jnp.zeros((height, width, kinds.shape[-1]), jnp.float32))
  items = places.reshape(-1, batch), weights.reshape(-1, batch, window)
  return jax.lax.scan(some, total, items)[0]


class Windows:
  """A function of windows, compiled for images of all sizes: strips are as wide as some windows.

  So there are few programs, however many sizes images have.
  """

  def __init__(
    self, function: Callable[[Any, Any], jax.Array], window: tuple[int, int],
    overlap: tuple[int, int], batch: int,
  ):  # fmt: skip
    """Compiles nothing yet.

    Args:
      function: of a model and windows; see `along`.
      window: height and width of a window.
      overlap: of neighbouring windows at least, in rows and columns.
      batch: windows at a time, at most; a multiple of the devices.
    """
    self._window, self._overlap, self._batch = window, overlap, batch
    self._compute = jax.jit(
      lambda model, strip, places, weights, batch: along(
        lambda x: function(model, x), strip, places, weights, batch
      ),
      static_argnums=4,
    )

  def strips(
    self, model: Any, read: Callable[[int, int], Any], size: tuple[int, int]
  ) -> Iterator[tuple[int, np.ndarray]]:
    """What windows say of an image of any size, from top to bottom, in the memory of a strip.

    An image that is smaller than a window is continued by its mirror image.

    Args:
      model: first argument of the function, a tree of arrays.
      read: gives a tree of arrays (rows, width, ...) of the image, from a row on so many; called by
        one thread of its own, while the devices are at the rows before.
      size: height and width of the image.

    Yields:
      The first row of some rows, and what is said of them: float32 (rows, width, values).
    """
    window, overlap = self._window, self._overlap
    height, width = (max(side, least) for side, least in zip(size, window, strict=True))
    tops, rows = starts(height, window[0], overlap[0]), shares(height, window[0], overlap[0])
    lefts, columns = starts(width, window[1], overlap[1]), shares(width, window[1], overlap[1])
    batch = min(self._batch, -(-len(lefts) // shards_of('batch')) * shards_of('batch'))
    filled = -(-len(lefts) // batch) * batch
    places = np.zeros(filled, np.int32)
    weights = np.zeros((filled, window[1]), np.float32)
    places[: len(lefts)], weights[: len(lefts)] = lefts, columns
    there = min(window[0], size[0])
    beyond = (0, window[0] - there), (0, -(-width // window[1]) * window[1] - size[1])

    def strip(top: int) -> Any:
      def mirrored(x: np.ndarray) -> np.ndarray:
        return np.pad(x, (*beyond, *((0, 0),) * (x.ndim - 2)), mode='reflect')

      return jax.tree.map(mirrored if np.any(beyond) else np.asarray, read(top, there))

    held: Any = 0.0  # of the rows from `top` on
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
      coming = reader.submit(strip, tops[0])
      for number, top in enumerate(tops):
        now = coming.result()
        if number + 1 < len(tops):
          coming = reader.submit(strip, tops[number + 1])
        values = np.array(self._compute(model, now, places, weights, batch))
        values *= rows[number][:, None, None]
        kept = np.shape(held)[0] if np.ndim(held) else 0
        values[:kept] += held
        done = tops[number + 1] - top if number + 1 < len(tops) else window[0]
        yield top, values[: min(done, size[0] - top), : size[1]]
        held = values[done:]
