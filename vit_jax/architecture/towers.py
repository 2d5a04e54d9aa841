"""What text towers and compositions are made of, in plain Python."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

from vit_jax.architecture import variants
from vit_jax.architecture.backbones import Backbone
from vit_jax.architecture.vit import OPTIONS, UNSET, EncoderConfig, ViTArchitecture
from vit_jax.core.errors import RunError

TEXT_OPTIONS = {
  **OPTIONS,
  'pool': ('eot', 'last'),
  'attention': ('full',),
  'relative_bias': ('none',),
  'rope_pairs': ('halves',),
}


@dataclasses.dataclass(frozen=True)
class TextArchitecture(EncoderConfig):
  """A text tower. Fields left unset are those of its variant.

  Attributes:
    variant: family and size, 'clip:B'; see `architecture.variants`.
    vocab_size: different tokens.
    context_length: longest text in tokens.
    num_classes: width of the space shared with images; 0 for no projection.
    causal: tokens attend only to what precedes them.
    pool: 'eot' takes the features at the first end-of-text token, 'last' those at the last token.
    eot: number of that token; -1 takes the largest number in the text.
  """

  kind: ClassVar[str] = 'text'
  variant: str = 'clip:B'
  vocab_size: int = UNSET
  context_length: int = UNSET
  num_classes: int = 0
  causal: bool = UNSET
  pool: str = UNSET
  eot: int = UNSET

  def resolve(self) -> Self:
    """This configuration with what its variant says filled in and everything checked.

    Raises:
      RunError: for unknown names and for sizes that do not divide each other.
    """
    config = self.filled(variants.text_options(self.variant))
    config.check(TEXT_OPTIONS)
    if min(config.vocab_size, config.context_length) < 1:
      raise RunError('vocab_size and context_length of a text tower must be at least 1')
    return config


@dataclasses.dataclass(frozen=True)
class Composition:
  """A model made of other models: each field that holds an architecture is one of its towers.

  The module has each of them under the name of its field.

  Attributes:
    main: the tower that others start from, where it is not said which.
    sized: whether nothing but its `encoder` depends on the size of images, so that it can be
      evaluated at another one.
    follows: of towers and of parts of `rest`, by name, what comes before them, by what the names of
      its parameters begin with. Where any of that is trained, gradients go through them.
  """

  kind: ClassVar[str]
  main: ClassVar[str] = ''
  sized: ClassVar[bool] = False
  follows: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

  @property
  def towers(self) -> dict[str, Any]:
    """The towers by name."""
    return {
      name: value for name, value in vars(self).items()
      if isinstance(value, EncoderConfig | Backbone | Composition)
    }  # fmt: skip

  @property
  def own(self) -> dict[str, Any]:
    """The fields that are neither towers nor the name of a variant."""
    return {n: value for n, value in vars(self).items() if n not in (*self.towers, 'variant')}

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """What is in none of the towers: names, parameters, and multiply-adds for an example."""
    return ()

  def resolve(self) -> Self:
    """This configuration with everything filled in and checked; raises RunError."""
    found = {}
    for name, tower in self.towers.items():
      try:
        found[name] = tower.resolve()
      except RunError as error:
        raise RunError(f'model.{name}: {error}') from None
    return dataclasses.replace(self, **found)


class OnImages(Composition):
  """A composition whose heads read tokens of images of two axes from its `encoder`.

  Attributes:
    encoder: without a head of its own, nor anything that pools.
    num_classes: that the heads say.
    reads: where its head is, to whom it gives the encoder another one.
    axes: what needs two axes.
    whole: why no patch may be left out; '' if the model says so itself when it is called.
    says: what it gives of each of its queries, if it has some: 'logits', 'boxes' or 'masks'.
  """

  encoder: ViTArchitecture
  num_classes: int
  reads: ClassVar[str]
  axes: ClassVar[str]
  whole: ClassVar[str] = ''

  @property
  def says(self) -> tuple[str, ...]:
    """See above."""
    return ()

  @property
  def image_size(self) -> tuple[int, ...]:
    """Height and width of the images."""
    return self.encoder.image_size

  def resolve(self) -> Self:
    """See `Composition`."""
    if self.num_classes < 0:
      raise RunError(f'model.num_classes={self.num_classes} must not be negative')
    if self.encoder.num_classes:
      raise RunError(f'model.encoder.num_classes: {self.reads}: leave it out')
    config = super(OnImages, self.prepared()).resolve()
    if len(config.image_size) != 2:
      raise RunError(f'model.encoder.image_size={config.image_size}: {self.axes}')
    if self.whole and config.encoder.patch_dropout:
      raise RunError(f'model.encoder.patch_dropout: {self.whole}')
    return config

  def prepared(self) -> Self:
    """With what follows from its fields before parts are resolved.

    Nothing is pooled: what would do so has no parameters, and of tokens one stays where it was.
    """
    encoder = dataclasses.replace(self.encoder, pool='mean', representation_size=0, pool_norm=False)
    return dataclasses.replace(self, encoder=encoder)


@dataclasses.dataclass(frozen=True)
class Besides(Composition):
  """What a step computes besides models: for `costs.step.Pass`.

  Attributes:
    image_size: of the images that a model gets.
    products: names, and multiply-adds for an example.
  """

  kind: ClassVar[str] = 'besides'
  image_size: tuple[int, ...]
  products: tuple[tuple[str, int], ...]

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`."""
    return tuple((name, 0, macs) for name, macs in self.products)


