"""Losses of distillation beside the papers' code, and teachers from all kinds of checkpoints."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from experiments.sweeps import jobs as sweeps
from tests import runs, teachers
from tests.test_conformance import built, configured, one_device
from vit_jax.architecture.card import Card
from vit_jax.core.errors import RunError
from vit_jax.core.schedule import Schedule
from vit_jax.costs import step as costs
from vit_jax.models.segmenter import SegmenterConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import positions, tree
from vit_jax.nn.noise import Noise
from vit_jax.tasks import described, of
from vit_jax.tasks.distillation import Distillation
from vit_jax.tasks.task import Context
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training import hyper
from vit_jax.training.evaluation import evaluate
from vit_jax.training.workdir import Workdir

ROWS, CLASSES = 12, 7


def both(scale=4.0):
  rng = np.random.default_rng(0)
  return rng.normal(0, scale, (ROWS, CLASSES)), rng.normal(0, scale, (ROWS, CLASSES))


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def deit(ours, theirs, tau):
  """`losses.py` of DeiT: summed, times tau^2, divided by all numbers there are."""
  p, q = log_softmax(ours / tau), log_softmax(theirs / tau)
  return (np.exp(q) * (q - p)).sum() * tau * tau / ours.size


def big_vision(ours, theirs, t):
  """`dist(kind='kl')`: t^2 times the cross-entropy with the teacher, less its entropy."""
  p, q = log_softmax(ours / t), log_softmax(theirs / t)
  return t**2 * ((np.exp(q) * -p).sum(-1) - (np.exp(q) * -q).sum(-1))


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_soft_losses(temperature):
  """Values, and gradients by differences."""
  ours, theirs = both()
  run = lambda match, x: Distillation(match=match).matching(x, jnp.asarray(theirs), temperature)  # noqa: E731
  x = jnp.asarray(ours, jnp.float32)
  each = run('soft', x)
  np.testing.assert_allclose(each, big_vision(ours, theirs, temperature), rtol=1e-5, atol=1e-5)
  got = run('soft_mean', x).mean()
  assert float(got) == pytest.approx(deit(ours, theirs, temperature), rel=1e-5)
  gradient = jax.grad(lambda x: run('soft_mean', x).mean())(x)
  step = 1e-5
  for row, column in ((0, 0), (3, 4), (11, 6)):
    shift = np.zeros_like(ours)
    shift[row, column] = step
    change = deit(ours + shift, theirs, temperature) - deit(ours - shift, theirs, temperature)
    assert float(gradient[row, column]) == pytest.approx(change / (2 * step), rel=1e-3, abs=1e-6)


def test_hard_loss_is_the_cross_entropy_with_the_likeliest_class():
  ours, theirs = both()
  want = -log_softmax(ours)[np.arange(ROWS), theirs.argmax(-1)]
  got = Distillation(match='hard').matching(jnp.asarray(ours), jnp.asarray(theirs), 1.0)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_whole_is_weighted_and_the_teacher_sees_its_own_normalisation(data_dir):
  """With a mix, on a student of one head and on one of two, in NumPy."""
  path, card = teachers.saved(data_dir), teachers.CARD
  teacher = vit_jax.load(path)
  for distilled in (False, True):
    config = configured(
      'distillation', data_dir, task__alpha=0.3, task__temperature=2.0, task__mixup=0.5,
      model__distilled=distilled, model__drop_path=0.0, model__dropout=0.0,
    )  # fmt: skip
    with one_device():
      it = built(config)
      state = it.init()
      batch = next(it.batches(0))
      task = it.config.task
      mixed = task.augment(batch, jax.random.key(0), {})
      rng = np.random.default_rng(3)
      put = lambda w: jnp.asarray(w + 0.2 * rng.normal(size=w.shape), w.dtype)  # noqa: E731
      model = tree.merge(jax.tree.map(put, state.model), it.frozen)
      ctx = _context(it, mixed)
      value, sums, _ = task.loss(model, mixed, ctx)
      out = model.features(mixed['image'])
      pixels = np.asarray(mixed['image']) * 0.5 + 0.5
      said = np.asarray(teacher((pixels - card.mean[0]) / card.std[0]), np.float64)
    order = [teachers.CLASSES.index(str(digit)) for digit in range(10)]
    said = said[:, order]
    heads = ('logits_class', 'logits_distill') if distilled else ('logits', 'logits')
    own, other = (np.asarray(out[name], np.float64) for name in heads)
    share, labels = np.asarray(mixed['share']), np.eye(10)
    target = (
      share[:, None] * labels[np.asarray(mixed['label'])]
      + (1 - share[:, None]) * labels[np.asarray(mixed['label2'])]
    )
    label = -(target * log_softmax(own)).sum(-1)
    match = big_vision(other, said, 2.0)
    assert float(value) == pytest.approx((0.7 * label + 0.3 * match).mean(), rel=1e-4)
    assert float(sums['teacher'][0]) / 16 == pytest.approx(match.mean(), rel=1e-4)
    agree = (np.asarray(out['output']).argmax(-1) == said.argmax(-1)).sum()
    assert float(sums['agreement'][0]) == agree


def _context(it, batch):
  hypers = it.hyper(0).named(hyper.names(it.config))
  totals = it.config.task.totals(batch)
  return Context({}, totals, hypers, Noise(jax.random.key(1), examples=16), 0, it.frozen)


def test_views_are_resized_for_a_teacher_of_another_size():
  """As the matrices of positions do it, which are compared with PyTorch's."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
  for size in ((16, 20), (4, 6)):
    rows, columns = (
      positions.resize_weights(np.arange(new), new, old, 'bilinear_aa')
      for new, old in zip(size, (8, 12), strict=True)
    )
    want = np.einsum('Hh,Ww,bhwc->bHWc', rows, columns, x)
    np.testing.assert_allclose(positions.resized(jnp.asarray(x), size), want, rtol=1e-5, atol=1e-5)
  want = jax.image.resize(x, (2, 16, 24, 3), 'bilinear')
  np.testing.assert_allclose(
    positions.resized(jnp.asarray(x), (16, 24)), want, rtol=1e-5, atol=1e-5
  )


