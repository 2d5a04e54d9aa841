"""Self-distillation: losses by their formulas, views, what is watched, and what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.architecture.dino import DinoArchitecture
from vit_jax.core.errors import RunError
from vit_jax.data import colours, crops
from vit_jax.data.fields import Field
from vit_jax.data.views import View
from vit_jax.models import create
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import tree
from vit_jax.nn.noise import Noise
from vit_jax.tasks import dino, prototypes
from vit_jax.tasks.dino import Dino, nearness, sinkhorn
from vit_jax.tasks.task import Context

ENCODER = ViTConfig(variant='', patch_size=4, image_size=(16, 16), width=16, depth=1, mlp_dim=32,
                    num_heads=2)  # fmt: skip
MODEL = DinoArchitecture(ENCODER, prototypes=32, hidden=16, bottleneck=8)
SMALL = dict(local=3, local_size=8)
FIELDS = {'image': Field('image', dtype='uint8')}
CROP = View(crops.RandomResized(min_area=0.4))
rng = np.random.default_rng


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


# --- losses ---


def test_cross_entropies_are_of_different_views_of_an_image():
  """The loop of DINO over pairs, in float64."""
  random = rng(0)
  target = softmax(random.normal(size=(4, 2, 7)))
  large, small = random.normal(size=(4, 2, 7)), random.normal(size=(4, 3, 7))
  views = [large[:, 0], large[:, 1], *small.swapaxes(0, 1)]
  pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
  want = sum(-(target[:, t] * np.log(softmax(views[s]))).sum(-1) for t, s in pairs) / len(pairs)
  found = dino._pairs(*(jnp.asarray(x, jnp.float32) for x in (target, large, small)))
  np.testing.assert_allclose(found, want, rtol=1e-5)
  want = sum(-(target[:, t] * np.log(softmax(views[1 - t]))).sum(-1) for t in range(2)) / 2
  found = dino._pairs(*(jnp.asarray(x, jnp.float32) for x in (target, large)))
  np.testing.assert_allclose(found, want, rtol=1e-5)


def test_sinkhorn_gives_equally_many_to_each_prototype():
  """As the products of DINOv2's code in float64; padding takes no part; nothing overflows."""
  logits = rng(1).normal(size=(6, 2, 5)) * 4
  there = np.ones((6, 2), bool)
  there[4] = there[5, 1] = False
  q = np.exp(logits[there])
  for _ in range(3):
    q = q / q.sum(0) / 5
    q = q / q.sum(1, keepdims=True) / len(q)
  found = np.asarray(sinkhorn(jnp.asarray(logits, jnp.float32), jnp.asarray(there)))
  np.testing.assert_allclose(found[there], q * len(q), rtol=2e-5)
  assert not found[~there].any()
  shifted = sinkhorn(jnp.asarray(logits + 300, jnp.float32), jnp.asarray(there))
  np.testing.assert_allclose(shifted, found, rtol=1e-3, atol=1e-5)


def test_nearness_is_of_the_nearest_other_example():
  x = rng(2).normal(size=(5, 3))
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  mask = np.array([1, 1, 1, 1, 0.0])
  want = []
  for i in range(4):
    want.append(-math.log(min(np.linalg.norm(unit[i] - unit[j]) for j in range(4) if j != i)))
  found = nearness(jnp.asarray(x, jnp.float32), jnp.asarray(mask, jnp.float32))
  np.testing.assert_allclose(found[:4], want, rtol=1e-5)
  equal = jnp.ones((4, 3))
  value, grad = jax.value_and_grad(lambda x: nearness(x, jnp.ones(4)).sum())(equal)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


def drawn(model, seed):
  """Parameters none of which is zero."""
  random = rng(seed)
  return jax.tree.map(lambda x: x + jnp.asarray(random.normal(0, 0.2, x.shape), x.dtype), model)


