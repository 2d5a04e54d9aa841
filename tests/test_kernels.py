"""Every implementation of attention against float64, values and gradients."""

import functools
import itertools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas.ops.tpu import splash_attention as library

from tests.conftest import tiers
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import attention as attention_lib
from vit_jax.nn import remat, sharding
from vit_jax.nn.attention import attend
from vit_jax.nn.kernels import choice, chunked, heads, plain, short
from vit_jax.nn.masks import FULL, Mask

LENGTHS = (1, 50, 196, 197, 256, 257, 577, 1025)
WIDTHS = (64, 72, 80, 88, 104, 112, 128)


def seen(mask, batch, queries, keys):
  """What `Mask` says, pair by pair: bool (batch, queries, keys)."""
  keep = np.ones((batch, queries, keys), bool)
  for b, i, j in itertools.product(range(batch), range(queries), range(keys)):
    place = i if mask.start is None else i + int(np.broadcast_to(mask.start, batch)[b])
    if mask.causal and j > place and not (mask.prefix is not None and mask.prefix[b, j]):
      keep[b, i, j] = False
    if mask.window and not place - mask.window[0] <= j <= place + mask.window[1]:
      keep[b, i, j] = False
    if mask.keys is not None and not mask.keys[b, j]:
      keep[b, i, j] = False
    if mask.segments is not None and mask.segments[0][b, i] != mask.segments[1][b, j]:
      keep[b, i, j] = False
    if mask.pairs is not None and i < mask.pairs.shape[1]:
      keep[b, i, j] &= mask.pairs[b % len(mask.pairs), i, j]
  return keep


