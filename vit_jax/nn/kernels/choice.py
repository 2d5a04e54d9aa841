"""Which implementation of attention is right for a problem, and of those the fastest."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.core import paths
from vit_jax.nn.kernels import chunked, heads, plain, short
from vit_jax.nn.masks import Mask

TABLE = paths.here(__file__) / 'measured.json'


class Problem(NamedTuple):
  """What a choice depends on.

  Attributes:
    platform, device: 'tpu', 'gpu' or 'cpu', and the kind of device.
    dtype: of queries, keys and values.
    queries, keys, head_dim: sizes, without padding.
    bias: '' for none, 'shared' by all examples or an 'own' one for each.
    masks: what the mask says; see `Mask.kinds`.
    cap: whether scores are capped.
    scores: bytes of the float32 scores of all heads of a device's examples.
  """

  platform: str
  device: str
  dtype: str
  queries: int
  keys: int
  head_dim: int
  bias: str = ''
  masks: tuple[str, ...] = ()
  cap: bool = False
  scores: int = 0


class Implementation(NamedTuple):
  """A function of (q, k, v, bias, mask), all packed, and the problems that it solves.

  Attributes:
    accepts: whether it gives right results, forward and backward.
    run: takes num_heads, cap and length in addition to the arrays.
    fused: whether scores stay out of the device's main memory.
  """

  accepts: Callable[[Problem], bool]
  run: Callable[..., jax.Array]
  fused: bool = True


def choose(problem: Problem) -> str:
  """The name of the implementation that is fastest where it was measured.

  Where it was not, the first in order of `IMPLEMENTATIONS` that accepts the problem. A choice that
  writes scores to an accelerator's main memory is logged, once per problem.
  """
  names = [name for name, way in IMPLEMENTATIONS.items() if way.accepts(problem)]
  times = {name: ms for name, ms in _measured(problem).items() if name in names}
  name = min(times, key=lambda name: times[name]) if times else names[0]
  _note(problem, name)
  return name


@functools.cache
def _note(problem: Problem, name: str) -> None:
  if problem.platform != 'cpu' and problem.queries > 8 and not IMPLEMENTATIONS[name].fused:
    said = [f'{problem.bias} bias'] if problem.bias else []
    said += [f'mask of {", ".join(problem.masks)}'] if problem.masks else []
    logging.getLogger(__name__).warning(
      'attention of %d x %d tokens, %s on %s is not fused (%s): slow', problem.queries,
      problem.keys, ', '.join([f'head_dim {problem.head_dim}', problem.dtype, *said]),
      problem.device, name,
    )  # fmt: skip


@functools.cache
def _table() -> list[dict[str, Any]]:
  return json.loads(TABLE.read_text())['rows']


def _measured(problem: Problem) -> dict[str, float]:
  """Milliseconds by implementation of the nearest problem measured on such a device.

  Near is less than a factor of two in length and 1.5 in head width.
  """

  def distance(row: dict[str, Any]) -> float:
    length = abs(math.log2(row['tokens'] / max(problem.queries, problem.keys)))
    return length + 2 * abs(math.log2(row['head_dim'] / problem.head_dim))

  same = ('device', 'dtype', 'bias', 'cap')

  def alike(row: dict[str, Any]) -> bool:
    return tuple(row['masks']) == problem.masks and all(
      row[name] == getattr(problem, name) for name in same
    )

  rows = [row for row in _table() if alike(row)]
  row = min(rows, key=distance, default=None)
  return row['ms'] if row and distance(row) < 1 else {}


def _unpadded(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Of a function of packed arrays, one that leaves out padding."""

  def run(q, k, v, bias, mask, *, num_heads, cap, length):
    padding = q.shape[1] - length if length else 0
    if padding:
      q, k, v = (y[:, :length] for y in (q, k, v))
    y = function(q, k, v, bias, mask, num_heads=num_heads, cap=cap)
    return jnp.pad(y, ((0, 0), (0, padding), (0, 0)))

  return run


