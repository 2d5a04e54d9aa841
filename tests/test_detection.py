"""Detection by set prediction: boxes, matching, the model, its task and its scores."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import linear_sum_assignment
from scipy.special import expit, log_softmax, softmax

import vit_jax
from vit_jax import tasks
from vit_jax.architecture import TokenDetectorArchitecture, ViTArchitecture
from vit_jax.core.errors import RunError
from vit_jax.data import crops
from vit_jax.data.fields import Boxes, Field
from vit_jax.data.rows.columns import Columns, Image, Instances
from vit_jax.data.views import View
from vit_jax.draw import pictures
from vit_jax.evaluators import detection as scores
from vit_jax.evaluators.detection import Detection as Scores
from vit_jax.evaluators.evaluator import Found
from vit_jax.models.token_detector import TokenDetectorConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.tasks import boxes, matching
from vit_jax.tasks.detection import Detection
from vit_jax.tasks.task import Seen

NAMES = ('cat', 'dog', 'fox')


# --- boxes ---


def test_boxes_both_ways():
  rng = np.random.default_rng(0)
  some = rng.uniform(0.2, 0.8, (5, 4))
  corners = boxes.corners(jnp.asarray(some))
  np.testing.assert_allclose(corners[0], [some[0, 0] - some[0, 2] / 2, some[0, 1] - some[0, 3] / 2,
                                          some[0, 0] + some[0, 2] / 2, some[0, 1] + some[0, 3] / 2],
                             rtol=1e-6)  # fmt: skip
  np.testing.assert_allclose(boxes.centres(corners), some, rtol=1e-5)


@pytest.mark.parametrize(
  ('a', 'b', 'iou', 'giou'),
  [
    ([0, 0, 2, 2], [0, 0, 2, 2], 1, 1),
    ([0, 0, 2, 2], [2, 0, 4, 2], 0, 0),  # they touch
    ([0, 0, 2, 2], [0.5, 0.5, 1.5, 1.5], 0.25, 0.25),  # one inside the other
    ([0, 0, 1, 1], [9, 9, 10, 10], 0, -0.98),  # far apart
    ([0, 0, 4, 4], [1, 1, 1, 1], 0, 0),  # a point inside
    ([1, 1, 1, 1], [1, 1, 1, 1], 0, 0),  # two points in one place
    ([1, 1, 1, 1], [3, 1, 3, 1], 0, 0),  # on a line
  ],
)
def test_overlaps_and_their_gradients(a, b, iou, giou):
  """By hand; where boxes have no area, too, nothing is infinite."""
  a, b = (jnp.array(box, jnp.float32) / 10 for box in (a, b))
  found = boxes.overlaps(a, b)
  np.testing.assert_allclose(found, [iou, giou], atol=1e-6)
  for which in (0, 1):
    for gradient in jax.grad(lambda *ab, at=which: boxes.overlaps(*ab)[at], (0, 1))(a, b):
      assert np.isfinite(gradient).all()


def test_which_points_are_in_which_boxes():
  points = jnp.array([[0.1, 0.1], [0.5, 0.9]])
  corners = jnp.array([[0, 0, 0.2, 0.2], [0, 0, 1, 1], [0.5, 0.9, 1, 1]])
  found = boxes.inside(points, corners)
  np.testing.assert_array_equal(found, [[True, False], [True, True], [False, True]])


# --- matching ---

LAYERS, QUERIES, TARGETS, CLASSES = 2, 6, 4, 3
WEIGHTS = matching.Weights(2.0, 5.0, 2.0)


def drawn(nothing, seed=0):
  """What queries say, and objects: four, none, two, and one of an image that does not count."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 2, (4, LAYERS, QUERIES, CLASSES + nothing))
  said, wanted = (rng.uniform(0.2, 0.6, shape) for shape in
                  [(4, LAYERS, QUERIES, 4), (4, TARGETS, 4)])  # fmt: skip
  there = np.arange(TARGETS) < np.array([[4], [0], [2], [1]])
  images = np.array([1.0, 1, 1, 0])
  label = np.where(there, rng.integers(0, CLASSES, there.shape), 0)
  batch = {
    'boxes': boxes.corners(jnp.asarray(wanted, jnp.float32)), 'mask': jnp.asarray(images),
    'boxes_label': jnp.asarray(label, jnp.int32), 'boxes_known': jnp.asarray(there, jnp.float32),
    'boxes_left_out': jnp.array([0.0, 3, 0, 1]),
  }  # fmt: skip
  return (logits.astype(np.float32), said.astype(np.float32)), batch, (wanted, label, there, images)


