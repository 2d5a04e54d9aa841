"""Makes a data set smaller, once, so that every epoch of training reads less of it.

    python -m vit_jax.data.pack photos data/photos_256 --size=256

Grey images become colour, alpha is dropped, and images of more channels are refused. The result is
a data set of TFDS like any other, which appears when it is complete:

    python -m vit_jax.train --config=configs/tfds.py:photos_256 --config.data.source.dir=data ...
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from vit_jax.core import command, paths
from vit_jax.core.errors import RunError
from vit_jax.data import preprocess
from vit_jax.data.config import ON_CORRUPT
from vit_jax.data.examples import Source
from vit_jax.data.fields import require
from vit_jax.data.misfit import MisfitError
from vit_jax.data.sources import found, open_split
from vit_jax.data.sources.tfds import Tfds

VERSION = '1.0.0'
# BMP is raw pixels under a header that every reader of images knows.
FORMATS = ('jpg', 'bmp')


def shrink(image: bytes | np.ndarray, size: int, format: str, quality: int = 90) -> bytes:
  """An encoded image whose shorter side is at most `size`, upright and in colour.

  Args:
    image: encoded, or uint8 (height, width, 3).
    size: of the shorter side, in pixels; images are never enlarged, and a JPEG file that is small
      enough stays as it is.
    format: one of `FORMATS`.
    quality: of JPEG, up to 100.

  Raises:
    ValueError: if the bytes are not a valid image, or only the beginning of one, or an image of
      other channels than grey, colour and alpha, or of more than 8 bits.
  """
  pixels = preprocess.decode(image, 3)
  height, width = pixels.shape[:2]
  scale = min(1.0, size / min(height, width))
  if scale == 1 and format == 'jpg' and isinstance(image, bytes) and image[:2] == b'\xff\xd8':
    return image
  pixels = preprocess.resize(pixels, (round(height * scale), round(width * scale)))
  options = [cv2.IMWRITE_JPEG_QUALITY, quality] if format == 'jpg' else []
  return cv2.imencode(f'.{format}', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def pack(
  sources: dict[str, Source], target: str, *, size: int = 256, format: str = 'jpg',
  quality: int = 90, on_corrupt: str = 'error',
) -> paths.Path:  # fmt: skip
  """Writes splits, each in its order, to a TFDS data set of ArrayRecord files.

  Args:
    sources: by split, with the same classes.
    target: DIR/NAME for the data set NAME in DIR.
    size, format, quality: see `shrink`.
    on_corrupt: whether an image that cannot be used is an 'error' or left out ('skip').

  Returns:
    The directory with the files.

  Raises:
    RunError: if the data set already exists, cannot be written, or an image is corrupt.
  """
  path = paths.at(target)
  if not re.fullmatch(r'[a-zA-Z]\w*', path.name):
    raise RunError(f'{path.name!r} is not a valid name for a data set: use letters, digits and _')
  if (path / VERSION).exists():
    raise RunError(f'{path / VERSION} already exists: delete it, or choose another name')
  for source in sources.values():
    require(source.fields, {'image': 'image', 'label': 'class'}, source.name)
    if others := [name for name in source.fields if name not in ('image', 'label')]:
      logging.getLogger(__name__).warning('%s: not packed: %s', source.name, ', '.join(others))
  names = next(iter(sources.values())).class_names

  def example(source: Source, index: int) -> dict[str, Any] | None:
    found = source[index]
    try:
      image = shrink(found['image'], size, format, quality)  # type: ignore
    except ValueError as error:
      name = found['name']
      text = (
        f'{name} {error}' if isinstance(error, MisfitError) else (f'corrupt image {name}: {error}')
      )
      if on_corrupt == 'error':
        raise RunError(f'{text}. To leave such files out: --on_corrupt=skip') from None
      logging.getLogger(__name__).warning('left out: %s', text)
      return None
    return {'image': image, 'label': found['label']}

  def examples(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    # Decoding and encoding run outside of the interpreter's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for start in range(0, len(source), 1024):
        part = range(start, min(start + 1024, len(source)))
        for i, made in zip(part, pool.map(lambda i: example(source, i), part), strict=True):
          if made:
            yield i, made

  class Packed(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """See `pack`."""

    name = path.name
    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(
        builder=self,
        description=f'Shorter sides of at most {size} pixels, written by vit_jax.data.pack.',
        features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(),
          'label': tfds.features.ClassLabel(names=list(names)),
        }),
        disable_shuffling=True,
      )  # fmt: skip

    def _split_generators(self, dl_manager):
      del dl_manager
      return {split: examples(source) for split, source in sources.items()}

    def _generate_examples(self):
      raise NotImplementedError  # abstract above, but the generators are there already

  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    Packed(data_dir=str(path.parent), file_format='array_record').download_and_prepare()
  except OSError as error:
    raise RunError(f'cannot write {path}: {error.strerror}') from error
  return path / VERSION


def _summary(source: Source) -> list[str]:
  """What is in a source, and what becomes of the channels of its first image."""
  with contextlib.suppress(ValueError):
    image: Any = source[0]['image']
    if done := preprocess.conversion(image, 3):
      return [*source.summary(), f'{source.name}: {done} in the first image']
  return source.summary()


def main(
  source: str, target: str, splits: str, size: int, format: str, quality: int, on_corrupt: str
) -> None:
  """Opens the splits and packs them."""
  if size < 1 or not 1 <= quality <= 100:
    raise RunError('--size must be at least 1, --quality between 1 and 100')
  path = paths.at(source)
  opened = found(path)
  sources = {}
  for text in splits.split(','):
    name, _, split = text.partition('=')
    if not re.fullmatch(r'[a-zA-Z]\w*', name):
      raise RunError(f'--splits: {text!r} needs a name of letters, digits and _: NAME={text}')
    sources[name] = open_split(opened, split or name)
  for line in dict.fromkeys(line for source in sources.values() for line in _summary(source)):
    print(line)
  done = pack(sources, target, size=size, format=format, quality=quality, on_corrupt=on_corrupt)
  size_mb = sum(file.stat().st_size for file in done.iterdir()) / 1e6
  packed = Tfds(dataset=done.parent.name, dir=str(done.parent.parent))
  written = sum(len(open_split(packed, name)) for name in sources)
  left_out = sum(map(len, sources.values())) - written
  rest = f', {left_out:,} left out' if left_out else ''
  print(f'{done}: {written:,} images, {size_mb:,.1f} MB{rest}')


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.data.pack',
    'Writes a copy of a data set with smaller images, as a data set of TFDS.',
    (
      'photos data/photos_256 --size=256 --quality=90',
      "photos data/small --splits='train=train without fold 1/10,test=fold 1/10 of train'",
    ),
  )
  parser.add_argument(
    'source', help='a folder {split}/{class}/ of images, a prepared data set of TFDS, or Parquet'
  )
  parser.add_argument('target', help='DIR/NAME: the data set NAME in DIR')
  parser.add_argument(
    '--splits',
    default='train,test',
    help='separated by commas; a name may be given to '
    "a part: 'train=train without fold 1/10,test=fold 1/10 of train'",
  )
  parser.add_argument('--size', type=int, default=256, help='of the shorter side (256)')
  parser.add_argument(
    '--format', default='jpg', choices=FORMATS,
    help='bmp: nine times the space at 256 pixels, almost four times the speed',
  )  # fmt: skip
  parser.add_argument('--quality', type=int, default=90, help='of JPEG (90)')
  parser.add_argument('--on_corrupt', default='error', choices=ON_CORRUPT)
  command.run(parser, main)