def test_a_teacher_of_another_kind_size_and_type(data_dir, tmp_path):
  """A ViT of 12 pixels and three channels, kept in bfloat16, for grey images of 8."""
  card = Card('vit_jax', (12, 12), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 'area', 0.0, teachers.CLASSES)
  teacher = vit_jax.create(
    'mu/4', image_size=(12, 12), num_classes=11, drop_path=0.3, pool='mean'
  )  # fmt: skip
  rng = np.random.default_rng(0)
  teacher = jax.tree.map(lambda w: w + 0.1 * rng.normal(size=w.shape).astype(np.float32), teacher)
  teacher.card = card
  vit_jax.save(teacher, tmp_path / 'vit', 'vit_jax')
  own = dict(task__teacher__init=str(tmp_path / 'vit'), task__teacher__dtype='bfloat16')
  with one_device():
    it = built(configured('distillation', data_dir, **own))
    it.init()
    held = tree.flatten(it.frozen.networks)
    assert {leaf.dtype.name for leaf in held.values()} == {'bfloat16'}
    network = it.config.task.teacher
    assert network.config.in_channels == 1
    assert network.config.image_size == (12, 12)
    assert network.config.drop_path == 0
    assert network.card.mean == (0.5,)  # of three channels their mean
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 1)).astype(np.float32)
    got = it.config.task.taught(it.frozen.networks['teacher'], jnp.asarray(x))
  view = np.asarray(positions.resized(jnp.asarray(x * 0.5 + 0.5), (12, 12)))
  grey = vit_jax.load(tmp_path / 'vit', in_channels=1)
  order = [teachers.CLASSES.index(str(digit)) for digit in range(10)]
  want = np.asarray(grey((view - 0.5) / np.float32(0.3)))[:, order]
  assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
  assert np.abs(got - want).max() > 0  # it is bfloat16


def test_published_files_are_teachers(data_dir, tmp_path):
  """A ConvNeXt as timm saves it; without names of classes it must be said that numbers do."""
  teacher = vit_jax.create(
    'convnext:', widths=(8, 8, 12, 16), depths=(1, 1, 1, 1), image_size=(32, 32), num_classes=10
  )
  vit_jax.save(teacher, tmp_path / 'theirs', 'timm')
  own = dict(task__teacher__init=str(tmp_path / 'theirs'))
  with one_device():
    with pytest.raises(RunError, match=r'10 classes without names, .* task\.teacher\.by_number=tr'):
      built(configured('distillation', data_dir, **own))
    it = built(configured('distillation', data_dir, task__teacher__by_number=True, **own))
    it.init()
  kernel = np.asarray(tree.flatten(it.frozen)['networks/teacher/stage0_down/kernel'])
  np.testing.assert_allclose(kernel, teacher.stage0_down.kernel[...].sum(2, keepdims=True), 1e-5)
  assert any('taken for those of the same number' in note for note in it.notes)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(task__teacher__init=''), r'task\.teacher\.init is empty'),
    (dict(task__teacher__init='nowhere'), 'nowhere'),
    (dict(task__teacher__by_number=True), r'names its classes: leave out task\.teacher\.by_number'),
    (dict(task__teacher__dtype='float16'), "unknown dtype 'float16'"),
    (dict(task__match='hart'), r"unknown task\.match 'hart': did you mean hard"),
    (dict(task__alpha=1.5), r'task\.alpha=1\.5 must be from 0 to 1'),
    (dict(task__alpha='0->2 linear'), r'task\.alpha=0->2 linear must be from 0 to 1'),
    (dict(task__temperature=0.0), r'task\.temperature=0\.0 must be above 0'),
    (dict(task__match='hard', task__temperature=2.0), 'changes nothing about the likeliest class'),
    (dict(model__num_classes=12), 'num_classes=12, and the data have 10 classes, of which the tea'),
  ],
)
def test_refusals(changes, message, data_dir):
  def start():
    config = configured('distillation', data_dir, **changes)
    config_lib.check(config_lib.to_dict(config))
    return built(config)

  with one_device(), pytest.raises(RunError, match=message):
    start()


