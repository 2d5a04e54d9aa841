"""MLP-Mixer (Tolstikhin et al. 2021, https://arxiv.org/abs/2105.01601)."""

from __future__ import annotations

import dataclasses
import math

import jax
from flax import nnx

from vit_jax.architecture.backbones import MixerArchitecture
from vit_jax.models.backbone import Backbone, pooled
from vit_jax.nn import remat
from vit_jax.nn.layers import Mlp, Norm, PatchEmbed
from vit_jax.nn.noise import Noise, dropped


@dataclasses.dataclass(frozen=True)
class MixerConfig(MixerArchitecture):
  """A Mixer by its `MixerArchitecture`, which documents the fields."""

  def create(self, rngs: nnx.Rngs) -> Mixer:
    """The model itself, sharded over the mesh in context."""
    return Mixer(self, rngs)


class Block(nnx.Module):
  """x + tokens(norm(x)^T)^T, then x + mlp(norm(x)) (equation 1)."""

  def __init__(self, config: MixerArchitecture, rngs: nnx.Rngs):
    self.norm1, self.norm2 = Norm(config.width, rngs), Norm(config.width, rngs)
    self.tokens = Mlp(math.prod(config.grid), config.tokens_mlp_dim, rngs, kind=config.mlp)
    self.mlp = Mlp(config.width, config.mlp_dim, rngs, kind=config.mlp)

  def __call__(self, x: jax.Array, key: Noise | None, rate: float) -> jax.Array:
    """(batch, patches, width) -> the same."""
    keys = (None, None) if key is None else key.split()
    y = self.tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
    x = x + dropped(y, keys[0], rate)
    return x + dropped(self.mlp(self.norm2(x)), keys[1], rate)


class Mixer(Backbone):
  """See `Backbone`; `features` has 'tokens', what enters the first block, and 'block00', ..."""

  def __init__(self, config: MixerConfig, rngs: nnx.Rngs):
    config = config.resolve()
    self.embed = PatchEmbed((config.patch_size,) * 2, config.in_channels, config.width, rngs)
    for block in range(config.depth):
      setattr(self, f'block{block}', Block(config, rngs))
    self.norm = Norm(config.width, rngs)
    super().__init__(config, config.width, rngs)

  def inside(self, images: jax.Array, key: Noise | None) -> dict[str, jax.Array]:
    """See `Backbone`; raises ValueError for images of another size."""
    config = self.config
    if images.shape[1:3] != config.image_size:
      raise ValueError(
        f'a mixer has weights for each patch: expected images of {config.image_size}, found '
        f'{images.shape[1:3]}'
      )
    x = self.embed(images)
    x = x.reshape(x.shape[0], -1, config.width)
    out, count = {'tokens': x}, config.depth
    keys = [None] * count if key is None else key.split(count)
    for at in range(count):
      rate = config.drop_path * at / max(count - 1, 1)
      body = lambda block, x, key, rate=rate: block(x, key if rate else None, rate)  # noqa: E731
      apply = remat.checkpoint(body, config.remat, scan=False)
      x = out[f'block{at:02d}'] = apply(getattr(self, f'block{at}'), x, keys[at])
    return {**out, 'pooled': pooled(self.norm(x))}
