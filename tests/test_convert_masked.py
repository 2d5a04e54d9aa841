"""Checkpoints of masked image modelling, without the programs that they are of."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from tests import torch_files
from tests.test_convert import assert_equal, place, refused, shaken
from vit_jax.architecture import ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import __main__ as convert
from vit_jax.convert import adapt, forms, read
from vit_jax.core.errors import RunError
from vit_jax.models.masked import MaeConfig, MaskedConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.training import initial

SIZES = dict(width=24, depth=2, mlp_dim=48, num_heads=3, image_size=(16, 16), patch_size=4,
             mlp='gelu')  # fmt: skip
PLAIN = ViTConfig('', **SIZES)
FIXED = dataclasses.replace(PLAIN, posemb='sincos_mae')
DECODER = ViTConfig('', width=16, depth=1, num_heads=2, mlp_dim=32)
MAE = MaeConfig(FIXED, 48, DECODER)
LEARNED = MaeConfig(
  PLAIN, 48, dataclasses.replace(DECODER, posemb='learned', posemb_tokens='patches')
)  # fmt: skip
BEIT = ViTConfig('beit:B/4', **SIZES)


@functools.cache
def make(config, card=None):
  """A model in which nothing is zero."""
  config = config.resolve()
  zeros = {name: np.zeros(shape, np.float32) for name, shape in adapt.abstract(config).items()}
  model = shaken(read.build(config, zeros, None))
  model.card = card
  return model


@pytest.fixture(scope='module')
def model():
  return make(MAE)


@pytest.fixture
def said(caplog):
  caplog.set_level(logging.WARNING, 'vit_jax')
  return lambda: ' | '.join(r.getMessage() for r in caplog.records if 'convert' in r.name)


def table(grid, width):
  """As in the code of MAE, restated: rows of zeros, and sines and cosines of columns, then rows."""
  omega = 10_000.0 ** -(np.arange(width // 4) / (width / 4))
  rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing='ij')
  parts = [f(at.ravel()[:, None] * omega) for at in (columns, rows) for f in (np.sin, np.cos)]
  return np.pad(np.concatenate(parts, 1), ((1, 0), (0, 0)))[None].astype(np.float32)


# --- round trips ---


def written_and_read(tmp_path, dialect, config):
  """A model and what is read of its file, which has all of it and is written again as it was."""
  model, path, second = make(config), place(tmp_path, dialect), place(tmp_path / 'again', dialect)
  vit_jax.save(model, path, dialect)
  again = vit_jax.load(path)
  assert again.config.kind == config.kind
  assert_equal(model, again)
  vit_jax.save(again, second, dialect)
  if dialect != 'vit_jax':
    one, two = (load_file(p / 'model.safetensors' if p.is_dir() else p) for p in (path, second))
    assert one.keys() == two.keys()
    for name, array in one.items():
      np.testing.assert_array_equal(array, two[name])
  return model, again


HOLDS = [
  ('mae', MAE), ('mae', LEARNED), ('transformers', MAE), ('transformers-v5', LEARNED),
  ('transformers', MaeConfig(
    dataclasses.replace(FIXED, no_bias='query,key,value', eps=1e-12), 48,
    dataclasses.replace(DECODER, no_bias='query,key,value', eps=1e-12),
  )),
  ('transformers', MaskedConfig(PLAIN, 48)),
  ('transformers-v5', MaskedConfig(dataclasses.replace(PLAIN, in_channels=1), 16)),
  ('transformers', MaskedConfig(dataclasses.replace(PLAIN, distilled=True), 48)),
  ('transformers', MaskedConfig(BEIT, 7)),
  ('transformers-v5', MaskedConfig(dataclasses.replace(BEIT, relative_bias='shared'), 512)),
  ('vit_jax', MAE),
]  # fmt: skip


@pytest.mark.parametrize(('dialect', 'config'), HOLDS,
                         ids=[f'{d}-{i}' for i, (d, _) in enumerate(HOLDS)])  # fmt: skip
def test_round_trips_are_exact(tmp_path, dialect, config):
  model, again = written_and_read(tmp_path, dialect, config)
  assert again.config.outputs == config.outputs
  for name, tower in model.config.towers.items():
    found = forms.signature(again.config.towers[name])
    assert {**found, 'pool': tower.pool} == forms.signature(tower)  # of what is not pooled


def test_names_and_positions_of_mae(tmp_path, model):
  """What our decoder adds to the class token is the first row of theirs."""
  path = tmp_path / 'mae.safetensors'
  vit_jax.save(model, path, 'mae')
  arrays = load_file(path)
  block = ('norm1.{}', 'attn.qkv.{}', 'attn.proj.{}', 'norm2.{}', 'mlp.fc1.{}', 'mlp.fc2.{}')
  both = ('weight', 'bias')
  assert set(arrays) == {
    'cls_token', 'pos_embed', 'mask_token', 'decoder_pos_embed',
    *(f'{at}.{kind}' for at in ('patch_embed.proj', 'norm', 'decoder_embed', 'decoder_norm',
                                'decoder_pred') for kind in both),
    *(f'{at}.{part.format(kind)}' for at in ('blocks.0', 'blocks.1', 'decoder_blocks.0')
      for part in block for kind in both),
  }  # fmt: skip
  np.testing.assert_allclose(arrays['pos_embed'], table(4, 24), atol=1e-6)
  own = table(4, 16)
  own[0, 0] = model.decoder.token[0, 0]
  assert np.abs(own[0, 0]).max() > 0.05
  np.testing.assert_allclose(arrays['decoder_pos_embed'], own, atol=1e-6)
  np.testing.assert_array_equal(arrays['decoder_embed.weight'],
                                model.decoder.embed.proj.kernel[0, 0].T)  # fmt: skip


def test_pixels_of_simmim_are_channels_first(tmp_path):
  """Of a 1x1 convolution and PixelShuffle; ours are row, column, channel."""
  model = make(MaskedConfig(PLAIN, 48))
  vit_jax.save(model, tmp_path / 'simmim', 'transformers')
  arrays = load_file(tmp_path / 'simmim' / 'model.safetensors')
  weight, bias = arrays['decoder.0.weight'], arrays['decoder.0.bias']
  assert weight.shape == (48, 24, 1, 1)
  for row, column, channel in ((0, 0, 0), (1, 3, 2), (3, 2, 1)):
    ours, theirs = (row * 4 + column) * 3 + channel, channel * 16 + row * 4 + column
    np.testing.assert_array_equal(weight[theirs, :, 0, 0], model.head.kernel[:, ours])
    np.testing.assert_array_equal(bias[theirs], model.head.bias[ours])


def test_every_form_says_the_same(tmp_path, model):
  """Positions with a row for the class token, a bias that is missing, another pooling."""
  decoder = dataclasses.replace(DECODER, posemb='learned', posemb_tokens='class')
  encoder = dataclasses.replace(FIXED, no_bias='query', pool='mean', class_token=True)
  other = make(MaeConfig(encoder, 48, decoder))
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
  hidden = np.arange(16) % 4 != np.array([[1], [2]])
  run = jax.jit(lambda model: model(jnp.asarray(images), jnp.asarray(hidden), visible=4))
  want = run(other)
  for dialect in ('mae', 'transformers'):
    path = place(tmp_path, dialect)
    vit_jax.save(other, path, dialect)
    again = vit_jax.load(path)
    assert again.config.decoder.posemb_tokens == 'patches'
    np.testing.assert_allclose(run(again), want, atol=1e-5)
  assert np.abs(want).max() > 0.1


# --- positions ---


def written(model, tmp_path, **changed):
  """Meta's file, below 'model' as published, with some arrays changed."""
  vit_jax.save(model, tmp_path / 'm.safetensors', 'mae', overwrite=True)
  state = {**load_file(tmp_path / 'm.safetensors'), **changed}
  return torch_files.write(tmp_path / 'mae.pth', {'model': state, 'epoch': 799})