def giou(a, b):
  """As the paper has it, of one pair of centres and sides, float64."""
  (l, t, r, u), (L, T, R, U) = (  # noqa: E741, N806
    (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b)
  )
  both = max(0, min(r, R) - max(l, L)) * max(0, min(u, U) - max(t, T))
  union = (r - l) * (u - t) + (R - L) * (U - T) - both
  hull = (max(r, R) - min(l, L)) * (max(u, U) - min(t, T))
  return both / union - (hull - union) / hull


def focal(x, target):
  """Of one logit; `target` is 0 or 1."""
  p = expit(x)
  return -0.25 * (1 - p) ** 2 * np.log(p) if target else -0.75 * p**2 * np.log(1 - p)


def naive(logits, said, wanted, label, there, images, nothing):
  """Sums of each layer, with SciPy's assignment: classes, distance, overlap."""
  found = np.zeros((3, LAYERS))
  for image in np.flatnonzero(images):
    for layer in range(LAYERS):
      x, box = logits[image, layer].astype(np.float64), said[image, layer].astype(np.float64)
      own, objects = np.full(QUERIES, -1), np.flatnonzero(there[image])
      cost = np.zeros((len(objects), QUERIES))
      for row, t in enumerate(objects):
        for q in range(QUERIES):
          c = label[image, t]
          of_class = -softmax(x[q])[c] if nothing else focal(x[q, c], 1) - focal(x[q, c], 0)
          apart = np.abs(box[q] - wanted[image, t]).sum()
          cost[row, q] = 2 * of_class + 5 * apart - 2 * giou(box[q], wanted[image, t])
      for row, q in zip(*linear_sum_assignment(cost), strict=True):
        t = objects[row]
        own[q] = label[image, t]
        found[1, layer] += np.abs(box[q] - wanted[image, t]).sum()
        found[2, layer] += 1 - giou(box[q], wanted[image, t])
      for q in range(QUERIES):
        if nothing:
          found[0, layer] -= log_softmax(x[q])[own[q]] * (1 if own[q] >= 0 else 0.1)
        else:
          found[0, layer] += sum(focal(x[q, c], c == own[q]) for c in range(CLASSES))
  return found


class Says:
  """A model that says what it is told to."""

  def __init__(self, nothing, **said):
    self.config, self.said = types.SimpleNamespace(nothing=nothing), said

  def __call__(self, images, key=None):
    return self.said


