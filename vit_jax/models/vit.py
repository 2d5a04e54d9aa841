"""The Vision Transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.attention import Attention
from vit_jax.encoder import Encoder, remat
from vit_jax.errors import RunError, suggest
from vit_jax.layers import (
  Dense,
  LayerNorm,
  Mlp,
  PatchEmbed,
  normal,
  prepend_token,
  sincos2d,
  uniform,
  zeros,
)
from vit_jax.sharding import param, shards, spec

# name: width, depth, mlp_dim, num_heads. Ti to G: Dosovitskiy et al. 2021, Touvron et al. 2021 and
# Zhai et al. 2022 (table 2); So400m: Alabdulmohsin et al. 2023; mu, M, g-opt, G-opt: big_vision.
SIZES = {
  'mu': (32, 1, 128, 2),
  'Ti': (192, 12, 768, 3),
  'S': (384, 12, 1536, 6),
  'M': (512, 12, 2048, 8),
  'B': (768, 12, 3072, 12),
  'L': (1024, 24, 4096, 16),
  'So400m': (1152, 27, 4304, 16),
  'H': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'g-opt': (1536, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
  'G-opt': (1536, 48, 8192, 16),
  'e': (1792, 56, 15360, 16),
}
POSEMB = ('learned', 'sincos2d', 'none')
POOL = ('token', 'mean', 'map')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """A Vision Transformer.

  Attributes:
    variant: size and patch, 'S/16'. Sets width, depth, mlp_dim, num_heads and patch_size wherever
      these are left at 0.
    image_size: height and width in pixels, multiples of patch_size.
    in_channels: of the images.
    num_classes: logits of the linear head; 0 asks the data set.
    posemb: 'learned' (one vector per token), 'sincos2d' (fixed) or 'none'.
    pool: what the head sees: 'token' (a learned class token), 'mean' (of all patches) or 'map'
      (multi-head attention pooling, Zhai et al. 2022, section 3.1).
    dtype: of activations and matrix products, 'float32' or 'bfloat16'; parameters, norm
      statistics, softmax and the head are float32.
    scan: loop over layers (compiles in constant time) or unroll them.
    remat: what the backward pass keeps instead of recomputing; see `encoder.remat`.
  """

  variant: str = 'S/16'
  width: int = 0
  depth: int = 0
  mlp_dim: int = 0
  num_heads: int = 0
  patch_size: int = 0
  image_size: tuple[int, int] = (224, 224)
  in_channels: int = 3
  num_classes: int = 0
  posemb: str = 'learned'
  pool: str = 'token'
  dtype: str = 'float32'
  scan: bool = True
  remat: str = 'none'

  def resolve(self) -> ViTConfig:
    """This configuration with the numbers of its variant filled in and everything checked.

    Raises:
      RunError: for unknown names and for sizes that do not divide each other.
    """
    size, _, patch = self.variant.partition('/')
    if size not in SIZES:
      raise RunError(f'unknown model variant {self.variant!r}: {suggest(size, SIZES)}')
    if not patch.isdigit() or not int(patch):
      raise RunError(f'model variant {self.variant!r} lacks a patch size: write {size}/16')
    names = ('width', 'depth', 'mlp_dim', 'num_heads', 'patch_size')
    numbers = zip(names, (*SIZES[size], int(patch)), strict=True)
    config = dataclasses.replace(self, **{k: getattr(self, k) or v for k, v in numbers})
    for name, options in (('posemb', POSEMB), ('pool', POOL), ('dtype', DTYPES)):
      if getattr(self, name) not in options:
        value = getattr(self, name)
        raise RunError(f'unknown model.{name} {value!r}: {suggest(value, options)}')
    remat(None, self.remat, scan=self.scan)
    if config.width % config.num_heads:
      raise RunError(f'num_heads={config.num_heads} does not divide width={config.width}')
    if any(side < 1 or side % config.patch_size for side in self.image_size):
      raise RunError(f'patch_size={config.patch_size} does not divide image_size={self.image_size}')
    if self.posemb == 'sincos2d' and config.width % 4:
      raise RunError(f'posemb=sincos2d needs a width divisible by 4, not {config.width}')
    return config

  @property
  def grid(self) -> tuple[int, int]:
    """Patches down and across, of a resolved configuration."""
    height, width = self.image_size
    return height // self.patch_size, width // self.patch_size

  def create(self, rngs: nnx.Rngs) -> ViT:
    """The model itself, sharded over the mesh in context."""
    return ViT(self, rngs)


class MapHead(nnx.Module):
  """Multi-head attention pooling: one learned query attends to all tokens, then an MLP block."""

  def __init__(self, width: int, mlp_dim: int, num_heads: int, rngs: nnx.Rngs):
    self.probe = param(uniform((6 / (width + 1)) ** 0.5), rngs, (1, 1, width), (None,) * 3)
    self.attn = Attention(width, num_heads, rngs)
    self.norm = LayerNorm(width, rngs)
    self.mlp = Mlp(width, mlp_dim, rngs)

  def queries(self, x: jax.Array) -> jax.Array:
    """The learned query for each example of `x`, (batch, 1, width)."""
    shape = (x.shape[0], 1, x.shape[2])
    probe = self.probe[...].astype(x.dtype)
    return jnp.broadcast_to(probe, shape, out_sharding=spec('batch', None, None))

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, width) -> (batch, width)."""
    y = self.attn(self.queries(x), x)
    return (y + self.mlp(self.norm(y)))[:, 0]


