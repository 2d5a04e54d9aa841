"""What an encoder-only mask transformer is made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Self

from vit_jax.architecture.towers import OnImages
from vit_jax.architecture.vit import UNSET, ViTArchitecture
from vit_jax.core.errors import RunError


@dataclasses.dataclass(frozen=True)
class EomtArchitecture(OnImages):
  """A plain encoder whose last blocks see queries, too (EoMT, Kerssies et al. 2025).

  Each query says a class, or that it found nothing, and a mask: how much every place is like it.

  Attributes:
    encoder: without a head of its own, nor anything that pools; attention is full.
    queries: how many segments there may be.
    blocks: the last so many of the encoder see the queries.
    num_classes: of segments, besides nothing.
    upscale: how often rows and columns are doubled for masks; unset: once, or, with patches of 16
      and more pixels, so often that a cell of a mask is 4 pixels wide.
    pixel_head: while it is trained, a class for every cell of the masks is said as well.
  """

  kind: ClassVar[str] = 'eomt'
  reads: ClassVar[str] = 'queries say the classes'
  axes: ClassVar[str] = 'masks are of images of 2 axes'
  whole: ClassVar[str] = 'patches that are left out have no masks'
  main: ClassVar[str] = 'encoder'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  queries: int = 100
  blocks: int = 4
  num_classes: int = 0
  upscale: int = UNSET
  pixel_head: bool = False

  @property
  def says(self) -> tuple[str, ...]:
    """See `OnImages`."""
    return ('logits', 'masks')

  @property
  def grid(self) -> tuple[int, ...]:
    """Rows and columns of the masks."""
    return tuple(side * 2**self.upscale for side in self.encoder.grid)

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: queries, and the heads applied once."""
    encoder, queries = self.encoder, self.queries
    width, tokens = encoder.width, math.prod(encoder.grid) + encoder.prefix
    products = 2 * width * (encoder.query_width + encoder.key_width)
    products += (3 if encoder.gated else 2) * width * encoder.mlp_dim
    pairs = (tokens + queries) ** 2 - tokens**2
    more = self.blocks * (queries * products + 2 * encoder.query_width * pairs)
    return (('queries', queries * width, more), *self.heads, *self._pixels)

  @property
  def heads(self) -> tuple[tuple[str, int, int], ...]:
    """Parameters and multiply-adds of what makes classes and masks of tokens."""
    width, queries, cells = self.encoder.width, self.queries, math.prod(self.encoder.grid)
    classes, squares = self.num_classes + 1, 0
    for _ in range(self.upscale):
      squares += cells * 4 * width**2
      cells *= 4
    return (
      ('classes', width * classes + classes, queries * width * classes),
      ('mask_mlp', 3 * (width**2 + width), 3 * queries * width**2),
      ('upscale', self.upscale * (4 * width**2 + 12 * width), squares),
      ('masks', 0, queries * width * cells),
    )

  @property
  def deep(self) -> tuple[tuple[str, int, int], ...]:
    """What is computed besides while it is trained: heads before each of the last blocks."""
    cells = math.prod(self.grid) * self.encoder.width * self.num_classes * self.pixel_head
    again = tuple((name, 0, self.blocks * macs) for name, _, macs in self.heads)
    return (*again, ('pixels', 0, cells))

  @property
  def _pixels(self) -> tuple[tuple[str, int, int], ...]:
    weights = self.encoder.width * self.num_classes * self.pixel_head
    return (('pixels', weights + self.num_classes * self.pixel_head, 0),) if weights else ()

  def prepared(self) -> Self:
    """See `OnImages`: a class token that the variant has stays among the others."""
    return super(EomtArchitecture, super(OnImages, self).resolve()).prepared()

  def resolve(self) -> Self:
    """See `Composition`."""
    config = super().resolve()
    encoder = config.encoder
    if (
      encoder.attention != 'full' or encoder.relative_bias != 'none' or encoder.norm_place != 'pre'
    ):
      raise RunError(
        'model.encoder: queries have no place on the grid, and see what is normed: needed are '
        f'attention=full, relative_bias=none and norm_place=pre, not {encoder.attention}, '
        f'{encoder.relative_bias} and {encoder.norm_place}'
      )
    if config.queries < 1:
      raise RunError(f'model.queries={config.queries} must be at least 1')
    if not 1 <= config.blocks <= encoder.depth:
      raise RunError(f'model.blocks={config.blocks} must be from 1 to the depth, {encoder.depth}')
    upscale = config.upscale
    if upscale is None:
      upscale = max(1, math.floor(math.log2(max(encoder.stride))) - 2)
    if upscale < 0:
      raise RunError(f'model.upscale={upscale} must not be negative')
    return dataclasses.replace(config, upscale=upscale)
