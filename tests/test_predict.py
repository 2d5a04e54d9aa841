"""From an image file to the names of classes, as the checkpoint was trained."""

import subprocess
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.test_convert import make
from vit_jax import predict
from vit_jax.architecture.card import Card
from vit_jax.convert import files
from vit_jax.core.errors import RunError

NAMES = ('cat', 'dog', 'fox', 'hen', 'pig')


@pytest.fixture
def checkpoint(tmp_path):
  model = make(mlp='gelu')
  model.card = Card('vit_jax', (16, 16), resize='bicubic', crop=0.875, class_names=NAMES)
  vit_jax.save(model, tmp_path / 'model', 'transformers')
  return tmp_path / 'model'


@pytest.fixture
def photos(tmp_path):
  rng = np.random.default_rng(0)
  folder = tmp_path / 'photos'
  (folder / 'deeper').mkdir(parents=True)
  for at, (name, size) in enumerate(
    [('a.png', (40, 30)), ('b.JPG', (20, 50)), ('deeper/c.webp', (17, 17)), ('d.jpeg', (9, 9))]
  ):
    pixels = cv2.resize(rng.integers(0, 255, (4, 4, 3), np.uint8), size[::-1])
    cv2.imwrite(str(folder / name), np.roll(pixels, at, 0))
  (folder / 'notes.txt').write_text('no image')
  return folder


@pytest.mark.parametrize('crop', [0.0, 0.875, 1.0])
@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
def test_images_are_prepared_as_timm_and_transformers_do(crop, method):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (50, 71, 3), np.uint8)
  card = Card('timm', (28, 28), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), method, crop)
  how = getattr(Image.Resampling, method.upper())
  if crop:
    short = int(28 / crop)
    scaled = Image.fromarray(image).resize((int(71 * short / 50), short), how)
    left, top = round((scaled.width - 28) / 2), round((scaled.height - 28) / 2)
    want = np.asarray(scaled.crop((left, top, left + 28, top + 28)))
  else:
    want = np.asarray(Image.fromarray(image).resize((28, 28), how))
  want = (want / 255 - card.mean) / card.std
  np.testing.assert_allclose(predict.prepare(image, card), want, rtol=1e-5, atol=1e-5)


def test_grey_images_and_the_resizing_of_training():
  image = np.random.default_rng(0).integers(0, 255, (32, 32, 1), np.uint8)
  for resize in ('area', 'bilinear'):
    out = predict.prepare(image, Card('vit_jax', (8, 8), (0.5,), (0.5,), resize))
    assert out.shape == (8, 8, 1)
    assert abs(out.mean() - (image.mean() / 255 - 0.5) / 0.5) < 0.01


def test_predictions_are_those_of_the_model_whatever_the_batch(checkpoint, photos):
  model = vit_jax.load(checkpoint)
  assert model.card.class_names == NAMES
  paths = predict.images_in([str(photos)])
  assert [p.name for p in paths] == ['a.png', 'b.JPG', 'd.jpeg', 'c.webp']
  predictor = predict.Predictor(model, top=3, batch_size=3)
  found = {p.example['name']: p.prediction.facts for p in predictor(predict.Inputs(paths))}
  for path in paths:
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    logits = np.asarray(model(jnp.asarray(predict.prepare(pixels, model.card))[None])[0])
    p = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-p)[:3]
    classes = found[str(path)]['classes']
    assert [each['class'] for each in classes] == [NAMES[i] for i in best]
    np.testing.assert_allclose([c['probability'] for c in classes], p[best], rtol=1e-4)


def test_broken_files_are_named_and_the_rest_goes_on(checkpoint, photos, capsys):
  (photos / 'broken.png').write_bytes(b'\x89PNG and then nothing')
  status = predict.main(str(checkpoint), [str(photos)], 2, 2, None, {})
  out, err = capsys.readouterr()
  assert status == 1
  assert 'broken.png: 21 bytes that do not decode' in err
  assert out.count('%') == 8
  assert any(name in out for name in NAMES)


def test_names_from_elsewhere(tmp_path, photos, capsys):
  vit_jax.save(make(), tmp_path / 'model.npz', 'vit')
  arguments = (str(tmp_path / 'model.npz'), [str(photos / 'a.png')], 1, 4)
  predict.main(*arguments, None, {})
  assert 'class ' in capsys.readouterr().out
  (tmp_path / 'names.txt').write_text('\n'.join(NAMES))
  predict.main(*arguments, str(tmp_path / 'names.txt'), {})
  assert any(name in capsys.readouterr().out for name in NAMES)
  (tmp_path / 'names.txt').write_text('one\n')
  with pytest.raises(RunError, match='has 1 lines for the 5 classes'):
    predict.main(*arguments, str(tmp_path / 'names.txt'), {})