def _repeated(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Of a function of equally many heads, one that takes fewer of keys and values."""

  def run(q, k, v, *rest, num_heads, **options):
    k, v = (plain.repeat_heads(y, q.shape[-1] // num_heads, num_heads) for y in (k, v))
    return function(q, k, v, *rest, num_heads=num_heads, **options)

  return run


def _apart(q, k, v, num_heads: int) -> list[jax.Array]:
  """Each of them as (batch, tokens, heads, head_dim)."""
  return [y.reshape(*y.shape[:2], -1, q.shape[-1] // num_heads) for y in (q, k, v)]


def _is_causal_band(kinds: tuple[str, ...]) -> bool:
  """Whether a mask is causal, in a window or not, and says nothing else: cuDNN has these itself."""
  return 'causal' in kinds and set(kinds) <= {'causal', 'window'}


def _dense(mask: Mask, queries: int, keys: int) -> jax.Array | None:
  """bool (1 or batch, 1, queries, keys), or None."""
  seen = mask.visible(queries, keys)
  return None if seen is None else seen[:, None]


def _cudnn(q, k, v, bias, mask, *, num_heads, cap, length):
  del cap
  queries, keys = length or q.shape[1], length or k.shape[1]
  # There is no gradient for an odd number of tokens (jax 0.10 to 0.12 take them for a bias).
  even = lambda y: jnp.pad(y, ((0, 0), (0, y.shape[1] % 2), (0, 0)))  # noqa: E731
  before = q.shape[1]
  q, k, v = _apart(*map(even, (q, k, v)), num_heads)
  options: Any = {}
  if _is_causal_band(mask.kinds):
    options |= dict(is_causal=True, local_window_size=mask.window and (mask.window[0], 0))
    seen = None
  else:
    seen = _dense(mask, queries, keys)
  more = ((0, 0), (0, 0), (0, q.shape[1] - queries), (0, k.shape[1] - keys))
  if bias is not None:
    bias = jnp.pad(bias, more)
  if seen is not None:
    seen = jnp.pad(seen, more)
  if (q.shape[1], k.shape[1]) != (queries, keys) or k.shape[1] % 128 == 64:
    # Besides padding: cuDNN's backward pass for Hopper gives NaN for such lengths (until 9.26), but
    # not when told that every sequence is as long as it is.
    full = lambda y, length: jnp.full(y.shape[0], length, jnp.int32)  # noqa: E731
    options |= dict(query_seq_lengths=full(q, queries), key_value_seq_lengths=full(k, keys))
  y = jax.nn.dot_product_attention(q, k, v, bias, seen, implementation='cudnn', **options)
  return y.reshape(*y.shape[:2], -1)[:, :before]


@_unpadded
def _tokamax(q, k, v, bias, mask, *, num_heads, cap):
  import tokamax  # type: ignore

  del cap
  seen = _dense(mask, q.shape[1], k.shape[1])
  q, k, v = _apart(q, k, v, num_heads)
  y = tokamax.dot_product_attention(q, k, v, bias=bias, mask=seen)
  return y.reshape(*y.shape[:2], -1)


@_unpadded
def _splash(q, k, v, bias, mask, *, num_heads, cap):
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  del bias
  q, k, v = _apart(q, k, v, num_heads)
  batch, tokens, _, head_dim = q.shape
  extra = -tokens % 128
  fill = lambda y: jnp.pad(y, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2)  # noqa: E731
  shape = (tokens + extra, tokens + extra)
  kind: Any = splash.CausalMask(shape) if mask.causal else splash.FullMask(shape)
  if mask.window:
    near: Any = splash.LocalMask(shape, mask.window, 0)
    kind = kind & near if mask.causal else near
  kernel: Any = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([kind] * num_heads), attn_logits_soft_cap=cap or None
  )
  # Padding and keys that are not there are of another segment than any query.
  of_queries, of_keys = mask.segments or (jnp.zeros((batch, tokens), jnp.int32),) * 2
  of_keys = of_keys if mask.keys is None else jnp.where(mask.keys, of_keys, -1)
  of_queries = jnp.pad(of_queries, ((0, 0), (0, extra)))
  of_keys = jnp.pad(of_keys, ((0, 0), (0, extra)), constant_values=-1)
  y: Any = jax.vmap(kernel)(
    fill(q) * head_dim**-0.5, fill(k), fill(v), segment_ids=splash.SegmentIds(of_queries, of_keys)
  )
  y = y.swapaxes(1, 2)[:, :tokens]
  return y.reshape(*y.shape[:2], -1)


def _short(q, k, v, bias, mask, *, num_heads, cap, length):
  return short.attention(
    q, k, v, bias, mask, num_heads=num_heads, cap=cap, queries=length, keys=length
  )


def _hopper(problem: Problem) -> bool:
  return any(name in problem.device for name in ('H100', 'H200', 'GH200', 'B100', 'B200'))


def _cudnn_accepts(problem: Problem) -> bool:
  widest = 256 if _hopper(problem) else 128
  return (
    problem.platform == 'gpu'
    and (_hopper(problem) or 'A100' in problem.device)
    and problem.dtype == 'bfloat16'
    and problem.head_dim % 8 == 0
    and problem.head_dim <= widest
    # The backward pass for a single query gives NaN on Hopper.
    and problem.queries > 1
    and not problem.cap
    # A bias has a gradient only where all examples share it, which no written-out mask does.
    and (
      not problem.bias
      or (problem.bias == 'shared' and (not problem.masks or _is_causal_band(problem.masks)))
    )
    and 'start' not in problem.masks
  )


def _tokamax_accepts(problem: Problem) -> bool:
  return (
    problem.platform == 'gpu'
    and _hopper(problem)
    and problem.dtype == 'bfloat16'
    and problem.queries > 1
    and not problem.cap
    and importlib.util.find_spec('tokamax') is not None
  )


def _splash_accepts(problem: Problem) -> bool:
  return (
    problem.platform == 'tpu'
    and not problem.bias
    and problem.queries == problem.keys > 1024
    and problem.head_dim % 64 == 0
    and not {'prefix', 'start', 'pairs'} & set(problem.masks)
  )


def _short_accepts(problem: Problem) -> bool:
  return (
    problem.platform == 'tpu'
    and short.fits(problem.queries, problem.keys, problem.head_dim)
    and not {'start', 'pairs'} & set(problem.masks)
  )


# In order of preference where nothing was measured.
IMPLEMENTATIONS = {
  'short': Implementation(_short_accepts, _repeated(_short)),
  'splash': Implementation(_splash_accepts, _splash),
  'cudnn': Implementation(_cudnn_accepts, _cudnn),
  'tokamax': Implementation(_tokamax_accepts, _tokamax),
  'heads': Implementation(
    lambda p: p.platform == 'cpu' and not _large(p), _unpadded(heads.attention), fused=False
  ),
  'xla': Implementation(lambda p: not _large(p), _unpadded(plain.attention), fused=False),
  'chunked': Implementation(lambda p: True, _unpadded(chunked.attention), fused=False),
}  # fmt: skip


def _large(problem: Problem) -> bool:
  """Whether the scores cost less time to compute twice than memory to keep."""
  return problem.scores > 2**30
