"""What the gallery measures is what evaluators do; controls find what pixels alone say."""

import numpy as np
import pytest

from experiments.gallery import dense
from experiments.gallery.rows import ROWS
from vit_jax.data.generators.terrain import Terrain
from vit_jax.evaluators.change import xview2
from vit_jax.evaluators.detection import average_precision

SIDE = 64


def scenes(count=12, most=4, classes=3, seed=0):
  """Boxes in images of 64 pixels: true ones, and others that are near many of them, with ties."""
  rng = np.random.default_rng(seed)
  corner = rng.integers(0, 40, (count, most, 2))
  boxes = np.concatenate([corner, corner + rng.integers(4, 24, (count, most, 2))], -1)
  known = rng.random((count, most)) < 0.7
  label = rng.integers(0, classes, (count, most)) * known
  near = boxes[:, rng.integers(0, most, 8)] + rng.integers(-3, 4, (count, 8, 4))
  near[..., 2:] = np.maximum(near[..., 2:], near[..., :2] + 1)
  said = {
    'score': np.round(rng.random((count, 8)), 1), 'label': rng.integers(0, classes, (count, 8)),
    'box': near / SIDE,
  }  # fmt: skip
  truth = {'boxes': boxes / SIDE, 'boxes_label': label, 'boxes_known': known.astype(np.float32)}
  return said, truth


def test_precision_is_that_of_pycocotools():
  said, truth = scenes()
  records = []
  for i, known in enumerate(truth['boxes_known'] > 0):
    corners = truth['boxes'][i][known] * SIDE
    own = corners, truth['boxes_label'][i][known], np.zeros(known.sum(), bool)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    order = np.argsort(-said['score'][i], kind='stable')
    boxes = (said['box'][i] * SIDE)[order]
    records.append((boxes, said['label'][i][order], said['score'][i][order], *own, areas))
  want = average_precision(records, 3).stats[1]
  assert 0.02 < want < 0.9
  assert dense.ap50(dense.found_boxes(said, truth)) == pytest.approx(want, abs=1e-9)
  best = {'score': truth['boxes_known'], 'label': truth['boxes_label'], 'box': truth['boxes']}
  # A perfect answer, but for boxes that are not there, with a score of 0.
  assert dense.ap50(dense.found_boxes(best, truth)) == pytest.approx(1)


def test_panoptic_quality_adds_up_over_images():
  rng = np.random.default_rng(0)
  segments = rng.integers(0, 4, (3, 8, 8)).astype(np.uint8)
  segments[:, :, :4] = 1
  truth = {
    'segments': segments, 'segments_label': np.array([[0, 1, 1]] * 3),
    'segments_known': np.ones((3, 3)),
  }  # fmt: skip
  same = {'segments': segments, 'segments_label': truth['segments_label']}
  assert dense.panoptic_quality(dense.found_segments(same, truth)) == 1
  other = {'segments': np.where(segments == 1, 1, 0), 'segments_label': np.zeros((3, 3), int)}
  assert dense.panoptic_quality(dense.found_segments(other, truth)) == pytest.approx(0.5)


def test_scores_of_pairs():
  rng = np.random.default_rng(1)
  truth = {'map': rng.integers(0, 5, (4, 9, 9))}
  said = {'map': np.where(rng.random((4, 9, 9)) < 0.6, truth['map'], 0)}
  whole = np.zeros((5, 6))
  np.add.at(whole, (truth['map'], said['map']), 1)
  found = dense.XVIEW2.records(said, truth)
  assert dense.XVIEW2.score(found) == pytest.approx(xview2(whole)['score'])
  hit = ((truth['map'] > 0) & (said['map'] > 0)).sum()
  f1 = 2 * hit / ((truth['map'] > 0).sum() + (said['map'] > 0).sum())
  assert dense.CHANGE_F1.score(found) == pytest.approx(f1)


@pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')
def test_covers_that_are_compared_are_told_of_land_alone(monkeypatch):
  """What has become water has changed; what only looks otherwise has not, mostly."""
  monkeypatch.setattr(dense, '_DRAWN', 30)
  monkeypatch.setattr(dense, '_PIXELS', 1500)
  land = Terrain(of='change', size=(32, 32), clouds=0)
  drawn = [land.example(np.random.default_rng(n), split='test') for n in range(20)]
  rows = {name: np.stack([each[name] for each in drawn]) for name in ('before', 'after', 'map')}
  score = lambda said: dense.CHANGE_F1.score(dense.CHANGE_F1.records(said, rows))  # noqa: E731
  found = dense.post_classification(rows, rows)
  assert found['map'].shape == rows['map'].shape
  assert score(found) > score(dense.usual(dense.CHANGE_F1)(rows, rows))
  same = dense.post_classification(rows, {**rows, 'after': rows['before']})
  assert not same['map'].any()


def test_controls():
  """Where pixels say it all they find it; names of rows are their own."""
  rng = np.random.default_rng(2)
  before = rng.integers(0, 60, (8, 16, 16, 3)).astype(np.uint8)
  changed = np.zeros((8, 16, 16), np.int64)
  changed[:, 4:10, 4:10] = 1
  after = np.where(changed[..., None] > 0, before + 120, before + 8).astype(np.uint8)
  rows = {'before': before, 'after': after, 'map': changed}
  f1 = lambda said: dense.CHANGE_F1.score(dense.CHANGE_F1.records(said, rows))  # noqa: E731
  for control in (dense.differing_pixels, dense.changing_pixels):
    assert f1(control(rows, rows)) > 0.97
  share = changed.mean()
  assert f1(dense.usual(dense.CHANGE_F1)(rows, rows)) == pytest.approx(2 * share / (1 + share))
  for balanced in (False, True):
    assert f1(dense.pairs_of_pixels(balanced=balanced)(rows, rows)) > 0.97
  image = np.where(changed[..., None] > 0, 200, 20) + np.zeros((1, 1, 1, 3), np.int64)
  rows = {
    'image': image.astype(np.uint8), 'segments': (changed + 1).astype(np.uint8),
    'segments_label': np.array([[1, 0]] * 8), 'segments_known': np.ones((8, 2)),
  }  # fmt: skip
  (control,) = dense.SEGMENTS.values()
  assert dense.PQ.score(dense.PQ.records(control(rows, rows), rows)) == 1
  _, truth = scenes()
  rows = {**truth, 'image': rng.integers(0, 255, (12, 8, 8, 3)).astype(np.uint8)}
  itself = dense.nearest_boxes(rows, rows)
  assert dense.ap50(dense.found_boxes(itself, rows)) > 0.3  # the most alike is the image itself
  assert 0 < dense.ap50(dense.found_boxes(dense.usual_boxes(rows, rows), rows)) < 0.3
  assert len({row.name for row in ROWS}) == len(ROWS)