def test_what_cannot_be_predicted(tmp_path, checkpoint, photos):
  with pytest.raises(RunError, match='there is no file'):
    predict.images_in([str(tmp_path / 'nowhere.png')])
  (tmp_path / 'empty').mkdir()
  with pytest.raises(RunError, match='holds no '):
    predict.images_in([str(tmp_path / 'empty')])
  with pytest.raises(RunError, match='takes away the head'):
    predict.main(str(checkpoint), [str(photos)], 5, 2, None, {'num_classes': 0})


def test_heads_that_were_never_trained_do_not_predict(tmp_path, checkpoint, photos, capsys):
  arguments = [str(photos / 'a.png')], 5, 2, None
  headless = tmp_path / 'headless'
  vit_jax.save(vit_jax.load(checkpoint, num_classes=0), headless, 'transformers')
  for name, message in (
    (checkpoint, 'head for 5 classes, .* never trained'), (headless, 'has no head'),
  ):  # fmt: skip
    with pytest.raises(RunError, match=message):
      predict.main(str(name), *arguments, {'num_classes': 10})
  predict.main(str(checkpoint), *arguments, {'num_classes': 5})
  assert capsys.readouterr().out.count('%') == 5
  vit_jax.save(make(), tmp_path / 'model.npz', 'vit')
  arrays = {n: np.asarray(a) for n, a in files.read(tmp_path / 'model.npz').items()}
  del arrays['head/bias']
  files.write_npz(tmp_path / 'model.npz', arrays)
  with pytest.raises(RunError, match=r'lacks head/bias: .* never trained'):
    predict.main(str(tmp_path / 'model.npz'), *arguments, {'ignore': 'head/.*'})


def test_labels_come_before_those_of_the_checkpoint(tmp_path, checkpoint, photos, capsys):
  labels = tmp_path / 'labels.txt'
  labels.write_bytes('\ufeffÄpfel\r\na\u2028b\r\n3\r\n4\r\n5'.encode())  # as Windows writes it
  arguments = str(checkpoint), [str(photos / 'a.png')], 5, 2
  predict.main(*arguments, str(labels), {})
  out, err = capsys.readouterr()
  shown = [line[10:] for line in out.split('\n') if '%' in line]
  assert sorted(shown) == ['3', '4', '5', 'a\u2028b', 'Äpfel']
  assert f"class names are those of {labels}, not the checkpoint's" in err
  labels.write_text('one\ntwo\n')
  with pytest.raises(RunError, match='has 2 lines for the 5 classes'):
    predict.main(*arguments, str(labels), {})
  labels.write_text(''.join(f'{name}\n' for name in NAMES))
  predict.main(*arguments, str(labels), {})
  assert 'class names are' not in capsys.readouterr().err


def test_one_class_has_the_probability_of_its_logit(tmp_path, photos, capsys):
  model = make(num_classes=1)
  vit_jax.save(model, tmp_path / 'model.npz', 'vit')
  model = vit_jax.load(tmp_path / 'model.npz')
  predict.main(str(tmp_path / 'model.npz'), [str(photos / 'a.png')], 5, 2, None, {})
  out, err = capsys.readouterr()
  pixels = cv2.cvtColor(cv2.imread(str(photos / 'a.png')), cv2.COLOR_BGR2RGB)
  logit = float(model(jnp.asarray(predict.prepare(pixels, model.card))[None])[0, 0])
  assert f'{1 / (1 + np.exp(-logit)):.1%}  class 0' in out
  assert 'sigmoid' in err


def test_commands(checkpoint, photos, tmp_path):
  """As typed: one line for a mistake, no traceback."""

  def typed(*arguments):
    return subprocess.run(
      [sys.executable, '-m', *map(str, arguments)], capture_output=True, text=True
    )

  done = typed('vit_jax.convert', checkpoint, tmp_path / 'new', '--to=timm', '--num_classes=3')
  assert (done.returncode, done.stderr) == (0, '')
  assert vit_jax.load(tmp_path / 'new').config.num_classes == 3
  done = typed('vit_jax.convert', checkpoint, tmp_path / 'new', '--to=timm')
  assert done.returncode == 1
  assert done.stderr.startswith('error: ')
  assert 'already exists' in done.stderr
  assert 'Traceback' not in done.stderr
  done = typed('vit_jax.predict', checkpoint, photos / 'a.png', '--colour=red')
  assert done.stderr.startswith('error: unknown argument --colour')
