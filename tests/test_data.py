"""Sources, preprocessing, and batches as a pure function of seed and step."""

import contextlib
import dataclasses
import gzip
import itertools
import subprocess
import sys
import threading
from types import MappingProxyType

import cv2
import numpy as np
import pytest

from tests.batches import eval_batches, probe, train_batches
from vit_jax.core.errors import RunError
from vit_jax.data import crops, preprocess
from vit_jax.data.builders.fashion_mnist import CLASSES, read_idx
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import Source
from vit_jax.data.fields import Field
from vit_jax.data.pipeline import iterate
from vit_jax.data.sources import Folder, Synthetic, Tfds
from vit_jax.data.views import View

SHAPE = (8, 8), 1, 10


def photo(seed=0, height=20, width=30):
  rng = np.random.default_rng(seed)
  noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
  return cv2.GaussianBlur(noise, (7, 7), 3)


def encode(image, suffix):
  return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture
def folder(tmp_path):
  """Two classes with three images each, and as many to test on."""
  for split in ('train', 'test'):
    for label in ('cat', 'dog'):
      path = tmp_path / split / label
      path.mkdir(parents=True)
      for i, suffix in enumerate(('.jpg', '.png', '.webp')):
        (path / f'{i}{suffix}').write_bytes(encode(photo(i), suffix))
  (tmp_path / 'train' / 'cat' / 'notes.txt').write_text('not an image')
  return tmp_path


def prepared(image, crop, size, seed=0):
  rng = np.random.default_rng(seed)
  return preprocess.prepare(image, View(crop, size=size), image.shape[2], rng)


@dataclasses.dataclass
class Numbers(Source):
  """Example i is an image of the number i."""

  count: int
  name = 'numbers'
  fields = MappingProxyType({
    'image': Field('image', dtype='uint8'), 'label': Field('class', tuple('0123456789'))
  })  # fmt: skip

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    return dict(image=np.full((8, 8, 1), i, np.uint8), label=i % 10, name=f'number {i}')


def config(**changes):
  values = dict(source=None, crop=crops.Resize(), split='train', on_corrupt='error', workers=0)
  return DataConfig(**{**values, **changes})


def numbers(batch):
  return batch['image'][:, 0, 0, 0].tolist()


# --- sources ---


def test_digits_are_prepared_once_and_every_fifth_is_held_out(data_dir):
  source = Tfds(dataset='digits', dir=data_dir)
  train, test = source.open('train'), source.open('test')
  assert (len(train), len(test)) == (1437, 360)
  assert train.class_names == tuple('0123456789')
  pixels = {
    preprocess.decode(s[i]['image'], 1).tobytes() for s in (train, test) for i in range(len(s))
  }
  from sklearn.datasets import load_digits

  want = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
  assert pixels == {image.tobytes() for image in want}


def write_idx(path, array, *, pack):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
  data = header + array.tobytes()
  path.with_name(path.name + '.gz' * pack).write_bytes(gzip.compress(data) if pack else data)


@pytest.mark.parametrize('pack', [False, True])
def test_fashion_mnist_from_idx_files(tmp_path, pack):
  rng = np.random.default_rng(0)
  data = {}
  for part, count in (('train', 12), ('t10k', 5)):
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    data[part] = images, labels
    write_idx(tmp_path / f'{part}-images-idx3-ubyte', images, pack=pack)
    write_idx(tmp_path / f'{part}-labels-idx1-ubyte', labels, pack=pack)
  source = Tfds(dataset='fashion_mnist', dir=str(tmp_path / 'data'), manual_dir=str(tmp_path))
  for split, part in (('train', 'train'), ('test', 't10k')):
    opened = source.open(split)
    assert tuple(opened.class_names) == CLASSES
    found = {
      (preprocess.decode(e['image'], 1).tobytes(), e['label'])
      for e in map(opened.__getitem__, range(len(opened)))
    }
    assert found == {(i.tobytes(), y) for i, y in zip(*data[part], strict=True)}


