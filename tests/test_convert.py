"""Checkpoints of other projects without their programs: round trips, changes, damage."""

import dataclasses
import functools
import json
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import vit_jax
from vit_jax import inspect, models
from vit_jax.architecture import TextArchitecture, TwoTowersArchitecture, ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import adapt, augreg, files, forms, layout, read
from vit_jax.convert.dialects import DIALECTS
from vit_jax.core.errors import RunError
from vit_jax.models.text import TextConfig
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import positions, sharding, tree

SIZES = dict(width=24, depth=2, mlp_dim=40, num_heads=3, image_size=(16, 16), patch_size=4)


def shaken(model):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda w: w + 0.1 * rng.normal(size=w.shape).astype(np.float32), model)


def make(variant='S/4', **config):
  config = ViTConfig(variant, **{**SIZES, 'num_classes': 5, **config}).resolve()
  return shaken(read.build(config, _zeros(config), None))


def _zeros(config):
  return {name: np.zeros(shape, np.float32) for name, shape in adapt.abstract(config).items()}


def towers(variant='siglip:B/4'):
  config = TwoTowersConfig(
    variant,
    ViTConfig(variant, **SIZES),
    TextConfig('', width=24, depth=2, mlp_dim=40, num_heads=3, vocab_size=30, context_length=8),
  ).resolve()
  return shaken(read.build(config, _zeros(config), None))


def assert_equal(a, b):
  a, b = tree.flatten(a), tree.flatten(b)
  assert a.keys() == b.keys()
  for name, leaf in a.items():
    np.testing.assert_array_equal(b[name], leaf, name)


# Which model each dialect can hold, and what cannot be told from the file alone.
HOLDS = [
  ('vit', {}, {}),
  ('vit', dict(representation_size=7), {}),
  ('vit', dict(stem_width=32, stem_depths=(1, 2), patch_size=1), {}),
  ('vit', dict(stem_width=32, stem_depths=(), patch_size=2), {}),
  ('vit-linen', {}, {}),
  ('big_vision', dict(pool='map', num_classes=0), {}),
  ('big_vision', dict(pool='mean', posemb='sincos'), dict(image_size=(16, 16))),
  ('big_vision-scan', dict(posemb_tokens='patches'), {}),
  ('timm', dict(mlp='gelu'), {}),
  ('timm', dict(mlp='swiglu', pool='mean', pool_norm=True, registers=2, posemb_tokens='all'), {}),
  ('timm', dict(pool='mean', relative_bias='shared', posemb='none', no_bias='key', mlp='gelu',
                class_token=True, layerscale=1e-5, pool_norm=True), {}),
  ('timm', dict(rope='grid', rope_base=1e4, rope_grid=(16, 16), no_bias='key', mlp='swiglu',
                mlp_norm=True, pool='mean', pool_norm=True, class_token=True), {}),
  ('dinov2', dict(variant='dinov2:S/4', num_classes=0), {}),
  ('dinov2', dict(variant='dinov2-reg:g/4', num_classes=0), {}),
  ('dinov3', dict(variant='dinov3:S/4', num_classes=0), {}),
  ('dinov3', dict(variant='dinov3:S+/4', num_classes=0), {}),
  ('dinov3', dict(variant='dinov3:S/4', num_classes=0, width=64, num_heads=2), {}),
  ('transformers', dict(mlp='gelu'), {}),
  ('transformers-v5', dict(mlp='gelu', distilled=True), {}),
  ('transformers', dict(variant='beit:B/4'), {}),
  ('transformers-v5', dict(variant='dinov2-reg:S/4', pool='token_mean', mlp_dim=48), {}),
  ('transformers', dict(variant='dinov2:g/4', mlp_dim=64, num_classes=0), {}),
  ('transformers-v5', dict(variant='dinov3:S+/4', num_classes=0), {}),
  ('transformers', dict(variant='clip:B/4', num_classes=6), {}),
  ('openai', dict(variant='clip:B/4', num_classes=6), dict(mlp='quick_gelu')),
  ('vit_jax', dict(mlp='swiglu', rope='unit', qk_norm=True, norm_place='post'), {}),
]  # fmt: skip


def place(folder, dialect):
  suffix = DIALECTS[dialect]
  return folder / ('model' if suffix == 'folder' else f'model{suffix}')


@pytest.mark.parametrize(('dialect', 'config', 'hints'), HOLDS,
                         ids=[f'{d}-{i}' for i, (d, _, _) in enumerate(HOLDS)])  # fmt: skip
