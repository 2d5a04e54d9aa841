"""A language model that reads patches of images among its tokens (LLaVA, PaliGemma, SmolVLM)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.multimodal import MultimodalArchitecture
from vit_jax.models.language import Language, LanguageConfig
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.nn.layers import ACTIVATIONS, Dense, flatten, unflatten
from vit_jax.nn.masks import Mask
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import spec
from vit_jax.text.dialogues import IMAGE, PADDING


@dataclasses.dataclass(frozen=True)
class MultimodalConfig(MultimodalArchitecture):
  """A model by its `MultimodalArchitecture`, which documents the fields."""

  vision: ViTConfig = dataclasses.field(default_factory=ViTConfig)
  language: LanguageConfig = dataclasses.field(default_factory=LanguageConfig)

  def create(self, rngs: nnx.Rngs) -> Multimodal:
    """The model itself, sharded over the mesh in context."""
    return Multimodal(self, rngs)


class Projector(nnx.Module):
  """Features of patches as embeddings of tokens."""

  def __init__(self, config: MultimodalArchitecture, rngs: nnx.Rngs):
    self.layers = nnx.List(
      [Dense(rngs, shape, ('embed', None), bias=config.bias) for shape in config.projection]
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, features) -> (batch, tokens, width)."""
    rows = flatten(x)
    for number, layer in enumerate(self.layers):
      rows = layer.rows(ACTIVATIONS['gelu'](rows) if number else rows)
    return unflatten(rows, x.shape[0])


class Multimodal(nnx.Module):
  """Images and tokens to the logits of those that follow."""

  def __init__(self, config: MultimodalConfig, rngs: nnx.Rngs):
    config = config.resolve()
    self.config = config
    self.card: Any = None
    self.vision = ViT(config.vision, rngs)
    self.projector = Projector(config, rngs)
    self.language = Language(config.language, rngs)

  def __call__(
    self, images: jax.Array, tokens: jax.Array, asked: Any = None, *, key: Any = None
  ) -> jax.Array:
    """float32 logits (batch, tokens, vocab_size); arguments as for `encode`."""
    return self.language.logits(self.encode(images, tokens, asked, key=key))

  def encode(
    self, images: jax.Array, tokens: jax.Array, asked: Any = None, *, key: Any = None
  ) -> jax.Array:
    """What the logits are of, (batch, tokens, width).

    Args:
      images: float (batch, height, width, channels).
      tokens: int (batch, tokens): those of the vocabulary, `dialogues.IMAGE` where the next place
        of the image is, and `dialogues.PADDING` at the end of a row.
      asked: which of them are of the prompt, bool (batch, tokens), for a model with a prefix.
      key: of what is dropped in training.
    """
    keys = (None, None) if key is None else noise(key).split()
    x = self.read(self.see(images, key=keys[0]), tokens)
    return self.language.encode(x, self.mask(asked), key=keys[1])

  def mask(self, asked: Any) -> Mask:
    """Which tokens see which; arguments as for `encode`.

    Padding is behind everything that is looked at, so that it needs no mask.
    """
    return Mask(causal=True, prefix=asked if self.config.prefix else None)

  def see(self, images: jax.Array, *, key: Any = None) -> jax.Array:
    """Images as tokens: float (batch, height, width, channels) -> (batch, places, width)."""
    config, tower = self.config, self.vision
    keys = (None, None) if key is None else noise(key).split()
    x, context = tower.tokens(images, key=keys[0])
    layers = None if config.layer == -1 else (0, config.seeing.depth)
    x, _ = tower.encoder(x, context, key=keys[1], layers=layers)
    return self.projector(self._shuffled(x[:, config.vision.prefix :]))

  def _shuffled(self, x: jax.Array) -> jax.Array:
    """(batch, patches, features) with the features of squares of patches side by side."""
    side = self.config.shuffle
    if side == 1:
      return x
    rows, columns = self.config.vision.grid
    whole = (len(x), rows // side, side, columns // side, side, x.shape[-1])
    x = x.reshape(whole, out_sharding=spec('batch', *(None,) * 5)).swapaxes(2, 3)
    return x.reshape(len(x), self.config.places, -1, out_sharding=spec('batch', None, None))

  def read(self, seen: jax.Array | None, tokens: jax.Array) -> jax.Array:
    """What enters the first block of the language model, (batch, tokens, width).

    Args:
      seen: from `see`, or None where there is no image.
      tokens: as for `encode`, but padding may be anywhere.
    """
    x = self.language.read(jnp.maximum(tokens, 0))
    if seen is None:
      return x
    of_image = tokens == IMAGE
    place = jnp.clip(jnp.cumsum(of_image, axis=1) - 1, 0, seen.shape[1] - 1)
    patches = jax.vmap(lambda row, at: row[at])(seen.astype(x.dtype), place)
    return jnp.where(of_image[..., None], patches, x)


def there(tokens: jax.Array) -> jax.Array:
  """Which tokens are no padding, bool as `tokens`."""
  return tokens != PADDING