@pytest.mark.parametrize(
  'content', [b'', b'\0\0\x08', b'\0\0\x09\x01\0\0\0\x01a', b'\0\0\x08\x01\0\0\0\x05a']
)
def test_broken_idx_files(tmp_path, content):
  (tmp_path / 'x').write_bytes(content)
  with pytest.raises(RunError, match=str(tmp_path / 'x')):
    read_idx(tmp_path / 'x')
  (tmp_path / 'y.gz').write_bytes(gzip.compress(content)[:-4] if content else b'junk')
  with pytest.raises(RunError, match=r'y\.gz'):
    read_idx(tmp_path / 'y')


def test_missing_idx_files(tmp_path):
  source = Tfds(dataset='fashion_mnist', dir=str(tmp_path), manual_dir=str(tmp_path / 'nowhere'))
  with pytest.raises(RunError, match='manual_dir'):
    source.open('train')


def test_other_prepared_data_sets_are_found(data_dir):
  Tfds(dataset='digits', dir=data_dir).open('train')
  with pytest.raises(RunError, match=r"no data set 'digit' is prepared .*did you mean digits"):
    Tfds(dataset='digit', dir=data_dir).open('train')
  with pytest.raises(RunError, match=r"no split 'valid': it has .*test"):
    Tfds(dataset='digits', dir=data_dir).open('valid')
  with pytest.raises(RunError, match='nor any other'):
    Tfds(dataset='digit', dir=data_dir + '/empty').open('train')


def test_a_foreign_tfds_data_set_is_read_without_its_builder(data_dir, monkeypatch):
  want = Tfds(dataset='digits', dir=data_dir).open('test')
  monkeypatch.setattr('vit_jax.data.sources.tfds.BUILDERS', {})
  for name in ('digits', 'digits:1.0.0'):
    got = Tfds(dataset=name, dir=data_dir).open('test')
    assert got[3]['image'] == want[3]['image']
    assert got.class_names == want.class_names


def test_folder(folder):
  source = Folder(str(folder)).open('train')
  assert source.class_names == ('cat', 'dog')
  assert [source[i]['label'] for i in range(len(source))] == [0, 0, 0, 1, 1, 1]
  assert preprocess.decode(source[0]['image'], 3).shape == (20, 30, 3)


def test_folder_mistakes(folder, tmp_path):
  with pytest.raises(RunError, match='no directory'):
    Folder(str(folder)).open('valid')
  (folder / 'test' / 'cow').mkdir()
  with pytest.raises(RunError, match='lacks: cow'):
    Folder(str(folder)).open('test')
  (tmp_path / 'empty' / 'train' / 'cat').mkdir(parents=True)
  with pytest.raises(RunError, match='no images'):
    Folder(str(tmp_path / 'empty')).open('train')


