"""Data sets of TFDS that are damaged, half-made or not there: one line each, never wrong data."""

import contextlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import toys
from tests.batches import eval_batches
from vit_jax.core.errors import RunError
from vit_jax.data.config import DataConfig
from vit_jax.data.crops import Resize
from vit_jax.data.fields import require
from vit_jax.data.pipeline import iterate
from vit_jax.data.sources.tfds import Tfds

CLASSES = ('cat', 'dog', 'fox')
COUNT = 20


def images(count=COUNT):
  rng = np.random.default_rng(0)
  return [toys.encoded(rng.integers(0, 256, (8, 8, 3), np.uint8), 'PNG') for _ in range(count)]


def make(root, *, version='1.0.0', name='pets', shards=3, features=None, file_format='array_record',
         examples=None):  # fmt: skip
  """A data set as `tfds build` leaves it: 20 images to train on in three files, 5 to test on."""
  examples = examples or (lambda i, data: {'image': data, 'label': i % 3})

  class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)

    def _info(self):
      default = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(names=CLASSES)}
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features or default),
        disable_shuffling=True,
      )  # fmt: skip

    def _split_generators(self, dl_manager):
      every = [(i, examples(i, data)) for i, data in enumerate(images())]
      return {'train': iter(every), 'test': iter(every[:5])}

    def _generate_examples(self):
      raise NotImplementedError

  Pets.name = name
  config = tfds.download.DownloadConfig(num_shards=shards)
  with contextlib.redirect_stdout(None):
    Pets(data_dir=str(root), file_format=file_format).download_and_prepare(download_config=config)
  return root / name / version


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  return make(tmp_path_factory.mktemp('made'))


@pytest.fixture
def pets(made, tmp_path):
  shutil.copytree(made.parent, tmp_path / 'pets')
  return tmp_path / 'pets' / '1.0.0'


def read(folder, dataset='pets', split='train'):
  """All images and labels."""
  source = Tfds(dataset, dir=str(folder.parent.parent)).open(split)
  require(source.fields, {'image': 'image', 'label': 'class'}, source.name)
  return [(source[i]['image'], source[i]['label']) for i in range(len(source))]


RIGHT = [(data, i % 3) for i, data in enumerate(images())]


def refused(folder, *parts, **options):
  """The one line that it is refused with; it names these."""
  with pytest.raises(RunError) as error:
    read(folder, **options)
  line = str(error.value)
  assert '\n' not in line
  for part in parts:
    assert str(part) in line
  return line


def test_a_sound_data_set(pets):
  assert read(pets) == RIGHT
  assert read(pets, split='train[5:]+test') == RIGHT[5:] + RIGHT[:5]
  source = Tfds('pets', dir=str(pets.parent.parent)).open('train')
  assert source.summary() == ['pets/train: 20 images of 3 classes: cat, dog, fox']
  assert [e['label'] for e in source.read([19, 0, 7])] == [1, 0, 1]


def test_versions(pets):
  shutil.copytree(pets, pets.with_name('0.10.0'))
  shutil.copytree(pets, pets.with_name('0.9.0'))
  for name in ('incomplete.ABC123_1.0.0', 'incomplete.XYZ_2.0.0', '3.0.0.bak', 'downloads'):
    pets.with_name(name).mkdir()
  pets.with_name('9.0.0').touch()
  assert read(pets) == read(pets, 'pets:0.9.0') == RIGHT
  refused(pets, 'no version 9.9.9', '0.9.0, 0.10.0, 1.0.0', dataset='pets:9.9.9')
  refused(pets, 'no version 1.0', dataset='pets:1.0')
  pets.with_name('2.0.0').mkdir()
  refused(pets, '2.0.0 is not complete', 'data.source.dataset=pets:1.0.0')
  for name in ('2.0.0', '1.0.0', '0.10.0', '0.9.0'):
    shutil.rmtree(pets.with_name(name))
  refused(pets, 'is not complete', 'incomplete.ABC123_1.0.0', 'prepare it again')


def test_names(pets):
  shutil.copytree(pets, pets.parent.parent / 'birds' / 'small' / '1.0.0')
  (pets.parent.parent / 'empty').mkdir()
  assert read(pets, 'birds/small') == RIGHT
  refused(pets, "no data set 'birds'", 'birds/small', dataset='birds')
  refused(pets, 'did you mean pets?', dataset='pet')
  for name in ('', '/etc', '../pets', 'pets:', 'pets:x', 'pe*', 'pets//', 'pets:1.0.0:2', 'pets\n'):
    refused(pets, 'NAME/CONFIG', dataset=name)


def test_splits(pets):
  refused(pets, "no split 'valid'", 'train', 'test', split='valid')
  refused(pets, "no split 'valid'", split='train+valid[:3]')
  refused(pets, 'cannot be read', split='train[:x%]')
  refused(pets, 'has no examples', split='train[:0]')
  refused(pets, 'no split', split='')


