"""Scores of edges against the definition of boundary IoU, by OpenCV's erosion."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from tests.test_change import scored
from vit_jax.core.errors import RunError
from vit_jax.data.edges import edge
from vit_jax.evaluators import change
from vit_jax.evaluators.segmentation import Segmentation

NAMES = ('a', 'b', 'c', 'd')


def boundary(mask, share):
  """G_d and G (Cheng et al. 2021, section 4): what d erosions by 3 x 3 pixels take away."""
  height, width = mask.shape
  steps = max(1, round(share * (height**2 + width**2) ** 0.5))
  padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
  left = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1]
  return mask & (left == 0)


def maps(rng, size):
  """Blobs of three of four classes, which touch the border of the image, and single pixels."""
  smooth = [ndimage.gaussian_filter(rng.normal(size=size), 4, mode='wrap') for _ in range(3)]
  labels = np.argmax(smooth, 0)
  labels[rng.random(size) < 0.02] = 2
  return labels


@pytest.mark.parametrize('share', [0.001, 0.02, 0.1, 0.9])
def test_edges_are_what_erosion_takes(share):
  rng = np.random.default_rng(0)
  for size in ((40, 60), (7, 90), (1, 5)):
    labels = maps(rng, size)
    for mask in (labels == 0, labels == 2, labels >= 0, labels < 0):
      np.testing.assert_array_equal(edge(mask, share), boundary(mask, share))


@pytest.mark.parametrize('share', [0.02, 0.1])
def test_scores_of_edges_are_those_of_the_definition(share):
  """Pooled over images, the mean over classes that are in a map; 255 is of no class."""
  rng = np.random.default_rng(1)
  truth = np.stack([maps(rng, (40, 60)) for _ in range(4)])
  said = np.stack([np.roll(each, (2, 1), (0, 1)) for each in truth])
  said[0, :9] = 2
  void = rng.random(truth.shape) < 0.02
  void[:, :, :2] = True
  truth = np.where(void, 255, truth).astype(np.uint8)
  said = said.astype(np.uint8)

  def iou(classes, one, other):
    each = []
    for c in classes:
      both, either = 0, 0
      for s, t, v in zip(other, one, void, strict=True):
        mine, theirs = (boundary((x == c) & ~v, share) for x in (s, t))
        both, either = both + (mine & theirs).sum(), either + (mine | theirs).sum()
      if either:
        each.append(both / either)
    return np.mean(each)

  values = scored(Segmentation(boundary=share), said, truth, NAMES).values
  assert values['boundary_iou'] == pytest.approx(iou(range(4), truth, said), rel=1e-12)
  assert 0.05 < values['boundary_iou'] <= values['miou']
  assert 'boundary_iou' not in scored(Segmentation(), said, truth, NAMES).values
  # Of changes and buildings the edge is that of all of them.
  for evaluator in (change.Change(boundary=share), change.Damage(boundary=share)):
    values = scored(evaluator, said, truth, NAMES).values
    assert values['boundary_iou'] == pytest.approx(iou([True], truth > 0, said > 0), rel=1e-12)
  perfect = np.where(void, 3, truth).astype(np.uint8)
  assert scored(Segmentation(boundary=share), perfect, truth, NAMES).values['boundary_iou'] == 1


def test_shares_that_are_none_are_refused():
  for share in (-0.1, 1.0):
    with pytest.raises(RunError, match='share of the diagonal'):
      Segmentation(boundary=share)
