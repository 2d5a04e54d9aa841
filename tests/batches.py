"""Batches of labelled images, by what tests say of them."""

from vit_jax.data import pipeline
from vit_jax.data.rows import Labelled


def rows(crop, shape):
  """Of images of a shape (size, channels, classes)."""
  return Labelled(crop, *shape)


def train_batches(config, source, shape, size, places, seed):
  """As `pipeline.train_batches`, of a `DataConfig`."""
  skip = config.on_corrupt == 'skip'
  made = rows(config.crop, shape)
  return pipeline.train_batches(made, source, size, places, seed, skip=skip)


def eval_batches(config, crop, source, shape, size, places):
  """As `pipeline.eval_batches`."""
  skip = config.on_corrupt == 'skip'
  return pipeline.eval_batches(rows(crop, shape), source, size, places, skip=skip)


def probe(config, source, shape):
  """As `pipeline.probe`."""
  return pipeline.probe(rows(config.crop, shape), source, skip=config.on_corrupt == 'skip')
