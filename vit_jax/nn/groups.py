"""Tokens of a grid regrouped, so that attention along some of its axes is attention in each group.

See `architecture.pattern` for which groups there are.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax.architecture.pattern import Part
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

  def queries(self, x: Array, axis: str | None = None) -> Array:
    """The tokens of each group: (batch, tokens, features) -> (batch * groups, of one, features).

    Args:
      x: tokens; what follows those of the grid is left out. Groups at the edge are filled up with
        zeros.
      axis: logical name of the features, if they are sharded.
    """
    return self._split(x, self._windows, axis)

  def keys(self, x: Array, axis: str | None = None) -> Array:
    """As `queries`, what the tokens of each group see: also those of the windows around it."""
    return self._split(x, self._around, axis)

  def join(self, x: Array, batch: int, axis: str | None = None) -> Array:
    """What each token got, the inverse of `queries`: (batch, tokens, features).

    Tokens before the patches get the mean of what they got in each group, or 0 if they took no
    part.
    """
    features = x.shape[-1]
    x = _reshaped(x, (batch, self.count, -1, features), axis)
    own = self.prefix if self.part.prefix else 0
    patches = self._patches(x[:, :, own:], axis)
    if not self.prefix:
      return patches
    if not own:
      return jnp.pad(patches, ((0, 0), (self.prefix, 0), (0, 0)))
    before = x[:, :, :own].astype(jnp.float32).mean(1).astype(x.dtype)
    return jnp.concatenate([before, patches], axis=1)

  def angles(self, angles: Array) -> Array:
    """As `queries`, of rotary angles; those of all examples are NumPy's, and stay that."""
    if isinstance(angles, np.ndarray):
      return self._split(angles, self._windows, None, np)
    return self.queries(angles)

  def mask(self, mask: Mask, batch: int) -> Mask:
    """Of the groups what `mask` is of the image.

    A causal mask and a window are about places in a group.

    Raises:
      ValueError: if it says where queries begin, which groups do not.
    """
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

  def _split(self, x: Array, arrange: Any, axis: str | None, xp: Any = jnp) -> Array:
    batch, features = x.shape[0], x.shape[-1]
    patches = arrange(x[:, self.prefix : self.tokens], axis, xp)
    if self.prefix and self.part.prefix:
      shape = (batch, self.count, self.prefix, features)
      before = xp.broadcast_to(x[:, None, : self.prefix], shape)
      patches = xp.concatenate([before, patches], axis=2)
    return _reshaped(patches, (batch * self.count, -1, features), axis, xp)

  def _windows(self, x: Array, axis: str | None, xp: Any = jnp) -> Array:
    """(batch, patches, features) -> (batch, groups, of one, features)."""
    x = self._cut(x, axis, xp)
    return self._merged(x, axis, xp)

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
    dims, batch, features = len(self.grid), x.shape[0], x.shape[-1]
    sizes, counts = self.part.sizes(self.grid), self.part.counts(self.grid)
    x = _reshaped(x, (batch, *self.grid, features), axis, xp)
    more = [(0, n * size - side) for n, size, side in zip(counts, sizes, self.grid, strict=True)]
    x = xp.pad(x, [(0, 0), *more, (0, 0)])
    cut = itertools.chain(*zip(counts, sizes, strict=True))
    x = _reshaped(x, (batch, *cut, features), axis, xp)
    outer, inner = range(1, 2 * dims, 2), range(2, 2 * dims + 1, 2)
    return x.transpose(0, *outer, *inner, 2 * dims + 1)

  def _merged(self, x: Array, axis: str | None, xp: Any) -> Array:
    return _reshaped(x, (x.shape[0], self.count, -1, x.shape[-1]), axis, xp)

  def _patches(self, x: Array, axis: str | None) -> Array:
    """(batch, groups, of one, features) -> (batch, patches, features), what `_windows` undoes."""
    dims, batch, features = len(self.grid), x.shape[0], x.shape[-1]
    sizes, counts = self.part.sizes(self.grid), self.part.counts(self.grid)
    x = _reshaped(x, (batch, *counts, *sizes, features), axis)
    order = itertools.chain(*zip(range(1, dims + 1), range(dims + 1, 2 * dims + 1), strict=True))
    x = x.transpose(0, *order, 2 * dims + 1)
    whole = (n * size for n, size in zip(counts, sizes, strict=True))
    x = _reshaped(x, (batch, *whole, features), axis)
    x = x[(slice(None), *(slice(side) for side in self.grid))]
    return _reshaped(x, (batch, math.prod(self.grid), features), axis)


def together(groups: tuple[Groups, ...]) -> bool:
  """Whether the tokens of a group see each other and nothing else, in all heads alike."""
  return len(groups) == 1 and not groups[0].part.near


def _reshaped(x: Array, shape: tuple[int, ...], axis: str | None, xp: Any = jnp) -> Array:
  """`x` in another shape, whose first axis is of the batch and whose last is `axis`."""
  if xp is np:
    return x.reshape(shape)
  return x.reshape(shape, out_sharding=spec('batch', *(None,) * (len(shape) - 2), axis))
