"""What a model is made of, in plain Python: described, checked and counted without JAX."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any, ClassVar, Self

from vit_jax.architecture import variants
from vit_jax.architecture.pattern import parse
from vit_jax.core.errors import RunError, suggest

# Activations that a block marks by name, in the order in which they are computed; of norms the
# statistics of their rows.
NAMES = ('norm', 'qkv', 'context', 'attn', 'hidden', 'gate', 'mlp')
# Enough of them for the backward pass to recompute no matrix product.
PRODUCTS = NAMES[:-1]
# Policies of `encoder.remat`, apart from lists of these names.
REMAT = ('none', 'dots', 'names', 'full')
BIASES = ('query', 'key', 'value', 'out', 'mlp', 'norm', 'embed', 'head')
OPTIONS = {
  'norm': ('layernorm', 'rmsnorm', 'rmsnorm1p'),
  'norm_place': ('pre', 'post'),
  'mlp': ('gelu', 'gelu_tanh', 'quick_gelu', 'relu', 'swiglu', 'geglu_tanh'),
  'relative_bias': ('none', 'layer', 'shared'),
  'rope_pairs': ('halves', 'neighbours'),
  'drop_path_mode': ('linear', 'constant', 'subset'),
  'dtype': ('float32', 'bfloat16'),
}
# Of activations, those that gate a second projection.
GATED = ('swiglu', 'geglu_tanh')
UNSET: Any = None
# Of features, in the group normalisation of the ResNet in front.
STEM_GROUPS = 32
# Epsilons of its weight standardisation and group normalisation, by who trained the model.
STEM_CONVENTIONS = ('bit', 'timm')
POSEMB = ('learned', 'sincos', 'sincos_mae', 'factorised', 'space_time', 'none')
# One number for each axis of an image; a single one stands for height and width.
Sides = tuple[int, int] | tuple[int, int, int] | tuple[int]
# Axes of images of one, two and three, the last ones of these; see `architecture.pattern.AXES`.
AXES = ('frames', 'rows', 'columns')
INTERPOLATIONS = (
  'corner', 'bilinear', 'bilinear_aa', 'bicubic', 'bicubic_aa', 'bicubic_offset'
)  # fmt: skip
POOL = ('token', 'mean', 'map', 'token_mean')
VIT_OPTIONS = {
  **OPTIONS,
  'posemb': POSEMB,
  'pool': POOL,
  'posemb_tokens': ('patches', 'class', 'all'),
  'interpolation': INTERPOLATIONS,
  'rope': ('none', 'unit', 'grid'),
  'stem_convention': STEM_CONVENTIONS,
  'initial': ('vit', 'deit', 'mae'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
  """A stack of transformer blocks. Fields left unset are those of the model's variant.

  Attributes:
    width: features of a token.
    depth: number of blocks.
    mlp_dim: features of the hidden layer of each MLP.
    num_heads: attention heads; must divide width, unless head_dim is given.
    kv_heads: heads of keys and values, each of which serves equally many of queries (grouped-query
      attention, Ainslie et al. 2023); 0 for one for each.
    head_dim: features of a head; 0 for width / num_heads.
    mlp: activation, 'gelu' (exact), 'gelu_tanh', 'quick_gelu' or 'relu'; or a gate, 'swiglu' or
      'geglu_tanh' (Shazeer 2020).
    mlp_norm: a norm on the hidden layer of the MLP (EVA-02).
    norm: 'layernorm', 'rmsnorm', or 'rmsnorm1p', whose factors are 1 + what is learned (Gemma).
    eps: epsilon of all norms.
    norm_place: 'pre' norms what enters attention and MLP, and once after the last block; 'post'
      norms the sum with the residual instead (Vaswani et al. 2017).
    parallel: attention and MLP read the same norm and are added together (ViT-22B, Dehghani et al.
      2023).
    qk_norm: queries and keys are normed per head.
    softcap: attention scores become softcap * tanh(score / softcap) (Gemma 2, section 2); 0 for
      none.
    rope_pairs: which features of a head rotary positions turn together: 'halves', i and
      i + head_dim / 2, or 'neighbours', 2i and 2i + 1 (Su et al. 2021).
    layerscale: initial value of learned factors on what each block adds (Touvron et al. 2021);
      0 for none.
    attention: which tokens attend to which, layer by layer: 'full', or along axes of the grid, in
      windows and one after another, or to a memory; see `architecture.pattern`.
    relative_bias: a learned bias of attention by relative position in each 'layer', 'shared' by
      all, or 'none'.
    no_bias: parts without additive parameters, separated by commas, out of query, key, value, out,
      mlp, norm, embed (of patches) and head.
    mup_width: width of the model from which this one takes over its hyperparameters by the
      maximal-update parametrisation (`optim.mup`); 0 for the standard parametrisation.
    mup_depth: depth of that model; 0 for the standard parametrisation.
    dropout: share of the features left out (Srivastava et al. 2014) of what enters the first
      block, of the hidden layers of MLPs, and of what attention and MLP add, when a model is called
      with a key: what the first Vision Transformers were trained with.
    drop_path: rate of stochastic depth (Huang et al. 2016), applied when a model is called with a
      key.
    drop_path_mode: 'linear' drops single examples at a rate that rises to drop_path over depth,
      'constant' at the same rate everywhere; 'subset' runs each branch only on the examples that
      are kept, equally many on each device and drawn anew for each branch, which saves the time of
      the others (Oquab et al. 2023, section 5).
    dtype: of activations and matrix products, 'float32' or 'bfloat16'; parameters, norm
      statistics, softmax and the head are float32.
    scan: loop over layers (compiles in constant time) or unroll them.
    remat: what the backward pass keeps instead of recomputing: 'none' keeps everything, 'dots' the
      products with weights, 'names' what its own products need and the result of attention, 'full'
      only the input of each block; or names out of `NAMES`, separated by commas.
  """

  width: int = UNSET
  depth: int = UNSET
  mlp_dim: int = UNSET
  num_heads: int = UNSET
  kv_heads: int = UNSET
  head_dim: int = UNSET
  mlp: str = UNSET
  mlp_norm: bool = UNSET
  norm: str = UNSET
  eps: float = UNSET
  norm_place: str = UNSET
  parallel: bool = UNSET
  qk_norm: bool = UNSET
  softcap: float = UNSET
  rope_pairs: str = UNSET
  layerscale: float = UNSET
  attention: str = UNSET
  relative_bias: str = UNSET
  no_bias: str = UNSET
  mup_width: int = 0
  mup_depth: int = 0
  dropout: float = 0.0
  drop_path: float = 0.0
  drop_path_mode: str = 'linear'
  dtype: str = 'float32'
  scan: bool = True
  remat: str = 'none'

  def filled(self, options: dict[str, Any]) -> Self:
    """A copy in which the fields that are unset have the values of `options`.

    Raises:
      RunError: if sizes are still missing.
    """
    unset = {name: value for name, value in options.items() if getattr(self, name) is None}
    config = dataclasses.replace(self, **unset)
    for field in dataclasses.fields(config):
      if getattr(config, field.name) is None:
        raise RunError(f'a model without a variant needs {field.name}')
    # One way to write one model.
    plain = dict(kv_heads=config.num_heads, head_dim=config.width / max(config.num_heads, 1))
    shortest = {name: 0 for name, value in plain.items() if getattr(config, name) == value}
    return dataclasses.replace(config, **shortest)

  def check(self, options: dict[str, tuple[str, ...]] = OPTIONS) -> None:
    """Raises RunError for unknown names and for numbers that contradict each other."""
    for name, known in options.items():
      value = getattr(self, name)
      if value not in known:
        raise RunError(f'unknown model.{name} {value!r}: {suggest(str(value), known)}')
    for name in self.without:
      if name not in BIASES:
        raise RunError(f'unknown part {name!r} in model.no_bias: {suggest(name, BIASES)}')
    kept_names(self.remat)
    if min(self.width, self.depth, self.mlp_dim, self.num_heads) < 1:
      raise RunError('width, depth, mlp_dim and num_heads of a model must be at least 1')
    if min(self.kv_heads, self.head_dim, self.softcap) < 0:
      raise RunError('kv_heads, head_dim and softcap of a model must not be negative')
    if not self.head_dim and self.width % self.num_heads:
      raise RunError(f'num_heads={self.num_heads} does not divide width={self.width}')
    if self.num_heads % self.key_heads:
      raise RunError(f'kv_heads={self.kv_heads} does not divide num_heads={self.num_heads}')
    if not (math.isfinite(self.eps) and self.eps > 0 and math.isfinite(self.layerscale)):
      raise RunError(f'eps={self.eps} must be positive, layerscale={self.layerscale} a number')
    if min(self.mup_width, self.mup_depth) < 0:
      raise RunError('mup_width and mup_depth must be at least 0')
    if self.mup_width and self.head_dim:
      raise RunError(f'model.mup_width: no rule for head_dim={self.head_dim}, a width of its own')
    if not 0 <= self.drop_path < 1:
      raise RunError(f'model.drop_path={self.drop_path} must be in [0, 1)')
    if not 0 <= self.dropout < 1:
      raise RunError(f'model.dropout={self.dropout} must be in [0, 1)')
    if self.dropout and self.drop_path and self.drop_path_mode == 'subset':
      raise RunError('model.dropout is of all examples: use drop_path_mode=linear or constant')
    if self.parallel and self.norm_place == 'post':
      raise RunError('parallel blocks have one norm, before both branches: use norm_place=pre')

  @property
  def gated(self) -> bool:
    """Whether MLPs have a second projection, which gates the first."""
    return self.mlp in GATED

  @property
  def head_width(self) -> int:
    """Features of a head."""
    return self.head_dim or self.width // self.num_heads

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.kv_heads or self.num_heads

  @property
  def query_width(self) -> int:
    """Features of the queries of all heads, and of what these get."""
    return self.num_heads * self.head_width

  @property
  def key_width(self) -> int:
    """Features of the keys of all heads, and of the values."""
    return self.key_heads * self.head_width

  @property
  def vector_width(self) -> int:
    """What the initial size of learned vectors, such as positions, is chosen for."""
    return self.mup_width or self.width

  @property
  def score_scale(self) -> float:
    """Of attention scores, on top of the inverse square root of the width of a head.

    With the maximal-update parametrisation scores are divided by the width itself, and heads of 64
    features are as they would be without.
    """
    return 8 * self.head_width**-0.5 if self.mup_width else 1.0

  @property
  def branch_scale(self) -> float:
    """Of what each attention and MLP adds to its input."""
    return self.mup_depth / self.depth if self.mup_depth else 1.0

  @property
  def without(self) -> tuple[str, ...]:
    """The parts named in `no_bias`."""
    return tuple(name for name in self.no_bias.split(',') if name)


def kept_names(policy: str) -> tuple[str, ...]:
  """The activations, out of `NAMES`, that a policy of `encoder.remat` keeps by name.

  Raises:
    RunError: for an unknown policy or name.
  """
  if policy in REMAT:
    return PRODUCTS if policy == 'names' else ()
  names = tuple(policy.split(','))
  for name in names:
    if name not in NAMES:
      raise RunError(f'unknown remat policy {name!r}: {suggest(name, (*REMAT, *NAMES))}')
  return names


@dataclasses.dataclass(frozen=True)
class ViTArchitecture(EncoderConfig):
  """A Vision Transformer for images of one to three axes. Fields left unset are of its variant.

  Videos and volumes are images with frames, or slices, before rows and columns; signals have
  columns only.

  Attributes:
    variant: family, size and patch, 'S/16' or 'dinov2:S/14'; see `architecture.variants`. With ''
      the options are those of the original model, and sizes must be given.
    patch_size: side of the patches in pixels, or in positions of the stem's output; or one for each
      axis, (2, 16, 16).
    image_size: height and width in pixels, (32, 224, 224) with frames before them or (1024,) of
      signals, multiples of patch_size, for which learned positions are stored. Images of other
      sizes may be given: stored positions are then interpolated, computed ones continue, and
      relative positions of packed images beyond the stored ones are clipped.
    in_channels: of the images.
    num_classes: logits of the linear head; 0 for no head. Training replaces 0 by what the data set
      has.
    stem_width: width of the ResNet in front; 0 for none.
    stem_depths: units of each of its stages.
    stem_convention: epsilons of the stem: 'bit', as in the original, or 'timm'.
    class_token: a class token even if the pooling does not look at it.
    distilled: a distillation token with a separate head (Touvron et al. 2021); logits are the mean
      of both heads. Needs pool='token'.
    registers: number of further tokens that are not pooled (Darcet et al. 2024).
    queries: number of learned tokens whose output `ViT.features` gives by this name, for models
      that read answers from them (YOLOS, Fang et al. 2021).
    mask_token: a learned vector that replaces patches that are masked out.
    embed_norm: a norm between embedding and first block (CLIP).
    posemb: 'learned' (one vector per position), 'sincos' (fixed, with the frequencies of MoCo v3
      and big_vision) or 'sincos_mae' (with those of MAE, He et al. 2022), 'factorised' (a vector
      per row plus one per column, Dehghani et al. 2023, and one per frame), 'space_time' (one per
      position in a frame plus one per frame, which begin at 0, Bertasius et al. 2021) or 'none'.
    posemb_tokens: which tokens 'learned' and 'space_time' have vectors for: 'patches' only, also
      'class' and distillation token, or 'all' with registers and queries.
    interpolation: how learned positions are resampled; see `positions.resize_weights`.
    rope: rotary positions of patches: 'unit' (DINOv3), 'grid' (EVA-02) or 'none'; see
      `positions.rope`.
    rope_base: base of their frequencies.
    rope_grid: with 'grid', positions are stretched to this many patches along each axis; zeros
      leave them as they are.
    patch_dropout: share of the patches left out when a model is called with a key (Li et al. 2023).
    pool: what the head sees: 'token' (a learned class token), 'mean' (of all patches), 'map'
      (multi-head attention pooling of all patches, Zhai et al. 2022, section 3.1, whose heads have
      keys of their own and no softcap) or 'token_mean' (both, side by side).
    pool_norm: apply the last norm after the pooling instead of before.
    representation_size: width of a tanh layer before the head; 0 for none.
    initial: values of a new model: 'vit', those of the original: kernels are Xavier uniform, and
      zero in the head; 'deit', those of DeiT, DeiT III and DINO: kernels, positions and tokens are
      normal noise of 0.02, and the embedding of patches is as PyTorch makes it; or 'mae', those of
      MAE: tokens are that noise, kernels Xavier uniform, queries, keys and values as if they were
      one, and so is the embedding of patches.
    head_bias: initial value of the bias of a new head, whose kernel is 0: with a loss of each class
      the logarithm of the odds that a class is there, -10 of ImageNet-21k and -6.9 of ImageNet in
      big_vision.
  """

  kind: ClassVar[str] = 'vit'
  variant: str = 'S/16'
  patch_size: int | Sides = UNSET
  image_size: Sides = UNSET
  in_channels: int = UNSET
  num_classes: int = 0
  stem_width: int = UNSET
  stem_depths: tuple[int, ...] = UNSET
  stem_convention: str = UNSET
  class_token: bool = UNSET
  distilled: bool = UNSET
  registers: int = UNSET
  queries: int = UNSET
  mask_token: bool = UNSET
  embed_norm: bool = UNSET
  posemb: str = UNSET
  posemb_tokens: str = UNSET
  interpolation: str = UNSET
  rope: str = UNSET
  rope_base: float = UNSET
  rope_grid: Sides = UNSET
  patch_dropout: float = 0.0
  pool: str = UNSET
  pool_norm: bool = UNSET
  representation_size: int = UNSET
  initial: str = 'vit'
  head_bias: float = 0.0

  def resolve(self) -> Self:
    """This configuration with what its variant says filled in and everything checked.

    Raises:
      RunError: for unknown names and for sizes that do not divide each other.
    """
    config = self.filled(variants.options(self.variant))
    if config.pool in ('token', 'token_mean') and not config.class_token:
      config = dataclasses.replace(config, class_token=True)
    config.check(VIT_OPTIONS)
    config._check_sides()
    axes = len(config.image_size)
    if set(config.patch) == {config.patch[0]}:
      config = dataclasses.replace(config, patch_size=config.patch[0])
    if min(config.num_classes, config.registers, config.queries, config.representation_size) < 0:
      raise RunError('num_classes, registers, queries and representation_size must not be negative')
    if not math.isfinite(config.head_bias):
      raise RunError(f'model.head_bias={config.head_bias} must be a number')
    if config.initial != 'vit' and config.mup_width:
      raise RunError(f'model.mup_width: no rule for model.initial={config.initial}')
    if config.head_bias and 'head' in config.without:
      raise RunError(
        f'model.head_bias={config.head_bias}: model.no_bias leaves the head without one'
      )
    if min(config.patch) < 1 or config.in_channels < 1:
      raise RunError('patch_size and in_channels must be at least 1')
    if config.stem_width % STEM_GROUPS:
      raise RunError(f'stem_width={config.stem_width} must be a multiple of {STEM_GROUPS}')
    if config.stem_width and axes != 2:
      raise RunError(f'a stem is for images of 2 axes: image_size={config.image_size}')
    sides = zip(config.image_size, config.stride, strict=True)
    if any(side < 1 or side % stride for side, stride in sides):
      stride = config.stride[0] if len(set(config.stride)) == 1 else config.stride
      raise RunError(f'patch_size={stride} does not divide image_size={config.image_size}')
    if 'sincos' in config.posemb and config.width % (2 * axes):
      raise RunError(
        f'posemb={config.posemb} needs a width divisible by {2 * axes}, twice the axes, not '
        f'{config.width}'
      )
    if config.posemb == 'space_time' and axes != 3:
      raise RunError(f'posemb=space_time needs frames: image_size={config.image_size}')
    if config.rope != 'none' and (config.head_width % 4 or config.head_width < 2 * axes):
      raise RunError('rope needs heads whose width is divisible by 4, and at least twice the axes')
    if not (math.isfinite(config.rope_base) and config.rope_base > 0):
      raise RunError(f'rope_base={config.rope_base} must be positive')
    if config.distilled and config.pool != 'token':
      raise RunError(f'distilled=True needs pool=token, not {config.pool}')
    layers = parse(
      config.attention, axes, config.num_heads, config.depth, kv_heads=config.key_heads
    )
    read = [n for n in ('distill', 'queries') if n in config.special]
    read += ['class'] if config.pool in ('token', 'token_mean') else []
    if read and not any(part.prefix for layer in layers for shares in layer for part in shares):
      raise RunError(
        f'model.attention={config.attention!r} never shows patches to the tokens before them, of '
        f'which {", ".join(read)} must see them: write {config.attention}*, or use pool=mean'
      )
    if config.attention != 'full' and config.patch_dropout:
      raise RunError(
        'patch_dropout leaves no grid for attention along its axes: use attention=full'
      )
    if not 0 <= config.patch_dropout < 1:
      raise RunError(f'model.patch_dropout={config.patch_dropout} must be in [0, 1)')
    return config

  def _check_sides(self) -> None:
    """Raises RunError where there is not one whole number for each axis."""
    for name in ('image_size', 'patch_size', 'rope_grid'):
      value = getattr(self, name)
      if name == 'patch_size' and type(value) is int:
        continue
      if not 1 <= len(value) <= 3 or not all(type(side) is int for side in value):
        raise RunError(f'{name}={value!r} must be one to three whole numbers')
      if len(value) != len(self.image_size) and any(value):
        raise RunError(f'{name}={value!r} is not of as many axes as image_size={self.image_size}')

  @property
  def patch(self) -> tuple[int, ...]:
    """Sides of a patch along each axis."""
    return on_axes(self.patch_size, len(self.image_size))

  @property
  def stride(self) -> tuple[int, ...]:
    """Pixels from one patch to the next along each axis, stem included."""
    times = stem_stride(self.stem_depths) if self.stem_width else 1
    return tuple(side * times for side in self.patch)

  @property
  def grid(self) -> tuple[int, ...]:
    """Patches along each axis, of a resolved configuration."""
    return tuple(side // s for side, s in zip(self.image_size, self.stride, strict=True))

  @property
  def special(self) -> dict[str, int]:
    """How many tokens of each kind there are before the patches, by name, in their order."""
    counts = {
      'class': int(self.class_token), 'distill': int(self.distilled), 'registers': self.registers,
      'queries': self.queries,
    }  # fmt: skip
    return {name: count for name, count in counts.items() if count}

  @property
  def prefix(self) -> int:
    """Tokens before the patches."""
    return sum(self.special.values())

  @property
  def tables(self) -> dict[str, tuple[int, ...]]:
    """Learned positions: names of parameters, and along which axes each has vectors."""
    axes = tuple(range(len(self.image_size)))
    own = {f'posemb_{name}': (axis,) for axis, name in zip(axes, AXES[-len(axes) :], strict=True)}
    return {
      'learned': {'posemb': axes}, 'factorised': own,
      'space_time': {'posemb': axes[1:], 'posemb_frames': axes[:1]},
    }.get(self.posemb, {})  # fmt: skip

  @property
  def posemb_prefix(self) -> int:
    """How many tokens before the patches have learned positions, if patches have."""
    tokens = {
      'patches': 0, 'class': self.class_token + self.distilled, 'all': self.prefix
    }  # fmt: skip
    return tokens[self.posemb_tokens]


def on_axes(sides: Any, axes: int) -> tuple[int, ...]:
  """One number for each axis, which a single one is of all; raises RunError for other numbers."""
  found = tuple(sides) if isinstance(sides, list | tuple) else (sides,) * axes
  if len(found) != axes:
    raise RunError(f'{tuple(sides)} is not of {axes} axes')
  return tuple(operator.index(side) for side in found)


def stem_stride(depths: tuple[int, ...]) -> int:
  """Pixels per position of the output of a `resnet.ResNet`."""
  return 4 * 2 ** max(len(depths) - 1, 0)
