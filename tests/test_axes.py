"""Images of one to three axes: videos, volumes, signals; patches and positions of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.conftest import tiers
from vit_jax import inspect
from vit_jax.architecture import variants
from vit_jax.core.errors import RunError
from vit_jax.costs.flops import costs
from vit_jax.models.vit import Patches, ViTConfig
from vit_jax.nn import positions, sharding
from vit_jax.nn.layers import PatchEmbed, resample_patches
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.packed import PackedClassification

VIDEO = dict(
  image_size=(4, 8, 12), patch_size=(2, 4, 4), width=48, depth=2, mlp_dim=32, num_heads=4,
  num_classes=5,
)  # fmt: skip
run = jax.jit(lambda model, x, **kwargs: model(x, **kwargs))


def video(**changes):
  """A model in which nothing is zero."""
  model = vit_jax.create('mu/4', **{**VIDEO, **changes})
  rng = np.random.default_rng(7)
  return jax.tree.map(lambda w: jnp.asarray(w + 0.1 * rng.normal(size=w.shape), w.dtype), model)


def clips(*size, batch=2, seed=1):
  size = size or VIDEO['image_size']
  return np.random.default_rng(seed).normal(size=(batch, *size, 3)).astype(np.float32)


def packed(x, patch, extra=0):
  """Images of any number of axes as `Patches`."""
  grid = [side // p for side, p in zip(x.shape[1:-1], patch, strict=True)]
  axes = len(grid)
  cut = [n for pair in zip(grid, patch, strict=True) for n in pair]
  order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
  pixels = x.reshape(len(x), *cut, -1).transpose(order)
  pixels = pixels.reshape(len(x), int(np.prod(grid)), -1)
  coords = np.broadcast_to(positions.grid_coords(*grid), (len(x), pixels.shape[1], axes))
  pad = lambda a: np.pad(a, ((0, 0), (0, extra)) + ((0, 0),) * (a.ndim - 2))  # noqa: E731
  return Patches(*(jnp.asarray(pad(a)) for a in (pixels, coords, np.ones(coords.shape[:2], bool))))


# --- patches ---


@pytest.mark.parametrize('patch', [(4,), (2, 3), (2, 3, 4), (1, 4, 4)])
def test_patches_are_a_convolution_of_that_stride(patch):
  embed = PatchEmbed(patch, 3, 8, nnx.Rngs(0))
  size = tuple(2 * side for side in patch)
  x = clips(*size)
  letters = 'DHW'[-len(patch) :]
  want = jax.lax.conv_general_dilated(
    x, embed.proj.kernel[...], patch, 'VALID', precision='highest',
    dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'),
  )  # fmt: skip
  np.testing.assert_allclose(embed(x), want + embed.proj.bias[...], rtol=1e-5, atol=1e-5)
  flat = embed.flat(packed(x, patch).pixels)
  np.testing.assert_allclose(flat.reshape(want.shape), embed(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('new', [(4, 8, 8), (2, 8, 4), (4, 4, 4)])
def test_patches_of_another_shape(new):
  """Of images enlarged as the kernel is they give the same tokens, along each axis by itself."""
  model, x = video(posemb='sincos', pool='mean'), clips()
  large = jnp.asarray(x).reshape(2, 2, 2, 2, 4, 3, 4, 3)  # grid and patch by turns
  for axis, (size, old) in enumerate(zip(new, (2, 4, 4), strict=True)):
    weights = positions.resize_weights(np.arange(size), size, old, 'bilinear')
    large = jnp.moveaxis(jnp.tensordot(weights, large, (1, 2 * axis + 2)), 0, 2 * axis + 2)
  large = large.reshape(2, *(n * size for n, size in zip((2, 2, 3), new, strict=True)), 3)
  got = model.tokens(large, patch_size=new)[0]
  np.testing.assert_allclose(got, model.tokens(x)[0], rtol=1e-4, atol=1e-5)
  kernel = model.embed.proj.kernel[...]
  np.testing.assert_array_equal(resample_patches(kernel, (2, 4, 4)), kernel)


# --- positions ---


@pytest.mark.parametrize(
  'config',
  [dict(), dict(posemb='factorised', rope='unit', pool='mean'), dict(posemb='space_time'),
   dict(posemb='sincos', rope='grid', pool='map'), dict(interpolation='bicubic_offset')],
  ids=str,
)  # fmt: skip
def test_packed_videos_are_the_same_videos(config):
  model = video(**config)
  for size in ((4, 8, 12), (6, 12, 4)):  # the size of the model, and another one
    x = clips(*size)
    got = run(model, packed(x, (2, 4, 4), extra=3))
    np.testing.assert_allclose(got, run(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('grid', [(5,), (3, 5), (2, 3, 5)])
def test_resampling_along_every_axis_is_that_of_jax(method, grid):
  new = tuple(side + 2 for side in grid)
  table = jnp.asarray(np.random.default_rng(0).normal(size=(*grid, 4)), jnp.float32)
  got = positions.resample(table, new, f'{method}_aa')
  want = jax.image.resize(table, (*new, 4), method.removeprefix('bi').replace('linear', 'linear'))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_tables_of_space_and_time_are_resampled_each_by_itself():
  model = video(posemb='space_time', class_token=True, posemb_tokens='class')
  zero = jax.tree.map(jnp.zeros_like, model.embed)
  model.embed = zero
  tokens = model.tokens(jnp.zeros((1, 6, 8, 24, 3)))[0][0]
  space = positions.resample(model.posemb[0, 1:].reshape(2, 3, 48), (2, 6), 'bicubic_aa')
  time = positions.resample(model.posemb_frames[0], (3,), 'bicubic_aa')
  want = (space[None] + time[:, None, None]).reshape(36, 48)
  np.testing.assert_allclose(tokens[1:], want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(tokens[0], model.token[0, 0] + model.posemb[0, 0], rtol=1e-6)


def test_a_video_model_begins_as_the_image_model():
  """With its table of frames at zero, every frame has the positions of the image."""
  fresh = ViTConfig('mu/4', posemb='space_time', **VIDEO).create(nnx.Rngs(0))
  assert not fresh.posemb_frames[...].any()
  assert fresh.posemb[...].any()


@pytest.mark.parametrize('config', [dict(posemb='sincos'), dict(posemb='none', rope='grid')])
def test_spacing_moves_patches(config):
  """As far apart as they are: of half the resolution, every second position; each of its own."""
  model = video(pool='mean', **config)
  x = clips()
  same = run(model, x, spacing=np.ones((2, 3)))
  np.testing.assert_allclose(same, run(model, x), rtol=1e-5, atol=1e-6)
  spacing = np.array([[2.0, 1, 1], [1, 1, 3]], np.float32)
  both = run(model, x, spacing=spacing)
  patches = packed(x, (2, 4, 4))
  centres = (patches.coords + 0.5) * spacing[:, None]
  moved = patches._replace(coords=centres - 0.5)
  np.testing.assert_allclose(both, run(model, moved), rtol=1e-4, atol=1e-5)
  for i in (0, 1):
    alone = run(model, x[i : i + 1], spacing=spacing[i : i + 1])
    np.testing.assert_allclose(both[i], alone[0], rtol=1e-4, atol=1e-5)
  assert np.abs(both - same).max() > 1e-3
  # Patches of half as many pixels, twice as far apart, are in the same places.
  half = dict(spacing=2 * np.ones((2, 3)), patch_size=(1, 2, 2))
  coarse, fine = model.tokens(jnp.zeros((2, 2, 4, 6, 3)), **half), model.tokens(jnp.zeros_like(x))
  np.testing.assert_allclose(coarse[0], fine[0], rtol=1e-4, atol=1e-5)
  if config['posemb'] == 'none':
    np.testing.assert_allclose(coarse[1].angles, np.tile(fine[1].angles, (2, 1, 1)), rtol=1e-5)
    # One of two slices of 2 mm is in the middle of two of 1 mm.
    thick = model.tokens(clips(2, 8, 12), spacing=np.tile([2.0, 1, 1], (2, 1)))[1].angles[0]
    pairs = np.asarray(fine[1].angles).reshape(2, 6, -1)
    np.testing.assert_allclose(thick[:6], pairs.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'config',
  [dict(), dict(posemb='none'), dict(posemb='sincos', relative_bias='shared'),
   dict(posemb='none', rope='unit'), dict(posemb='sincos', rope='grid', rope_grid=(2, 2, 3))],
  ids=str,
)  # fmt: skip
def test_spacing_is_for_computed_positions(config):
  with pytest.raises(ValueError, match='spacing moves only positions that are computed'):
    video(**config)(clips(), spacing=np.ones((2, 3)))


def test_spacing_is_for_rows_of_one_image():
  model = video(pool='mean', posemb='sincos', class_token=False)
  patches = packed(clips(), (2, 4, 4))
  ones = np.ones(patches.mask.shape, np.int32)
  several = patches._replace(segment=ones, images=np.array([[1], [1]]))
  with pytest.raises(ValueError, match='rows of several images have no spacing'):
    model(several, spacing=np.ones((2, 3)))


def test_what_does_not_fit_is_said():
  model = video(pool='mean', posemb='sincos')
  with pytest.raises(
    ValueError, match=r'\(batch, frames, height, width, 3\).*multiples of 2, 4, 4'
  ):
    model(clips(8, 12))
  with pytest.raises(RunError, match=r'\(4, 4\) is not of 3 axes'):
    model(clips(), patch_size=(4, 4))
  with pytest.raises(ValueError, match=r'spacing of shape \(batch, 3\), found \(2,\)'):
    model(clips(), spacing=np.ones(2))
  for fields, message in (
    (
      dict(image_size=(4, 9, 12)),
      r'patch_size=\(2, 4, 4\) does not divide image_size=\(4, 9, 12\)',
    ),
    (dict(patch_size=(2, 4)), 'not of as many axes as image_size'),
    (dict(image_size=(2, 2, 2, 2)), 'must be one to three whole numbers'),
    (dict(rope_grid=(2, 2)), r'rope_grid=\(2, 2\) is not of as many axes'),
    (dict(stem_width=32, stem_depths=(1,)), 'a stem is for images of 2 axes'),
    (dict(posemb='sincos', width=28), 'divisible by 6'),
    (dict(posemb='space_time', image_size=(8, 12), patch_size=4), 'needs frames'),
    (dict(kv_heads=3), 'kv_heads=3 does not divide num_heads=4'),
    (dict(attention='t|hw', kv_heads=1), 'must be divisible by 2'),
    (dict(head_dim=-1), 'must not be negative'),
    (dict(head_dim=8, mup_width=16), 'no rule for head_dim=8'),
    (dict(attention='full+memory'), 'no memory to attend to'),
  ):
    with pytest.raises(RunError, match=message):
      ViTConfig('mu/4', **{**VIDEO, **fields}).resolve()


def test_one_way_to_write_one_model():
  fields = dict(kv_heads=6, head_dim=64, patch_size=(16, 16))
  config = ViTConfig('S/16', **fields).resolve()
  assert config == ViTConfig('S/16').resolve()
  assert variants.name_of(config) == 'S/16'
  for other in (dict(patch_size=(8, 16)), dict(image_size=(32, 224, 224))):
    assert variants.name_of(ViTConfig('S/16', **other).resolve()) == ''


def test_models_are_kept_changed_and_described(tmp_path, capsys):
  """In the dialect that has them; the others say what they do not have."""
  models = {
    'video': video(posemb='space_time', attention='t+hw*', queries=2),
    'signal': vit_jax.create('mu/4', image_size=(64,), patch_size=4, pool='mean'),
  }
  for name, model in models.items():
    vit_jax.save(model, tmp_path / name, 'vit_jax')
    again = vit_jax.load(tmp_path / name)
    assert again.config == dataclasses.replace(model.config, variant='')
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
      np.testing.assert_array_equal(a, b)
    with pytest.raises(RunError, match='cannot express image_size'):
      vit_jax.save(model, tmp_path / 'other', 'timm')
    inspect.main(str(tmp_path / name), names=False, choice={})
    assert (
      f'images        {"x".join(map(str, model.config.image_size))}, ' in capsys.readouterr().out
    )
  larger = vit_jax.load(tmp_path / 'video', image_size=(8, 8, 24))
  x = clips(8, 8, 24)
  np.testing.assert_allclose(larger(x), models['video'](x), rtol=1e-4, atol=1e-5)
  longer = vit_jax.load(tmp_path / 'signal', image_size=128)
  assert longer.config.image_size == (128,)
  finer = vit_jax.load(tmp_path / 'video', patch_size=[1, 4, 4])
  assert finer.config.patch_size == (1, 4, 4)
  with pytest.raises(RunError, match=r'\(4, 4\) is not of 3 axes'):
    vit_jax.load(tmp_path / 'video', patch_size=(4, 4))
  with pytest.raises(RunError, match=r'image_size=\(8, 8\) has 2 axes'):
    vit_jax.load(tmp_path / 'video', image_size=(8, 8))


def test_tasks_on_pictures_take_models_of_pictures():
  with pytest.raises(RunError, match=r'image_size=\(4, 8, 12\): the images of this task'):
    Classification().adapt(ViTConfig('mu/4', **VIDEO).resolve(), {})
  rows = ViTConfig('mu/4', image_size=(8, 8), attention='h+w', pool='mean', posemb='sincos')
  with pytest.raises(RunError, match='rows of several images have no grid'):
    PackedClassification().adapt(rows.resolve(), {})


# --- several kinds of tokens ---


def test_tokens_have_names():
  model = video(queries=3, registers=2)
  out = model.features(clips())
  want = {'class': 1, 'registers': 2, 'queries': 3}
  assert model.config.special == want
  assert {name: out[name].shape[1] for name in want} == want
  assert out['patches'].shape == (2, 2, 2, 3, 48)
  # They are learned: what is read from them reaches them and the patches.
  grad = jax.grad(lambda model: jnp.square(model.features(clips())['queries']).sum())(model)
  assert np.abs(grad.queries[...]).min(axis=(0, 2)).all()
  assert np.abs(grad.embed.proj.kernel[...]).max() > 0


# --- on devices ---


@pytest.mark.parametrize(
  ('config', 'mesh'),
  tiers(
    [(dict(attention='t+hw*', posemb='space_time', kv_heads=2), '2x2x2'),
     (dict(attention='t|hw', posemb='factorised', pool='mean', rope='grid', kv_heads=2), '2x2x1')],
    0,
  ),
  ids=str,
)  # fmt: skip
def test_meshes_compute_the_same(config, mesh):
  x, results = clips(batch=4), []
  for layout, scan, remat in (('1x1x1', False, 'none'), (mesh, True, 'names')):
    devices = jax.devices()[: int(np.prod([int(n) for n in layout.split('x')]))]
    with jax.set_mesh(sharding.make_mesh(layout, devices)):
      made = ViTConfig('mu/4', **{**VIDEO, **config}, scan=scan, remat=remat).create(nnx.Rngs(0))
      images = sharding.BatchLayout(4).place({'image': x})['image']
      grad = jax.jit(jax.value_and_grad(lambda model, x: jnp.square(model(x) - 1).mean()))
      results.append(jax.tree.map(np.asarray, grad(made, images)))
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 1e-2))


def test_heads_that_the_mesh_does_not_divide():
  with (
    jax.set_mesh(sharding.make_mesh('1x1x2', jax.devices()[:2])),
    pytest.raises(RunError, match='kv_heads=1 cannot be divided among the 2 devices'),
  ):
    ViTConfig('mu/4', **VIDEO, kv_heads=1).create(nnx.Rngs(0))


# --- costs of divided attention ---


def test_divided_attention_costs_the_sum_and_not_the_product():
  """S T (S + T) pairs and not (S T)^2: in products, and in the memory of the compiled gradient."""
  sizes = dict(VIDEO, patch_size=(1, 4, 4), width=16, mlp_dim=16, depth=1)
  pairs, held = {}, {}
  for frames in (8, 16):
    for attention in ('t+hw', 'full'):
      config = ViTConfig(
        'mu/4', **{**sizes, 'image_size': (frames, 32, 32)}, attention=attention, pool='mean'
      ).resolve()
      (part,) = (part for part in costs(config).parts if part.name == 'attention')
      pairs[attention, frames] = part.macs // (2 * config.width)
      model = jax.eval_shape(lambda config=config: config.create(nnx.Rngs(0)))
      x = jax.ShapeDtypeStruct((4, *config.image_size, 3), jnp.float32)
      grad = jax.jit(jax.grad(lambda model, x: jnp.square(model(x)).sum()))
      held[attention, frames] = grad.lower(model, x).compile().memory_analysis().temp_size_in_bytes
    space = 64
    assert pairs['t+hw', frames] == space * frames * (space + frames)
    assert pairs['full', frames] == (space * frames) ** 2
  # Twice the frames: joint attention takes nearly four times the memory, divided attention twice.
  assert held['full', 16] > 3.5 * held['full', 8]
  assert held['t+hw', 16] < 2.3 * held['t+hw', 8]
  assert held['t+hw', 16] < 0.25 * held['full', 16]
