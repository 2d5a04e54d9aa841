"""Which tokens of a grid attend to which, layer by layer, as a word: 't+hw', 'h14w14,h14w14,full'.

- `,` separates layers; shorter patterns are repeated over the depth of a model.
- `+` separates attentions that one layer does one after another, each with weights of its own:
  't+hw' is the divided space-time attention of TimeSformer (Bertasius et al. 2021).
- `|` separates what equal shares of the heads do: 't|hw' is the factorised dot-product attention of
  ViViT (Arnab et al. 2021, section 3.3, model 4).
- 'full': every token attends to every other.
- Letters name axes of the grid, of which t is the first of three (frames, or slices of a volume), h
  and w the last two: tokens attend along these, to those at the same place on the others. 'h+w' is
  axial attention (Ho et al. 2019).
- A number after a letter is the size of a window on that axis, in patches: 'h14w14' is what most
  layers of ViTDet do (Li et al. 2022, section 3). The last window may be smaller.
- `~1` after windows: keys are also those of the windows around it, up to so many away.
- 'memory': tokens attend to those of another model instead, as decoders do: 'full+memory' is a
  decoder of Vaswani et al. 2017 or of DETR (Carion et al. 2020), 'memory+full' one of Mask2Former.
- `*` at the end: the tokens before the patches take part, in every group, and get the mean of what
  they get there, as TimeSformer's class token in space. Without it they get nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re

from vit_jax.core.errors import RunError

AXES = 'thw'
_PART = re.compile(r'((?:[thw]\d*)+)(?:~(\d+))?(\*?)')


@dataclasses.dataclass(frozen=True)
class Part:
  """What one share of the heads attends to.

  Attributes:
    windows: size of the window on each axis of the grid, 0 where attention goes along all of it,
      None where it does not go along it. None for every token, those before the patches included.
    near: windows on each side whose keys are seen, too.
    prefix: whether the tokens before the patches take part.
    memory: whether it is to a memory; the rest is as of every token then.
  """

  windows: tuple[int | None, ...] | None = None
  near: int = 0
  prefix: bool = True
  memory: bool = False

  def sizes(self, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Of a group of queries, in patches on each axis of the grid."""
    windows = self.windows or (0,) * len(grid)
    sides = zip(windows, grid, strict=True)
    return tuple(1 if window is None else min(window or side, side) for window, side in sides)

  def counts(self, grid: tuple[int, ...]) -> tuple[int, ...]:
    """How many groups there are along each axis."""
    return tuple(-(-side // size) for side, size in zip(grid, self.sizes(grid), strict=True))

  def tokens(self, grid: tuple[int, ...], prefix: int) -> tuple[int, int, int]:
    """How many groups there are in an image, and of each the queries and the keys.

    Args:
      grid: of patches.
      prefix: tokens before them.
    """
    extra, sizes = prefix * self.prefix, self.sizes(grid)
    keys = math.prod(size * r for size, r in zip(sizes, self.reach(grid), strict=True))
    return math.prod(self.counts(grid)), math.prod(sizes) + extra, keys + extra

  def partial(self, grid: tuple[int, ...]) -> bool:
    """Whether some groups have fewer keys than others, and are filled up."""
    sides = zip(self.counts(grid), self.sizes(grid), grid, strict=True)
    return self.near > 0 or any(count * size != side for count, size, side in sides)

  def reach(self, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Of how many groups along each axis a query sees keys."""
    windows = self.windows or (0,) * len(grid)
    near = 2 * self.near + 1
    return tuple(near if window else 1 for window in windows)


# Attentions of a layer, one after another; of each what equal shares of its heads do.
Layer = tuple[tuple[Part, ...], ...]
FULL: Layer = ((Part(),),)


def parse(
  pattern: str, axes: int, num_heads: int, depth: int, *, kv_heads: int = 0, memory: bool = False
) -> tuple[Layer, ...]:
  """The layers of a pattern, as many as are repeated.

  Args:
    pattern: see the module.
    axes: of the grid, 1 to 3.
    num_heads: that `|` divides.
    depth: of the model, a multiple of the number of layers in the pattern.
    kv_heads: of keys and values, if they are not as many; `|` divides them, too.
    memory: whether there is one.

  Raises:
    RunError: if it is not one, or does not fit the model.
  """
  wrong = f'model.attention={pattern!r}'
  layers = tuple(
    tuple(
      tuple(_part(word, axes, wrong) for word in attention.split('|'))
      for attention in layer.split('+')
    )
    for layer in pattern.split(',')
  )
  for layer in layers:
    for shares in layer:
      for heads in (num_heads, kv_heads):
        if heads % len(shares):
          raise RunError(f'{wrong}: num_heads and kv_heads must be divisible by {len(shares)}')
      if len(shares) > 1 and any(part.memory for part in shares):
        raise RunError(f'{wrong}: heads that attend to the memory cannot share a layer with others')
  if len({len(layer) for layer in layers}) > 1:
    raise RunError(f'{wrong}: all layers must have equally many attentions, one after another')
  places = {tuple(shares[0].memory for shares in layer) for layer in layers}
  if len(places) > 1:
    raise RunError(f'{wrong}: all layers must attend to the memory in the same place')
  if memory != any(places.pop()):
    raise RunError(
      f'{wrong} does not attend to the memory that there is: write full+memory'
      if memory else f'{wrong}: this model has no memory to attend to'
    )  # fmt: skip
  if depth % len(layers):
    raise RunError(f'{wrong}: depth={depth} is not a multiple of its {len(layers)} layers')
  return layers


def on_grid(layers: tuple[Layer, ...]) -> bool:
  """Whether some attention is along axes of a grid."""
  return any(part.windows for layer in layers for shares in layer for part in shares)


def _part(word: str, axes: int, wrong: str) -> Part:
  if word in ('full', 'memory'):
    return Part(memory=word == 'memory')
  match = _PART.fullmatch(word)
  if not match:
    raise RunError(
      f'{wrong}: {word!r} is neither full nor axes out of {AXES[-axes:]!r}, such as h14w14'
    )
  named, near, star = match.groups()
  found = re.findall(r'([thw])(\d*)', named)
  names = [name for name, _ in found]
  if len(set(names)) < len(names) or not set(names) <= set(AXES[-axes:]):
    raise RunError(f'{wrong}: {named!r} must name axes out of {AXES[-axes:]!r}, each at most once')
  sizes = {name: int(size or 0) for name, size in found}
  if any(size == '0' for _, size in found):
    raise RunError(f'{wrong}: a window of 0 patches')
  if near and not any(sizes.values()):
    raise RunError(f'{wrong}: {word!r} has no windows to be near to')
  windows = tuple(sizes.get(name) for name in AXES[-axes:])
  return Part(windows, int(near or 0), bool(star))