@pytest.mark.parametrize(
  ('centering', 'piece'),
  [('center', None), ('sinkhorn', None), ('center', 5), ('sinkhorn', 5), ('none', 5)],
)
def test_a_loss_is_the_sum_of_its_parts(centering, piece, monkeypatch):
  """Of images, hidden patches and neighbours, in float64 from logits; padding changes nothing.

  Nor do pieces: of 64 patches, logits of 5 at a time.
  """
  if piece:
    monkeypatch.setattr(prototypes, 'PIECE', piece * 6 * 4)
  config = dataclasses.replace(MODEL, patch_head='separate', patch_prototypes=6, scaled=True)
  config = config.resolve()
  student = create(config, nnx.Rngs(0))
  student, teacher = drawn(student, 1), drawn(student, 2)
  task = Dino(**SMALL, centering=centering, koleo=0.3, patch_weight=0.5, patch_temperature=0.06)
  random = rng(3)
  hidden = random.random((4, 2, 16)) < 0.3
  hidden[0, 0] = False
  asked, share = np.zeros((4, 2, 8), np.int32), np.zeros((4, 2, 8), np.float32)
  for i, view in np.ndindex(4, 2):
    where = np.flatnonzero(hidden[i, view])[:8]
    hidden[i, view] = False
    hidden[i, view, where] = True
    asked[i, view, : len(where)], share[i, view, : len(where)] = where, 1 / max(1, len(where))
  batch = {
    'global': random.normal(size=(4, 2, 16, 16, 3)), 'local': random.normal(size=(4, 3, 8, 8, 3)),
    'share': share, 'mask': np.array([1, 1, 1, 0]),
  }  # fmt: skip
  batch = {name: jnp.asarray(x, jnp.float32) for name, x in batch.items()}
  batch |= {'hidden': jnp.asarray(hidden), 'asked': jnp.asarray(asked)}
  center = {'head': random.normal(size=32), 'patch_head': random.normal(size=6)}
  extra = {'teacher': teacher, 'center': jax.tree.map(jnp.float32, center)}
  hyper = {'temperature': 0.04, 'student_temperature': 0.1, 'patch_temperature': 0.06,
           'momentum': 0.75, 'last_layer': 1.0}  # fmt: skip
  hyper = {f'task.{name}': value for name, value in hyper.items()}
  frozen = jax.tree.map(lambda _: None, student)

  @jax.jit
  def run(student, extra, batch):
    ctx = Context(extra, task.totals(batch), hyper, Noise(jax.random.key(0)), 0, frozen)
    loss, sums, seen = task.loss(student, batch, ctx)
    sums = {name: value for name, (value, _) in sums.items()}
    new = task.update(extra, student, seen, ctx)
    reported = task.report(new, student, seen, ctx)
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items() if x.ndim > 2}
    seen_by = student(flat['global'], hidden=flat['hidden'])
    known = teacher(flat['global'])
    heads = [head.head(x[0]) for head, x in ((student, seen_by), (teacher, known))]
    patches = [head.of_patches(x[1]) for head, x in ((student, seen_by), (teacher, known))]
    small = student.head(student(flat['local'])[0])
    return loss, sums, new, reported, heads, patches, small, seen_by[0], known[0]

  loss, sums, new, reported, heads, patches, small, token, known = run(student, extra, batch)
  shape = lambda x, views: np.asarray(x, np.float64).reshape(4, views, -1)  # noqa: E731
  said, taught = (shape(x, 2)[:3] for x in heads)
  small = shape(small, 3)[:3]
  patch, patch_taught = (np.asarray(x, np.float64).reshape(4, 2, 16, 6)[:3] for x in patches)
  there = hidden[:3]

  def target(logits, name, warm):
    if centering != 'sinkhorn':
      return softmax((logits - center[name] * (centering == 'center')) / warm)
    q = np.exp((logits - logits.max()) / warm)
    for _ in range(3):
      q = q / q.sum(0)
      q = q / q.sum(1, keepdims=True)
    return q

  wanted = target(taught.reshape(6, -1), 'head', 0.04).reshape(3, 2, -1)
  views = [said[:, 0], said[:, 1], *small.swapaxes(0, 1)]
  pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
  log = lambda x: np.log(softmax(x / 0.1))  # noqa: E731
  images = sum(-(wanted[:, t] * log(views[s])).sum(-1) for t, s in pairs).mean() / len(pairs)
  of_patches = np.zeros(there.shape)
  want = target(patch_taught[there], 'patch_head', 0.06)
  of_patches[there] = -(want * log(patch[there])).sum(-1)
  of_patches = (of_patches.sum(-1) / np.maximum(there.sum(-1), 1)).mean()
  unit = shape(token, 2)[:3]
  unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
  apart = [[np.linalg.norm(unit[i, v] - unit[j, v]) for j in range(3) if j != i]
           for v in range(2) for i in range(3)]  # fmt: skip
  koleo = -np.log(np.min(apart, 1)).sum() / 3
  part = lambda name: float(sums[name]) / 3  # noqa: E731
  np.testing.assert_allclose(part('images'), images, rtol=2e-4)
  np.testing.assert_allclose(part('patches'), of_patches, rtol=2e-4)
  np.testing.assert_allclose(part('koleo'), koleo, rtol=2e-4)
  np.testing.assert_allclose(loss, images + 0.5 * of_patches + 0.3 * koleo, rtol=2e-4)
  entropy = -(wanted * np.log(np.maximum(wanted, 1e-30))).sum(-1).mean()
  np.testing.assert_allclose(part('kl'), images - entropy, rtol=1e-3, atol=1e-3)
  # What is watched.
  mean = wanted.mean((0, 1))
  features = shape(known, 2)[:3].reshape(6, -1)
  features = features / np.linalg.norm(features, axis=1, keepdims=True)
  values = np.linalg.eigvalsh(np.cov(features.T, bias=True))
  watched = {
    'mean_entropy': -(mean * np.log(np.maximum(mean, 1e-30))).sum(),
    'used': len({*taught.argmax(-1).ravel()}), 'spread': features.std(0).mean() * 4,
    'rank': values.sum() ** 2 / (values**2).sum(),
  }  # fmt: skip
  for name, value in watched.items():
    np.testing.assert_allclose(reported[name], value, rtol=2e-3, atol=1e-4)
  # The teacher follows, and centres move after they were used.
  follows = jax.tree.map(lambda t, s: 0.75 * t + 0.25 * s, teacher, student)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new['teacher'], follows)
  if centering == 'center':
    moved = 0.9 * center['head'] + 0.1 * taught.mean((0, 1))
    np.testing.assert_allclose(new['center']['head'], moved, rtol=1e-4, atol=1e-5)
    moved = 0.9 * center['patch_head'] + 0.1 * patch_taught[there].mean(0)
    np.testing.assert_allclose(new['center']['patch_head'], moved, rtol=1e-4, atol=1e-5)


