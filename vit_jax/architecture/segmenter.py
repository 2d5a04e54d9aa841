"""What a model that gives each pixel a class is made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Self

from vit_jax.architecture.towers import Composition
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError


@dataclasses.dataclass(frozen=True)
class SegmenterArchitecture(Composition):
  """An encoder with a linear head on its patches (Strudel et al. 2021, section 3.2, 'linear').

  Attributes:
    encoder: without a head of its own, nor anything that pools.
    num_classes: of each pixel.
  """

  kind: ClassVar[str] = 'segmenter'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  num_classes: int = 0

  @property
  def image_size(self) -> tuple[int, ...]:
    """Height and width of the images."""
    return self.encoder.image_size

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: the head."""
    weights = self.encoder.width * self.num_classes
    return (('head', weights + self.num_classes, weights * math.prod(self.encoder.grid)),)

  def resolve(self) -> Self:
    """See `Composition`."""
    if self.num_classes < 0:
      raise RunError(f'model.num_classes={self.num_classes} must not be negative')
    if self.encoder.num_classes:
      raise RunError('model.encoder.num_classes: the head is on the patches: leave it out')
    # Nothing is pooled: what would do so has no parameters, and of tokens one stays where it was.
    encoder = dataclasses.replace(self.encoder, pool='mean', representation_size=0, pool_norm=False)
    config = super(SegmenterArchitecture, dataclasses.replace(self, encoder=encoder)).resolve()
    if len(config.image_size) != 2:
      raise RunError(
        f'model.encoder.image_size={config.image_size}: a segmenter is for images of 2 axes'
      )
    return config