@pytest.mark.parametrize('nothing', [False, True])
def test_the_loss_of_a_batch(nothing):
  """Written out in NumPy; images without objects count, those that are padding do not.

  Objects are divided by their number in the whole batch, here twice what is there.
  """
  (logits, said), batch, truth = drawn(nothing)
  classes, distance, overlap = naive(logits, said, *truth, nothing)
  task = Detection(auxiliary=0.5)
  totals = task.totals(batch)
  assert {n: float(v) for n, v in totals.items()} == {'examples': 3, 'boxes': 6, 'both': 9}
  totals = {name: 2 * value for name, value in totals.items()}
  ctx = types.SimpleNamespace(noise=None, totals=totals)

  @jax.jit
  def loss(logits, said):
    model = Says(nothing, logits=logits, boxes=said)
    value, sums, _ = task.loss(model, {'image': None, **batch}, ctx)
    return value, {name: each for name, (each, _) in sums.items()}

  (value, sums), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(logits, said)
  of_classes = 2 * ((6 + 0.1 * (3 * QUERIES - 6)) if nothing else 6)
  each = 2 * classes / of_classes + 5 * distance / 12 + 2 * overlap / 12
  assert float(value) == pytest.approx(each[-1] + 0.5 * each[:-1].sum(), rel=1e-5)
  assert float(sums['loss']) == pytest.approx(6 * float(value))
  assert float(sums['distance']) == pytest.approx(distance[-1], rel=1e-5)
  assert float(sums['overlap']) == pytest.approx(overlap[-1], rel=1e-5)
  assert 0 < float(sums['iou']) < 6
  assert float(sums['accuracy']) in range(7)
  for gradient in gradients:
    assert np.isfinite(gradient).all()
    assert not gradient[3].any()  # the image that does not count
  assert not gradients[1][1].any()  # no object, no box
  assert gradients[0][1].any()


