"""The 1,797 handwritten digits that ship with scikit-learn, as a TFDS data set."""

from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
  """8x8 grey images of handwritten digits (Alpaydin & Kaynak 1998), every fifth held out."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      homepage='https://archive.ics.uci.edu/dataset/80',
      features=tfds.features.FeaturesDict({
        'image': tfds.features.Image(shape=(8, 8, 1)),
        'label': tfds.features.ClassLabel(num_classes=10),
      }),
    )  # fmt: skip

  def _split_generators(self, dl_manager):
    del dl_manager
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    test = np.arange(len(images)) % 5 == 0
    return {
      'train': self._generate_examples(images[~test], data.target[~test]),
      'test': self._generate_examples(images[test], data.target[test]),
    }

  def _generate_examples(self, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      # As PNG bytes: TFDS would need TensorFlow to encode an array.
      yield i, {'image': cv2.imencode('.png', image)[1].tobytes(), 'label': int(label)}
