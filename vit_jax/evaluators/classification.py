"""Accuracy and loss on a whole split."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epy

from vit_jax.core import schema
from vit_jax.core.text import plain
from vit_jax.data.classes import aligned
from vit_jax.data.config import DataConfig, Shape
from vit_jax.data.crops import CROPS
from vit_jax.evaluators.evaluation import Evaluation

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import tree


@dataclasses.dataclass(frozen=True)
class Classification:
  """Top-1, top-5 and loss over a split of the training data's source.

  Attributes:
    split: to evaluate on; what is held out of another one may be it, see `DataConfig`.
    crop: as for training data.
    every: how often; the end of the run always.
    batch_size: 0 uses that of training.
  """

  split: str = 'test'
  crop: Any = schema.choice(CROPS, 'resize')
  every: str = '10%'
  batch_size: int = 0

  def prepare(
    self, task: Any, data: DataConfig, shape: Shape, batch_size: int, *, lanes: int = 0
  ) -> Evaluation:
    """Opens the data; the result evaluates a model, or several whose parameters are stacked.

    Args:
      task: normalises images.
      data: of training.
      shape: of the model's input.
      batch_size: of training.
      lanes: how many models; 0 for one, whose values are numbers and not lists.
    """
    from vit_jax.data.pipeline import eval_batches, iterate, probe
    from vit_jax.nn.sharding import BatchLayout

    batch_size = self.batch_size or batch_size
    layout = BatchLayout(batch_size)
    source = data.open(self.split)
    if shape.class_names:
      source = aligned(source, shape.class_names)
    conversion = probe(data, source, shape)
    batches = eval_batches(data, self.crop, source, shape, batch_size, layout.rows)

    def sums(judged, frozen, batch):
      model = tree.merge(judged, frozen)
      logits = model(task.augment(batch, None, {})['image'])
      label = jax.nn.one_hot(batch['label'], shape.num_classes)
      top5 = jax.lax.top_k(logits, min(5, shape.num_classes))[1]
      hits = {
        'top1': jnp.argmax(logits, axis=-1) == batch['label'],
        'top5': (top5 == batch['label'][:, None]).any(-1),
        'loss': -(label * jax.nn.log_softmax(logits)).sum(-1),
        'examples': jnp.ones_like(batch['mask']),
      }
      return {name: (value * batch['mask']).sum() for name, value in hits.items()}

    sums = jax.jit(jax.vmap(sums, in_axes=(0, None, None)) if lanes else sums)

    def evaluate(judged: Any, frozen: Any) -> Iterator[tuple[str, Any]]:
      total = collections.Counter()
      pending: list[dict] = []
      for batch in iterate(batches, workers=data.workers):
        pending.append(sums(judged, frozen, layout.place(batch)))
        if len(pending) > 2:  # keeps the host from running far ahead of the devices
          total.update(_floats(pending.pop(0)))
      for part in pending:
        total.update(_floats(part))
      examples = total.pop('examples')
      for name, value in total.items():
        if name != 'top5' or shape.num_classes > 5:
          yield name, plain(value / np.maximum(examples, 1.0))
      yield 'examples', plain(examples)
      yield 'skipped', plain(len(source) - examples)

    return Evaluation(evaluate, [*source.summary(), *conversion])


def _floats(sums: dict[str, jax.Array]) -> dict[str, Any]:
  """To the host, where they are added in double precision: counts stay exact however many."""
  return {name: value.astype(np.float64) for name, value in jax.device_get(sums).items()}