def test_round_trips_are_exact(tmp_path, dialect, config, hints):
  model = make(**config)
  path = place(tmp_path, dialect)
  vit_jax.save(model, path, dialect)
  again = vit_jax.load(path, **hints)
  assert_equal(model, again)
  assert forms.signature(again.config) == forms.signature(model.config)
  # And the file itself, byte for byte in every array.
  second = place(tmp_path / 'again', dialect)
  vit_jax.save(again, second, dialect)
  if dialect != 'vit_jax':
    one, two = (read.open_checkpoint(p, **hints).arrays for p in (path, second))
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(two[name]))
  assert {p.name for p in tmp_path.iterdir()} == {path.name, 'again'}


@pytest.mark.parametrize(('dialect', 'variant'), [
  ('big_vision', 'siglip:B/4'), ('big_vision-scan', 'siglip2:B/4'), ('transformers', 'clip:B/4'),
  ('transformers', 'siglip:B/4'), ('openai', 'clip:B/4'), ('vit_jax', 'siglip2-naflex:B/4'),
])  # fmt: skip
def test_round_trips_of_two_towers_are_exact(tmp_path, dialect, variant):
  model = towers(variant)
  path = place(tmp_path, dialect)
  vit_jax.save(model, path, dialect)
  heads = dict(image=dict(num_heads=3), text=dict(num_heads=3))
  again = vit_jax.load(path, **heads)
  assert_equal(model, again)
  x, tokens = jnp.ones((2, 16, 16, 3)), jnp.arange(16).reshape(2, 8)
  if dialect != 'openai':  # eot, and the kind of GELU
    np.testing.assert_allclose(again(x, tokens), model(x, tokens), rtol=1e-3)


def npz(path, arrays):
  files.write_npz(path, {k: np.asarray(v) for k, v in arrays.items()})
  return path


def base_arrays(tmp_path, dialect='big_vision', **config):
  config = {'posemb_tokens': 'patches', **config}  # the only ones that big_vision has
  path = tmp_path / f'base-{dialect}.npz'
  vit_jax.save(make(**config), path, dialect, overwrite=True)
  return {name: np.asarray(a) for name, a in files.read(path).items()}


@pytest.mark.parametrize('prefix', ['params/', 'opt/target/'])
def test_prefixes_of_big_vision(tmp_path, prefix):
  arrays = base_arrays(tmp_path)
  whole = {prefix + name: a for name, a in arrays.items()}
  rest = {'opt/state/step': np.int32(7), 'extra/accum': np.ones(3)}
  model = vit_jax.load(npz(tmp_path / 'model.npz', {**whole, **rest}))
  assert_equal(model, make(posemb_tokens='patches'))