def encoders(config: Any) -> dict[str, Any]:
  """Every tower of a model that is no composition, by its name; of a single one by ''."""
  if not isinstance(config, Composition):
    return {'': config}
  return {
    f'{name}/{inside}'.rstrip('/'): encoder
    for name, tower in config.towers.items()
    for inside, encoder in encoders(tower).items()
  }


@dataclasses.dataclass(frozen=True)
class TwoTowersArchitecture(Composition):
  """Two towers.

  Attributes:
    variant: 'clip:B/16', 'siglip:So400m/14', 'siglip2:B/16'; names both towers, unless they have
      variants of their own.
    image: of the image tower.
    text: of the text tower.
    logit_bias: whether a bias is added to the logits (Zhai et al. 2023); unset: with SigLIP.
    start_scale: of the logits, before training; unset: 10 with a bias, else 1 / 0.07.
    start_bias: likewise; unset: -10. It is for a loss that begins small: of a batch of b, -log b.
  """

  kind: ClassVar[str] = 'two_towers'
  variant: str = 'clip:B/16'
  image: ViTArchitecture = dataclasses.field(default_factory=lambda: ViTArchitecture(''))
  text: TextArchitecture = dataclasses.field(default_factory=lambda: TextArchitecture(''))
  logit_bias: bool = UNSET
  start_scale: float = UNSET
  start_bias: float = UNSET

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`: scale and bias of the logits."""
    return (('logits', 1 + bool(self.logit_bias), 0),)

  def resolve(self) -> Self:
    """See `Composition`."""
    image, text, bias = self.image, self.text, self.logit_bias
    family, _, size = self.variant.partition(':')
    size = size.partition('/')[0]
    if self.variant:
      image = dataclasses.replace(image, variant=image.variant or self.variant)
      text = dataclasses.replace(text, variant=text.variant or f'{family}:{size}')
    towers: Any = Composition.resolve(dataclasses.replace(self, image=image, text=text))
    image, text = towers.image, towers.text
    if family == 'clip':
      space = text.num_classes or image.num_classes or variants.CLIP_SPACE[size]
      image = dataclasses.replace(image, num_classes=space)
    space = image.num_classes or image.width
    text = dataclasses.replace(text, num_classes=text.num_classes or space)
    bias = family != 'clip' if bias is None else bias
    scale = self.start_scale or (10.0 if bias else 1 / 0.07)
    if not 0 < scale < math.inf:
      raise RunError(f'model.start_scale={scale} must be positive')
    start = (-10.0 if self.start_bias is None else self.start_bias) if bias else 0.0
    if not bias and self.start_bias:
      raise RunError(f'model.start_bias={self.start_bias} is of model.logit_bias')
    return dataclasses.replace(
      self, variant='', image=image, text=text, logit_bias=bias, start_scale=scale, start_bias=start
    )
