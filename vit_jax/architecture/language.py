"""What decoder-only language models are made of, in plain Python."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from vit_jax.architecture import variants
from vit_jax.architecture.vit import OPTIONS, UNSET, EncoderConfig
from vit_jax.core.errors import RunError

LANGUAGE_OPTIONS = {**OPTIONS, 'attention': ('full',), 'relative_bias': ('none',)}


@dataclasses.dataclass(frozen=True)
class LanguageArchitecture(EncoderConfig):
  """A decoder-only language model. Fields left unset are those of its variant.

  Attributes:
    variant: family and size, 'smollm2:135M'; see `architecture.variants`.
    vocab_size: different tokens.
    context_length: longest sequence in tokens.
    tied: logits are products with the embeddings of the tokens (Press & Wolf 2017), and there is no
      other head.
    scaled_embed: embeddings of tokens are multiplied by the square root of the width (Gemma).
    rope_base: wavelengths of rotary positions grow from 1 to almost this factor.
    rope_scaling: how these are stretched for longer sequences: () not at all, (factor,) all of
      them, or as in Llama 3.1, (factor, low, high, length): those longer than length / low by the
      factor, those shorter than length / high not at all, and the others in between.
  """

  kind: ClassVar[str] = 'language'
  variant: str = 'smollm2:135M'
  vocab_size: int = UNSET
  context_length: int = UNSET
  tied: bool = UNSET
  scaled_embed: bool = UNSET
  rope_base: float = UNSET
  rope_scaling: tuple[float, ...] = UNSET

  def resolve(self) -> Self:
    """This configuration with what its variant says filled in and everything checked.

    Raises:
      RunError: for unknown names and for sizes that do not divide each other.
    """
    config = self.filled(variants.language_options(self.variant))
    config.check(LANGUAGE_OPTIONS)
    if min(config.vocab_size, config.context_length) < 1:
      raise RunError('vocab_size and context_length of a language model must be at least 1')
    if config.head_width % 2:
      raise RunError(
        f'rotary positions turn pairs of features: head_dim={config.head_width} is odd'
      )
    if config.rope_base <= 1:
      raise RunError(f'model.rope_base={config.rope_base} must be more than 1')
    scaling = config.rope_scaling
    if len(scaling) not in (0, 1, 4) or any(number <= 0 for number in scaling):
      raise RunError(
        f'model.rope_scaling={scaling}: write (), (factor,) or (factor, low, high, length)'
      )
    if len(scaling) == 4 and not scaling[1] < scaling[2]:
      raise RunError(f'model.rope_scaling={scaling}: low must be less than high')
    return config
