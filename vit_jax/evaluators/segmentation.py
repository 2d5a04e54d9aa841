"""How well the classes of pixels are told, in the frame of the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data.edges import overlaps
from vit_jax.data.examples import Example
from vit_jax.evaluators.evaluator import Evaluator, Found, Over, Scores, Table
from vit_jax.evaluators.windowed import Windowed
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax.numpy as jnp

  from vit_jax.tasks import segmentation


class Record(NamedTuple):
  """Of the pixels of an image that have a class.

  Attributes:
    pairs: numbers of the pairs of true and predicted class that there are, int32 (n,): the true one
      times classes + 1, and the other one, which is `classes` where nothing is predicted.
    counts: of pixels, int (n,).
    classes: how many there are.
    edges: by class the pixels of both edges and of either one, see `edges.overlaps`.
  """

  pairs: np.ndarray
  counts: np.ndarray
  classes: int
  edges: Mapping[int, tuple[int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Evaluator):
  """Intersection over union of each class, and its mean.

  One confusion matrix is filled with the pixels of all images at their own size, those that are
  ignored left out. 'miou' is the mean over the `classes` that are in the truth or predicted: one
  that is only predicted counts 0, one that is in neither is left out, as in mmsegmentation. What
  the model did not see of an image is wrong. 'accuracy' is that of all pixels, 'recall' its mean
  over classes. The matrix is in evals/NAME.npz.

  Attributes:
    windows: whether an image is seen at its own size, in windows of that of the model which
      overlap and are averaged, as by `vit_jax.predict --windows`. Else it is resized to that of the
      model as a whole.
    overlap: of neighbouring windows at least, as a share of a window.
    shorter: side to which images are brought, in their shape, before windows are cut; 0 leaves
      them as they are. Probabilities are brought back to the size of the image.
    boundary: where it is not 0, 'boundary_iou' is reported, too (Cheng et al. 2021): the
      intersection over union of those pixels of a class that are no farther from its edge than this
      share of the diagonal, 0.02 in the paper; of all images together, and the mean over classes.
  """

  score = 'wrong pixels'
  of = ('map',)
  windows: bool = False
  overlap: float = 0.5
  shorter: int = 0
  boundary: float = 0.0

  def __post_init__(self):
    if self.windows and self.attention:
      raise RunError('attention=True is drawn of whole images, not with windows=True')
    if not self.windows and (self.shorter or self.overlap != 0.5):
      raise RunError('overlap and shorter are of windows: set windows=True, too')
    if self.shorter < 0 or not 0 <= self.overlap < 1:
      raise RunError(
        f'shorter={self.shorter} must not be negative, and overlap={self.overlap} at least 0 and '
        'less than 1'
      )
    if not 0 <= self.boundary < 1:
      raise RunError(
        f'boundary={self.boundary} is a share of the diagonal: less than 1, 0 for none'
      )

  def going(self, over: Over) -> Any:
    """See `Evaluator`: by windows, or by batches of rows."""
    if not self.windows:
      return None
    return Windowed(self, over, overlap=self.overlap, shorter=self.shorter)

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: a `Record`."""
    column = next(column for column in seen.rows.columns if column.field == 'map')
    truth = column.whole(seen.rows.voided(example)).astype(np.int64)
    said = segmentation.in_image(row, example, seen)
    there = truth != column.void
    classes = column.classes
    # What was not predicted, or is no class, has a column of its own.
    said = np.where((said >= 0) & (said < classes), said, classes)
    counts = np.bincount(truth[there] * (classes + 1) + said[there])
    pairs = np.flatnonzero(counts)
    edges = self.edges(truth, said, there, classes) if self.boundary else {}
    return Record(pairs.astype(np.int32), counts[pairs], classes, edges)

  def edges(
    self, truth: np.ndarray, said: np.ndarray, there: np.ndarray, classes: int
  ) -> Mapping[int, tuple[int, int]]:
    """Of a record: of the classes that are in either map."""
    either = np.union1d(truth[there], said[there]).tolist()
    return overlaps(truth, said, there, [c for c in either if c < classes], self.boundary)

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: the share of wrong pixels, as the model saw the image."""
    there = batch['map'] != jnp.iinfo(batch['map'].dtype).max
    wrong = (outputs['map'] != batch['map']) & there
    return wrong.sum((1, 2)) / jnp.maximum(there.sum((1, 2)), 1)

  def wrong(self, record: Record) -> float:
    """What `badness` is, of a record: the share of wrong pixels of the image."""
    true, said = np.divmod(record.pairs, record.classes + 1)
    return 1 - float(record.counts[true == said].sum() / max(record.counts.sum(), 1))

  def boundaries(self, found: Found) -> dict[str, float]:
    """The score of edges, if it is asked for."""
    if not self.boundary:
      return {}
    both, either = {}, {}
    for record in found.records:
      for number, (one, all_) in record.edges.items():
        both[number] = both.get(number, 0) + one
        either[number] = either.get(number, 0) + all_
    each = [both[number] / either[number] for number in either]
    return {'boundary_iou': float(np.mean(each)) if each else 0.0}

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
      'recall': mean(recall), 'classes': float(counted.sum()), **self.boundaries(found['test']),
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
  classes = records[0].classes if records else len(found.source.fields['map'].names)
  confusion = np.zeros(classes * (classes + 1), np.int64)
  for record in records:
    np.add.at(confusion, record.pairs, record.counts)
  return confusion.reshape(classes, classes + 1)
