"""What becomes an image, a class or nothing in a directory; what is said of it."""

import os
import shutil

import cv2
import numpy as np
import pytest

from tests import toys
from vit_jax import predict
from vit_jax.core.errors import RunError
from vit_jax.data import kinds, pack, preprocess
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import check_classes
from vit_jax.data.sources import open_split
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.tfds import Tfds
from vit_jax.training.loop import train


@pytest.fixture
def folder(tmp_path):
  return toys.toy(tmp_path / 'toy', 2, 1)


def found(folder, split='train'):
  """Paths below the split, with their labels, and what is said."""
  source = Folder(str(folder)).open(split)
  root = f'{folder}/{split}/'
  files = [(source[i]['name'].removeprefix(root), source[i]['label']) for i in range(len(source))]
  assert source.labels == [label for _, label in files]
  return files, list(source.class_names), '\n'.join(source.summary())


PLAIN = [(f'{name}/{i}.png', label) for label, name in enumerate(toys.COLOURS) for i in (0, 1)]


def test_what_systems_leave_behind_is_passed_over(folder):
  image = (folder / 'train' / 'cat' / '0.png').read_bytes()
  for name in ('.ipynb_checkpoints', '__MACOSX', '@eaDir', 'lost+found', '.git', '$RECYCLE.BIN'):
    for place in (folder / 'train', folder / 'train' / 'cat'):
      (place / name).mkdir()
      (place / name / 'image.png').write_bytes(image)
  for name in ('._0.png', '.hidden.png', 'Thumbs.db', 'desktop.ini', '.DS_Store'):
    (folder / 'train' / 'dog' / name).write_bytes(image)
  files, classes, said = found(folder)
  assert (files, classes) == (PLAIN, list(toys.COLOURS))
  assert 'train: 6 images of 3 classes: cat, dog, fox' in said
  assert 'hidden or system entries (17)' in said
  assert len(said.splitlines()) == 2


def test_whatever_decodes_is_an_image(folder):
  """By its suffix, or, if that says nothing, by how it begins."""
  place = folder / 'train' / 'cat'
  pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  kinds_ = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')
  images = [(kind, toys.encoded(pixels, kind)) for kind in kinds_]
  images.append(('NPY', toys.npy(pixels)))
  images.append(('TIFF', toys.tiff(pixels, 2, order='>')))
  images.append(('PPM', b'P6 # made by hand\n7 9\n255\n' + pixels.tobytes()))
  suffixes = dict(JPEG='JPG', JPEG2000='jp2', WEBP='webp')
  want = dict(PLAIN)
  for i, (kind, data) in enumerate(images):
    for name in (f'{kind}{i}', f'{kind}{i}.{suffixes.get(kind, kind).lower()}', f'{kind}{i}.part'):
      (place / name).write_bytes(data)
      want[f'cat/{name}'] = 0
  others = ('a.txt', 'a.json', 'a', 'a.heic', 'a.mp4', 'a.part', 'a.csv', 'P6')
  for name in others:
    (place / name).write_bytes(b'P6 and BM and RIFF are words, too')
  (place / 'empty').touch()
  files, _, said = found(folder)
  assert dict(files) == want
  source = Folder(str(folder)).open('train')
  for i in range(len(source)):
    assert preprocess.decode(source[i]['image'], 3).shape[2] == 3, source[i]['name']
  assert 'files that are not images (3 without a suffix, 1 .' in said
  assert '.heic' in said or 'more' in said


def test_suffixes_are_those_that_the_decoder_reads(monkeypatch):
  for suffix in kinds.readable():
    assert suffix == '.npy' or suffix in ('.jfif', '.jpc', '.j2k') or cv2.haveImageWriter(suffix)
  monkeypatch.setattr(cv2, 'haveImageWriter', lambda suffix: suffix != '.avif')
  kinds.readable.cache_clear()
  assert {'.jpg', '.png', '.npy'} <= kinds.readable().keys()
  assert '.avif' not in kinds.readable()
  kinds.readable.cache_clear()


def test_links_are_followed_once(folder, tmp_path):
  train = folder / 'train'
  outside = tmp_path / 'outside'
  for name in ('deep', 'deeper/still'):
    (outside / name).mkdir(parents=True)
  shutil.copy(train / 'cat' / '0.png', outside / 'deep' / '7.png')
  shutil.copy(train / 'cat' / '0.png', outside / 'deeper' / 'still' / '8.png')
  links = {
    'cat/a': outside, 'cat/b': outside, 'cat/self': train / 'cat', 'cat/up': train,
    'cat/root': '/', 'dog/relative': '../dog', 'dog/nowhere': 'not/there', 'dog/circle': 'circle',
    'dog/file.png': '../cat/1.png', 'everything': train, 'hen': outside / 'deep',
  }  # fmt: skip
  for name, target in links.items():
    os.symlink(target, train / name)
  os.symlink('../deeper', outside / 'deep' / 'sideways')
  os.symlink(outside, outside / 'deeper' / 'back')
  files, classes, said = found(folder)
  assert classes == ['cat', 'dog', 'fox', 'hen']
  names = [name for name, _ in files]
  assert names == [
    'cat/0.png', 'cat/1.png', 'cat/a/deep/7.png', 'cat/a/deeper/still/8.png',
    'dog/0.png', 'dog/1.png', 'dog/file.png', 'fox/0.png', 'fox/1.png',
    'hen/7.png', 'hen/sideways/still/8.png',
  ]  # fmt: skip
  assert 'links that lead back' in said
  assert 'broken links or special files (2)' in said