def test_files_that_are_not_there(pets):
  for file in sorted(pets.iterdir()):
    if file.name == 'label.labels.txt':
      continue
    data = file.read_bytes()
    file.unlink()
    if '-test.' in file.name:
      assert read(pets) == RIGHT
      refused(pets, file, split='test')
    else:
      refused(pets, file, 'opy or prepare')
    file.write_bytes(data)
  assert read(pets) == RIGHT


def test_counts_that_are_not_so(pets):
  info = pets / 'dataset_info.json'
  sound = info.read_text()
  at = [split['name'] for split in json.loads(sound)['splits']].index('train')
  lengths = json.loads(sound)['splits'][at]['shardLengths']
  assert len(lengths) == 3
  firsts = [[first, *lengths[1:]] for first in ('1', '99', '-1', '0')]
  for change in (*firsts, lengths[:2], [*lengths, '1'], ['x'], []):
    value = json.loads(sound)
    value['splits'][at]['shardLengths'] = change
    info.write_text(json.dumps(value))
    refused(pets, pets if change else 'no examples')
  info.write_text(sound)
  files = sorted(pets.glob('*-train.*'))
  assert lengths[1] != lengths[2]
  shutil.copy(files[1], files[2])
  refused(pets, files[2], f'has {lengths[1]} examples', f'says {lengths[2]}')
  files[1].write_bytes(b'')
  refused(pets, files[1])


def test_a_file_that_goes_away_during_the_run(pets):
  source = Tfds('pets', dir=str(pets.parent.parent)).open('train')
  files = sorted(pets.glob('*-train.*'))
  files[2].unlink()
  batches = eval_batches(DataConfig(source=None), Resize(), source, ((8, 8), 3, 3), 4, range(4))
  with pytest.raises(RunError, match=r'-00002-of-00003.*Copy or prepare') as error:
    list(iterate(batches))
  assert '\n' not in str(error.value)
  with pytest.raises(RunError, match='-00002-of-00003'):
    source.read(range(20))


def attempt(folder):
  """What is read, or why it is not."""
  try:
    return read(folder)
  except RunError as error:
    return str(error)


def test_whatever_byte_is_wrong(pets):
  """Of any file, at many places: it is refused in one line, or what is read is right."""
  rng = np.random.default_rng(0)
  outcomes = {'refused': 0, 'right': 0}
  for file in sorted(pets.iterdir()):
    if file.name == 'label.labels.txt' or '-test.' in file.name:  # names have no check sum
      continue
    sound = file.read_bytes()
    places = np.flatnonzero(np.frombuffer(sound, np.uint8))  # what is not padding
    cuts = {0, 1, len(sound) // 2, len(sound) - 1, *rng.integers(len(sound), size=8).tolist()}
    damaged = [sound[:cut] for cut in cuts]
    for place in [*rng.choice(places, 60), *places[-30:]]:
      flipped = bytearray(sound)
      flipped[place] ^= 1 << rng.integers(8)
      damaged.append(bytes(flipped))
    damaged.append(sound[:100] + bytes(100) + sound[200:])
    for data in damaged:
      file.write_bytes(data)
      found = attempt(pets)
      outcomes['right' if found == RIGHT else 'refused'] += 1
      assert found == RIGHT or (isinstance(found, str) and '\n' not in found)
    file.write_bytes(sound)
  assert outcomes['refused'] > outcomes['right'] > 0


def test_the_command_says_one_line(pets, tmp_path):
  file = sorted(pets.glob('*-train.*'))[1]
  file.write_bytes(file.read_bytes()[:70000])
  done = subprocess.run(
    [sys.executable, '-m', 'vit_jax.data.pack', str(pets.parent), str(tmp_path / 'data' / 'small')],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 1
  assert done.stderr.startswith(f'error: {file} is damaged: ')
  assert done.stderr.endswith('Copy or prepare the data set again\n')
  assert done.stderr.count('\n') == 1


def test_class_names_that_do_not_fit(pets):
  file = pets / 'label.labels.txt'
  for text in ('cat\ndog\n', 'cat\ndog\nfox\nhen\n', ''):
    file.write_text(text)
    refused(pets, pets)


def test_what_cannot_be_trained_on(tmp_path):
  label = {'label': tfds.features.ClassLabel(names=CLASSES)}
  cases = {
    'numbers': ({'image': tfds.features.Image(), 'label': tfds.features.Scalar(np.int64)},
                "has no field 'label' of the kind class"),
    'other': ({'picture': tfds.features.Image(), **label}, 'picture (image)'),
  }  # fmt: skip
  for name, (features, message) in cases.items():
    key = 'picture' if name == 'other' else 'image'
    example = lambda i, data, k=key: {k: data, 'label': 0}  # noqa: E731
    folder = make(tmp_path, name=name, features=features, examples=example)
    refused(folder, message, dataset=name)


def test_a_data_set_of_the_project_is_prepared_again_if_told_so(tmp_path):
  source = Tfds('digits', dir=str(tmp_path))
  assert len(source.open('test')) == 360
  folder = tmp_path / 'digits' / '1.0.0'
  (folder / 'dataset_info.json').write_text('{')
  with pytest.raises(RunError, match=f'Delete {folder}, and it is prepared again'):
    source.open('test')
  shutil.rmtree(folder)
  assert len(source.open('test')) == 360