def test_bfloat16_stored_as_void(tmp_path):
  model = make()
  vit_jax.save(model, tmp_path / 'model.npz', 'big_vision', dtype='bfloat16')
  with np.load(tmp_path / 'model.npz') as stored:
    assert stored['head/kernel'].dtype == np.dtype('V2')
  again = vit_jax.load(tmp_path / 'model.npz')
  want = model.head.kernel[...].astype(ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(again.head.kernel[...], want)
  vit_jax.save(again, tmp_path / 'again.npz', 'big_vision', dtype='bfloat16')
  first, second = (files.read(tmp_path / f'{n}.npz') for n in ('model', 'again'))
  for name in first:
    np.testing.assert_array_equal(np.asarray(first[name]), np.asarray(second[name]))


def test_class_row_of_positions_folded_or_not(tmp_path):
  whole = make(posemb_tokens='class')
  vit_jax.save(whole, tmp_path / 'whole.npz', 'vit')
  arrays = {n: np.asarray(a) for n, a in files.read(tmp_path / 'whole.npz').items()}
  table = arrays.pop('Transformer/posembed_input/pos_embedding')
  arrays = {'pos_embedding': table[:, 1:], **arrays, 'cls': arrays['cls'] + table[:, :1]}
  folded = vit_jax.load(npz(tmp_path / 'folded.npz', arrays))
  assert folded.config.posemb_tokens == 'patches'
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
  np.testing.assert_allclose(folded(x), whole(x), rtol=1e-4, atol=1e-5)
  # A dialect that needs the row gets one of zeros.
  vit_jax.save(folded, tmp_path / 'hf', 'transformers')
  np.testing.assert_allclose(vit_jax.load(tmp_path / 'hf')(x), whole(x), rtol=2e-2, atol=1e-3)


def test_map_head_that_is_no_module_of_its_own(tmp_path):
  arrays = base_arrays(tmp_path, pool='map', num_classes=0)
  inlined = {n.removeprefix('MAPHead_0/'): a for n, a in arrays.items()}
  model = vit_jax.load(npz(tmp_path / 'model.npz', inlined))
  assert_equal(model, make(pool='map', num_classes=0))


def test_naflex_npz(tmp_path):
  arrays = base_arrays(tmp_path, pool='map', num_classes=0)
  arrays['pos_embedding'] = arrays['pos_embedding'].reshape(4, 4, 24)
  arrays['embedding/kernel'] = arrays['embedding/kernel'].reshape(-1, 24)
  flat = {f'params/img/{n}': a for n, a in arrays.items()}
  model = vit_jax.load(npz(tmp_path / 'model.npz', flat), patch_size=4)
  assert_equal(model, make(pool='map', num_classes=0))


# --- changes ---


@pytest.fixture
def saved(tmp_path):
  vit_jax.save(make(), tmp_path / 'model.npz', 'vit')
  return tmp_path / 'model.npz'


def test_a_new_head(saved):
  model = vit_jax.load(saved, num_classes=9)
  assert model.head.kernel.shape == (24, 9)
  assert not np.asarray(model.head.kernel[...]).any()
  assert not hasattr(vit_jax.load(saved, num_classes=0), 'head')


@pytest.mark.parametrize('method', ['corner', 'bilinear', 'bicubic', 'bicubic_aa'])
def test_positions_for_other_sizes(saved, method):
  model = vit_jax.load(saved, image_size=(24, 32), interpolation=method)
  old = make().posemb[...]
  want = positions.resample(old[0, 1:].reshape(4, 4, 24), (6, 8), method).reshape(1, 48, 24)
  np.testing.assert_array_equal(model.posemb[:, :1], old[:, :1])
  np.testing.assert_allclose(model.posemb[:, 1:], want, rtol=1e-6)
  assert (model.config.image_size, model.card.size) == ((24, 32), (24, 32))


def test_the_original_resamples_corner_to_corner(saved):
  assert vit_jax.load(saved).config.interpolation == 'corner'


def test_other_patches_keep_the_grid(saved):
  model = vit_jax.load(saved, patch_size=8)
  assert model.config.image_size == (32, 32)
  assert model.embed.proj.kernel.shape == (8, 8, 3, 24)
  np.testing.assert_array_equal(model.posemb[...], make().posemb[...])


def test_grey_images_give_what_they_gave_in_colour(saved):
  grey = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 1)), jnp.float32)
  model = vit_jax.load(saved, in_channels=1)
  want = vit_jax.load(saved)(jnp.repeat(grey, 3, -1))
  np.testing.assert_allclose(model(grey), want, rtol=1e-4, atol=1e-5)
  assert model.card.mean == (0.5,)
  six = vit_jax.load(saved, in_channels=6)
  np.testing.assert_allclose(six(jnp.repeat(grey, 6, -1)), want, rtol=1e-4, atol=1e-5)
  assert len(six.card.std) == 6


def test_relative_positions_for_other_sizes(tmp_path):
  model = make('beit:B/4')
  vit_jax.save(model, tmp_path / 'model', 'transformers')
  larger = vit_jax.load(tmp_path / 'model', image_size=(24, 24))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 24, 3)), jnp.float32)
  np.testing.assert_allclose(larger(x), model(x), rtol=1e-4, atol=1e-5)


def test_runtime_fields(saved):
  model = vit_jax.load(saved, dtype='bfloat16', remat='full', scan=False)
  assert (model.config.dtype, model.config.remat, model.config.scan) == ('bfloat16', 'full', False)
  assert np.isfinite(model(jnp.ones((1, 16, 16, 3)))).all()
  assert vit_jax.load(saved, image_size=24).config.image_size == (24, 24)
  for size in ('24', '24,24', '(24, 24)', '24x24', [24, 24], (np.int64(24), 24)):
    assert vit_jax.load(saved, image_size=size).config.image_size == (24, 24)
  for change in (dict(image_size='wide'), dict(image_size=(24,)), dict(image_size=(24.0, 24.0)),
                 dict(image_size='24,'), dict(image_size=0), dict(image_size=True),
                 dict(image_size='24,24,24'),
                 dict(patch_size='4'), dict(num_classes=2.5), dict(num_classes=True),
                 dict(in_channels=None), dict(patch_method='zz'), dict(eps=-1.0)):  # fmt: skip
    refused(saved, '', **change)
  with pytest.raises(RunError, match=r"unknown field 'num_class'.*did you mean num_classes"):
    vit_jax.load(saved, num_class=3)


