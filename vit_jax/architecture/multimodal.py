"""What models that see and speak are made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

from vit_jax.architecture.language import LanguageArchitecture
from vit_jax.architecture.towers import Composition
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError, suggest

PROJECTORS = ('linear', 'mlp')


@dataclasses.dataclass(frozen=True)
class MultimodalArchitecture(Composition):
  """A language model that reads patches of an image among its tokens, through a projector.

  LLaVA-1.5 (Liu et al. 2024) has layer=-2 and projector=mlp, PaliGemma (Beyer et al. 2024) a linear
  one and prefix=True, SmolVLM (Marafioti et al. 2025) shuffle and no bias.

  Attributes:
    vision: without a head, nor anything that pools; its tokens before the patches are left out.
    language: of the tokens.
    layer: block of the image tower whose output is projected, counted from the last, -1, which the
      final norm comes after; blocks behind it are not computed.
    projector: 'linear', or 'mlp' of two layers with exact GELU between them, as wide as `language`.
    bias: whether the projector has them.
    shuffle: side of the squares of patches that become one token, side by side in its features.
    prefix: whether the image and the prompt see each other whole; what is said is causal in any
      case.
  """

  kind: ClassVar[str] = 'multimodal'
  main: ClassVar[str] = 'language'
  follows: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({
    'projector': ('vision/',), 'language': ('vision/', 'projector/'),
  })  # fmt: skip
  vision: ViTArchitecture = dataclasses.field(default_factory=ViTArchitecture)
  language: LanguageArchitecture = dataclasses.field(default_factory=LanguageArchitecture)
  layer: int = -1
  projector: str = 'mlp'
  bias: bool = True
  shuffle: int = 1
  prefix: bool = False

  @property
  def image_size(self) -> tuple[int, ...]:
    """Height and width of the images."""
    return self.vision.image_size

  @property
  def places(self) -> int:
    """Tokens of an image."""
    return math.prod(self.vision.grid) // self.shuffle**2

  @property
  def projection(self) -> tuple[tuple[int, int], ...]:
    """Inputs and outputs of each layer of the projector."""
    inner, outer = self.vision.width * self.shuffle**2, self.language.width
    return ((inner, outer),) if self.projector == 'linear' else ((inner, outer), (outer, outer))

  @property
  def seeing(self) -> ViTArchitecture:
    """The image tower as far as it is computed."""
    return dataclasses.replace(self.vision, depth=self.vision.depth + 1 + self.layer)

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: the projector."""
    weights = sum(a * b for a, b in self.projection)
    biases = self.bias * sum(b for _, b in self.projection)
    return (('projector', weights + biases, self.places * weights),)

  def resolve(self) -> Self:
    """See `Composition`."""
    if self.vision.num_classes:
      raise RunError('model.vision.num_classes: its patches are read, no head: leave it out')
    if self.projector not in PROJECTORS:
      raise RunError(
        f'unknown model.projector {self.projector!r}: {suggest(self.projector, PROJECTORS)}'
      )
    config: Any = super().resolve()
    # Tokens before the patches stay, as those that the tower was trained with.
    pool = dict(pool='mean', representation_size=0, pool_norm=False)
    vision = dataclasses.replace(config.vision, **pool).resolve()
    config = dataclasses.replace(config, vision=vision)
    if len(vision.image_size) != 2 or vision.patch_dropout:
      raise RunError('model.vision: images have two axes, and all of their patches are read')
    if not -vision.depth <= config.layer <= -1:
      raise RunError(
        f'model.layer={config.layer} must be between -1, the last, and {-vision.depth}, the first'
      )
    if config.layer < -1 and vision.attention != 'full':
      raise RunError(f'model.layer={config.layer} is of layers that are all alike')
    if config.shuffle < 1 or any(side % config.shuffle for side in vision.grid):
      rows, columns = vision.grid
      raise RunError(f'model.shuffle={config.shuffle} does not divide {rows} x {columns} patches')
    return config
