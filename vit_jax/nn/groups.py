"""Tokens of a grid regrouped, so that attention along some of its axes is attention in each group.

See `architecture.pattern` for which groups there are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.architecture.pattern import Part
from vit_jax.nn.layers import flatten, unflatten
from vit_jax.nn.masks import Mask
from vit_jax.nn.sharding import spec

Array = Any


@dataclasses.dataclass(frozen=True)
class Groups:
  """The groups of the tokens of an image: `prefix` tokens, then the patches of a grid.

  Attributes:
    part: which tokens are a group.
    grid: of patches.
    prefix: tokens before them.
  """

  part: Part
  grid: tuple[int, ...]
  prefix: int

  @property
  def count(self) -> int:
    """Groups in an image."""
    return math.prod(self.part.counts(self.grid))

  @property
  def tokens(self) -> int:
    """Those of an image."""
    return self.prefix + math.prod(self.grid)

  def queries(self, x: Array, axis: str | None = None, extra: int = 0) -> Array:
    """The tokens of each group: (batch, tokens, features) -> (batch * groups, of one, features).

    Args:
      x: tokens; what follows those of the grid is left out. Groups at the edge are filled up with
        zeros.
      axis: logical name of the features, if they are sharded.
      extra: rows of zeros that each group gets at its end.
    """
    return _gathered(x, self, axis, 1.0, extra)

  def keys(self, x: Array, axis: str | None = None) -> Array:
    """As `queries`, what the tokens of each group see: also those of the windows around it."""
    return self._split(x, self._around, axis) if self.part.near else self.queries(x, axis)

  def join(self, x: Array, batch: int, length: int, axis: str | None = None) -> Array:
    """What each token got, the inverse of `queries`: (batch, length, features).

    Tokens before the patches get the mean of what they got in each group, or 0 if they took no
    part, as do those that are beyond the grid.
    """
    x = _reshaped(x, (batch, self.count, -1, x.shape[-1]), axis)
    return _scattered(x, self, axis, 1 / self.count, length)

  def angles(self, angles: Array) -> Array:
    """As `queries`, of rotary angles; those of all examples are NumPy's, and stay that."""
    if isinstance(angles, np.ndarray):
      return self._split(angles, self._windows, None, np)
    return self.queries(angles)

  def mask(self, mask: Mask, batch: int) -> Mask:
    """Of the groups what `mask` is of the image.

    A causal mask and a window are about places in a group.

    Raises:
      ValueError: if it says where queries begin, which groups do not, or is of places where keys
        are of several groups.
    """
    if self.part.near and (mask.causal or mask.window):
      raise ValueError('windows that see those around them have no places for such a mask')
    if mask.start is not None:
      raise ValueError('attention along axes has no cache: its masks have no start')
    there = self._there()
    keys = None
    if mask.keys is not None or not there.all():
      laid = spec('batch', None, None)
      keys = jnp.broadcast_to(there, (batch, *there.shape), out_sharding=laid)
      keys = keys.reshape(-1, there.shape[1], out_sharding=spec('batch', None))
      if mask.keys is not None:
        keys = keys & self._marks(mask.keys, self.keys)
    segments = mask.segments
    if segments is not None:
      segments = (self._marks(segments[0], self.queries), self._marks(segments[1], self.keys))
    prefix = None if mask.prefix is None else self._marks(mask.prefix, self.keys)
    return mask.replace(keys=keys, prefix=prefix, segments=segments)

  def index(self, index: Array) -> Array:
    """Rows of tables of relative positions for a group: the same in each.

    Args:
      index: of the whole grid, int (1, tokens, tokens).

    Returns:
      int (1, queries, keys) of the first group.

    Raises:
      ValueError: if positions differ from image to image.
    """
    if index.shape[0] > 1:
      raise ValueError('attention along axes has no relative positions of packed images')
    if self.part.near:
      raise ValueError('windows that see those around them have no relative positions')
    numbers = np.arange(self.tokens)[None, :, None]
    first = np.asarray(self._split(numbers, self._windows, None, np))[0, :, 0]
    return index[:, first[:, None], first[None, :]]

  def _there(self) -> np.ndarray:
    """Which keys of the groups are tokens, and not filled up: bool (groups, keys)."""
    ones = np.ones((1, self.tokens, 1), np.int8)
    return self._split(ones, self._around, None, np)[:, :, 0] > 0

  def _marks(self, x: Array, split: Callable[..., Array]) -> Array:
    """Of (batch, tokens) marks those of the groups."""
    number = split(x.astype(jnp.int32)[..., None])[..., 0]
    return number > 0 if x.dtype == bool else number

  def _split(
    self, x: Array, arrange: Any, axis: str | None, xp: Any = jnp, extra: int = 0
  ) -> Array:
    batch, features = x.shape[0], x.shape[-1]
    patches = [arrange(x[:, self.prefix : self.tokens], axis, xp)]
    if self.prefix and self.part.prefix:
      shape = (batch, self.count, self.prefix, features)
      patches.insert(0, xp.broadcast_to(x[:, None, : self.prefix], shape))
    patches = xp.concatenate(patches, axis=2)
    if extra:
      patches = xp.pad(patches, ((0, 0), (0, 0), (0, extra), (0, 0)))
    return _reshaped(patches, (batch * self.count, -1, features), axis, xp)

  def _windows(self, x: Array, axis: str | None, xp: Any = jnp) -> Array:
    """(batch, patches, features) -> (batch, groups, of one, features)."""
    return xp.concatenate([band.windows(part, axis, xp) for band, part in self._cuts(x)], axis=1)

  def _cuts(self, x: Array) -> list[tuple[_Band, Array]]:
    """Of (batch, patches, features) what the groups along the first axis of the grid are made of.

    Each is contiguous: compilers of TPUs move whole ranges of rows fast, and by themselves find
    them neither in a reshape of all that is not aligned with their tiles, nor in its gradient.
    """
    (size, *_), (side, *rest) = self.part.sizes(self.grid), self.grid
    step, found = math.prod(rest), []
    for first in range(0, side, size):
      last = min(first + size, side)
      band = _Band(self.part, (last - first, *rest), size)
      found.append((band, x[:, first * step : last * step]))
    return found

  def _around(self, x: Array, axis: str | None, xp: Any = jnp) -> Array:
    """As `_windows`, with the patches of the windows around each."""
    if not self.part.near:
      return self._windows(x, axis, xp)
    x, dims = self._cut(x, axis, xp), len(self.grid)
    near = [(reach // 2, reach // 2) for reach in self.part.reach(self.grid)]
    x = xp.pad(x, [(0, 0), *near, *[(0, 0)] * (dims + 1)])
    counts, found = self.part.counts(self.grid), []
    for start in itertools.product(*(range(before + after + 1) for before, after in near)):
      cut = [slice(first, first + count) for first, count in zip(start, counts, strict=True)]
      found.append(self._merged(x[(slice(None), *cut)], axis, xp))
    return xp.concatenate(found, axis=2)

  def _cut(self, x: Array, axis: str | None, xp: Any) -> Array:
    """(batch, patches, features) -> (batch, *counts, *sizes, features), filled up with zeros."""
    return _cut(x, self.grid, self.part.sizes(self.grid), axis, xp)

  def _merged(self, x: Array, axis: str | None, xp: Any) -> Array:
    return _reshaped(x, (x.shape[0], self.count, -1, x.shape[-1]), axis, xp)

  def _patches(self, x: Array, axis: str | None) -> list[Array]:
    """(batch, groups, of one, features) -> parts of (batch, patches, features), in their order."""
    found, first = [], 0
    cuts = self._cuts(np.empty((1, math.prod(self.grid), 0)))
    each = self.count // len(cuts)
    for band, _ in cuts:
      found += band.patches(x[:, first : first + each], axis)
      first += each
    return found


@dataclasses.dataclass(frozen=True)
class _Band:
  """The patches of the groups that are next to each other on all axes but the first.

  Attributes:
    part: which of them are a group.
    grid: of these patches.
    size: of a whole group along the first axis, of which the last may have less.
  """

  part: Part
  grid: tuple[int, ...]
  size: int

  def _sizes(self) -> tuple[int, ...]:
    return (self.grid[0], *self.part.sizes((self.size, *self.grid[1:]))[1:])

  def windows(self, x: Array, axis: str | None, xp: Any) -> Array:
    """(batch, patches, features) -> (batch, groups, of one, features)."""
    sizes, step = self._sizes(), math.prod(self.grid[1:])
    if sizes == self.grid:  # one group
      x = x[:, None]
    elif math.prod(sizes[1:]) == 1:  # only along the first axis
      x = xp.stack([x[:, i * step : (i + 1) * step] for i in range(self.grid[0])], axis=2)
    else:
      x = _cut(x, self.grid, sizes, axis, xp)
      groups = math.prod(x.shape[1 : 1 + len(sizes)])
      x = _reshaped(x, (x.shape[0], groups, -1, x.shape[-1]), axis, xp)
    more = (self.size - self.grid[0]) * math.prod(sizes[1:])
    return xp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) if more else x

  def patches(self, x: Array, axis: str | None) -> list[Array]:
    """What `windows` undoes, in parts."""
    sizes = self._sizes()
    x = x[:, :, : math.prod(sizes)]
    if sizes == self.grid:
      return [x[:, 0]]
    if math.prod(sizes[1:]) == 1:
      return [x[:, :, i] for i in range(self.grid[0])]
    dims, batch, features = len(sizes), x.shape[0], x.shape[-1]
    counts = [-(-side // size) for side, size in zip(self.grid, sizes, strict=True)]
    x = _reshaped(x, (batch, *counts, *sizes, features), axis)
    order = itertools.chain(*zip(range(1, dims + 1), range(dims + 1, 2 * dims + 1), strict=True))
    x = x.transpose(0, *order, 2 * dims + 1)
    whole = (n * size for n, size in zip(counts, sizes, strict=True))
    x = _reshaped(x, (batch, *whole, features), axis)
    x = x[(slice(None), *(slice(side) for side in self.grid))]
    return [_reshaped(x, (batch, math.prod(self.grid), features), axis)]


def _cut(x: Array, grid: tuple[int, ...], sizes: tuple[int, ...], axis: Any, xp: Any) -> Array:
  """(batch, patches, features) -> (batch, *counts, *sizes, features), filled up with zeros."""
  dims, batch, features = len(grid), x.shape[0], x.shape[-1]
  counts = [-(-side // size) for side, size in zip(grid, sizes, strict=True)]
  x = _reshaped(x, (batch, *grid, features), axis, xp)
  more = [(0, n * size - side) for n, size, side in zip(counts, sizes, grid, strict=True)]
  x = xp.pad(x, [(0, 0), *more, (0, 0)])
  cut = itertools.chain(*zip(counts, sizes, strict=True))
  x = _reshaped(x, (batch, *cut, features), axis, xp)
  outer, inner = range(1, 2 * dims, 2), range(2, 2 * dims + 1, 2)
  return x.transpose(0, *outer, *inner, 2 * dims + 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gathered(x: Array, groups: Groups, axis: str | None, scale: float, extra: int) -> Array:
  """`Groups.queries`, with `scale` times the tokens before the patches."""
  if scale != 1 and groups.part.prefix:
    before, rest = x[:, : groups.prefix], x[:, groups.prefix :]
    x = jnp.concatenate([(before * scale).astype(x.dtype), rest], axis=1)
  return _moved(groups._split(x, groups._windows, axis, extra=extra), axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _scattered(y: Array, groups: Groups, axis: str | None, scale: float, length: int) -> Array:
  """What `_gathered` is the gradient of: (batch, groups, of one, features) -> (batch, length, ...).

  Tokens before the patches get `scale` times the sum over groups.
  """
  batch, features = y.shape[0], y.shape[-1]
  own = groups.prefix if groups.part.prefix else 0
  before = (y[:, :, :own].astype(jnp.float32).sum(1) * scale).astype(y.dtype)
  laid = spec('batch', None, axis)
  zeros = lambda count: jnp.zeros((batch, count, features), y.dtype, out_sharding=laid)  # noqa: E731
  before = zeros(groups.prefix) if own < groups.prefix else before
  found = [before, *groups._patches(y[:, :, own:], axis), zeros(length - groups.tokens)]
  return _moved(jnp.concatenate(found, axis=1), axis)


def _moved(x: Array, axis: str | None) -> Array:
  """(batch, tokens, features) as they are.

  Of rows made by several moves the compiler of TPUs would fuse some with what norms compute of
  rows, and then finds no way to do that.
  """
  return unflatten(jax.lax.optimization_barrier(flatten(x, axis)), x.shape[0], axis)


def _gathered_back(groups, axis, scale, extra, length, dy):
  del extra
  dy = dy.reshape(-1, groups.count, *dy.shape[1:], out_sharding=spec('batch', None, None, axis))
  return (_scattered(dy, groups, axis, scale, length),)


def _scattered_back(groups, axis, scale, length, rows, dx: Any):
  del length
  extra = rows - groups.part.tokens(groups.grid, groups.prefix)[1]
  dy: Any = _gathered(dx, groups, axis, scale, extra)
  shape = (dx.shape[0], groups.count, *dy.shape[1:])
  return (dy.reshape(shape, out_sharding=spec('batch', None, None, axis)),)


def _gathered_forward(x: Array, *options: Any):
  return _gathered(x, *options), x.shape[1]


def _scattered_forward(y: Array, *options: Any):
  return _scattered(y, *options), y.shape[2]


_gathered.defvjp(_gathered_forward, _gathered_back)
_scattered.defvjp(_scattered_forward, _scattered_back)


def together(groups: Sequence[Groups]) -> bool:
  """Whether the tokens of a group see each other and nothing else, in all heads alike."""
  return len(groups) == 1 and not groups[0].part.near


def _reshaped(x: Array, shape: tuple[int, ...], axis: str | None, xp: Any = jnp) -> Array:
  """`x` in another shape, whose first axis is of the batch and whose last is `axis`."""
  if xp is np:
    return x.reshape(shape)
  return x.reshape(shape, out_sharding=spec('batch', *(None,) * (len(shape) - 2), axis))