def test_runs_take_changes_too(tmp_path):
  vit_jax.save(make(), tmp_path / 'run', 'vit_jax')
  model = vit_jax.load(tmp_path / 'run', dtype='bfloat16', eps=1e-3, num_classes=2)
  assert (model.config.dtype, model.config.eps, model.config.num_classes) == ('bfloat16', 1e-3, 2)
  refused(tmp_path / 'run', 'misshapen', num_heads=4)


def test_a_process_reads_no_more_than_its_share(tmp_path):
  """Of a model that is cut over 16 processes: its parts, and one array of the file at a time."""
  model = vit_jax.create('mu/8', image_size=(16, 16), width=256, depth=12, mlp_dim=1024,
                         num_heads=4)  # fmt: skip
  vit_jax.save(model, tmp_path / 'timm', 'timm')
  opened = read.open_checkpoint(tmp_path / 'timm', num_heads=4)
  name, arrays = 'encoder/blocks/mlp/up/kernel', dict(opened.arrays)
  shape = opened.leaves()[name].shape
  part = (slice(0, 12), slice(0, 256), slice(64, 128))
  wanted = jax.ShapeDtypeStruct(shape, np.dtype('bfloat16'))
  tracemalloc.start()
  (block,) = opened._blocks(
    name, wanted, opened._pieces[name], arrays, [sharding.bounds(part, shape)]
  ).values()
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  np.testing.assert_array_equal(
    block, np.asarray(model.encoder.blocks.mlp.up.kernel)[part].astype('bfloat16')
  )
  one = 4 * 256 * 1024
  assert block.nbytes == 2 * 12 * 256 * 64
  assert peak < block.nbytes + 3 * one < 12 * one / 2


def test_what_is_asked_of_sizes_together(tmp_path):
  """Patches alone keep the grid; with the same images they do not."""
  model = vit_jax.create('mu/4', image_size=(8, 8), in_channels=1)
  vit_jax.save(model, tmp_path / 'model.npz', 'vit')
  both = vit_jax.load(tmp_path / 'model.npz', patch_size=8, image_size=8).config
  assert (both.image_size, both.grid) == ((8, 8), (1, 1))
  alone = vit_jax.load(tmp_path / 'model.npz', patch_size=8).config
  assert (alone.image_size, alone.grid) == ((16, 16), (2, 2))


def test_numbers_that_are_too_large_for_their_type_are_refused(tmp_path):
  model = vit_jax.create('mu/4', image_size=(8, 8))
  vit_jax.save(model, tmp_path / 'model.npz', 'vit')
  arrays = dict(np.load(tmp_path / 'model.npz'))
  name = next(name for name in arrays if name.endswith('scale'))
  arrays[name] = np.full(arrays[name].shape, 1e300)
  np.savez(tmp_path / 'large.npz', **arrays)
  refused(tmp_path / 'large.npz', 'values that are not finite', num_heads=2)


def test_towers_of_runs_are_written_as_towers(tmp_path):
  """Their configurations are those of `architecture`."""
  small = dict(width=16, depth=1, num_heads=2, mlp_dim=32)
  config = TwoTowersArchitecture(
    'clip:B/16', ViTArchitecture('clip:B/16', image_size=(32, 32), **small),
    TextArchitecture('clip:B', vocab_size=20, context_length=4, **small),
  ).resolve()  # fmt: skip
  model = models.create(config, nnx.Rngs(0))
  for dialect in ('openai', 'transformers', 'vit_jax'):
    vit_jax.save(model, tmp_path / dialect, dialect)
    assert vit_jax.load(tmp_path / dialect).config.text.width == 16
  with pytest.raises(RunError, match=r'image projects to 512 features.* cannot be 3'):
    vit_jax.load(tmp_path / 'vit_jax', image=dict(num_classes=3))


def test_fields_go_to_the_right_tower(tmp_path, saved):
  vit_jax.save(towers(), tmp_path / 'two.npz', 'big_vision')
  refused(tmp_path / 'two.npz', 'has the towers image, text: give image=', dtype='bfloat16')
  refused(tmp_path / 'two.npz', 'unknown field text.bogus', text=dict(bogus=3))
  refused(saved, 'has one tower', image=dict(mlp='gelu'))
  model = vit_jax.load(tmp_path / 'two.npz', image=dict(image_size=(24, 24)))
  assert model.image.posemb.shape == (1, 36, 24)


