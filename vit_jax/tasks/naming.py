"""Classes by their names: what a text tower makes of sentences about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.models.two_towers import cosines, unit
from vit_jax.nn import sharding
from vit_jax.text import prompts
from vit_jax.text.siglip import SigLip, SigLip2

# Sentences that are read at a time.
TOGETHER = 256


def vectors(model: Any, tokenizer: Any, names: Sequence[str], templates: str) -> jax.Array:
  """A unit vector for each class, float32 (classes, width), on all devices.

  Args:
    model: has `encode_text`.
    tokenizer: of its texts. Those of SigLIP and SigLIP 2 read sentences without punctuation.
    names: of the classes.
    templates: sentences with {} for the name; see `text.prompts`.
  """
  asked = prompts.prompts(names, templates, canonical=isinstance(tokenizer, SigLip | SigLip2))
  rows = np.stack([tokenizer.row(text) for texts in asked for text in texts])
  of = np.repeat(np.arange(len(asked)), [len(texts) for texts in asked])
  parts = sharding.shards('batch')
  together = min(-(-len(rows) // parts), TOGETHER) * parts
  cut = np.pad(rows, ((0, -len(rows) % together), (0, 0))).reshape(-1, together, rows.shape[1])

  def read(tokens: jax.Array) -> jax.Array:
    return sharding.whole(model.encode_text(sharding.reshard(tokens, 'batch', None)))

  found = jax.lax.map(read, jnp.asarray(cut)).reshape(-1, model.config.text.num_classes)
  sums = jnp.zeros((len(asked), found.shape[-1])).at[of].add(found[: len(rows)])
  return unit(sums)


class Named(nnx.Module):
  """An image tower whose classes are vectors of a text tower: what `classification` predicts by.

  Attributes:
    image: the tower.
    classes: unit vectors, float32 (classes, width).
    scale, bias: of the logits.
  """

  def __init__(self, model: Any, classes: jax.Array):
    self.config = dataclasses.replace(model.config.image, num_classes=len(classes))
    self.card: Any = None
    self.image = model.image
    self.classes = nnx.Param(classes)
    self.scale, self.bias = nnx.Param(model.scale), nnx.Param(model.bias)

  def __call__(self, images: jax.Array, *, key: Any = None) -> jax.Array:
    """Images as for `ViT` -> float32 logits (batch, classes)."""
    vectors = unit(self.image(images, key=key))
    return cosines(vectors, self.classes[...]) * self.scale[...] + self.bias[...]


def classifier(model: Any, task: Any, names: Sequence[str], templates: str) -> Named:
  """A classifier of any classes, without training.

  Its probabilities are those of a softmax over the classes or, of a model that was trained with a
  sigmoid, of each class alone.

  Args:
    model: of two towers, with a card.
    task: that it was trained for, which knows its tokenizer.
    names, templates: see `vectors`.
  """
  classes = jax.jit(lambda model: vectors(model, task.tokenizer, names, templates))(model)
  named = Named(model, classes)
  loss = 'softmax' if task.loss_of == 'softmax' else 'sigmoid_mean'
  own = dict(name='classification', loss_of=loss, mean=task.mean, std=task.std)
  fields = {
    'image': {'kind': 'image', 'dtype': 'uint8'},
    'label': {'kind': 'class', 'names': names},
  }
  named.card = dataclasses.replace(model.card, class_names=tuple(names), task=own, fields=fields)
  return named
