"""Decoding token by token: keys and values of what came before, in arrays of constant shape."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.architecture.pattern import on_grid
from vit_jax.nn.attention import Attention, Context
from vit_jax.nn.encoder import Encoder, cast_weights, layer_of, layers_of
from vit_jax.nn.sharding import spec

_LAID = (None, 'batch', None, 'heads')


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['entries', 'position'], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Cache:
  """What an encoder keeps of the tokens that it has seen.

  Attributes:
    entries: for each attention of a layer keys and values, (depth, batch, length, kv_heads *
      head_dim), with room for the tokens to come; of a memory all that there are.
    position: how many tokens there are, int ().
  """

  entries: tuple[tuple[jax.Array, jax.Array], ...]
  position: Any


def empty(encoder: Encoder, batch: int, length: int, context: Context | None = None) -> Cache:
  """A cache without tokens, but with the keys and values of the memory if there is one.

  Args:
    encoder: of stacked layers.
    batch: sequences.
    length: tokens of the longest that there will be.
    context: with the memory.

  Raises:
    ValueError: for attention along axes or by relative positions, whose tokens are on a grid, and
      for layers of several kinds.
  """
  config = encoder.config
  layers = layers_of(config, encoder.grid, memory=encoder.memory > 0)
  if on_grid(layers) or len(layers) > 1 or config.relative_bias != 'none':
    raise ValueError(
      f'attention={config.attention!r} with relative_bias={config.relative_bias!r} has no cache: '
      'that is for layers that are all alike, and tokens that are not on a grid'
    )
  laid = spec('batch', None, None)
  x = jnp.zeros((batch, 1, config.width), config.dtype, out_sharding=laid)
  contexts = encoder.contexts(x, context or Context())
  shape = config.depth, batch, length, config.key_width
  room = lambda: jnp.zeros(shape, config.dtype, out_sharding=spec(*_LAID))  # noqa: E731
  entries = []
  for number, own in enumerate(contexts[0]):

    def layer(_, block, number=number, own=own):
      _, k, v = block.attentions[number].operands(x, own)
      return None, (k, v)

    if own.memory is None:
      entries.append((room(), room()))
    else:
      entries.append(jax.lax.scan(layer, None, encoder.blocks)[1])
  return Cache(tuple(entries), jnp.zeros((), jnp.int32))


def extend(
  encoder: Encoder, x: jax.Array, cache: Cache, context: Context | None = None
) -> tuple[jax.Array, Cache]:
  """What an encoder makes of new tokens, by those that it has seen and each other.

  Called with a whole prompt first, and then with one token at a time, it gives what the encoder
  itself gives for all of them at once. How many tokens there are is known only while it runs: those
  beyond the length of the cache would take the place of the last, and must not be given.

  Args:
    encoder: of stacked layers.
    x: the new tokens, (batch, tokens, width).
    cache: from `empty`, or from the call before.
    context: of the new tokens. Its mask is causal; `keys` and `prefix` are of all tokens that the
      cache has room for, and where the new ones start is known. Of the memory only the mask counts.

  Returns:
    The normalised new tokens, and the cache with them.

  Raises:
    ValueError: if the mask lets tokens see those that are not there yet, or says where they start,
      or there are more of them than the cache is long.
  """
  context, config = context or Context(), encoder.config
  if not context.mask.causal:
    raise ValueError('tokens that are decoded one by one need a causal mask')
  if context.mask.start is not None:
    raise ValueError('the cache knows where new tokens start: leave start out of the mask')
  at, tokens = cache.position, x.shape[1]
  length = max(keys.shape[2] for keys, _ in cache.entries)
  if encoder.config.attention != 'memory' and tokens > length:
    raise ValueError(f'{tokens} tokens are more than the {length} that the cache has room for')
  context = context.replace(mask=context.mask.replace(start=at))
  (contexts,) = encoder.contexts(x, context)
  blocks = cast_weights(encoder.blocks, x.dtype)

  def layer(carry, item):
    x, entries = carry
    block, number = item
    left, kept = [*entries], []

    def attend(attention: Attention, y: jax.Array, own: Context) -> jax.Array:
      q, *new = attention.operands(y, own)
      stacks = left.pop(0)
      if own.memory is None:
        # In place: only what is new is written.
        start = number, 0, at, 0
        stacks = tuple(
          jax.lax.dynamic_update_slice(stack, part[None].astype(stack.dtype), start)
          for stack, part in zip(stacks, new, strict=True)
        )
      kept.append(stacks)
      k, v = (jax.lax.dynamic_index_in_dim(stack, number, keepdims=False) for stack in stacks)
      return attention.combined(q, k, v, own)

    x, _ = block(x, contexts, attend=attend)
    return (x, tuple(kept)), None

  carry = x, cache.entries
  if config.scan:
    carry, _ = jax.lax.scan(layer, carry, (blocks, jnp.arange(config.depth)))
  else:
    for number in range(config.depth):
      carry, _ = layer(carry, (layer_of(blocks, number), number))
  x, entries = carry
  x = encoder.norm(x) if hasattr(encoder, 'norm') else x
  return x, Cache(entries, at + tokens)