def test_fresh_towers_have_directions():
  for variant in ('clip:B/4', 'siglip:B/4'):
    config = TwoTowersConfig(
      variant, ViTConfig(variant, **SIZES),
      TextConfig('', width=24, depth=2, mlp_dim=40, num_heads=3, vocab_size=30, context_length=8),
    )  # fmt: skip
    model = jax.jit(lambda key, config=config: config.create(nnx.Rngs(key)))(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    assert np.isfinite(model(x, jnp.arange(16).reshape(2, 8))).all()


def test_loading_onto_a_mesh(saved, mesh):
  want = vit_jax.load(saved)
  with mesh(2, 2, 1):
    model = vit_jax.load(saved)
    kernel = model.encoder.blocks.mlp.up.kernel[...]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, 'fsdp', 'tensor')
    assert_equal(want, model)


# --- damage ---


def refused(path, message, **hints):
  with pytest.raises(RunError, match=message or '.'):
    vit_jax.load(path, **hints)


def test_missing_unexpected_and_misshapen_names_are_tabled(saved, tmp_path):
  arrays = {n: np.asarray(a) for n, a in files.read(saved).items()}
  arrays['Transformer/encoder_nrm/scale'] = arrays.pop('Transformer/encoder_norm/scale')
  arrays['head/bias'] = arrays['head/bias'][:4]
  path = npz(tmp_path / 'bad.npz', arrays)
  with pytest.raises(RunError) as error:
    vit_jax.load(path)
  text = str(error.value)
  assert (
    'missing     Transformer/encoder_norm/scale (24,); nearest: Transformer/encoder_nrm' in text
  )
  assert 'misshapen   head/bias: (4,), expected (5,)' in text
  assert 'unexpected  Transformer/encoder_nrm/scale (24,)' in text
  arrays['Transformer/encoder_norm/scale'] = arrays['Transformer/encoder_nrm/scale']
  arrays['head/bias'] = np.zeros(5, np.float32)
  path = npz(tmp_path / 'extra.npz', arrays)
  refused(path, 'unexpected  Transformer/encoder_nrm')
  assert vit_jax.load(path, ignore='.*encoder_nrm.*').config.width == 24


def test_not_finite(saved, tmp_path):
  arrays = {n: np.asarray(a) for n, a in files.read(saved).items()}
  arrays['cls'][0, 0, 3] = np.nan
  refused(npz(tmp_path / 'nan.npz', arrays), 'token has values that are not finite')
  arrays['cls'] = np.zeros((1, 1, 24), np.int32)
  refused(npz(tmp_path / 'int.npz', arrays), 'token holds int32')


def test_unknown_dialects(tmp_path):
  refused(tmp_path / 'nowhere.npz', 'there is no file')
  refused(tmp_path, 'neither a run of vit_jax nor any of')
  refused(npz(tmp_path / 'other.npz', {'w': np.ones(3)}), 'no known dialect.*begin with w')
  (tmp_path / 'text.npz').write_text('hello, world')
  refused(tmp_path / 'text.npz', 'neither npz nor safetensors')
  (tmp_path / 'empty.safetensors').touch()
  refused(tmp_path / 'empty.safetensors', 'is damaged')


def test_pickles_are_never_opened(tmp_path):
  class Trap:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / 'sprung',)

  np.savez(tmp_path / 'objects.npz', x=np.array([Trap()], dtype=object))
  refused(tmp_path / 'objects.npz', 'holds Python objects')
  (tmp_path / 'old.bin').write_bytes(pickle.dumps(Trap()))
  refused(tmp_path / 'old.bin', 'save it again with a current torch.save')
  with zipfile.ZipFile(tmp_path / 'torch.pt', 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({'w': Trap()}))
  refused(tmp_path / 'torch.pt', 'holds no tensors')
  assert not (tmp_path / 'sprung').exists()


def test_files_of_torch_without_torch():
  """Written by torch.save and torch.jit.save; see tests/golden."""
  from tests import golden

  want = np.float32(np.random.RandomState(0).standard_normal((3, 4)))
  for name in ('plain.pt', 'traced.pt'):
    arrays = files.read(golden.FOLDER / name)
    np.testing.assert_array_equal(np.asarray(arrays['layer.weight']), want)
    assert arrays['layer.bias'].shape == (3,)
  half = files.read(golden.FOLDER / 'plain.pt')['half']
  np.testing.assert_array_equal(np.asarray(half, np.float32), want.T[1:].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
  'data',
  [b'\x80\x02}r\x04\x00\x00\x40.',
   pickle.dumps(functools.reduce(lambda d, _: {'a': d, 'b': d}, range(60), {'c': 1}))],
  ids=['an index of a billion', 'shared dicts'],
)  # fmt: skip
def test_pickles_that_would_take_forever(tmp_path, data):
  with zipfile.ZipFile(tmp_path / 'torch.pt', 'w') as archive:
    archive.writestr('archive/data.pkl', data)
  refused(tmp_path / 'torch.pt', 'is damaged|holds no tensors')


