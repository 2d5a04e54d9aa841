"""What detectors whose queries ask an image for objects are made of, in plain Python."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, ClassVar, Self

from vit_jax.architecture import pyramid, variants
from vit_jax.architecture.pattern import parse
from vit_jax.architecture.towers import OnImages
from vit_jax.architecture.vit import OPTIONS, UNSET, EncoderConfig, ViTArchitecture
from vit_jax.core.errors import RunError

ANCHORS = ('none', 'learned', 'tokens')
DECODER_OPTIONS = {
  **OPTIONS, 'anchors': ANCHORS, 'relative_bias': ('none',), 'rope_pairs': ('halves',)
}  # fmt: skip
# What DETR's decoder has (Carion et al. 2020, section 4 and appendix A.4).
_DETR: dict[str, Any] = dict(
  width=256, depth=6, num_heads=8, mlp='relu', eps=1e-5, norm_place='post', attention='full+memory',
  queries=100, anchors='none', denoising=False, masks=False, nothing=True,
)  # fmt: skip
_TOKENS = 25 * 34


@dataclasses.dataclass(frozen=True)
class DecoderArchitecture(EncoderConfig):
  """Queries that attend to each other and to tokens of an image, and say a box and a class each.

  What is not given is as in DETR: 100 queries without anchors, before a softmax; 6 blocks of 256
  features and 8 heads, MLPs 8 times as wide.

  Attributes:
    queries: objects that it can say.
    anchors: where queries look from the start. 'none': each has a learned position, and says a box
      out of nothing (DETR, Carion et al. 2020). 'learned': each has a box, which is its position
      and is corrected in every layer (DAB-DETR, Liu et al. 2022). 'tokens': boxes and contents are
      those of the tokens that seem most like an object by a head of their own, whose answers are
      a layer before the first (the two stages of Deformable DETR, Zhu et al. 2021, section 4.2).
    denoising: whether classes have embeddings, from which queries of noisy boxes are made that
      training adds (DN-DETR, Li et al. 2022). Needs anchors.
    masks: whether each query says a mask, too, by where it looks, and by convolutions of that and
      of features up a pyramid (DETR, section 4.4).
    num_classes: of objects.
    nothing: whether there is a logit more, the last, of no object, as a softmax needs it.
    memory: tokens that are attended to, and features of each: follow from the encoder. Of a decoder
      alone those of DETR for images of 800x1088.
  """

  kind: ClassVar[str] = 'decoder'
  queries: int = UNSET
  anchors: str = UNSET
  denoising: bool = UNSET
  masks: bool = UNSET
  num_classes: int = 0
  nothing: bool = UNSET
  memory: tuple[int, int] = (0, 0)

  @property
  def outputs(self) -> int:
    """Logits of a query."""
    return outputs(self)

  @property
  def layers(self) -> int:
    """Answers to each query: of tokens before the first layer, and of all layers."""
    return self.depth + (self.anchors == 'tokens')

  @property
  def heads(self) -> dict[str, tuple[int, ...]]:
    """What reads single tokens, by name: widths of each, those of the input first."""
    width = self.width
    found = {'head': (width, self.outputs), 'boxes': (width, width, width, 4)}
    if self.anchors == 'tokens':
      found |= {f'token_{name}': widths for name, widths in found.items()}
    if self.anchors != 'none':
      found['place'] = 2 * width, width, width
    return found

  @property
  def times(self) -> dict[str, int]:
    """How many tokens each of `heads` reads."""
    every = self.depth * self.queries
    return {
      'head': every, 'boxes': every, 'place': every, 'token_head': self.memory[0],
      'token_boxes': self.queries,
    }  # fmt: skip

  @property
  def levels(self) -> tuple[int, int, int]:
    """Features of what is added to those of masks, from the coarsest grid to the finest."""
    return self.width // 2, self.width // 4, self.width // 8

  @property
  def convolutions(self) -> dict[str, pyramid.Convolution]:
    """Those of masks by name, in the order in which they are computed."""
    width, tokens = self.width, self.memory[0]
    places, merged = self.queries * tokens, width + self.num_heads
    half, quarter, eighth = self.levels
    last = max(1, width // 16)
    return {
      'features': (3, width, merged, False, tokens),
      'maps': (3, self.num_heads, merged, True, places), 'merge': (3, merged, half, True, places),
      'refine0': (3, half, quarter, True, places),
      'refine1': (3, quarter, eighth, True, 4 * places),
      'refine2': (3, eighth, last, True, 16 * places), 'out': (3, last, 1, False, 16 * places),
    }  # fmt: skip

  def resolve(self) -> Self:
    """This configuration with everything filled in and checked; raises RunError."""
    width = self.width or _DETR['width']
    config = self.filled({**variants.ENCODER, **_DETR, 'mlp_dim': 8 * width})
    if not config.memory[0]:
      config = dataclasses.replace(config, memory=(_TOKENS, config.width))
    config.check(DECODER_OPTIONS)
    if config.queries < 1 or config.num_classes < 0:
      raise RunError(
        f'queries={config.queries} of a decoder must be at least 1, '
        f'num_classes={config.num_classes} at least 0'
      )
    if config.width % 4:
      raise RunError(f'width={config.width} of a decoder must be a multiple of 4, of sines')
    if config.masks and config.width % 16:
      raise RunError(
        f'width={config.width} of a decoder with masks must be a multiple of 16, down to which the '
        'convolutions of masks divide it'
      )
    if config.denoising and config.anchors == 'none':
      raise RunError('denoising=True: noisy boxes are anchors: use anchors=learned or tokens')
    parse(config.attention, 1, config.num_heads, config.depth, kv_heads=config.key_heads,
          memory=True)  # fmt: skip
    if config.anchors == 'tokens' and config.memory[0] < config.queries:
      raise RunError(
        f'queries={config.queries} are more than the {config.memory[0]} tokens that are to be '
        'anchors'
      )
    return config


@dataclasses.dataclass(frozen=True)
class DetrArchitecture(OnImages):
  """An encoder, and a decoder whose queries say a box and a class each (Carion et al. 2020).

  The encoder is a ViT, in place of a convolutional network and an encoder behind it.

  Attributes:
    encoder: without a head of its own, nor anything that pools.
    decoder: see `DecoderArchitecture`; its `memory` follows from the encoder.
    num_classes: of objects, which are also those of the decoder.
  """

  kind: ClassVar[str] = 'detr'
  reads: ClassVar[str] = 'the head is that of queries'
  axes: ClassVar[str] = 'boxes are of 2 axes'
  whole: ClassVar[str] = 'objects may be on any patch: leave it out'
  main: ClassVar[str] = 'encoder'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  decoder: DecoderArchitecture = dataclasses.field(default_factory=DecoderArchitecture)
  num_classes: int = 0

  @property
  def nothing(self) -> bool:
    """See `DecoderArchitecture`."""
    return self.decoder.nothing

  @property
  def queries(self) -> int:
    """How many objects it can say."""
    return self.decoder.queries

  @property
  def outputs(self) -> int:
    """Logits of a query."""
    return outputs(self)

  @property
  def says(self) -> tuple[str, ...]:
    """See `OnImages`."""
    return ('logits', 'boxes', 'masks') if self.decoder.masks else ('logits', 'boxes')

  @property
  def grid(self) -> tuple[int, ...]:
    """Rows and columns of masks, if there are some."""
    return tuple(4 * side for side in self.encoder.grid)

  @property
  def laterals(self) -> dict[str, pyramid.Convolution]:
    """What brings levels of the pyramid to the width that masks have there, by name."""
    width, places = self.encoder.width, math.prod(self.encoder.grid)
    return {
      f'lateral{level}': (1, width, outputs, False, 4**level * places)
      for level, outputs in enumerate(self.decoder.levels)
    }

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: what brings patches to the width of the decoder, and a pyramid of them."""
    encoder = self.encoder
    weights, biases = perceptron(encoder.width, self.decoder.width)
    found = [('project', weights + biases, weights * math.prod(encoder.grid))]
    if self.decoder.masks:
      every = pyramid.ups(encoder.width, encoder.grid) | self.laterals
      found += pyramid.costs(every, norm=True)
    return tuple(found)

  def prepared(self) -> Self:
    """See `OnImages`: the decoder knows what it looks at."""
    config = super().prepared()
    encoder = config.encoder.resolve()
    decoder = dataclasses.replace(
      self.decoder, num_classes=self.num_classes, dtype=encoder.dtype,
      memory=(math.prod(encoder.grid), self.decoder.width or _DETR['width']),
    )  # fmt: skip
    return dataclasses.replace(config, encoder=encoder, decoder=decoder)


def outputs(config: Any) -> int:
  """Logits of a query: of each class, and of no object where there is one of that."""
  return config.num_classes + config.nothing


def perceptron(*widths: int) -> tuple[int, int]:
  """Weights and biases of layers one after another, those of the input first."""
  pairs = [*itertools.pairwise(widths)]
  return sum(a * b for a, b in pairs), sum(b for _, b in pairs)
