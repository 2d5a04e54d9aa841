"""Multi-label classification, regression and segmentation, against other people's numbers."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

import vit_jax
from vit_jax.architecture.segmenter import SegmenterArchitecture
from vit_jax.core.errors import RunError
from vit_jax.data.fields import Boxes, Field
from vit_jax.data.rows.columns import Columns, Image, Map
from vit_jax.data.views import View
from vit_jax.draw import pictures
from vit_jax.evaluators.evaluator import Found
from vit_jax.evaluators.multilabel import MultiLabel as MultiLabelScores
from vit_jax.evaluators.regression import Regression as RegressionScores
from vit_jax.evaluators.segmentation import Segmentation as SegmentationScores
from vit_jax.models import segmenter
from vit_jax.models.vit import ViTConfig
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.multilabel import MultiLabel
from vit_jax.tasks.regression import Regression
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.tasks.task import Seen


class Known:
  """A source of which only fields are known."""

  def __init__(self, **fields):
    self.fields = fields


def scored(evaluator, records, **fields):
  source = Known(**fields)
  return evaluator.finish({'test': Found(source, {}, records, np.arange(len(records)), 0)})


# --- multi-label ---


def test_focal_loss_is_that_of_the_paper():
  """Equations 4 and 5, written as they are there."""
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(0, 4, (50, 7)), rng.random((50, 7)) < 0.3
  p = np.where(labels, 1 / (1 + np.exp(-logits)), 1 - 1 / (1 + np.exp(-logits)))
  for gamma, alpha in ((0.0, None), (2.0, None), (1.5, 0.25), (0.0, 0.6)):
    weight = 1 if alpha is None else np.where(labels, alpha, 1 - alpha)
    want = -weight * (1 - p) ** gamma * np.log(p)
    got = MultiLabel(gamma=gamma, alpha=alpha).each(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_mean_average_precision_is_that_of_scikit_learn():
  """With ties, with a class that is nowhere, and with one that is everywhere."""
  rng = np.random.default_rng(0)
  truth = rng.random((80, 5)) < np.array([0.3, 0.0, 1.0, 0.05, 0.5])
  logits = np.round(rng.normal(0, 1, (80, 5)) + truth, 1).astype(np.float32)
  records = [(row, np.flatnonzero(t)) for row, t in zip(logits, truth, strict=True)]
  scores = scored(MultiLabelScores(), records, labels=Field('classes', tuple('abcde')))
  there = [0, 2, 3, 4]
  want = metrics.average_precision_score(truth[:, there], logits[:, there], average='macro')
  assert scores.values['map'] == pytest.approx(want)
  f1 = metrics.f1_score(truth[:, there], logits[:, there] >= 0, average='macro')
  assert scores.values['f1'] == pytest.approx(f1)
  chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
  assert scores.values['loss'] == pytest.approx(metrics.log_loss(truth.ravel(), chances.ravel()))
  assert np.isnan(scores.arrays['ap'][1])
  assert [row[0] for row in scores.tables[0].rows] == ['a', 'c', 'd', 'e']
  assert scored(MultiLabelScores(report=('map',)), [(logits[0], np.zeros(0, int))],
                labels=Field('classes', tuple('abcde'))).values == {'map': 0.0}  # fmt: skip


# --- regression ---


def test_r2_and_errors_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  truth = rng.normal([50, 3], [20, 0.5], (60, 2))
  said = truth + rng.normal(0, [8, 0.2], (60, 2))
  field = Field('vector', ('age', 'height'), ('years', 'm'))
  records = list(zip(said, truth, strict=True))
  scores = scored(RegressionScores(), records, target=field)
  assert scores.values['r2'] == pytest.approx(metrics.r2_score(truth, said))
  mae = metrics.mean_absolute_error(truth, said, multioutput='raw_values')
  assert [scores.values['mae_age'], scores.values['mae_height']] == pytest.approx(mae.tolist())
  assert scores.tables[0].rows[0][:3] == ['age', 'years', 60]
  same = dataclasses.replace(field, units=('m', 'm'))
  scores = scored(RegressionScores(), records, target=same)
  assert scores.values['mae'] == pytest.approx(metrics.mean_absolute_error(truth, said))
  rmse = np.sqrt(((truth - said) ** 2).mean(0))
  assert scores.values['rmse'] == pytest.approx(rmse.mean())
  # What is not known counts for nothing.
  truth[::3, 0] = np.nan
  scores = scored(RegressionScores(), list(zip(said, truth, strict=True)), target=field)
  known = np.isfinite(truth[:, 0])
  want = [metrics.r2_score(truth[known, 0], said[known, 0]),
          metrics.r2_score(truth[:, 1], said[:, 1])]  # fmt: skip
  assert scores.values['r2'] == pytest.approx(np.mean(want))


@pytest.mark.parametrize('kind', ['squared', 'absolute', 'huber'])
def test_a_loss_of_numbers_is_in_their_spread(kind):
  rng = np.random.default_rng(0)
  target, said = rng.normal(10, 5, (6, 2)), rng.normal(0, 2, (6, 2))
  known = np.array([[1, 1], [0, 1], [1, 1], [1, 0], [1, 1], [1, 1]], float)
  mask = np.array([1, 1, 1, 1, 0, 1.0])
  task = Regression(loss_of=kind, center=(10.0, 9.0), spread=(5.0, 4.0))
  part = {'image': None, 'target': target, 'target_known': known, 'mask': mask}
  ctx = type('Context', (), {'noise': None, 'totals': task.totals(part)})
  value, sums, _ = task.loss(lambda image, key: jnp.asarray(said), part, ctx)
  apart = np.abs(said - (target - [10, 9]) / [5, 4])
  each = {'squared': apart**2, 'absolute': apart,
          'huber': np.where(apart < 1, apart**2 / 2, apart - 0.5)}[kind]  # fmt: skip
  want = (each * known * mask[:, None]).sum() / 8
  assert float(value) == pytest.approx(want, rel=1e-5)
  assert sums['loss'][1] == 'numbers'
  # And back in their unit.
  predicted = task.predict(lambda image: jnp.asarray(said), {'image': None})['target']
  np.testing.assert_allclose(predicted, said * [5, 4] + [10, 9], rtol=1e-5)


def test_how_bad_a_prediction_is_does_not_depend_on_its_batch():
  """In spreads of the training data; of no known number it is not said."""
  evaluator = RegressionScores()
  task = Regression(mean=(0.5,), std=(0.5,), center=(0.0, 0.0), spread=(2.0, 10.0))
  target = np.array([[1.0, 5.0], [0, 0], [3, 3]], np.float32)
  known = np.array([[1.0, 1], [1, 0], [0, 0]], np.float32)

  def model(image):
    return jnp.full((len(image), 2), 0.5)  # that is 1 and 5

  found = []
  for rows in (slice(0, 3), slice(0, 1), slice(1, 3)):
    batch = {'image': np.zeros((3, 2, 2, 1), np.uint8)[rows], 'target': target[rows],
             'target_known': known[rows], 'mask': np.ones(3)[rows]}  # fmt: skip
    outputs = evaluator.outputs(task, model, batch)
    found.append(np.asarray(evaluator.badness(outputs, batch)))
  np.testing.assert_allclose(found[0], [0, 0.5, np.nan])
  np.testing.assert_allclose(np.concatenate(found[1:]), found[0])


# --- segmentation ---


def small(**changes):
  encoder = dict(variant='mu/4', image_size=(16, 24), in_channels=3, depth=1, width=16, mlp_dim=32,
                 num_heads=2)  # fmt: skip
  return SegmenterArchitecture(encoder=ViTConfig(**{**encoder, **changes}), num_classes=5)


def seen_through(view, classes=3, ignore=()):
  rows = Columns(view, (Image(3),), (Map(classes, ignore),))
  names = tuple(f'class {i}' for i in range(classes))
  return Seen(rows, {'map': Field('map', names, ignore=ignore)})


def records_of(said, truth, view=None, classes=3, ignore=(255,)):
  seen = seen_through(view or View(size=said.shape[1:]), classes, ignore)
  examples = [
    {'image': np.zeros((*t.shape, 3), np.uint8), 'map': t.astype(np.uint8), 'name': ''}
    for t in truth
  ]
  evaluator = SegmentationScores()
  return [evaluator.record({'map': s}, e, seen) for s, e in zip(said, examples, strict=True)]


def naive(said, truth, classes):
  """Intersection over union as mmsegmentation defines it, class by class."""
  there = truth != 255
  out = []
  for c in range(classes):
    both = ((said == c) & (truth == c) & there).sum()
    union = (((said == c) & there) | (truth == c)).sum()
    out.append(both / union if union else np.nan)
  return np.array(out)


def test_mean_iou_is_that_of_one_confusion_matrix():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 6, (9, 11, 13))
  truth = np.where(truth == 5, 255, np.minimum(truth, 3))
  said = np.where(rng.random(truth.shape) < 0.6, np.where(truth == 255, 0, truth), 4)
  names = tuple('abcde')
  scores = scored(SegmentationScores(), records_of(said, truth, classes=5), map=Field('map', names))
  want = naive(said, truth, 5)
  np.testing.assert_allclose(scores.arrays['iou'], want)
  # Class 4 is only predicted: it counts, and counts 0.
  assert want[4] == 0
  assert scores.values['miou'] == pytest.approx(np.nanmean(want))
  assert scores.values['classes'] == 5
  there = truth != 255
  assert scores.values['accuracy'] == pytest.approx((said == truth)[there].mean())
  recall = metrics.recall_score(truth[there], said[there], labels=range(4), average='macro',
                                zero_division=0)  # fmt: skip
  assert scores.values['recall'] == pytest.approx(recall)
  assert scores.arrays['confusion'].dtype == np.int64


def test_a_class_that_is_nowhere_is_left_out():
  """The case in which tools differ: two of three classes are there, and right: 1, not 2/3."""
  truth = np.array([[[0, 1], [1, 0]]])
  scores = scored(SegmentationScores(), records_of(truth, truth), map=Field('map', tuple('abc')))
  assert scores.values['miou'] == 1
  assert scores.values['classes'] == 2
  assert np.isnan(scores.arrays['iou'][2])
  assert [row[0] for row in scores.tables[0].rows] == ['a', 'b']


def test_predictions_are_judged_in_the_frame_of_the_image():
  """Of an image that was resized every pixel counts; what a central crop leaves out is wrong."""
  truth = np.zeros((1, 40, 60), int)
  truth[0, :, 30:] = 1
  half = np.zeros((1, 8, 8), int)
  half[0, :, 4:] = 1
  field = Field('map', tuple('abc'))
  scores = scored(SegmentationScores(), records_of(half, truth, View(size=(8, 8))), map=field)
  assert scores.values['miou'] == 1
  from vit_jax.data import crops

  view = View(crops.Center(1.0), size=(8, 8))
  scores = scored(SegmentationScores(), records_of(half, truth, view), map=field)
  assert scores.values['accuracy'] == pytest.approx(40 * 40 / (40 * 60))
  view = View(crops.RandomResized(), size=(8, 8))
  with pytest.raises(RunError, match='cannot be undone'):
    records_of(half, truth, view)


def test_a_linear_head_on_patches():
  """Its parameters, its logits by hand, and those of pixels as JAX resizes them."""
  config = small().resolve()
  model = segmenter.Segmenter(segmenter.SegmenterConfig(**vars(config)), rngs())
  rng = np.random.default_rng(0)
  head = model.head
  head.kernel[...] = jnp.asarray(rng.normal(0, 1, head.kernel.shape), jnp.float32)
  head.bias[...] = jnp.asarray(rng.normal(0, 1, head.bias.shape), jnp.float32)
  images = jnp.asarray(rng.normal(0, 1, (2, 16, 24, 3)), jnp.float32)
  logits = model(images)
  patches = model.encoder.features(images)['patches']
  want = np.einsum('bhwd,dc->bhwc', patches, head.kernel[...]) + head.bias[...]
  np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
  assert logits.shape == (2, 4, 6, 5)
  large = segmenter.enlarged(logits, (16, 24))
  want = jax.image.resize(logits, (2, 16, 24, 5), 'bilinear')
  np.testing.assert_allclose(large, want, rtol=1e-5, atol=1e-5)
  said = segmenter.likeliest(logits, (16, 24))
  np.testing.assert_array_equal(said, np.argmax(large, -1))
  (part,) = config.rest
  assert part == ('head', 16 * 5 + 5, 16 * 5 * 24)
  count = sum(leaf.size for leaf in jax.tree.leaves(model.head))
  assert count == part[1]
  # Nothing in the encoder is there for pooling.
  assert not any('map_head' in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(model))


def rngs():
  from flax import nnx

  return nnx.Rngs(0)


@pytest.mark.parametrize('channels', [1, 3, 7])
def test_pixels_that_are_ignored_have_no_gradient(channels):
  """And the loss is the mean over the others, of images that count."""
  config = small(in_channels=channels).resolve()
  task = Segmentation()
  assert task.adapt(config, {'map': Field('map', tuple('abcde'))}).num_classes == 5
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 5, (2, 16, 24)).astype(np.uint8)
  labels[:, :4] = 255
  part = {'image': None, 'map': jnp.asarray(labels), 'mask': jnp.array([1.0, 0.0])}
  logits = jnp.asarray(rng.normal(0, 1, (2, 16, 24, 5)), jnp.float32)
  ctx = type('Context', (), {'noise': None, 'totals': task.totals(part)})
  assert float(ctx.totals['pixels']) == 12 * 24

  def loss(logits):
    model = types.SimpleNamespace(config=config, said=lambda image, key: [logits])
    return task.loss(model, part, ctx)[0]

  value, grad = jax.value_and_grad(loss)(logits)
  said = np.asarray(jax.nn.log_softmax(logits))[0, 4:]
  want = -np.take_along_axis(said, labels[0, 4:, :, None].astype(int), -1).mean()
  assert float(value) == pytest.approx(want, rel=1e-5)
  assert not np.asarray(grad)[0, :4].any()
  assert not np.asarray(grad)[1].any()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: MultiLabel(gamma=-1.0), 'gamma=-1.0 must not be negative'),
    (lambda: MultiLabel(alpha=1.0), 'alpha=1.0 must be between'),
    (lambda: MultiLabel().adapt(small(), {}), r'task.name=multilabel needs model\.name=vit'),
    (lambda: MultiLabelScores(report=('mpa',)), "'mpa': did you mean map"),
    (lambda: Regression(loss_of='cube'), "unknown task.loss_of 'cube'"),
    (lambda: Regression(spread=(0.0,)), 'must be positive'),
    (lambda: Regression(center=(1.0, 2.0, 3.0)).settled({'target': Field('vector', ('a', 'b'))}),
     r'has 3 values, and the target 2: a, b'),
    (lambda: Regression().adapt(small(), {}), r'needs model\.name=vit'),
    (lambda: Segmentation(stride=0), 'stride=0 must be at least 1'),
    (lambda: Segmentation(stride=5).adapt(small().resolve(), {'map': Field('map', tuple('abcde'))}),
     'does not divide'),
    (lambda: Segmentation().adapt(ViTConfig('mu/4'), {}), r'needs model\.name=segmenter'),
    (lambda: Segmentation().adapt(SegmenterArchitecture().resolve(), {'map': Field('map')}),
     'how many classes has the map'),
    (lambda: Segmentation().adapt(small().resolve(), {'map': Field('map', ('a', 'b'))}),
     'num_classes=5, and the map has 2 classes'),
    (lambda: SegmenterArchitecture(encoder=ViTConfig('mu/4', num_classes=3)).resolve(),
     'the head is on the patches'),
  ],
)  # fmt: skip
def test_what_does_not_go_together(make, message):
  with pytest.raises(RunError, match=message):
    make()


# --- decoded and drawn ---


def cases():
  """Of each task: itself, outputs, an example with the truth, how it was seen, and what is said."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (20, 30, 3), np.uint8)
  names = ('cat', 'dog', 'fox')
  base = {'image': image, 'name': 'x'}
  labels = np.zeros((20, 30), np.uint8)
  labels[:, 15:] = 2
  yield (Classification(), {'logits': np.array([0.0, 2.0, 1.0])}, {**base, 'label': 2},
         Seen(None, {'label': Field('class', names)}, 2), {'classes': [
           {'class': 'dog', 'probability': 0.6652409557748218},
           {'class': 'fox', 'probability': 0.24472847105479764}]})  # fmt: skip
  yield (MultiLabel(), {'logits': np.array([1.0, -3.0, 0.0])}, {**base, 'labels': [1, 2]},
         Seen(None, {'labels': Field('classes', names)}, 1),
         {'present': ['cat', 'fox'], 'classes': [
           {'class': 'cat', 'probability': 0.7310585786300049}]})  # fmt: skip
  yield (Regression(), {'target': np.array([41.5])}, {**base, 'target': [40.0]},
         Seen(None, {'target': Field('vector', ('age',), ('years',))}),
         {'target': [{'name': 'age', 'value': 41.5, 'unit': 'years'}]})  # fmt: skip
  half = np.zeros((4, 4), np.uint8)
  half[:, 2:] = 2
  yield (Segmentation(), {'map': half}, {**base, 'map': labels}, seen_through(View(size=(4, 4))),
         {'share': {'class 0': 0.5, 'class 2': 0.5}})  # fmt: skip