HEADS = dict(encoder=dict(num_heads=3), decoder=dict(num_heads=2))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_fixed_positions_are_computed(tmp_path, model, dtype):
  path = tmp_path / 'mae.safetensors'
  vit_jax.save(model, path, 'mae', dtype=dtype)
  again = vit_jax.load(path)
  assert [tower.posemb for tower in again.config.towers.values()] == ['sincos_mae'] * 2
  assert not hasattr(again.encoder, 'posemb')
  assert_equal(vit_jax.load(tmp_path / 'mae.safetensors'), again)


@pytest.mark.parametrize('at', [(0, 0, 3), (0, 9, 20)])
def test_other_positions_are_read_as_they_are(tmp_path, model, at):
  """Nothing is replaced silently, not even a row of the class token."""
  changed = table(4, 24)
  changed[at] += 1e-3
  path = written(model, tmp_path, pos_embed=changed)
  again = vit_jax.load(path, **HEADS)
  assert again.config.encoder.posemb == 'learned'
  assert again.config.decoder.posemb == 'sincos_mae'
  np.testing.assert_array_equal(again.encoder.posemb[...], changed)
  changed = table(4, 16)
  changed[0, 5, 5] -= 1e-3
  again = vit_jax.load(written(model, tmp_path, decoder_pos_embed=changed), **HEADS)
  np.testing.assert_array_equal(again.decoder.posemb[...], changed[:, 1:])
  np.testing.assert_array_equal(again.decoder.token[...], changed[:, :1])
  # Other sizes resample them, in the decoder as well.
  again = vit_jax.load(tmp_path / 'mae.pth', **{
    **HEADS, 'encoder': dict(num_heads=3, image_size=24)
  })  # fmt: skip
  assert again.decoder.posemb.shape == (1, 36, 16)
  assert again.config.decoder.grid == (6, 6)


