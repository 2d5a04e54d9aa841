"""Attention over short sequences on TPU: whole rows of scores in VMEM, never in HBM.

At the lengths of images (50 to some 1,000 tokens) the scores of one head fit into the memory next
to the processor, so nothing needs the blockwise softmax of flash attention: a kernel reads queries,
keys and values once and writes the result once. The backward kernel recomputes the weights from
the same three arrays; it needs neither the output nor any statistics of the forward pass.

Arrays are (batch, tokens, heads * head_dim), as the projections around attention leave and take
them: heads are cut out inside the kernel, and nothing is transposed in HBM. Tokens may be followed
by padding that rounds their number up, which costs nothing here: it is neither read nor attended
to, and results are 0 there.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.nn.kernels.plain import HIDDEN
from vit_jax.nn.masks import FULL, Mask

LANES = 128
# Bytes of VMEM to use: half of it; on generations with 16 MiB almost all.
VMEM = 64 * 2**20
SMALL_VMEM = dict.fromkeys(('TPU v2', 'TPU v3', 'TPU v4'), 15 * 2**20)


class _Spec(NamedTuple):
  """What is static about a call."""

  num_heads: int
  head_dim: int
  cap: float
  queries: int
  keys: int
  packed: bool
  interpret: bool
  vmem: int


def fits(queries: int, keys: int, head_dim: int) -> bool:
  """Whether these kernels take such attention: rows must fit into VMEM, and be worth it."""
  return 8 <= queries <= 2048 and keys <= 2048 and head_dim <= 256


def packs(tokens: int, num_heads: int, head_dim: int, itemsize: int = 2, *, bias: bool) -> bool:
  """Whether `self_attention` takes such attention: the rows of all heads must fit into VMEM."""
  width = num_heads * head_dim
  arrays = 2 * itemsize * (tokens + -tokens % 8) * width * 7
  scores = num_heads * _bias_bytes(tokens, tokens) if bias else 0
  return fits(tokens, tokens, head_dim) and width % LANES == 0 and arrays + scores <= _room(_vmem())


def _vmem() -> int:
  """Bytes of it on the devices of the mesh in context."""
  device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
  return SMALL_VMEM.get(device.device_kind, VMEM)


def _room(vmem: int) -> int:
  """For blocks of operands and results, each twice: the next are fetched while these are used."""
  return vmem * 3 // 8


def _bias_bytes(queries: int, keys: int) -> int:
  """Of a bias and its gradient in float32, each twice, per head."""
  return 4 * queries * keys * 4


def attention(
  q, k, v, bias=None, mask: Mask = FULL, *, num_heads: int, cap: float = 0.0,
  queries: int | None = None, keys: int | None = None, interpret: bool = False,
) -> jax.Array:  # fmt: skip
  """Softmax attention of every head; differentiable with respect to q, k, v and bias.

  Args:
    q: (batch, queries and padding, num_heads * head_dim), float32 or bfloat16.
    k, v: (batch, keys and padding, num_heads * head_dim), of the same dtype.
    bias: (1 or batch, num_heads, queries, keys), added to the scores, or None.
    mask: which keys a query sees; one without `start`.
    num_heads: of them.
    cap: of scores, as for `plain.attention`.
    queries, keys: how many are not padding; all if not given.
    interpret: run on any machine, slowly.

  Returns:
    As `q`, and 0 where that is padding. Scores and softmax are float32; their products with values
    are of the dtype of `q`, summed in float32. A query that sees no key attends to all alike.
  """
  spec = _Spec(
    num_heads, q.shape[-1] // num_heads, cap, queries or q.shape[1], keys or k.shape[1], False,
    interpret, _vmem(),
  )  # fmt: skip
  return _attention((q, k, v), bias, mask, spec)


def self_attention(
  qkv, bias=None, mask: Mask = FULL, *, num_heads: int, cap: float = 0.0,
  length: int | None = None, interpret: bool = False,
) -> jax.Array:  # fmt: skip
  """`attention` among the same tokens, of one array, which has one gradient: see `packs`.

  So the projections to queries, keys and values can be one product, which reads its operands once.

  Args:
    qkv: (batch, tokens and padding, 3 * num_heads * head_dim): queries, keys and values.
    bias, mask, num_heads, cap, interpret: as for `attention`.
    length: how many tokens are not padding; all if not given.

  Returns:
    (batch, tokens and padding, num_heads * head_dim).
  """
  return _attention((qkv,), bias, mask, _packed_spec(qkv, num_heads, cap, length, interpret))


def self_attention_in(
  stack, results, layer, bias=None, mask: Mask = FULL, *, num_heads: int, cap: float = 0.0,
  length: int | None = None, interpret: bool = False,
) -> jax.Array:  # fmt: skip
  """`self_attention` of one layer, whose operand and result stay where those of all layers are.

  Args:
    stack: what `self_attention` takes, of all layers: (layers, batch, tokens and padding, ...).
    results: what it gives, of all layers.
    layer: which one, int32 ().
    bias, mask, num_heads, cap, length, interpret: as for `self_attention`.

  Returns:
    `results` with that of the layer, in the same memory. It has no gradient; see
    `self_attention_gradient`.
  """
  spec = _packed_spec(stack, num_heads, cap, length, interpret)
  return _call(_forward_kernel, (stack,), (results,), bias, mask, spec, matmuls=2, layer=layer)[0]


def self_attention_gradient(
  stack, layer, dy, bias=None, mask: Mask = FULL, *, num_heads: int, cap: float = 0.0,
  length: int | None = None, interpret: bool = False,
) -> Any:  # fmt: skip
  """The gradient of `self_attention` of one layer by its operand, and by the bias if there is one.

  Args:
    stack, layer: as for `self_attention_in`.
    dy: the gradient by the result of this layer, (batch, tokens and padding, num_heads * head_dim).
    bias, mask, num_heads, cap, length, interpret: as for `self_attention`.
  """
  spec = _packed_spec(stack, num_heads, cap, length, interpret)
  like = (jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype),)
  grads = _call(_backward_kernel, (stack, dy), like, bias, mask, spec, matmuls=5, layer=layer)
  return grads[0] if bias is None else (grads[0], grads[1].astype(bias.dtype))


def _packed_spec(qkv, num_heads: int, cap: float, length: int | None, interpret: bool) -> _Spec:
  length, head_dim = length or qkv.shape[-2], qkv.shape[-1] // 3 // num_heads
  return _Spec(num_heads, head_dim, cap, length, length, True, interpret, _vmem())


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(operands, bias, mask, spec):
  return _forward(operands, bias, mask, spec)[0]


def _forward(operands, bias, mask, spec):
  batch, tokens, _ = operands[0].shape
  y = jax.ShapeDtypeStruct((batch, tokens, spec.num_heads * spec.head_dim), operands[0].dtype)
  (y,) = _call(_forward_kernel, operands, (y,), bias, mask, spec, matmuls=2)
  return y, (operands, bias, mask)


def _backward(spec, saved, dy):
  operands, bias, mask = saved
  grads = _call(_backward_kernel, (*operands, dy), operands, bias, mask, spec, matmuls=5)
  grads, dbias = grads[: len(operands)], grads[len(operands) :]
  return tuple(grads), dbias[0].astype(bias.dtype) if dbias else None, None


_attention.defvjp(_forward, _backward)


def _call(kernel, operands, outs, bias, mask, spec: _Spec, *, matmuls: int, layer=None) -> Any:
  """The pallas_call of `kernel`, whose results are shaped as `outs`; and the gradient of a bias.

  Of operands and `outs` with a leading axis of layers, only that of `layer` is read or written.
  """
  batch, head_dim, itemsize = operands[0].shape[-3], spec.head_dim, operands[0].dtype.itemsize
  score_bytes = _bias_bytes(spec.queries, spec.keys) if bias is not None else 0
  width = spec.num_heads * head_dim
  rows = 2 * itemsize * sum(x.shape[-2] * x.shape[-1] // width for x in (*operands, *outs))
  seen = _descriptions(mask)
  # A column of one number per query fills whole registers, and so does a row of one per key.
  described = sum(4 * x.shape[1] * (-x.shape[2] % LANES + x.shape[2]) for x in seen.values())
  heads, examples = _blocks(batch, spec, rows, score_bytes, 2 * described)

  def block(x):
    shape = (examples, x.shape[-2], x.shape[-1] * heads // spec.num_heads)
    if len(x.shape) == 4:
      return pl.BlockSpec((None, *shape), lambda h, b, layer: (layer[0], b, 0, h))
    return pl.BlockSpec(shape, lambda h, b, *_: (b, 0, h))

  inputs, in_specs = list(operands), [block(x) for x in operands]
  out_specs = [block(x) for x in outs]
  out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs]
  moved = sum(math.prod(x.shape[-3:]) * x.dtype.itemsize for x in (*inputs, *out_shape))
  for x in seen.values():
    inputs.append(x)
    in_specs.append(pl.BlockSpec((examples, *x.shape[1:]), lambda h, b, *_: (b, 0, 0)))
  backward = kernel is _backward_kernel
  if bias is not None:
    own = bias.shape[0] > 1
    shape = (examples if own else 1, heads, spec.queries, spec.keys)
    added = pl.BlockSpec(shape, lambda h, b, *_: (b if own else 0, h, 0, 0))
    inputs.append(bias)
    in_specs.append(added)
    if backward:
      out_specs.append(added)
      out_shape.append(jax.ShapeDtypeStruct(bias.shape, jnp.float32))
  moved += sum(math.prod(x.shape) * x.dtype.itemsize for x in inputs[len(operands) :])
  run = functools.partial(
    kernel, spec=spec, bias=bias is not None, causal=mask.causal, window=mask.window,
    seen=tuple(seen),
  )  # fmt: skip
  how: dict[str, Any] = dict(
    grid=(spec.num_heads // heads, batch // examples), in_specs=in_specs, out_specs=out_specs
  )
  if layer is not None:
    count = len(inputs)
    results = [x for x in outs if len(x.shape) == 4]  # are passed on but for what is written
    run = _only(run, count, len(results))
    in_specs += [pl.BlockSpec(memory_space=pl.ANY)] * len(results)
    inputs = [jnp.reshape(layer, 1).astype(jnp.int32), *inputs, *results]
    how = dict(
      grid_spec=pltpu.PrefetchScalarGridSpec(num_scalar_prefetch=1, **how),
      input_output_aliases={1 + count + i: i for i in range(len(results))},
    )
  return pl.pallas_call(
    run,
    **how,
    out_shape=out_shape,
    interpret=spec.interpret,
    cost_estimate=pl.CostEstimate(
      flops=2 * matmuls * batch * spec.num_heads * spec.queries * spec.keys * head_dim,
      transcendentals=batch * spec.num_heads * spec.queries * spec.keys,
      bytes_accessed=moved,
    ),
    compiler_params=pltpu.CompilerParams(
      # The gradient of a bias that examples share is summed over the inner loop.
      dimension_semantics=('parallel', 'arbitrary' if bias is not None else 'parallel'),
      vmem_limit_bytes=spec.vmem,
    ),
    name=f'attention_{"backward" if backward else "forward"}_{head_dim}',
  )(*inputs)


def _only(kernel, count: int, unused: int):
  """`kernel` without the number of the layer, and `unused` inputs after the first `count`."""

  def run(_, *refs):
    kernel(*refs[:count], *refs[count + unused :])

  return run


def _descriptions(mask: Mask) -> dict[str, jax.Array]:
  """The numbers of a mask as kernels read them: int32, queries in a column and keys in a row."""
  found = {'keys': mask.keys, 'prefix': mask.prefix}
  if mask.segments is not None:
    found['segment'] = mask.segments[1]
  rows = {name: x.astype(jnp.int32)[:, None, :] for name, x in found.items() if x is not None}
  if mask.segments is not None:
    rows['own segment'] = mask.segments[0].astype(jnp.int32)[:, :, None]
  return rows


def _blocks(batch: int, spec: _Spec, rows: int, score_bytes: int, described: int):
  """Heads and examples in a block: as many of first the one, then the other as VMEM has room for.

  Args:
    batch: examples on this device.
    spec: of the call.
    rows: of all operands and results together, in bytes per lane.
    score_bytes: of the bias and its gradient, per head.
    described: bytes of the description of a mask, per example.
  """
  head_dim = spec.head_dim
  row = LANES * -(-head_dim // LANES) * rows if head_dim > LANES else head_dim * rows
  whole = _whole(head_dim, spec.num_heads)
  whole = spec.num_heads if spec.packed else whole
  choices = [h for h in range(whole, spec.num_heads + 1, whole) if spec.num_heads % h == 0]
  room = _room(spec.vmem)
  heads = max([h for h in choices if h * (row + score_bytes) <= room], default=whole)
  limit = room // (heads * (row + score_bytes) + described)
  return heads, max(b for b in range(1, max(1, min(limit, 8)) + 1) if batch % b == 0)


def _whole(head_dim: int, num_heads: int) -> int:
  """The fewest heads whose features fill whole registers; all of them if no number does."""
  whole = math.lcm(head_dim, LANES) // head_dim
  return whole if num_heads % whole == 0 else num_heads


class _Work:
  """The blocks of one step of the grid, and how its loops go through them.

  Attributes:
    q, k, v, dy: of the operands; the last only in the backward pass.
    outs: the result, or the gradients of queries, keys and values.
    dbias: the gradient of the bias, or None.
    seen: the numbers of the mask, by name: see `_descriptions`.
  """

  def __init__(self, refs, *, backward: bool, spec: _Spec, bias: bool, causal, window, seen):
    refs = list(refs)

    def three():
      return _thirds(refs.pop(0)) if spec.packed else [refs.pop(0) for _ in range(3)]

    self.q, self.k, self.v = three()
    self.dy: Any = refs.pop(0) if backward else None
    self.causal, self.window = causal, window
    self.seen = {name: refs.pop(0) for name in seen}
    self.bias = refs.pop(0) if bias else None
    self.outs = three() if backward else [refs.pop(0)]
    self.dbias: Any = refs.pop(0) if refs else None
    self.spec, self.head_dim = spec, spec.head_dim
    self.examples, _, lanes = self.q.shape
    self.heads = lanes // self.head_dim
    self.group = _whole(self.head_dim, self.heads)

  def each(self, body) -> None:
    """Calls body(example, first head, lanes) for every group of heads of every example.

    A group is as many heads as fill whole registers, because the lanes that a loop reads and
    writes must be aligned.
    """
    groups, width = self.heads // self.group, self.group * self.head_dim

    def step(i, _):
      example, group = i // groups, i % groups
      start = 0 if groups == 1 else pl.multiple_of(group * width, LANES)
      body(example, group * self.group, pl.ds(start, width))
      return ()

    jax.lax.fori_loop(0, self.examples * groups, step, ())

  def parts(self):
    """Rows of queries whose scores are in VMEM together."""
    rows, queries = self.spec.vmem // 32 // (4 * self.spec.keys) // 8 * 8, self.spec.queries
    rows = max(8, rows)
    return [slice(start, min(start + rows, queries)) for start in range(0, queries, rows)]

  def cut(self, x) -> list[jax.Array]:
    """The heads of a group: (rows, group * head_dim) -> (rows, head_dim) each."""
    return [x[:, i * self.head_dim : (i + 1) * self.head_dim] for i in range(self.group)]

  def keys_and_values(self, example, lanes):
    """Of every head of a group, without padding."""
    return (self.cut(ref[example, : self.spec.keys, lanes]) for ref in (self.k, self.v))

  def weights(self, example, head, rows, q, k):
    """Softmax weights, float32 (rows, keys); the slope of the cap; which rows see a key.

    The last two are None where there is no cap, and where every row sees one.
    """
    s, slope = _dot(q, k, (1, 1)) * self.head_dim**-0.5, None
    if self.spec.cap:
      bent = jnp.tanh(s / self.spec.cap)
      s, slope = self.spec.cap * bent, 1 - bent * bent
    if self.bias is not None:
      own = self.bias.shape[0] > 1
      s = s + self.bias[example if own else 0, head, rows, :].astype(jnp.float32)
    for seen in self._visible(example, rows, s.shape):
      s = jnp.where(seen, s, HIDDEN)
    top = s.max(-1, keepdims=True)
    p = jnp.exp(s - top)
    # Of a causal mask or a window alone, queries see at least their own place, if there is a key.
    blind = self.seen or ((self.causal or self.window) and self.spec.queries > self.spec.keys)
    live = top > HIDDEN / 2 if blind else None
    return p / p.sum(-1, keepdims=True), slope, live

  def _visible(self, example, rows, shape):
    """Arrays (rows or 1, keys), all of which must be true."""
    if self.causal or self.window:
      at = lambda axis: jax.lax.broadcasted_iota(jnp.int32, shape, axis)  # noqa: E731
      apart = at(1) - at(0) - rows.start
      if self.causal:
        past = apart <= 0
        yield past | (self.seen['prefix'][example] > 0) if 'prefix' in self.seen else past
      if self.window:
        yield (apart >= -self.window[0]) & (apart <= self.window[1])
    if 'keys' in self.seen:
      yield self.seen['keys'][example] > 0
    if 'segment' in self.seen:
      yield self.seen['own segment'][example, rows, :] == self.seen['segment'][example]


def _thirds(ref) -> list[Any]:
  """Queries, keys and values, or their gradients, in an array that packs them."""
  width = ref.shape[2] // 3
  return [ref.at[:, :, i * width : (i + 1) * width] for i in range(3)]


def _dot(a, b, axes):
  """Product summed over an axis of each, in float32."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    a, b, ((axes[:1], axes[1:]), ((), ())), precision=precision,
    preferred_element_type=jnp.float32,
  )  # fmt: skip