def exact(q, k, v, dy, bias=None, mask=FULL, *, num_heads, cap=0.0):
  """Attention and its gradients in float64: y, dq, dk, dv, dbias."""
  wide = lambda x: np.asarray(jnp.asarray(x, jnp.float32), np.float64)  # noqa: E731
  head_dim = q.shape[-1] // num_heads
  split = lambda x: wide(x).reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)  # noqa: E731
  q, k, v, dy = split(q), split(k), split(v), split(dy)
  groups = k.shape[1]
  k, v = (np.repeat(x, num_heads // groups, axis=1) for x in (k, v))
  scale = q.shape[-1] ** -0.5
  scores = q @ k.swapaxes(2, 3) * scale
  slope = 1.0
  if cap:
    scores = cap * np.tanh(scores / cap)
    slope = 1 - (scores / cap) ** 2
  keep = seen(mask, scores.shape[0], *scores.shape[2:])[:, None]
  if bias is not None:
    scores = scores + wide(bias)
  scores = np.where(keep, scores, -1e300)
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  dp = dy @ v.swapaxes(2, 3)
  dbias = np.where(keep, p * (dp - (p * dp).sum(-1, keepdims=True)), 0)
  ds = dbias * slope
  merge = lambda x: x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)  # noqa: E731
  grouped = lambda x: x.reshape(x.shape[0], groups, -1, *x.shape[2:]).sum(2)  # noqa: E731
  dk, dv = grouped(ds.swapaxes(2, 3) @ q * scale), grouped(p.swapaxes(2, 3) @ dy)
  results = [merge(x) for x in (p @ v, ds @ k * scale, dk, dv)]
  if bias is not None:
    results.append(dbias.sum(0, keepdims=True) if bias.shape[0] == 1 else dbias)
  return results


def operands(seed, batch, queries, keys, heads, head_dim, dtype, bias=0, mask='full', groups=None):
  rng = np.random.default_rng(seed)
  make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
  q, dy = (make(batch, queries, heads * head_dim) for _ in range(2))
  k, v = (make(batch, keys, (groups or heads) * head_dim) for _ in range(2))
  add = make(bias, heads, queries, keys) if bias else None
  return q, k, v, dy, add, masks(rng, batch, queries, keys)[mask]


def masks(rng, batch, queries, keys):
  """One of every kind, and all together."""
  there = rng.random((batch, keys)) < 0.7
  there[0] = False  # an example that is nothing but padding
  prefix = np.arange(keys) < rng.integers(1, 2 + keys // 2, (batch, 1))
  numbers = lambda n: np.sort(rng.integers(0, 4, (batch, n)))  # noqa: E731
  segments = numbers(queries), numbers(keys)
  if queries == keys:
    segments = segments[:1] * 2
  start = rng.integers(1, 2 + keys // 2, batch).astype(np.int32)
  return {
    'full': FULL,
    'keys': Mask(keys=there),
    'causal': Mask(causal=True),
    'window': Mask(window=(3, 5)),
    'causal window': Mask(causal=True, window=(9, 0)),
    'prefix': Mask(causal=True, prefix=prefix),
    'segments': Mask(segments=segments),
    'documents': Mask(causal=True, segments=segments, keys=there),
    'all': Mask(True, (20, 9), there | prefix, prefix, segments),
    'start': Mask(causal=True, start=start),
    'step': Mask(causal=True, keys=there, window=(7, 0), start=np.int32(3)),
    'pairs': Mask(pairs=rng.random((batch, 1 + queries // 3, keys)) < 0.5, segments=segments),
    'shared pairs': Mask(causal=True, pairs=rng.random((1, queries, keys)) < 0.8),
  }


def run(function, q, k, v, dy, bias=None, mask=FULL):
  """The result and the gradients by q, k, v and, if there is one, the bias; one program."""

  @jax.jit
  def both(inputs, dy, mask):
    y, back = jax.vjp(lambda *inputs: function(*inputs[:3], *(inputs[3:] or [None]), mask), *inputs)
    return [y, *back(dy)]

  return both((q, k, v) if bias is None else (q, k, v, bias), dy, mask)


def close(got, want, dtype):
  # bfloat16 has 8 bits: of the largest result, as its errors are those of sums.
  tolerance = 2e-5 if dtype == 'float32' else 2e-2
  for name, a, b in zip(('y', 'dq', 'dk', 'dv', 'dbias'), got, want, strict=False):
    scale = max(np.abs(b).max(), 1e-2)
    error = np.abs(np.asarray(a.astype(jnp.float32)) - b).max() / scale
    assert error < tolerance, f'{name}: {error:.1e}'


def packed(q, k, v, bias=None, mask=FULL, **options):
  """`short.self_attention` of separate arrays, which must be of one length."""
  qkv = jnp.concatenate([q, k, v], axis=-1)
  return short.self_attention(qkv, bias, mask, interpret=True, **options)


def splash(q, k, v, bias=None, mask=FULL, *, num_heads, cap=0.0):
  """That of the TPU, interpreted."""
  with mock.patch.object(
    library, 'make_splash_mha_single_device',
    functools.partial(library.make_splash_mha_single_device, interpret=True),
  ):  # fmt: skip
    way = choice.IMPLEMENTATIONS['splash'].run
    return way(q, k, v, bias, mask, num_heads=num_heads, cap=cap, length=None)


WAYS = {
  'short': functools.partial(short.attention, interpret=True),
  'packed': packed,
  'chunked': functools.partial(chunked.attention, rows=64),
  'heads': heads.attention,
  'xla': plain.attention,
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize(
  ('length', 'head_dim'),
  tiers([*zip(LENGTHS, itertools.cycle(WIDTHS)), *((197, w) for w in WIDTHS)], 0, 1, 3, 4),
)
def test_lengths_and_widths(way, length, head_dim):
  dtype = 'bfloat16' if length % 2 else 'float32'
  args = operands(0, 2, length, length, 2, head_dim, dtype)
  close(run(functools.partial(WAYS[way], num_heads=2), *args), exact(*args, num_heads=2), dtype)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('bias', [0, 1, 2])
@pytest.mark.parametrize('mask', ['full', 'keys', 'causal'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_biases_and_masks(way, bias, mask, dtype):
  args = operands(1, 2, 50, 50, 4, 64, dtype, bias, mask)
  close(run(functools.partial(WAYS[way], num_heads=4), *args), exact(*args, num_heads=4), dtype)


DESCRIBED = {
  **{way: function for way, function in WAYS.items() if way != 'chunked'},
  'chunked': functools.partial(chunked.attention, rows=16),
  'splash': splash,
}
PAIRS = ('pairs', 'shared pairs')
REFUSED = {
  'short': {'start', 'step', *PAIRS}, 'packed': {'start', 'step', *PAIRS},
  'splash': {'prefix', 'all', 'start', 'step', *PAIRS},
}  # fmt: skip
KINDS = (
  'window', 'causal window', 'prefix', 'segments', 'documents', 'all', 'start', 'step', *PAIRS
)  # fmt: skip


@pytest.mark.parametrize(
  ('way', 'kind'),
  [(way, kind) for way in DESCRIBED for kind in KINDS if kind not in REFUSED.get(way, ())],
)
def test_masks_that_are_described(way, kind):
  """Against float64, and nothing leaks: neither values nor gradients, not even a rounding."""
  q, k, v, dy, _, mask = operands(7, 2, 50, 50, 2, 64, 'float32', 0, kind)
  function = functools.partial(DESCRIBED[way], num_heads=2)
  keep = seen(mask, 2, 50, 50)
  blind = ~keep.any(-1)  # of these queries the results are finite, and of splash anything
  quiet = dy * (~blind)[..., None]
  got = run(function, q, k, v, quiet, None, mask)
  want = exact(q, k, v, quiet, None, mask, num_heads=2)
  close(
    [jnp.where(blind[..., None], w, g) for g, w in zip(got[:2], want[:2], strict=True)] + got[2:],
    want,
    'float32',
  )
  assert jnp.isfinite(got[0]).all()
  for j in (0, 17, 49):
    other = run(function, q, k.at[:, j].add(1.5), v.at[:, j].multiply(-3), quiet, None, mask)
    same = np.asarray((other[0] == got[0]).all(-1))
    assert same[~keep[..., j] & ~blind].all()
    assert not same[keep[..., j]].any()
    only = jnp.zeros_like(dy).at[:, j].set(dy[:, j]) * (~blind)[..., None]
    _, _, dk, dv = run(function, q, k, v, only, None, mask)
    for b in range(2):
      assert not dk[b, ~keep[b, j]].any()
      assert not dv[b, ~keep[b, j]].any()


@pytest.mark.parametrize('way', DESCRIBED)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_caps(way, dtype):
  mask = 'causal' if way == 'splash' else 'keys'
  q, *rest = operands(8, 2, 50, 50, 2, 64, dtype, 0 if way == 'splash' else 1, mask)
  args, options = (6 * q, *rest), dict(num_heads=2, cap=5.0)
  close(run(functools.partial(DESCRIBED[way], **options), *args), exact(*args, **options), dtype)


@pytest.mark.parametrize('way', ['short', 'splash', 'heads', 'xla', 'chunked'])
def test_fewer_heads_of_keys(way):
  """Of grouped queries, in the way `attend` runs them."""
  q, k, v, dy, bias, mask = operands(9, 2, 50, 50, 6, 64, 'float32', 0, 'documents', groups=2)
  function = choice.IMPLEMENTATIONS[way].run
  if way == 'short':
    function = choice._repeated(lambda *args, length, **rest: WAYS['short'](*args, **rest))
  function = functools.partial(function, num_heads=6, cap=0.0, length=None)
  if way == 'splash':
    function = functools.partial(splash, num_heads=6)
  quiet = dy * seen(mask, 2, 50, 50).any(-1)[..., None]
  got = run(function, q, k, v, quiet, bias, mask)
  want = exact(q, k, v, quiet, bias, mask, num_heads=6)
  close(got[1:], want[1:], 'float32')


@pytest.mark.parametrize('way', [way for way in WAYS if way != 'packed'])
def test_more_keys_than_queries(way):
  args = operands(2, 1, 37, 131, 3, 64, 'float32', 1)
  close(run(functools.partial(WAYS[way], num_heads=3), *args), exact(*args, num_heads=3), 'float32')


def test_padding_is_neither_read_nor_written():
  q, k, v, dy, bias, mask = operands(3, 2, 50, 50, 4, 64, 'float32', 1, 'keys')
  want = exact(q, k, v, dy, bias, mask, num_heads=4)
  fill = lambda x: jnp.pad(x, ((0, 0), (0, 6), (0, 0)), constant_values=jnp.nan)  # noqa: E731
  function = functools.partial(
    short.attention, num_heads=4, queries=50, keys=50, interpret=True
  )  # fmt: skip
  got = run(function, *map(fill, (q, k, v, dy)), bias, mask)
  close([x[:, :50] for x in got[:4]] + got[4:], want, 'float32')
  assert all((x[:, 50:] == 0).all() for x in got[:4])
  way = functools.partial(packed, num_heads=4, length=50)
  got = run(way, *map(fill, (q, k, v, dy)), bias, mask)
  close([x[:, :50] for x in got[:4]] + got[4:], want, 'float32')
  assert all((x[:, 50:] == 0).all() for x in got[:4])


@pytest.mark.parametrize(
  ('tokens', 'heads', 'head_dim', 'bias', 'want'),
  [(196, 6, 64, False, True), (256, 16, 88, False, True), (197, 3, 64, False, False),
   (577, 12, 64, False, True), (577, 12, 64, True, False), (197, 12, 64, True, True),
   (1025, 48, 128, False, False), (2049, 4, 64, False, False)],
)  # fmt: skip
def test_what_is_packed(tokens, heads, head_dim, bias, want):
  """Whole registers, and all in VMEM."""
  assert short.packs(tokens, heads, head_dim, bias=bias) == want


def test_large_scores_do_not_overflow():
  q, k, v, dy, *_ = operands(4, 1, 50, 50, 2, 64, 'float32')
  for way in WAYS.values():
    got = run(functools.partial(way, num_heads=2), 100 * q, 100 * k, v, dy)
    assert all(bool(jnp.isfinite(x).all()) for x in got)


@pytest.mark.parametrize(
  ('mesh', 'changes'),
  tiers(
    [('1x1x1', dict(qk_norm=True)), ('4x1x2', dict(qk_norm=True)), ('2x2x2', dict(qk_norm=True)),
     ('1x1x1', {}), ('2x4x1', {}), ('2x2x2', {}), ('2x4x1', dict(no_bias='key'))], 2, 4, 6,
  ),
)  # fmt: skip
@pytest.mark.parametrize('in_place', [False, True])
def test_kernels_under_every_mesh(mesh, changes, in_place, monkeypatch):
  """A model with kernels and padding on TPU is the model without them elsewhere.

  Without norms between products and attention there is one product, if heads are not sharded.
  """
  devices = jax.devices()[: 1 if mesh == '1x1x1' else 8]
  config = ViTConfig(
    variant='mu/16', width=128, depth=2, num_heads=4, mlp_dim=64, image_size=(80, 48), pool='mean',
    num_classes=3, **{'relative_bias': 'layer', 'no_bias': '', 'remat': 'names', **changes},
  )  # fmt: skip
  images = np.random.default_rng(0).normal(size=(8, 80, 48, 3)).astype(np.float32)

  def results():
    with jax.set_mesh(sharding.make_mesh(mesh, devices)):
      model = config.resolve().create(nnx.Rngs(jax.random.key(0)))
      layout = sharding.BatchLayout(8).place({'image': images})
      loss = lambda model, x: jnp.square(model(x)).mean()  # noqa: E731
      return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(model, layout['image']))

  want = results()
  way = choice.IMPLEMENTATIONS['short']
  interpreted = way._replace(
    run=lambda q, k, v, bias, mask, num_heads, cap, length: short.attention(
      q, k, v, bias, mask, num_heads=num_heads, cap=cap, queries=length, keys=length,
      interpret=True,
    )
  )  # fmt: skip
  calls, joined, whole = [], [], short.self_attention
  monkeypatch.setattr(
    short, 'self_attention', lambda *args, **options: (
      joined.append(args) or whole(*args, interpret=True, **options)
    ),
  )  # fmt: skip
  for name in ('self_attention_in', 'self_attention_gradient'):
    function = functools.partial(getattr(short, name), interpret=True)
    monkeypatch.setattr(short, name, function)
  monkeypatch.setattr(remat, 'stays', lambda policy: in_place)
  monkeypatch.setitem(choice.IMPLEMENTATIONS, 'short', interpreted)
  monkeypatch.setattr(choice, 'choose', lambda problem: calls.append(problem) or 'short')
  monkeypatch.setattr('vit_jax.nn.encoder.padding', lambda tokens, head_dim: -tokens % 8)
  got = results()
  assert calls
  assert calls[0].queries == 15
  assert bool(joined) == ('qk_norm' not in changes and not mesh.endswith('2'))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def problem(**changes):
  base = choice.Problem('gpu', 'NVIDIA H200', 'bfloat16', 197, 197, 64)
  return base._replace(**changes)


@pytest.mark.parametrize(
  ('changes', 'want'),
  [
    (dict(), 'cudnn'),
    (dict(head_dim=72), 'cudnn'),
    (dict(head_dim=65), 'xla'),
    (dict(dtype='float32'), 'xla'),
    (dict(queries=1), 'xla'),
    (dict(bias='shared'), 'cudnn'),
    (dict(bias='own'), 'xla'),  # no gradient
    (dict(bias='shared', masks=('keys',)), 'xla'),  # likewise
    (dict(bias='shared', masks=('causal', 'window')), 'cudnn'),
    (dict(masks=('causal', 'prefix', 'segments')), 'cudnn'),
    (dict(masks=('causal', 'start')), 'xla'),
    (dict(cap=True), 'xla'),
    (dict(scores=2**31, cap=True), 'chunked'),
    (dict(device='NVIDIA A100-SXM4-80GB', head_dim=160), 'xla'),
    (dict(device='Tesla V100'), 'xla'),
    (dict(platform='tpu', device='TPU v5 lite'), 'short'),
    (dict(platform='tpu', device='TPU v5 lite', queries=1), 'xla'),
    (dict(platform='tpu', device='TPU v5 lite', masks=('causal', 'prefix', 'keys')), 'short'),
    (dict(platform='tpu', device='TPU v5 lite', masks=('causal', 'start')), 'xla'),
    (dict(platform='tpu', device='TPU v5 lite', queries=4096, keys=4096), 'splash'),
    (
      dict(
        platform='tpu', device='TPU v5 lite', queries=4096, keys=4096, masks=('causal', 'prefix')
      ),
      'xla',
    ),
    (dict(platform='cpu', device='cpu', dtype='float32'), 'heads'),
    (dict(platform='cpu', device='cpu', dtype='float32', scores=2**31), 'chunked'),
  ],
)
def test_the_first_right_implementation(changes, want, monkeypatch):
  monkeypatch.setattr(choice, '_table', list)
  assert choice.choose(problem(**changes)) == want


def test_a_measured_table_decides(monkeypatch):
  row = dict(
    device='NVIDIA H200', dtype='bfloat16', bias='', masks=[], cap=False, tokens=256, head_dim=64
  )
  rows = [{**row, 'ms': {'cudnn': 3.0, 'xla': 2.0, 'short': 1.0}}]
  monkeypatch.setattr(choice, '_table', lambda: rows)
  assert choice.choose(problem()) == 'xla'  # short is faster, but not for this device
  assert (
    choice.choose(problem(queries=4096, keys=4096)) == 'cudnn'
  )  # too far from what was measured
  assert choice.choose(problem(masks=('keys',), queries=256, keys=256)) == 'cudnn'


def test_the_slow_path_is_said_once(caplog, monkeypatch):
  monkeypatch.setattr(choice, '_table', list)
  choice._note.cache_clear()
  for _ in range(3):
    choice.choose(problem(dtype='float32'))
  assert len(caplog.records) == 1
  assert 'is not fused' in caplog.text
  choice.choose(problem())
  assert len(caplog.records) == 1


def test_the_table_in_the_package():
  for row in json.loads(choice.TABLE.read_text())['rows']:
    assert row['ms'].keys() <= choice.IMPLEMENTATIONS.keys()


@pytest.mark.parametrize('mask', ['all', 'pairs'])
def test_attend_is_the_reference(mask):
  q, k, v, dy, bias, mask = operands(5, 2, 17, 17, 4, 8, 'float32', 2, mask)
  want = exact(q, k, v, dy, bias, mask, num_heads=4)
  close(run(functools.partial(attend, num_heads=4), q, k, v, dy, bias, mask), want, 'float32')
  more = [jnp.pad(y, ((0, 0), (0, 3), (0, 0))) for y in (q, k, v, dy)]
  padded = run(functools.partial(attend, num_heads=4, length=17), *more, bias, mask)
  close([*(y[:, :17] for y in padded[:4]), *padded[4:]], want, 'float32')
  assert attention_lib.padding(197, 64) == 0  # no TPU here
