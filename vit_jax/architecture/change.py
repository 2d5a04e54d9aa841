"""What a model is made of that gives pixels a class by two pictures of a place, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Self

from vit_jax.architecture import variants
from vit_jax.architecture.towers import OnImages
from vit_jax.architecture.vit import EncoderConfig, ViTArchitecture
from vit_jax.core.errors import RunError, suggest

DATES = 2
# By which features patches are compared, and how many times the width of the encoder these are.
COMPARED = {'both': 3, 'symmetric': 2, 'tokens': 1}


@dataclasses.dataclass(frozen=True)
class ChangeArchitecture(OnImages):
  """One encoder for both dates, and a linear head on what its patches are at each of them.

  Attributes:
    encoder: without a head of its own, nor anything that pools.
    num_classes: of each pixel.
    compare: what the head sees of the features f and g of a patch: 'both' f, g and |f - g|;
      'symmetric' f + g and |f - g|, so that it says the same of dates that are swapped; 'tokens'
      |f - g| of features that have looked at a few tokens of both dates, symmetric, too; see
      `models.change.Tokens`.
    detail: logits of a patch in each direction; more give sharper edges.
    tokens: of each date, with compare='tokens'.
    depth: how often patches look at these.
    located: whether the first logit of a pixel is of the first date alone, by a head of its own.
  """

  kind: ClassVar[str] = 'change'
  reads: ClassVar[str] = 'the head is on the patches'
  axes: ClassVar[str] = 'pictures of two dates have two axes each'
  whole: ClassVar[str] = 'patches that are left out have no classes'
  sized: ClassVar[bool] = True
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  num_classes: int = 0
  compare: str = 'symmetric'
  detail: int = 1
  tokens: int = 4
  depth: int = 2
  located: bool = False

  @property
  def compared(self) -> int:
    """Features that the head sees of a patch."""
    return COMPARED[self.compare] * self.encoder.width

  @property
  def outputs(self) -> int:
    """Logits of a patch that are of both dates."""
    return (self.num_classes - self.located) * self.detail**2

  def stack(self, depth: int, attention: str) -> EncoderConfig:
    """Blocks that are like those of the encoder, but for their depth and what they attend to."""
    own = {name: getattr(self.encoder, name) for name in ('width', 'num_heads', 'dtype', 'scan')}
    config = EncoderConfig(
      **own, depth=depth, mlp_dim=2 * self.encoder.width, attention=attention,
      remat=self.encoder.remat,
    )  # fmt: skip
    return config.filled(variants.ENCODER)

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: the heads, and what is around tokens of the dates.

    The second pass of the encoder is not among them.
    """
    patches, width = math.prod(self.encoder.grid), self.encoder.width
    found = [('head', self.compared, self.outputs)]
    if self.located:
      found.append(('locate', width, self.detail**2))
    heads = tuple((name, (n + 1) * out, n * out * patches) for name, n, out in found)
    if self.compare != 'tokens':
      return heads
    # Of a block: four matrices of attention and two of the MLP, with biases, and two norms.
    block, norm = 8 * width**2 + 11 * width, 2 * width
    asked, every = DATES * patches, DATES * self.tokens
    pick = width * self.tokens * asked
    mix = every * 8 * width**2 + 2 * every**2 * width
    read = asked * 6 * width**2 + every * 2 * width**2 + 2 * asked * self.tokens * width
    return (
      ('pick', (width + 1) * self.tokens, 2 * pick),
      ('mixer', self.tokens * width + block + norm, mix),
      ('reader', self.depth * block + norm, self.depth * read), *heads,
    )  # fmt: skip

  def resolve(self) -> Self:
    """See `Composition`."""
    if self.compare not in COMPARED:
      raise RunError(f'unknown model.compare {self.compare!r}: {suggest(self.compare, COMPARED)}')
    if min(self.detail, self.tokens, self.depth) < 1:
      raise RunError(
        'model.name=change needs detail, tokens and depth at least 1: '
        f'{self.detail}, {self.tokens}, {self.depth}'
      )
    config = super().resolve()
    if config.compare == 'tokens' and config.encoder.mup_width:
      raise RunError("model.encoder.mup_width: no rule for model.compare='tokens'")
    return config