def test_teachers_that_do_not_fit_are_refused(data_dir, tmp_path):
  """Of other classes; without any; and what is no classifier of images."""
  names = ('cat', *teachers.CLASSES[1:])[:10]
  card = dataclasses.replace(teachers.CARD, class_names=names)
  vit_jax.save(teachers.made(10, card), tmp_path / 'other', 'vit_jax')
  vit_jax.save(teachers.made(0, teachers.CARD), tmp_path / 'headless', 'vit_jax')
  encoder = ViTConfig('mu/4', image_size=(8, 8), in_channels=1)
  config = SegmenterConfig(encoder, num_classes=3).resolve()
  towers = jax.jit(lambda key: config.create(nnx.Rngs(key)))(jax.random.key(0))
  towers.card = teachers.CARD
  vit_jax.save(towers, tmp_path / 'segmenter', 'vit_jax')
  for name, message in (
    ('other', r'other does not know 0, classes of the data; it has cat, 9'),
    ('headless', 'holds a convnet without classes'), ('segmenter', 'holds a segmenter without cl'),
    ('other?tower=image', 'has no towers'),
  ):  # fmt: skip
    with one_device(), pytest.raises(RunError, match=message):
      built(configured('distillation', data_dir, task__teacher__init=str(tmp_path / name)))


def test_a_sweep_counts_its_teacher(data_dir):
  """In its design, which opens the checkpoint, as in a run."""
  config = configured('distillation', data_dir, task__frozen=())
  model, passes = sweeps.described(config)
  with one_device():
    assert costs.step(passes(model)) == built(config).flops()
  (own, teacher) = passes(model)
  assert (own.model, own.grad, teacher.grad) == (model, 'full', 'none')
  assert costs.tokens(passes(model)) == math.prod(model.grid) + model.prefix


def test_a_run_needs_its_teacher_for_the_start_only(data_dir, tmp_path):
  """It is saved once, goes on when the source is gone, and is no part of what is exported.

  More than ten seconds: a run that is killed and goes on, and another one.
  """
  shutil.copytree(teachers.saved(data_dir), tmp_path / 'teacher')
  config = configured('distillation', data_dir, task__teacher__init=str(tmp_path / 'teacher'))
  result = train(config, str(tmp_path / 'whole'))
  runs.cut_off(tmp_path / 'cut', config, 'at step 3')
  shutil.rmtree(tmp_path / 'teacher')
  train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'whole', tmp_path / 'cut')
  again = evaluate(str(tmp_path / 'cut'))
  assert float(again['test/top1']) == pytest.approx(result['metrics']['test/top1'])
  checkpoints = Workdir(tmp_path / 'cut').checkpoints()
  names, facts = checkpoints.peek(checkpoints.steps[-1])
  assert not any('teacher' in name for name in names)
  # What was decided is in the checkpoint, and what is exported says the task, not the network.
  assert json.loads(facts['decided']['task']['teacher']['found'])['kind'] == 'convnet'
  student = vit_jax.load(tmp_path / 'cut')
  assert student.config.kind == 'vit'
  task, _ = of(student.card)
  assert described(task)['teacher']['found'] is None
  assert task.alpha == Schedule(0.5)


@pytest.mark.slow
def test_low_rank_changes_are_learned_from_a_teacher(data_dir, tmp_path):
  """Frozen parameters lie beside the teacher, and the export is the sum."""
  train(configured('distillation', data_dir, task__frozen=()), str(tmp_path / 'first'))
  config = configured(
    'distillation', data_dir, init=str(tmp_path / 'first'), lora__rank=2, task__frozen=(),
    model__num_classes=0,
  )  # fmt: skip
  train(config, str(tmp_path / 'second'))
  one, two = (tree.flatten(vit_jax.load(tmp_path / name)) for name in ('first', 'second'))
  assert one.keys() == two.keys()
  changed = {name for name, leaf in one.items() if np.any(np.asarray(leaf != two[name]))}
  assert any('attn/query/kernel' in name for name in changed)
  assert 'embed/proj/kernel' not in changed
