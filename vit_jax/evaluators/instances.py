"""How well objects are found with their masks, as COCO measures it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data import masks
from vit_jax.data.examples import Example
from vit_jax.evaluators import detection
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  from vit_jax.tasks import instances


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instances(Evaluator):
  """Average precision of masks (Lin et al. 2014), by pycocotools, in the frame of the images.

  Numbers as of `detection.Detection`, with overlaps of masks. Areas are those of the annotations
  where there are boxes beside the masks, as in COCO, and else of the masks.
  """

  of = ('segments', 'segments_label')

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: predicted masks with scores and classes, and true ones, as run lengths."""
    placement, truth = seen.rows.placement(example), example['masks']
    score, label, said = instances.in_image(row, placement)
    shapes = [masks.drawn(shape, placement.source) for shape in truth.shapes]
    area = [float(shape.sum()) for shape in shapes]
    if 'boxes' in example and len(example['boxes'].label) == len(shapes):
      area = masks.absolute(example['boxes'], placement.source).area.tolist()
    real = [np.asarray(truth.label), np.asarray(truth.crowd), np.asarray(area)]
    return score, label, _runs(said), _runs(shapes), *real

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    records, names = found['test'].records, found['test'].source.fields['masks'].names
    truth, said, counts = [], [], np.zeros(len(names), np.int64)
    for image, (score, label, runs, real, own, crowd, area) in enumerate(records, 1):
      said += [
        {'image_id': image, 'category_id': int(c) + 1, 'segmentation': run, 'score': float(s),
         'area': float(_area(run)), 'iscrowd': 0}
        for c, run, s in zip(label, runs, score, strict=True)
      ]  # fmt: skip
      truth += [
        {'image_id': image, 'category_id': int(c) + 1, 'segmentation': run, 'iscrowd': int(many),
         'area': float(a)}
        for c, run, many, a in zip(own, real, crowd, area, strict=True)
      ]  # fmt: skip
      np.add.at(counts, own[~crowd], 1)
    judged = detection.judged(truth, said, len(records), len(names), 'segm')
    stats = zip(detection.STATS, judged.stats[: len(detection.STATS)], strict=True)
    values = {'ap': 0.0, **{name: float(value) for name, value in stats if value >= 0}}
    return detection.by_class(values, judged, names, counts)


def _runs(shapes: Any) -> list[Any]:
  """Masks, bool (height, width) each, as COCO's run lengths.

  Raises:
    RunError: without pycocotools.
  """
  try:
    from pycocotools import mask
  except ImportError:
    raise RunError(
      "evals of the name instances need pycocotools: pip install 'vit_jax[dense]'"
    ) from None
  return [mask.encode(np.asfortranarray(shape, np.uint8)) for shape in shapes]


def _area(run: Any) -> int:
  """Pixels of a mask."""
  from pycocotools import mask

  return int(mask.area(run))