def test_a_batch_without_objects():
  """The loss is finite, and so is its gradient: queries learn that nothing is there."""
  for nothing in (False, True):
    (logits, said), batch, _ = drawn(nothing)
    batch |= {'boxes_known': jnp.zeros((4, TARGETS))}

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss(logits, said, batch=batch, nothing=nothing):
      task, model = Detection(), Says(nothing, logits=logits, boxes=said)
      totals = {name: jnp.maximum(value, 1) for name, value in task.totals(batch).items()}
      ctx = types.SimpleNamespace(noise=None, totals=totals)
      return task.loss(model, {'image': None, **batch}, ctx)[0]

    value, gradients = loss(logits, said)
    if nothing:
      want = -2 * log_softmax(logits[:3].astype(np.float64), -1)[..., -1].mean((0, 2)).sum()
    else:
      want = 2 * focal(logits[:3].astype(np.float64), 0).sum()
    assert float(value) == pytest.approx(want, rel=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert gradients[0].any()
    assert not gradients[1].any()


def test_more_objects_than_queries():
  """The cheapest are assigned, and the others are nobody's."""
  (logits, said), batch, _ = drawn(False)
  targets = matching.Targets.of(batch)
  matched = jax.jit(lambda *said: matching.matched(*said, targets, WEIGHTS, nothing=False))
  place = matched(logits[:, :, :2], said[:, :, :2])
  np.testing.assert_array_equal((place >= 0).sum(-1), [[2, 2], [0, 0], [2, 2], [0, 0]])
  label = matching.wanted_classes(place, targets.label, 2)
  assert (np.asarray(label[0]) >= 0).all()
  assert (np.asarray(label[1]) == -1).all()


def test_the_smallest_box_at_a_place():
  """Two objects, one in the other, five and one places; a place in neither says that nothing is."""
  wanted = jnp.array([[[0.5, 0.5, 1.0, 0.5], [0.3, 0.5, 0.3, 0.4], [0.5, 0.5, 0.01, 0.01]]])
  targets = matching.Targets(wanted, jnp.array([[0, 1, 2]]), jnp.array([[True, True, False]]),
                             jnp.ones(1))  # fmt: skip
  points = [[0.5, 0.1], [0.3, 0.5], [0.5, 0.5], [0.8, 0.6], [0.6, 0.6], [0.7, 0.5], [0.9, 0.5]]
  points = np.array([points], np.float32)
  rng = np.random.default_rng(0)
  logits, said = rng.normal(0, 2, (1, 7, 3)), rng.uniform(0.2, 0.6, (1, 7, 4))
  dense = jax.jit(lambda said: matching.dense_loss(said, targets, WEIGHTS, nothing=False))
  found = dense({'dense_logits': logits, 'dense_boxes': said, 'dense_points': points})
  want = 0.0
  for q, (own, share) in enumerate([(-1, 1), (1, 1), *[(0, 4 / 5)] * 5]):
    want += share * 2 * sum(focal(logits[0, q, c], c == own) for c in range(3))
    if own >= 0:
      box = np.asarray(wanted[0, own], np.float64)
      want += share * (5 * np.abs(said[0, q] - box).sum() + 2 * (1 - giou(said[0, q], box)))
  assert float(found) == pytest.approx(want, rel=1e-5)


# --- the model ---


def small(**changes):
  encoder = dict(variant='mu/4', image_size=(16, 24), in_channels=3, depth=3, width=16, mlp_dim=32,
                 num_heads=2, registers=1)  # fmt: skip
  fields = {'num_classes': 3, **changes}
  encoder |= fields.pop('encoder', {})
  return TokenDetectorConfig(encoder=ViTConfig(**encoder), **fields)


def test_every_patch_is_a_query():
  """The same heads on the last blocks, by hand; boxes begin around the place of their patch."""
  model = small(layers=3).create(nnx.Rngs(0))
  images = jnp.asarray(np.random.default_rng(0).normal(0, 1, (2, 16, 24, 3)), jnp.float32)
  said = jax.jit(lambda model, images: model(images))(model, images)
  assert said['logits'].shape == (2, 3, 24, 3)
  assert said['boxes'].shape == (2, 3, 24, 4)
  inside = jax.jit(lambda model, images: model.encoder.features(images))(model, images)
  layers = [model.encoder.encoder.norm(inside[f'block{n:02d}']) for n in range(3)]
  np.testing.assert_allclose(layers[-1], inside['encoded'], rtol=1e-5, atol=1e-6)
  x, y = np.meshgrid((np.arange(6) + 0.5) / 6, (np.arange(4) + 0.5) / 4)
  first = np.stack([x.ravel(), y.ravel(), np.full(24, 0.3), np.full(24, 0.3)], -1)
  for layer, tokens in enumerate(layers):
    z = np.asarray(tokens[:, 1:], np.float64)
    logits = z @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(said['logits'][:, layer], logits, rtol=1e-4, atol=1e-5)
    for number, dense in enumerate(model.boxes.layers):
      z = np.maximum(z, 0) if number else z
      z = z @ np.asarray(dense.kernel[...]) + np.asarray(dense.bias[...])
    want = expit(np.log(first / (1 - first)) + z)
    np.testing.assert_allclose(said['boxes'][:, layer], want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(said['dense_points'][1], first[:, :2], rtol=1e-6)
  assert said['dense_logits'].shape == (2, 24, 3)
  # What has not learned anything says next to nothing of each class.
  assert 0.003 < float(jax.nn.sigmoid(said['logits']).mean()) < 0.05
  counts = {name: params for name, params, _ in model.config.rest}
  for name, count in counts.items():
    assert sum(leaf.size for leaf in jax.tree.leaves(getattr(model, name))) == count


def test_a_detector_is_saved_and_read(tmp_path):
  """With its task, so that its predictions have names."""
  model, task = small(dense=False).create(nnx.Rngs(0)), Detection(mean=(0.5,), std=(0.5,))
  assert not hasattr(model, 'dense_head')
  fields = {'boxes': Field('boxes', NAMES)}
  card = task.card(model.config, crops.Resize(method='area'), fields)
  known = {name: dataclasses.asdict(field) for name, field in fields.items()}
  model.card = dataclasses.replace(card, task=tasks.described(task), fields=known)
  vit_jax.save(model, tmp_path / 'model', 'vit_jax')
  again = vit_jax.load(tmp_path / 'model')
  found, fields = tasks.of(again.card)
  assert found == task
  assert fields['boxes'].names == NAMES
  images = jnp.ones((1, 16, 24, 3))
  np.testing.assert_array_equal(again(images)['boxes'], model(images)['boxes'])


@pytest.mark.parametrize('nothing', [False, True])
def test_the_best_boxes_of_an_image(nothing):
  """With a sigmoid pairs of query and class, with a softmax the likeliest class of each query."""
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (2, LAYERS, QUERIES, 3 + nothing)).astype(np.float32)
  said = rng.uniform(0.2, 0.6, (2, LAYERS, QUERIES, 4)).astype(np.float32)
  predict = lambda logits, said: Detection(top=7).predict(  # noqa: E731
    Says(nothing, logits=logits, boxes=said), {'image': None}
  )
  found = jax.jit(predict)(logits, said)
  for image in range(2):
    if nothing:
      chance = softmax(logits[image, -1], -1)[:, :-1]
      want = [(chance[q].max(), q, int(chance[q].argmax())) for q in range(QUERIES)]
    else:
      chance = expit(logits[image, -1])
      want = [(chance[q, c], q, c) for q in range(QUERIES) for c in range(3)]
    want = sorted(want, reverse=True)[:7]
    np.testing.assert_allclose(found['score'][image], [s for s, _, _ in want], rtol=1e-5)
    assert found['label'][image].tolist() == [c for _, _, c in want]
    corners = boxes.corners(jnp.asarray(said[image, -1]))
    np.testing.assert_allclose(found['box'][image], corners[np.array([q for _, q, _ in want])])


# --- scores ---


def record(truth=(), said=()):
  """A record: true boxes (corners, class, crowd, area) and predicted ones (corners, class, score).

  Of an area of 0 it is that of the box.
  """
  corners = np.array([t[0] for t in truth], np.float64).reshape(-1, 4)
  own = (corners[:, 2:] - corners[:, :2]).prod(1)
  area = np.array([t[3] or a for t, a in zip(truth, own, strict=True)])
  return (
    np.array([s[0] for s in said], np.float32).reshape(-1, 4),
    np.array([s[1] for s in said], np.int32), np.array([s[2] for s in said], np.float32),
    corners, np.array([t[1] for t in truth], np.int64),
    np.array([t[2] for t in truth], bool), area,
  )  # fmt: skip


def scored(*records, names=NAMES):
  source = types.SimpleNamespace(fields={'boxes': Field('boxes', names)})
  found = Found(source, {}, list(records), np.arange(len(records)), len(records))  # type: ignore
  return Scores().finish({'test': found})


BOX, FAR = (10, 10, 20, 20), (100, 100, 150, 130)


def test_scores_of_coco():
  """Cases whose scores are known by the definition of the metric."""
  right = record([(BOX, 0, False, 0)], [(BOX, 0, 0.9)])
  values = scored(right).values
  assert [values[n] for n in ('ap', 'ap50', 'ap_small', 'ar1')] == pytest.approx([1] * 4)
  assert values['f1'] == 1
  assert values['threshold'] == pytest.approx(0.9)
  assert 'ap_large' not in values  # nothing of that size occurs
  # Half of the objects at full precision: 51 of 101 recalls.
  missed = record([(BOX, 0, False, 0)])
  assert scored(right, missed).values['ap'] == pytest.approx(51 / 101)
  assert scored(right, missed).values['f1'] == pytest.approx(2 / 3)
  # Overlaps of exactly one half count at 0.5, and at no other.
  half = record([((0, 0, 20, 10), 0, False, 0)], [((0, 0, 10, 10), 0, 0.5)])
  assert scored(half).values['ap50'] == pytest.approx(1)
  assert scored(half).values['ap'] == pytest.approx(0.1)
  # The class is wrong: nothing is found, but as an object of any class.
  wrong = scored(record([(BOX, 0, False, 0)], [(BOX, 1, 0.9)])).values
  assert [wrong[n] for n in ('ap', 'ap50_any', 'f1')] == pytest.approx([0, 1, 0])
  # Twice the same box: the second is false, but behind the first costs nothing of the precision.
  twice = record([(BOX, 0, False, 0)], [(BOX, 0, 0.9), (BOX, 0, 0.8)])
  assert scored(twice).values['ap'] == pytest.approx(1)
  assert scored(twice).values['f1'] == 1  # of the threshold that takes the first one alone
  before = record([(BOX, 0, False, 0)], [(FAR, 0, 0.95), (BOX, 0, 0.9)])
  assert scored(before).values['ap'] == pytest.approx(0.5)
  # Nothing is predicted at all; and nothing is there.
  assert scored(missed).values['ap'] == 0
  assert scored(record()).values == {'ap': 0, 'f1': 0, 'threshold': 1}
  # A class that is predicted and never there costs nothing.
  more = record([(BOX, 0, False, 0)], [(BOX, 0, 0.9), (FAR, 2, 0.99)])
  assert scored(more).values['ap'] == pytest.approx(1)


def test_crowds_and_sizes():
  """What is found in a crowd is neither right nor wrong; sizes are those of annotations."""
  crowd = record(
    [(BOX, 0, False, 0), (FAR, 0, True, 0)],
    [(BOX, 0, 0.5), ((100, 100, 110, 110), 0, 0.9), ((120, 100, 130, 110), 0, 0.8)],
  )
  found = scored(crowd)
  assert found.values['ap'] == pytest.approx(1)
  assert found.values['f1'] == 1
  assert found.arrays['objects'].tolist() == [1, 0, 0]
  assert [row[:2] for row in found.tables[0].rows] == [['cat', 1]]
  sized = scored(record([((0, 0, 50, 50), 0, False, 500.0)], [((0, 0, 50, 50), 0, 0.9)])).values
  assert sized['ap_small'] == pytest.approx(1)
  assert 'ap_medium' not in sized
  # Means are over classes that occur: one is found, and one is not.
  both = record([(BOX, 0, False, 0), (FAR, 1, False, 0)], [(BOX, 0, 0.9)])
  assert scored(both).values['ap'] == pytest.approx(0.5)
  table = scored(both).tables[0]
  assert [row[0] for row in table.rows] == ['cat', 'dog']
  assert [row[-1] for row in table.rows] == pytest.approx([1, 0])


def test_the_best_threshold():
  """Of equal scores all are taken, or none."""
  pairs = np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, True, False, False]), 3
  assert scores.balance(pairs) == (pytest.approx(4 / 6), 0.8)


