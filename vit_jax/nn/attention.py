"""Multi-head attention."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.nn.groups import Groups, together
from vit_jax.nn.kernels import choice, plain, short
from vit_jax.nn.layers import Dense, flatten, joined_rows, unflatten, zeros
from vit_jax.nn.masks import FULL, Mask
from vit_jax.nn.positions import relative_rows, resize_relative
from vit_jax.nn.remat import Operation, keep, keep_through
from vit_jax.nn.sharding import device, param, per_shard, shards, spec

_PACKED = ('batch', None, 'heads')


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['tokens', 'position', 'mask'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Memory:
  """Tokens of another model, which those of a decoder attend to.

  Attributes:
    tokens: (batch, tokens, features).
    position: what is added to them as keys, and not as values, (1 or batch, tokens, features), or
      None.
    mask: which of them a token of the decoder sees.
  """

  tokens: Any
  position: Any = None
  mask: Mask = FULL


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['angles', 'index', 'bias', 'mask', 'position', 'memory'],
  meta_fields=['grid', 'length', 'groups'],
)
@dataclasses.dataclass(frozen=True)
class Context:
  """What attention knows about its tokens apart from their features; every part may be absent.

  Attributes:
    angles: rotary angles, float32 (1 or batch, tokens, head_dim / 2); with `groups` that are
      `together` those of the tokens in them, (1 or batch * groups, of one, head_dim / 2), or
      (groups, of one, head_dim / 2) for all examples.
    index: rows of the tables of relative positions, int (1 or batch, tokens, tokens).
    bias: what all layers add to the scores, float32 (1 or batch, heads, queries, keys); with
      `groups` one for each of them.
    mask: which tokens see which.
    position: what is added to the tokens as queries and keys, and not as values, of every attention
      (DETR, Carion et al. 2020), (1 or batch, tokens, width).
    memory: what is attended to instead of the tokens themselves.
    grid: of the patches, the grid on which `index` is, when the tables must be resized to it.
    length: how many tokens there are before padding, if there is some; see `padding`.
    groups: in which equal shares of the heads attend, or () if all tokens are one.
  """

  angles: Any = None
  index: Any = None
  bias: Any = None
  mask: Mask = FULL
  position: Any = None
  memory: Memory | None = None
  grid: tuple[int, ...] | None = None
  length: int | None = None
  groups: tuple[Groups, ...] = ()

  def replace(self, **changes: Any) -> Context:
    """One that differs in these attributes."""
    return dataclasses.replace(self, **changes)

  @property
  def sees(self) -> Mask:
    """Which of what is attended to the tokens see."""
    return self.mask if self.memory is None else self.memory.mask

  def rows(self, take: Any, batch: int) -> Context:
    """`take` applied to the parts that differ from example to example."""
    own = lambda x: take(x) if x is not None and x.shape[0] == batch > 1 else x  # noqa: E731
    angles = self.angles
    if angles is not None and self.groups and together(self.groups):
      count = self.groups[0].count
      if angles.shape[0] == batch * count > count:
        laid = spec('batch', *(None,) * angles.ndim)
        apart = take(angles.reshape(batch, count, *angles.shape[1:], out_sharding=laid))
        laid = spec('batch', *(None,) * (angles.ndim - 1))
        angles = apart.reshape(-1, *angles.shape[1:], out_sharding=laid)
    else:
      angles = own(angles)
    memory = self.memory
    if memory is not None:
      memory = Memory(take(memory.tokens), own(memory.position), memory.mask.rows(take))
    return self.replace(
      angles=angles, index=own(self.index), bias=jax.tree.map(own, self.bias),
      mask=self.mask.rows(take), position=own(self.position), memory=memory,
    )  # fmt: skip


class RelativeBias(nnx.Module):
  """Learned addition to the attention scores by relative position (BEiT, Bao et al. 2022).

  Args:
    grid: of the patches; see `positions.relative_index`.
    prefix: whether there are tokens before the patches, which take three more rows.
    num_heads: each has its own.
  """

  def __init__(self, grid: tuple[int, ...], prefix: bool, num_heads: int, rngs: nnx.Rngs):
    rows = relative_rows(grid, prefix=prefix)
    self.table = param(zeros, rngs, (rows, num_heads), (None, 'heads'))
    self.grid = grid

  def __call__(self, context: Context) -> jax.Array:
    """float32 (1 or batch, heads, queries, keys)."""
    table = self.table[...].astype(jnp.float32)
    if context.grid is not None and context.grid != self.grid:
      table = resize_relative(table, self.grid, context.grid)
    batch = 'batch' if context.index.shape[0] > 1 else None
    out = spec(batch, None, None, 'heads')
    bias = table.at[context.index].get(out_sharding=out)
    return bias.transpose(0, 3, 1, 2)


class Attention(nnx.Module):
  """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

  Args:
    width: features of queries, keys, values and output.
    num_heads: of queries.
    kv_heads: of keys and values, each of which serves as many heads of queries (grouped-query
      attention, Ainslie et al. 2023); divides `num_heads`, which it is if not given.
    head_dim: features of a head; `width` / `num_heads` if not given.
    memory: features of what it attends to instead of its own tokens; 0 for these.
    norm: makes a norm of the width of a head for queries and keys (Dehghani et al. 2023, section
      2.2), or None.
    no_bias: those of 'query', 'key', 'value' and 'out' that have none.
    relative: a `RelativeBias` for this layer, or None.
    score_scale: of the scores, on top of the inverse square root of the width of a head.
    cap: of scores, as for `plain.attention`; 0 for none.
    neighbours: whether rotary angles turn features 2i and 2i + 1; see `rotate`.
  """

  def __init__(
    self, width: int, num_heads: int, rngs: nnx.Rngs, *, kv_heads: int = 0, head_dim: int = 0,
    memory: int = 0, norm=None, no_bias=(), relative=None, score_scale: float = 1.0,
    cap: float = 0.0, neighbours: bool = False,
  ):  # fmt: skip
    head_dim, kv_heads = head_dim or width // num_heads, kv_heads or num_heads
    make = lambda name, width, heads: Dense(  # noqa: E731
      rngs, (width, heads, head_dim), ('embed', 'heads', None), bias=name not in no_bias
    )
    self.query = make('query', width, num_heads)
    self.key, self.value = (make(n, memory or width, kv_heads) for n in ('key', 'value'))
    if norm:
      self.query_norm, self.key_norm = norm(head_dim, rngs), norm(head_dim, rngs)
    if relative:
      self.relative = relative
    self.out = Dense(
      rngs, (num_heads, head_dim, width), ('heads', None, 'embed'), contracted=2,
      bias='out' not in no_bias,
    )  # fmt: skip
    self.num_heads, self.kv_heads, self.head_dim = num_heads, kv_heads, head_dim
    self.score_scale, self.cap, self.neighbours = score_scale, cap, neighbours

  def __call__(self, x: jax.Array, context: Context | None = None) -> jax.Array:
    """What tokens get from each other, or from the memory of their context.

    Args:
      x: (batch, tokens, width).
      context: of the tokens.

    Returns:
      As `x`.
    """
    context = context or Context()
    if context.groups:
      return self._in_groups(x, context)
    rows = self._joined(x, context)
    if rows is None:
      return self.combined(*self.operands(x, context), context)
    return unflatten(self.out.rows(rows), x.shape[0])

  def combined(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> jax.Array:
    """What tokens get, (batch, tokens, width), by `operands` of them and of what they attend to."""
    y = attend(
      q, k, v, self._bias(context, q.dtype), context.sees, num_heads=self.num_heads, cap=self.cap,
      length=context.length,
    )  # fmt: skip
    return unflatten(self.out.rows(flatten(keep(y, 'context'), 'heads')), q.shape[0])

  def weights(self, x: jax.Array, context: Context | None = None) -> jax.Array:
    """The attention weights, float32 of shape (batch, heads, queries, keys); rows sum to 1.

    Raises:
      ValueError: for attention in groups, which has none of all pairs.
    """
    context = context or Context()
    if context.groups:
      raise ValueError('attention in groups of tokens has no weights of all pairs')
    (q, k, _), bias = self.operands(x, context), self._bias(context, x.dtype)
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scores = plain.masked_scores(
      q, k, bias, context.sees, num_heads=self.num_heads, cap=self.cap
    )  # fmt: skip
    return jax.nn.softmax(scores, axis=-1)

  def _in_groups(self, x, context):
    """What tokens get in their groups."""
    batch, groups = x.shape[0], context.groups
    if not together(groups):
      return self._in_shares(x, context)
    # Brought together before they are projected: one array is moved, and not three.
    tokens = groups[0].part.tokens(groups[0].grid, groups[0].prefix)[1]
    extra = padding(tokens, self.head_dim)
    own = self._of_group(0, context, batch).replace(length=tokens if extra else None)
    angles, position = context.angles, context.position
    if position is not None:
      laid = spec('batch', None, None)
      position = jnp.broadcast_to(position, (batch, *position.shape[1:]), out_sharding=laid)
      position = groups[0].queries(position, extra=extra)
    if angles is not None:
      angles = jnp.pad(angles, ((0, 0), (0, extra), (0, 0)))
    y = groups[0].queries(x, extra=extra)
    y = self(y, own.replace(angles=angles, position=position))
    return groups[0].join(y, batch, x.shape[1])

  def _in_shares(self, x, context):
    """What tokens get where shares of the heads have groups of their own, or see other groups."""
    batch, shares = x.shape[0], len(context.groups)
    operands, found = self.operands(x, context), []
    for i, groups in enumerate(context.groups):
      q, k, v = (_share(y, i, shares) for y in operands)
      own = self._of_group(i, context, batch)
      bias = self._bias(own, x.dtype)
      if bias is not None and shares > 1:
        bias = bias.reshape(bias.shape[0], shares, -1, *bias.shape[2:])[:, i]
      y = attend(
        groups.queries(q, 'heads'), groups.keys(k, 'heads'), groups.keys(v, 'heads'), bias,
        own.mask, num_heads=self.num_heads // shares, cap=self.cap,
      )  # fmt: skip
      found.append(groups.join(y, batch, x.shape[1], 'heads'))
    y = jnp.concatenate(found, axis=-1) if shares > 1 else found[0]
    y = unflatten(self.out.rows(flatten(keep(y, 'context'), 'heads')), batch)
    prefix = context.groups[0].prefix
    if not prefix or any(groups.part.prefix for groups in context.groups):
      return y
    # They took no part: not even the bias of the projection is added to them.
    return jnp.pad(y[:, prefix:], ((0, 0), (prefix, 0), (0, 0)))

  def _of_group(self, i, context, batch):
    """What is known of the tokens of the i-th groups."""
    groups = context.groups[i]
    index = None if context.index is None else groups.index(context.index)
    bias = None if context.bias is None else context.bias[i]
    mask = groups.mask(context.mask, batch)
    return Context(index=index, bias=bias, mask=mask, grid=context.grid)

  def _joined(self, x, context):
    """The heads' results, as rows, where one product gives queries, keys and values; or None."""
    more = (context.angles, context.position, context.memory, context.mask.pairs)
    if hasattr(self, 'query_norm') or any(each is not None for each in more):
      return None
    if shards('heads') > 1 or self.score_scale != 1 or self.kv_heads != self.num_heads:
      return None
    bias, mask = self._bias(context, x.dtype), context.mask
    options: Any = dict(num_heads=self.num_heads, cap=self.cap, length=context.length)
    tokens = x.shape[1]
    problem = _problem(x, tokens, self.head_dim, bias, mask, options)
    itemsize, biased = x.dtype.itemsize, bias is not None
    if choice.choose(problem) != 'short' or not short.packs(
      tokens, self.num_heads, self.head_dim, itemsize, bias=biased
    ):
      return None
    qkv = joined_rows((self.query, self.key, self.value), flatten(x))
    operation = _SelfAttention(x.shape[0], options)
    return keep_through(operation, qkv, bias, mask, names=('qkv', 'context'))

  def _bias(self, context, dtype):
    """Both relative biases together, or None."""
    bias = context.bias
    if hasattr(self, 'relative'):
      own = self.relative(context)
      bias = own if bias is None else bias + own
    return None if bias is None else bias.astype(dtype)

  def operands(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, (batch, tokens, features of all heads)."""
    source, position = x, context.position
    if context.memory is not None:
      source, position = context.memory.tokens.astype(x.dtype), context.memory.position
    added = lambda y, more: y if more is None else y + more.astype(y.dtype)  # noqa: E731
    inputs = added(x, context.position), added(source, position), source
    q, k, v = (
      unflatten(keep(dense.rows(flatten(y), alone=True), 'qkv'), y.shape[0], 'heads')
      for dense, y in zip((self.query, self.key, self.value), inputs, strict=True)
    )
    if hasattr(self, 'query_norm') or context.angles is not None:
      q, k = self._split(q), self._split(k)
      if hasattr(self, 'query_norm'):
        q, k = self.query_norm(q), self.key_norm(k)
      if context.angles is not None:
        q, k = (rotate(y, context.angles, neighbours=self.neighbours) for y in (q, k))
      merge = lambda y: y.reshape(*y.shape[:2], -1, out_sharding=spec(*_PACKED))  # noqa: E731
      q, k = merge(q), merge(k)
    if self.score_scale != 1:
      q = q * self.score_scale
    return q, k, v

  def _split(self, y: jax.Array) -> jax.Array:
    """(batch, tokens, heads * head_dim) -> (batch, tokens, heads, head_dim)."""
    return y.reshape(*y.shape[:2], -1, self.head_dim, out_sharding=spec(*_PACKED, None))


def _share(y: jax.Array, i: int, shares: int) -> jax.Array:
  """Features of the i-th of equal shares of heads."""
  each = y.shape[-1] // shares
  return y if shares == 1 else y[..., i * each : (i + 1) * each]


class _SelfAttention(Operation):
  """`short.self_attention` of rows, which stay in one array with those of all layers."""

  def __init__(self, batch: int, options: dict[str, Any]):
    self._batch, self._options = batch, options

  def __call__(self, y, *rest):
    y = self._run(short.self_attention, (_PACKED,), rest)(self._split(y), *rest)
    return flatten(y, 'heads')

  def store(self, stack, results, layer, *rest):
    axes = ((None, *_PACKED), (None, *_PACKED), ())
    run = self._run(short.self_attention_in, axes, rest, (None, *_PACKED))
    y = run(self._split(stack), self._split(results), layer, *rest)
    return y.reshape(results.shape, out_sharding=spec(None, 'batch', 'heads'))

  def gradient(self, stack, layer, dy, *rest):
    bias, _ = rest
    axes = ((None, *_PACKED), (), _PACKED)
    out = _PACKED if bias is None else (_PACKED, _bias_axes(bias))
    run = self._run(short.self_attention_gradient, axes, rest, out)
    grads = run(self._split(stack), layer, self._split(dy), *rest)
    dqkv, dbias = (grads, None) if bias is None else grads
    return flatten(dqkv, 'heads'), dbias, None

  def _run(self, function, axes, rest, out=_PACKED):
    inputs = (*axes, _bias_axes(rest[0]), _mask_axes(rest[1]))
    return per_shard(functools.partial(function, **self._options), inputs, out)

  def _split(self, rows):
    """(..., batch * tokens, features) -> (..., batch, tokens, features)."""
    more = rows.shape[:-2]
    shape = (*more, self._batch, -1, rows.shape[-1])
    return rows.reshape(shape, out_sharding=spec(*(None,) * len(more), *_PACKED))


def padding(tokens: int, head_dim: int) -> int:
  """How many tokens to add to a sequence, for the kernel and layouts it will be given to."""
  platform = device().platform
  if platform == 'gpu':
    return tokens % 2  # or cuDNN has no gradient
  return -tokens % 8 if platform == 'tpu' and short.fits(tokens, tokens, head_dim) else 0


def attend(
  q, k, v, bias=None, mask: Mask = FULL, *, num_heads: int, cap: float = 0.0,
  length: int | None = None,
) -> jax.Array:  # fmt: skip
  """Softmax attention by the fastest right implementation; see `kernels.choice`.

  Args:
    q: (batch, tokens, num_heads * head_dim).
    k, v: (batch, tokens, kv_heads * head_dim), kv_heads dividing num_heads.
    bias: (1 or batch, num_heads, queries, keys), added to the scaled scores, or None.
    mask: which keys a query sees.
    num_heads: of queries.
    cap: of scores, as for `plain.attention`; 0 for none.
    length: of queries and keys without `padding`, if there is some.

  Returns:
    As `q`. A query that sees no key gets something finite, and gives it no gradient.
  """
  options: Any = dict(num_heads=num_heads, cap=cap, length=length)
  if mask.pairs is not None and mask.pairs.shape[1] < (length or q.shape[1]):
    return _in_halves(q, k, v, bias, mask, options)
  problem = _problem(q, k.shape[1], q.shape[-1] // num_heads, bias, mask, options)
  way = choice.IMPLEMENTATIONS[choice.choose(problem)]
  options['num_heads'] //= shards('heads')
  run = functools.partial(way.run, **options)
  inputs = (*(_PACKED,) * 3, _bias_axes(bias), _mask_axes(mask))
  return per_shard(run, inputs, _PACKED)(q, k, v, bias, mask)


def _in_halves(q, k, v, bias, mask, options):
  """Queries that see keys of their own, and those behind them, which a fused kernel may serve."""
  length, count = options['length'] or q.shape[1], mask.pairs.shape[1]
  padding = ((0, 0), (0, q.shape[1] - length), (0, 0))
  q, k, v = (y[:, :length] for y in (q, k, v))
  parts = (slice(0, count), slice(count, None))
  y = [
    attend(q[:, part], k, v, None if bias is None else bias[:, :, part], own,
           **{**options, 'length': None})
    for part, own in zip(parts, mask.halves(count), strict=True)
  ]  # fmt: skip
  return jnp.pad(jnp.concatenate(y, axis=1), padding)


def _problem(q, keys, head_dim, bias, mask, options) -> choice.Problem:
  """What `choice.choose` wants to know; `options` are those of `attend`."""
  on, heads, length = device(), options['num_heads'], options['length']
  queries, keys = length or q.shape[1], length or keys
  examples = q.shape[0] // shards('batch')
  biased = '' if bias is None else 'shared' if bias.shape[0] == 1 else 'own'
  return choice.Problem(
    on.platform, on.device_kind, str(q.dtype), queries, keys, head_dim, biased, mask.kinds,
    options['cap'] > 0, 4 * examples * heads // shards('heads') * queries * keys,
  )  # fmt: skip


def _bias_axes(bias):
  """Logical axes of a bias, or None."""
  if bias is None:
    return None
  return (None if bias.shape[0] == 1 else 'batch'), 'heads', None, None


def _mask_axes(mask: Mask) -> Mask:
  """The mask with logical axes in place of its arrays."""
  of = lambda x: ('batch', *(None,) * (x.ndim - 1)) if jnp.ndim(x) else ()  # noqa: E731
  axes = jax.tree.map(of, mask)
  shared = mask.pairs is not None and mask.pairs.shape[0] == 1
  return axes.replace(pairs=(None,) * 3) if shared else axes


def rotate(x: jax.Array, angles: jax.Array, *, neighbours: bool = False) -> jax.Array:
  """Turns pairs of features of each head, the i-th by the i-th angle (Su et al. 2021).

  Args:
    x: (batch, tokens, heads, head_dim).
    angles: float32 (1 or batch, tokens, head_dim / 2); or fewer than there are sequences, of as
      many after one another.
    neighbours: whether features 2i and 2i + 1 are a pair, as in the paper, and not i and
      i + head_dim / 2, as in most code.
  """
  if angles.shape[0] not in (1, x.shape[0]):
    apart = (-1, angles.shape[0], *x.shape[1:])
    y = x.reshape(apart, out_sharding=spec('batch', None, None, 'heads', None))
    y = jax.vmap(functools.partial(rotate, neighbours=neighbours), (1, 0), 1)(y, angles[:, None])
    return y.reshape(x.shape, out_sharding=spec('batch', None, 'heads', None))
  cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
  y = x.astype(jnp.float32)
  if neighbours:
    y = y.reshape(*y.shape[:-1], -1, 2)
    a, b = y[..., 0], y[..., 1]
    y = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
  else:
    a, b = jnp.split(y, 2, axis=-1)
    y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return y.astype(x.dtype)
