"""Attention over short sequences on TPU: whole rows of scores in VMEM, never in HBM.

At the lengths of images (50 to some 1,000 tokens) the scores of one head fit into the memory beside
the processor. So nothing needs the blockwise softmax of flash attention: a kernel reads queries,
keys and values once and writes the result once. The backward kernel recomputes the weights from
the same three arrays; it needs neither the output nor any statistics of the forward pass.

Arrays are (batch, tokens, heads * head_dim), as the projections around attention leave and take
them: heads are cut out inside the kernel, and nothing is transposed in HBM.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
# Scores of a head that may live in VMEM at a time, and blocks of operands (twice: the next ones are
# fetched while these are worked on), in bytes.
SCORES, BLOCKS = 2 * 2**20, 24 * 2**20
VMEM = 64 * 2**20
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Plan:
  """How the work is cut; see `plan`."""

  batch: int
  heads: int
  rows: int


def fits(queries: int, keys: int, num_heads: int, head_dim: int) -> bool:
  """Whether these kernels take such attention."""
  del num_heads
  return max(queries, keys) <= 2048 and head_dim <= 256


def reference(q, k, v, bias=None, mask=None, *, num_heads: int, causal: bool = False) -> jax.Array:
  """What `attention` computes, in plain JAX."""
  split = lambda x: x.reshape(*x.shape[:2], num_heads, -1)  # noqa: E731
  q, k, v = split(q), split(k), split(v)
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
  scores = scores * q.shape[-1] ** -0.5
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  if mask is not None:
    scores = jnp.where(mask[:, None, None, :], scores, MASKED)
  if causal:
    scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  y = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
  return y.reshape(*y.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def attention(
  q, k, v, bias=None, mask=None, num_heads: int = 1, causal: bool = False, interpret: bool = False
):  # fmt: skip
  """Softmax attention of every head.

  Args:
    q: (batch, queries, num_heads * head_dim), float32 or bfloat16.
    k, v: (batch, keys, num_heads * head_dim), of the same dtype.
    bias: (1 or batch, num_heads, queries, keys), added to the scaled scores, or None.
    mask: bool (batch, keys), False for keys that are not attended to, or None.
    num_heads: of them.
    causal: query i attends to keys up to i.
    interpret: run on any machine, slowly.

  Returns:
    (batch, queries, num_heads * head_dim) of the dtype of `q`. Scores and softmax are float32;
    their products with values are of the dtype of `q`, summed in float32.
  """
  return _forward(q, k, v, bias, mask, num_heads, causal, interpret)[0]


def _forward(q, k, v, bias, mask, num_heads, causal, interpret):
  call = _Call(q, k, bias, mask, num_heads, causal, interpret)
  y = call(_forward_kernel, (q, k, v), outs=(q,), matmuls=2)[0]
  return y, (q, k, v, bias, mask)


def _backward(num_heads, causal, interpret, saved, dy):
  q, k, v, bias, mask = saved
  call = _Call(q, k, bias, mask, num_heads, causal, interpret)
  grads = call(_backward_kernel, (q, k, v, dy), outs=(q, k, v), matmuls=5, bias_grad=True)
  dbias = None if bias is None else grads[3].astype(bias.dtype)
  return *grads[:3], dbias, None


attention.defvjp(_forward, _backward)


class _Call:
  """One pallas_call: shapes, blocks, and the cost for the scheduler."""

  def __init__(self, q, k, bias, mask, num_heads, causal, interpret):
    self.batch, self.queries, width = q.shape
    self.keys, self.num_heads, self.causal = k.shape[1], num_heads, causal
    self.head_dim, self.itemsize = width // num_heads, q.dtype.itemsize
    self.bias, self.mask, self.interpret = bias, mask, interpret

  def __call__(self, kernel, operands, outs, matmuls, bias_grad=False):
    plan = self.plan(len(operands) + len(outs))
    width = plan.heads * self.head_dim
    groups = self.num_heads // plan.heads
    block = lambda x: pl.BlockSpec((plan.batch, x.shape[1], width), lambda h, b: (b, 0, h))  # noqa: E731
    in_specs, inputs = [block(x) for x in operands], list(operands)
    out_specs = [block(x) for x in outs]
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs]
    if self.mask is not None:
      in_specs.append(pl.BlockSpec((plan.batch, 1, self.keys), lambda h, b: (b, 0, 0)))
      inputs.append(self.mask[:, None, :].astype(jnp.float32))
    if self.bias is not None:
      shared = self.bias.shape[0] == 1
      shape = (1 if shared else plan.batch, plan.heads, self.queries, self.keys)
      spec = pl.BlockSpec(shape, lambda h, b: (0 if shared else b, h, 0, 0))
      in_specs.append(spec)
      inputs.append(self.bias)
      if bias_grad:
        out_specs.append(spec)
        out_shape.append(jax.ShapeDtypeStruct(self.bias.shape, jnp.float32))
    body = functools.partial(
      kernel, plan=plan, head_dim=self.head_dim, causal=self.causal,
      bias=self.bias is not None, mask=self.mask is not None, operands=len(operands),
    )  # fmt: skip
    pairs = self.batch * self.num_heads * self.queries * self.keys
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*inputs, *out_shape))
    return pl.pallas_call(
      body,
      grid=(groups, self.batch // plan.batch),
      in_specs=in_specs,
      out_specs=out_specs,
      out_shape=out_shape,
      interpret=self.interpret,
      cost_estimate=pl.CostEstimate(
        flops=2 * matmuls * pairs * self.head_dim, transcendentals=pairs, bytes_accessed=moved
      ),
      compiler_params=pltpu.CompilerParams(
        # The gradient of a bias that examples share is summed over the inner loop.
        dimension_semantics=('parallel', 'arbitrary' if bias_grad else 'parallel'),
        vmem_limit_bytes=VMEM,
      ),
      name=f'attention_{"backward" if bias_grad else "forward"}_{self.head_dim}',
    )(*inputs)

  def plan(self, arrays: int) -> Plan:
    """The largest blocks within the budget: first heads whose lanes are whole, then examples."""
    row = max(self.queries, self.keys) * self.itemsize * self.head_dim * arrays * 2
    extra = 0
    if self.bias is not None:
      extra = self.queries * self.keys * 4 * 4
    whole = math.lcm(self.head_dim, LANES) // self.head_dim
    heads = self.num_heads
    if self.num_heads % whole == 0:
      choices = [h for h in range(whole, heads + 1, whole) if heads % h == 0]
      small = [h for h in choices if h * (row + extra) <= BLOCKS and h <= max(16, whole)]
      heads = max(small, default=whole)
    if self.bias is not None and self.bias.shape[0] > 1:
      row += extra
    limit = max(1, BLOCKS // (heads * row))
    batch = max(b for b in range(1, min(limit, 8) + 1) if self.batch % b == 0)
    rows = max(8, SCORES // (4 * self.keys) // 8 * 8)
    return Plan(batch, heads, min(rows, self.queries))


def _dot(a, b, axes):
  """Product summed over the given axes, in float32."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    a, b, ((axes[:1], axes[1:]), ((), ())), precision=precision,
    preferred_element_type=jnp.float32,
  )  # fmt: skip


