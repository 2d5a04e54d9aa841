"""Parts of the model: dropping, recording, other sizes, packed images, every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import vit_jax
from tests.conftest import tiers
from tests.test_model import images, tiny
from vit_jax.architecture.vit import INTERPOLATIONS
from vit_jax.core.errors import RunError
from vit_jax.models.vit import Patches, ViTConfig
from vit_jax.nn import positions, tree
from vit_jax.nn.attention import rotate
from vit_jax.nn.encoder import layer_of
from vit_jax.nn.layers import resample_patches

run = jax.jit(lambda model, x, key: model(x, key=key))


# --- stochastic depth and patch dropout ---


def branches(mode, rate, batch=512, depth=2):
  """Which branches of which examples were kept, when each adds a constant of its own."""
  model = tiny(drop_path=rate, drop_path_mode=mode, depth=depth, pool='mean', num_classes=1)
  model = jax.tree.map(jnp.zeros_like, model)
  for at, name in enumerate(('attn/out', 'mlp/down')):
    part = model.encoder.blocks
    for step in name.split('/'):
      part = getattr(part, step)
    # Of layer l and branch b: 4 ** (2 l + b), so that sums can be told apart when scaled alike.
    part.bias[...] = jnp.stack([jnp.full(16, 4.0 ** (2 * i + at)) for i in range(depth)])
  x, context = model.tokens(images(batch))
  key = jax.random.key(0)
  blocks = model.encoder.blocks
  rates = jnp.linspace(0, rate, depth) if mode == 'linear' else jnp.full(depth, rate)

  @jax.jit
  def alone(block, x, key, rate):
    return block(jnp.zeros_like(x), (context,), key, rate)[0][:, 0, 0]

  kept = [
    np.asarray(alone(layer_of(blocks, layer), x, sub, rates[layer])) / 4.0 ** (2 * layer)
    for layer, sub in enumerate(jax.random.split(key, depth))
  ]
  return np.array(kept), np.asarray(rates)


@pytest.mark.parametrize('mode', ['linear', 'constant', 'subset'])
def test_stochastic_depth_drops_at_its_rate_and_keeps_the_mean(mode):
  kept, rates = branches(mode, 0.5)
  for sums, rate in zip(kept, rates, strict=True):
    # attention adds 1, the MLP 4, each scaled by 1 / (1 - rate) where it is kept
    expected = np.array([0, 1, 4, 5]) / (1 - rate)
    assert np.isin(np.round(sums, 3), np.round(expected, 3)).all()
    spread = 0 if rate == 0 else 4 * np.sqrt(17 * rate / (1 - rate) / len(sums))
    assert abs(sums.mean() - 5) <= spread + 1e-6
    dropped = np.round(sums * (1 - rate)) < 4
    assert abs(dropped.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / len(sums))
  if mode == 'subset':  # exactly, not on average
    assert (np.round(kept * 0.5) >= 4).sum(1).tolist() == [256, 256]


def test_new_models_have_the_values_of_their_recipe():
  """Of DeiT as its code says: noise of 0.02 but for convolutions, biases and norms."""
  options = dict(width=64, mlp_dim=128, num_heads=2, depth=2, num_classes=50, image_size=(32, 32),
                 distilled=True, pool='token', layerscale=1e-4)  # fmt: skip
  found = tree.flatten(vit_jax.create('mu/4', seed=1, initial='deit', **options))
  usual = tree.flatten(vit_jax.create('mu/4', seed=1, **options))
  assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in usual.items()}
  bound = 1 / np.sqrt(4 * 4 * 3)
  for name, leaf in ((name, np.asarray(leaf)) for name, leaf in found.items()):
    if name.startswith('embed/'):
      assert 0.9 * bound < np.abs(leaf).max() <= bound
    elif name.endswith('kernel') or name in ('posemb', 'token', 'distill_token'):
      assert abs(leaf.std() / 0.02 - 1) < 5 / np.sqrt(2 * leaf.size), name
      assert len(np.unique(leaf)) > 0.99 * leaf.size
    else:
      np.testing.assert_array_equal(leaf, usual[name], err_msg=name)
  names = ['encoder/blocks/attn/query/kernel', 'encoder/blocks/attn/key/kernel']
  assert not np.array_equal(*(found[name] for name in names))


def test_new_models_have_the_values_of_mae():
  """Xavier uniform as its code has it, where queries, keys and values are one matrix."""
  options = dict(width=64, mlp_dim=128, num_heads=2, depth=2, num_classes=0, image_size=(32, 32),
                 pool='token', posemb='sincos_mae', mask_token=True)  # fmt: skip
  found = tree.flatten(vit_jax.create('mu/4', seed=1, initial='mae', **options))
  usual = tree.flatten(vit_jax.create('mu/4', seed=1, **options))
  bounds = {'embed/proj/kernel': np.sqrt(6 / (48 + 64)), 'embed/proj/bias': 1 / np.sqrt(48)}
  for part in ('query', 'key', 'value'):
    bounds[f'encoder/blocks/attn/{part}/kernel'] = np.sqrt(6 / (64 + 192))
  for name, leaf in ((name, np.asarray(leaf)) for name, leaf in found.items()):
    if bound := bounds.pop(name, 0):
      assert 0.9 * bound < np.abs(leaf).max() <= bound, name
      assert abs(leaf.std() * np.sqrt(3) / bound - 1) < 0.2, name
    elif name in ('token', 'mask_token'):
      assert abs(leaf.std() / 0.02 - 1) < 5 / np.sqrt(2 * leaf.size), name
    else:
      np.testing.assert_array_equal(leaf, usual[name], err_msg=name)
  assert not bounds


@pytest.mark.parametrize('scan', [True, False])
def test_dropout_leaves_out_features_where_the_first_models_did(scan):
  """Of the input, of hidden layers and of what branches add, each with its own draw.

  The weights are zero but for constants that tell which of them are left.
  """
  rate, depth = 0.25, 2
  model = tiny(dropout=rate, depth=depth, scan=scan, pool='mean', mlp='quick_gelu', num_classes=1,
               mlp_dim=16)  # fmt: skip
  model = jax.tree.map(jnp.zeros_like, model)
  model.embed.proj.bias[...] = jnp.full(16, 1000.0)
  blocks = model.encoder.blocks
  blocks.attn.out.bias[...] = jnp.full((depth, 16), 30.0)
  blocks.mlp.up.bias[...] = jnp.full((depth, 16), 100.0)  # which the activation leaves as it is
  blocks.mlp.down.kernel[...] = jnp.stack([jnp.eye(16) / 100] * depth)
  out = jax.jit(lambda key: model.features(images(64), key=key))(jax.random.key(0))
  whole = 1 / (1 - rate)
  first, second = np.asarray(out['block00']), np.asarray(out['block01'] - out['block00'])
  entered = np.round(first / (1000 * whole))
  np.testing.assert_allclose(out['tokens'], 1000)
  added = np.stack([first - entered * 1000 * whole, second])
  by_attention = np.round(added / (30 * whole))
  by_mlp = (added - by_attention * 30 * whole) / whole**2  # left out before and after the product
  np.testing.assert_allclose(by_mlp, np.round(by_mlp), atol=2e-3)
  masks = np.stack([entered, *by_attention, *np.round(by_mlp)]).astype(int)
  assert set(np.unique(masks)) == {0, 1}
  count = masks[0].size
  for mask, share in zip(masks, [1 - rate] * 3 + [(1 - rate) ** 2] * 2, strict=True):
    assert abs(mask.mean() - share) < 5 * np.sqrt(share * (1 - share) / count)
  # Independent of each other, and of one another's features, tokens and examples.
  flat = masks.reshape(len(masks), -1)
  related = np.corrcoef(flat) - np.eye(len(flat))
  assert np.abs(related).max() < 5 / np.sqrt(count)
  for axis in (1, 2, 3):
    moved = np.roll(masks, 1, axis).reshape(len(masks), -1)
    assert all(
      abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(count) for a, b in zip(flat, moved, strict=True)
    )


def flops(model, batch, **kwargs):
  lowered = jax.jit(lambda model, x: model(x, **kwargs)).lower(model, images(batch))
  return lowered.compile().cost_analysis()['flops']


def test_the_subset_saves_its_share_of_the_work():
  key = jax.random.key(0)
  whole = flops(tiny(drop_path=0.5, scan=False), 64, key=key)
  half = flops(tiny(drop_path=0.5, drop_path_mode='subset', scan=False), 64, key=key)
  assert half < 0.6 * whole


def test_nothing_is_dropped_without_a_key_and_other_keys_drop_others():
  model = tiny(drop_path=0.5, patch_dropout=0.5, rope='unit', relative_bias='layer', pool='mean')
  plain = tiny(rope='unit', relative_bias='layer', pool='mean')
  np.testing.assert_array_equal(run(model, images(), None), run(plain, images(), None))
  a, b, c = (run(model, images(), jax.random.key(k)) for k in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert np.abs(a - c).max() > 1e-3


@pytest.mark.parametrize('where', [dict(rope='unit'), dict(relative_bias='layer'),
                                   dict(relative_bias='shared', rope='grid'), {}])  # fmt: skip
def test_dropped_patches_take_their_positions_with_them(where):
  """What is left gives what it gives when it is all there is, with the same places."""
  model = tiny(patch_dropout=0.5, pool='mean', registers=1, **where)
  x = images()
  tokens, context = model.tokens(x, key=jax.random.key(3))
  assert tokens.shape[1] == 1 + 3
  all_tokens, everything = model.tokens(x)
  got, _ = model.encoder(tokens, context)
  for i in range(2):
    kept = [int(jnp.argmin(jnp.abs(all_tokens[i] - t).sum(-1))) for t in tokens[i]]
    assert kept == sorted(kept)
    places = np.array(kept)
    part = lambda a, places=places: None if a is None else a[:, places]  # noqa: E731
    index = everything.index
    sub = everything.replace(
      angles=part(everything.angles),
      index=None if index is None else index[:, places][:, :, places],
    )
    want, _ = model.encoder(all_tokens[i : i + 1, places], sub)
    np.testing.assert_allclose(got[i], want[0], rtol=1e-4, atol=1e-5)


# --- features ---


def test_features_name_everything_and_agree_with_the_output():
  model = tiny(distilled=True, registers=1)
  out = jax.jit(lambda model, x: model.features(x))(model, images())
  blocks = {f'block{i:02d}{part}' for i in range(3) for part in ('', '/attn', '/mlp')}
  assert out.keys() == blocks | {
    'tokens', 'encoded', 'patches', 'class', 'distill', 'registers', 'pooled', 'logits',
    'logits_class', 'logits_distill', 'output',
  }  # fmt: skip
  kinds = [out[name] for name in ('class', 'distill', 'registers')]
  patches = out['patches'].reshape(2, 6, 16)
  np.testing.assert_array_equal(jnp.concatenate([*kinds, patches], axis=1), out['encoded'])
  assert out['patches'].shape == (2, 2, 3, 16)
  np.testing.assert_array_equal(out['output'], run(model, images(), None))
  x = out['tokens']
  for i in range(3):
    x = x + out[f'block{i:02d}/attn'] + out[f'block{i:02d}/mlp']
    np.testing.assert_allclose(out[f'block{i:02d}'], x, rtol=1e-4, atol=1e-5)
  unrolled = tiny(distilled=True, registers=1, scan=False).features(images())
  for name, value in out.items():
    np.testing.assert_allclose(unrolled[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_features_that_are_not_used_cost_nothing():
  def cost(function):
    compiled = jax.jit(function).lower(tiny(depth=6), images(64)).compile()
    memory = compiled.memory_analysis()
    return compiled.cost_analysis()['flops'], memory.temp_size_in_bytes

  plain = cost(lambda model, x: model(x))
  assert cost(lambda model, x: model.features(x)['logits']) == plain
  assert cost(lambda model, x: model.features(x)) > plain


# --- other sizes ---


def test_other_sizes_resample_positions_and_the_own_size_does_not():
  model = tiny(registers=1)
  assert model(jnp.zeros((1, 16, 20, 3))).shape == (1, 5)
  tokens, context = model.tokens(jnp.zeros((1, 16, 20, 3)))
  assert context.grid == (4, 5)
  table = model.posemb[0, 1:].reshape(2, 3, 16)
  want = positions.resample(table, (4, 5), 'bicubic_aa').reshape(20, 16)
  got = tokens[0, 2:] - model.embed.proj.bias[...]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'config',
  [dict(posemb='factorised'), dict(posemb='sincos'),
   dict(rope='grid', rope_grid=(2, 3), relative_bias='layer'),
   dict(relative_bias='shared', pool='mean')],
)  # fmt: skip
def test_other_sizes_with_other_positions(config):
  assert np.isfinite(tiny(**config)(jnp.ones((1, 16, 20, 3)))).all()


def test_patches_of_another_size():
  """FlexiViT: images of twice the size, cut twice as coarsely, give nearly the same tokens."""
  model = tiny()
  x = images()
  large = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
  fine, coarse = model.tokens(x)[0], model.tokens(large, patch_size=8)[0]
  assert fine.shape == coarse.shape
  # Bilinear enlarging, of which the kernel is the pseudo-inverse, gives exactly the same.
  side = positions.resize_weights(np.arange(8), 8, 4, 'bilinear')
  cut = x.reshape(2, 2, 4, 3, 4, 3)
  grown = jnp.einsum('pi,qj,bhiwjc->bhpwqc', side, side, cut).reshape(2, 16, 24, 3)
  np.testing.assert_allclose(model.tokens(grown, patch_size=8)[0], fine, rtol=1e-4, atol=1e-5)
  kernel = model.embed.proj.kernel[...]
  np.testing.assert_array_equal(resample_patches(kernel, (4, 4)), kernel)


def pack(x, extra=0):
  """Images as `Patches` of the tiny model, with some padding."""
  b, h, w, c = x.shape
  grid = h // 4, w // 4
  pixels = x.reshape(b, grid[0], 4, grid[1], 4, c).swapaxes(2, 3).reshape(b, -1, 16 * c)
  coords = jnp.broadcast_to(positions.grid_coords(*grid), (b, grid[0] * grid[1], 2))
  mask = jnp.ones(coords.shape[:2], bool)
  pad = lambda a, value=0: jnp.pad(  # noqa: E731
    a, ((0, 0), (0, extra)) + ((0, 0),) * (a.ndim - 2), constant_values=value
  )
  return Patches(pad(pixels, 9.0), pad(coords), pad(mask, False))


@pytest.mark.parametrize(
  'config',
  [dict(pool='map', registers=1), dict(pool='mean', rope='unit'),
   dict(posemb='factorised', relative_bias='layer'), dict(posemb='sincos', rope='grid'),
   dict(pool='token_mean', interpolation='bicubic', relative_bias='shared'),
   dict(interpolation='bicubic_offset')],
)  # fmt: skip
def test_packed_images_are_the_same_images(config):
  model = tiny(**config)
  want = run(model, images(), None)
  for extra in (0, 3):
    np.testing.assert_allclose(run(model, pack(images(), extra), None), want, rtol=1e-4, atol=1e-5)
  # Of another shape than the one that positions are stored for.
  other = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 8, 3)), jnp.float32)
  if 'relative_bias' not in config:  # tables are resized for grids, and clipped for packed images
    got = run(model, pack(other, 2), None)
    np.testing.assert_allclose(got, run(model, other, None), rtol=1e-4, atol=1e-5)


def test_dropping_leaves_out_padding_first():
  model = tiny(patch_dropout=0.6, pool='mean')
  packed = pack(images(), 24)._replace(mask=jnp.arange(30)[None] < jnp.array([[2], [6]]))
  tokens, context = model.tokens(packed, key=jax.random.key(0))
  assert tokens.shape[1] == 12
  assert context.mask.keys.sum(1).tolist() == [2, 6]
  assert np.isfinite(run(model, packed, jax.random.key(0))).all()
  with pytest.raises(ValueError, match='patch_size cannot change'):
    model(packed, patch_size=8)


def test_masked_patches_become_the_mask_token():
  model = tiny(mask_token=True, posemb='none')
  masked = jnp.array([[True, False] * 3] * 2)
  tokens, _ = model.tokens(images(), masked=masked)
  plain, _ = model.tokens(images())
  np.testing.assert_allclose(tokens[:, 1::2], jnp.tile(model.mask_token[...], (2, 3, 1)), rtol=1e-6)
  np.testing.assert_array_equal(tokens[:, 2::2], plain[:, 2::2])
  with pytest.raises(ValueError, match='has no mask token'):
    tiny()(images(), masked=masked)


# --- positions ---


def test_rotary_attention_depends_on_distances_only():
  coords = positions.grid_coords(6, 6)[None]
  angles = positions.rope(coords, np.array([6, 6]), 8, 'grid', 100.0, (0, 0))
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(np.tile(rng.normal(size=(1, 1, 1, 8)), (1, 36, 1, 1)), jnp.float32)
          for _ in range(2))  # fmt: skip
  scores = jnp.einsum('bqhd,bkhd->bqk', rotate(q, angles), rotate(k, angles))[0]
  scores = scores.reshape(6, 6, 6, 6)
  np.testing.assert_allclose(scores[0, 1, 2, 3], scores[3, 2, 5, 4], rtol=1e-5)
  assert abs(scores[0, 1, 2, 3] - scores[0, 1, 3, 2]) > 1e-3


@pytest.mark.parametrize('method', INTERPOLATIONS)
def test_interpolation_keeps_constants_and_is_exact_at_its_own_size(method):
  for new in (1, 3, 7, 20):
    weights = positions.resize_weights(np.arange(new), new, 7, method)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
  if method != 'bicubic_offset':
    np.testing.assert_array_equal(positions.resize_weights(np.arange(7), 7, 7, method), np.eye(7))


# --- every mesh ---

COMBINED = [
  dict(registers=2, rope='unit', qk_norm=True, mlp='swiglu', mlp_norm=True, norm='rmsnorm',
       layerscale=0.1, pool='map', drop_path=0.3, patch_dropout=0.3, remat='names'),
  dict(distilled=True, relative_bias='layer', parallel=True, posemb='factorised', embed_norm=True,
       no_bias='key,norm', drop_path=0.3, drop_path_mode='constant', remat='full', scan=False),
  dict(stem_width=32, stem_depths=(1,), image_size=(16, 16), patch_size=2, norm_place='post',
       relative_bias='shared', pool='token_mean', representation_size=8, mask_token=True),
]  # fmt: skip


@pytest.mark.parametrize(
  ('config', 'dtype'),
  tiers([*((c, 'float32') for c in COMBINED), (COMBINED[0], 'bfloat16')], 0, 1, 2),
  ids=['modern', 'parallel', 'hybrid', 'modern in bfloat16'],
)  # fmt: skip
def test_combinations_are_the_same_on_every_mesh(mesh, config, dtype):
  config = dict(config, dtype=dtype, width=32, depth=2)
  size = config.get('image_size', (8, 12))
  x = np.random.default_rng(0).normal(size=(8, *size, 3)).astype(np.float32)

  @jax.jit
  def step(model, x, key):
    return jax.value_and_grad(lambda model: jnp.square(model(x, key=key)).mean())(model)

  def result(x):
    model = tiny(**config)
    loss, grad = step(model, x, jax.random.key(1))
    return float(loss), {n: np.asarray(g) for n, g in tree.flatten(grad).items()}

  loss, grad = result(x)
  with mesh(2, 2, 2):
    spec = NamedSharding(jax.sharding.get_mesh(), P(('data', 'fsdp')))
    other_loss, other = result(jax.device_put(x, spec))
  assert np.isfinite(loss)
  exact = dtype == 'float32'
  assert other_loss == pytest.approx(loss, rel=1e-5 if exact else 0.02)
  if exact:
    for name, want in grad.items():
      scale = max(np.abs(want).max(), 1e-4)
      assert np.abs(other[name] - want).max() < 1e-3 * scale, name


def test_the_subset_is_drawn_on_each_device(mesh):
  """As many examples are left out on each device as without a mesh in all."""
  with mesh(4, 2, 1):
    kept, _ = branches('subset', 0.5, batch=64)
    left_out = np.round(kept * 0.5) < 4
    assert (left_out.reshape(2, 8, 8).sum(-1) == 4).all()


def test_a_subset_of_everything_is_refused():
  model = tiny(drop_path=0.1, drop_path_mode='subset')
  with pytest.raises(RunError, match=r'drop_path=0\.1 of 2 examples on each device is none'):
    model(images(), key=jax.random.key(0))


def test_the_subset_trains_on_a_mesh(mesh):
  config = dict(drop_path=0.5, drop_path_mode='subset', relative_bias='layer', rope='unit',
                patch_dropout=0.4)  # fmt: skip
  x = np.random.default_rng(0).normal(size=(16, 8, 12, 3)).astype(np.float32)
  with mesh(2, 2, 2):
    spec = NamedSharding(jax.sharding.get_mesh(), P(('data', 'fsdp')))
    x = jax.device_put(x, spec)
    model = tiny(**config)
    grad = jax.jit(jax.grad(lambda model, x, key: jnp.square(model(x, key=key)).mean()))
    leaves = jax.tree.leaves(grad(model, x, jax.random.key(0)))
  assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_create_rejects_what_contradicts_itself():
  for config, message in (
    (dict(drop_path=1.0), 'must be in'),
    (dict(patch_dropout=-0.1), 'must be in'),
    (dict(dropout=1.0), 'must be in'),
    (dict(initial='dei'), 'did you mean deit'),
    (dict(initial='deit', mup_width=8), 'no rule for model.initial'),
    (dict(dropout=0.1, drop_path=0.1, drop_path_mode='subset'), 'use drop_path_mode'),
    (dict(parallel=True, norm_place='post'), 'parallel blocks'),
    (dict(rope='unit', width=12, num_heads=2), 'divisible by 4'),
    (dict(stem_width=20), 'multiple of 32'),
    (dict(interpolation='bicubik'), 'did you mean bicubic'),
    (dict(rope_grid=(3,)), 'is not of as many axes as image_size'),
  ):
    with pytest.raises(RunError, match=message):
      ViTConfig('mu/4', image_size=(8, 8), **config).resolve()
  hybrid = vit_jax.create('R+Ti/16', depth=1, image_size=(32, 32))
  with pytest.raises(ValueError, match='takes images, not patches'):
    hybrid(pack(images()))