@pytest.mark.parametrize('case', list(cases()), ids=lambda case: type(case[0]).__name__)
def test_a_prediction_is_words_and_a_picture(case):
  """Facts are JSON; the picture holds the image; without the truth it is another one."""
  task, outputs, example, seen, want = case
  prediction = task.decode(outputs, example, seen)
  assert json.dumps(prediction.facts) == json.dumps(want)
  for array in prediction.arrays.values():
    np.testing.assert_array_equal(array, example['map'])
  with_truth = task.draw(prediction, example, seen)
  alone = task.draw(prediction, {'image': example['image'], 'name': 'x'}, seen)
  enlarged = pictures.resized(example['image'], pictures.scale(20, 30))
  for picture in (with_truth, alone):
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    if not isinstance(task, Regression):  # whose text may be wider than the image
      np.testing.assert_array_equal(picture[: enlarged.shape[0], : enlarged.shape[1]], enlarged)
  assert with_truth.shape != alone.shape or (with_truth != alone).any()
  assert task.lines(prediction)


def test_pictures_of_every_kind_of_image():
  rng = np.random.default_rng(0)
  for channels, dtype in ((1, 'uint8'), (2, 'uint8'), (3, 'uint16'), (7, 'float32')):
    pixels = (rng.random((9, 7, channels)) * 60000).astype(dtype)
    shown = pictures.shown(pixels)
    assert (shown.shape, shown.dtype) == ((9, 7, 3), np.uint8)
    if dtype != 'uint8':
      assert (shown.min(), shown.max()) == (0, 255)
  assert pictures.scale(8, 8) == 32
  assert pictures.scale(3000, 100) == pytest.approx(1024 / 3000)
  boxes = Boxes(np.array([[1.0, 1, 20, 20]]), np.array([0]), np.array([False]), np.array([361.0]))
  drawn = pictures.boxes(np.zeros((40, 40, 3), np.uint8), boxes.corners, ['cat'], [(255, 0, 0)])
  assert drawn[20, 10].tolist() == [255, 0, 0]
  assert (
    pictures.points(drawn, np.array([[30, 30], [np.nan, 1]]), [(0, 255, 0)] * 2)[30, 30, 1] == 255
  )
  colours = [pictures.colour(i) for i in range(100)]
  assert len(set(colours)) == 100
  glow = pictures.heat(np.full((32, 32, 3), 128, np.uint8), np.array([[0.0, 0], [0, 1]]))
  assert glow[28, 28].sum() > glow[4, 4].sum()


def test_a_segmenter_is_saved_and_read(tmp_path):
  """With its task, so that its predictions have names."""
  model = segmenter.Segmenter(segmenter.SegmenterConfig(**vars(small().resolve())), rngs())
  task = Segmentation(mean=(0.5,), std=(0.5,))
  from vit_jax import tasks
  from vit_jax.data import crops

  names = tuple('abcde')
  card = task.card(model.config, crops.Resize(method='area'), {'map': Field('map', names)})
  model.card = dataclasses.replace(
    card, task=tasks.described(task), fields={'map': dataclasses.asdict(Field('map', names))}
  )
  vit_jax.save(model, tmp_path / 'model', 'vit_jax')
  again = vit_jax.load(tmp_path / 'model')
  found, fields = tasks.of(again.card)
  assert found == task
  assert fields['map'].names == names
  images = jnp.ones((1, 16, 24, 3))
  np.testing.assert_array_equal(again(images), model(images))
