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
from vit_jax.nn.kernels import chunked, heads, short

TABLE = paths.here(__file__) / 'measured.json'


class Problem(NamedTuple):
  """What a choice depends on.

  Attributes:
    platform, device: 'tpu', 'gpu' or 'cpu', and the kind of device.
    dtype: of queries, keys and values.
    queries, keys, head_dim: sizes, without padding.
    bias, mask: whether there is one.
    scores: bytes of the float32 scores of all heads of a device's examples.
  """

  platform: str
  device: str
  dtype: str
  queries: int
  keys: int
  head_dim: int
  bias: bool = False
  mask: bool = False
  scores: int = 0


class Implementation(NamedTuple):
  """A function of (q, k, v, bias, mask), all packed, and the problems that it solves.

  Attributes:
    accepts: whether it gives right results, forward and backward.
    run: takes num_heads, causal and length in addition to the arrays.
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
    logging.getLogger(__name__).warning(
      'attention of %d x %d tokens, head_dim %d, %s%s%s on %s is not fused (%s): slow',
      problem.queries, problem.keys, problem.head_dim, problem.dtype,
      ', bias' * problem.bias, ', mask' * problem.mask, problem.device, name,
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

  same = ('device', 'dtype', 'bias', 'mask')
  rows = [row for row in _table() if all(row[name] == getattr(problem, name) for name in same)]
  row = min(rows, key=distance, default=None)
  return row['ms'] if row and distance(row) < 1 else {}


def _heads(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Packed arrays in and out of a function of (batch, tokens, heads, head_dim)."""

  def run(q, k, v, bias, mask, *, num_heads, causal, length):
    padding = q.shape[1] - length if length else 0
    if padding:
      q, k, v = (y[:, :length] for y in (q, k, v))
    split = lambda y: y.reshape(*y.shape[:2], num_heads, -1)  # noqa: E731
    y = function(split(q), split(k), split(v), bias, mask, causal=causal)
    return jnp.pad(y.reshape(*y.shape[:2], -1), ((0, 0), (0, padding), (0, 0)))

  return run


@_heads
def _xla(q, k, v, bias, mask, *, causal):
  mask = None if mask is None else mask[:, None, None, :]
  return jax.nn.dot_product_attention(q, k, v, bias, mask, is_causal=causal)


@_heads
def _cudnn(q, k, v, bias, mask, *, causal):
  lengths: dict[str, Any] = {}
  if k.shape[1] % 128 == 64:
    # cuDNN's backward pass for Hopper gives NaN for such lengths (until 9.26), but not when told
    # that every sequence is as long as it is.
    full = lambda y: jnp.full(y.shape[0], y.shape[1], jnp.int32)  # noqa: E731
    lengths = dict(query_seq_lengths=full(q), key_value_seq_lengths=full(k))
  mask = None if mask is None else mask[:, None, None, :]
  return jax.nn.dot_product_attention(
    q, k, v, bias, mask, is_causal=causal, implementation='cudnn', **lengths
  )


@_heads
def _tokamax(q, k, v, bias, mask, *, causal):
  import tokamax  # type: ignore

  mask = None if mask is None else mask[:, None, None, :]
  return tokamax.dot_product_attention(q, k, v, bias=bias, mask=mask, is_causal=causal)


@_heads
def _splash(q, k, v, bias, mask, *, causal):
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  del bias
  batch, tokens, heads, head_dim = q.shape
  extra = -tokens % 128
  fill = lambda y: jnp.pad(y, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2)  # noqa: E731
  kind = splash.CausalMask if causal else splash.FullMask
  shape = (tokens + extra, tokens + extra)
  kernel: Any = splash.make_splash_mha_single_device(splash.MultiHeadMask([kind(shape)] * heads))
  # Padding and masked keys are of another segment than the queries.
  queries = jnp.zeros((batch, tokens + extra), jnp.int32)
  keep = jnp.ones((batch, tokens), bool) if mask is None else mask
  keys = jnp.pad(jnp.where(keep, 0, 1), ((0, 0), (0, extra)), constant_values=1)
  y: Any = jax.vmap(kernel)(
    fill(q) * head_dim**-0.5, fill(k), fill(v), segment_ids=splash.SegmentIds(queries, keys)
  )
  return y.swapaxes(1, 2)[:, :tokens]


def _packed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Of a function of packed arrays, one that leaves out padding."""

  def run(q, k, v, bias, mask, *, num_heads, causal, length):
    padding = q.shape[1] - length if length else 0
    if padding:
      q, k, v = (y[:, :length] for y in (q, k, v))
    y = function(q, k, v, bias, mask, num_heads=num_heads, causal=causal)
    return jnp.pad(y, ((0, 0), (0, padding), (0, 0)))

  return run


def _short(q, k, v, bias, mask, *, num_heads, causal, length):
  return short.attention(
    q, k, v, bias, mask, num_heads=num_heads, causal=causal, queries=length, keys=length
  )


def _hopper(problem: Problem) -> bool:
  return any(name in problem.device for name in ('H100', 'H200', 'GH200', 'B100', 'B200'))


def _cudnn_accepts(problem: Problem) -> bool:
  widest = 256 if _hopper(problem) else 128
  even = problem.queries % 2 == problem.keys % 2 == 0  # or there is no gradient with a bias
  return (
    problem.platform == 'gpu'
    and (_hopper(problem) or 'A100' in problem.device)
    and problem.dtype == 'bfloat16'
    and problem.head_dim % 8 == 0
    and problem.head_dim <= widest
    # The backward pass for a single query gives NaN on Hopper.
    and problem.queries > 1
    and (even or not (problem.bias or problem.mask))
  )


def _tokamax_accepts(problem: Problem) -> bool:
  return (
    problem.platform == 'gpu'
    and _hopper(problem)
    and problem.dtype == 'bfloat16'
    and problem.queries > 1
    and importlib.util.find_spec('tokamax') is not None
  )


def _splash_accepts(problem: Problem) -> bool:
  return (
    problem.platform == 'tpu'
    and not problem.bias
    and problem.queries == problem.keys > 1024
    and problem.head_dim % 64 == 0
  )


# In order of preference where nothing was measured.
IMPLEMENTATIONS = {
  'short': Implementation(
    lambda p: p.platform == 'tpu' and short.fits(p.queries, p.keys, p.head_dim), _short
  ),
  'splash': Implementation(_splash_accepts, _splash),
  'cudnn': Implementation(_cudnn_accepts, _cudnn),
  'tokamax': Implementation(_tokamax_accepts, _tokamax),
  # Scores of many tokens cost less time to compute twice than memory to keep.
  'chunked': Implementation(lambda p: p.scores > 2**30, _packed(chunked.attention), fused=False),
  'heads': Implementation(lambda p: p.platform == 'cpu', _packed(heads.attention), fused=False),
  'xla': Implementation(lambda p: True, _xla, fused=False),
}  # fmt: skip
