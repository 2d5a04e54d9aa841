"""Panoptic segments: rows, losses at points, merging, quality, pictures."""

import dataclasses
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vit_jax.core.errors import RunError
from vit_jax.data import masks as masks_lib
from vit_jax.data.crops import RandomResized
from vit_jax.data.fields import Field, Masks
from vit_jax.data.fields import Panoptic as Truth
from vit_jax.data.generators import Shapes
from vit_jax.data.rows.columns import Columns, Image, Segments
from vit_jax.data.sources import open_split
from vit_jax.data.sources.generated import Generated
from vit_jax.data.views import View
from vit_jax.evaluators import instances as masks_found
from vit_jax.evaluators import panoptic as quality
from vit_jax.evaluators.evaluator import Found
from vit_jax.tasks import mask_losses, merging
from vit_jax.tasks.instances import Instances
from vit_jax.tasks.panoptic import Panoptic
from vit_jax.tasks.semantic import Semantic
from vit_jax.tasks.task import Seen

SHAPES = Shapes(size=(32, 48), radius=(4.0, 9.0), crowd=0.3, void=0.3)


@pytest.fixture(scope='module')
def source():
  return open_split(Generated(SHAPES, examples=30, held_out=30), 'train')


# --- rows ---


def test_segments_of_a_view(source):
  """Cut, mirrored and numbered anew; crowds are none, and what is not in view is not there."""
  view = View(RandomResized(min_area=0.3), 'both', size=(20, 24))
  rows = Columns(view, (Image(3),), (Segments(8, 12),))
  crowds = fewer = 0
  for number in range(30):
    example = source[number]
    row = rows.make(example, np.random.default_rng(number))
    placement = view.place(32, 48, np.random.default_rng(number))
    truth = example['panoptic']
    seen = placement.labels(truth.ids, 0)
    count = int(row['segments_known'].sum())
    assert row['segments'].dtype == np.uint8
    assert set(np.unique(row['segments'])) - {0} == set(range(1, count + 1))
    assert row['segments_known'].tolist() == [1] * count + [0] * (12 - count)
    for index in range(count):
      (own,) = np.unique(seen[row['segments'] == index + 1])
      label, crowd = truth.segments[int(own)]
      assert (label, crowd) == (row['segments_label'][index], False)
      assert (seen == own).sum() == (row['segments'] == index + 1).sum()
    left = seen[row['segments'] == 0]
    assert all(not n or truth.segments[int(n)][1] for n in np.unique(left))
    crowds += any(truth.segments[int(n)][1] for n in np.unique(left) if n)
    fewer += count < len([1 for _, crowd in truth.segments.values() if not crowd])
    boxed = Columns(view, (Image(3),), (Segments(8, 12, boxes=True),))
    boxes = boxed.make(example, np.random.default_rng(number))['segments_box']
    want = [masks_lib.around(row['segments'] == index + 1) for index in range(count)]
    np.testing.assert_allclose(boxes[:count] * [24, 20, 24, 20], np.reshape(want, (-1, 4)))
    assert not boxes[count:].any()
  assert min(crowds, fewer) > 3
  example = source[0]
  every, few = (
    Columns(View(size=(32, 48)), (Image(3),), (Segments(8, most, boxes=True),)).make(example, None)
    for most in (12, 1)
  )
  count = int(every['segments_known'].sum())
  assert (every['segments_left_out'], few['segments_left_out']) == (0, count - 1)
  areas = np.bincount(every['segments'].ravel(), minlength=count + 1)[1:]
  largest = np.argmax(areas)
  np.testing.assert_array_equal(few['segments'], every['segments'] == largest + 1)
  assert few['segments_label'] == every['segments_label'][largest]
  np.testing.assert_array_equal(few['segments_box'][0], every['segments_box'][largest])
  assert count > 1
  other = example['panoptic']._replace(segments={})
  with pytest.raises(RunError, match='nobody says of which class the segment'):
    Segments(8).make({**example, 'panoptic': other}, View(size=(32, 48)).place(32, 48, None))


