"""Panoptic quality of segments, in the frame of the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from vit_jax.data import masks
from vit_jax.data.examples import Example
from vit_jax.data.fields import Panoptic as Truth
from vit_jax.data.rows.columns import Segments
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores, Table
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax.numpy as jnp

  from vit_jax.tasks import panoptic

_MATCH = 0.5  # intersection over union above which a segment is found


class Counted(NamedTuple):
  """Of an image, or of several, by class.

  Attributes:
    iou: of segments that are found, added up, float64 (classes,).
    found, wrong, missed: predicted segments that match, and others; true ones that are not found,
      int64 (classes,).
  """

  iou: np.ndarray
  found: np.ndarray
  wrong: np.ndarray
  missed: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panoptic(Evaluator):
  """Panoptic quality (Kirillov et al. 2019), as COCO's panopticapi has it.

  Segments of one class that overlap by more than a half of their union are found. Of each class
  `pq` is the sum of these overlaps over found + (wrong + missed) / 2: `sq`, their mean, times `rq`.
  Means are over classes that are in the truth or predicted, all of them, things and stuff. Pixels
  of no true segment do not count, nor predicted segments that are for more than a half of those or
  of crowds of their class. All images count together, at their own size; what the model did not see
  is of no segment. Numbers by class are in evals/NAME.npz.
  """

  score = 'wrong pixels'
  of = ('segments', 'segments_label')

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: `Counted`."""
    truth = example['panoptic']
    ids = panoptic.in_image(row, example, seen)
    said = {int(n): int(row['segments_label'][n - 1]) for n in np.unique(ids) if n}
    column = next(each for each in seen.rows.columns if isinstance(each, Segments))
    return counted(masks.decode_panoptic(truth), truth, ids, said, column.classes)

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: the share of pixels whose class is wrong, as the model saw the image."""

    def classes(numbers: Any, label: Any) -> Any:
      table = jnp.pad(label + 1, ((0, 0), (1, 0)))
      return jnp.take_along_axis(table, numbers.reshape(len(numbers), -1).astype(jnp.int32), 1)

    truth = classes(batch['segments'], batch['segments_label'])
    wrong = classes(outputs['segments'], outputs['segments_label']) != truth
    there = truth > 0
    return (wrong & there).sum(1) / jnp.maximum(there.sum(1), 1)

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    records, field = found['test'].records, found['test'].source.fields['panoptic']
    total = Counted(*(np.sum(each, axis=0) for each in zip(*records, strict=True)))
    names = field.names
    counts = total.found + (total.wrong + total.missed) / 2
    share = lambda a, b: np.divide(a, b, out=np.zeros(len(a)), where=b > 0)  # noqa: E731
    pq, sq, rq = share(total.iou, counts), share(total.iou, total.found), share(total.found, counts)
    there = counts > 0
    stuff = np.isin(np.arange(len(counts)), [names.index(name) for name in field.stuff])
    values, arrays = {}, {'pq': pq, 'sq': sq, 'rq': rq}
    for group, own in (('', there), ('things', there & ~stuff), ('stuff', there & stuff)):
      behind = f'_{group}' if group else ''
      if own.any() and (not group or stuff.any()):
        values |= {f'{name}{behind}': float(each[own].mean()) for name, each in arrays.items()}
    values['classes'] = float(there.sum())
    rows = [
      [names[i], int(total.found[i]), int(total.wrong[i]), int(total.missed[i]), float(sq[i]),
       float(rq[i]), float(pq[i])]
      for i in np.flatnonzero(there)
    ]  # fmt: skip
    columns = ('class', 'found', 'wrong', 'missed', 'SQ', 'RQ', 'PQ')
    return Scores(
      values, {**arrays, **total._asdict()},
      [Table('Panoptic quality by class', columns, rows, 'high')],
    )  # fmt: skip


def counted(
  truth: np.ndarray, about: Truth, said: np.ndarray, labels: Mapping[int, int], classes: int
) -> Counted:
  """Which segments of an image are found.

  Args:
    truth: of each pixel the number of its true segment, int64 (height, width), 0 for none.
    about: classes of these segments, and which are crowds.
    said: the same of what is predicted.
    labels: classes of the segments that are predicted.
    classes: how many there are.
  """
  pairs, areas = np.unique(np.stack([truth, said]).reshape(2, -1), axis=1, return_counts=True)
  both = dict(zip(map(tuple, pairs.T.tolist()), areas.tolist(), strict=True))
  area: list[dict[int, int]] = [{}, {}]
  for pair, count in both.items():
    for side in (0, 1):
      area[side][pair[side]] = area[side].get(pair[side], 0) + count
  result = Counted(np.zeros(classes), *(np.zeros(classes, np.int64) for _ in range(3)))
  matched: list[set[int]] = [set(), set()]
  for (number, other), count in both.items():
    label, crowd = about.segments.get(number, (-1, False))
    if not number or not other or crowd or labels[other] != label:
      continue
    union = area[0][number] + area[1][other] - count - both.get((0, other), 0)
    if count / union > _MATCH:
      result.found[label] += 1
      result.iou[label] += count / union
      matched[0].add(number)
      matched[1].add(other)
  crowds: dict[int, int] = {}
  for number, (label, crowd) in about.segments.items():
    if crowd:  # of several of a class the last one, as in the tool
      crowds[label] = number
    elif number not in matched[0]:
      result.missed[label] += 1
  for other, label in labels.items():
    aside = both.get((0, other), 0)
    if label in crowds:
      aside += both.get((crowds[label], other), 0)
    if other not in matched[1] and aside / area[1][other] <= _MATCH:
      result.wrong[label] += 1
  return result
