"""What a detector that is nothing but a ViT is made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Self

from vit_jax.architecture.detr import outputs, perceptron
from vit_jax.architecture.towers import Composition
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError


@dataclasses.dataclass(frozen=True)
class YolosArchitecture(Composition):
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
  main: ClassVar[str] = 'encoder'
  encoder: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  num_classes: int = 0
  nothing: bool = True
  middle: bool = False

  @property
  def image_size(self) -> tuple[int, ...]:
    """Height and width of the images."""
    return self.encoder.image_size

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

  def resolve(self) -> Self:
    """See `Composition`."""
    if self.num_classes < 0:
      raise RunError(f'model.num_classes={self.num_classes} must not be negative')
    changes: dict[str, Any] = dict(representation_size=0, pool_norm=False)
    if not self.encoder.queries:
      changes['queries'] = 100
    encoder = dataclasses.replace(self.encoder, **changes)
    config = super(YolosArchitecture, dataclasses.replace(self, encoder=encoder)).resolve()
    encoder = config.encoder
    if encoder.num_classes:
      raise RunError('model.encoder.num_classes: heads are on tokens: leave it out')
    if len(encoder.image_size) != 2:
      raise RunError(f'model.encoder.image_size={encoder.image_size}: boxes are of 2 axes')
    if encoder.patch_dropout:
      raise RunError('model.encoder.patch_dropout: objects may be on any patch: leave it out')
    return config