def test_fixed_positions_can_be_read_as_a_table(tmp_path, model, said):
  path = written(model, tmp_path)
  encoder = vit_jax.load(path, tower='encoder', num_heads=3, posemb='learned',
                         decoder=dict(num_heads=2))  # fmt: skip
  np.testing.assert_allclose(encoder.posemb[...], table(4, 24), atol=1e-6)
  decoder = vit_jax.load(path, **{**HEADS, 'decoder': dict(num_heads=2, posemb='learned')}).decoder
  np.testing.assert_allclose(decoder.posemb[...], table(4, 16)[:, 1:], atol=1e-6)
  np.testing.assert_array_equal(decoder.token[...], model.decoder.token[...])
  refused(path, 'unexpected  pos_embed', encoder=dict(num_heads=3, posemb='none'),
          decoder=dict(num_heads=2))  # fmt: skip
  assert 'posemb=learned' not in said()


# --- which model ---


def test_published_files_of_mae(tmp_path, model, said):
  """Encoders alone, and whole models, of which those to look at predict plain pixels."""
  path = written(model, tmp_path)
  again = vit_jax.load(path, **HEADS)
  assert_equal(again, model)
  assert (again.card.dialect, again.card.mean) == ('mae', (0.485, 0.456, 0.406))
  assert again.card.task['target'] == 'normalized'
  assert 'guessing normalized pixels' in said()
  seen = path.rename(tmp_path / 'mae_visualize_vit_base.pth')
  assert vit_jax.load(seen, **HEADS).card.task['target'] == 'pixels'
  refused(seen, 'does not say how many heads its encoder has: give num_heads')
  refused(seen, 'how many heads its decoder has', encoder=dict(num_heads=3))
  state = load_file(tmp_path / 'm.safetensors')
  encoder = {n: a for n, a in state.items() if 'decoder' not in n and n != 'mask_token'}
  path = torch_files.write(tmp_path / 'mae_pretrain_vit_base.pth', {'model': encoder})
  alone = vit_jax.load(path, num_heads=3)
  assert alone.config.kind == 'vit'
  assert alone.config.posemb == 'sincos_mae'
  assert_equal(alone, model.encoder)
  assert 'pos_embed holds the fixed positions of MAE' in said()
  # The same encoder out of the whole; for a run, too.
  whole = tmp_path / 'm.safetensors'
  assert_equal(vit_jax.load(whole, tower='encoder'), model.encoder)
  start = initial.Start(str(whole), ViTArchitecture(''))
  assert start.notes == [f"init: of {whole} the tower 'encoder' is read"]
  assert start.model.posemb == 'sincos_mae'


