"""The transformer encoder: its blocks, scanned over depth, rematerialised by policy."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from vit_jax.architecture.pattern import Layer, Part, on_grid, parse
from vit_jax.architecture.vit import EncoderConfig
from vit_jax.core.errors import RunError
from vit_jax.nn import remat, tree
from vit_jax.nn.attention import Attention, Context, RelativeBias, padding
from vit_jax.nn.groups import Groups, together
from vit_jax.nn.layers import Mlp, Norm, constant, flatten, unflatten
from vit_jax.nn.noise import dropout, dropped, noise
from vit_jax.nn.sharding import param, shards, spec

# What applies an attention to tokens (batch, tokens, width) in their context.
Attend = Callable[[Attention, jax.Array, Context], jax.Array]
# Of the keys of dropout: of what enters the first block, of what branches add, of hidden layers.
_INPUT, _BRANCH, _HIDDEN = range(1, 4)


def layers_of(config: EncoderConfig, grid: Any, *, memory: bool) -> tuple[Layer, ...]:
  """The layers of `config.attention`, as many as are different."""
  return parse(
    config.attention, len(grid) if grid else 1, config.num_heads, config.depth,
    kv_heads=config.key_heads, memory=memory,
  )  # fmt: skip


def make_norm(
  config: EncoderConfig, width: int, rngs: nnx.Rngs, *, axis: str | None = None
) -> Norm:
  """A norm of the kind that a model has; arguments as for `Norm`."""
  bias = 'norm' not in config.without
  return Norm(width, rngs, kind=config.norm, eps=config.eps, bias=bias, axis=axis)


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, equations 2 and 3).

  Arguments as for `Encoder`.
  """

  def __init__(
    self, config: EncoderConfig, rngs: nnx.Rngs, *, grid: Any = None, prefix: bool = False,
    memory: int = 0,
  ):  # fmt: skip
    width, without = config.width, config.without
    norm = functools.partial(make_norm, config)

    def attention(shares: tuple[Part, ...]) -> Attention:
      relative, outside = None, shares[0].memory
      if config.relative_bias == 'layer' and not outside:
        relative = RelativeBias(grid, prefix, config.num_heads, rngs)
      return Attention(
        width, config.num_heads, rngs, kv_heads=config.kv_heads, head_dim=config.head_dim,
        memory=memory if outside else 0, norm=norm if config.qk_norm else None, no_bias=without,
        relative=relative, score_scale=config.score_scale, cap=config.softcap,
        neighbours=config.rope_pairs == 'neighbours',
      )  # fmt: skip

    *before, last = layers_of(config, grid, memory=memory > 0)[0]
    # What comes before the last attention, if a layer has several.
    scale = functools.partial(_scale, config, rngs)
    for number, shares in enumerate(before, 1):
      setattr(self, f'before{number}', Before(norm(width, rngs), attention(shares), scale()))
    self.norm1 = norm(width, rngs)
    self.attn = attention(last)
    if not config.parallel:
      self.norm2 = norm(width, rngs)
    self.mlp = Mlp(
      width, config.mlp_dim, rngs, kind=config.mlp, norm=norm if config.mlp_norm else None,
      bias='mlp' not in without,
    )  # fmt: skip
    if config.layerscale:
      self.scale1, self.scale2 = scale(), scale()
    self.config = config

  def __call__(
    self, x: jax.Array, contexts: Sequence[Context] = (Context(),), key=None, rate=None,
    attend: Attend = lambda attention, y, context: attention(y, context),
  ) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """One layer.

    Args:
      x: (batch, tokens, width).
      contexts: of the tokens, for each attention.
      key, rate: a key or `Noise` of what is dropped, and the rate of stochastic depth; without one
        nothing is.
      attend: applies an attention to tokens.

    Returns:
      The new x, and what was added to it by 'attn', the last one, and 'mlp' (after LayerScale,
      before dropping).
    """
    added, post = {}, self.config.norm_place == 'post'
    # Of a subset of the examples, if stochastic depth leaves out the others.
    fold = lambda y: unflatten(y, y.shape[0] // x.shape[1])  # noqa: E731
    scales = [getattr(self, name, None) for name in ('scale1', 'scale2')]

    def attended(own, y, context, scale):
      return self._scaled(remat.keep(flatten(attend(own, fold(y), context)), 'attn'), scale)

    def attention(y, context):
      added['attn'] = attended(self.attn, y, context, scales[0])
      return added['attn']

    def hidden(y):
      own = None if keys[1] is None else keys[1].other(_HIDDEN)
      return dropout(y, own, self.config.dropout, y.shape[0] // x.shape[1], 'mlp')

    def mlp(y, _=None):
      y = flatten(self.mlp(fold(y), hidden))
      added['mlp'] = self._scaled(remat.keep(y, 'mlp'), scales[1])
      return added['mlp']

    def parallel(y, context):
      y = self.norm1(y)
      return attention(y, context) + mlp(y)

    *before, context = contexts
    key = None if key is None else noise(key)
    count = 2 + len(before)
    keys = [None] * count if key is None else key.split(count)
    add = functools.partial(self._add, batch=x.shape[0], rate=rate)
    y = flatten(x)
    for number, other in enumerate(before, 1):
      own = getattr(self, f'before{number}')

      def branch(y, context, own=own):
        return attended(own.attn, y if post else own.norm(y), context, getattr(own, 'scale', None))

      y = add(y, branch, other, key=keys[1 + number])
      y = own.norm(y) if post else y
    if self.config.parallel:
      y = add(y, parallel, context, key=key)
    elif post:
      y = self.norm1(add(y, attention, context, key=keys[0]))
      y = self.norm2(add(y, mlp, context, key=keys[1]))
    else:
      y = add(y, lambda y, context: attention(self.norm1(y), context), context, key=keys[0])
      y = add(y, lambda y, _: mlp(self.norm2(y)), context, key=keys[1])
    return fold(y), {name: fold(y) for name, y in added.items()}

  @property
  def attentions(self) -> list[Attention]:
    """In the order in which they are applied."""
    before = [getattr(self, name).attn for name in sorted(vars(self)) if name.startswith('before')]
    return [*before, self.attn]

  def _scaled(self, y: jax.Array, scale: nnx.Param | None) -> jax.Array:
    if self.config.mup_depth:
      y = y * self.config.branch_scale
    return y if scale is None else y * scale[...].astype(y.dtype)

  def _add(self, x, branch, context, *, key, batch, rate):
    """x + branch(x) on rows; if there is a key, with dropout and stochastic depth."""
    config = self.config
    if key is None or not (config.dropout or config.drop_path):
      return x + branch(x, context)
    if config.drop_path and config.drop_path_mode == 'subset':
      y = unflatten(x, batch)
      y = _add_to_subset(y, branch, context, key, config.drop_path)
      return flatten(y)
    y = dropout(branch(x, context), key.other(_BRANCH), config.dropout, batch)
    if config.drop_path:
      y = flatten(dropped(unflatten(y, batch), key, rate))
    return x + y


class Before(nnx.Module):
  """An attention before the last one of a layer that has several, its norm and its LayerScale."""

  def __init__(self, norm: Norm, attn: Attention, scale: nnx.Param | None):
    self.norm, self.attn = norm, attn
    if scale is not None:
      self.scale = scale


def _scale(config: EncoderConfig, rngs: nnx.Rngs) -> nnx.Param | None:
  """Factors of what a branch adds, or None."""
  if not config.layerscale:
    return None
  return param(constant(config.layerscale), rngs, (config.width,), (None,))


def _add_to_subset(x, branch, context, key, rate):
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

  y = branch(flatten(pick(x)), context.rows(pick, batch)) * (each / keep)
  y = unflatten(y, parts * keep)
  y = y.reshape(parts, keep, *y.shape[1:], out_sharding=spec('batch', *(None,) * y.ndim))
  y = jnp.pad(y, ((0, 0), (0, each - keep), (0, 0), (0, 0)))
  # Sorting the order gives the place of each example among the picked ones, or a row of zeros.
  y = _take(y, jnp.argsort(order, axis=1))
  return x + y.reshape(x.shape, out_sharding=spec('batch', None, None)).astype(x.dtype)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
  """x[i, index[i]] for each i: the batched gather along axis 1."""
  return jax.vmap(lambda x, index: x[index])(x, index)


class Between(NamedTuple):
  """What a model does with its tokens between the layers of an encoder.

  Attributes:
    after: of the output of a layer (batch, tokens, width), the state and the layer's own arrays
      makes the input of the next layer, its state, and what is recorded of this one, by name.
    state: of the first layer, any tree of arrays; shapes and dtypes stay.
    own: tree of arrays with a leading axis over the layers.
    position: of a state, what is added to tokens as queries and keys; see `Context.position`. None
      leaves those of the context.
  """

  after: Callable[[jax.Array, Any, Any], tuple[jax.Array, Any, dict[str, jax.Array]]]
  state: Any = None
  own: Any = None
  position: Callable[[Any], jax.Array] | None = None


class Encoder(nnx.Module):
  """Blocks, stored as one block whose parameters have a leading layer axis, and a norm.

  The parameters are the same whether the layers are scanned or unrolled. Training unrolled layers
  is faster with a block for each, which `split_layers` makes.

  Args:
    config: of the blocks.
    grid: of the patches, for relative positions and attention along its axes.
    prefix: whether tokens precede the patches, likewise.
    memory: features of the tokens of another model that 'memory' in `attention` is of; 0 for none.
    final_norm: whether there is a norm after the last block (never with norm_place='post').
  """

  def __init__(
    self, config: EncoderConfig, rngs: nnx.Rngs, *, grid: Any = None, prefix: bool = False,
    memory: int = 0, final_norm: bool = True,
  ):  # fmt: skip
    for name, heads in (('num_heads', config.num_heads), ('kv_heads', config.key_heads)):
      if heads % shards('heads'):
        raise RunError(
          f'{name}={heads} cannot be divided among the {shards("heads")} devices of the tensor '
          'axis: choose a smaller mesh.tensor'
        )
    layers = layers_of(config, grid, memory=memory > 0)
    if not grid and on_grid(layers):
      raise RunError(f'model.attention={config.attention!r} is of tokens that are on a grid')
    if memory and config.mup_width:
      raise RunError('model.mup_width: no rule for keys and values of a memory')
    if config.relative_bias != 'none' and not grid:
      raise RunError(f'relative_bias={config.relative_bias!r} is of tokens that are on a grid')
    if config.attention != 'full' and '|' in config.attention and shards('heads') > 1:
      raise RunError(
        f'model.attention={config.attention!r} divides heads that mesh.tensor divides, too'
      )
    keys = jax.random.split(rngs.params(), config.depth)
    make = lambda key: Block(  # noqa: E731
      config, nnx.Rngs(key), grid=grid, prefix=prefix, memory=memory
    )
    self.blocks = jax.vmap(make)(keys)
    if config.relative_bias == 'shared':
      self.relative = RelativeBias(grid, prefix, config.num_heads, rngs)
    if final_norm and config.norm_place == 'pre':
      self.norm = make_norm(config, config.width, rngs)
    self.config, self.grid, self.memory = config, grid, memory

  def __call__(
    self, x: jax.Array, context: Context | None = None, *, key=None, record: bool = False,
    layers: tuple[int, int] | None = None, between: Between | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """All blocks, and the norm.

    Args:
      x: (batch, tokens, width).
      context: of the tokens.
      key: a key or `Noise` of dropout and stochastic depth; none drops nothing.
      record: whether to return what happened inside.
      layers: the first that is applied and the one behind the last, if not all are: one part after
        another, with the same key, is the same. The norm is behind the last of all. For layers that
        are all of one kind.
      between: what happens between the layers.

    Returns:
      The normalised tokens, and if asked 'attn', 'mlp' and 'block', (depth, batch, tokens, width):
      what each layer added, and its output. What `between` records is there in any case, with a
      leading axis over the layers.
    """
    context, tokens, depth = context or Context(), x.shape[1], self.config.depth
    first, last = layers or (0, depth)
    if between is None:
      x, context = self._padded(x, context)
    contexts = self.contexts(x[:, :tokens], context)
    if layers and len(contexts) > 1:
      raise ValueError(f'attention={self.config.attention!r} is of several kinds of layers')
    drop: Any = (None, None)
    if key is not None and (self.config.drop_path or self.config.dropout):
      if self.config.dropout and not first:
        own = noise(key).other(_INPUT)
        x = unflatten(dropout(flatten(x), own, self.config.dropout, len(x)), len(x))
      rates = jnp.full(depth, self.config.drop_path, jnp.float32)
      if self.config.drop_path_mode == 'linear':
        rates = jnp.linspace(0.0, self.config.drop_path, depth)
      drop = jax.tree.map(lambda y: y[first:last], (noise(key).stacked(depth), rates))
    x, recorded = self._through(x, drop, contexts, record, between, first, last)
    if x.shape[1] > tokens:
      recorded = jax.tree.map(lambda y: y[:, :, :tokens], recorded)
      x = x[:, :tokens]
    return self.norm(x) if hasattr(self, 'norm') and last == depth else x, recorded or {}

  def _padded(self, x: jax.Array, context: Context) -> tuple[jax.Array, Context]:
    """With more tokens, where attention and layouts are better for it."""
    tokens = x.shape[1]
    more = ((0, 0), (0, padding(tokens, self.config.head_width)), (0, 0))
    if not more[1][1]:
      return x, context
    fill = lambda y: (np if isinstance(y, np.ndarray) else jnp).pad(y, more)  # noqa: E731
    angles, position = jax.tree.map(fill, (context.angles, context.position))
    return jnp.pad(x, more), context.replace(angles=angles, position=position, length=tokens)

  def _through(self, x, drop, contexts, record, between, first, last):
    """The output of the last block, and what is recorded, or None."""
    config, batch, count = self.config, x.shape[0], last - first
    blocks: Any = self.blocks
    stacked = isinstance(blocks, Block)
    if stacked:
      # Once for all layers; a single matrix is cast as it is read.
      blocks = cast_weights(blocks, x.dtype)
      if count < config.depth:
        blocks = jax.tree.map(lambda w: w[first:last], blocks)
    else:
      blocks = blocks[first:last]

    def layer(carry, item, contexts):
      (x, state), (block, (key, rate), own) = carry, item
      if between and between.position:
        at = between.position(state)
        contexts = [context.replace(position=at) for context in contexts]
      x, added = block(x, contexts, key, rate)
      recorded = {**added, 'block': x} if record else {}
      if between:
        x, state, more = between.after(x, state, own)
        recorded |= more
      return (x, state), recorded or None

    state, own = (between.state, between.own) if between else (None, None)
    if count < config.depth:
      own = jax.tree.map(lambda y: y[first:last], own)
    bodies = [functools.partial(layer, contexts=each) for each in contexts]
    if not (config.scan and stacked):
      blocks = tree.unstack(blocks, count) if stacked else blocks
      return self._unrolled((x, state), blocks, tree.unstack((drop, own), count), bodies)
    count = len(contexts)
    items = remat.in_periods((blocks, drop, own), count)
    if remat.stays(config.remat) and not record and not between:

      def on_rows(number, rows, item, contexts):
        (x, _), _ = layer((unflatten(rows, batch), None), item, contexts[number])
        return flatten(x)

      rows = remat.scan(on_rows, flatten(x), items, contexts, config.remat, count)
      return unflatten(rows, batch), None
    bodies = [remat.checkpoint(body, config.remat, scan=True) for body in bodies]

    def period(carry, items):
      steps = []
      for body, item in zip(bodies, remat.apart(items, count), strict=True):
        carry, step = body(carry, item)
        steps.append(step)
      return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *steps)

    (x, _), recorded = jax.lax.scan(period, (x, state), items)
    return x, jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), recorded)

  def _unrolled(self, carry, blocks, others, bodies):
    config, steps = self.config, []
    bodies = [remat.checkpoint(body, config.remat, scan=config.scan) for body in bodies]
    items = zip(blocks, others, strict=True)
    for (block, other), body in zip(items, itertools.cycle(bodies), strict=False):
      carry, step = body(carry, (block, *other))
      steps.append(step)
    return carry[0], jax.tree.map(lambda *parts: jnp.stack(parts), *steps)

  def contexts(self, x: jax.Array, context: Context) -> list[list[Context]]:
    """Of each attention of each layer, for as many layers as are different; then they repeat.

    Args:
      x: what enters the first layer, (batch, tokens, width).
      context: of these tokens.
    """
    config = self.config
    grid = context.grid or self.grid
    prefix = x.shape[1] - math.prod(grid) if grid else 0
    if config.relative_bias != 'none' and context.index is None:
      raise ValueError('relative_bias needs to know where tokens are: Context(index=...)')
    if prefix < 0 and config.attention != 'full':
      raise ValueError(f'{x.shape[1]} tokens are fewer than the patches of a grid of {grid}')

    def own(shares: tuple[Part, ...]) -> Context:
      if shares[0].memory:
        return Context(position=context.position, memory=context.memory)
      apart = () if shares == (Part(),) else shares
      groups = [Groups(part, grid, prefix) for part in apart]
      bias = None
      if config.relative_bias == 'shared':
        bias = [self.relative(context.replace(index=g.index(context.index))) for g in groups]
        bias = bias if groups else self.relative(context)
        bias = jax.tree.map(lambda y: y.astype(x.dtype), bias)
      angles = context.angles
      if angles is not None and together(groups):
        if angles.shape[0] == 1 < len(x) and not isinstance(angles, np.ndarray):
          laid = spec('batch', None, None)
          angles = jnp.broadcast_to(angles, (len(x), *angles.shape[1:]), out_sharding=laid)
        angles = groups[0].angles(angles)
      return context.replace(groups=tuple(groups), bias=bias, angles=angles, memory=None)

    if (context.memory is None) != (not self.memory):
      raise ValueError(
        f'this encoder has {"a" if self.memory else "no"} memory to attend to, and its context has '
        f'{"none" if self.memory else "one"}'
      )
    layers = layers_of(config, grid, memory=self.memory > 0)
    return [[own(shares) for shares in layer] for layer in layers]


