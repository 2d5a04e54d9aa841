"""Images of any number of channels: read as they are, or refused by name, never made up."""

import itertools
import logging
import subprocess
import sys
from types import MappingProxyType

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests import toys
from tests.batches import eval_batches, probe, train_batches
from vit_jax.core.errors import RunError
from vit_jax.data import preprocess
from vit_jax.data.config import DataConfig
from vit_jax.data.crops import CROPS, Resize
from vit_jax.data.examples import Source
from vit_jax.data.fields import Field
from vit_jax.data.misfit import MisfitError
from vit_jax.data.views import View
from vit_jax.training.loop import train

HEIGHT, WIDTH = 20, 31
SIZES = ((8, 8), (20, 31), (24, 40))


@pytest.fixture(scope='module')
def pixels():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (HEIGHT, WIDTH, 13), dtype=np.uint8)


def files(pixels):
  """Files without loss, by name: their bytes and pixels in the order of channels of a file."""
  grey, both, colour, all_ = (pixels[..., c] for c in (0, [0, 1], [0, 1, 2], [0, 1, 2, 3]))
  images = {'L': grey, 'LA': both, 'RGB': colour, 'RGBA': all_}
  save = lambda mode, kind, **o: toys.encoded(Image.fromarray(images[mode], mode), kind, **o)  # noqa: E731
  found = {f'png {m}': (save(m, 'PNG'), images[m]) for m in images}
  found |= {f'webp {m}': (save(m, 'WEBP', lossless=True, exact=True), images[m])
            for m in ('RGB', 'RGBA')}  # fmt: skip
  found |= {f'jp2 {m}': (save(m, 'JPEG2000'), images[m]) for m in ('L', 'RGB', 'RGBA')}
  found |= {f'{k} {m}': (save(m, k), images[m]) for k in ('BMP', 'PPM') for m in ('L', 'RGB')}
  found |= {
    f'tiff {m} {c}': (save(m, 'TIFF', compression=c), images[m])
    for m in images for c in (None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits')
  }  # fmt: skip
  for channels in (1, 2, 3, 4, 5, 13):
    array = pixels[..., :channels]
    found[f'npy {channels}'] = toys.npy(array), array
    for photometric, planar, deflate, order in itertools.product(
      (1, 2), *[(False, True)] * 2, '<>'
    ):
      if photometric == 1 or channels > 2:
        options = dict(planar=planar, deflate=deflate, order=order)
        name = f'tiff {channels} {photometric} {options}'
        found[name] = toys.tiff(array, photometric, **options), array
  found['npy HW'] = toys.npy(grey), grey
  found['npy fortran'] = toys.npy(np.asfortranarray(colour)), colour
  for channels in (3, 4):  # LZW with differences between neighbours
    order = [2, 1, 0, 3][:channels]
    found[f'cv2 tiff {channels}'] = (
      cv2.imencode('.tif', pixels[..., order])[1].tobytes(), pixels[..., :channels]
    )  # fmt: skip
  return found


def test_all_channels_are_read(pixels):
  for name, (data, want) in files(pixels).items():
    want = want.reshape(HEIGHT, WIDTH, -1)
    got = preprocess.decode(data, want.shape[2])
    np.testing.assert_array_equal(got, want, err_msg=name)


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF'])
def test_grey_colour_and_alpha(pixels, kind):
  """Conversions are those of Pillow, which keeps the colours of what is transparent."""
  for mode in ('L', 'LA', 'RGB', 'RGBA'):
    if kind == 'WEBP' and mode in ('L', 'LA'):
      continue
    image = Image.fromarray(pixels[..., : len(mode)].squeeze(), mode)
    options = dict(lossless=True, exact=True) if kind == 'WEBP' else {}
    data = toys.encoded(image, kind, **options)
    for channels, other in enumerate(('L', 'LA', 'RGB', 'RGBA'), start=1):
      if channels in (2, 4) and 'A' not in mode:
        with pytest.raises(MisfitError, match=f'has {len(mode)} channel.* takes {channels}'):
          preprocess.decode(data, channels)
        continue
      want = np.asarray(image.convert(other)).reshape(HEIGHT, WIDTH, channels)
      got = preprocess.decode(data, channels)
      assert np.abs(got.astype(int) - want).max() <= 2, (mode, other)  # weights of grey differ
  with pytest.raises(MisfitError, match=r'has 4 channels, and the model takes 5'):
    preprocess.decode(data, 5)


def test_of_other_channels_nothing_is_known(pixels):
  """A fourth band, such as infrared, is not alpha unless the file says so."""
  four = pixels[..., :4]
  for data in (toys.npy(four), toys.tiff(four, 2), toys.tiff(four, 1), toys.npy(pixels)):
    with pytest.raises(MisfitError, match='takes 3'):
      preprocess.decode(data, 3)
  np.testing.assert_array_equal(preprocess.decode(toys.tiff(four, 2, extra=2), 3), four[..., :3])


def test_palettes_are_expanded(pixels):
  image = Image.fromarray(pixels[..., :3]).quantize(16)
  for kind in ('PNG', 'GIF', 'BMP', 'TIFF'):
    got = preprocess.decode(toys.encoded(image, kind), 3)
    np.testing.assert_array_equal(got, np.asarray(image.convert('RGB')), err_msg=kind)
  data = toys.encoded(image, 'PNG', transparency=3)
  got = preprocess.decode(data, 4)
  assert ((got[..., 3] == 0) == (np.asarray(image) == 3)).all()


def test_what_is_not_8_bits_is_refused(pixels):
  grey, colour = pixels[..., 0], pixels[..., :3]
  files = {
    'png': toys.encoded(Image.fromarray(grey.astype(np.uint16) * 257), 'PNG'),
    'png colour': cv2.imencode('.png', colour.astype(np.uint16) * 257)[1].tobytes(),
    'jp2': toys.encoded(Image.fromarray(grey.astype(np.uint16) * 257), 'JPEG2000'),
    'avif': cv2.imencode('.avif', colour.astype(np.uint16) * 4, [cv2.IMWRITE_AVIF_DEPTH, 10])[
      1
    ].tobytes(),
    'pgm': b'P5\n4 4\n1000\n' + bytes(32),
    'pgm of few levels': b'P5 # made by hand\n4 4\n15\n' + bytes(range(16)),
    'tiff of few bits': toys.tiff(colour).replace(b'\x08\0\x08\0\x08\0', b'\x04\0\x04\0\x04\0'),
  }
  for dtype in (np.uint16, np.int16, np.int8, np.uint32, np.float32, np.float64):
    files[f'tiff {dtype}'] = toys.tiff(colour.astype(dtype), 2)
    files[f'npy {dtype}'] = toys.npy(colour.astype(dtype))
  files['npy bool'] = toys.npy(colour > 9)
  files['npy of a line'] = toys.npy(grey[0])
  files['npy of nothing'] = toys.npy(grey[:0])
  for name, data in files.items():
    for channels in (1, 3, 4):
      with pytest.raises(MisfitError) as caught:
        preprocess.decode(data, channels)
      assert '\n' not in str(caught.value), name
  for data in (toys.npy(np.array([{}], object)), toys.npy(grey)[:-1], b'\x93NUMPY', b'\x93NUMPY\1'):
    with pytest.raises(ValueError, match='not a valid'):
      preprocess.decode(data, 1)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_of_any_channels_are_turned_upright(pixels, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  smooth = cv2.resize(pixels[:4, :6], (48, 32), interpolation=cv2.INTER_LINEAR)
  for mode, kind in itertools.product(('RGB', 'RGBA', 'LA'), ('PNG', 'WEBP', 'AVIF')):
    if mode == 'LA' and kind != 'PNG':
      continue
    options = dict(quality=100) if kind == 'AVIF' else {}
    options |= dict(lossless=True, exact=True) if kind == 'WEBP' else {}
    image = Image.fromarray(smooth[..., : len(mode)].copy(), mode)
    data = toys.encoded(image, kind, exif=exif.tobytes(), **options)
    want = np.asarray(ImageOps.exif_transpose(image_of(data)).convert(mode))
    got = preprocess.decode(data, len(mode))
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < 1, (mode, kind)
  for channels in (3, 5):
    data = toys.tiff(pixels[..., :channels], 1 + (channels == 3), orientation=orientation)
    planes = [Image.fromarray(pixels[..., i]) for i in range(channels)]
    for plane in planes:
      plane.getexif()[0x0112] = orientation
    want = np.dstack([np.asarray(ImageOps.exif_transpose(plane)) for plane in planes])
    np.testing.assert_array_equal(preprocess.decode(data, channels), want)


def image_of(data):
  import io

  return Image.open(io.BytesIO(data))


def complaint(data, channels):
  """What is said of a file; '' if it is read."""
  try:
    pixels = preprocess.decode(data, channels)
  except ValueError as error:
    return str(error)
  assert (pixels.shape[2], pixels.dtype) == (channels, np.uint8)
  return ''


def test_damaged_files(pixels):
  """Whatever is missing or wrong: an image, or an error of one line."""
  rng = np.random.default_rng(0)
  for data, want in files(pixels).values():
    channels = want.reshape(HEIGHT, WIDTH, -1).shape[2]
    for place in (300, len(data)):
      for _ in range(10):
        broken = bytearray(data)
        broken[rng.integers(min(place, len(data)))] ^= 1 << rng.integers(8)
        for part in (broken, data[: rng.integers(len(data))]):
          assert '\n' not in complaint(bytes(part), channels)


def test_damaged_tiff_files(pixels):
  """Whatever byte is missing or wrong: an error, or an image of the same shape."""
  rng = np.random.default_rng(0)
  for array, options in ((pixels, {}), (pixels[..., :5], dict(planar=True, deflate=True))):
    data = toys.tiff(array, **options)
    for cut in (0, 1, 7, 8, 100, len(data) // 2, *range(len(data) - 260, len(data) - 4, 7)):
      with pytest.raises(ValueError, match=r'.'):
        preprocess.decode(data[:cut], array.shape[2])
    for _ in range(300):
      broken = bytearray(data)
      broken[len(data) - 1 - rng.integers(300)] ^= 1 << rng.integers(8)
      assert '\n' not in complaint(bytes(broken), array.shape[2])


def test_tiff_files_whose_pixels_are_cut_off(pixels):
  """Pillow writes the header first: nothing else may be taken for what is missing."""
  for channels in (1, 2, 3, 4):
    data = toys.encoded(Image.fromarray(pixels[..., :channels].squeeze()), 'TIFF')
    for missing in (1, 10, 300):
      with pytest.raises(ValueError, match='cut short'):
        preprocess.decode(data[:-missing], channels)


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 5, 13, 200])
@pytest.mark.parametrize('name', list(CROPS))
def test_every_channel_is_cropped_alike(name, channels):
  """As OpenCV does it with one of them alone."""
  rng = np.random.default_rng(1)
  image = rng.integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
  for size in SIZES:
    rng, view = lambda: np.random.default_rng(5), View(CROPS[name](), size=size)
    got = preprocess.prepare(image, view, channels, rng())
    assert got.shape == (*size, channels)
    for i in {0, channels // 2, channels - 1}:
      want = preprocess.prepare(image[..., i : i + 1], view, 1, rng())
      np.testing.assert_allclose(got[..., i : i + 1].astype(int), want, atol=1)


# --- batches ---


class Files(Source):
  """A source of files that are given."""

  name = 'files'
  fields = MappingProxyType({'image': Field('image'), 'label': Field('class', ('a', 'b'))})

  def __init__(self, images):
    self._images = images

  def __len__(self):
    return len(self._images)

  def __getitem__(self, i):
    return dict(image=self._images[i], label=i % 2, name=f'file {i}')


def kinds_of_files(pixels):
  files_ = [data for data, _ in files(pixels).values()]
  photo = cv2.GaussianBlur(pixels[..., :3].repeat(9, 0).repeat(9, 1), (9, 9), 3)
  for image, options in itertools.product(
    (photo, photo[..., 0]), ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
  ):
    data = cv2.imencode('.jpg', image, options)[1].tobytes()
    files_ += [data, data[:-40], data[: len(data) // 2]]
    rng = np.random.default_rng(2)
    for _ in range(12):
      broken = bytearray(data)
      broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
      files_.append(bytes(broken))
  return [*files_, pixels, pixels[..., :1], pixels[..., :3], b'', b'junk']


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 5])
@pytest.mark.parametrize('name', list(CROPS))
def test_no_batch_holds_what_was_in_memory(pixels, name, channels, monkeypatch, caplog):
  """Buffers that are full of one thing or another give the same batches, whatever the files."""
  caplog.set_level(logging.CRITICAL)
  source, empty, made = Files(kinds_of_files(pixels)), np.empty, []
  config = DataConfig(source=None, crop=CROPS[name](), on_corrupt='skip')
  shape, rows = ((16, 24), channels, 2), 8
  for garbage in (77, 191):

    def poisoned(*args, garbage=garbage, **kwargs):
      array = empty(*args, **kwargs)
      array[...] = garbage
      return array

    monkeypatch.setattr(np, 'empty', poisoned)
    of_training = train_batches(config, source, shape, rows, range(rows), 0)
    of_evaluation = eval_batches(config, config.crop, source, shape, rows, range(rows))
    batches = [of_training[i] for i in range(-(-len(source) // rows))]
    batches += [of_evaluation[i] for i in range(len(of_evaluation))]
    made.append({key: np.stack([batch[key] for batch in batches]) for key in batches[0]})
    monkeypatch.undo()
  for key in made[0]:
    np.testing.assert_array_equal(made[0][key], made[1][key])
  used = made[0]['mask'].sum(axis=1)
  assert used.any()
  assert (used < rows).any()
  assert not made[0]['image'][made[0]['mask'] == 0].any()


def test_a_probe_refuses_and_tells(pixels):
  shape, config = ((8, 8), 3, 2), DataConfig(source=None)
  skipping = DataConfig(source=None, on_corrupt='skip')
  rgba = toys.encoded(pixels[..., :4], 'PNG')
  assert probe(config, Files([rgba]), shape) == ['files: alpha is dropped in the first image']
  assert probe(config, Files([pixels[..., :3]]), shape) == []
  assert 'grey is repeated' in probe(skipping, Files([b'', pixels[..., :1]]), shape)[0]
  with pytest.raises(RunError, match=r'file 0 has 13 channels.*in_channels=13'):
    probe(config, Files([pixels]), shape)
  with pytest.raises(RunError, match='none of the first 2 images can be used'):
    probe(skipping, Files([b'', pixels]), shape)


def test_an_odd_image_among_others_is_named(pixels):
  source = Files([toys.encoded(pixels[..., :4], 'PNG'), toys.encoded(pixels[..., :3], 'PNG')])
  config = DataConfig(source=None)
  batches = eval_batches(config, Resize(), source, ((8, 8), 4, 2), 2, range(2))
  message = r'file 1 has 3 channels, and the model takes 4.*on_corrupt=skip'
  with pytest.raises(RunError, match=message):
    batches[0]


# --- runs ---


@pytest.mark.slow
def test_a_run_with_alpha(tmp_path, capsys):
  """Where only alpha differs between the classes it is what is learnt."""
  rng = np.random.default_rng(0)
  for split, label, i in itertools.product(('train', 'test'), (0, 1), range(8)):
    image = rng.integers(100, 150, (16, 16, 4), dtype=np.uint8)
    image[..., 3] = 40 + 170 * label
    path = tmp_path / 'data' / split / 'ab'[label] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
  half = dict(task__mean=(0.5,), task__std=(0.5,))
  config = toys.config(
    tmp_path / 'data', model__in_channels=4, total='12 steps', optim__lr=3e-3, task__mixup=0.0,
    data__crop={'name': 'resize'}, evals__test__every='100%', **half,
  )  # fmt: skip
  result = train(config, str(tmp_path / 'run'))
  assert result['metrics']['test/top1'] == 1
  assert 'alpha is dropped' not in capsys.readouterr().out
  with pytest.raises(RunError, match=r'0\.png has 4 channels, and the model takes 5\.'):
    train(toys.config(tmp_path / 'data', model__in_channels=5, **half), str(tmp_path / 'five'))


@pytest.mark.parametrize(
  ('field', 'values'),
  [('mean', (0.5, 0.5, 0.5)), ('std', (0.5, 0.5)), ('mean', ()), ('std', (0.0,)), ('std', (-1.0,)),
   ('mean', (float('nan'),)), ('std', (float('inf'),))],
)  # fmt: skip
def test_means_and_deviations_must_fit_the_channels(tmp_path, field, values):
  values = {'task__mean': (0.5,), 'task__std': (0.5,), f'task__{field}': values}
  config = toys.config(toys.toy(tmp_path / 'toy', 1, 1), model__in_channels=1, **values)
  with pytest.raises(RunError, match=rf'^task\.{field}=[^\n]*$'):
    train(config, str(tmp_path / 'run'))


def test_the_command_refuses_channels_that_are_not_there(tmp_path):
  toys.toy(tmp_path / 'toy', 1, 1, '.jpg')
  done = subprocess.run(
    [sys.executable, '-m', 'vit_jax.train', f'--config=configs/image_folder.py:{tmp_path}/toy',
     '--config.model.variant=mu/16', '--config.model.image_size=32,32', '--config.batch_size=8',
     "--config.total=4 steps", '--config.optim.warmup=0', f'--workdir={tmp_path}/run',
     '--config.model.in_channels=4', '--config.task.mean=0.5', '--config.task.std=0.5'],
    capture_output=True, text=True,
  )  # fmt: skip
  lines = [line for line in done.stderr.splitlines() if 'train/cat/0.jpg' in line]
  assert done.returncode == 1
  assert len(lines) == 1
  assert 'has 3 channels, and the model takes 4' in lines[0]
  assert '--config.model.in_channels=3' in lines[0]
  assert 'Traceback' not in done.stderr