def test_heads_of_the_published_decoder(tmp_path):
  """512 features in 16 heads, as no other model has them."""
  small = dict(mlp_dim=384, depth=1)
  config = MaeConfig(dataclasses.replace(FIXED, width=64, num_heads=1), 48, ViTConfig('', **small))
  vit_jax.save(make(config), tmp_path / 'm.safetensors', 'mae')
  save_file(load_file(tmp_path / 'm.safetensors'), tmp_path / 'bare.safetensors')
  opened = read.open_checkpoint(tmp_path / 'bare.safetensors')
  assert [tower.num_heads for tower in opened.config.towers.values()] == [1, 16]


def test_what_was_predicted_is_known_again(tmp_path, said):
  task = dict(name='masked', target='normalized', ratio=0.5, loss_of='l2', unit=8)
  model = make(MAE, Card('vit_jax', (16, 16), task=task))
  for dialect, ratio in (('mae', 0.75), ('transformers', 0.5)):
    path = place(tmp_path, dialect)
    vit_jax.save(model, path, dialect)
    found = vit_jax.load(path).card.task
    assert (found['target'], found['ratio']) == ('normalized', ratio)
    assert f'task.unit=8 is dropped: {dialect} has no place for it, and readers assume 0' in said()
  assert 'task.ratio=0.5 is dropped: mae' in said()
  # Classes of patches are logits, whose number is that of pixels by accident.
  card = Card('vit_jax', (16, 16), resize='area', task=dict(name='masked', target='codes'))
  classes = make(MaskedConfig(PLAIN, 48), card)
  vit_jax.save(classes, tmp_path / 'codes', 'transformers')
  config = json.loads((tmp_path / 'codes' / 'config.json').read_text())
  assert config['architectures'] == ['BeitForMaskedImageModeling']
  assert config['vocab_size'] == 48
  assert 'that it is masked is lost; the dialect vit_jax keeps it' in said()


def test_as_version_5_of_transformers_saves_a_decoder(tmp_path, model):
  vit_jax.save(model, tmp_path / 'hf', 'transformers')
  path = tmp_path / 'hf' / 'model.safetensors'
  state = {
    name.replace('decoder.decoder_layers.', 'decoder.decoder_encoder.layer.'): array
    for name, array in load_file(path).items()
  }
  assert any('decoder_encoder' in name for name in state)
  save_file(state, path)
  assert_equal(vit_jax.load(tmp_path / 'hf'), model)


# --- refusals ---


