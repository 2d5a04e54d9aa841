"""Attention along axes, in windows and by shares of heads, against attention with a mask."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.conftest import tiers
from vit_jax.architecture.pattern import Part, parse
from vit_jax.core.errors import RunError
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import sharding
from vit_jax.nn.attention import Attention, Context
from vit_jax.nn.encoder import layer_of
from vit_jax.nn.groups import Groups
from vit_jax.nn.masks import Mask

CASES = [
  ('hw', (3, 4, 5)), ('t', (3, 4, 5)), ('tw', (3, 4, 5)), ('h', (4, 5)), ('w4', (10,)),
  ('h2w2', (4, 6)), ('h3w2', (5, 5)), ('t2h2w3', (3, 4, 5)), ('h2w2~1', (6, 5)), ('w3~2', (11,)),
]  # fmt: skip


def together(part, grid):
  """Whether a patch sees another, place by place: bool (patches, patches)."""
  places = list(itertools.product(*map(range, grid)))
  sizes = part.sizes(grid)

  def sees(a, b):
    for i, j, size, window in zip(a, b, sizes, part.windows, strict=True):
      near = part.near if window else 0
      if abs(i // size - j // size) > near:
        return False
    return True

  return np.array([[sees(a, b) for b in places] for a in places])


def module(width=32, heads=4):
  attn = Attention(width, heads, nnx.Rngs(0))
  for name in ('query', 'key', 'value', 'out'):
    dense = getattr(attn, name)
    dense.bias[...] = jax.random.normal(jax.random.key(1), dense.bias.shape)
  return attn


@pytest.mark.parametrize(('pattern', 'grid'), CASES)
def test_attention_along_axes(pattern, grid):
  """Values and gradients; and what is hidden stays hidden in groups."""
  (((part,),),) = parse(pattern, len(grid), 4, 1)
  patches = int(np.prod(grid))
  x = jax.random.normal(jax.random.key(0), (2, patches, 32))
  there = np.random.default_rng(0).random((2, patches)) < 0.8
  there[:, 0] = True
  attn, keep = module(), together(part, grid)
  for keys in (None, jnp.asarray(there)):
    context = Context(mask=Mask(keys=keys), groups=(Groups(part, grid, 0),))
    seen = jnp.broadcast_to(keep, (2, *keep.shape))
    seen = seen if keys is None else seen & keys[:, None, :]
    some = seen.any(-1)[..., None]  # what sees nothing gets something finite

    def ours(x, context=context, some=some):
      return jnp.where(some, attn(x, context), 0)

    def theirs(x, seen=seen, some=some):
      bias = jnp.repeat(jnp.where(seen, 0.0, -1e30)[:, None], 4, axis=1)
      return jnp.where(some, attn(x, Context(bias=bias)), 0)

    (got, dgot), (want, dwant) = (
      jax.jit(jax.value_and_grad(lambda x, f=f: ((y := f(x)) ** 2).sum() + (y[0, 0, 0] * 9)))(x)
      for f in (ours, theirs)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(dgot, dwant, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(jax.jit(ours)(x), jax.jit(theirs)(x), rtol=1e-5, atol=1e-5)


def test_tokens_before_the_patches():
  """With a star they take part in every group and get the mean; without, nothing at all."""
  grid, attn = (2, 3), module()
  x = jax.random.normal(jax.random.key(0), (2, 1 + 6, 32))
  (((part,),),) = parse('w*', 2, 4, 1)
  got = attn(x, Context(groups=(Groups(part, grid, 1),)))
  rows = [attn(jnp.concatenate([x[:, :1], x[:, 1 + 3 * i : 4 + 3 * i]], 1)) for i in (0, 1)]
  want = jnp.concatenate([(rows[0][:, :1] + rows[1][:, :1]) / 2, rows[0][:, 1:], rows[1][:, 1:]], 1)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  (((part,),),) = parse('w', 2, 4, 1)
  got = attn(x, Context(groups=(Groups(part, grid, 1),)))
  assert not got[:, 0].any()
  rows = [attn(x[:, 1 + 3 * i : 4 + 3 * i]) for i in (0, 1)]
  np.testing.assert_allclose(got[:, 1:], jnp.concatenate(rows, 1), rtol=1e-5, atol=1e-5)


def test_windows_of_one_patch_see_those_around():
  """Which is attention to neighbours."""
  (((part,),),) = parse('w1~2', 1, 4, 1)
  attn, x = module(), jax.random.normal(jax.random.key(0), (1, 8, 32))
  run = lambda x: attn(x, Context(groups=(Groups(part, (8,), 0),)))  # noqa: E731
  seen = np.abs(jax.jacobian(lambda x: run(x)[0].sum(-1))(x)).sum((1, 3)) > 0
  near = np.abs(np.arange(8)[:, None] - np.arange(8)) <= 2
  np.testing.assert_array_equal(seen, near)
  with pytest.raises(ValueError, match='no places for such a mask'):
    attn(x, Context(mask=Mask(causal=True), groups=(Groups(part, (8,), 0),)))


@pytest.mark.parametrize('batch', [4, 8])
@pytest.mark.parametrize('spaced', [False, True])
def test_dropping_examples_takes_their_angles_with_them(batch, spaced):
  """Of groups there are as many for each example, or some for all: also if as many as examples."""
  config = ViTConfig(
    'mu/4', width=32, depth=1, mlp_dim=32, num_heads=4, image_size=(16, 16), posemb='none',
    rope='grid', attention='h', pool='mean', drop_path=0.5, drop_path_mode='subset', pool_norm=True,
  ).resolve()  # fmt: skip
  model = config.create(nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (batch, 16, 16, 3))
  spacing = 1 + jnp.arange(2.0 * batch).reshape(batch, 2) / batch if spaced else None
  tokens, context = model.tokens(x, spacing=spacing)
  block = layer_of(model.encoder.blocks, 0)
  whole = block.attn(block.norm1(tokens), model.encoder.contexts(tokens, context)[0][0])
  # What attention adds to an example that is kept is twice what it is.
  only = nnx.clone(model.encoder)
  only.blocks.mlp = jax.tree.map(jnp.zeros_like, only.blocks.mlp)
  run = jax.jit(lambda only, x, context, key: only(x, context, key=key)[0])
  added = run(only, tokens, context, jax.random.key(2)) - tokens
  kept = np.abs(added).max((1, 2)) > 0
  assert kept.sum() == batch // 2
  np.testing.assert_allclose(added[kept], 2 * whole[kept], rtol=1e-3, atol=1e-4)


def test_shares_of_heads():
  """Of 't|hw' the first half of the heads is along t, the second within frames."""
  grid, attn = (3, 2, 2), module()
  x = jax.random.normal(jax.random.key(0), (2, 12, 32))
  ((shares,),) = parse('t|hw', 3, 4, 1)
  got = attn(x, Context(groups=tuple(Groups(part, grid, 0) for part in shares)))
  want = -attn.out.bias[...]
  for i, part in enumerate(shares):
    half = nnx.clone(attn)
    kernel = jnp.zeros_like(half.out.kernel[...])
    own = slice(2 * i, 2 * i + 2)
    half.out.kernel[...] = kernel.at[own].set(attn.out.kernel[own])
    want = want + half(x, Context(groups=(Groups(part, grid, 0),)))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('hw', None), ('t+hw', "'t' must name axes out of 'hw'"), ('hh', 'each at most once'),
    ('h~1', 'no windows'), ('h0', 'window of 0'), ('h|w|hw', 'must be divisible by 3'),
    ('h+w,full', 'equally many'), ('h,w,full', 'depth=4 is not a multiple'), ('', 'neither full'),
  ],
)  # fmt: skip
def test_patterns(pattern, message):
  if message is None:
    assert parse(pattern, 2, 4, 4) == (((Part((0, 0), 0, False),),),)
    return
  with pytest.raises(RunError, match=message):
    parse(pattern, 2, 4, 4)


def test_numbers_of_pairs():
  """Divided attention costs S T (S + T)."""
  (((time,), (space,)),) = parse('t+hw', 3, 4, 4)
  grid = (8, 14, 14)
  assert sum(math.prod(part.tokens(grid, 1)) for part in (time, space)) == 8 * 196 * (8 + 196)
  assert Part().tokens(grid, 1) == (1, 8 * 196 + 1, 8 * 196 + 1)
  (((near,),),) = parse('h7w7~1*', 2, 4, 4)
  assert near.tokens((14, 14), 1) == (4, 50, 9 * 49 + 1)


@pytest.mark.parametrize('mesh', tiers(['1x1x1', '2x2x1', '2x1x2'], 0, 2))
@pytest.mark.parametrize('changes', [
  dict(attention='h2w2*,full', relative_bias='layer'), dict(attention='h+w*', rope='unit'),
  dict(attention='w2~1*', dtype='bfloat16'), dict(attention='h*,w*', relative_bias='shared'),
], ids=str)  # fmt: skip
def test_models(changes, mesh):
  """Scanned, unrolled and on meshes the same; a mask of all layers says what windows hide."""
  images = np.random.default_rng(0).normal(size=(4, 32, 48, 3)).astype(np.float32)
  base = dict(variant='mu/8', width=32, depth=4, num_heads=4, mlp_dim=48, image_size=(32, 48),
              num_classes=3, pool='token', registers=1)  # fmt: skip
  devices = jax.devices()[: np.prod([int(n) for n in mesh.split('x')])]
  results = []
  for scan, remat, where in ((True, 'names', mesh), (False, 'none', '1x1x1')):
    config = ViTConfig(**base, **changes, scan=scan, remat=remat).resolve()
    with jax.set_mesh(sharding.make_mesh(where, devices if where == mesh else devices[:1])):
      model = config.create(nnx.Rngs(jax.random.key(0)))
      x = sharding.BatchLayout(4).place({'image': images})['image']
      grad = jax.jit(jax.value_and_grad(lambda model, x: jnp.square(model(x) - 1).mean()))
      results.append(jax.tree.map(np.asarray, grad(model, x)))
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    tolerance = 2e-2 if 'dtype' in changes else 1e-5
    np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1e-2))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(attention='t'), "axes out of 'hw'"), (dict(attention='h*', patch_dropout=0.5), 'no grid'),
    (dict(attention='h2w2'), 'of which class must see them: write h2w2\\*, or use pool=mean'),
    (dict(attention='h,w', pool='mean', queries=2), 'of which queries must'),
    (dict(attention='h,w', depth=3), 'not a multiple'), (dict(attention='windows'), 'neither full'),
  ],
)  # fmt: skip
def test_what_models_refuse(changes, message):
  with pytest.raises(RunError, match=message):
    ViTConfig('S/16', **changes).resolve()


def test_unequal_images_move_their_windows():
  """An image of another size has a grid of its own, and so other windows."""
  config = ViTConfig('mu/8', width=32, depth=2, num_heads=4, mlp_dim=48, image_size=(32, 32),
                     pool='mean', attention='h2w2').resolve()  # fmt: skip
  model = config.create(nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (1, 48, 32, 3))
  before, after = (np.asarray(model.features(y)['patches']) for y in (x, x.at[:, 40:].add(1)))
  same = (before == after).all(-1)[0]
  assert same[:4].all()  # the last window of rows has two of them
  assert not same[4:].any()
