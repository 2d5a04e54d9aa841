"""The Vision Transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929) and kin."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.models.map_head import MapHead
from vit_jax.nn import positions, resnet
from vit_jax.nn.attention import Context
from vit_jax.nn.encoder import Encoder, features_by_name, make_norm
from vit_jax.nn.layers import Dense, PatchEmbed, normal, prepend_tokens, zeros
from vit_jax.nn.masks import Mask
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import param, spec


@dataclasses.dataclass(frozen=True)
class ViTConfig(ViTArchitecture):
  """A Vision Transformer by its `ViTArchitecture`, which documents the fields."""

  def create(self, rngs: nnx.Rngs) -> ViT:
    """The model itself, sharded over the mesh in context."""
    return ViT(self, rngs)


class Patches(NamedTuple):
  """Images of any size and aspect ratio, cut into patches and padded to one length (NaFlex).

  Attributes:
    pixels: (batch, patches, patch * patch * channels), of each patch row by row.
    coords: row and column of each patch in its image, int (batch, patches, 2).
    mask: whether there is a patch, bool (batch, patches).
    segment: where rows hold several images (NaViT, Dehghani et al. 2023), of each patch the number
      of its image, and 0 of padding, int (batch, patches).
    images: then the numbers of the images that are pooled, int (batch, images); all that the model
      gives has an axis over them behind that of the batch.
  """

  pixels: Any
  coords: Any
  mask: Any
  segment: Any = None
  images: Any = None


class ViT(nnx.Module):
  """Images to logits. The module is the tree of its parameters; it holds no other state."""

  def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
    config = config.resolve()
    width, without = config.width, config.without
    self.config = config
    self.card: Any = None
    channels = config.in_channels
    if config.stem_width:
      self.stem = resnet.ResNet(
        channels, config.stem_width, config.stem_depths, rngs, convention=config.stem_convention
      )
      channels = resnet.features(config.stem_width, config.stem_depths)
    self.embed = PatchEmbed(config.patch_size, channels, width, rngs, bias='embed' not in without)
    tokens = lambda count, init=zeros: param(init, rngs, (1, count, width), (None,) * 3)  # noqa: E731
    if config.class_token:
      self.token = tokens(1)
    if config.distilled:
      self.distill_token = tokens(1)
    if config.registers:
      self.registers = tokens(config.registers, normal(0.02))
    if config.mask_token:
      self.mask_token = tokens(1)
    rows, columns = config.grid
    if config.posemb == 'learned':
      self.posemb = tokens(config.posemb_prefix + rows * columns, normal(config.vector_width**-0.5))
    elif config.posemb == 'factorised':
      self.posemb_rows = tokens(rows, normal(config.vector_width**-0.5))
      self.posemb_columns = tokens(columns, normal(config.vector_width**-0.5))
    if config.embed_norm:
      self.embed_norm = make_norm(config, width, rngs)
    self.encoder = Encoder(
      config, rngs, grid=config.grid, prefix=config.prefix > 0, final_norm=not config.pool_norm
    )
    if config.pool == 'map':
      self.map_head = MapHead(config, rngs)
    size = 2 * width if config.pool == 'token_mean' else width
    if config.pool_norm:
      self.pool_norm = make_norm(config, size, rngs)
    if config.representation_size:
      self.pre_logits = Dense(rngs, (size, config.representation_size), ('embed', None))
      size = config.representation_size
    if config.num_classes:
      head = functools.partial(
        Dense, rngs, (size, config.num_classes), ('embed', None), kernel_init=zeros,
        bias='head' not in without,
      )  # fmt: skip
      self.head = head()
      if config.distilled:
        self.distill_head = head()

  def __call__(self, images: Any, **kwargs) -> jax.Array:
    """Logits; without a head, pooled features.

    Args:
      images: float (batch, height, width, in_channels), or `Patches`.
      **kwargs: as for `tokens`.

    Returns:
      float32 (batch, num_classes) or (batch, features).
    """
    return self._forward(images, record=False, **kwargs)['output']

  def features(self, images: Any, **kwargs) -> dict[str, jax.Array]:
    """Every intermediate by name; what is not used costs nothing under `jax.jit`.

    Args:
      images: as for the model itself.
      **kwargs: as for `tokens`.

    Returns:
      'tokens' (batch, tokens, width) that enter the first block; for each layer 'block00/attn' and
      'block00/mlp', what it adds (of a subset of the examples, if stochastic depth draws one), and
      'block00', its output; 'encoded', the tokens after the last block and, unless pool_norm puts
      it later, the last norm; 'patches', those of them that are patches, for images as a grid
      (batch, rows, columns, width); 'pooled' (batch, features); 'pre_logits'; 'logits', and with
      distillation 'logits_class' and 'logits_distill' of each head; 'output', what the model
      returns.
    """
    return self._forward(images, record=True, **kwargs)

  def _forward(self, images, *, record: bool, key=None, **kwargs) -> dict[str, jax.Array]:
    config, out = self.config, {}
    keys = (None, None) if key is None else noise(key).split()
    out['tokens'], context = self.tokens(images, key=keys[0], **kwargs)
    x, layers = self.encoder(out['tokens'], context, key=keys[1], record=record)
    out |= features_by_name(layers)
    out['encoded'] = x
    keys = context.mask.keys
    mask = None if keys is None else keys[:, config.prefix :]
    patches = x[:, config.prefix :]
    on_grid = context.grid is not None and patches.shape[1] == np.prod(context.grid)
    shape = (len(x), *(context.grid or ()), config.width) if on_grid else patches.shape
    out['patches'] = patches.reshape(shape)
    if isinstance(images, Patches) and images.segment is not None:
      out['pooled'] = x = self._pool_each(patches, images.segment, images.images)
    else:
      out['pooled'] = x = self._pool(patches, x[:, 0], mask)
    if config.representation_size:
      x = out['pre_logits'] = self._represent(x)
    if config.num_classes:
      x = _logits(self.head, x)
      if config.distilled:
        out['logits_class'] = x
        second = self._represent(self._final(out['encoded'][:, 1]))
        out['logits_distill'] = _logits(self.distill_head, second)
        x = (x + out['logits_distill']) / 2
      out['logits'] = x
    return {**out, 'output': x}

  def _pool(self, patches: jax.Array, token: jax.Array, mask: jax.Array | None) -> jax.Array:
    """float32 (batch, features)."""
    pool = self.config.pool
    if pool == 'map':
      return self._final(self.map_head(patches, mask))
    if pool == 'token':
      return self._final(token)
    weight = jnp.ones(patches.shape[1:2]) if mask is None else mask.astype(jnp.float32)
    weight = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1)
    mean = (patches.astype(jnp.float32) * weight[..., None]).sum(1)
    return self._final(jnp.concatenate([token, mean], -1) if pool == 'token_mean' else mean)

  def _pool_each(self, patches: jax.Array, segment: jax.Array, images: jax.Array) -> jax.Array:
    """Of every image of a row: float32 (batch, images, features)."""
    if self.config.pool == 'map':
      return self._final(self.map_head.each(patches, segment, images))
    own = (segment[..., None] == images[:, None]).astype(jnp.float32)
    own = own / jnp.maximum(own.sum(1, keepdims=True), 1)
    out = spec('batch', None, None)
    x = patches.astype(jnp.float32)
    return self._final(jnp.einsum('btc,btd->bcd', own, x, precision='highest', out_sharding=out))

  def _represent(self, x: jax.Array) -> jax.Array:
    return jnp.tanh(_logits(self.pre_logits, x)) if self.config.representation_size else x

  def _final(self, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return self.pool_norm(x) if self.config.pool_norm else x

  def tokens(
    self, images: Any, *, key: Any = None, masked: jax.Array | None = None,
    patch_size: int | None = None,
  ) -> tuple[jax.Array, Context]:  # fmt: skip
    """What enters the encoder.

    Args:
      images: float (batch, height, width, in_channels), or `Patches`.
      key: of patch dropout and stochastic depth; without one nothing is dropped.
      masked: patches to be replaced by the mask token, bool (batch, patches).
      patch_size: cut the images into patches of this size instead of the model's own; the kernel is
        resampled (FlexiViT).

    Returns:
      (batch, tokens, width) in the compute dtype, and where the tokens are.

    Raises:
      ValueError: if the shape of the images does not fit the model.
    """
    config, packed = self.config, isinstance(images, Patches)
    if packed:
      if config.stem_width:
        raise ValueError('a model with a convolutional stem takes images, not patches')
      if config.attention != 'full':
        raise ValueError('packed images have no grid for attention along its axes')
      if patch_size not in (None, config.patch_size):
        raise ValueError('packed images are cut into patches already: patch_size cannot change')
      x = self.embed.flat(jnp.asarray(images.pixels, config.dtype))
      coords, mask, grid, xp = images.coords, images.mask, None, jnp
      size = jnp.where(mask[..., None], coords + 1, 1).max(1, keepdims=True)
      if images.segment is not None:
        self._check_packing(key)
        size = _sizes(coords, images.segment, images.images)
    else:
      x = self._embed_images(images, patch_size)
      grid = x.shape[1:3]
      # Merging the grid one axis into the other keeps the batch axis, and its sharding, untouched.
      x = x.reshape(x.shape[0], grid[0] * grid[1], config.width)
      coords, mask, xp = positions.grid_coords(*grid)[None], None, np
      size = np.array(grid)
    if masked is not None:
      if not config.mask_token:
        raise ValueError('this model has no mask token: create it with mask_token=True')
      x = jnp.where(masked[..., None], self.mask_token[...].astype(x.dtype), x)
    x = x + self._position(coords, size, grid, x.dtype)
    prefix = [
      getattr(self, name)[...].astype(jnp.float32)
      for name in ('token', 'distill_token', 'registers')
      if hasattr(self, name)
    ]
    if prefix:
      tokens = jnp.concatenate(prefix, axis=1)
      if config.posemb == 'learned' and config.posemb_prefix:
        rows = self.posemb[:, : config.posemb_prefix]
        tokens = tokens + jnp.pad(rows, ((0, 0), (0, tokens.shape[1] - rows.shape[1]), (0, 0)))
      x = prepend_tokens(tokens, x)
    if config.embed_norm:
      x = self.embed_norm(x)
    if key is not None and config.patch_dropout:
      x, coords, mask = self._drop_patches(x, coords, mask, key)
      xp = jnp
    context = self._context(coords, size, grid, mask, xp)
    if packed and images.segment is not None:  # padding attends to padding
      context = context.replace(mask=Mask(segments=(images.segment,) * 2))
    return x, context

  def _check_packing(self, key: Any) -> None:
    config = self.config
    if config.prefix or config.pool not in ('mean', 'map'):
      raise ValueError(
        'rows of several images need pool=mean or pool=map, and no class token or registers'
      )
    if config.patch_dropout and key is not None:
      raise ValueError('rows of several images need patch_dropout=0')

  def _embed_images(self, images: jax.Array, patch_size: int | None) -> jax.Array:
    config = self.config
    stride = config.stride // config.patch_size * (patch_size or config.patch_size)
    shape = images.shape
    if len(shape) != 4 or shape[3] != config.in_channels or any(s % stride for s in shape[1:3]):
      raise ValueError(
        f'expected images of shape (batch, height, width, {config.in_channels}) with sides that '
        f'are multiples of {stride}, found {shape}'
      )
    images = images.astype(config.dtype)
    return self.embed(self.stem(images) if config.stem_width else images, patch_size)

  def _position(self, coords, size, grid, dtype) -> Any:
    """What is added to the embeddings of patches, (1 or batch, patches, width)."""
    config, method = self.config, self.config.interpolation
    if config.posemb == 'none':
      return jnp.zeros((), dtype)
    if config.posemb == 'sincos2d':
      xp = np if grid else jnp
      return jnp.asarray(positions.sincos(coords, config.width, xp=xp), dtype)
    rows, columns = config.grid
    if config.posemb == 'factorised':
      parts = ((self.posemb_rows, rows, 0), (self.posemb_columns, columns, 1))
      y = 0.0
      for table, old, axis in parts:
        if grid and grid[axis] == old:
          y = y + table[...].astype(jnp.float32)[0][coords[..., axis]]
        else:
          xp = np if grid else jnp
          weights = positions.resize_weights(coords[..., axis], size[..., axis], old, method, xp)
          rows = table[...].astype(jnp.float32)[0]
          y = y + jnp.einsum('bnp,pd->bnd', weights, rows, precision='highest')
      return jnp.asarray(y, dtype)
    table = self.posemb[0, config.posemb_prefix :].astype(jnp.float32)
    table = table.reshape(rows, columns, config.width)
    if grid:
      table = positions.resample(table, grid, method)
      return table.reshape(1, -1, config.width).astype(dtype)
    # Where nothing is resized, the offset is not applied either.
    native = (size == np.array(config.grid)).all(-1)[..., None]
    y, x = (
      jnp.where(
        native,
        coords[..., axis, None] == np.arange(old),
        positions.resize_weights(coords[..., axis], size[..., axis], old, method, jnp),
      )
      for axis, old in enumerate((rows, columns))
    )
    both = (y[..., :, None] * x[..., None, :]).reshape(*y.shape[:2], rows * columns)
    table = table.reshape(rows * columns, config.width)
    return jnp.einsum('bnp,pd->bnd', both, table, precision='highest').astype(dtype)

  def _drop_patches(self, x, coords, mask, key):
    """A random subset of the patches of each example, of static size, in their old order."""
    config = self.config
    batch, count = x.shape[0], x.shape[1] - config.prefix
    keep = max(1, round(count * (1 - config.patch_dropout)))
    draw = noise(key).draw(jax.random.uniform, batch, count)
    if mask is not None:  # padding goes first
      draw = draw + ~mask
    kept = jnp.sort(jnp.argsort(draw, axis=1)[:, :keep], axis=1)
    take = jax.vmap(lambda x, index: x[index])
    shape = (batch, count, 2)
    coords = jnp.broadcast_to(coords, shape, out_sharding=spec('batch', None, None))
    x = jnp.concatenate([x[:, : config.prefix], take(x[:, config.prefix :], kept)], axis=1)
    return x, take(coords, kept), None if mask is None else take(mask, kept)

  def _context(self, coords, size, grid, mask, xp) -> Context:
    config = self.config
    angles = index = None
    if config.rope != 'none':
      head_dim = config.width // config.num_heads
      angles = positions.rope(
        coords, size, head_dim, config.rope, config.rope_base, config.rope_grid, xp
      )
      angles = xp.pad(angles, ((0, 0), (config.prefix, 0), (0, 0)))
    if config.relative_bias != 'none':
      base = grid or config.grid
      index = positions.relative_index(coords, base, config.prefix, xp)
    if mask is not None and config.prefix:
      mask = jnp.pad(mask, ((0, 0), (config.prefix, 0)), constant_values=True)
    return Context(angles, index, mask=Mask(keys=mask), grid=grid)


def _logits(head: Dense, x: jax.Array) -> jax.Array:
  if x.ndim == 3:
    return head(x, 'bid,dc->bic', ('batch', None, None))
  return head(x, 'bd,dc->bc', ('batch', None))


def _sizes(coords: jax.Array, segment: jax.Array, images: jax.Array) -> jax.Array:
  """Rows and columns of the image that each patch is of, int (batch, patches, 2)."""
  own = segment[..., None] == images[:, None]
  sizes = jnp.where(own[..., None], coords[:, :, None] + 1, 1).max(1)
  return (own[..., None] * sizes[:, None]).sum(2) + ~own.any(-1)[..., None]