# --- views ---


def test_views_are_large_and_small_and_coloured_by_their_number():
  view = dataclasses.replace(CROP, colour=colours.Jitter(0, 0, 0, prob=0.0))
  task = Dino(**SMALL, solarize=(0.0, 1.0, 0.0), blur=(0.0, 0.0, 0.0), local_area=(0.05, 0.2))
  rows = task.rows(MODEL.resolve(), FIELDS, view, train=True)
  image = np.full((40, 40, 3), 200, np.uint8)
  image[:, 20:] = 130
  row = rows.make(dict(image=image, name='one'), rng(0))
  assert row['global'].shape == (2, 16, 16, 3)
  assert row['local'].shape == (3, 8, 8, 3)
  assert {*np.unique(row['global'][1])} <= {*range(50, 128)}  # all of it is inverted
  assert row['global'][0].min() >= 130
  assert row['local'].min() >= 130
  for name, array in rows.arrays().items():
    assert row[name].shape == array.shape
    assert row[name].dtype == array.dtype


def test_some_views_have_hidden_patches_and_each_is_asked_for_once():
  model = dataclasses.replace(MODEL, patch_head='shared').resolve()
  task = Dino(**SMALL, smallest=1)
  rows = task.rows(model, FIELDS, CROP, train=True)
  example = dict(image=rng(0).integers(0, 255, (20, 20, 3), np.uint8), name='one')
  made = [rows.make(example, rng(seed)) for seed in range(300)]
  hidden = np.stack([row['hidden'] for row in made]).reshape(-1, 16)
  asked, share = (np.stack([row[n] for row in made]).reshape(-1, 8) for n in ('asked', 'share'))
  counts = hidden.sum(1)
  assert abs((counts > 0).mean() - 0.5) < 5 * math.sqrt(0.25 / 600)
  assert counts.max() <= 8
  for own, at, weight in zip(hidden, asked, share, strict=True):
    assert sorted(at[weight > 0]) == [*np.flatnonzero(own)]
    assert weight.sum() == pytest.approx(float(own.any()))