class ViT(nnx.Module):
  """Images to logits. The module is the tree of its parameters; it holds no other state."""

  def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
    config = config.resolve()
    if config.num_classes < 1:
      raise RunError('model.num_classes must be at least 1')
    if config.num_heads % shards('heads'):
      raise RunError(
        f'num_heads={config.num_heads} cannot be divided among the {shards("heads")} devices of '
        'the tensor axis: choose a smaller mesh.tensor'
      )
    width, shape = config.width, (config.mlp_dim, config.num_heads)
    self.config = config
    self.embed = PatchEmbed(config.patch_size, config.in_channels, width, rngs)
    if config.pool == 'token':
      self.token = param(zeros, rngs, (1, 1, width), (None,) * 3)
    if config.posemb == 'learned':
      tokens = config.grid[0] * config.grid[1] + (config.pool == 'token')
      self.posemb = param(normal(width**-0.5), rngs, (1, tokens, width), (None,) * 3)
    self.encoder = Encoder(width, config.depth, *shape, rngs, scan=config.scan, policy=config.remat)
    if config.pool == 'map':
      self.map_head = MapHead(width, *shape, rngs)
    self.head = Dense(rngs, (width, config.num_classes), ('embed', None), kernel_init=zeros)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Float images (batch, height, width, in_channels) -> float32 logits (batch, num_classes)."""
    x = self.encoder(self.tokens(images))
    if self.config.pool == 'map':
      x = self.map_head(x)
    elif self.config.pool == 'token':
      x = x[:, 0]
    else:
      x = x.mean(axis=1)
    return self.head(x.astype(jnp.float32), 'bd,dc->bc', ('batch', None))

  def tokens(self, images: jax.Array) -> jax.Array:
    """Images -> what enters the encoder, (batch, tokens, width) in the compute dtype."""
    config = self.config
    expected = (*config.image_size, config.in_channels)
    if images.shape[1:] != expected:
      raise ValueError(f'expected images of shape (batch, {expected}), found {images.shape}')
    x = self.embed(images.astype(config.dtype))
    # Merging the grid one axis into the other keeps the batch axis, and its sharding, untouched.
    x = x.reshape(x.shape[0], config.grid[0] * config.grid[1], config.width)
    if config.posemb == 'sincos2d':
      x = x + jnp.asarray(sincos2d(*config.grid, config.width), x.dtype)
    if config.pool == 'token':
      x = prepend_token(self.token[...], x)
    if config.posemb == 'learned':
      x = x + self.posemb[...].astype(x.dtype)
    return x