def test_scores_are_those_of_files(tmp_path):
  """Written as COCO has them, and read by its tools: crowds, ties, absent classes, empty images."""
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  rng = np.random.default_rng(0)
  records, images, objects, results = [], [], [], []
  for image in range(1, 21):
    truth, said = [], []
    for _ in range(int(rng.integers(0, 6)) * (image % 5 > 0)):
      left, top, width, height = rng.uniform([0, 0, 5, 5], [200, 200, 150, 150])
      box, label = [left, top, left + width, top + height], int(rng.choice([0, 1, 3]))
      crowd, area = bool(rng.random() < 0.2), float(width * height * rng.uniform(0.3, 1))
      truth.append((box, label, crowd, area))
      place = dict(bbox=[left, top, width, height], area=area, iscrowd=int(crowd))
      number = dict(id=len(objects) + 1, image_id=image, category_id=10 * label + 1)
      objects.append({**number, **place})
      for _ in range(int(rng.integers(0, 4))):
        moved = np.float32(np.array(box) + rng.normal(0, 8, 4))
        moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
        other = int(rng.choice([label, label, 2]))
        score = round(float(rng.random()), 1)
        said.append((moved, other, score))
        wide = [float(x) for x in (*moved[:2], *(moved[2:].astype(float) - moved[:2]))]
        results.append(dict(image_id=image, category_id=10 * other + 1, bbox=wide,
                            score=float(np.float32(score))))  # fmt: skip
    records.append(record(truth, said))
    images.append(dict(id=image, width=400, height=400))
  categories = [dict(id=10 * k + 1, name=name) for k, name in enumerate('abcd')]
  everything = dict(images=images, annotations=objects, categories=categories)
  (tmp_path / 'truth.json').write_text(json.dumps(everything))
  (tmp_path / 'said.json').write_text(json.dumps(results))
  known = COCO(str(tmp_path / 'truth.json'))
  judged = COCOeval(known, known.loadRes(str(tmp_path / 'said.json')), 'bbox')
  judged.evaluate()
  judged.accumulate()
  judged.summarize()
  found = scored(*records, names=tuple('abcd')).values
  assert judged.stats.min() >= 0
  np.testing.assert_allclose([found[n] for n in scores.STATS], judged.stats[:9], rtol=1e-12)
  assert 0.1 < found['ap'] < 0.9


