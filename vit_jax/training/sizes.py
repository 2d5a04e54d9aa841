"""Sizes of images and patches that change from step to step."""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.architecture import SINGLE, ViTArchitecture
from vit_jax.core.errors import RunError, suggest

ORDERS = ('random', 'stages')
_KEY = zlib.crc32(b'sizes')


@dataclasses.dataclass(frozen=True)
class SizesConfig:
  """Sizes that a run trains on, besides those of its model: a compiled program for each.

  Parameters are those of model.image_size and model.patch_size throughout; where a step has other
  sizes, positions and the embedding of patches are resampled in it, and learn through that. The
  batch has the same number of images at each size.

  Attributes:
    images: sides of the images in pixels; none for those of the model.
    patches: sides of the patches (FlexiViT, Beyer et al. 2023); none for those of the model.
    order: 'random', every step draws one of the images and one of the patches, each equally likely
      and the same whatever the seed is; 'stages', the run is cut into stages of equal length, which
      have one after the other (progressive resizing; Tan & Le 2021, section 4), of images and of
      patches at the same time where both are given.
  """

  images: tuple[int, ...] = ()
  patches: tuple[int, ...] = ()
  order: str = 'random'

  def __post_init__(self):
    for name in ('images', 'patches'):
      value = getattr(self, name)
      if any(side < 1 for side in value) or len(set(value)) < len(value):
        raise RunError(f'sizes.{name}={value} must be different sides of at least 1 pixel')
    if self.order not in ORDERS:
      raise RunError(f'unknown sizes.order {self.order!r}: {suggest(self.order, ORDERS)}')
    counts = {len(value) for value in (self.images, self.patches) if len(value) > 1}
    if self.order == 'stages' and len(counts) > 1:
      raise RunError(
        f'sizes.order=stages needs as many images as patches, found {self.images} and '
        f'{self.patches}'
      )

  @property
  def every(self) -> list[dict[str, int]]:
    """What differs from the model in the steps of each program; one without, if nothing does."""
    images = [{'image_size': side} for side in self.images] or [{}]
    patches = [{'patch_size': side} for side in self.patches] or [{}]
    if self.order == 'random':
      return [image | patch for image, patch in itertools.product(images, patches)]
    count = max(len(images), len(patches))
    images, patches = (each * count if len(each) == 1 else each for each in (images, patches))
    return [image | patch for image, patch in zip(images, patches, strict=True)]

  def check(self, model: Any, task: Any) -> None:
    """Raises RunError for models and tasks whose images and patches have no such sizes."""
    if not (self.images or self.patches):
      return
    if self.images and not task.one_size:
      raise RunError(f'sizes.images={self.images}: each image of this task has a size of its own')
    if not isinstance(model, SINGLE) or len(model.image_size) != 2:
      raise RunError(f'sizes are of models of one tower for flat images, not of a {model.kind}')
    if self.patches and not isinstance(model, ViTArchitecture):
      raise RunError(f'sizes.patches={self.patches}: a {model.kind} has no patches to be resampled')

  def described(self, models: Sequence[Any], total: int) -> str:
    """A line about the sizes of `models`, those of `every`."""
    names = list(map(shown, models))
    if self.order == 'random':
      return f'sizes: each step draws one of {", ".join(names)}'
    ends = itertools.accumulate(self.shares(total))
    stages = zip(names, ends, strict=True)
    return 'sizes: ' + ', '.join(f'{name} up to step {round(end * total)}' for name, end in stages)

  def at(self, step: int, total: int) -> int:
    """Which of `every` step number `step` has, of a run of `total` steps."""
    count = len(self.every)
    if count == 1:
      return 0
    if self.order == 'stages':
      return min(step * count // total, count - 1)
    return int(np.random.default_rng((_KEY, step)).integers(count))

  def shares(self, total: int) -> list[float]:
    """How much of a run has each of `every`; expected, where it is random."""
    count = len(self.every)
    if self.order == 'random':
      return [1 / count] * count
    ends = [-(-total * stage // count) for stage in range(count + 1)]  # at which stages begin
    return [(last - first) / total for first, last in itertools.pairwise(ends)]


def shown(model: Any) -> str:
  """Images, and of a Vision Transformer patches and tokens."""
  sides = 'x'.join(map(str, model.image_size))
  if not isinstance(model, ViTArchitecture):
    return sides
  return f'{sides} in patches of {model.patch[0]} ({math.prod(model.grid) + model.prefix} tokens)'
