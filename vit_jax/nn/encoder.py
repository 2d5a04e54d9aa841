"""The transformer encoder: its blocks, scanned over depth, rematerialised by policy."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax.architecture.vit import EncoderConfig, kept_names
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.nn.attention import Attention, Context, RelativeBias, padding
from vit_jax.nn.layers import Mlp, Norm, flatten, ones, unflatten
from vit_jax.nn.noise import noise
from vit_jax.nn.sharding import param, shards, spec


def remat(body, policy: str, *, scan: bool):
  """Wraps the body of a scan over layers in activation checkpointing (Chen et al. 2016).

  Args:
    body: the function of one layer.
    policy: 'none' keeps every activation for the backward pass; 'dots' the results of matrix
      products with weights; 'names' those that its own products need, and what attention gives, so
      that only norms, activations and attention weights are computed again; 'full' only the
      block's input. Or the names to keep, out of `architecture.NAMES`, separated by commas.
    scan: whether the body is scanned; without a scan the compiler must be kept from undoing the
      recomputation by common-subexpression elimination.

  Raises:
    RunError: for an unknown policy or name.
  """
  if policy == 'none':
    return body
  policies = jax.checkpoint_policies
  if policy == 'full':
    saved = policies.nothing_saveable
  elif policy == 'dots':
    saved = policies.dots_with_no_batch_dims_saveable
  else:
    saved = policies.save_only_these_names(*kept_names(policy))
  return jax.checkpoint(body, policy=saved, prevent_cse=not scan)


def make_norm(
  config: EncoderConfig, width: int, rngs: nnx.Rngs, *, axis: str | None = None
) -> Norm:
  """A norm of the kind that a model has; arguments as for `Norm`."""
  bias = 'norm' not in config.without
  return Norm(width, rngs, kind=config.norm, eps=config.eps, bias=bias, axis=axis)


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, equations 2 and 3)."""

  def __init__(
    self, config: EncoderConfig, rngs: nnx.Rngs, *, grid: Any = None, prefix=False, causal=False
  ):
    width, without = config.width, config.without
    norm = functools.partial(make_norm, config)
    relative = None
    if config.relative_bias == 'layer':
      relative = RelativeBias(grid, prefix, config.num_heads, rngs)
    self.norm1 = norm(width, rngs)
    self.attn = Attention(
      width, config.num_heads, rngs, norm=norm if config.qk_norm else None, no_bias=without,
      relative=relative, causal=causal, score_scale=config.score_scale,
    )  # fmt: skip
    if not config.parallel:
      self.norm2 = norm(width, rngs)
    self.mlp = Mlp(
      width, config.mlp_dim, rngs, kind=config.mlp, norm=norm if config.mlp_norm else None,
      bias='mlp' not in without,
    )  # fmt: skip
    if config.layerscale:
      full = lambda *args: config.layerscale * ones(*args)  # noqa: E731
      self.scale1 = param(full, rngs, (width,), (None,))
      self.scale2 = param(full, rngs, (width,), (None,))
    self.config = config

  def __call__(
    self, x: jax.Array, context: Context | None = None, bias=None, key=None, rate=None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One layer.

    Args:
      x: (batch, tokens, width).
      context: of the tokens.
      bias: shared by all layers, added to attention scores.
      key, rate: a key or `Noise` of stochastic depth, and its rate; without one nothing is dropped.

    Returns:
      The new x, and what was added to it by 'attn' and 'mlp' (after LayerScale, before dropping).
    """
    context, added = context or Context(), {}
    # Of a subset of the examples, if stochastic depth leaves out the others.
    fold = lambda y: unflatten(y, y.shape[0] // x.shape[1])  # noqa: E731

    def attention(y, context, bias):
      y = fold(y)
      y = flatten(self.attn(y, y, context, bias))
      added['attn'] = self._scaled(checkpoint_name(y, 'attn'), 1)
      return added['attn']

    def mlp(y):
      y = flatten(self.mlp(fold(y)))
      added['mlp'] = self._scaled(checkpoint_name(y, 'mlp'), 2)
      return added['mlp']

    def parallel(y, context, bias):
      y = self.norm1(y)
      return attention(y, context, bias) + mlp(y)

    key = None if key is None else noise(key)
    keys = (None, None) if key is None else key.split()
    add = functools.partial(self._add, batch=x.shape[0], rate=rate)
    y = flatten(x)
    if self.config.parallel:
      y = add(y, parallel, context, bias, key=key)
    elif self.config.norm_place == 'post':
      y = self.norm1(add(y, attention, context, bias, key=keys[0]))
      y = self.norm2(add(y, lambda y, *_: mlp(y), context, key=keys[1]))
    else:
      y = add(y, lambda y, *rest: attention(self.norm1(y), *rest), context, bias, key=keys[0])
      y = add(y, lambda y, *_: mlp(self.norm2(y)), context, key=keys[1])
    return fold(y), {name: fold(y) for name, y in added.items()}

  def _scaled(self, y: jax.Array, number: int) -> jax.Array:
    if self.config.mup_depth:
      y = y * self.config.branch_scale
    if not self.config.layerscale:
      return y
    return y * getattr(self, f'scale{number}')[...].astype(y.dtype)

  def _add(self, x, branch, context, bias=None, *, key, batch, rate):
    """x + branch(x) on rows, with stochastic depth if there is a key."""
    if key is None:
      return x + branch(x, context, bias)
    if self.config.drop_path_mode == 'subset':
      y = unflatten(x, batch)
      y = _add_to_subset(y, branch, context, bias, key, self.config.drop_path)
      return flatten(y)
    bernoulli = lambda key, shape, **layout: jax.random.bernoulli(key, 1 - rate, shape, **layout)  # noqa: E731
    kept = key.draw(bernoulli, batch, 1, 1)
    scale = (kept / (1 - rate)).astype(x.dtype)
    return x + flatten(unflatten(branch(x, context, bias), batch) * scale)


def _add_to_subset(x, branch, context, bias, key, rate):
  """x + branch(x) for a random subset, of static size, of the examples on each device.

  `x` is (batch, tokens, width); `branch` takes and returns rows.
  """
  batch, parts = x.shape[0], shards('batch')
  each = batch // parts
  keep = max(1, round(each * (1 - rate)))
  if keep == each:
    raise RunError(
      f'drop_path={rate} of {each} examples on each device is none: with drop_path_mode=subset use '
      'a larger batch or rate'
    )
  draw = key.draw(jax.random.uniform, batch).reshape(parts, each, out_sharding=spec('batch', None))
  order = jnp.argsort(draw, axis=1)

  def split(y):
    return y.reshape(parts, each, *y.shape[1:], out_sharding=spec('batch', *(None,) * y.ndim))

  def pick(y):
    y = _take(split(y), order[:, :keep])
    out = spec('batch', *(None,) * (y.ndim - 2))
    return y.reshape(parts * keep, *y.shape[2:], out_sharding=out)

  picked_bias = pick(bias) if bias is not None and bias.shape[0] == batch > 1 else bias
  y = branch(flatten(pick(x)), context.rows(pick, batch), picked_bias) * (each / keep)
  y = unflatten(y, parts * keep)
  y = y.reshape(parts, keep, *y.shape[1:], out_sharding=spec('batch', *(None,) * y.ndim))
  y = jnp.pad(y, ((0, 0), (0, each - keep), (0, 0), (0, 0)))
  # Sorting the order gives the place of each example among the picked ones, or a row of zeros.
  y = _take(y, jnp.argsort(order, axis=1))
  return x + y.reshape(x.shape, out_sharding=spec('batch', None, None)).astype(x.dtype)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
  """x[i, index[i]] for each i: the batched gather along axis 1."""
  return jax.vmap(lambda x, index: x[index])(x, index)


class Encoder(nnx.Module):
  """Blocks, stored as one block whose parameters have a leading layer axis, and a norm.

  The parameters are the same whether the layers are scanned or unrolled. Training unrolled layers
  is faster with a block for each, which `split_layers` makes.

  Args:
    config: of the blocks.
    grid: rows and columns of the grid of patches, for relative positions.
    prefix: whether tokens precede the patches, likewise.
    causal: tokens attend to what precedes them only.
    final_norm: whether there is a norm after the last block (never with norm_place='post').
  """

  def __init__(
    self, config: EncoderConfig, rngs: nnx.Rngs, *, grid: Any = None, prefix: bool = False,
    causal: bool = False, final_norm: bool = True,
  ):  # fmt: skip
    if config.num_heads % shards('heads'):
      raise RunError(
        f'num_heads={config.num_heads} cannot be divided among the {shards("heads")} devices of '
        'the tensor axis: choose a smaller mesh.tensor'
      )
    keys = jax.random.split(rngs.params(), config.depth)
    make = lambda key: Block(  # noqa: E731
      config, nnx.Rngs(key), grid=grid, prefix=prefix, causal=causal
    )
    self.blocks = jax.vmap(make)(keys)
    if config.relative_bias == 'shared':
      self.relative = RelativeBias(grid, prefix, config.num_heads, rngs)
    if final_norm and config.norm_place == 'pre':
      self.norm = make_norm(config, config.width, rngs)
    self.config = config

  def __call__(
    self, x: jax.Array, context: Context | None = None, *, key=None, record: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """All blocks, and the norm.

    Args:
      x: (batch, tokens, width).
      context: of the tokens.
      key: a key or `Noise` of stochastic depth; none drops nothing.
      record: whether to return what happened inside.

    Returns:
      The normalised tokens, and if asked 'attn', 'mlp' and 'block', (depth, batch, tokens, width):
      what each layer added, and its output.
    """
    config = self.config
    blocks: Any = self.blocks
    stacked = isinstance(blocks, Block)
    if stacked:
      # Once for all layers; a single matrix is cast as it is read.
      blocks = cast_weights(blocks, x.dtype)
    context, tokens = context or Context(), x.shape[1]
    extra = padding(tokens, config.width // config.num_heads)
    if extra:
      fill = lambda y: jnp.pad(y, ((0, 0), (0, extra), (0, 0)))  # noqa: E731
      angles = None if context.angles is None else fill(context.angles)
      x, context = fill(x), context._replace(angles=angles, length=tokens)
    bias = self.relative(context) if config.relative_bias == 'shared' else None
    bias = None if bias is None else bias.astype(x.dtype)
    drop: Any = (None, None)
    if key is not None and config.drop_path:
      rates = jnp.full(config.depth, config.drop_path, jnp.float32)
      if config.drop_path_mode == 'linear':
        rates = jnp.linspace(0.0, config.drop_path, config.depth)
      drop = noise(key).stacked(config.depth), rates

    def layer(x, item):
      block, (key, rate) = item
      x, added = block(x, context, bias, key, rate)
      return x, {**added, 'block': x} if record else None

    body = remat(layer, config.remat, scan=config.scan)
    if config.scan and stacked:
      x, recorded = jax.lax.scan(body, x, (blocks, drop))
    else:
      blocks, steps = unstack(blocks, config.depth) if stacked else blocks, []
      for item in zip(blocks, unstack(drop, config.depth), strict=True):
        x, step = body(x, item)
        steps.append(step)
      recorded = jax.tree.map(lambda *parts: jnp.stack(parts), *steps) if record else None
    recorded = jax.tree.map(lambda y: y[:, :, :tokens], recorded or {})
    x = x[:, :tokens]
    return self.norm(x) if hasattr(self, 'norm') else x, recorded


def features_by_name(layers: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """What an `Encoder` recorded, layer by layer: 'block00/attn', 'block00/mlp', 'block00'."""
  named = {}
  for number in range(len(layers['block']) if layers else 0):
    name = f'block{number:02d}'
    named |= {f'{name}/{part}': layers[part][number] for part in ('attn', 'mlp')}
    named[name] = layers['block'][number]
  return named


def unstack(items: Any, depth: int) -> list[Any]:
  """The layers of arrays with a leading layer axis; their gradients are put together as one."""
  leaves, structure = jax.tree.flatten(items)
  parts = [jax.lax.split(leaf, (1,) * depth) for leaf in leaves]
  return [structure.unflatten(part[i].squeeze(0) for part in parts) for i in range(depth)]


def split_layers(tree: Any) -> Any:
  """`tree`, in every encoder with unrolled layers the stacked blocks replaced by a list of blocks.

  So that no layer's weights, gradients and optimizer state must be cut out of larger arrays and
  put back. Any tree with the structure of a model will do: its gradient, its optimizer's state.
  """

  def split(encoder):
    if encoder.config.scan:
      return encoder
    return _with_blocks(encoder, nnx.List(unstack(encoder.blocks, encoder.config.depth)))

  return _map_encoders(split, tree)


def stack_layers(tree: Any) -> Any:
  """The inverse of `split_layers`, and how checkpoints and everything else hold a model."""

  def stack(encoder):
    if isinstance(encoder.blocks, Block):
      return encoder
    return _with_blocks(encoder, jax.tree.map(lambda *ws: jnp.stack(ws), *encoder.blocks))

  return _map_encoders(stack, tree)


def is_unrolled(tree: Any) -> bool:
  """Whether there is an encoder with unrolled layers in a tree."""
  is_encoder = lambda node: isinstance(node, Encoder)  # noqa: E731
  nodes = jax.tree.leaves(tree, is_leaf=is_encoder)
  return any(is_encoder(node) and not node.config.scan for node in nodes)


def _map_encoders(function: Any, tree: Any) -> Any:
  is_encoder = lambda node: isinstance(node, Encoder)  # noqa: E731
  return jax.tree.map(lambda n: function(n) if is_encoder(n) else n, tree, is_leaf=is_encoder)


def _with_blocks(encoder: Encoder, blocks: Any) -> Encoder:
  encoder = copy.copy(encoder)
  encoder.blocks = blocks
  return encoder


def layer_of(blocks: Any, layer: int) -> Any:
  """One block out of the stacked ones."""
  return jax.tree.map(lambda w: w[layer], blocks)


def cast_weights(blocks: Block, dtype) -> Block:
  """Weights of the stacked blocks in the compute dtype, cast once for all layers of a step.

  Norms and tables of relative positions keep float32: they are small, and used in float32.
  """

  def cast(path, w):
    name = tree.name(path)
    return w if 'norm' in name or 'relative' in name else w.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, blocks)
