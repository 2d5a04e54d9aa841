"""What needs no network: the measure of whether a network has learned anything.

Each takes training and test data, arrays as the task's rows make them for evaluation, and gives
outputs for the test data as the task's model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

Arrays = Mapping[str, np.ndarray]
_ALPHAS = np.logspace(-2, 5, 15)


def _flat(images: np.ndarray) -> np.ndarray:
  return images.reshape(len(images), -1).astype(np.float32) / 255


def _classified(model: Any, train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  model.fit(_flat(train['image']), train['label'])
  said = model.predict(_flat(test['image']))
  classes = int(max(train['label'].max(), test['label'].max())) + 1
  return {'logits': np.eye(classes)[said]}


def neighbours(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """The nearest neighbours in pixels, as many as are best on a tenth that is held out of train."""
  held = np.arange(len(train['label'])) % 10 == 0
  part = lambda chosen: {name: array[chosen] for name, array in train.items()}  # noqa: E731

  def score(count: int) -> float:
    found = _classified(KNeighborsClassifier(count), part(~held), part(held))
    return float((found['logits'].argmax(-1) == train['label'][held]).mean())

  best = max((1, 3, 5), key=score)
  return _classified(KNeighborsClassifier(best), train, test)


def svm(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """A support vector machine with Gaussian kernel on pixels; C = 10, as usual for MNIST."""
  return _classified(SVC(C=10), train, test)


def logistic(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Logistic regression on standardised pixels."""
  return _classified(
    make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.01)), train, test
  )


def _histograms(images: np.ndarray) -> np.ndarray:
  """Joint histogram of colours in four steps each, and one of each channel in sixteen."""
  count, channels = len(images), images.shape[-1]
  pixels = images.reshape(count, -1, channels).astype(int)
  joint = (pixels // 64 * 4 ** np.arange(channels)).sum(-1)
  found = [np.array([np.bincount(row, minlength=4**channels) for row in joint])]
  for channel in range(channels):
    own = pixels[..., channel] // 16
    found.append(np.array([np.bincount(row, minlength=16) for row in own]))
  return np.sqrt(np.concatenate(found, 1) / pixels.shape[1])


def _small(images: np.ndarray) -> np.ndarray:
  """Pixels of the image at half its size, and their squares."""
  half = images.astype(np.float32) / 255
  half = (half[:, ::2, ::2] + half[:, 1::2, ::2] + half[:, ::2, 1::2] + half[:, 1::2, 1::2]) / 4
  flat = half.reshape(len(half), -1)
  return np.concatenate([flat, flat**2], 1)


def _ridge(features: Any, train: Arrays, test: Arrays, wanted: np.ndarray) -> np.ndarray:
  model = make_pipeline(StandardScaler(), RidgeCV(_ALPHAS))
  return model.fit(features(train['image']), wanted).predict(features(test['image']))


def histogram_labels(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Ridge regression of what is there on histograms of colours."""
  return {'logits': _ridge(_histograms, train, test, train['labels'])}


def pixel_labels(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Ridge regression of what is there on pixels."""
  return {'logits': _ridge(_small, train, test, train['labels'])}


def _known(train: Arrays) -> dict[str, np.ndarray]:
  there = train['target_known'].all(-1)
  return {name: array[there] for name, array in train.items()}


def histogram_numbers(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Ridge regression of the numbers on histograms of colours."""
  train = _known(train)
  return {'target': _ridge(_histograms, train, test, train['target'])}


def pixel_numbers(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Ridge regression of the numbers on pixels."""
  train = _known(train)
  return {'target': _ridge(_small, train, test, train['target'])}


def of_pixels(images: np.ndarray) -> np.ndarray:
  """Of each pixel: its colour, how that differs from the mean of the image, and where it is."""
  values = images.astype(np.float32) / 255
  apart = values - values.mean((1, 2), keepdims=True)
  height, width = images.shape[1:3]
  y, x = np.broadcast_arrays(np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None])
  place = np.broadcast_to(np.stack([y, x], -1), (*images.shape[:3], 2))
  found = np.concatenate([values, apart, apart**2, np.abs(apart), place], -1)
  return found.reshape(-1, found.shape[-1])


def pixel_classes(train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
  """Logistic regression of the class of a pixel on what is known of it alone."""
  features, wanted = of_pixels(train['image']), train['map'].reshape(-1)
  rng = np.random.default_rng(0)
  # Pixels of all classes, as often as they are.
  chosen = rng.permutation(np.flatnonzero(wanted < 255))[:400_000]
  model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100))
  model.fit(features[chosen], wanted[chosen])
  return {'map': model.predict(of_pixels(test['image'])).reshape(test['map'].shape)}
