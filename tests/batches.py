"""Batches of labelled images, by what tests say of them."""

from vit_jax.data import pipeline
from vit_jax.data.order import Keyed
from vit_jax.data.rows.columns import labelled
from vit_jax.data.views import View


def rows(crop, shape, flip='none'):
  """Of images of a shape (size, channels, classes)."""
  size, channels, classes = shape
  return labelled(View(crop, flip, size), channels, classes)


def train_batches(config, source, shape, size, places, seed):
  """As `pipeline.train_batches`, of a `DataConfig`."""
  skip = pipeline.log if config.on_corrupt == 'skip' else None
  made, order = rows(config.crop, shape, config.flip), Keyed(len(source), seed)
  return pipeline.train_batches(made, source, size, places, order, seed, skip=skip)


def eval_batches(config, crop, source, shape, size, places):
  """As `pipeline.eval_batches`."""
  skip = pipeline.log if config.on_corrupt == 'skip' else None
  return pipeline.eval_batches(rows(crop, shape), source, size, places, skip=skip)


def probe(config, source, shape):
  """As `pipeline.probe`."""
  skip = pipeline.log if config.on_corrupt == 'skip' else None
  return pipeline.probe(rows(config.crop, shape), source, skip=skip)
