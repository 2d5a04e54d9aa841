"""What a detector that asks every patch for an object is made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Self

from vit_jax.architecture.detr import outputs, perceptron
from vit_jax.architecture.pattern import parse
from vit_jax.architecture.towers import OnImages
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError


@dataclasses.dataclass(frozen=True)
class TokenDetectorArchitecture(OnImages):
  """An encoder, and heads that read a box and a class from each of its patches.

  Every patch is a query, whose box begins around its place. So a query knows what is there from the
  first step on; learned ones have to find out where to look, which takes most of a short run. As in
  dense detectors (Tian et al. 2019, 'FCOS'), but each object is that of one patch, so that nothing
  need be suppressed (Carion et al. 2020).

  Attributes:
    encoder: without a head of its own, nor anything that pools.
    num_classes: of objects. Training replaces 0 by what the data have.
    nothing: whether there is a logit more, the last, of no object, as a softmax needs it.
    layers: of how many of the last blocks the patches are read, by the same heads: those before the
      last only help to learn.
    dense: whether there are heads more, of the block before the last, that learn which object is at
      the place of each patch, and of which patches many may see one; they only help to learn.
  """

  kind: ClassVar[str] = 'token_detector'
  reads: ClassVar[str] = 'heads are on patches'
  axes: ClassVar[str] = 'boxes are of 2 axes'
  whole: ClassVar[str] = 'objects may be on any patch: leave it out'
  main: ClassVar[str] = 'encoder'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  num_classes: int = 0
  nothing: bool = False
  layers: int = 2
  dense: bool = True

  @property
  def says(self) -> tuple[str, ...]:
    """See `OnImages`."""
    return ('logits', 'boxes')

  @property
  def queries(self) -> int:
    """How many objects it can say."""
    return math.prod(self.encoder.grid)

  @property
  def outputs(self) -> int:
    """Logits of a query."""
    return outputs(self)

  @property
  def heads(self) -> dict[str, tuple[int, ...]]:
    """What reads patches, by name: widths of each, those of the input first."""
    width = self.encoder.width
    found = {'head': (width, self.outputs), 'boxes': (width, width, width, 4)}
    if self.dense:
      found |= {f'dense_{name}': widths for name, widths in found.items()}
    return found

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: the heads, of all blocks that they read."""
    found = []
    for name, widths in self.heads.items():
      weights, biases = perceptron(*widths)
      times = self.queries * (1 if name.startswith('dense') else self.layers)
      found.append((name, weights + biases, times * weights))
    return tuple(found)

  def resolve(self) -> Self:
    """See `Composition`."""
    config = super().resolve()
    encoder, needed = config.encoder, max(self.layers, 2 if self.dense else 1)
    if not 1 <= self.layers <= encoder.depth or needed > encoder.depth:
      raise RunError(
        f'model.layers={self.layers} and model.dense={self.dense} read the last {needed} of '
        f'model.encoder.depth={encoder.depth} blocks: layers must be at least 1, and what is read '
        'must be there'
      )
    axes, heads = len(encoder.image_size), encoder.num_heads
    kinds = parse(encoder.attention, axes, heads, encoder.depth, kv_heads=encoder.key_heads)
    if needed > 1 and len(kinds) > 1:
      raise RunError(
        f'model.encoder.attention={encoder.attention!r} is of several kinds of blocks, of which '
        'only the last can be read: use model.layers=1 and model.dense=False'
      )
    return config