def test_strays_and_special_files(folder):
  train = folder / 'train'
  shutil.copy(train / 'cat' / '0.png', train / 'stray.png')
  (train / 'labels.csv').write_text('a,b')
  os.mkfifo(train / 'cat' / 'pipe.png')
  files, _, said = found(folder)
  assert files == PLAIN
  assert 'images outside of class directories (1)' in said
  assert 'special files (1)' in said
  assert '1 .csv' in said


def test_names_that_are_not_utf8(folder, tmp_path, capsys):
  os.rename(folder / 'train' / 'cat', os.fsencode(folder / 'train') + b'/caf\xe9')
  os.rename(folder / 'test' / 'cat', os.fsencode(folder / 'test') + b'/caf\xe9')
  _, classes, said = found(folder)
  assert classes[0] == 'caf\\xe9'
  assert 'caf\\xe9, dog, fox' in said
  pack.main(str(folder), str(tmp_path / 'data' / 'toy'), 'train', 32, 'jpg', 90, 'error')
  assert 'caf\\xe9' in capsys.readouterr().out


def test_classes_without_images(folder):
  (folder / 'train' / 'hen').mkdir()
  (folder / 'train' / 'hen' / 'readme.md').write_text('none yet')
  shutil.rmtree(folder / 'test' / 'fox')
  _, classes, said = found(folder)
  assert classes == ['cat', 'dog', 'fox', 'hen']
  assert 'train: no images of hen' in said
  files, classes, said = found(folder, 'test')
  assert files == [('cat/0.png', 0), ('dog/0.png', 1)]
  assert 'test: no images of fox, hen' in said


def test_one_class_is_nothing_to_learn(folder):
  for name in ('cat', 'dog'):
    shutil.rmtree(folder / 'train' / name)
  config = DataConfig(source=Folder(str(folder)))
  check = lambda: check_classes(config.open('train'))  # noqa: E731
  with pytest.raises(RunError, match=r'train has images of one class \(fox\): .*nothing to learn'):
    check()
  (folder / 'train' / 'hen').mkdir()
  with pytest.raises(RunError, match=r'one class \(fox\), and none of hen'):
    check()
  shutil.rmtree(folder / 'train' / 'fox')
  (folder / 'train' / 'hen' / 'a.heic').write_bytes(b'....ftypheic')
  with pytest.raises(RunError, match=r'no images in .*1 \.heic'):
    check()


def test_directories_that_are_not_there(folder, tmp_path):
  with pytest.raises(RunError, match=r'there is no directory .*nowhere: set data\.source\.dir'):
    Folder(str(tmp_path / 'nowhere')).open('train')
  with pytest.raises(RunError, match=r'expected in .*train/CLASS/, but it has cat, dog, fox'):
    Folder(str(folder / 'train')).open('train')
  (folder / 'test' / 'cow').mkdir()
  with pytest.raises(RunError, match='lacks: cow'):
    Folder(str(folder)).open('test')


@pytest.mark.skipif(os.getuid() == 0, reason='root may read everything')
def test_directories_that_may_not_be_read(folder):
  (folder / 'train' / 'cat').chmod(0)
  with pytest.raises(RunError, match=r'cannot read the directory .*cat: Permission denied'):
    Folder(str(folder)).open('train')


def test_every_command_says_what_it_found(folder, tmp_path, capsys):
  (folder / 'train' / 'cat' / '._0.png').write_bytes(b'junk')
  (folder / 'train' / 'hen').mkdir()
  bmp = cv2.imencode('.bmp', np.zeros((40, 48, 3), np.uint8))[1].tobytes()
  (folder / 'train' / 'dog' / '9.bmp').write_bytes(bmp)
  lines = {
    f'{folder}/train: 7 images of 4 classes: cat, dog, fox, hen',
    f'{folder}/train: no images of hen',
    f'{folder}/train: passed over: hidden or system entries (1)',
    f'{folder}/test: 3 images of 4 classes: cat, dog, fox, hen',
    f'{folder}/test: no images of hen',
  }
  train(toys.config(folder), str(tmp_path / 'run'))
  out = capsys.readouterr().out.splitlines()
  assert [out.count(line) for line in lines] == [1] * 5
  assert out.index(min(lines)) < next(i for i, line in enumerate(out) if line.startswith('step'))
  pack.main(str(folder), str(tmp_path / 'data' / 'toy'), 'train,test', 32, 'jpg', 90, 'error')
  assert lines <= set(capsys.readouterr().out.splitlines())
  assert len(Tfds('toy', dir=str(tmp_path / 'data')).open('train')) == 7
  paths = predict.images_in([str(folder / 'train')])
  assert [f'{path.parent.name}/{path.name}' for path in paths] == sorted(
    [name for name, _ in PLAIN] + ['dog/9.bmp']
  )
  assert 'passed over: hidden or system entries (1)' in capsys.readouterr().err


def test_other_sources_say_what_they_hold(data_dir):
  digits = Tfds('digits', dir=data_dir).open('test').summary()
  assert digits == ['digits/test: 360 images of 10 classes: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more']
  cached = open_split(Tfds('digits', dir=data_dir), 'test', cache=True)
  assert cached.summary() == digits