@pytest.mark.parametrize(
  ('dialect', 'config', 'message'),
  [
    ('timm', MAE, 'timm has no models of the kind mae. Dialects that can hold this model: mae, '
                  'transformers, transformers-v5, vit_jax'),
    ('mae', MaskedConfig(PLAIN, 48), 'mae has no models of the kind masked'),
    ('mae', PLAIN, 'mae has no models of the kind vit'),
    ('mae', MaeConfig(dataclasses.replace(FIXED, eps=1e-5), 48, DECODER),
     r'mae cannot express encoder\.eps=1e-05'),
    ('mae', MaeConfig(FIXED, 48, dataclasses.replace(DECODER, layerscale=0.1)),
     r'mae cannot express decoder\.layerscale=0\.1'),
    ('mae', MaeConfig(FIXED, 48, dataclasses.replace(DECODER, mlp_dim=64)),
     r'mae cannot express decoder\.mlp_dim=64: .* the mlp_ratio of the encoder, 2 times 16'),
    ('transformers', MaeConfig(dataclasses.replace(FIXED, class_token=False, pool='mean'), 48),
     r'cannot express encoder\.class_token=False'),
    ('transformers', MaeConfig(FIXED, 48, dataclasses.replace(DECODER, mlp='quick_gelu')),
     r"cannot express decoder\.mlp='quick_gelu'"),
    ('transformers', MaskedConfig(dataclasses.replace(PLAIN, relative_bias='shared'), 48),
     r"cannot express encoder\.relative_bias='shared' \(closest kind: vit\)"),
    ('transformers', MaskedConfig(dataclasses.replace(PLAIN, image_size=(16, 8)), 48),
     r'cannot express encoder\.image_size=\(16, 8\)'),
  ],
)  # fmt: skip
def test_what_a_dialect_cannot_say_is_refused(tmp_path, dialect, config, message):
  with pytest.raises(RunError, match=message):
    vit_jax.save(make(config), place(tmp_path, dialect), dialect)
  assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused(tmp_path, model):
  vit_jax.save(model, tmp_path / 'hf', 'transformers')
  config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
  for change, message in (
    (dict(decoder_hidden_size=8), 'says decoder_hidden_size=8, but the weights have 16'),
    (dict(decoder_num_attention_heads=3), 'num_heads=3 does not divide width=16'),
    (dict(decoder_num_hidden_layers=8), 'says decoder_num_hidden_layers=8'),
  ):
    (tmp_path / 'hf' / 'config.json').write_text(json.dumps({**config, **change}))
    refused(tmp_path / 'hf', message)
  vit_jax.save(make(MaskedConfig(BEIT, 7)), tmp_path / 'beit', 'transformers')
  path = tmp_path / 'beit' / 'model.safetensors'
  state = load_file(path)
  save_file({**state, 'beit.layernorm.weight': np.ones(24, np.float32)}, path)
  refused(tmp_path / 'beit', 'two norms behind its last block')
  state.pop('layernorm.weight')
  save_file(state, path)
  refused(tmp_path / 'beit', r'missing     layernorm\.weight')
  vit_jax.save(make(MaskedConfig(PLAIN, 48)), tmp_path / 'simmim', 'transformers')
  path = tmp_path / 'simmim' / 'model.safetensors'
  state = load_file(path)
  save_file({**state, 'decoder.0.weight': state['decoder.0.weight'][:12]}, path)
  refused(tmp_path / 'simmim', 'predicts 12 numbers for each patch, which has 16 pixels of 3')


def test_changes_that_patches_forbid_are_refused(tmp_path, model, capsys):
  path = tmp_path / 'mae.safetensors'
  vit_jax.save(model, path, 'mae')
  for tower, field, value in (
    ('encoder', 'patch_size', 8), ('encoder', 'in_channels', 1), ('encoder', 'num_classes', 5),
    ('decoder', 'image_size', (8, 8)),
  ):  # fmt: skip
    refused(path, rf'by which {tower}\.{field}=.* is decided: it cannot be', **{
      tower: {field: value}
    })  # fmt: skip
  refused(path, 'has the towers encoder, decoder: give encoder=', num_heads=3)
  refused(path, "has no tower 'image'", tower='image')
  other = vit_jax.load(path, tower='encoder', patch_size=8, in_channels=1, num_classes=5)
  assert other.head.kernel.shape == (24, 5)
  convert.main(str(path), str(tmp_path / 'encoder'), 'timm', {}, tower='encoder')
  assert 'timm, from mae' in capsys.readouterr().out
  assert_equal(vit_jax.load(tmp_path / 'encoder'), model.encoder)
  refused(tmp_path / 'encoder', 'has one tower', tower='encoder')
