"""What models that give each pixel a class are made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Self

from vit_jax.architecture import pyramid
from vit_jax.architecture.towers import OnImages
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError, suggest


@dataclasses.dataclass(frozen=True)
class SegmenterArchitecture(OnImages):
  """An encoder with a linear head on its patches (Strudel et al. 2021, section 3.2, 'linear').

  Attributes:
    encoder: without a head of its own, nor anything that pools.
    num_classes: of each pixel.
  """

  kind: ClassVar[str] = 'segmenter'
  reads: ClassVar[str] = 'the head is on the patches'
  axes: ClassVar[str] = 'a segmenter is for images of 2 axes'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  num_classes: int = 0

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: the head."""
    weights = self.encoder.width * self.num_classes
    return (('head', weights + self.num_classes, weights * math.prod(self.encoder.grid)),)


@dataclasses.dataclass(frozen=True)
class MaskTransformerArchitecture(SegmenterArchitecture):
  """An encoder, and a decoder in which a token for each class attends to patches, and they to it.

  'Segmenter' with its mask transformer (Strudel et al. 2021, section 3.2): the logit of a class is
  the cosine between its token and a patch, and logits are normed over classes.

  Attributes:
    encoder, num_classes: see `SegmenterArchitecture`.
    decoder: a ViT whose image is the grid of the encoder's patches, with a query for each class.
      What is not given is as in Segmenter: 2 blocks as wide as the encoder, heads of 64 features.
  """

  kind: ClassVar[str] = 'mask_transformer'
  decoder: ViTArchitecture = dataclasses.field(default_factory=lambda: ViTArchitecture(''))

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: both projections, and the norm."""
    width, patches = self.decoder.width, math.prod(self.encoder.grid)
    products = patches * self.num_classes * width
    return (
      ('projections', 2 * width**2, (patches + self.num_classes) * width**2),
      ('classes', 2 * self.num_classes, products),
    )

  def prepared(self) -> Self:
    """See `OnImages`."""
    config = super().prepared()
    encoder, decoder = config.encoder.resolve(), config.decoder
    width = encoder.width if decoder.width is None else decoder.width
    usual: dict[str, Any] = dict(
      width=width, depth=2, mlp_dim=4 * width, num_heads=max(1, width // 64), mlp='gelu',
      posemb='none', eps=1e-5,
    )  # fmt: skip
    decoder = dataclasses.replace(
      decoder, patch_size=1, image_size=encoder.grid, in_channels=encoder.width, pool='mean',
      pool_norm=False, class_token=False, queries=self.num_classes, dtype=encoder.dtype,
      **{name: value for name, value in usual.items() if getattr(decoder, name) is None},
    )  # fmt: skip
    if decoder.num_classes or decoder.patch_dropout:
      raise RunError('model.decoder has neither classes nor patch_dropout: leave them out')
    return dataclasses.replace(config, decoder=decoder)


NORMS = ('group', 'none')


@dataclasses.dataclass(frozen=True)
class UPerNetArchitecture(SegmenterArchitecture):
  """An encoder, a pyramid of features of four of its blocks, and convolutions on it.

  UPerNet (Xiao et al. 2018) on a plain Vision Transformer as in BEiT (Bao et al. 2022) and MAE: of
  patches of 16 pixels the pyramid has strides of 4, 8, 16 and 32. Logits are of the finest.

  Attributes:
    encoder, num_classes: see `SegmenterArchitecture`. Its last norm is not used.
    layers: blocks whose outputs are taken, counted from 0, from the finest level to the coarsest;
      empty for the ends of four equal parts of the encoder.
    channels: of convolutions.
    bins: sides of the grids that the coarsest level is averaged on (Zhao et al. 2017).
    auxiliary: weight in the loss of a second, small head on the third level, which predicts nothing
      later; 0 for none.
    auxiliary_channels: of its convolution.
    norm: behind convolutions, 'group', of 32 groups (Wu & He 2018), or 'none', where each has a
      bias instead: published models, whose batch norms are constants and become a part of these.
  """

  kind: ClassVar[str] = 'upernet'
  layers: tuple[int, ...] = ()
  channels: int = 512
  bins: tuple[int, ...] = (1, 2, 3, 6)
  auxiliary: float = 0.4
  auxiliary_channels: int = 256
  norm: str = 'group'

  @property
  def levels(self) -> list[tuple[int, int]]:
    """Rows and columns of each level of the pyramid."""
    rows, columns = self.encoder.grid
    return [
      (4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), (rows // 2, columns // 2)
    ]  # fmt: skip

  @property
  def convolutions(self) -> dict[str, pyramid.Convolution]:
    """Those on the pyramid, by name."""
    width, many = self.encoder.width, self.channels
    places = [rows * columns for rows, columns in self.levels]
    found = {f'bin{bin}': (1, width, many, True, bin * bin) for bin in self.bins}
    context = width + many * len(self.bins)
    found['context'] = (3, context, many, True, places[3])
    for level in range(3):
      found[f'lateral{level}'] = (1, width, many, True, places[level])
      found[f'smooth{level}'] = (3, many, many, True, places[level])
    found['fuse'] = (3, 4 * many, many, True, places[0])
    found['head'] = (1, many, self.num_classes, False, places[0])
    if self.auxiliary:
      found['auxiliary'] = (3, width, self.auxiliary_channels, True, places[2])
      found['auxiliary_head'] = (1, self.auxiliary_channels, self.num_classes, False, places[2])
    return found

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: convolutions, and products that resize."""
    resized, encoder = 0, self.encoder
    every = pyramid.ups(encoder.width, encoder.grid) | self.convolutions
    found = pyramid.costs(every, norm=self.norm == 'group')
    for have, want in self.resizes:
      resized += have[1] * want[0] * have[0] + want[0] * want[1] * have[1]
    return (*found, ('resizing', 0, resized * self.channels + self._averaged))

  @property
  def resizes(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """From which grid to which features are interpolated."""
    levels = self.levels
    pairs = [((bin, bin), levels[3]) for bin in self.bins]
    pairs += [(levels[i + 1], levels[i]) for i in range(3)] + [
      (levels[i], levels[0]) for i in (1, 2, 3)
    ]
    return [(have, want) for have, want in pairs if have != want]

  @property
  def _averaged(self) -> int:
    """Multiply-adds of averages on grids."""
    rows, columns = self.levels[3]
    return sum(bin * columns * (rows + bin) for bin in self.bins) * self.encoder.width

  def resolve(self) -> Self:
    """See `Composition`."""
    config = super().resolve()
    depth = config.encoder.depth
    layers = config.layers or tuple(depth * (i + 1) // 4 - 1 for i in range(4))
    if len(layers) != 4 or not all(0 <= layer < depth for layer in layers):
      raise RunError(
        f'model.layers={layers}: a pyramid is of four blocks, counted from 0, of the {depth} that '
        'the encoder has'
      )
    if config.norm not in NORMS:
      raise RunError(f'unknown model.norm {config.norm!r}: {suggest(config.norm, NORMS)}')
    if min(config.channels, config.auxiliary_channels, *config.bins) < 1 or config.auxiliary < 0:
      raise RunError('model.channels, model.bins and model.auxiliary of a pyramid are positive')
    if min(config.encoder.grid) < 2:
      raise RunError(f'a pyramid needs at least 2 x 2 patches, not {config.encoder.grid}')
    return dataclasses.replace(config, layers=layers)
