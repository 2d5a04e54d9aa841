"""The model: exact sizes, equivalent forms, refusals."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from vit_jax.architecture.vit import NAMES, OPTIONS, POOL
from vit_jax.core.errors import RunError
from vit_jax.explore.attention import rollout
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import layers, tree
from vit_jax.nn.attention import Attention, Context, Memory
from vit_jax.nn.positions import grid_coords, sincos

TINY = dict(image_size=(8, 12), num_classes=5, width=16, depth=3, mlp_dim=32, num_heads=4)


def tiny(**changes):
  """A model in which nothing is zero or one, so that every parameter matters."""
  model = vit_jax.create('mu/4', **{**TINY, **changes})
  rng = np.random.default_rng(7)
  return jax.tree.map(lambda w: jnp.asarray(w + 0.1 * rng.normal(size=w.shape), w.dtype), model)


def images(batch=2):
  return jnp.asarray(np.random.default_rng(1).normal(size=(batch, 8, 12, 3)), jnp.float32)


def parameters(variant, **config):
  config = ViTConfig(variant, **config)
  model = jax.eval_shape(lambda key: config.create(nnx.Rngs(key)), jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(model))


def erf(x):
  return np.vectorize(math.erf)(x)


ACTIVATIONS = {
  'gelu': lambda x: x / 2 * (1 + erf(x / np.sqrt(2))),
  'gelu_tanh': lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
  'quick_gelu': lambda x: x / (1 + np.exp(-1.702 * x)),
  'relu': lambda x: np.maximum(x, 0),
  'swiglu': lambda x: x / (1 + np.exp(-x)),
}


def reference(model, x):
  """The forward pass of a float32 model in plain NumPy, float64, straight from the papers."""
  c = model.config
  p = {name: np.asarray(leaf, np.float64) for name, leaf in tree.flatten(model).items()}

  def part(at, layer=None):
    """The parameters under a name, by the rest of their names."""
    found = {n.removeprefix(f'{at}/'): v for n, v in p.items() if n.startswith(f'{at}/')}
    return found if layer is None else {n: v[layer] for n, v in found.items()}

  def under(w, at):
    return {n.removeprefix(f'{at}/'): v for n, v in w.items() if n.startswith(f'{at}/')}

  def norm(x, w):
    if c.norm == 'layernorm':
      x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps) * w['scale'] + w.get('bias', 0)

  def dense(x, w):
    inputs = 2 if w['kernel'].ndim == 3 and w['kernel'].shape[:2] == x.shape[-2:] else 1
    return np.tensordot(x, w['kernel'], inputs) + w.get('bias', 0)

  places = [*itertools.product(*map(range, c.grid))]

  def angles(prefix, head):
    axes = len(c.grid)
    bands = c.rope_base ** -(np.arange(head // (2 * axes)) * 2 * axes / head)
    found = [np.zeros(head // 2)] * prefix
    for place in places:
      own = place
      if c.rope == 'unit':
        own = [2 * np.pi * (2 * (a + 0.5) / n - 1) for a, n in zip(place, c.grid, strict=True)]
      turned = np.concatenate([at * bands for at in own])
      found.append(np.pad(turned, (0, head // 2 - len(turned))))
    return np.array(found)

  def rotated(x):
    a, half = angles(c.prefix, x.shape[-1]), x.shape[-1] // 2
    a = np.exp(1j * a)[None, :, None, :]
    if c.rope_pairs == 'neighbours':
      pairs = (x[..., ::2] + 1j * x[..., 1::2]) * a
      return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)
    pairs = (x[..., :half] + 1j * x[..., half:]) * a
    return np.concatenate([pairs.real, pairs.imag], -1)

  def relative(table):
    every = [None] * c.prefix + places
    bias = np.zeros((c.num_heads, len(every), len(every)))
    for (i, a), (j, b) in itertools.product(enumerate(every), enumerate(every)):
      row = {(True, True): -1, (True, False): -3, (False, True): -2}.get((a is None, b is None))
      if row is None:
        row = 0
        for side, at, to in zip(c.grid, a, b, strict=True):
          row = row * (2 * side - 1) + at - to + side - 1
      bias[:, i, j] = table[row]
    return bias

  def attention(x, y, w, rope=True):
    q, k, v = (dense(z, under(w, n)) for n, z in (('query', x), ('key', y), ('value', y)))
    if 'query_norm/scale' in w:
      q, k = norm(q, under(w, 'query_norm')), norm(k, under(w, 'key_norm'))
    if c.rope != 'none' and rope:
      q, k = rotated(q), rotated(k)
    k, v = (np.repeat(z, q.shape[2] // z.shape[2], axis=2) for z in (k, v))
    scores = np.einsum('bqhd,bkhd->bhqk', q, k) / np.sqrt(q.shape[-1])
    if c.softcap and rope:
      scores = c.softcap * np.tanh(scores / c.softcap)
    if 'relative/table' in w:
      scores = scores + relative(w['relative/table'])
    if c.relative_bias == 'shared' and rope:
      scores = scores + relative(p['encoder/relative/table'])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return dense(np.einsum('bhqk,bkhd->bqhd', weights, v), under(w, 'out'))

  def mlp(x, w):
    y = dense(x, under(w, 'up'))
    activation = ACTIVATIONS[c.mlp]
    y = activation(dense(x, under(w, 'gate'))) * y if c.mlp == 'swiglu' else activation(y)
    y = norm(y, under(w, 'norm')) if 'norm/scale' in w else y
    return dense(y, under(w, 'down'))

  size, kernel = c.patch, p['embed/proj/kernel']
  cuts = [
    tuple(slice(a * s, a * s + s) for a, s in zip(place, size, strict=True)) for place in places
  ]
  patches = [np.tensordot(x[(slice(None), *cut)], kernel, len(size) + 1) for cut in cuts]
  x = np.stack(patches, axis=1) + p.get('embed/proj/bias', 0)
  if c.posemb == 'sincos':
    x = x + sincos(grid_coords(*c.grid), c.width)
  if c.posemb == 'factorised':
    tables = [p[f'posemb_{n}'][0] for n in ('frames', 'rows', 'columns')[-len(c.grid) :]]
    x = x + np.array([
      sum(table[a] for table, a in zip(tables, place, strict=True)) for place in places
    ])  # fmt: skip
  if c.posemb == 'space_time':
    frame = p['posemb'][0][c.posemb_prefix :]
    x = x + np.array([frame[h * c.grid[2] + w] + p['posemb_frames'][0][t] for t, h, w in places])
    p['posemb'] = np.pad(p['posemb'][:, : c.posemb_prefix], ((0, 0), (0, len(places)), (0, 0)))
  for name in ('queries', 'registers', 'distill_token', 'token'):
    if name in p:
      x = np.concatenate([np.tile(p[name], (len(x), 1, 1)), x], axis=1)
  if c.posemb in ('learned', 'space_time'):
    bare = c.prefix - c.posemb_prefix
    rows = p['posemb'][0]
    rows = np.concatenate(
      [rows[: c.posemb_prefix], np.zeros((bare, c.width)), rows[c.posemb_prefix :]]
    )
    x = x + rows
  x = norm(x, part('embed_norm')) if c.embed_norm else x
  for layer in range(c.depth):
    w = part('encoder/blocks', layer)
    one, two = w.get('scale1', 1), w.get('scale2', 1)
    if c.parallel:
      y = norm(x, under(w, 'norm1'))
      x = x + one * attention(y, y, under(w, 'attn')) + two * mlp(y, under(w, 'mlp'))
    elif c.norm_place == 'post':
      x = norm(x + one * attention(x, x, under(w, 'attn')), under(w, 'norm1'))
      x = norm(x + two * mlp(x, under(w, 'mlp')), under(w, 'norm2'))
    else:
      y = norm(x, under(w, 'norm1'))
      x = x + one * attention(y, y, under(w, 'attn'))
      x = x + two * mlp(norm(x, under(w, 'norm2')), under(w, 'mlp'))
  if 'encoder/norm/scale' in p:
    x = norm(x, part('encoder/norm'))
  tokens, patches = x, x[:, c.prefix :]
  if c.pool == 'map':
    w, probe = part('map_head'), np.tile(p['map_head/probe'], (len(x), 1, 1))
    y = attention(probe, patches, under(w, 'attn'), rope=False)
    x = (y + mlp(norm(y, under(w, 'norm')), under(w, 'mlp')))[:, 0]
  else:
    mean = patches.mean(1)
    x = {'mean': mean, 'token': x[:, 0], 'token_mean': np.concatenate([x[:, 0], mean], -1)}[c.pool]
  final = lambda x: norm(x, part('pool_norm')) if c.pool_norm else x  # noqa: E731
  x = final(x)
  hidden = lambda x: np.tanh(dense(x, part('pre_logits'))) if c.representation_size else x  # noqa: E731
  x = dense(hidden(x), part('head'))
  if not c.distilled:
    return x
  return (x + dense(hidden(final(tokens[:, 1])), part('distill_head'))) / 2


PARTS = [
  *(dict(posemb=a, pool=b) for a, b in
    itertools.product(('learned', 'sincos', 'none'), ('token', 'mean', 'map'))),
  dict(distilled=True, registers=2, mlp='gelu'),
  dict(distilled=True, pool_norm=True, posemb_tokens='all', registers=1, mlp='quick_gelu',
       representation_size=6),
  dict(pool='token_mean', representation_size=7, posemb='factorised', posemb_tokens='patches'),
  dict(mlp='swiglu', mlp_norm=True, norm='rmsnorm', qk_norm=True, layerscale=0.3, registers=1),
  dict(parallel=True, qk_norm=True, no_bias='query,key,value,norm', pool='map'),
  dict(norm_place='post', embed_norm=True, eps=1e-3, no_bias='out,mlp,embed,head'),
  dict(norm_place='post', pool_norm=True, pool='mean', layerscale=0.5, rope='grid', rope_base=20.0),
  dict(rope='unit', posemb='none', registers=3, pool='mean', qk_norm=True),
  dict(relative_bias='layer', pool='mean', class_token=True, pool_norm=True, no_bias='key'),
  dict(relative_bias='shared', posemb='none', pool='map', rope='unit', parallel=True),
  dict(kv_heads=2, head_dim=8, softcap=0.5, qk_norm=True, rope='grid', rope_pairs='neighbours'),
  dict(kv_heads=1, queries=3, posemb_tokens='all', registers=1, pool='map', mlp='relu'),
  dict(patch_size=(2, 6), posemb='factorised', rope='unit', softcap=2.0),
  dict(image_size=(4, 8, 12), patch_size=(2, 4, 4), posemb='space_time', queries=2),
  dict(image_size=(4, 8, 12), patch_size=(2, 4, 4), posemb='factorised', relative_bias='layer'),
  dict(image_size=(4, 8, 12), patch_size=4, rope='grid', width=24, num_heads=2, pool='mean'),
  dict(image_size=(4, 8, 12), patch_size=(1, 4, 4), posemb='sincos', width=24, rope='unit',
       num_heads=2, kv_heads=1, pool='map'),
  dict(image_size=(20,), patch_size=4, relative_bias='shared', registers=1),
  dict(image_size=(20,), patch_size=4, rope='grid', posemb='sincos', pool='mean'),
]  # fmt: skip


@pytest.mark.parametrize('config', PARTS, ids=lambda c: ','.join(f'{k}={v}' for k, v in c.items()))
def test_forward_is_the_papers_in_float64(config):
  model = tiny(**config)
  x = np.random.default_rng(1).normal(size=(2, *model.config.image_size, 3)).astype(np.float32)
  want = reference(model, np.asarray(x, np.float64))
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, x: model(x))(model, x)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def loss_and_grad(model):
  @jax.jit
  def run(model, x):
    return jax.value_and_grad(lambda model: jnp.square(model(x)).mean())(model)

  return run(model, images())


@pytest.mark.parametrize(
  'changes',
  [dict(scan=False), *(dict(remat=r) for r in ('full', 'dots', 'names', 'qkv,mlp')),
   dict(scan=False, remat='full')]
)  # fmt: skip
def test_scan_and_remat_change_nothing(changes):
  loss, grad = loss_and_grad(tiny())
  other_loss, other_grad = loss_and_grad(tiny(**changes))
  np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
  want, got = tree.flatten(grad), tree.flatten(other_grad)
  assert want.keys() == got.keys()
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def saved_bytes(remat):
  """Bytes that the backward pass of a deep model gets from the forward pass."""
  model = tiny(remat=remat, depth=6)
  run = jax.jit(jax.grad(lambda model, x: jnp.square(model(x)).mean()))
  return run.lower(model, images(64)).compile().memory_analysis().temp_size_in_bytes


def test_remat_saves_memory_in_order():
  sizes = [saved_bytes(policy) for policy in ('full', 'dots', 'names', 'none')]
  assert sizes == sorted(sizes)
  assert sizes[-1] > 2 * sizes[0]


def test_every_remat_name_is_marked():
  jaxpr = str(jax.make_jaxpr(lambda m, x: m(x))(tiny(mlp='swiglu'), images()))
  for name in NAMES:
    assert f'name={name}' in jaxpr


def test_every_activation_has_a_function():
  assert OPTIONS['mlp'] == tuple(layers.ACTIVATIONS)


def test_bfloat16_is_near_float32():
  exact, model = tiny(), tiny(dtype='bfloat16')
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))
  run = jax.jit(lambda model, x: model(x))
  want, got = run(exact, images(64)), run(model, images(64))
  assert got.dtype == jnp.float32
  # bfloat16 keeps 8 bits, and the logits are a sum of what six branches add to the embedding.
  rms = lambda x: jnp.sqrt(jnp.square(x).mean())  # noqa: E731
  assert rms(got - want) < 6 * 2**-8 * rms(want)
  dtypes = {str(e.outvars[0].aval.dtype) for e in jax.make_jaxpr(model)(images()).eqns}
  assert 'bfloat16' in dtypes


def test_attention_weights_are_those_of_attention():
  attention = Attention(16, 4, nnx.Rngs(0))
  x, y = jax.random.normal(jax.random.key(0), (2, 2, 5, 16))
  context = Context(memory=Memory(y))
  value = attention.value(y, 'btd,dhk->bthk', (None,) * 4)
  mixed = jnp.einsum('bhqk,bkhd->bqhd', attention.weights(x, context), value)
  want = attention.out(mixed, 'bthk,hkd->btd', (None,) * 3)
  np.testing.assert_allclose(attention(x, context), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('pool', POOL)
def test_rollout_is_a_distribution_over_patches(pool):
  maps = jax.jit(rollout)(tiny(pool=pool), images())
  assert maps.shape == (2, 2, 3)
  assert (maps >= 0).all()
  total = np.asarray(maps.sum((1, 2)))
  if pool in ('token', 'token_mean'):
    assert (total < 1).all()
  else:
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (dict(variant='X/16'), "unknown model variant 'X/16'"),
    (dict(variant='dinov:S/16'), 'did you mean dinov3, dinov2'),
    (dict(variant='R60+B/16'), 'did you mean R50'),
    (dict(variant='R26+B/16'), 'R26 comes with patches of 32, not 16'),
    (dict(variant='', depth=2), 'needs width'),
    (dict(no_bias='kye'), 'did you mean key'),
    (dict(distilled=True, pool='mean'), 'needs pool=token'),
    (dict(variant='Ti'), 'lacks a patch size'),
    (dict(variant='B/17'), r'patch_size=17 does not divide image_size=\(224, 224\)'),
    (dict(num_heads=5), 'num_heads=5 does not divide width=384'),
    (dict(pool='man'), 'did you mean mean'),
    (dict(posemb='sincos2d'), 'did you mean sincos'),
    (dict(dtype='float16'), 'did you mean bfloat16'),
    (dict(remat='ful'), 'did you mean full'),
    (dict(posemb='sincos', width=6, num_heads=1), 'divisible by 4'),
    (dict(num_classes=-1), 'must not be negative'),
  ],
)
def test_bad_configurations(config, message):
  with pytest.raises(RunError, match=message):
    parameters(**{'variant': 'S/16', 'num_classes': 10, **config})


def test_unknown_argument_is_answered_with_the_nearest():
  with pytest.raises(RunError, match='did you mean width'):
    vit_jax.create('S/16', widht=3)


def test_wrong_image_shape():
  with pytest.raises(ValueError, match=r'multiples of 4, found \(2, 8, 10, 3\)'):
    tiny()(jnp.zeros((2, 8, 10, 3)))
