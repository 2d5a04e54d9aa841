"""Packed data sets: smaller images, the same examples."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from tests import toys
from vit_jax.core.errors import RunError
from vit_jax.data import jpeg, preprocess
from vit_jax.data.pack import main, pack, shrink
from vit_jax.data.sources import Folder, Tfds


@pytest.fixture
def photos(tmp_path):
  """Three classes, four photos each to train on and two to test on, one of them small."""
  photo = load_sample_image('flower.jpg')[..., ::-1]
  for split, count in (('train', 4), ('test', 2)):
    for turn, label in enumerate(('left', 'right', 'up')):
      folder = tmp_path / 'photos' / split / label
      folder.mkdir(parents=True)
      for i in range(count):
        image = np.rot90(photo, turn)[: 100 * (i + 1)]
        cv2.imwrite(str(folder / f'{i}.jpg'), image)
  return tmp_path / 'photos'


@pytest.mark.parametrize('format', ['jpg', 'bmp'])
def test_a_packed_data_set_has_the_same_examples(photos, tmp_path, format):
  done = subprocess.run(
    [sys.executable, '-m', 'vit_jax.data.pack', str(photos), str(tmp_path / 'data' / 'small'),
     '--size=128', f'--format={format}'],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert '18 images' in done.stdout
  for split in ('train', 'test'):
    source = Folder(str(photos)).open(split)
    packed = Tfds(dataset='small', dir=str(tmp_path / 'data')).open(split)
    assert packed.class_names == ('left', 'right', 'up')
    assert len(packed) == len(source)
    for i in range(len(source)):
      assert packed[i]['label'] == source[i]['label']
      large, small = (preprocess.decode(s[i]['image'], 3) for s in (source, packed))
      assert min(small.shape[:2]) == min(128, *large.shape[:2])
      want = preprocess.resize(large, small.shape[:2])
      assert np.abs(want.astype(int) - small).mean() < (0.01 if format == 'bmp' else 4)


def test_a_packed_data_set_can_be_packed_again(photos, tmp_path):
  pack({'test': Folder(str(photos)).open('test')}, str(tmp_path / 'large'))
  sources = {'test': Tfds(dataset='large', dir=str(tmp_path)).open('test')}
  pack(sources, str(tmp_path / 'small'), size=32)
  packed = Tfds(dataset='small', dir=str(tmp_path)).open('test')
  assert len(packed) == 6
  assert min(preprocess.decode(packed[3]['image'], 3).shape[:2]) == 32


def test_small_jpeg_files_stay_as_they_are(photos):
  data = (photos / 'train' / 'left' / '0.jpg').read_bytes()
  assert shrink(data, 100, 'jpg') == data
  header = jpeg.read_header(shrink(data, 50, 'jpg'))
  assert (header.height, header.width) == (50, 320)
  png = cv2.imencode('.png', np.zeros((20, 30, 3), np.uint8))[1].tobytes()
  assert jpeg.read_header(shrink(png, 100, 'jpg')).width == 30


def test_quality(photos):
  data = (photos / 'train' / 'left' / '3.jpg').read_bytes()
  assert len(shrink(data, 100, 'jpg', 50)) < len(shrink(data, 100, 'jpg', 95)) / 2


def test_mistakes(photos, tmp_path):
  sources = {'test': Folder(str(photos)).open('test')}
  pack(sources, str(tmp_path / 'done'), size=16)
  with pytest.raises(RunError, match='already exists'):
    pack(sources, str(tmp_path / 'done'))
  with pytest.raises(RunError, match='not a valid name for a data set'):
    pack(sources, str(tmp_path / 'pets-256'))
  given = dict(
    source=str(photos), target=str(tmp_path / 'other'), splits='test', size=16, format='jpg',
    quality=90, on_corrupt='error',
  )  # fmt: skip
  for change, message in (
    (dict(quality=0), '--quality between'), (dict(splits='valid'), 'no directory'),
    (dict(source='nowhere'), 'nowhere'),
  ):  # fmt: skip
    with pytest.raises(RunError, match=message):
      main(**{**given, **change})
  assert not (tmp_path / 'other').exists()


def test_corrupt_images(photos, tmp_path, caplog):
  bad = photos / 'train' / 'right' / '2.jpg'
  bad.write_bytes(bad.read_bytes()[:1000])
  sources = {'train': Folder(str(photos)).open('train')}
  with pytest.raises(RunError, match=f'corrupt image {bad}.*on_corrupt=skip'):
    pack(sources, str(tmp_path / 'small'))
  assert not any((tmp_path / 'small').glob('*'))
  pack(sources, str(tmp_path / 'small'), on_corrupt='skip')
  assert str(bad) in caplog.text
  assert len(Tfds(dataset='small', dir=str(tmp_path)).open('train')) == 11


def test_what_becomes_of_channels_is_said(tmp_path, capsys):
  folder = toys.toy(tmp_path / 'toy', 1, 0, alpha=True)
  arguments = dict(size=16, format='jpg', quality=90, on_corrupt='error')
  main(str(folder), str(tmp_path / 'data' / 'small'), 'train', **arguments)
  assert f'{folder}/train: alpha is dropped in the first image' in capsys.readouterr().out
  for name, array in (('five', np.zeros((8, 8, 5), np.uint8)), ('deep', np.zeros((8, 8), '>u2'))):
    path = folder / 'train' / 'cat' / f'{name}.npy'
    path.write_bytes(toys.npy(array))
    with pytest.raises(RunError, match=rf'^{path} has [^\n]*--on_corrupt=skip$'):
      main(str(folder), str(tmp_path / 'data' / name), 'train', **arguments)
    path.unlink()