def mutations(data, rng, count):
  """Truncated files, and files in which some bytes are others."""
  for _ in range(count):
    if rng.random() < 0.3:
      yield data[: rng.integers(len(data))]
    else:
      changed = bytearray(data)
      for _ in range(rng.integers(1, 4)):
        # Headers and directories are at the beginning and at the end.
        at = rng.choice([rng.integers(len(data)), rng.integers(400), -1 - rng.integers(400)])
        changed[at % len(data)] = rng.integers(256)
      yield bytes(changed)


@pytest.mark.parametrize('kind', ['npz', 'zipped', 'safetensors', 'pt'])
def test_damaged_files_are_refused_or_read_right(tmp_path, kind):
  """Any damage gives a clear error, or touches nothing that is read."""
  from tests import golden

  rng = np.random.default_rng(0)
  path = tmp_path / f'model.{kind}'
  if kind == 'pt':
    path.write_bytes((golden.FOLDER / 'plain.pt').read_bytes())
  elif kind == 'zipped':
    np.savez_compressed(path.with_suffix('.npz'), **{'a/b': np.arange(12.0), 'c': np.ones(500)})
    path = path.with_suffix('.npz')
  elif kind == 'npz':
    npz(path, {'a/b': np.arange(12.0).reshape(3, 4), 'c': np.ones(5, np.float32)})
  else:
    save_file({'a': np.arange(12.0).reshape(3, 4), 'c': np.ones(5, np.float32)}, path)
  good = {n: np.asarray(a) for n, a in files.read(path).items()}
  data, refusals = path.read_bytes(), 0
  for changed in mutations(data, rng, 300):
    path.write_bytes(changed)
    try:
      found = {n: np.asarray(a) for n, a in files.read(path).items()}
    except RunError:
      refusals += 1
      continue
    if kind != 'safetensors':  # which has no checksums
      for name, array in found.items():
        if name in good:
          np.testing.assert_array_equal(array, good[name])
  assert refusals > 100


def test_safetensors_with_offsets_beyond_the_file(tmp_path):
  header = json.dumps({'a': {'dtype': 'F32', 'shape': [1000], 'data_offsets': [0, 4000]}}).encode()
  path = tmp_path / 'model.safetensors'
  path.write_bytes(struct.pack('<Q', len(header)) + header + b'\0' * 8)
  refused(path, 'is damaged')
  path.write_bytes(struct.pack('<Q', 1 << 60) + header)
  refused(path, 'is damaged')


@pytest.fixture
def hub(tmp_path):
  vit_jax.save(make(mlp='gelu'), tmp_path / 'hub', 'transformers')
  return tmp_path / 'hub'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(hidden_size=48), 'config.json says hidden_size=48, but the weights have 24'),
    (dict(num_hidden_layers=3), 'says num_hidden_layers=3, but the weights have 2'),
    (dict(patch_size=8), 'says patch_size=8'),
    (dict(intermediate_size=41), 'says intermediate_size=41'),
    (dict(num_attention_heads=5), 'num_heads=5 does not divide'),
    (dict(num_attention_heads='many'), "num_heads is 'many'"),
    (dict(model_type='vitt'), 'unknown model_type .*did you mean vit'),
    (dict(hidden_act='mish'), "hidden_act='mish' is not supported"),
    (dict(layer_norm_eps='tiny'), 'eps must be of type float'),
    (dict(layer_norm_eps=-1.0), 'must be positive'),
    (dict(num_attention_heads=0), 'num_heads is 0'),
    (dict(model_type=['vit']), 'is inconsistent'),
  ],
)
def test_a_configuration_that_contradicts_its_weights(hub, change, message):
  config = json.loads((hub / 'config.json').read_text())
  (hub / 'config.json').write_text(json.dumps({**config, **change}))
  refused(hub, message)


@pytest.mark.parametrize(
  ('change', 'message'),
  [(dict(image_std=[0, 0, 0]), 'normalisation'), (dict(image_mean='x'), 'must be numbers'),
   (dict(size=-1), 'cannot be prepared'), (dict(size=10**9), 'cannot be prepared'),
   (dict(image_std=[1, 2]), 'normalisation')],
)  # fmt: skip
def test_preprocessing_that_makes_no_sense(hub, change, message):
  path = hub / 'preprocessor_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
  refused(hub, message)