def _put(ref, example, rows, lanes, heads):
  """Writes the heads of a group next to each other."""
  y = jnp.concatenate([y.astype(ref.dtype) for y in heads], axis=1)
  ref[example, rows, lanes] = y


def _clear(ref, example, length, lanes):
  """Zeros where there is padding after `length` rows."""
  padding = ref.shape[1] - length
  if padding:
    ref[example, length:, lanes] = jnp.zeros((padding, lanes.size), ref.dtype)


def _forward_kernel(*refs, **options):
  work = _Work(refs, backward=False, **options)
  (y_ref,) = work.outs

  def body(b, first, lanes):
    keys, values = work.keys_and_values(b, lanes)
    for rows in work.parts():
      ys = []
      for i, q in enumerate(work.cut(work.q[b, rows, lanes])):
        p, *_ = work.weights(b, first + i, rows, q, keys[i])
        ys.append(_dot(p.astype(q.dtype), values[i], (1, 0)))
      _put(y_ref, b, rows, lanes, ys)
    _clear(y_ref, b, work.spec.queries, lanes)

  work.each(body)


def _backward_kernel(*refs, **options):
  work = _Work(refs, backward=True, **options)
  dq_ref, dk_ref, dv_ref = work.outs
  dbias: Any = work.dbias
  scale = work.head_dim**-0.5
  shared = work.dbias is not None and work.dbias.shape[0] == 1
  if shared:

    @pl.when(pl.program_id(1) == 0)
    def _():
      dbias[...] = jnp.zeros_like(dbias)

  def body(b, first, lanes):
    keys, values = work.keys_and_values(b, lanes)
    dks, dvs = ([jnp.zeros(k.shape, jnp.float32) for k in keys] for _ in range(2))
    for rows in work.parts():
      dqs = []
      queries, dys = (work.cut(ref[b, rows, lanes]) for ref in (work.q, work.dy))
      for i, (q, dy, k, v) in enumerate(zip(queries, dys, keys, values, strict=True)):
        p, slope, live = work.weights(b, first + i, rows, q, k)
        dp = _dot(dy, v, (1, 1))
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        if live is not None:
          ds = jnp.where(live, ds, 0.0)
        if dbias is not None:
          at = 0 if shared else b, first + i, rows, slice(None)
          dbias[at] = dbias[at] + ds if shared else ds
        ds = (ds if slope is None else ds * slope).astype(q.dtype)
        dqs.append(_dot(ds, k, (1, 0)) * scale)
        dks[i] += _dot(ds, q, (0, 0))
        dvs[i] += _dot(p.astype(q.dtype), dy, (0, 0))
      _put(dq_ref, b, rows, lanes, dqs)
    keep = slice(0, work.spec.keys)
    _put(dk_ref, b, keep, lanes, [dk * scale for dk in dks])
    _put(dv_ref, b, keep, lanes, dvs)
    _clear(dq_ref, b, work.spec.queries, lanes)
    _clear(dk_ref, b, work.spec.keys, lanes)
    _clear(dv_ref, b, work.spec.keys, lanes)

  work.each(body)
