"""Evaluations by windows: as the images are predicted, whatever their sizes, and on any mesh."""

import dataclasses
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from flax import nnx
from PIL import Image

import vit_jax
from tests.test_geotiff import drawn
from vit_jax import predict, tasks
from vit_jax.core.errors import RunError
from vit_jax.data import crops
from vit_jax.data.config import DataConfig
from vit_jax.data.fields import Field
from vit_jax.data.sources.paired import Paired
from vit_jax.evaluators.change import Change as ChangeScores
from vit_jax.evaluators.evaluator import prepare
from vit_jax.evaluators.segmentation import Segmentation as Scores
from vit_jax.models import change, eomt, segmenter
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import sharding
from vit_jax.tasks.change import Change
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.tasks.semantic import Semantic

NAMES = ('water', 'wood', 'field')
# Smaller than a window one way, both ways, as large as one, and larger.
SIZES = ((16, 16), (23, 41), (9, 50), (5, 7), (33, 16))
ENCODER: Any = dict(variant='mu/4', image_size=(16, 16), depth=1, width=16, mlp_dim=32, num_heads=2)


def folder(root, images, classes, sizes=SIZES):
  """PNG files of all sizes, and maps in which 255 is no class."""
  rng = np.random.default_rng(3)
  for number, size in enumerate(sizes):
    for name in images:
      (root / 'test' / name).mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 256, (*size, 3), np.uint8)
      Image.fromarray(pixels).save(root / 'test' / name / f'{number}.png')
    (root / 'test' / 'maps').mkdir(parents=True, exist_ok=True)
    labels = rng.integers(0, classes + 1, size)
    labels = np.where(labels == classes, 255, labels).astype(np.uint8)
    Image.fromarray(labels).save(root / 'test' / 'maps' / f'{number}.png')


def data(root, images, names):
  fields = {name: f'image: {{split}}/{name}' for name in images} | {'map': '{split}/maps'}
  source = Paired(dir=str(root), fields=fields, names={'map': ','.join(names)}, ignore=(255,))
  return DataConfig(source=source, split='test')


def evaluated(root, task, model, evaluator, names, lanes=0, dtype='uint8'):
  """What an evaluation of the files finds."""
  fields = {
    **dict.fromkeys(task.images, Field('image', dtype=dtype, channels=3)),
    'map': Field('map', names, ignore=(255,)),
  }
  evaluation = prepare(
    evaluator, task, model.config, data(root, task.images, names), batch_size=8, fields=fields,
    lanes=lanes, judged=lambda state, frozen: state,
  )  # fmt: skip
  state = jax.tree.map(lambda *x: jnp.stack(x), *[model] * lanes) if lanes else model
  return evaluation, evaluation(state, None)


def maps_of(root, checkpoint, images, out):
  """What `predict --windows` writes."""
  own = [str(root / 'test' / name) for name in images]
  options: Any = dict(out=str(out), windows=True, overlap=0.3)
  assert predict.main(checkpoint, own, 5, 8, None, {}, **options) == 0
  found = []
  for number in range(len(SIZES)):
    with rasterio.open(out / f'{number}_map.tif') as file:
      found.append(file.read(1).astype(int))
  return found


def truths(root):
  files = [root / 'test' / 'maps' / f'{number}.png' for number in range(len(SIZES))]
  return [np.asarray(Image.open(file)).astype(int) for file in files]


def confusion(said, truth, classes):
  """By NumPy, of the pixels that have a class."""
  found = np.zeros((classes, classes), int)
  for s, t in zip(said, truth, strict=True):
    np.add.at(found, (t[t != 255], s[t != 255]), 1)
  return found


def saved(path, task, model, names):
  fields = {
    **dict.fromkeys(task.images, Field('image', dtype='uint8', channels=3)),
    'map': Field('map', names),
  }
  card = task.card(model.config, crops.Resize(method='area'), fields)
  described = {name: dataclasses.asdict(field) for name, field in fields.items()}
  model.card = dataclasses.replace(card, task=tasks.described(task), fields=described)
  vit_jax.save(model, path, 'vit_jax')
  return str(path)


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
@pytest.mark.parametrize('layout', ['', 'data', '2x2x2'])
def test_scores_are_those_of_what_is_predicted(tmp_path, layout):
  """Of `predict --windows` on the files, counted by NumPy; of lanes each."""
  folder(tmp_path, ('image',), 3)
  task, config = Segmentation(), segmenter.SegmenterConfig(ViTConfig(**ENCODER), 3)
  model = drawn(segmenter.Segmenter(config, nnx.Rngs(0)))
  checkpoint = saved(tmp_path / 'model', task, model, NAMES)
  said = maps_of(tmp_path, checkpoint, ('image',), tmp_path / 'out')
  want = confusion(said, truths(tmp_path), 3)
  evaluator = Scores(windows=True, overlap=0.3)
  run = lambda lanes: evaluated(tmp_path, task, model, evaluator, NAMES, lanes)  # noqa: E731
  if layout:
    with jax.set_mesh(sharding.make_mesh(layout)):
      evaluation, scores = run(0)
  else:
    evaluation, scores = run(0)
    # Sizes share programs.
    (one,) = evaluation._passes.values()
    assert one._mapper._windows._compute._cache_size() <= 4
    np.testing.assert_array_equal(run(2)[1].arrays['confusion'][1][:, :3], want)
  np.testing.assert_array_equal(scores.arrays['confusion'][:, :3], want)
  assert not scores.arrays['confusion'][:, 3].any()  # all is seen
  union = want.sum(0) + want.sum(1) - want.diagonal()
  assert scores.values['miou'] == pytest.approx((want.diagonal() / union).mean())
  assert scores.values['examples'] == len(SIZES)
  shown = {each.shown.number: each for each in evaluation.drawn()}
  assert {*shown} == {*range(len(SIZES))}
  worst = max(shown.values(), key=lambda each: each.shown.score)
  s, t = (each[worst.shown.number] for each in (said, truths(tmp_path)))
  assert worst.shown.score == pytest.approx((s != t)[t != 255].mean())
  share = {NAMES[c]: (s == c).mean() for c in range(3) if (s == c).any()}
  assert worst.facts['share'] == pytest.approx(share)


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_pairs_are_seen_by_windows(tmp_path):
  folder(tmp_path, ('before', 'after'), 2)
  task, names = Change(), ('same', 'changed')
  model = drawn(change.Change(change.ChangeConfig(ViTConfig(**ENCODER), 2), nnx.Rngs(0)))
  checkpoint = saved(tmp_path / 'model', task, model, names)
  said = maps_of(tmp_path, checkpoint, ('before', 'after'), tmp_path / 'out')
  _, scores = evaluated(tmp_path, task, model, ChangeScores(windows=True, overlap=0.3), names)
  want = confusion(said, truths(tmp_path), 2)
  np.testing.assert_array_equal(scores.arrays['confusion'][:, :2], want)
  hit, rest = want[1, 1], want[0, 1] + want[1, 0]
  assert scores.values['f1'] == pytest.approx(2 * hit / (2 * hit + rest))


