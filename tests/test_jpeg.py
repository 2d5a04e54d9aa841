"""JPEG files decoded in part: the same pixels, or nearly, and no damage unnoticed."""

import struct

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from vit_jax.data import crops, jpeg, preprocess
from vit_jax.data.preprocess import cut
from vit_jax.data.views import View

SIZE = 427, 640
BOX = 51, 80, 211, 300


def encode(image, *options, quality=90):
  image = image if image.ndim == 2 else image[..., ::-1]
  return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1].tobytes()


@pytest.fixture(scope='module')
def photo():
  return load_sample_image('china.jpg')


@pytest.fixture(scope='module')
def data(photo):
  return encode(photo)


def with_exif(data, orientation, order='<'):
  """The file with an orientation tag, behind one that says nothing."""
  ifd = struct.pack(f'{order}HHHIHHHHIHHI', 2, 0x0100, 3, 1, 9, 0, 0x0112, 3, 1, orientation, 0, 0)
  tiff = (b'II' if order == '<' else b'MM') + struct.pack(f'{order}HI', 42, 8) + ifd
  body = b'Exif\0\0' + tiff
  return data[:2] + b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body + data[2:]


def mean_difference(a, b):
  return np.abs(a.astype(int) - b).mean()


# --- pixels ---


@pytest.mark.parametrize(
  'options',
  [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
   (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)],
)  # fmt: skip
@pytest.mark.parametrize('channels', [1, 3])
def test_a_part_has_the_pixels_of_the_whole(photo, options, channels):
  data = encode(photo, *options)
  header = jpeg.read_header(data)
  whole = preprocess.decode(data, channels)
  assert (header.height, header.width) == SIZE
  for box in (BOX, (0, 0, *SIZE), (0, 0, 1, 1), (426, 639, 1, 1), (15, 3, 16, 16), (16, 0, 17, 9)):
    np.testing.assert_array_equal(
      jpeg.decode(data, header, box, channels), cut(whole, box), str(box)
    )


def test_rows_below_the_part_are_not_decoded(data):
  """The file may be damaged there."""
  at = len(data) * 3 // 4
  damaged = data[:at] + bytes(2000) + data[at + 2000 :]
  header = jpeg.read_header(data)
  np.testing.assert_array_equal(
    jpeg.decode(damaged, header, BOX, 3), jpeg.decode(data, header, BOX, 3)
  )
  assert jpeg.decode(damaged, header, (0, 0, *SIZE), 3) is None


@pytest.mark.parametrize('factor', [1, 2, 4, 8])
def test_short_cuts_hardly_change_the_pixels(data, factor):
  box = 48, 80, 208, 296
  short = jpeg.decode(data, jpeg.read_header(data), box, 3, fast=True, factor=factor)
  want = preprocess.resize(cut(preprocess.decode(data, 3), box), (208 // factor, 296 // factor))
  assert short.shape == want.shape
  # Of 255 levels. A shift by one row would be 11 to 15 of them.
  assert mean_difference(short, want) < 5
  # Without a shift or a stretch, what is left averages out.
  assert mean_difference(*(preprocess.resize(x, (13, 18)) for x in (short, want))) < 1


@pytest.mark.parametrize('size', [48, 96, 224])
def test_random_crops_are_nearly_those_of_a_full_decode(photo, data, size):
  crop, size, differences = crops.RandomResized(), (size, size), []
  whole = preprocess.decode(data, 3)
  for seed in range(30):
    fast = preprocess.prepare(data, View(crop, size=size), 3, np.random.default_rng(seed))
    box = crop.box(*SIZE, size, np.random.default_rng(seed))
    differences.append(mean_difference(fast, preprocess.resize(cut(whole, box), size)))
  assert np.mean(differences) < 3  # Pillow's bicubic resize differs by 1.6 from averaging
  assert max(differences) < 7


@pytest.mark.parametrize(
  ('height', 'width', 'factor'),
  [(30, 900, 1), (96, 96, 1), (191, 400, 1), (192, 192, 2), (767, 800, 4), (4000, 3000, 8)],
)
def test_images_are_never_decoded_smaller_than_needed(height, width, factor):
  assert crops.octaves(height, width, (96, 96)) == factor


@pytest.mark.parametrize('name', ['resize', 'center', 'affine'])
def test_other_crops_are_those_of_a_full_decode(data, name):
  crop = crops.CROPS[name]()
  view = View(crop, size=(96, 96))
  got = preprocess.prepare(data, view, 3, np.random.default_rng(0))
  want = preprocess.prepare(preprocess.decode(data, 3), view, 3, np.random.default_rng(0))
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('suffix', ['.png', '.webp', '.bmp'])
def test_the_crop_does_not_depend_on_the_format(photo, data, suffix):
  other = cv2.imencode(suffix, photo[..., ::-1])[1].tobytes()
  crop = crops.RandomResized()
  for seed in range(5):
    a, b = (
      preprocess.prepare(d, View(crop, size=(96, 96)), 3, np.random.default_rng(seed))
      for d in (data, other)
    )
    assert mean_difference(a, b) < 7


# --- files that are not as usual ---


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('orientation', range(10))
def test_exif_turns_images(photo, orientation, order):
  data = with_exif(encode(photo), orientation, order)
  pixels = preprocess.prepare(data, View(size=(40, 40)), 3, None)
  want = preprocess.resize(preprocess.decode(data, 3), (40, 40))
  np.testing.assert_array_equal(pixels, want)
  assert (jpeg.read_header(data) is None) == (2 <= orientation <= 8)


def test_grey_files_may_become_colour_and_colour_grey(photo, data):
  grey = encode(photo[..., 1])
  for image, channels in ((grey, 3), (grey, 1), (data, 1)):
    got = jpeg.decode(image, jpeg.read_header(image), BOX, channels)
    np.testing.assert_array_equal(got, cut(preprocess.decode(image, channels), BOX))


@pytest.mark.parametrize('keep', [0.2, 0.5, 0.9, 0.9999])
def test_a_file_cut_short_is_noticed_wherever_the_crop_is(data, keep):
  short = data[: int(len(data) * keep)]
  for box in ((0, 0, 20, 640), BOX, (0, 0, *SIZE)):
    assert jpeg.decode(short, jpeg.read_header(data), box, 3) is None
  view = View(crops.RandomResized(), size=(96, 96))
  with pytest.raises(ValueError, match='do not decode'):
    preprocess.prepare(short, view, 3, np.random.default_rng(0))


def test_damage_above_the_crop_is_left_to_opencv(data):
  damaged = data[:9000] + b'\xff\x10' + data[9002:]
  assert jpeg.decode(damaged, jpeg.read_header(damaged), BOX, 3) is None


def test_a_header_that_lies(data):
  header = jpeg.read_header(data)
  for height in (500, 60000):
    lying = bytearray(data)
    struct.pack_into('>H', lying, header.frame + 5, height)
    told = jpeg.read_header(bytes(lying))
    assert told.height == height
    assert jpeg.decode(bytes(lying), told, (height - 100, 0, 100, 600), 3) is None


def test_unusual_headers(data):
  header = jpeg.read_header(data)
  changes = {'12 bits': (4, b'\x0c'), 'no height': (5, b'\0\0'), '4 channels': (9, b'\x04')}
  for name, (at, value) in changes.items():
    at += header.frame
    assert jpeg.read_header(data[:at] + value + data[at + len(value) :]) is None, name
  for broken in (b'', b'\xff\xd8', data[:50], data[: header.frame + 6], b'\xff\xd8' + bytes(50)):
    assert jpeg.read_header(broken) is None
