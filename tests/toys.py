"""Small data sets on disk, written by others than the code under test."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

import vit_jax
from configs import image_folder
from vit_jax.architecture.card import Card
from vit_jax.training import config as config_lib

COLOURS = {'cat': (200, 40, 40), 'dog': (40, 200, 40), 'fox': (40, 40, 200)}


def toy(root, train=6, test=3, suffix='.png', alpha=False):
  """{train,test}/{cat,dog,fox}/N: solid colours with noise, 40x48 pixels."""
  rng = np.random.default_rng(0)
  for split, count in (('train', train), ('test', test)):
    for name, colour in COLOURS.items():
      for i in range(count):
        pixels = np.clip(colour + rng.normal(0, 10, (40, 48, 3)), 0, 255).astype(np.uint8)
        if alpha:
          pixels = np.dstack([pixels, rng.integers(0, 256, (40, 48), np.uint8)])
        path = root / split / name / f'{i}{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
  return root


def headless(**changes):
  """A ViT for images of 16 pixels that gives features alone."""
  fields = dict(
    seed=1, image_size=(16, 16), depth=1, width=16, mlp_dim=16, num_heads=2, pool='token'
  )
  model = vit_jax.create('mu/8', **{**fields, **changes})
  model.card = Card('vit_jax', (16, 16))
  return model


def config(root, **changes):
  """Of configs/image_folder.py, a run of seconds; model__width=8 sets model.width."""
  values = dict(
    model__variant='mu/8', model__image_size=(16, 16), model__depth=1, model__width=16,
    model__mlp_dim=16, model__dtype='float32', total='2 steps', batch_size=8, optim__warmup='0',
  )  # fmt: skip
  config = image_folder.get_config(str(root)).unlock()
  flat = {name.replace('__', '.'): value for name, value in {**values, **changes}.items()}
  config.update_from_flattened_dict(flat)
  return config_lib.complete(config_lib.to_dict(config))


def encoded(pixels, kind, **options):
  """An image file, by Pillow."""
  file = io.BytesIO()
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  image.save(file, kind, **options)
  return file.getvalue()


def npy(array):
  """A .npy file."""
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def tiff(array, photometric=1, *, extra=0, planar=False, deflate=False, orientation=1, order='<',
         predictor=1):  # fmt: skip
  """A TIFF file of an array (height, width, channels), by the book (TIFF 6.0)."""
  height, width, channels = array.shape
  if predictor == 2:
    array = np.diff(array, axis=1, prepend=np.zeros_like(array[:, :1]))
  array = array.astype(array.dtype.newbyteorder(order))
  strips = np.moveaxis(array, 2, 0) if planar else array[None]
  strips = [zlib.compress(s.tobytes()) if deflate else s.tobytes() for s in strips]
  size = array.dtype.itemsize
  kind = {'u': 1, 'i': 2, 'f': 3}[array.dtype.kind]
  offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
  tags = {
    256: (4, [width]), 257: (4, [height]), 258: (3, [8 * size] * channels),
    259: (3, [8 if deflate else 1]), 262: (3, [photometric]), 273: (4, offsets),
    274: (3, [orientation]), 277: (3, [channels]), 278: (4, [height]),
    279: (4, list(map(len, strips))), 284: (3, [2 if planar else 1]), 317: (3, [predictor]),
    338: (3, [extra] * (channels - {1: 1, 2: 3}[photometric])), 339: (3, [kind] * channels),
  }  # fmt: skip
  body = b''.join(strips)
  entries = b''
  for tag, (type_, values) in tags.items():
    packed = struct.pack(f'{order}{len(values)}{"H" if type_ == 3 else "I"}', *values)
    if values and len(packed) > 4:
      packed, place = struct.pack(f'{order}I', 8 + len(body)), packed
      body += place
    if values:
      entries += struct.pack(f'{order}HHI', tag, type_, len(values)) + packed.ljust(4, b'\0')
  start = (b'II' if order == '<' else b'MM') + struct.pack(f'{order}HI', 42, 8 + len(body))
  count = struct.pack(f'{order}H', len(entries) // 12)
  return start + body + count + entries + bytes(4)
