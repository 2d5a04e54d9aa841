"""What a detector that is nothing but a ViT is made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Self

from vit_jax.architecture.detr import outputs, perceptron
from vit_jax.architecture.towers import OnImages
from vit_jax.architecture.vit import ViTArchitecture


@dataclasses.dataclass(frozen=True)
class YolosArchitecture(OnImages):
  """A ViT some of whose tokens say a box and a class each (YOLOS, Fang et al. 2021).

  Attributes:
    encoder: without a head of its own; its `queries` are the tokens that are read, 100 if it does
      not say how many.
    num_classes: of objects.
    nothing: whether there is a logit more, the last, of no object, as a softmax needs it.
    middle: whether positions are learned that are added to all tokens between layers, for every
      layer but the last (the paper's S and B).
  """

  kind: ClassVar[str] = 'yolos'
  reads: ClassVar[str] = 'heads are on tokens'
  axes: ClassVar[str] = 'boxes are of 2 axes'
  whole: ClassVar[str] = 'objects may be on any patch: leave it out'
  main: ClassVar[str] = 'encoder'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  num_classes: int = 0
  nothing: bool = True
  middle: bool = False

  @property
  def says(self) -> tuple[str, ...]:
    """See `OnImages`."""
    return ('logits', 'boxes')

  @property
  def queries(self) -> int:
    """How many objects it can say."""
    return self.encoder.queries

  @property
  def outputs(self) -> int:
    """Logits of a query."""
    return outputs(self)

  @property
  def places(self) -> int:
    """Positions that are learned for each layer but the last: of all tokens."""
    return self.encoder.prefix + math.prod(self.encoder.grid)

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: positions between layers, and both heads."""
    width, queries = self.encoder.width, self.encoder.queries
    found = []
    if self.middle:
      found.append(('middle', (self.encoder.depth - 1) * self.places * width, 0))
    for name, last in (('head', self.outputs), ('boxes', 4)):
      weights, biases = perceptron(width, width, width, last)
      found.append((name, weights + biases, queries * weights))
    return tuple(found)

  def prepared(self) -> Self:
    """See `OnImages`: with tokens to read; what pools otherwise may stay, as nothing reads it."""
    changes: dict[str, Any] = dict(representation_size=0, pool_norm=False)
    if not self.encoder.queries:
      changes['queries'] = 100
    return dataclasses.replace(self, encoder=dataclasses.replace(self.encoder, **changes))