def seen_through(view, names=NAMES):
  rows = Columns(view, (Image(3),), (Instances(len(names), 4),))
  return Seen(rows, {'boxes': Field('boxes', names)})


EXAMPLE = {
  'image': np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), 'name': 'x',
  'boxes': Boxes(np.array([[30.0, 10, 45, 30], [0, 0, 6, 8]]), np.array([2, 0]),
                 np.array([False, True]), np.array([200.0, 48])),
}  # fmt: skip


@pytest.mark.parametrize('crop', [crops.Resize(), crops.Center(1.0)])
def test_predictions_are_judged_in_the_frame_of_the_image(crop):
  """What is right in the view is right in the image, whatever was cut off."""
  seen = seen_through(View(crop, size=(32, 32)))
  row = seen.rows.make(EXAMPLE, np.random.default_rng(0))
  assert row['boxes_known'].sum() == 1  # crowds are not learned from
  outputs = {
    'score': np.array([0.9, 0.8], np.float32),
    'label': np.array([2, 1], np.int32),
    'box': np.stack([row['boxes'][0], [0.5, 0.5, 0.5, 0.5]]).astype(np.float32),
  }
  found = Scores().record(outputs, EXAMPLE, seen)
  np.testing.assert_allclose(found[0], [[30, 10, 45, 30]], atol=1e-3)  # the other has no area
  assert scored(found).values['ap'] == pytest.approx(1)
  prediction = Detection().decode(outputs, EXAMPLE, seen)
  (only,) = prediction.facts['objects']
  assert (only['class'], only['score']) == ('fox', 0.9)
  np.testing.assert_allclose(only['box'], [30, 10, 45, 30], atol=0.01)


