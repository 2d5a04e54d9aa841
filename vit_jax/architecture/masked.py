"""What models that fill in hidden patches are made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Self

from vit_jax.architecture.towers import Composition
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError


@dataclasses.dataclass(frozen=True)
class MaskedArchitecture(Composition):
  """An encoder that sees a mask token for each hidden patch, and a linear head on every patch.

  As in masked patch prediction (Dosovitskiy et al. 2021, B.1.2), SimMIM (Xie et al. 2022) and BEiT
  (Bao et al. 2022).

  Attributes:
    encoder: without a head of its own, nor anything that pools.
    outputs: of each patch. Training replaces 0 by what the task has to predict.
  """

  kind: ClassVar[str] = 'masked'
  main: ClassVar[str] = 'encoder'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  outputs: int = 0

  @property
  def image_size(self) -> tuple[int, ...]:
    """Sides of the images."""
    return self.encoder.image_size

  @property
  def reader(self) -> ViTArchitecture:
    """The tower whose tokens the head reads."""
    return self.encoder

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: the head."""
    weights = self.reader.width * self.outputs
    return (('head', weights + self.outputs, weights * math.prod(self.encoder.grid)),)

  def resolve(self) -> Self:
    """See `Composition`."""
    if self.outputs < 0:
      raise RunError(f'model.outputs={self.outputs} must not be negative')
    config = super(MaskedArchitecture, self._prepared()).resolve()
    encoder = config.encoder
    if encoder.num_classes:
      raise RunError('model.encoder.num_classes: the head is on the patches: leave it out')
    if encoder.patch_dropout:
      raise RunError('model.encoder.patch_dropout: the task says which patches are hidden')
    if encoder.stem_width:
      raise RunError('a convolutional stem sees what is hidden: use model.encoder without one')
    return config

  def _prepared(self) -> Self:
    """With a mask token; nothing is pooled, and the norm is behind the last block."""
    encoder = dataclasses.replace(
      self.encoder, mask_token=True, representation_size=0, pool_norm=False
    )
    return dataclasses.replace(self, encoder=encoder)


@dataclasses.dataclass(frozen=True)
class MaeArchitecture(MaskedArchitecture):
  """An encoder that sees what is not hidden, and nothing else, and a decoder of all patches.

  A masked autoencoder (He et al. 2022).

  Attributes:
    encoder: see `MaskedArchitecture`.
    outputs: likewise.
    decoder: a ViT whose image is the grid of the encoder's tokens. Its patches, channels and size
      follow from the encoder, and so whether there is a class token; what is not given else is as
      in MAE: 8 blocks of 512 features and 16 heads, with fixed positions.
  """

  kind: ClassVar[str] = 'mae'
  decoder: ViTArchitecture = dataclasses.field(default_factory=lambda: ViTArchitecture(''))

  @property
  def reader(self) -> ViTArchitecture:
    """See `MaskedArchitecture`."""
    return self.decoder

  def _prepared(self) -> Self:
    encoder = dataclasses.replace(
      self.encoder, mask_token=False, representation_size=0, pool_norm=False
    ).resolve()
    if encoder.attention != 'full':
      raise RunError(
        f'model.encoder.attention={encoder.attention!r}: what is left of the patches is no grid'
      )
    usual: dict[str, Any] = dict(width=512, depth=8, num_heads=16, posemb='sincos_mae', mlp='gelu')
    decoder = dataclasses.replace(
      self.decoder, patch_size=1, image_size=encoder.grid, in_channels=encoder.width,
      class_token=encoder.class_token, pool='token' if encoder.class_token else 'mean',
      pool_norm=False, mask_token=True, dtype=encoder.dtype,
      **{name: value for name, value in usual.items() if getattr(self.decoder, name) is None},
    )  # fmt: skip
    if decoder.mlp_dim is None:
      decoder = dataclasses.replace(decoder, mlp_dim=4 * decoder.width)
    if decoder.num_classes or decoder.patch_dropout:
      raise RunError('model.decoder has neither classes nor patch_dropout: leave them out')
    return dataclasses.replace(self, encoder=encoder, decoder=decoder)
