"""The model: exact sizes, equivalent forms, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from vit_jax import tree
from vit_jax.attention import Attention
from vit_jax.encoder import NAMES
from vit_jax.errors import RunError
from vit_jax.explore.attention import rollout
from vit_jax.models.variants import SIZES
from vit_jax.models.vit import POOL, ViTConfig
from vit_jax.positions import grid_coords, sincos2d

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


@pytest.mark.parametrize(
  ('variant', 'config', 'count'),
  [
    ('Ti/16', {}, 5_717_416),
    ('S/16', {}, 22_050_664),
    ('S/32', {}, 22_878_952),
    ('B/8', {}, 86_576_872),
    ('B/16', {}, 86_567_656),
    ('B/32', {}, 88_224_232),
    ('L/16', {}, 304_326_632),
    ('L/32', {}, 306_535_400),
    ('H/14', {}, 632_045_800),
    ('S/16', dict(pool='mean', posemb='sincos2d'), 21_974_632),
    ('M/16', dict(pool='mean'), 38_836_712),
    ('B/16', dict(pool='map'), 92_884_224 + 769_000),
    ('So400m/14', dict(pool='map'), 428_833_704),
    ('g/14', dict(pool='map'), 1_037_857_384),
  ],
)
def test_published_parameter_counts(variant, config, count):
  assert parameters(variant, num_classes=1000, **config) == count


@pytest.mark.parametrize('size', list(SIZES))
def test_every_size_has_heads_that_divide_it(size):
  config = ViTConfig(f'{size}/14', num_classes=10).resolve()
  assert config.width % config.num_heads == 0
  assert parameters(f'{size}/14', num_classes=10, depth=1) > 0


def reference(model, x):
  """The forward pass of a float32 model in plain NumPy, float64."""
  config = model.config
  p = {name: np.asarray(leaf, np.float64) for name, leaf in tree.flatten(model).items()}

  def norm(x, at):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[f'{at}/scale'] + p[f'{at}/bias']

  def attention(x, y, w):
    q, k, v = (
      np.einsum('btd,dhk->bhtk', z, w(f'{n}/kernel')) + w(f'{n}/bias')[:, None]
      for n, z in (('query', x), ('key', y), ('value', y))
    )
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return np.einsum('bhtk,hkd->btd', out, w('out/kernel')) + w('out/bias')

  def mlp(x, w):
    y = x @ w('up/kernel') + w('up/bias')
    y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y @ w('down/kernel') + w('down/bias')

  s = config.patch_size
  patches = [
    np.einsum('bpqc,pqcd->bd', x[:, i : i + s, j : j + s], p['embed/proj/kernel'])
    for i, j in itertools.product(range(0, x.shape[1], s), range(0, x.shape[2], s))
  ]
  x = np.stack(patches, axis=1) + p['embed/proj/bias']
  if config.posemb == 'sincos2d':
    x = x + sincos2d(grid_coords(*config.grid), config.width)
  if config.pool == 'token':
    x = np.concatenate([np.tile(p['token'], (len(x), 1, 1)), x], axis=1)
  if config.posemb == 'learned':
    x = x + p['posemb']
  for layer in range(config.depth):
    w = lambda name, layer=layer: p[f'encoder/blocks/{name}'][layer]  # noqa: E731
    at = {f'l{n}/{k}': w(f'norm{n}/{k}') for n in '12' for k in ('scale', 'bias')}
    p |= at
    y = norm(x, 'l1')
    x = x + attention(y, y, lambda name, w=w: w(f'attn/{name}'))
    x = x + mlp(norm(x, 'l2'), lambda name, w=w: w(f'mlp/{name}'))
  x = norm(x, 'encoder/norm')
  if config.pool == 'map':
    probe = np.tile(p['map_head/probe'], (len(x), 1, 1))
    y = attention(probe, x, lambda name: p[f'map_head/attn/{name}'])
    x = y + mlp(norm(y, 'map_head/norm'), lambda name: p[f'map_head/mlp/{name}'])
  x = x.mean(1) if config.pool == 'mean' else x[:, 0]
  return x @ p['head/kernel'] + p['head/bias']


@pytest.mark.parametrize(
  ('posemb', 'pool'),
  list(itertools.product(('learned', 'sincos2d', 'none'), ('token', 'mean', 'map'))),
)
def test_forward_is_the_paper_in_float64(posemb, pool):
  model = tiny(posemb=posemb, pool=pool)
  want = reference(model, np.asarray(images(), np.float64))
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, x: model(x))(model, images())
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def loss_and_grad(model):
  @jax.jit
  def run(model, x):
    return jax.value_and_grad(lambda model: jnp.square(model(x)).mean())(model)

  return run(model, images())


@pytest.mark.parametrize(
  'changes', [dict(scan=False), *(dict(remat=r) for r in ('full', 'dots', 'names', 'query,mlp')),
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
  sizes = [saved_bytes(policy) for policy in ('full', 'names', 'dots', 'none')]
  assert sizes == sorted(sizes)
  assert sizes[-1] > 2 * sizes[0]


def test_every_remat_name_is_marked():
  jaxpr = str(jax.make_jaxpr(lambda m, x: m(x))(tiny(), images()))
  for name in NAMES:
    assert f'name={name}' in jaxpr


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
  value = attention.value(y, 'btd,dhk->bthk', (None,) * 4)
  mixed = jnp.einsum('bhqk,bkhd->bqhd', attention.weights(x, y), value)
  want = attention.out(mixed, 'bthk,hkd->btd', (None,) * 3)
  np.testing.assert_allclose(attention(x, y), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('pool', POOL)
def test_rollout_is_a_distribution_over_patches(pool):
  maps = jax.jit(rollout)(tiny(pool=pool), images())
  assert maps.shape == (2, 2, 3)
  assert (maps >= 0).all()
  total = np.asarray(maps.sum((1, 2)))
  if pool == 'token':
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
    (dict(posemb='sincos'), 'did you mean sincos2d'),
    (dict(dtype='float16'), 'did you mean bfloat16'),
    (dict(remat='ful'), 'did you mean full'),
    (dict(posemb='sincos2d', width=6, num_heads=1), 'divisible by 4'),
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