def test_what_names_of_parameters_do_not_show(tmp_path):
  """Architectures of timm and activations of transformers that would be read wrongly."""
  vit_jax.save(make(mlp='gelu'), tmp_path / 'timm', 'timm')
  config = json.loads((tmp_path / 'timm' / 'config.json').read_text())
  for change in (dict(architecture='vit_base_patch16_rpn_224'),
                 dict(model_args={'use_post_norm': True})):  # fmt: skip
    (tmp_path / 'timm' / 'config.json').write_text(json.dumps({**config, **change}))
    refused(tmp_path / 'timm', 'is not supported')
  vit_jax.save(make('dinov3:S+/4', num_classes=0), tmp_path / 'dinov3', 'transformers')
  config = json.loads((tmp_path / 'dinov3' / 'config.json').read_text())
  (tmp_path / 'dinov3' / 'config.json').write_text(json.dumps({**config, 'hidden_act': 'gelu'}))
  refused(tmp_path / 'dinov3', 'a gated MLP with .gelu. is not supported')


def test_a_configuration_that_is_none(hub):
  (hub / 'config.json').write_text('{"hidden_size": ')
  refused(hub, 'is not JSON')
  (hub / 'config.json').write_text('[' * 100_000)
  refused(hub, 'is not JSON')
  (hub / 'config.json').write_text('[1]')
  refused(hub, 'not contain a JSON object')


def test_sharded_safetensors(hub):
  arrays = load_file(hub / 'model.safetensors')
  (hub / 'model.safetensors').unlink()
  names = sorted(arrays)
  parts = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  for part, inside in parts.items():
    save_file({n: arrays[n] for n in inside}, hub / part)
  index = {'weight_map': {n: part for part, inside in parts.items() for n in inside}}
  (hub / 'model.safetensors.index.json').write_text(json.dumps(index))
  assert_equal(vit_jax.load(hub), make(mlp='gelu'))
  index['weight_map']['classifier.bias'] = '../elsewhere.safetensors'
  (hub / 'model.safetensors.index.json').write_text(json.dumps(index))
  refused(hub, 'is not an index of a checkpoint')


def test_a_damaged_run(tmp_path):
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  refused(tmp_path / 'run', 'holds no finished checkpoint')
  vit_jax.save(make(), tmp_path / 'saved', 'vit_jax')
  for file in (tmp_path / 'saved').rglob('*'):
    if file.is_file() and file.stat().st_size > 200:
      file.write_bytes(file.read_bytes()[:50])
  refused(tmp_path / 'saved', 'damaged|older version')


# --- writing ---


@pytest.mark.parametrize(
  ('dialect', 'config', 'message'),
  [
    (
      'vit',
      dict(qk_norm=True),
      r'qk_norm=True.*\. Dialects that can hold this model: timm, vit_jax$',
    ),
    ('big_vision', dict(registers=2), 'cannot express registers=2'),
    ('transformers', dict(parallel=True, mlp='gelu'), 'parallel'),
    ('timm', dict(pool='token_mean'), 'token_mean'),
    ('timm', dict(norm_place='post'), 'norm_place'),
    ('transformers', dict(mlp='gelu', pool='mean', rope='unit'), 'cannot express'),
    (
      'transformers',
      dict(pool='map'),
      'num_classes=5.*: big_vision, big_vision-scan, timm, vit_jax$',
    ),
    ('big_vision', dict(mlp='gelu'), "cannot express mlp='gelu'.*: timm, transformers"),
    ('vitt', {}, 'did you mean vit'),
  ],
)
def test_what_a_dialect_cannot_say_is_refused_and_leaves_nothing(
  tmp_path, dialect, config, message
):
  path = place(tmp_path, dialect) if dialect in DIALECTS else tmp_path / 'model.npz'
  with pytest.raises(RunError, match=message):
    vit_jax.save(make(**config), path, dialect)
  assert not list(tmp_path.iterdir())


