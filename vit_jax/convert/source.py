"""An open checkpoint: its arrays by name, and the files next to them."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.convert.files import TYPES, Arrays
from vit_jax.core.errors import RunError
from vit_jax.nn import positions

INCEPTION = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclasses.dataclass
class Source:
  """An open checkpoint.

  Attributes:
    where: its path, for messages.
    arrays: by name.
    config: of config.json or open_clip_config.json next to it; empty if there is none.
    preprocessor: of preprocessor_config.json, likewise.
    hints: fields of the model's configuration that the caller knows better.
    dropped: names of arrays that are parameters of something else than the model.
    notes: what the reader had to replace by something near.
    computed: names of arrays that hold what the model computes by itself.
    tower: of several, that this is of.
  """

  where: str
  arrays: Arrays
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  preprocessor: dict[str, Any] = dataclasses.field(default_factory=dict)
  hints: dict[str, Any] = dataclasses.field(default_factory=dict)
  dropped: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  computed: list[str] = dataclasses.field(default_factory=list)
  tower: str = ''

  def inside(self, tower: str, arrays: Arrays | None = None) -> Source:
    """The same for one tower of several: with what the caller says of it, and its arrays."""
    arrays = self.arrays if arrays is None else arrays
    return dataclasses.replace(self, tower=tower, hints=self.hints.get(tower, {}), arrays=arrays)

  def behind(self, prefix: str, tower: str) -> Source:
    """`inside` of the arrays whose names begin with a prefix, which is taken off."""
    arrays = {n.removeprefix(prefix): a for n, a in self.arrays.items() if n.startswith(prefix)}
    return self.inside(tower, arrays)

  def __contains__(self, name: str) -> bool:
    return name in self.arrays

  def shape(self, name: str, ndim: int | None = None) -> tuple[int, ...]:
    """Of an array that must be there, and have `ndim` dimensions."""
    if name not in self.arrays:
      raise RunError(f'{self.where} lacks {name}')
    shape = self.arrays[name].shape
    if ndim is not None and len(shape) != ndim:
      raise RunError(f'{self.where}: {name} has shape {shape}, not {ndim} dimensions')
    if 0 in shape:
      raise RunError(f'{self.where}: {name} is empty')
    return shape

  def count(self, pattern: str) -> int:
    """How many numbers, from 0, `pattern` finds in the names; it must have one group."""
    numbers = {int(m[1]) for name in self.arrays if (m := re.match(pattern, name))}
    if numbers != set(range(len(numbers))):
      raise RunError(f'{self.where}: layers {sorted(numbers)} are not all there')
    return len(numbers)

  def integer(self, value: Any, name: str) -> int:
    """A whole number from a configuration file, at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise RunError(f'{self.where}: {name} is {value!r} in the configuration next to it')
    return value

  def heads(
    self, width: int, known: Any = None, *, special: dict[int, int] | None = None,
    tower: str = 'image',
  ) -> int:  # fmt: skip
    """Attention heads of a model of this width: from a hint, a configuration, or the usual one."""
    hint = self.hints.get(tower, {} if tower == 'text' else self.hints).get('num_heads', known)
    if hint is not None:
      return self.integer(hint, 'num_heads')
    heads = {32: 2, **HEADS, **(special or {})}.get(width) or (0 if width % 64 else width // 64)
    if not heads:
      whose = f'its {self.tower}' if self.tower else 'it'
      raise RunError(f'{self.where} does not say how many heads {whose} has: give num_heads')
    return heads

  def grid(self, rows: int, prefixes: dict[str, int], stride: int, size: Any = None):
    """Image size, and which tokens have learned positions, from the number of these.

    Args:
      rows: learned positions.
      prefixes: for each value of `posemb_tokens` how many rows it takes, likeliest first.
      stride: pixels from one patch to the next.
      size: height and width of images, if they are known.
    """
    hint = self.hints.get('image', self.hints).get('image_size')
    for known in (size, None, hint):  # what a configuration says may be wrong
      for tokens, prefix in prefixes.items():
        patches = rows - prefix
        if known and (known[0] // stride) * (known[1] // stride) == patches:
          return tuple(known), tokens
        side = math.isqrt(max(patches, 0))
        if not known and side and side * side == patches:
          return (side * stride, side * stride), tokens
    raise RunError(
      f'{self.where}: {rows} positions are not a square of patches: give image_size=(height, width)'
    )

  def fixed(self, name: str, grid: tuple[int, ...], *, zeros: bool = True) -> bool:
    """Whether positions are the fixed ones of MAE, which a model computes, unless told otherwise.

    Args:
      name: of the table, (1, tokens, features), the patches last.
      grid: these along each axis.
      zeros: whether the rows of the tokens before them must be zero.
    """
    shape, kind = self.shape(name, 3), self.arrays[name].dtype
    before = shape[1] - math.prod(grid)
    wanted = self.hints.get('posemb', 'sincos_mae') == 'sincos_mae'
    if not wanted or before < 0 or shape[2] % 4 or kind not in TYPES:
      return False
    table = np.asarray(self.arrays[name])
    if table.shape != shape:  # of what is not written yet
      return False
    own = positions.sincos(positions.grid_coords(*grid), shape[2], mae=True)
    # Some compute it in float32, and of half precision less is left.
    near = max(1e-5, float(ml_dtypes.finfo(kind).eps))
    same = np.abs(table[0, before:].astype(np.float32) - own).max() <= near
    return bool(same) and not (zeros and table[0, :before].any())


# Heads by width where they are not 64 wide.
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16, 4096: 32, 6144: 48}


def pair(value: Any) -> tuple[int, int] | None:
  """An image size, given as one number, two, or as a dict."""
  if isinstance(value, dict):
    if 'shortest_edge' in value:
      return pair(value['shortest_edge'])
    value = (value.get('height'), value.get('width'))
  if isinstance(value, int):
    return value, value
  if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, int) for v in value):
    return tuple(value)
  return None
