"""How well the classes of pixels are told, in the frame of the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.data.examples import Example
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores, Table
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax.numpy as jnp

  from vit_jax.tasks import segmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Evaluator):
  """Intersection over union of each class, and its mean.

  One confusion matrix is filled with the pixels of all images at their own size, those that are
  ignored left out. 'miou' is the mean over the `classes` that are in the truth or predicted: one
  that is only predicted counts 0, one that is in neither is left out, as in mmsegmentation. What
  the model did not see of an image is wrong. 'accuracy' is that of all pixels, 'recall' its mean
  over classes. The matrix is in evals/NAME.npz.
  """

  score = 'wrong pixels'
  of = ('map',)

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: numbers of the pairs of true and predicted class, and how many there are."""
    column = next(column for column in seen.rows.columns if column.field == 'map')
    truth = column.whole(example).astype(np.int64)
    said = segmentation.in_image(row, example, seen)
    there = truth != column.void
    classes = column.classes
    # What was not predicted, or is no class, has a column of its own.
    said = np.where((said >= 0) & (said < classes), said, classes)
    counts = np.bincount(truth[there] * (classes + 1) + said[there])
    pairs = np.flatnonzero(counts)
    return pairs.astype(np.int32), counts[pairs], classes

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: the share of wrong pixels, as the model saw the image."""
    there = batch['map'] != jnp.iinfo(batch['map'].dtype).max
    wrong = (outputs['map'] != batch['map']) & there
    return wrong.sum((1, 2)) / jnp.maximum(there.sum((1, 2)), 1)

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    field, confusion = found['test'].source.fields['map'], confusion_of(found['test'])
    classes = len(confusion)
    right, truth = np.diagonal(confusion), confusion.sum(1)
    said = confusion[:, :classes].sum(0)
    union = truth + said - right
    share = lambda a, b: np.divide(a, b, out=np.full(classes, np.nan), where=b > 0)  # noqa: E731
    iou, recall = share(right, union), share(right, truth)
    counted = union > 0
    mean = lambda x: float(np.nanmean(x)) if np.isfinite(x).any() else 0.0  # noqa: E731
    values = {
      'miou': mean(iou), 'accuracy': float(right.sum() / max(truth.sum(), 1)),
      'recall': mean(recall), 'classes': float(counted.sum()),
    }  # fmt: skip
    names = field.names or tuple(f'class {i}' for i in range(classes))
    rows = [
      [name, int(truth[i]), None if np.isnan(recall[i]) else float(recall[i]), float(iou[i])]
      for i, name in enumerate(names) if counted[i]
    ]  # fmt: skip
    columns = ('class', 'pixels', 'recall', 'IoU')
    return Scores(
      values, {'confusion': confusion, 'iou': iou},
      [Table('Intersection over union by class', columns, rows, 'high')],
    )  # fmt: skip


def confusion_of(found: Found) -> np.ndarray:
  """Pixels of each true class by predicted class, the last of which is none: int64 (n, n + 1)."""
  records = found.records
  classes = records[0][2] if records else len(found.source.fields['map'].names)
  confusion = np.zeros(classes * (classes + 1), np.int64)
  for pairs, counts, _ in records:
    np.add.at(confusion, pairs, counts)
  return confusion.reshape(classes, classes + 1)