def test_targets_appear_whole_or_not_at_all(tmp_path, monkeypatch):
  model = make()
  path = tmp_path / 'model.npz'
  vit_jax.save(model, path, 'vit')
  before = path.read_bytes()
  with pytest.raises(RunError, match='already exists'):
    vit_jax.save(model, path, 'vit')
  with pytest.raises(RunError, match=r'a file that ends in \.npz'):
    vit_jax.save(model, tmp_path / 'model', 'vit')

  def full(place, arrays):
    place.write_bytes(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(files, 'write_npz', full)
  with pytest.raises(RunError, match='No space left'):
    vit_jax.save(model, path, 'vit', overwrite=True)
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['model.npz']


# --- what the commands show ---


def test_inspect(saved, capsys):
  with pytest.raises(RunError, match='inspect shows what is in it'):
    inspect.main(str(saved), names=True, choice={'num_classes': 3})
  assert inspect.main(str(saved), names=True, choice={}) == 0
  out = capsys.readouterr().out
  array = 'Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel  (24, 40)  float32'
  for line in (
    'dialect       vit',
    'num_heads 3',
    'interpolation corner',
    'everything fits',
    array,
  ):
    assert line in out
  arrays = {n: np.asarray(a) for n, a in files.read(saved).items()}
  arrays['Transformer/encoder_norm/bais'] = arrays.pop('Transformer/encoder_norm/bias')
  path = npz(saved.parent / 'less.npz', arrays)
  assert inspect.main(str(path), names=False, choice={}) == 1
  assert 'unexpected  Transformer/encoder_norm/bais' in capsys.readouterr().out


def test_inspect_knows_variants_and_towers(tmp_path, capsys):
  config = ViTConfig('deit:Ti/16', depth=12, num_classes=10).resolve()
  vit_jax.save(read.build(config, _zeros(config), None), tmp_path / 'deit', 'timm')
  inspect.main(str(tmp_path / 'deit'), names=False, choice={})
  assert 'variant deit:Ti/16' in capsys.readouterr().out
  vit_jax.save(towers(), tmp_path / 'siglip.npz', 'big_vision')
  inspect.main(str(tmp_path / 'siglip.npz'), names=False, choice={})
  out = capsys.readouterr().out
  assert 'image  pool map' in out
  assert 'text   vocab_size 30' in out


# --- AugReg ---


def test_names_of_augreg():
  name = (
    'R26_S_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.03-do_0.1-sd_0.1'
    '--imagenet2012-steps_20k-lr_0.03-res_384.npz'
  )
  assert augreg.parse(f'somewhere/{name}') == augreg.Recipe(
    'R26+S/32', 'i21k', 300, 0.001, 'medium2', 0.03, 0.1, 0.1, 'imagenet2012', 20_000, 0.03, 384
  )
  plain = augreg.parse('B_16-i21k_30-30ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0.npz')
  assert (plain.variant, plain.dataset, plain.adapt, plain.resolution) == (
    'B/16',
    'i21k_30',
    '',
    224,
  )
  assert augreg.parse('B_16.npz') is None


def test_catalogue_of_augreg(tmp_path):
  index = tmp_path / 'index.csv'
  index.write_text(
    'name,ds,lr,final_val,filename\nB/16,i21k,0.001,0.41,worse\nB/16,i21k,0.003,0.47,better\n'
    'B/16,i1k,0.001,0.8,other\nS/16,i21k,0.001,0.4,small\n'
  )
  rows = augreg.catalogue(index)
  assert rows[1]['lr'] == 0.003
  assert augreg.recommended(rows, 'B/16') == 'better'
  with pytest.raises(RunError, match='did you mean B/16'):
    augreg.recommended(rows, 'B/18')
  index.write_text('a,b\n1,2\n')
  with pytest.raises(RunError, match="is not AugReg's index"):
    augreg.catalogue(index)


def test_rules_write_what_they_read():
  """The one place where a mistake would hide in both directions: against plain NumPy."""
  shapes = {f'encoder/blocks/attn/{n}/kernel': (2, 6, 3, 4) for n in ('query', 'key', 'value')}
  table = {'encoder/blocks/attn/query|key|value/kernel': 'blocks.{}.qkv'}
  rules = layout.rules(table, shapes, torch=True, interleaved=True)
  rng = np.random.default_rng(0)
  leaves = {name: rng.normal(size=shape) for name, shape in shapes.items()}
  written = layout.write(rules, leaves)['blocks.1.qkv']
  x = rng.normal(size=6)
  q, k, v = (np.einsum('d,dhk->hk', x, leaf[1]) for leaf in leaves.values())
  theirs_q, theirs_k, theirs_v = (written @ x).reshape(3, 3, 4)
  np.testing.assert_allclose(theirs_v, v)
  for theirs, ours in ((theirs_q, q), (theirs_k, k)):
    np.testing.assert_allclose(theirs[:, 0::2], ours[:, :2])
    np.testing.assert_allclose(theirs[:, 1::2], ours[:, 2:])


def test_cards_survive_json():
  card = Card('vit', (3, 4), (0.1,), (0.2,), 'area', 0.5, ('a', 'b'))
  assert Card.from_dict(json.loads(json.dumps(dataclasses.asdict(card)))) == card
