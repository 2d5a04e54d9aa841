"""A decoder-only language model: the same encoder, causal, with rotary positions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.language import LanguageArchitecture
from vit_jax.nn import positions
from vit_jax.nn.attention import Context
from vit_jax.nn.encoder import Encoder
from vit_jax.nn.layers import Dense, normal
from vit_jax.nn.masks import Mask
from vit_jax.nn.sharding import gather, param, reshard, spec

CAUSAL = Mask(causal=True)


@dataclasses.dataclass(frozen=True)
class LanguageConfig(LanguageArchitecture):
  """A language model by its `LanguageArchitecture`, which documents the fields."""

  def create(self, rngs: nnx.Rngs) -> Language:
    """The model itself, sharded over the mesh in context."""
    return Language(self, rngs)


class Language(nnx.Module):
  """Tokens to the logits of those that follow."""

  def __init__(self, config: LanguageConfig, rngs: nnx.Rngs):
    config = config.resolve()
    width, vocabulary = config.width, config.vocab_size
    self.config = config
    self.card: Any = None
    # Scaled, what enters the first block is as large as elsewhere in the residual stream.
    init = normal(width**-0.5 if config.scaled_embed else 0.02)
    self.embed = param(init, rngs, (vocabulary, width), (None, 'embed'))
    self.encoder = Encoder(config, rngs)
    if not config.tied:
      self.head = Dense(
        rngs, (width, vocabulary), ('embed', None), bias=False, kernel_init=normal(0.02)
      )

  def __call__(
    self, tokens: jax.Array, mask: Mask = CAUSAL, *, places: Any = None, key: Any = None
  ) -> jax.Array:
    """int (batch, tokens) -> float32 logits (batch, tokens, vocab_size); see `encode`."""
    return self.logits(self.encode(self.read(tokens), mask, places=places, key=key))

  def read(self, tokens: jax.Array) -> jax.Array:
    """What enters the first block: int (batch, tokens) -> (batch, tokens, width)."""
    config = self.config
    tokens = reshard(tokens, 'batch', None)
    table = gather(self.embed[...].astype(config.dtype), None, 'embed')
    x = table.at[tokens].get(out_sharding=spec('batch', None, None))
    return x * jnp.asarray(math.sqrt(config.width), x.dtype) if config.scaled_embed else x

  def encode(
    self, x: jax.Array, mask: Mask = CAUSAL, *, places: Any = None, key: Any = None
  ) -> jax.Array:
    """What `logits` is of.

    Args:
      x: (batch, tokens, width), from `read` or from elsewhere.
      mask: which tokens see which.
      places: of the tokens in their sequence, int (1 or batch, tokens); 0, 1, 2 if not given.
      key: a key or `Noise` of dropout and stochastic depth; none drops nothing.

    Returns:
      (batch, tokens, width), normed.

    Raises:
      ValueError: for more tokens than the context is long.
    """
    if x.shape[1] > self.config.context_length:
      raise ValueError(
        f'{x.shape[1]} tokens are more than the {self.config.context_length} of this model'
      )
    places = np.arange(x.shape[1])[None] if places is None else places
    return self.encoder(x, Context(self.angles(places), mask=mask), key=key)[0]

  def angles(self, places: Any) -> Any:
    """Rotary angles of tokens, int (..., tokens) -> float32 (..., tokens, head_dim / 2)."""
    config = self.config
    xp = np if isinstance(places, np.ndarray) else jnp
    return positions.rotary(
      places, config.head_width, config.rope_base, tuple(config.rope_scaling), xp
    )

  def logits(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, width) -> float32 (batch, tokens, vocab_size)."""
    kernel = gather(self.table.astype(x.dtype), 'embed', None)
    return jnp.einsum(
      'btd,dv->btv', x, kernel, out_sharding=spec('batch', None, None),
      preferred_element_type=jnp.float32,
    )  # fmt: skip

  @property
  def table(self) -> jax.Array:
    """What features are compared with, float32 (width, vocab_size)."""
    return self.embed[...].T if self.config.tied else self.head.kernel[...]
