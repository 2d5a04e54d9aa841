"""What models that learn from a teacher of their own are made of, in plain Python."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar, Self

from vit_jax.architecture.towers import Composition
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError, suggest

PATCH_HEADS = ('none', 'shared', 'separate')


@dataclasses.dataclass(frozen=True)
class DinoArchitecture(Composition):
  """An encoder, and a head that compares its class token with prototypes (Caron et al. 2021).

  A head is an MLP with GELU, of which the last layer is a bottleneck whose features are brought to
  length 1, and a product with prototypes of length 1.

  Attributes:
    encoder: without a head of its own, with a class token.
    prototypes: of the head.
    hidden: width of its MLP.
    bottleneck: its outputs.
    layers: of the MLP, the bottleneck included.
    scaled: whether each prototype is multiplied by a learned number, as in DINOv2 (Oquab et al.
      2024); DINO calls it norm_last_layer=False.
    patch_head: what reads patches that are hidden from the student: 'none', the same head
      ('shared', Zhou et al. 2022), or one of its own ('separate').
    patch_prototypes: of a separate head; unset: as many.
    patch_bottleneck: likewise.
  """

  kind: ClassVar[str] = 'dino'
  main: ClassVar[str] = 'encoder'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  prototypes: int = 65536
  hidden: int = 2048
  bottleneck: int = 256
  layers: int = 3
  scaled: bool = False
  patch_head: str = 'none'
  patch_prototypes: int = 0
  patch_bottleneck: int = 0

  @property
  def image_size(self) -> Any:
    """Sides of the images."""
    return self.encoder.image_size

  @property
  def sizes(self) -> dict[str, tuple[int, int]]:
    """Of each head, by the name that it has in the model, its bottleneck and its prototypes."""
    own = self.bottleneck, self.prototypes
    found = {'head': own}
    if self.patch_head == 'separate':
      found['patch_head'] = self.patch_bottleneck or own[0], self.patch_prototypes or own[1]
    return found

  def widths(self, bottleneck: int) -> tuple[int, ...]:
    """Of the MLP of a head, its input first."""
    return self.encoder.width, *(self.hidden,) * (self.layers - 1), bottleneck

  def products(self, name: str) -> int:
    """Multiply-adds of a head for a token."""
    bottleneck, prototypes = self.sizes[name]
    widths = self.widths(bottleneck)
    return sum(a * b for a, b in itertools.pairwise(widths)) + bottleneck * prototypes

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: heads, of which the one of patches has its products in `Task.passes`."""
    found = []
    for name, (bottleneck, prototypes) in self.sizes.items():
      weights = self.products(name) + sum(self.widths(bottleneck)[1:]) + self.scaled * prototypes
      found.append((name, weights, self.products(name) if name == 'head' else 0))
    return tuple(found)

  def resolve(self) -> Self:
    """See `Composition`."""
    if self.patch_head not in PATCH_HEADS:
      raise RunError(
        f'unknown model.patch_head {self.patch_head!r}: {suggest(self.patch_head, PATCH_HEADS)}'
      )
    for name in ('prototypes', 'hidden', 'bottleneck', 'layers'):
      if getattr(self, name) < 1:
        raise RunError(f'model.{name}={getattr(self, name)} must be at least 1')
    for name in ('patch_prototypes', 'patch_bottleneck'):
      if getattr(self, name) < 0 or (getattr(self, name) and self.patch_head != 'separate'):
        raise RunError(f'model.{name}={getattr(self, name)} is of model.patch_head=separate')
    encoder = dataclasses.replace(
      self.encoder, representation_size=0, pool_norm=False, mask_token=self.patch_head != 'none'
    )
    config = super(DinoArchitecture, dataclasses.replace(self, encoder=encoder)).resolve()
    encoder = config.encoder
    if encoder.num_classes:
      raise RunError('model.encoder.num_classes: the head is that of the model: leave it out')
    if not encoder.class_token:
      raise RunError('model.encoder.class_token=False: the head reads the class token')
    if encoder.stem_width and config.patch_head != 'none':
      raise RunError('a convolutional stem sees what is hidden: use model.encoder without one')
    return config