def test_masks_that_overlap_are_segments():
  """Of two objects a pixel is of the smaller one; crowds are left out."""
  large, small = np.zeros((2, 6, 8), bool)
  large[:4], small[3:5, 2:4] = True, True
  crowd = np.array([False, False, True])
  example = {'name': 'one', 'image': np.zeros((6, 8, 3), np.uint8),
             'masks': Masks([small, large, ~large], np.array([2, 0, 1]), crowd)}  # fmt: skip
  rows = Columns(View(size=(6, 8)), (Image(3),), (Segments(3, 300, 'masks'),))
  row = rows.make(example, None)
  assert row['segments'].dtype == np.uint16
  np.testing.assert_array_equal(row['segments'], np.where(small, 1, 2 * large))
  assert row['segments_label'][:2].tolist() == [2, 0]
  assert row['segments_known'].sum() == 2


# --- losses ---


def test_masks_at_points():
  """As SciPy interpolates them, with zeros around; of segments without making masks of these."""
  rng = np.random.default_rng(0)
  masks = rng.normal(size=(2, 3, 5, 7)).astype(np.float32)
  points = rng.random((2, 3, 40, 2)).astype(np.float32)
  points[0, 0, :4] = [[0, 0], [1, 1], [0.5 / 7, 0.5 / 5], [1, 0]]
  got = mask_losses.sampled(masks, points)
  for i in np.ndindex(2, 3):
    place = points[i][:, ::-1].T * np.array([[5], [7]]) - 0.5
    padded = np.pad(masks[i], 1)
    want = scipy.ndimage.map_coordinates(padded, place + 1, order=1)
    np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)
  segments = jnp.asarray(rng.integers(0, 4, (2, 5, 7)), jnp.uint8)
  numbers = np.arange(1, 4)[:, None]
  each = (segments[:, None] == numbers[..., None]).astype(np.float32)
  np.testing.assert_allclose(
    mask_losses.inside(segments, points, numbers), mask_losses.sampled(each, points), atol=1e-6
  )


def arrays(seed=0, batch=3, layers=2, queries=6, targets=4, grid=8):
  """What queries say of images that have three segments, two and none."""
  rng = np.random.default_rng(seed)
  said = lambda *shape: jnp.asarray(rng.normal(size=(batch, layers, queries, *shape)), jnp.float32)  # noqa: E731
  segments = np.kron(rng.integers(0, 4, (batch, 4, 4)), np.ones((4, 4))).astype(np.uint8)
  segments[1] = np.minimum(segments[1], 2)
  segments[2] = 0
  there = np.arange(targets) < np.array([[3], [2], [0]])
  label = jnp.asarray(rng.integers(0, 5, (batch, targets)), jnp.int32)
  found = mask_losses.Targets(jnp.asarray(segments), label, jnp.asarray(there), jnp.ones(batch))
  return said(6), said(grid, grid), found


def test_losses_of_whole_masks():
  """As anybody would write them in float64: costs, assignment by SciPy, cross-entropy and dice."""
  logits, masks, targets = arrays()
  weights = mask_losses.Weights(2.0, 5.0, 5.0, 0.1)

  @jax.jit
  def both(logits, masks):
    place = mask_losses.matched(logits, masks, targets, weights, None)
    return place, mask_losses.losses(logits, masks, targets, place, weights, None)

  place, found = both(logits, masks)
  wide = lambda x: np.asarray(x, np.float64)  # noqa: E731
  for layer in range(2):
    classes = mask = dice = right = 0
    for image in range(3):
      scores, pixels = wide(logits[image, layer]), wide(masks[image, layer]).reshape(6, -1)
      p = scipy.special.softmax(scores, -1)
      segments = np.asarray(targets.segments[image]).reshape(8, 2, 8, 2)
      count = int(targets.there[image].sum())
      cost, terms = np.zeros((count, 6)), np.zeros((count, 6, 2))
      for t, q in np.ndindex(count, 6):
        wanted = (segments == t + 1).mean((1, 3)).ravel()
        share = 1 / (1 + np.exp(-pixels[q]))
        entropy = -(wanted * np.log(share) + (1 - wanted) * np.log(1 - share)).mean()
        overlap = 1 - (2 * (share * wanted).sum() + 1) / (share.sum() + wanted.sum() + 1)
        terms[t, q] = entropy, overlap
        cost[t, q] = 5 * entropy + 5 * overlap - 2 * p[q, targets.label[image, t]]
      rows, columns = scipy.optimize.linear_sum_assignment(cost)
      assert place[image, layer, :count].tolist() == columns.tolist()
      assert (place[image, layer, count:] == -1).all()
      label = np.full(6, 5)
      label[columns] = np.asarray(targets.label[image])[rows]
      weight = np.where(label == 5, 0.1, 1.0)
      classes -= (weight * np.log(p[np.arange(6), label])).sum()
      mask += terms[rows, columns, 0].sum()
      dice += terms[rows, columns, 1].sum()
      right += (scores[columns, :-1].argmax(-1) == label[columns]).sum()
    want = (classes, mask, dice, right)
    np.testing.assert_allclose([each[layer] for each in found], want, rtol=1e-5)