def _weights(q, k, start, mask, bias, causal):
  """Softmax weights, float32 (rows, keys), of queries that begin at row `start`."""
  s = _dot(q, k, (1, 1)) * q.shape[-1] ** -0.5
  if bias is not None:
    s = s + bias.astype(jnp.float32)
  if mask is not None:
    s = jnp.where(mask > 0, s, MASKED)
  if causal:
    at = lambda axis: jax.lax.broadcasted_iota(jnp.int32, s.shape, axis)  # noqa: E731
    s = jnp.where(at(0) + start >= at(1), s, MASKED)
  p = jnp.exp(s - s.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def _slices(plan: Plan, head_dim: int, queries: int):
  """Lanes of each head, and rows of each part of its queries."""
  for head in range(plan.heads):
    lanes = slice(head * head_dim, (head + 1) * head_dim)
    yield head, lanes, [slice(r, min(r + plan.rows, queries)) for r in range(0, queries, plan.rows)]


def _unpack(refs, operands, mask, bias):
  """Blocks of operands, of mask and bias (None if there is none), and of results."""
  refs = list(refs)
  inputs = [refs.pop(0) for _ in range(operands)]
  mask_ref = refs.pop(0) if mask else None
  bias_ref = refs.pop(0) if bias else None
  return inputs, mask_ref, bias_ref, refs


def _forward_kernel(*refs, plan, head_dim, causal, mask, bias, operands):
  (q_ref, k_ref, v_ref), mask_ref, bias_ref, (y_ref,) = _unpack(refs, operands, mask, bias)

  def example(b, _):
    keep = mask_ref[b] if mask_ref is not None else None
    for head, lanes, parts in _slices(plan, head_dim, q_ref.shape[1]):
      k, v = k_ref[b, :, lanes], v_ref[b, :, lanes]
      for rows in parts:
        add = None
        if bias_ref is not None:
          add = bias_ref[b if bias_ref.shape[0] > 1 else 0, head, rows, :]
        p = _weights(q_ref[b, rows, lanes], k, rows.start, keep, add, causal)
        y_ref[b, rows, lanes] = _dot(p.astype(v.dtype), v, (1, 0)).astype(y_ref.dtype)
    return ()

  jax.lax.fori_loop(0, plan.batch, example, ())


def _backward_kernel(*refs, plan, head_dim, causal, mask, bias, operands):
  inputs, mask_ref, bias_ref, outs = _unpack(refs, operands, mask, bias)
  q_ref, k_ref, v_ref, dy_ref = inputs
  dq_ref, dk_ref, dv_ref, *dbias = outs
  scale = head_dim**-0.5
  if dbias and dbias[0].shape[0] == 1:

    @pl.when(pl.program_id(1) == 0)
    def _():
      dbias[0][...] = jnp.zeros_like(dbias[0])

  def example(b, _):
    keep = mask_ref[b] if mask_ref is not None else None
    for head, lanes, parts in _slices(plan, head_dim, q_ref.shape[1]):
      k, v = k_ref[b, :, lanes], v_ref[b, :, lanes]
      dk = jnp.zeros(k.shape, jnp.float32)
      dv = jnp.zeros(v.shape, jnp.float32)
      for rows in parts:
        q, dy = q_ref[b, rows, lanes], dy_ref[b, rows, lanes]
        add = None
        if bias_ref is not None:
          add = bias_ref[b if bias_ref.shape[0] > 1 else 0, head, rows, :]
        p = _weights(q, k, rows.start, keep, add, causal)
        dp = _dot(dy, v, (1, 1))
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        if dbias:
          if dbias[0].shape[0] == 1:
            dbias[0][0, head, rows, :] += ds
          else:
            dbias[0][b, head, rows, :] = ds
        ds = ds.astype(q.dtype)
        dq_ref[b, rows, lanes] = (_dot(ds, k, (1, 0)) * scale).astype(dq_ref.dtype)
        dk += _dot(ds, q, (0, 0))
        dv += _dot(p.astype(dy.dtype), dy, (0, 0))
      dk_ref[b, :, lanes] = (dk * scale).astype(dk_ref.dtype)
      dv_ref[b, :, lanes] = dv.astype(dv_ref.dtype)
    return ()

  jax.lax.fori_loop(0, plan.batch, example, ())