def test_a_prediction_is_words_and_a_picture():
  """Facts are JSON; what scores less than the threshold is not shown."""
  seen = seen_through(View(size=(20, 20)))
  outputs = {'score': np.array([0.75, 0.2], np.float32), 'label': np.array([1, 0], np.int32),
             'box': np.array([[0.25, 0.25, 0.5, 0.75]] * 2, np.float32)}  # fmt: skip
  task = Detection()
  prediction = task.decode(outputs, EXAMPLE, seen)
  want = {'objects': [{'class': 'dog', 'score': 0.75, 'box': [15.0, 10.0, 30.0, 30.0]}]}
  assert json.loads(json.dumps(prediction.facts)) == want
  assert task.lines(prediction) == [' 75.0%  dog  15 10 30 30']
  whole = task.draw(prediction, EXAMPLE, seen)
  alone = task.draw(prediction, {name: EXAMPLE[name] for name in ('image', 'name')}, seen)
  assert whole.shape[1] > 2 * EXAMPLE['image'].shape[1] * 6
  by = pictures.scale(40, 60)
  ink = list(pictures.colour(1))
  for picture in (whole, alone):
    assert picture[round(20 * by), round(15 * by)].tolist() == ink  # the left edge of the box
    assert picture.dtype == np.uint8
  strict = dataclasses.replace(task, threshold=0.8)
  assert strict.decode(outputs, EXAMPLE, seen).facts == {'objects': []}
  assert strict.lines(strict.decode(outputs, EXAMPLE, seen)) == ['nothing above 80%']