def features_by_name(layers: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """What an `Encoder` recorded, layer by layer: 'block00/attn', 'block00/mlp', 'block00'."""
  named = {}
  for number in range(len(layers['block']) if layers else 0):
    name = f'block{number:02d}'
    named |= {f'{name}/{part}': layers[part][number] for part in ('attn', 'mlp')}
    named[name] = layers['block'][number]
  return named


def split_layers(held: Any, axis: int = 0) -> Any:
  """`tree`, in every encoder with unrolled layers the stacked blocks replaced by a list of blocks.

  So that no layer's weights, gradients and optimizer state must be cut out of larger arrays and
  put back. Any tree with the structure of a model will do: its gradient, its optimizer's state.
  Each stacked array is deleted as soon as it is cut: there is never a second copy of all of them.

  Args:
    held: the tree; a parameter of all layers is an array or `tree.Layers`.
    axis: over the layers.
  """

  def split(encoder):
    if encoder.config.scan or not isinstance(encoder.blocks, Block):
      return encoder
    leaves, structure = jax.tree.flatten(encoder.blocks, is_leaf=tree.is_layers)
    parts = [_parts(leaf, axis) for leaf in leaves]
    layers = [structure.unflatten(each[i] for each in parts) for i in range(encoder.config.depth)]
    return _with_blocks(encoder, nnx.List(layers))

  return _map_encoders(split, held)


def _parts(leaf: Any, axis: int) -> list[jax.Array]:
  """The layers of an array, which is deleted."""
  if isinstance(leaf, tree.Layers):
    return leaf.parts
  parts = _cut(leaf, axis)
  if not isinstance(leaf, Tracer):
    jax.block_until_ready(parts)
    leaf.delete()
  return parts


@functools.partial(jax.jit, static_argnums=1)
def _cut(x: jax.Array, axis: int) -> list[jax.Array]:
  return [part.squeeze(axis) for part in jax.lax.split(x, (1,) * x.shape[axis], axis)]


def stack_layers(held: Any, axis: int = 0) -> Any:
  """How checkpoints and everything else hold a model: `tree.Layers` for what `split_layers` cut."""

  def stack(encoder):
    if isinstance(encoder.blocks, Block):
      return encoder
    together = lambda *parts: tree.Layers(list(parts), axis)  # noqa: E731
    return _with_blocks(encoder, jax.tree.map(together, *encoder.blocks))

  return _map_encoders(stack, held)


def is_unrolled(tree: Any) -> bool:
  """Whether there is an encoder with unrolled layers in a tree."""
  return any(not encoder.config.scan for encoder in _encoders(tree))


def is_split(tree: Any) -> bool:
  """Whether `split_layers` has cut the layers of an encoder in a tree."""
  return any(not isinstance(encoder.blocks, Block) for encoder in _encoders(tree))


def _encoders(tree: Any) -> list[Encoder]:
  nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Encoder))
  return [node for node in nodes if isinstance(node, Encoder)]


def _map_encoders(function: Any, tree: Any) -> Any:
  is_encoder = lambda node: isinstance(node, Encoder)  # noqa: E731
  return jax.tree.map(lambda n: function(n) if is_encoder(n) else n, tree, is_leaf=is_encoder)


def _with_blocks(encoder: Encoder, blocks: Any) -> Encoder:
  encoder = copy.copy(encoder)
  encoder.blocks = blocks
  return encoder


def layer_of(blocks: Any, layer: int) -> Any:
  """One block out of the stacked ones, or of a list of them."""
  if not isinstance(blocks, Block):
    return blocks[layer]
  return jax.tree.map(lambda w: w[layer], blocks)


def cast_weights(blocks: Block, dtype) -> Block:
  """Weights of the stacked blocks in the compute dtype, cast once for all layers of a step.

  Norms and tables of relative positions keep float32: they are small, and used in float32.
  """

  def cast(path, w):
    name = tree.name(path)
    return w if 'norm' in name or 'relative' in name else w.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, blocks)