def test_the_configuration_loads_no_decoder():
  """It is read by commands that never see an image."""
  code = """
import sys, vit_jax.data.config
heavy = ('numpy', 'grain', 'cv2', 'jax', 'tensorflow_datasets', 'simplejpeg', 'PIL')
print([name for name in heavy if name in sys.modules])
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == '[]\n'


# --- preprocessing ---


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp'])
def test_decode(suffix):
  image = photo()
  data = encode(image, suffix)
  pixels = preprocess.decode(data, 3)
  assert np.abs(pixels.astype(int) - image).mean() < 10  # RGB, not BGR
  assert preprocess.decode(data, 1).shape == (20, 30, 1)
  for broken in (data[: len(data) * 2 // 3], data[:20], b'', b'hello'):
    with pytest.raises(ValueError, match='do not decode'):
      preprocess.decode(broken, 3)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', list(crops.CROPS))
@pytest.mark.parametrize('size', [(8, 8), (16, 40), (20, 30)])
def test_crops_have_the_right_size_and_follow_the_generator(name, size, channels):
  crop = crops.CROPS[name]()
  image = photo()[..., :channels]
  one, two = (prepared(image, crop, size, 5) for _ in range(2))
  assert one.shape == (*size, channels)
  assert one.dtype == np.uint8
  np.testing.assert_array_equal(one, two)


def test_random_crops_cover_the_stated_range():
  image = np.arange(100, dtype=np.uint8)[None, :, None].repeat(100, 0)
  crop = crops.RandomResized(min_area=0.25)
  widths = []
  for seed in range(300):
    out = prepared(image, crop, (64, 64), seed).astype(int)
    widths.append(out.max() - out.min())
  assert min(widths) < 60
  assert max(widths) > 90
  assert min(widths) > 35  # half the side, less the widest aspect ratio


def test_center_crop_keeps_the_middle_and_the_aspect_ratio():
  image = np.zeros((100, 200, 1), np.uint8)
  image[45:55, 95:105] = 255
  out = prepared(image, crops.Center(0.5), (50, 50))
  assert out[20:30, 20:30].mean() > 200
  assert out[:15].max() == 0


def test_affine_turns_and_shifts_as_opencv_does():
  crop, size = crops.Affine(degrees=30.0, zoom=0.2, shift=0.0), (31, 48)
  for seed in range(50):
    angle, zoom, _, _ = np.random.default_rng(seed).uniform(-1, 1, 4)
    want = cv2.getRotationMatrix2D((23.5, 15.0), angle * 30, 1 + zoom * 0.2)
    got = crop.matrix(size, np.random.default_rng(seed))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
  shifted = crops.Affine(0.0, 0.0, 0.1).matrix(size, np.random.default_rng(0))
  _, _, dy, dx = np.random.default_rng(0).uniform(-1, 1, 4)
  np.testing.assert_allclose(shifted, [[1, 0, dx * 4.8], [0, 1, dy * 3.1]])


# --- the pipeline ---


def test_the_first_image_is_tried_where_images_are_arrays_too():
  config = DataConfig(source=Synthetic(num_classes=2, examples=4, image_size=(8, 8)))
  source = config.open('train')
  assert probe(config, source, ((8, 8), 3, 2)) == []
  (line,) = probe(config, source, ((8, 8), 1, 2))
  assert 'colours become grey' in line


def stream(hosts=1, host=0, workers=0, steps=5, start=0, seed=3, source=None):
  rows = range(host * 12 // hosts, (host + 1) * 12 // hosts)
  cfg = config(crop=crops.Affine())
  batches = train_batches(cfg, source or Synthetic(10, 50, (8, 8)).open(''), SHAPE, 12, rows, seed)
  iterator = iterate(batches, start=start, workers=workers)
  out = [next(iterator)['image'] for _ in range(steps)]
  iterator.close()
  return np.stack(out)


@pytest.mark.parametrize('hosts', [2, 4])
def test_any_number_of_hosts_sees_the_same_batches(hosts):
  parts = [stream(hosts, host) for host in range(hosts)]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), stream())


@pytest.mark.filterwarnings('ignore')  # Grain's worker processes warn on their way out
def test_any_number_of_workers_sees_the_same_batches():
  np.testing.assert_array_equal(stream(workers=2), stream())


def test_any_start_continues_the_same_stream():
  np.testing.assert_array_equal(stream(start=2, steps=3), stream(steps=5)[2:])


def test_scattered_rows_are_the_rows_of_the_whole():
  source = Numbers(50)
  all_rows = train_batches(config(), source, SHAPE, 12, range(12), 0)
  some = train_batches(config(), source, SHAPE, 12, [0, 1, 6, 7], 0)
  for step in range(9):
    assert numbers(some[step]) == [numbers(all_rows[step])[row] for row in (0, 1, 6, 7)]


def test_epochs_are_complete_and_in_different_orders():
  batches = train_batches(config(), Numbers(24), SHAPE, 12, range(12), 0)
  one, two = numbers(batches[0]) + numbers(batches[1]), numbers(batches[2]) + numbers(batches[3])
  assert sorted(one) == sorted(two) == list(range(24))
  assert one != two
  other = train_batches(config(), Numbers(24), SHAPE, 12, range(12), 1)
  assert numbers(other[0]) != numbers(batches[0])


class Counted(Numbers):
  """Says when four batches of 16 examples were asked for."""

  def __init__(self, count):
    super().__init__(count)
    self.asked, self.four = itertools.count(1), threading.Event()

  def __getitem__(self, i):
    if next(self.asked) >= 4 * 16:
      self.four.set()
    return super().__getitem__(i)


def test_batches_are_prepared_while_a_step_runs():
  source = Counted(50)
  stream = iterate(train_batches(config(), source, SHAPE, 16, range(16), 0))
  with contextlib.closing(stream):
    next(stream)
    assert source.four.wait(600)  # as a step does that computes elsewhere


@pytest.mark.parametrize('hosts', [1, 2])
@pytest.mark.parametrize('count', [23, 24, 25])
def test_evaluation_sees_every_example_once(count, hosts):
  seen = []
  for host in range(hosts):
    rows = range(host * 8 // hosts, (host + 1) * 8 // hosts)
    batches = eval_batches(config(), crops.Resize(), Numbers(count), SHAPE, 8, rows)
    assert len(batches) == -(-count // 8)
    for batch in iterate(batches):
      assert batch['image'].shape == (8 // hosts, 8, 8, 1)
      seen += [n for n, mask in zip(numbers(batch), batch['mask'], strict=True) if mask]
  assert sorted(seen) == list(range(count))


@pytest.mark.parametrize(
  'workers', [0, pytest.param(1, marks=pytest.mark.filterwarnings('ignore'))]
)
def test_a_corrupt_image_is_named(folder, workers):
  bad = folder / 'train' / 'dog' / '1.png'
  bad.write_bytes(bad.read_bytes()[:100])
  source = Folder(str(folder)).open('train')
  batches = train_batches(config(), source, SHAPE, 6, range(6), 0)
  with pytest.raises(RunError, match=f'corrupt image {bad}.*on_corrupt=skip'):
    next(iterate(batches, workers=workers))


def test_a_corrupt_image_is_skipped_and_counted(folder, caplog):
  bad = folder / 'train' / 'dog' / '1.png'
  bad.write_bytes(b'')
  source = Folder(str(folder)).open('train')
  batches = train_batches(config(on_corrupt='skip'), source, SHAPE, 6, range(6), 0)
  for step in range(3):
    assert batches[step]['mask'].sum() == 5
  assert str(bad) in caplog.text


def test_labels_outside_the_classes_are_named():
  batches = train_batches(config(), Numbers(8), ((8, 8), 1, 4), 8, range(8), 0)
  with pytest.raises(RunError, match=r'number [4567] has label [4567], outside the 4 classes'):
    next(iterate(batches))


def test_on_corrupt_has_two_values():
  with pytest.raises(RunError, match='did you mean skip'):
    train_batches(config(on_corrupt='skp'), Numbers(8), SHAPE, 8, range(8), 0)


def test_a_cached_split_is_read_once(data_dir):
  """It gives the same examples, to every run of a process, of sources that read in bulk or not."""
  config = DataConfig(source=Tfds(dataset='digits', dir=data_dir), cache=True)
  plain = dataclasses.replace(config, cache=False)
  cached, reference = config.open('test'), plain.open('test')
  assert config.open('test') is cached
  assert len(cached) == len(reference)
  assert cached.class_names == reference.class_names
  for index in (0, 7, len(cached) - 1):
    assert cached[index] == reference[index]
  other = dataclasses.replace(config, source=Synthetic(examples=3))
  np.testing.assert_array_equal(other.open('x')[2]['image'], other.source.open('x')[2]['image'])