def test_what_queries_say_is_averaged(tmp_path):
  """An image of the size of the model is a window of its own."""
  folder(tmp_path, ('image',), 3, ((16, 16),) * 3)
  config = eomt.EomtConfig(ViTConfig(**{**ENCODER, 'depth': 2}), 5, blocks=1, num_classes=3)
  model = drawn(config.create(nnx.Rngs(0)))
  found = [
    evaluated(tmp_path, Semantic(), model, evaluator, NAMES)[1].arrays['confusion']
    for evaluator in (Scores(), Scores(windows=True))
  ]
  np.testing.assert_array_equal(found[0], found[1])
  assert (found[0].sum(0)[:3] > 0).sum() > 1


class Pointwise(nnx.Module):
  """Logits of a pixel by that pixel alone."""

  def __init__(self, config):
    self.config = config
    self.kernel = nnx.Param(jnp.asarray(np.random.default_rng(5).normal(size=(3, 3)), jnp.float32))

  def __call__(self, images, key=None):
    return images @ self.kernel[...]


def test_images_are_brought_to_a_shorter_side_first(tmp_path):
  """And probabilities back, bilinearly: by OpenCV, of all of the image at once."""
  folder(tmp_path, ('image',), 3)
  model = Pointwise(segmenter.SegmenterConfig(ViTConfig(**ENCODER), 3).resolve())
  evaluator = Scores(windows=True, shorter=20, crop=crops.Resize(method='linear'))
  _, scores = evaluated(tmp_path, Segmentation(), model, evaluator, NAMES)
  said, kernel = [], np.asarray(model.kernel[...], np.float64)
  for number, (height, width) in enumerate(SIZES):
    pixels = np.asarray(Image.open(tmp_path / 'test' / 'image' / f'{number}.png'))
    by = 20 / min(height, width)
    pixels = cv2.resize(pixels, (round(width * by), round(height * by)))
    logits = (pixels / 255 - 0.5) / 0.5 @ kernel
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    said.append(cv2.resize(chances, (width, height)).argmax(-1))
  got, want = scores.arrays['confusion'][:, :3], confusion(said, truths(tmp_path), 3)
  assert abs(got - want).sum() <= 2  # a tie within rounding counts twice


def test_pixels_that_are_missing_do_not_count(tmp_path):
  """Of floats, in windows as elsewhere: a pixel is missing where any band is."""
  rng = np.random.default_rng(4)
  folder(tmp_path, ('image',), 3)
  model = Pointwise(segmenter.SegmenterConfig(ViTConfig(**ENCODER), 3).resolve())
  kernel, want = np.asarray(model.kernel[...], np.float64), 0
  for number, (size, truth) in enumerate(zip(SIZES, truths(tmp_path), strict=True)):
    pixels = rng.normal(size=(*size, 3)).astype(np.float32)
    pixels[0, :3, rng.integers(3)] = np.nan
    path = tmp_path / 'test' / 'image' / f'{number}.png'
    path.unlink()
    np.save(path.with_suffix('.npy'), pixels)
    known = np.isfinite(pixels).all(-1)
    want = want + confusion([(pixels @ kernel).argmax(-1)], [np.where(known, truth, 255)], 3)
  task = Segmentation(mean=(0.0,), std=(1.0,))
  evaluator = Scores(windows=True, overlap=0.3)
  _, scores = evaluated(tmp_path, task, model, evaluator, NAMES, dtype='float32')
  np.testing.assert_array_equal(scores.arrays['confusion'][:, :3], want)
  assert not scores.arrays['confusion'][:, 3].any()


def test_what_cannot_be_done_by_windows_is_refused(tmp_path):
  cases: Any = (
    (dict(shorter=32), 'set windows=True'), (dict(overlap=0.2), 'set windows=True'),
    (dict(windows=True, overlap=1.0), 'less than 1'),
    (dict(windows=True, attention=True), 'not with windows=True'),
  )  # fmt: skip
  for fields, message in cases:
    with pytest.raises(RunError, match=message):
      Scores(**fields)
  folder(tmp_path, ('image',), 3)
  model = Pointwise(segmenter.SegmenterConfig(ViTConfig(**ENCODER), 3).resolve())
  evaluator = Scores(windows=True, crop=crops.Center())
  with pytest.raises(RunError, match=r'crop\.name must be resize'):
    evaluated(tmp_path, Segmentation(), model, evaluator, NAMES)