def test_how_bad_a_prediction_is():
  """An object found half, with a score of 0.8; one of another class; an image without any."""
  outputs = {
    'score': jnp.array([[0.8, 0.5]] * 3), 'label': jnp.array([[1, 0]] * 3),
    'box': jnp.array([[[0, 0, 0.5, 1], [0, 0, 1, 1]]] * 3),
  }  # fmt: skip
  batch = {
    'boxes': jnp.array([[[0.0, 0, 1, 1], [0, 0, 0, 0]]] * 3),
    'boxes_label': jnp.array([[1, 0], [2, 0], [0, 0]]),
    'boxes_known': jnp.array([[1.0, 0], [1, 0], [0, 0]]),
  }  # fmt: skip
  found = jax.jit(Scores().badness)(outputs, batch)
  np.testing.assert_allclose(found, [1 - 0.5 * 0.8, 1, np.nan], rtol=1e-6)


def adapted(task=None, model=None, names=NAMES):
  field = Field('boxes', names)
  return (task or Detection()).adapt((model or small(num_classes=0)).resolve(), {'boxes': field})


def test_what_the_data_decide():
  model = adapted()
  assert (model.num_classes, model.outputs, model.queries) == (3, 3, 24)
  assert adapted(model=small(num_classes=0, nothing=True)).outputs == 4
  task = Detection(most=30)
  fields = {'boxes': Field('boxes', NAMES)}
  rows = task.rows(model, fields, View(), train=True)
  assert rows.arrays()['boxes'].shape == (24, 4)  # no more than there are queries
  (said,) = task.notes(model, fields)
  assert said.startswith('24 queries, focal loss; room for 24 objects in an image (task.most=30)')
  few = Detection(most=1).rows(model, fields, View(size=(16, 24)), train=True)
  two = EXAMPLE['boxes']._replace(crowd=np.array([False, False]))
  row = few.make({**EXAMPLE, 'boxes': two}, np.random.default_rng(0))
  both = rows.make({**EXAMPLE, 'boxes': two}, np.random.default_rng(0))
  assert (row['boxes_left_out'], both['boxes_left_out']) == (1, 0)
  areas = [(right - left) * (low - top) for left, top, right, low in both['boxes'][:2]]
  np.testing.assert_array_equal(row['boxes'], both['boxes'][[np.argmax(areas)]])
  assert row['boxes_label'] == both['boxes_label'][np.argmax(areas)]


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Detection(most=0), 'most=0 must be at least 1'),
    (lambda: Detection(box_weight=-1.0), 'box_weight=-1.0 must not be negative'),
    (lambda: Detection(threshold=1.5), 'threshold=1.5 must be from 0 to 1'),
    (lambda: Detection().adapt(ViTConfig('mu/4').resolve(), {}), 'such as model.name=token_det'),
    (lambda: adapted(names=()), 'how many classes have the boxes'),
    (lambda: adapted(model=small(num_classes=5)), 'num_classes=5, and the boxes have 3 classes'),
    (lambda: small(layers=4).resolve(), 'read the last 4 of model.encoder.depth=3'),
    (lambda: small(layers=0).resolve(), 'layers must be at least 1'),
    (lambda: small(encoder=dict(num_classes=3)).resolve(), 'heads are on patches'),
    (lambda: small(encoder=dict(patch_dropout=0.5)).resolve(), 'objects may be on any patch'),
    (lambda: small(encoder=dict(attention='h2w2,full', depth=4)).resolve(),
     'of several kinds of blocks'),
    (lambda: TokenDetectorArchitecture(ViTArchitecture('mu/4', image_size=(4, 8, 8),
                                                       patch_size=(2, 4, 4))).resolve(),
     'boxes are of 2 axes'),
  ],
)  # fmt: skip
def test_what_does_not_go_together(make, message):
  with pytest.raises(RunError, match=message):
    make()