# --- alarms ---


def test_signs_tell_a_collapse_from_a_healthy_run():
  """The numbers of three runs on Fashion-MNIST that were watched: two collapsed, one did not."""
  model = dataclasses.replace(MODEL, prototypes=1024)
  rest = dict(kl=1.0, rank=25.0)
  signs = lambda task, model, **values: task.signs(model, rest | values, 128)  # noqa: E731
  task = Dino()
  assert signs(task, model, entropy=2.93, mean_entropy=3.82, used=14, spread=0.61).keys() == {
    'mean_entropy', 'used'
  }  # fmt: skip
  assert signs(task, model, entropy=2.2, mean_entropy=3.52, used=15, spread=0.67)
  even = Dino(centering='sinkhorn')
  model = dataclasses.replace(MODEL, prototypes=512)
  assert not signs(even, model, entropy=5.05, mean_entropy=6.24, used=178, spread=0.77)
  assert not signs(even, model, entropy=5.0, mean_entropy=6.24, used=138, spread=0.76)
  assert 'entropy' in signs(even, model, entropy=6.238, mean_entropy=6.24, used=138, spread=0.76)
  both = signs(even, model, entropy=5.0, mean_entropy=6.24, used=138, spread=0.1, rank=1.2)
  assert both.keys() == {'spread', 'rank'}
  assert signs(even, model, entropy=5.0, mean_entropy=6.24, used=138, spread=0.7, kl=0.01)


# --- what is refused ---


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(centering='centre'), "unknown task.centering 'centre': did you mean center"),
    (dict(on_collapse='die'), "unknown task.on_collapse 'die'"),
    (dict(blur=(1.0, 0.5)), 'expected three probabilities'),
    (dict(local_area=(0.4, 0.1)), 'expected 0 < least <= largest <= 1'),
    (dict(masked=1.5), 'task.masked=1.5 is a probability'),
    (dict(koleo=-1.0), 'task.koleo=-1.0'),
  ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
  with pytest.raises(RunError, match=message):
    Dino(**fields)


@pytest.mark.parametrize(
  ('task', 'model', 'view', 'message'),
  [
    ({}, ENCODER, CROP, 'task.name=dino needs model.name=dino, not vit'),
    (dict(local_size=6), MODEL, CROP, 'task.local_size=6 is no multiple of patches'),
    ({}, MODEL, View(), 'data.crop draws nothing'),
    (SMALL, MODEL, View(crops.Simple()), 'small views out of data.crop.name=random_resized'),
    (SMALL | dict(blur=(1.0, 0.1, 0.5)), MODEL, CROP, 'task.blur is for data.colour.name=jitter'),
  ],
)
def test_models_and_views_that_do_not_fit_are_refused(task, model, view, message):
  task = Dino(**SMALL | task)
  with pytest.raises(RunError, match=message):
    task.rows(task.adapt(model.resolve(), FIELDS), FIELDS, view, train=True)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(patch_head='own'), "unknown model.patch_head 'own'"),
    (dict(patch_prototypes=5), 'is of model.patch_head=separate'),
    (dict(bottleneck=0), 'model.bottleneck=0 must be at least 1'),
    (dict(encoder=dataclasses.replace(ENCODER, num_classes=3)), 'the head is that of the model'),
    (dict(encoder=dataclasses.replace(ENCODER, class_token=False, pool='mean')), 'class_token'),
  ],
)
def test_architectures_that_cannot_be_are_refused(fields, message):
  with pytest.raises(RunError, match=message):
    dataclasses.replace(MODEL, **fields).resolve()


def test_parameters_are_counted():
  for fields in ({}, dict(patch_head='separate', patch_bottleneck=4, scaled=True)):
    config = dataclasses.replace(MODEL, **fields).resolve()
    model = create(config, nnx.Rngs(0))
    counted = sum(count for _, count, _ in config.rest)
    own = {n: x.size for n, x in tree.flatten(model).items() if not n.startswith('encoder/')}
    assert counted == sum(own.values())
