"""Multi-head attention."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax.nn.kernels import choice, short
from vit_jax.nn.layers import Dense, flatten, joined_rows, unflatten, zeros
from vit_jax.nn.positions import resize_relative
from vit_jax.nn.sharding import device, param, per_shard, shards, spec

_PACKED = ('batch', None, 'heads')
# A score whose exponential is zero in every type; of infinities there are no differences.
APART = -1e30


class Context(NamedTuple):
  """What attention knows about its tokens apart from their features; every part may be absent.

  Attributes:
    angles: rotary angles, float32 (1 or batch, tokens, head_dim / 2).
    index: rows of the tables of relative positions, int (1 or batch, tokens, tokens).
    grid: rows and columns of the grid on which `index` is, when the tables must be resized to it.
    mask: which tokens may be attended to, bool (batch, tokens).
    length: how many tokens there are before padding, if there is some; see `padding`.
    segments: of queries and of keys, to which image of the row they belong, int (batch, tokens):
      they attend to those of the same number.
  """

  angles: Any = None
  index: Any = None
  grid: tuple[int, int] | None = None
  mask: Any = None
  length: int | None = None
  segments: tuple[Any, Any] | None = None

  def rows(self, take: Any, batch: int) -> Context:
    """`take` applied to the parts that differ from example to example."""
    taken = {
      name: take(part)
      for name, part in (('angles', self.angles), ('index', self.index), ('mask', self.mask))
      if part is not None and part.shape[0] == batch and batch > 1
    }
    if self.segments is not None:
      taken['segments'] = tuple(map(take, self.segments))
    return self._replace(**taken)

  def apart(self, num_heads: int) -> jax.Array | None:
    """What is added to scores between different images: float32 (batch, heads, queries, keys)."""
    if self.segments is None:
      return None
    queries, keys = self.segments
    same = queries[:, None, :, None] == keys[:, None, None, :]
    shape = (same.shape[0], num_heads, *same.shape[2:])
    scores = jnp.where(same, 0.0, APART)
    return jnp.broadcast_to(scores, shape, out_sharding=spec('batch', 'heads', None, None))


class RelativeBias(nnx.Module):
  """Learned addition to the attention scores by relative position (BEiT, Bao et al. 2022).

  Args:
    grid: rows and columns of the grid of patches; see `positions.relative_index`.
    prefix: whether there are tokens before the patches, which take three more rows.
    num_heads: each has its own.
  """

  def __init__(self, grid: tuple[int, int], prefix: bool, num_heads: int, rngs: nnx.Rngs):
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * prefix
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
    num_heads: divides `width`.
    norm: makes a norm of the width of a head for queries and keys (Dehghani et al. 2023, section
      2.2), or None.
    no_bias: those of 'query', 'key', 'value' and 'out' that have none.
    relative: a `RelativeBias` for this layer, or None.
    causal: tokens attend to themselves and to what precedes them.
    score_scale: of the scores, on top of the inverse square root of the width of a head.
  """

  def __init__(
    self, width: int, num_heads: int, rngs: nnx.Rngs, *, norm=None, no_bias=(), relative=None,
    causal: bool = False, score_scale: float = 1.0,
  ):  # fmt: skip
    head_dim = width // num_heads
    make = lambda name: Dense(  # noqa: E731
      rngs, (width, num_heads, head_dim), ('embed', 'heads', None), bias=name not in no_bias
    )
    self.query, self.key, self.value = make('query'), make('key'), make('value')
    if norm:
      self.query_norm, self.key_norm = norm(head_dim, rngs), norm(head_dim, rngs)
    if relative:
      self.relative = relative
    self.out = Dense(
      rngs, (num_heads, head_dim, width), ('heads', None, 'embed'), contracted=2,
      bias='out' not in no_bias,
    )  # fmt: skip
    self.num_heads, self.causal, self.score_scale = num_heads, causal, score_scale

  def __call__(
    self, x: jax.Array, source: jax.Array, context: Context | None = None, bias=None
  ) -> jax.Array:
    """Attends from `x` (batch, queries, width) to `source` (batch, keys, width).

    Args:
      x, source: features.
      context: of the tokens, the same for queries and keys but for the mask, which is of keys.
      bias: added to the scores, float32 (1 or batch, heads, queries, keys).
    """
    context = context or Context()
    options: Any = dict(num_heads=self.num_heads, causal=self.causal, length=context.length)
    y = self._joined(x, source, context, bias, options)
    if y is None:
      y = attend(*self._operands(x, source, context, bias), **options)
    y = flatten(checkpoint_name(y, 'context'), 'heads')
    return unflatten(self.out.rows(y), x.shape[0])

  def weights(
    self, x: jax.Array, source: jax.Array, context: Context | None = None, bias=None
  ) -> jax.Array:
    """The attention weights, float32 of shape (batch, heads, queries, keys); rows sum to 1."""
    q, k, _, bias, mask = self._operands(x, source, context or Context(), bias)
    q, k = (self._split(y.astype(jnp.float32)) for y in (q, k))
    scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else jnp.where(mask[:, None, None, :], scores, -jnp.inf)
    if self.causal:
      scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)

  def _joined(self, x, source, context, bias, options):
    """The heads' results where one product gives queries, keys and values, or None elsewhere."""
    plain = source is x and not hasattr(self, 'query_norm') and context.angles is None
    if not plain or shards('heads') > 1 or self.score_scale != 1:
      return None
    bias = self._bias(context, bias, x.dtype)
    tokens, head_dim = x.shape[1], x.shape[2] // self.num_heads
    problem = _problem(x, tokens, bias, context.mask, options)
    itemsize, biased = x.dtype.itemsize, bias is not None
    if choice.choose(problem) != 'short' or not short.packs(
      tokens, self.num_heads, head_dim, itemsize, bias=biased
    ):
      return None
    qkv = joined_rows((self.query, self.key, self.value), flatten(x))
    qkv = unflatten(checkpoint_name(qkv, 'qkv'), x.shape[0], 'heads')
    run = functools.partial(short.self_attention, **options)
    inputs = (_PACKED, *_axes(bias, context.mask))
    return per_shard(run, inputs, _PACKED)(qkv, bias, context.mask)

  def _bias(self, context, bias, dtype):
    """Both relative biases together, or None."""
    if hasattr(self, 'relative'):
      own = self.relative(context)
      bias = own if bias is None else bias + own
    if context.segments is not None:
      apart = context.apart(self.num_heads)
      bias = apart if bias is None else bias + apart
    return None if bias is None else bias.astype(dtype)

  def _operands(self, x, source, context, bias):
    q, k, v = (
      unflatten(checkpoint_name(dense.rows(flatten(y), alone=True), 'qkv'), y.shape[0], 'heads')
      for dense, y in ((self.query, x), (self.key, source), (self.value, source))
    )
    if hasattr(self, 'query_norm') or context.angles is not None:
      q, k = self._split(q), self._split(k)
      if hasattr(self, 'query_norm'):
        q, k = self.query_norm(q), self.key_norm(k)
      if context.angles is not None:
        q, k = rotate(q, context.angles), rotate(k, context.angles)
      merge = lambda y: y.reshape(*y.shape[:2], -1, out_sharding=spec(*_PACKED))  # noqa: E731
      q, k = merge(q), merge(k)
    if self.score_scale != 1:
      q = q * self.score_scale
    return q, k, v, self._bias(context, bias, q.dtype), context.mask

  def _split(self, y: jax.Array) -> jax.Array:
    """(batch, tokens, heads * head_dim) -> (batch, tokens, heads, head_dim)."""
    return y.reshape(*y.shape[:2], self.num_heads, -1, out_sharding=spec(*_PACKED, None))


