"""Teachers for tests: small, random, sure of themselves, and from elsewhere."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import vit_jax
from vit_jax.architecture.card import Card

# Those of the digits in another order, and more.
CLASSES = ('nine', '9', '8', '7', '6', '5', '4', '3', '2', '1', '0')
SIZES = dict(widths=(8, 12), kernels=(3,), strides=(1, 2), dilations=(1,), image_size=(8, 8))
# Not what runs normalise with.
CARD = Card('vit_jax', (8, 8), (0.3,), (0.25,), 'area', 0.0, CLASSES)


def made(classes=11, card=CARD, channels=1, **fields):
  """A convnet in which nothing is zero or one."""
  model = vit_jax.create(
    'convnet:', **{**SIZES, **fields}, in_channels=channels, num_classes=classes
  )
  rng = np.random.default_rng(5)
  model = jax.tree.map(lambda w: jnp.asarray(w + 0.3 * rng.normal(size=w.shape), w.dtype), model)
  model.card = card
  return model


def saved(folder, **fields):
  """The path of such a checkpoint in a folder; written once."""
  path = pathlib.Path(folder) / 'teacher'
  if not path.exists():
    vit_jax.save(made(**fields), path, 'vit_jax')
  return str(path)
