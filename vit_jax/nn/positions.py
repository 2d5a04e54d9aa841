"""Where patches are: resampled and sine-cosine embeddings, rotary angles, relative positions.

Every function works on the coordinates of patches, so that it serves a regular grid (NumPy, worked
out while tracing) and packed sequences of any aspect ratio (JAX, different for each example) alike.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.nn.sharding import spec

Array = Any


def grid_coords(*grid: int) -> np.ndarray:
  """Where each patch of a grid is, row by row: int (patches, axes)."""
  return np.indices(grid).reshape(len(grid), -1).T


def resize_weights(at: Array, size: Array, source: int, method: str, xp: ModuleType = np) -> Array:
  """What each of `source` old samples contributes to new samples, along one axis.

  Args:
    at: positions of new samples, integers of any shape (...).
    size: number of new samples along the axis, broadcastable to the shape of `at`.
    source: number of old samples.
    method: of `architecture.INTERPOLATIONS`. 'corner' is linear with the outermost samples aligned
      (scipy.ndimage.zoom, as in the fine-tuning of the original ViT). In the others pixels are
      areas: 'bilinear' and 'bicubic' (with a = -0.75) as in PyTorch, 'bilinear_aa' and 'bicubic_aa'
      (a = -0.5) with antialiasing as in PyTorch and jax.image.resize; 'bicubic_offset' is 'bicubic'
      to a tenth of a sample more, as in DINO and DINOv2.
    xp: numpy, or jax.numpy for positions known only at run time.

  Returns:
    float32 of shape (..., source); each row sums to 1.
  """
  at, size = xp.asarray(at, xp.float32), xp.asarray(size, xp.float32)
  old = xp.arange(source, dtype=xp.float32)
  scale = source / (size + (0.1 if method == 'bicubic_offset' else 0.0))
  if method.endswith('_aa'):
    stretch = xp.maximum(scale, 1.0)
    offset = (old + 0.5 - ((at + 0.5) * scale)[..., None]) / stretch[..., None]
    weights = _triangle(offset, xp) if method == 'bilinear_aa' else _cubic(offset, -0.5, xp)
    return weights / weights.sum(-1, keepdims=True)
  if method == 'corner':
    place = at * (source - 1) / xp.maximum(size - 1, 1.0)
  else:
    place = (at + 0.5) * scale - 0.5
  if method in ('corner', 'bilinear'):
    return _triangle(xp.clip(place, 0, source - 1)[..., None] - old, xp)
  first = xp.floor(place)
  weights = 0.0
  for tap in (-1, 0, 1, 2):  # taps beyond the edge repeat the sample on it
    hit = xp.clip(first + tap, 0, source - 1)[..., None] == old
    weights = weights + hit * _cubic(place - first - tap, -0.75, xp)[..., None]
  return xp.asarray(weights, xp.float32)


def _triangle(x: Array, xp: ModuleType) -> Array:
  return xp.maximum(1 - xp.abs(x), 0)


def _cubic(x: Array, a: float, xp: ModuleType) -> Array:
  """The convolution kernel of Keys 1981."""
  x = xp.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return xp.where(x <= 1, near, xp.where(x < 2, far, 0.0))


def resample(table: Array, grid: tuple[int, ...], method: str) -> Array:
  """A (*old grid, features) table on another grid; unchanged if the grid is the same."""
  old = table.shape[:-1]
  if tuple(old) == tuple(grid):
    return table
  weights = [
    resize_weights(np.arange(new), new, side, method) for new, side in zip(grid, old, strict=True)
  ]
  ours, theirs = 'thw'[-len(grid) :], 'opq'[-len(grid) :]
  sides = ','.join(map(''.join, zip(ours, theirs, strict=True)))
  return jnp.einsum(f'{sides},{theirs}d->{ours}d', *weights, table, precision='highest')


def resample_rows(
  table: Array, prefix: int, old: tuple[int, ...], new: tuple[int, ...], method: str
) -> Array:
  """The same of tables (layers, prefix + patches, features), whose first rows stay as they are."""
  if tuple(old) == tuple(new):
    return table
  sized = lambda rows: resample(rows.reshape(*old, -1), new, method)  # noqa: E731
  rows = jax.vmap(sized)(table[:, prefix:])
  return jnp.concatenate([table[:, :prefix], rows.reshape(len(table), math.prod(new), -1)], axis=1)


def resized(images: Array, size: tuple[int, ...]) -> Array:
  """Images of another size, bilinear with antialiasing: (batch, height, width, channels)."""
  if images.shape[1:3] == tuple(size):
    return images
  rows, columns = (
    resize_weights(np.arange(new), new, old, 'bilinear_aa')
    for new, old in zip(size, images.shape[1:3], strict=True)
  )
  out = spec('batch', None, None, None)
  x = jnp.einsum('Hh,bhwc->bHwc', rows, images, precision='highest', out_sharding=out)
  return jnp.einsum('Ww,bhwc->bhWc', columns, x, precision='highest', out_sharding=out)


def looked_up(table: Array, coords: Array, size: Array, method: str) -> Array:
  """Rows of a (*grid, features) table for patches of packed images, interpolated.

  Args:
    table: of a grid of one to three axes.
    coords: where patches are, int (batch, patches, axes).
    size: of the grid of the image that each is of, broadcastable to that shape.
    method: of interpolation, where sizes differ from that of the table.

  Returns:
    float32 (batch, patches, features).
  """
  grid = table.shape[:-1]
  # Where nothing is resized, methods with an offset do not apply it either.
  native = (size == np.array(grid)).all(-1)[..., None]
  found = None
  for axis, old in enumerate(grid):
    weights = jnp.where(
      native,
      coords[..., axis, None] == np.arange(old),
      resize_weights(coords[..., axis], size[..., axis], old, method, jnp),
    )
    if found is None:
      found = weights
    else:
      found = (found[..., :, None] * weights[..., None, :]).reshape(*weights.shape[:2], -1)
  return jnp.einsum('bnp,pd->bnd', found, table.reshape(-1, table.shape[-1]), precision='highest')


def sincos(
  coords: Array, features: int, temperature: float = 10_000.0, xp: ModuleType = np, *,
  mae: bool = False,
) -> Array:  # fmt: skip
  """Fixed sine-cosine position embedding of any number of axes (MoCo v3, Chen et al. 2021).

  Args:
    coords: where patches are, (..., axes).
    features: of the embedding, at least two for each axis. Equally many are of each axis, the last
      first: sin x, cos x, sin y, cos y for rows and columns; what is left over is 0.
    temperature: longest wavelength over 2 pi.
    xp: numpy or jax.numpy.
    mae: whether the longest wavelength is the one after the last, as in MAE (He et al. 2022).

  Returns:
    float32 array of shape (..., features).
  """
  axes = coords.shape[-1]
  bands = features // (2 * axes)
  omega = temperature ** -(np.arange(bands) / (bands if mae else max(bands - 1, 1)))
  parts = []
  for axis in reversed(range(axes)):
    angle = coords[..., axis, None] * omega
    parts += [xp.sin(angle), xp.cos(angle)]
  y = xp.concatenate(parts, axis=-1).astype(xp.float32)
  return xp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, features - 2 * axes * bands)])


def sines(at: Array, features: int, temperature: float, xp: ModuleType = np) -> Array:
  """Sines and cosines of numbers in [0, 1], as DETR makes positions (Carion et al. 2020, A.4).

  Args:
    at: of places as shares of an image, y first: (..., numbers).
    features: of each number, even: sine and cosine of a frequency, then those of the next.
    temperature: the longest wavelength is almost so many times as long as the shortest, which is
      that of the whole image.
    xp: numpy or jax.numpy.

  Returns:
    float32 (..., numbers * features), those of the first number first.
  """
  angles = 2 * np.pi * at[..., None] * temperature ** -(2 * np.arange(features // 2) / features)
  found = xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
  return found.reshape(*at.shape[:-1], at.shape[-1] * features).astype(xp.float32)


def rope(
  coords: Array, sizes: Array, head_dim: int, kind: str, base: float,
  reference: tuple[int, ...], xp: ModuleType = np,
) -> Array:  # fmt: skip
  """Angles of axial rotary position embedding (Heo et al. 2024).

  Args:
    coords: where patches are, (..., patches, axes).
    sizes: of the grid that `coords` are on, (..., 1, axes) or (axes,).
    head_dim: width of a head, an even number.
    kind: 'unit' measures positions from -1 to 1 across the image, in turns (DINOv3, Simeoni et al.
      2025); 'grid' in patches, in radians (EVA-02, Fang et al. 2023).
    base: wavelengths grow geometrically from 1 to almost this factor.
    reference: with 'grid', positions are stretched so that the image has this many patches on each
      axis, whatever its size; zeros leave them alone.
    xp: numpy or jax.numpy.

  Returns:
    float32 angles (..., patches, head_dim / 2): equally many of each axis, the first first; what is
    left over is 0.
  """
  axes = coords.shape[-1]
  at = xp.asarray(coords, xp.float32)
  if kind == 'unit':
    at = 2 * np.pi * (2 * (at + 0.5) / sizes - 1)
  elif all(reference):
    at = at / sizes * np.asarray(reference, np.float32)
  count = head_dim // (2 * axes)
  bands = np.asarray(base, np.float32) ** -np.arange(0, 1, 2 * axes / head_dim, dtype=np.float32)
  angles = at[..., None] * bands[:count]
  angles = angles.reshape(*at.shape[:-1], axes * count)
  more = head_dim // 2 - axes * count
  return xp.pad(angles, [(0, 0)] * (angles.ndim - 1) + [(0, more)]) if more else angles


def rotary(
  places: Array, head_dim: int, base: float, scaling: tuple[float, ...] = (), xp: ModuleType = np
) -> Array:
  """Angles of rotary positions in a sequence (Su et al. 2021, section 3.2.2).

  Args:
    places: of tokens, int (...).
    head_dim: width of a head, an even number.
    base: wavelengths grow geometrically from 1 to almost this factor.
    scaling: see `architecture.language.LanguageArchitecture.rope_scaling`.
    xp: numpy or jax.numpy.

  Returns:
    float32 (..., head_dim / 2).
  """
  bands = np.float32(base) ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
  if len(scaling) == 1:
    bands = bands / np.float32(scaling[0])
  elif scaling:
    factor, low, high, length = scaling
    turns = length * bands / (2 * np.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)  # of a band as it is
    bands = bands * share + bands / factor * (1 - share)
  return xp.asarray(places, xp.float32)[..., None] * bands.astype(np.float32)


def relative_rows(grid: tuple[int, ...], *, prefix: bool) -> int:
  """Rows of a table of relative positions: one for each distance, three for a prefix."""
  return math.prod(2 * side - 1 for side in grid) + 3 * prefix


def relative_index(coords: Array, grid: tuple[int, ...], prefix: int, xp: ModuleType = np) -> Array:
  """Which row of a table of relative positions holds for each pair of tokens (BEiT).

  Args:
    coords: where patches are, (..., patches, axes).
    grid: of the table; see `relative_rows`. Distances beyond it count as its longest.
    prefix: tokens before the patches. The last three rows of the table are theirs: to any token,
      from any token, among themselves.
    xp: numpy or jax.numpy.

  Returns:
    int (..., tokens, tokens), from queries to keys.
  """
  longest = np.array(grid) - 1
  apart = coords[..., :, None, :] - coords[..., None, :, :]
  apart = xp.clip(apart + longest, 0, 2 * longest)
  index = apart[..., 0]
  for axis, side in enumerate(grid[1:], 1):
    index = index * (2 * side - 1) + apart[..., axis]
  if not prefix:
    return index
  special = relative_rows(grid, prefix=False)
  index = xp.pad(index, [(0, 0)] * (index.ndim - 2) + [(prefix, 0)] * 2)
  ours = np.arange(index.shape[-1]) < prefix
  query, key = ours[:, None], ours[None, :]
  of_prefix = np.where(query & key, special + 2, np.where(query, special, special + 1))
  return xp.where(query | key, of_prefix, index)


def resize_relative(table: Array, old: tuple[int, ...], new: tuple[int, ...]) -> Array:
  """A table of relative positions for another grid, interpolated bilinearly (MiDaS v3.1, BEiT)."""
  if tuple(old) == tuple(new):
    return table
  sides = [(2 * a - 1, 2 * b - 1) for a, b in zip(old, new, strict=True)]
  weights = (resize_weights(np.arange(b), b, a, 'bilinear') for a, b in sides)
  matrix = functools.reduce(np.kron, weights).astype(np.float32)
  count = matrix.shape[1]
  resized = jnp.einsum('nm,mh->nh', matrix, table[:count], precision='highest')
  return jnp.concatenate([resized, table[count:]])  # what is of the tokens before the patches stays
