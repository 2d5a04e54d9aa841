"""Fashion-MNIST (Xiao et al. 2017) from its four original IDX files, as a TFDS data set."""

import gzip

import cv2
import numpy as np
import tensorflow_datasets as tfds

from vit_jax.core import paths
from vit_jax.core.errors import RunError

CLASSES = (
  'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag',
  'Ankle boot',
)  # fmt: skip


class FashionMnist(tfds.core.GeneratorBasedBuilder):
  """28x28 grey images of clothing, 60,000 to train on and 10,000 to test on."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'Put {train,t10k}-images-idx3-ubyte.gz and {train,t10k}-labels-idx1-ubyte.gz into one '
    'directory (Debian and Ubuntu: the package dataset-fashion-mnist).'
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      homepage='https://github.com/zalandoresearch/fashion-mnist',
      features=tfds.features.FeaturesDict({
        'image': tfds.features.Image(shape=(28, 28, 1)),
        'label': tfds.features.ClassLabel(names=CLASSES),
      }),
    )  # fmt: skip

  def _split_generators(self, dl_manager):
    folder = paths.at(str(dl_manager.manual_dir))
    return {
      'train': self._generate_examples(folder, 'train'),
      'test': self._generate_examples(folder, 't10k'),
    }

  def _generate_examples(self, folder, part):
    images = read_idx(folder / f'{part}-images-idx3-ubyte')
    labels = read_idx(folder / f'{part}-labels-idx1-ubyte')
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
      raise RunError(f'{folder}: {part} has images {images.shape} and labels {labels.shape}')
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {'image': cv2.imencode('.png', image)[1].tobytes(), 'label': int(label)}


def read_idx(path: paths.Path) -> np.ndarray:
  """A uint8 array from an IDX file, gzipped (with the suffix .gz) or not.

  Raises:
    RunError: if the file is not there, is truncated or not an IDX file of bytes.
  """
  packed = path.with_name(path.name + '.gz')
  if not packed.exists() and not path.exists():
    raise RunError(
      f'no {packed.name} (or {path.name}) in {path.parent}: set data.source.manual_dir to the '
      'directory with the four IDX files of Fashion-MNIST'
    )
  try:
    data = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    if data[:3] != b'\0\0\x08':
      raise ValueError('not an IDX file of bytes')
    shape = np.frombuffer(data, '>u4', count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
  except (ValueError, IndexError, EOFError, gzip.BadGzipFile) as error:
    raise RunError(f'{packed if packed.exists() else path}: {error}') from None