def test_points_are_where_masks_are_uncertain():
  """Those nearest to zero are chosen, the others drawn; by the key of an example alone."""
  logits, masks, targets = arrays()
  weights = mask_losses.Weights(2.0, 5.0, 5.0, 0.1)
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
  points = mask_losses.drawn(keys, 2, 4, 20, 3.0, 0.75)
  assert (points.match.shape, points.tried.shape) == ((3, 2, 20, 2), (3, 2, 4, 60, 2))
  assert (points.more.shape, points.certain) == ((3, 2, 4, 5, 2), 15)
  alone = mask_losses.drawn(keys[1:2], 2, 4, 20, 3.0, 0.75)
  for one, other in zip(points[:3], alone[:3], strict=True):
    np.testing.assert_array_equal(one[1:2], other)
  at = mask_losses._uncertain(masks[:, :, :4], points)
  looked = np.sort(np.abs(mask_losses.sampled(masks[:, :, :4], points.tried)), -1)
  chosen = np.sort(np.abs(mask_losses.sampled(masks[:, :, :4], at[..., :15, :])), -1)
  np.testing.assert_allclose(chosen, looked[..., :15], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(at[..., 15:, :], points.more)

  @jax.jit
  def gradient(logits, masks):
    place = mask_losses.matched(logits, masks, targets, weights, points)
    found = lambda *said: mask_losses.losses(*said, targets, place, weights, points)  # noqa: E731
    return jax.grad(lambda *said: sum(each.sum() for each in found(*said)[:3]), (0, 1))(
      logits, masks
    )

  of_logits, of_masks = gradient(logits, masks)
  assert np.isfinite(of_logits).all()
  assert np.isfinite(of_masks).all()
  assert not of_masks[2].any()  # of an image without segments
  assert of_logits[2].any()


def test_focal_losses_of_all_pixels():
  """As anybody would write them in float64, of masks that OpenCV enlarges; at points as between."""
  _, masks, targets = arrays()
  place = jnp.array([[[2, 0, 5, -1]], [[1, 4, -1, -1]], [[-1] * 4]])
  masks = masks[:, -1:]
  mask, dice = jax.jit(lambda masks: mask_losses.focal_losses(masks, targets, place, None))(masks)
  wide, want = lambda x: np.asarray(x, np.float64), np.zeros(2)
  for image, target in zip(*np.nonzero(np.asarray(place)[:, 0] >= 0), strict=True):
    own = wide(masks[image, 0, place[image, 0, target]])
    x = cv2.resize(own, (16, 16), interpolation=cv2.INTER_LINEAR)
    share, wanted = 1 / (1 + np.exp(-x)), np.asarray(targets.segments[image]) == target + 1
    right = np.where(wanted, share, 1 - share)
    alpha = np.where(wanted, 0.25, 0.75)
    want[0] -= (alpha * (1 - right) ** 2 * np.log(right)).mean()
    want[1] += 1 - (2 * (share * wanted).sum() + 1) / (share.sum() + wanted.sum() + 1)
  np.testing.assert_allclose([mask[0], dice[0]], want, rtol=1e-5)
  # At the centres of all pixels, but for the outermost ones, which points fade out beyond.
  y, x = np.mgrid[1:15, 1:15].reshape(2, -1)
  centres = jnp.asarray(np.stack([x + 0.5, y + 0.5], -1) / 16, jnp.float32)
  every = jnp.broadcast_to(centres, (3, 1, 4, *centres.shape))
  points = mask_losses.Points(None, every[..., :50, :], every[..., 50:, :], 50)
  small = jax.tree.map(lambda x: x, targets)._replace(segments=targets.segments[:, 1:15, 1:15])
  inner = jax.vmap(lambda x: jax.image.resize(x, (6, 16, 16), 'bilinear'))(masks[:, 0])
  one = mask_losses.focal_losses(masks, targets, place, points)
  two = mask_losses.focal_losses(inner[:, None, :, 1:15, 1:15], small, place, None)
  np.testing.assert_allclose(one, two, rtol=1e-4)


def test_every_pixel_has_a_class():
  """The cross-entropy of each pixel of a segment with what is said of its cell."""
  _, _, targets = arrays()
  logits = np.random.default_rng(1).normal(size=(3, 8, 8, 5)).astype(np.float32)
  total, pixels = mask_losses.of_pixels(jnp.asarray(logits), targets)
  want = count = 0
  for image, y, x in np.ndindex(*targets.segments.shape):
    if number := int(targets.segments[image, y, x]):
      said = scipy.special.log_softmax(logits[image, y // 2, x // 2].astype(np.float64))
      want, count = want - said[targets.label[image, number - 1]], count + 1
  assert int(pixels) == count
  assert float(total) == pytest.approx(want, rel=1e-5)


# --- merging ---


def merged(logits, masks, size, stuff, threshold, overlap):
  """What the papers' code says in words, pixel by pixel: (segments, {query: (class, score)})."""
  share = scipy.special.softmax(logits.astype(np.float64), -1)
  nothing = share.shape[-1] - 1
  kept = [q for q, p in enumerate(share) if p.argmax() != nothing and p.max() > threshold]
  ids = np.zeros(size, int)
  if not kept:
    return ids
  pixels = np.stack([
    cv2.resize(masks[q].astype(np.float64), size[::-1], interpolation=cv2.INTER_LINEAR)
    for q in kept
  ])  # fmt: skip
  p = 1 / (1 + np.exp(-pixels))
  winner = (p * share[kept].max(-1)[:, None, None]).argmax(0)
  first = {}
  for at, q in enumerate(kept):
    won, sure = winner == at, p[at] >= 0.5
    if not (won & sure).any() or won.sum() / sure.sum() < overlap:
      continue
    label = int(share[q].argmax())
    number = first.setdefault(label, q + 1) if label in stuff else q + 1
    ids[won & sure] = number
  return ids


def test_queries_are_merged_into_segments():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 9, 5)).astype(np.float32) * 3
  logits[0, :, -1] += 20  # nothing is found
  masks = np.stack([
    [cv2.GaussianBlur(rng.normal(size=(8, 12)), (0, 0), 2) * 20 for _ in range(9)]
    for _ in range(6)
  ]).astype(np.float32)  # fmt: skip
  stuff, fused = (0, 2), 0
  for threshold, overlap in ((0.3, 0.2), (0.6, 0.8)):
    found = jax.jit(
      lambda a, b: merging.panoptic(a, b, (32, 48), stuff=stuff, threshold=threshold,
                                    overlap=overlap)
    )(logits, masks)  # fmt: skip
    assert found['segments'].dtype == np.uint8
    share = scipy.special.softmax(logits, -1)[..., :-1]
    np.testing.assert_array_equal(found['segments_label'], share.argmax(-1))
    np.testing.assert_allclose(found['segments_score'], share.max(-1), rtol=1e-5)
    for i in range(6):
      want = merged(logits[i], masks[i], (32, 48), stuff, threshold, overlap)
      got = np.asarray(found['segments'][i])
      assert (got != want).mean() < 0.002, (i, threshold)  # rounding, where two are alike
      labels = [int(found['segments_label'][i][n - 1]) for n in np.unique(got) if n]
      assert all(labels.count(each) <= 1 for each in stuff)
      fused += len(labels)
  assert not found['segments'][0].any()
  assert fused > 10


# --- quality ---


def counted(truth, about, said, labels):
  return quality.counted(np.array(truth), Truth(None, about), np.array(said), labels, 3)


def test_panoptic_quality_by_hand():
  """Halves do not match; void and crowds of the class do not count; others do."""
  row = [1, 1, 1, 1, 2, 2, 0, 0]
  about = {1: (0, False), 2: (1, False)}
  exact = counted([row], about, [row], {1: 0, 2: 1})
  assert exact.iou.tolist() == [1, 1, 0]
  assert (exact.found.tolist(), exact.wrong.tolist()) == ([1, 1, 0], [0, 0, 0])
  half = counted([row], about, [[1, 1, 0, 0, 2, 2, 2, 2]], {1: 0, 2: 1})
  assert half.found.tolist() == [0, 1, 0]  # what is void is no part of the union
  assert half.iou.tolist() == [0, 1, 0]
  assert (half.wrong.tolist(), half.missed.tolist()) == ([1, 0, 0], [1, 0, 0])
  other = counted([row], about, [row], {1: 1, 2: 1})
  assert (other.wrong.tolist(), other.missed.tolist()) == ([0, 1, 0], [1, 0, 0])
  void = counted([row], about, [[0, 0, 0, 0, 0, 3, 3, 3]], {3: 0})
  assert (void.wrong.tolist(), void.missed.tolist()) == ([0, 0, 0], [1, 1, 0])
  crowd = {1: (0, True), 2: (1, False)}
  assert counted([row], crowd, [[5, 5, 0, 0, 2, 2, 0, 0]], {5: 0, 2: 1}).wrong.sum() == 0
  assert counted([row], crowd, [[5, 5, 0, 0, 2, 2, 0, 0]], {5: 2, 2: 1}).wrong.tolist() == [0, 0, 1]
  nothing = counted([row], about, [[0] * 8], {})
  assert nothing.missed.tolist() == [1, 1, 0]


def test_the_truth_is_perfect(source):
  """Predicted as it is seen, brought back, scored, decoded and drawn."""
  names = source.fields['panoptic'].names
  task = Panoptic().settled(source.fields)
  assert task.stuff == (0, 1, 2)
  model = types.SimpleNamespace(says=(), in_channels=3, image_size=(32, 48), num_classes=8)
  rows = task.rows(model, source.fields, View(), train=False)
  seen, records = Seen(rows, source.fields), []
  evaluator = quality.Panoptic()
  for number in range(30):
    row = rows.make(source[number], None)
    outputs = {n: row[n] for n in ('segments', 'segments_label')}
    outputs['segments_score'] = np.full(100, 0.9)
    records.append(evaluator.record(outputs, source[number], seen))
    bad = evaluator.badness(
      {n: x[None] for n, x in outputs.items()}, {n: np.asarray(x)[None] for n, x in row.items()}
    )
    assert float(bad[0]) == 0
  found = {'test': Found(source, {}, records, np.arange(30), 30)}
  scores = evaluator.finish(found)
  for name in ('pq', 'sq', 'rq', 'pq_things', 'pq_stuff'):
    assert scores.values[name] == 1, name
  assert scores.values['classes'] == 8
  assert len(scores.tables[0].rows) == 8
  prediction = task.decode(outputs, source[number], seen)
  segments = prediction.facts['segments']
  assert [each['share'] for each in segments] == sorted(
    (s['share'] for s in segments), reverse=True
  )
  truth = source[number]['panoptic']
  for each in segments:
    mask = prediction.arrays['segments'] == each['number']
    (own,) = np.unique(truth.ids[mask])
    assert names[truth.segments[int(own)][0]] == each['class']
    assert mask.mean() == pytest.approx(each['share'])
    assert cv2.boundingRect(mask.astype(np.uint8)) == (
      each['box'][0], each['box'][1], each['box'][2] - each['box'][0],
      each['box'][3] - each['box'][1],
    )  # fmt: skip
  picture = task.draw(prediction, source[number], seen)
  assert picture.dtype == np.uint8
  assert picture.shape[1] > 3 * 48
  assert len(task.lines(prediction)) == len(segments)


# --- classes of pixels ---


def test_queries_vote_for_classes():
  """The sum of the products of probabilities; and a map makes a segment of each class."""
  rng = np.random.default_rng(0)
  logits, masks = rng.normal(size=(3, 6, 5)) * 2, rng.normal(size=(3, 6, 4, 6)) * 3
  got, scores = jax.jit(lambda *x: [f(*x, (16, 24)) for f in (merging.classes, merging.scores)])(
    jnp.asarray(logits, jnp.float32), jnp.asarray(masks, jnp.float32)
  )
  for i in range(3):
    large = [cv2.resize(m, (24, 16), interpolation=cv2.INTER_LINEAR) for m in masks[i]]
    share = scipy.special.softmax(logits[i], -1)[:, :-1]
    said = np.einsum('qc,qhw->chw', share, 1 / (1 + np.exp(-np.stack(large))))
    assert (np.asarray(got[i]) != said.argmax(0)).mean() < 0.01
    np.testing.assert_allclose(scores[i], np.moveaxis(said, 0, -1), atol=1e-5)
    np.testing.assert_array_equal(Semantic().decided(scores[i]), got[i])
  values = np.kron([[0, 2, 255], [2, 1, 9]], np.ones((4, 4))).astype(np.uint8)
  example = {'name': 'one', 'image': np.zeros((8, 12, 3), np.uint8), 'map': values}
  fields = {'map': Field('map', ('a', 'b', 'c', 'd'), ignore=(9, 255))}
  model = types.SimpleNamespace(says=(), in_channels=3, image_size=(8, 12), num_classes=4)
  rows = Semantic(most=5).rows(model, fields, View(), train=False)
  row = rows.make(example, None)
  assert row['segments_label'].tolist() == [0, 1, 2, 0, 0]
  assert row['segments_known'].tolist() == [1, 1, 1, 0, 0]
  want = np.kron([[1, 3, 0], [3, 2, 0]], np.ones((4, 4)))
  np.testing.assert_array_equal(row['segments'], want)
  np.testing.assert_array_equal(row['map'], np.where(want, want - 1, 255))
  task, seen = Semantic(), Seen(rows, fields)
  said = np.where(want, want - 1, 3).astype(np.uint8)
  prediction = task.decode({'map': said}, example, seen)
  assert prediction.facts['share'] == {'c': 1 / 3, 'd': 1 / 3, 'a': 1 / 6, 'b': 1 / 6}
  assert task.draw(prediction, example, seen).dtype == np.uint8


# --- instances ---


def test_pairs_of_query_and_class_are_objects():
  """The likeliest first, with the probability of their masks; eight of them in a byte."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 5, 4)).astype(np.float32) * 2
  masks = rng.normal(size=(2, 5, 4, 6)).astype(np.float32) * 3
  found = jax.jit(lambda a, b: merging.objects(a, b, (16, 24), most=11))(logits, masks)
  assert found['masks'].shape == (2, 16, 24, 2)
  for i in range(2):
    share = scipy.special.softmax(logits[i].astype(np.float64), -1)[:, :-1]
    order = np.argsort(-share, axis=None)[:11]
    bits = np.unpackbits(np.asarray(found['masks'][i]), axis=-1)
    assert not bits[..., 11:].any()
    for at, pair in enumerate(order):
      query, label = divmod(int(pair), 3)
      pixels = cv2.resize(masks[i, query], (24, 16), interpolation=cv2.INTER_LINEAR)
      inside = pixels > 0
      assert (bits[..., at] != inside).mean() < 0.01
      assert int(found['label'][i, at]) == label
      likely = (1 / (1 + np.exp(-pixels)) * inside).sum() / (inside.sum() + 1e-6)
      assert float(found['score'][i, at]) == pytest.approx(share[query, label] * likely, rel=0.01)


def test_true_objects_are_perfect(source):
  """Brought back, scored, decoded and drawn; half as sure of one, and its recall is there still."""
  task, evaluator = Instances(threshold=0.3), masks_found.Instances()
  model = types.SimpleNamespace(says=(), in_channels=3, image_size=(32, 48), num_classes=5)
  rows = task.rows(model, source.fields, View(flip='none'), train=False)
  seen, records = Seen(rows, source.fields), []
  for number in range(30):
    truth = source[number]['masks']
    shapes = np.array(truth.shapes).reshape(-1, 32, 48)[~truth.crowd]
    most = np.zeros((10, 32, 48), bool)
    most[: len(shapes)] = shapes
    score, label = np.zeros(10, np.float32), np.zeros(10, np.int32)
    score[: len(shapes)], label[: len(shapes)] = 0.9, truth.label[~truth.crowd]
    outputs = {'score': score, 'label': label,
               'masks': np.moveaxis(np.packbits(most, axis=0), 0, -1)}  # fmt: skip
    records.append(evaluator.record(outputs, source[number], seen))
  found = {'test': Found(source, {}, records, np.arange(30), 30)}
  scores = evaluator.finish(found)
  assert scores.values['ap'] == scores.values['ap50'] == scores.values['ar100'] == 1
  assert len(scores.tables[0].rows) == 5
  half = [(score * (0.5 if i % 2 else 1), label, [] if i % 2 else said, *rest)
          for i, (score, label, said, *rest) in enumerate(records)]  # fmt: skip
  half = [r if r[2] else (r[0][:0], r[1][:0], *r[2:]) for r in half]
  less = evaluator.finish({'test': found['test']._replace(records=half)}).values
  assert 0.3 < less['ap'] < 0.7
  prediction = task.decode(outputs, source[number], seen)
  objects = prediction.facts['objects']
  assert len(objects) == len(shapes)
  names = source.fields['masks'].names
  for at, each in enumerate(objects):
    own = shapes[at]
    assert each['pixels'] == own.sum()
    assert each['class'] == names[label[at]]
    x, y, width, height = cv2.boundingRect(own.astype(np.uint8))
    assert each['box'] == [x, y, x + width, y + height]
    np.testing.assert_array_equal(prediction.arrays['objects'] == each['number'], own)
  assert task.draw(prediction, source[number], seen).shape[1] > 3 * 48
  assert len(task.lines(prediction)) == len(objects)
  with pytest.raises(RunError, match='top=0 must be at least 1'):
    Instances(top=0)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(threshold=1.5), 'threshold=1.5 is a share'), (dict(points=-1), 'points=-1'),
    (dict(tried=0.5), 'tried=0.5 must be at least 1'), (dict(lifted=2), 'lifted=2 is a share'),
    (dict(most=0), 'most=0 must be from 1'),
  ],
)  # fmt: skip
def test_fields_that_make_no_sense(fields, message):
  from vit_jax.core.schedule import Schedule

  fields = {n: Schedule.of(v) if n == 'lifted' else v for n, v in fields.items()}
  with pytest.raises(RunError, match=message):
    Panoptic(**fields)


def test_models_and_data_that_do_not_fit():
  from vit_jax.architecture import (
    DecoderArchitecture,
    DetrArchitecture,
    EomtArchitecture,
    SegmenterArchitecture,
    ViTArchitecture,
    YolosArchitecture,
  )
  from vit_jax.core.schedule import Schedule

  encoder = ViTArchitecture('mu/8', image_size=(32, 48), patch_size=8)
  model = EomtArchitecture(encoder, blocks=1).resolve()
  fields = {'panoptic': Field('panoptic', ('a', 'b'), stuff=('b',))}
  task = Panoptic().settled(fields)
  assert task.adapt(model, fields).num_classes == 2
  lifted = dataclasses.replace(task, lifted=Schedule.of(1))
  detr = DetrArchitecture(encoder, DecoderArchitecture(width=32, num_heads=2))
  found = lifted.adapt(detr.resolve(), fields)
  assert (found.num_classes, found.says) == (2, ('logits', 'boxes', 'masks'))
  sigmoid = dataclasses.replace(detr, decoder=dataclasses.replace(detr.decoder, nothing=False))
  needs = 'needs a model whose queries say masks, model.name=eomt or detr, not '
  for given, one, message in (
    (task, SegmenterArchitecture(encoder), needs + 'segmenter'),
    (task, YolosArchitecture(encoder), needs + 'yolos'),
    (task, detr.resolve(), 'lifts masks of attention, which model.name=detr does not have'),
    (lifted, sigmoid.resolve(), 'needs a logit of no segment: model.decoder.nothing=True'),
    (Panoptic(stuff=(2,)), model, 'task.stuff has 2, and there are 2 classes'),
  ):
    with pytest.raises(RunError, match=message):
      given.adapt(one, fields)
  with pytest.raises(RunError, match='how many classes has panoptic'):
    Panoptic().adapt(model, {})
