"""Runs handed on, to every dialect that can compute them, with all that it can be told."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.test_convert import SIZES, make, place
from vit_jax.architecture.card import Card, about
from vit_jax.checkpoints.store import Checkpoints
from vit_jax.convert import __main__ as convert
from vit_jax.convert import files
from vit_jax.convert.dialects import DIALECTS
from vit_jax.core.errors import RunError
from vit_jax.training.loop import train

JAX = {'vit', 'vit-linen', 'big_vision', 'big_vision-scan'}
HUB = {'timm', 'transformers', 'transformers-v5'}
NAMES = ('größer', '猫', '"quoted"', 'cat', 'cat')


def converted(run, folder, dialect, capsys, **changes):
  """The model in another dialect, and what was said on the way."""
  path = place(folder / dialect, dialect)
  convert.main(str(run), str(path), dialect, changes)
  out = capsys.readouterr().out
  assert out.endswith(f'{path}: {dialect}, from vit_jax\n')
  return path, out


def forward(model, seed=0):
  config = model.config
  shape = (3, *config.image_size, config.in_channels)
  x = jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
  with jax.default_matmul_precision('highest'):
    return np.asarray(model(x))


@pytest.mark.slow
def test_a_trained_run_goes_everywhere(tmp_path, digits, capsys):
  """Grey, with fixed positions, mean pooling and a moving average, as `configs/` has them."""
  run = tmp_path / 'run'
  config = digits(
    total='3 steps', optim__warmup='0', optim__ema=0.5, model__pool='mean',
    model__posemb='sincos',
  ).unlock()  # fmt: skip
  config.evals.test.crop = dict(name='center', fraction=0.75)
  train(config.lock(), str(run))
  model = vit_jax.load(run)
  assert model.card.class_names == tuple('0123456789')
  assert (model.card.resize, model.card.crop) == ('area', 0.75)
  raw = vit_jax.load(run, part='model')
  assert not np.array_equal(raw.embed.proj.kernel[...], model.embed.proj.kernel[...])
  want = forward(model)
  assert np.abs(want).max() > 1e-3
  for dialect in ('openai', 'dinov2', 'dinov3'):
    with pytest.raises(RunError, match='Dialects that can hold this model: vit, '):
      converted(run, tmp_path, dialect, capsys)
  for dialect in JAX | HUB | {'vit_jax'}:
    path, out = converted(run, tmp_path, dialect, capsys)
    assert 'the moving average of the parameters is read' in out
    again = vit_jax.load(path, **({} if DIALECTS[dialect] == 'folder' else {'image_size': (8, 8)}))
    np.testing.assert_allclose(forward(again), want, rtol=1e-4, atol=1e-6, err_msg=dialect)
    if DIALECTS[dialect] == 'folder':
      assert again.card.class_names == model.card.class_names
      assert (again.card.size, again.card.mean, again.card.std) == ((8, 8), (0.5,), (0.5,))
    else:
      assert 'class_names=' in out
      assert "resize='area' is dropped" in out


# Of each: what a run may be, and who can hold it beside `vit_jax`.
RUNS = {
  'sincos with a class token': (dict(posemb='sincos'), JAX | HUB),
  'factorised': (dict(posemb='factorised', pool='mean'), JAX | HUB),
  'without positions': (dict(posemb='none', no_bias='key,out'), JAX | HUB),
  'not square': (dict(image_size=(8, 24), posemb='sincos'), JAX | HUB),
  'pooled by attention': (dict(pool='map'), {'big_vision', 'big_vision-scan', 'timm'}),
  'registers with positions': (dict(registers=2, posemb_tokens='all'), {'timm'}),
  'mup': (dict(mup_width=8, mup_depth=1), JAX | HUB),
  'a new head on DINOv2': (dict(variant='dinov2:S/4', mlp_dim=48), HUB),
}  # fmt: skip


@pytest.mark.parametrize('name', list(RUNS))
def test_what_a_dialect_can_compute_it_gets(tmp_path, capsys, name):
  config, able = RUNS[name]
  model = make(**config)
  vit_jax.save(model, tmp_path / 'run', 'vit_jax')
  want, refused = forward(model), None
  for dialect in sorted(DIALECTS.keys() - {'vit_jax', 'vit-linen', 'big_vision-scan'}):
    if dialect in able:
      path, _ = converted(tmp_path / 'run', tmp_path, dialect, capsys)
      hint = {} if DIALECTS[dialect] == 'folder' else {'image_size': model.config.image_size}
      np.testing.assert_allclose(forward(vit_jax.load(path, **hint)), want, rtol=1e-4, atol=1e-5)
    else:
      with pytest.raises(RunError) as error:
        converted(tmp_path / 'run', tmp_path, dialect, capsys)
      refused = set(
        str(error.value).rpartition('Dialects that can hold this model: ')[2].split(', ')
      )
      assert refused == able | {'vit_jax'}
  assert refused


def described(**changes):
  """A model with a card as runs have it."""
  model = make(**changes)
  channels = model.config.in_channels
  model.card = Card('vit_jax', model.config.image_size, (0.286,) * channels, (0.353,) * channels,
                    'area', 0.8, NAMES)  # fmt: skip
  return model


def test_what_a_file_cannot_say_is_listed(tmp_path, capsys):
  model = described(image_size=(8, 24), dtype='bfloat16')
  vit_jax.save(model, tmp_path / 'run', 'vit_jax')
  _, out = converted(tmp_path / 'run', tmp_path, 'vit', capsys)
  for line in (
    'size=(8, 24) is dropped: vit has no place for it; pass image_size=(8, 24)',
    'mean=(0.286, 0.286, 0.286) is dropped: vit has no place for it, and readers assume (0.5, 0.5',
    'std=(0.353', "dtype='bfloat16' of activations is dropped", "resize='area' is dropped",
    'crop=0.8 is dropped', "class_names=('größer',",
    "interpolation='bicubic_aa' of positions, for images of other sizes, becomes 'corner'",
  ):  # fmt: skip
    assert line in out
  assert len([line for line in out.splitlines() if line.startswith('note: ')]) == 8


@pytest.mark.parametrize('dialect', ['timm', 'transformers', 'vit_jax'])
@pytest.mark.parametrize('changes', [{}, dict(in_channels=1), dict(image_size=(8, 24))], ids=str)
def test_folders_say_everything(tmp_path, capsys, dialect, changes):
  model = described(**changes)
  vit_jax.save(model, tmp_path / 'run', 'vit_jax')
  path, out = converted(tmp_path / 'run', tmp_path, dialect, capsys)
  card = vit_jax.load(path).card
  assert (card.mean, card.std, card.class_names) == (model.card.mean, model.card.std, NAMES)
  assert card.size == model.config.image_size
  # What transformers crops from has whole pixels.
  sides = model.config.image_size
  assert abs(card.crop - 0.8) < 0.5 / min(sides)
  if dialect == 'vit_jax':
    assert card.resize == 'area'
    assert 'note' not in out
  else:
    assert card.resize == 'bilinear'
    assert "resize='area' becomes 'bilinear'" in out
  assert ('squeezes others into' in out) == (dialect == 'transformers' and sides == (8, 24))


def test_what_timm_and_transformers_read(tmp_path, capsys):
  """The names and values that their documentation gives, for a crop and for none."""
  for crop, folder in ((0.875, 'cropped'), (0.0, 'squeezed')):
    model = described()
    model.card = Card('vit_jax', (16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 'area', crop, NAMES)
    vit_jax.save(model, tmp_path / folder, 'vit_jax')
    path, _ = converted(tmp_path / folder, tmp_path / folder, 'timm', capsys)
    config = json.loads((path / 'config.json').read_text())
    given = config['pretrained_cfg']
    assert config['architecture'] == 'vit_base_patch16_224'
    assert config['label_names'] == list(NAMES)
    assert given['input_size'] == [3, 16, 16]
    assert (given['interpolation'], given['crop_pct'], given['crop_mode']) == (
      ('bilinear', 0.875, 'center') if crop else ('bilinear', 1.0, 'squash')
    )
    path, _ = converted(tmp_path / folder, tmp_path / folder, 'transformers', capsys)
    config = json.loads((path / 'config.json').read_text())
    assert config['id2label'] == {str(i): name for i, name in enumerate(NAMES)}
    given = json.loads((path / 'preprocessor_config.json').read_text())
    assert given['resample'] == 2
    square = {'height': 16, 'width': 16}
    if crop:
      assert given['image_processor_type'] == 'BitImageProcessor'
      assert (given['size'], given['crop_size']) == ({'shortest_edge': 18}, square)
    else:
      assert given['image_processor_type'] == 'ViTImageProcessor'
      assert (given['size'], given['do_center_crop']) == (square, False)


def test_names_that_are_not_of_the_classes(tmp_path, capsys):
  model = described(num_classes=7)
  vit_jax.save(model, tmp_path / 'run', 'vit_jax')
  path, out = converted(tmp_path / 'run', tmp_path, 'transformers', capsys)
  assert '5 class names for 7 classes are dropped' in out
  assert len(json.loads((path / 'config.json').read_text())['id2label']) == 7
  assert vit_jax.load(path).config.num_classes == 7


def test_lanes_are_refused_by_name(tmp_path):
  model = described()
  checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints')
  checkpoints.save(0, {'model': model}, {**about(model.config, model.card), 'lanes': 3})
  checkpoints.close()
  with pytest.raises(RunError, match=r'holds 3 models trained side by side.*without config\.lanes'):
    convert.main(str(tmp_path / 'run'), str(tmp_path / 'out'), 'timm', {})


def test_a_grid_that_no_file_can_tell_is_refused(tmp_path):
  """4x16 patches would be read as 8x8."""
  model = make(image_size=(16, 64))
  with pytest.raises(RunError, match=r'grid=\(4, 16\): it would be read as \(8, 8\).*: timm'):
    vit_jax.save(model, tmp_path / 'model.npz', 'vit')


def test_typed(tmp_path):
  vit_jax.save(described(pool='mean', posemb='sincos'), tmp_path / 'run', 'vit_jax')

  def typed(*arguments):
    command = [sys.executable, '-m', 'vit_jax.convert', str(tmp_path / 'run'), *arguments]
    return subprocess.run(command, capture_output=True, text=True)

  done = typed(str(tmp_path / 'out'), '--to=transformers')
  assert (done.returncode, done.stderr) == (0, '')
  assert 'note: ' in done.stdout
  assert 'a learned table of 4x4 positions with the same values' in done.stdout
  done = typed(str(tmp_path / 'out.safetensors'), '--to=dinov2')
  assert done.returncode == 1
  assert done.stderr.startswith('error: dinov2 cannot express ')
  assert done.stderr.endswith(
    'Dialects that can hold this model: vit, vit-linen, big_vision, big_vision-scan, timm, '
    'transformers, transformers-v5, vit_jax\n'
  )
  assert not (tmp_path / 'out.safetensors').exists()
  assert files.read(tmp_path / 'out' / 'model.safetensors').keys() >= {'classifier.weight'}
  assert SIZES['width'] == 24
