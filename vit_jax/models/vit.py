"""The Vision Transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929) and kin."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.architecture.vit import ViTArchitecture, on_axes
from vit_jax.models.map_head import MapHead
from vit_jax.nn import positions, resnet
from vit_jax.nn.attention import Context
from vit_jax.nn.encoder import Encoder, features_by_name, make_norm
from vit_jax.nn.layers import Dense, PatchEmbed, constant, normal, prepend_tokens, uniform, zeros
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
    pixels: (batch, patches, pixels of one * channels), the last axis of a patch first to vary.
    coords: where each patch is on the grid of its image, int (batch, patches, axes).
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

  posemb: nnx.Param  # if there is one among `config.tables`

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
    self.embed = PatchEmbed(config.patch, channels, width, rngs, bias='embed' not in without)
    tokens = lambda count, init=zeros: param(init, rngs, (1, count, width), (None,) * 3)  # noqa: E731
    if config.class_token:
      self.token = tokens(1)
    if config.distilled:
      self.distill_token = tokens(1)
    if config.registers:
      self.registers = tokens(config.registers, normal(0.02))
    if config.queries:
      self.queries = tokens(config.queries, normal(0.02))
    if config.mask_token:
      self.mask_token = tokens(1)
    for name, axes in config.tables.items():
      count = math.prod(config.grid[axis] for axis in axes)
      count += config.posemb_prefix * (name == 'posemb')
      later = config.posemb == 'space_time' and name == 'posemb_frames'
      setattr(self, name, tokens(count, zeros if later else normal(config.vector_width**-0.5)))
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
        bias='head' not in without, bias_init=constant(config.head_bias),
      )  # fmt: skip
      self.head = head()
      if config.distilled:
        self.distill_head = head()
    if config.initial != 'vit':
      _drawn_again(self, rngs)

  def __call__(self, images: Any, **kwargs) -> jax.Array:
    """Logits; without a head, pooled features.

    Args:
      images: float (batch, *sides, in_channels), sides being height and width, with frames before
        them in a model of three axes; or `Patches`.
      **kwargs: as for `tokens`.

    Returns:
      float32 (batch, num_classes) or (batch, features).
    """
    return self._forward(images, record=False, **kwargs)['output']

  def heads(self, images: Any, **kwargs) -> dict[str, jax.Array]:
    """'output', what the model returns, and of each head 'logits_class' and 'logits_distill'.

    Arguments as for the model itself, which must have a distillation token.
    """
    out = self._forward(images, record=False, **kwargs)
    return {name: out[name] for name in ('output', 'logits_class', 'logits_distill')}

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
      (batch, *grid, width), and 'class', 'distill', 'registers' and 'queries', the others of them;
      'pooled' (batch, features); 'pre_logits'; 'logits', and with distillation 'logits_class' and
      'logits_distill' of each head; 'output', what the model returns.
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
    first = 0
    for name, count in config.special.items():
      out[name], first = x[:, first : first + count], first + count
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
    kept: jax.Array | None = None,
    patch_size: int | tuple[int, ...] | None = None, spacing: jax.Array | None = None,
  ) -> tuple[jax.Array, Context]:  # fmt: skip
    """What enters the encoder.

    Args:
      images: float (batch, *sides, in_channels), or `Patches`.
      key: of patch dropout and stochastic depth; without one nothing is dropped.
      masked: patches to be replaced by the mask token, bool (batch, patches).
      kept: numbers of the patches that are not left out, int (batch, patches that are left).
      patch_size: cut the images into patches of this size instead of the model's own; the kernel is
        resampled (FlexiViT).
      spacing: how far apart pixels are along each axis, in units of those that the model knows
        from training, float (batch, axes): volumes of other resolutions then have the centres of
        their patches where they are. For computed positions that do not depend on the size of the
        image, and rows of one image.

    Returns:
      (batch, tokens, width) in the compute dtype, and where the tokens are.

    Raises:
      ValueError: if the shape of the images does not fit the model, or a spacing its positions.
    """
    config, packed = self.config, isinstance(images, Patches)
    patch = config.patch if patch_size is None else on_axes(patch_size, len(config.patch))
    if packed:
      if config.stem_width:
        raise ValueError('a model with a convolutional stem takes images, not patches')
      if config.attention != 'full':
        raise ValueError('packed images have no grid for attention along its axes')
      if patch != config.patch:
        raise ValueError('packed images are cut into patches already: patch_size cannot change')
      x = self.embed.flat(jnp.asarray(images.pixels, config.dtype))
      coords, mask, grid, xp = images.coords, images.mask, None, jnp
      size = jnp.where(mask[..., None], coords + 1, 1).max(1, keepdims=True)
      if images.segment is not None:
        self._check_packing(key)
        size = _sizes(coords, images.segment, images.images)
    else:
      x = self._embed_images(images, patch)
      grid = x.shape[1:-1]
      # Merging the axes of the grid keeps that of the batch, and its sharding, untouched.
      x = x.reshape(x.shape[0], math.prod(grid), config.width)
      coords, mask, xp = positions.grid_coords(*grid)[None], None, np
      size = np.array(grid)
    if spacing is not None:
      self._check_spacing(spacing, images)
      scale = jnp.asarray(spacing, jnp.float32) * np.divide(patch, config.patch)
      coords, xp = (coords + 0.5) * scale[:, None] - 0.5, jnp
    if masked is not None:
      if not config.mask_token:
        raise ValueError('this model has no mask token: create it with mask_token=True')
      x = jnp.where(masked[..., None], self.mask_token[...].astype(x.dtype), x)
    x = x + self._position(coords, size, grid, x.dtype)
    prefix = [
      getattr(self, name)[...].astype(jnp.float32)
      for name in ('token', 'distill_token', 'registers', 'queries')
      if hasattr(self, name)
    ]
    if prefix:
      tokens = jnp.concatenate(prefix, axis=1)
      if 'posemb' in config.tables and config.posemb_prefix:
        rows = self.posemb[:, : config.posemb_prefix]
        tokens = tokens + jnp.pad(rows, ((0, 0), (0, tokens.shape[1] - rows.shape[1]), (0, 0)))
      x = prepend_tokens(tokens, x)
    if config.embed_norm:
      x = self.embed_norm(x)
    if key is not None and config.patch_dropout and kept is None:
      kept = self._left(x.shape[1] - config.prefix, mask, key, batch=len(x))
    if kept is not None:
      x, coords, mask = self._kept(x, coords, mask, kept)
      xp = jnp
    context = self._context(coords, size, grid, mask, xp)
    if packed and images.segment is not None:  # padding attends to padding
      context = context.replace(mask=Mask(segments=(images.segment,) * 2))
    return x, context

  def _check_packing(self, key: Any) -> None:
    config = self.config
    if config.prefix or config.pool not in ('mean', 'map'):
      raise ValueError(
        'rows of several images need pool=mean or pool=map, and no tokens before the patches'
      )
    if config.patch_dropout and key is not None:
      raise ValueError('rows of several images need patch_dropout=0')

  def _check_spacing(self, spacing: Any, images: Any) -> None:
    config = self.config
    if isinstance(images, Patches) and images.segment is not None:
      raise ValueError('rows of several images have no spacing that is of all of them')
    turned = config.rope == 'none' or (config.rope == 'grid' and not any(config.rope_grid))
    computed = 'sincos' in config.posemb or config.rope != 'none'
    if config.tables or config.relative_bias != 'none' or not turned or not computed:
      raise ValueError(
        'spacing moves only positions that are computed in patches: posemb=sincos, or rope=grid '
        'with rope_grid of zeros and posemb=none, and no relative_bias'
      )
    if jnp.ndim(spacing) != 2 or jnp.shape(spacing)[1] != len(config.patch):
      raise ValueError(
        f'expected spacing of shape (batch, {len(config.patch)}), found {jnp.shape(spacing)}'
      )

  def _embed_images(self, images: jax.Array, patch: tuple[int, ...]) -> jax.Array:
    config, axes = self.config, len(patch)
    times = config.stride[0] // config.patch[0]
    stride, shape = [times * side for side in patch], images.shape
    if (
      len(shape) != axes + 2
      or shape[-1] != config.in_channels
      or any(side % step for side, step in zip(shape[1:-1], stride, strict=True))
    ):
      names = ', '.join(('frames', 'height', 'width')[-axes:])
      steps = stride[0] if len(set(stride)) == 1 else ', '.join(map(str, stride))
      raise ValueError(
        f'expected images of shape (batch, {names}, {config.in_channels}) with sides that are '
        f'multiples of {steps}, found {shape}'
      )
    images = images.astype(config.dtype)
    return self.embed(self.stem(images) if config.stem_width else images, patch)

  def _position(self, coords, size, grid, dtype) -> Any:
    """What is added to the embeddings of patches, (1 or batch, patches, width)."""
    config = self.config
    if 'sincos' in config.posemb:
      xp, mae = np if isinstance(coords, np.ndarray) else jnp, config.posemb == 'sincos_mae'
      return jnp.asarray(positions.sincos(coords, config.width, xp=xp, mae=mae), dtype)
    found = []
    for name, axes in config.tables.items():
      table = getattr(self, name)[0].astype(jnp.float32)
      if name == 'posemb':
        table = table[config.posemb_prefix :]
      table = table.reshape(*(config.grid[axis] for axis in axes), config.width)
      if grid:
        own = tuple(grid[axis] for axis in axes)
        table = positions.resample(table, own, config.interpolation)
        others = [axis for axis in range(len(grid)) if axis not in axes]
        found.append(jnp.expand_dims(table, others))
      else:
        at = coords[..., list(axes)], size[..., list(axes)]
        found.append(positions.looked_up(table, *at, config.interpolation))
    if not found:
      return jnp.zeros((), dtype)
    y = functools.reduce(jnp.add, found)
    return (y.reshape(1, -1, config.width) if grid else y).astype(dtype)

  def _left(self, count: int, mask: jax.Array | None, key: Any, *, batch: int) -> jax.Array:
    """A random subset of the patches of each example, of static size, in their old order."""
    keep = max(1, round(count * (1 - self.config.patch_dropout)))
    draw = noise(key).draw(jax.random.uniform, batch, count)
    if mask is not None:  # padding goes first
      draw = draw + ~mask
    return jnp.sort(jnp.argsort(draw, axis=1)[:, :keep], axis=1)

  def _kept(self, x, coords, mask, kept):
    """Tokens, coordinates and mask of the patches of these numbers alone."""
    prefix, batch = self.config.prefix, x.shape[0]
    take = jax.vmap(lambda x, index: x[index])
    shape = (batch, x.shape[1] - prefix, coords.shape[-1])
    coords = jnp.broadcast_to(coords, shape, out_sharding=spec('batch', None, None))
    x = jnp.concatenate([x[:, :prefix], take(x[:, prefix:], kept)], axis=1)
    return x, take(coords, kept), None if mask is None else take(mask, kept)

  def _context(self, coords, size, grid, mask, xp) -> Context:
    config = self.config
    angles = index = None
    if config.rope != 'none':
      angles = positions.rope(
        coords, size, config.head_width, config.rope, config.rope_base, config.rope_grid, xp
      )
      angles = xp.pad(angles, ((0, 0), (config.prefix, 0), (0, 0)))
    if config.relative_bias != 'none':
      base = grid or config.grid
      index = positions.relative_index(coords, base, config.prefix, xp)
    if mask is not None and config.prefix:
      mask = jnp.pad(mask, ((0, 0), (config.prefix, 0)), constant_values=True)
    return Context(angles, index, mask=Mask(keys=mask), grid=grid)


def _drawn_again(model: ViT, rngs: nnx.Rngs) -> None:
  """Draws the parameters of a new model as DeiT (Touvron et al. 2021) or MAE (He et al. 2022)."""
  config, vectors = model.config, {'token', 'distill_token', 'registers', 'queries'}
  inputs, width = math.prod(model.embed.proj.kernel.shape[:-1]), config.width
  patches = biases = uniform(1 / math.sqrt(inputs))  # PyTorch's for every convolution
  if config.initial == 'deit':
    every = of_attention = normal(0.02)  # cut at a hundred standard deviations there
    vectors |= {*config.tables}
  else:
    patches, every = uniform(math.sqrt(6 / (inputs + width))), None
    of_attention = uniform(math.sqrt(6 / (4 * width)))  # three matrices, drawn as one
    vectors |= {'mask_token'}
  for path, value in nnx.iter_graph(model):
    if not isinstance(value, nnx.Param) or path[0] == 'stem':
      continue
    if path[:2] == ('embed', 'proj'):
      init = patches if path[-1] == 'kernel' else biases
    elif path[0] in vectors:
      init = normal(0.02)
    elif path[-1] == 'kernel':
      init = of_attention if path[-2] in ('query', 'key', 'value') else every
    else:
      continue
    if init:
      value[...] = init(rngs.params(), value.shape, jax.typeof(value[...]).sharding)


def _logits(head: Dense, x: jax.Array) -> jax.Array:
  if x.ndim == 3:
    return head(x, 'bid,dc->bic', ('batch', None, None))
  return head(x, 'bd,dc->bc', ('batch', None))


def _sizes(coords: jax.Array, segment: jax.Array, images: jax.Array) -> jax.Array:
  """The grid of the image that each patch is of, int (batch, patches, axes)."""
  own = segment[..., None] == images[:, None]
  sizes = jnp.where(own[..., None], coords[:, :, None] + 1, 1).max(1)
  return (own[..., None] * sizes[:, None]).sum(2) + ~own.any(-1)[..., None]
