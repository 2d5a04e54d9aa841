"""The text tower of two-tower models (Radford et al. 2021): the same encoder, on words."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from vit_jax.architecture.towers import TextArchitecture
from vit_jax.nn.attention import Context
from vit_jax.nn.encoder import Encoder, features_by_name
from vit_jax.nn.layers import Dense, normal
from vit_jax.nn.masks import Mask
from vit_jax.nn.sharding import param, reshard, spec


@dataclasses.dataclass(frozen=True)
class TextConfig(TextArchitecture):
  """A text tower by its `TextArchitecture`, which documents the fields."""

  def create(self, rngs: nnx.Rngs) -> Text:
    """The tower itself, sharded over the mesh in context."""
    return Text(self, rngs)


class Text(nnx.Module):
  """Token numbers to one vector for each text."""

  def __init__(self, config: TextConfig, rngs: nnx.Rngs):
    config = config.resolve()
    width = config.width
    self.config = config
    self.embed = param(normal(0.02), rngs, (config.vocab_size, width), (None, 'embed'))
    self.posemb = param(normal(0.01), rngs, (1, config.context_length, width), (None,) * 3)
    self.encoder = Encoder(config, rngs)
    if config.num_classes:
      self.head = Dense(
        rngs, (width, config.num_classes), ('embed', None), bias='head' not in config.without
      )

  def __call__(self, tokens: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """int (batch, tokens) -> float32 (batch, num_classes); `key` is of stochastic depth.

    Raises:
      ValueError: for more tokens than `context_length`; outside of `jax.jit`, for a token that is
        not in the vocabulary.
    """
    return self._forward(tokens, key, record=False)['output']

  def features(self, tokens: jax.Array, *, key: jax.Array | None = None) -> dict[str, jax.Array]:
    """Every intermediate by name, as of `ViT.features`."""
    return self._forward(tokens, key, record=True)

  def _forward(self, tokens, key, *, record):
    config, length = self.config, tokens.shape[1]
    if length > config.context_length:
      raise ValueError(f'{length} tokens are more than the {config.context_length} of this model')
    if not isinstance(tokens, Tracer) and tokens.size:
      for number in (int(tokens.min()), int(tokens.max())):
        if not 0 <= number < config.vocab_size:
          raise ValueError(
            f'there is no token {number}: this model has those from 0 to {config.vocab_size - 1:,}'
          )
    tokens = reshard(tokens, 'batch', None)
    x = self.embed.at[tokens].get(out_sharding=spec('batch', None, None))
    x = x.astype(jnp.float32) + self.posemb[:, :length]
    x = x.astype(config.dtype)
    out = {'tokens': x}
    x, layers = self.encoder(x, Context(mask=Mask(causal=config.causal)), key=key, record=record)
    out |= features_by_name(layers)
    out['encoded'] = x
    if config.pool == 'last':
      x = x[:, -1]
    else:
      at = tokens.argmax(-1) if config.eot < 0 else (tokens == config.eot).argmax(-1)
      x = jax.vmap(lambda x, at: x[at])(x, at)
    x = out['pooled'] = x.astype(jnp.float32)
    if config.num_classes:
      x = self.head(x, 'bd,dc->bc', ('batch', None))
    return {**out, 'output': x}