def padding(tokens: int, head_dim: int) -> int:
  """How many tokens to add to a sequence, for the kernel and layouts it will be given to."""
  on_tpu = device().platform == 'tpu' and short.fits(tokens, tokens, head_dim)
  return -tokens % 8 if on_tpu else 0


def attend(
  q, k, v, bias=None, mask=None, *, num_heads: int, causal: bool = False, length: int | None = None
) -> jax.Array:
  """Softmax attention by the fastest right implementation; see `kernels.choice`.

  Args:
    q, k, v: (batch, tokens, num_heads * head_dim).
    bias: (1 or batch, num_heads, queries, keys), added to the scaled scores, or None.
    mask: bool (batch, keys), or None.
    num_heads: of them.
    causal: query i attends to keys up to i.
    length: of queries and keys without `padding`, if there is some.

  Returns:
    As `q`.
  """
  options: Any = dict(num_heads=num_heads, causal=causal, length=length)
  way = choice.IMPLEMENTATIONS[choice.choose(_problem(q, k.shape[1], bias, mask, options))]
  options['num_heads'] //= shards('heads')
  run = functools.partial(way.run, **options)
  return per_shard(run, (*(_PACKED,) * 3, *_axes(bias, mask)), _PACKED)(q, k, v, bias, mask)


def _problem(q, keys, bias, mask, options) -> choice.Problem:
  """What `choice.choose` wants to know; `options` are those of `attend`."""
  on, heads, length = device(), options['num_heads'], options['length']
  queries, keys = length or q.shape[1], length or keys
  examples = q.shape[0] // shards('batch')
  return choice.Problem(
    on.platform, on.device_kind, str(q.dtype), queries, keys, q.shape[-1] // heads,
    bias is not None, mask is not None, 4 * examples * heads // shards('heads') * queries * keys,
  )  # fmt: skip


def _axes(bias, mask):
  """Logical axes of a bias and a mask."""
  shared = None if bias is None or bias.shape[0] == 1 else 'batch'
  return (
    None if bias is None else (shared, 'heads', None, None),
    None if mask is None else ('batch', None),
  )


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Turns features i and i + head_dim / 2 of each head by the i-th angle (Su et al. 2021).

  Args:
    x: (batch, tokens, heads, head_dim).
    angles: float32 (1 or batch, tokens, head_dim / 2).
  """
  cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
