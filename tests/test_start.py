"""Runs that start from a checkpoint, and classes that are compared by name."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests import runs
from tests.conftest import ROOT
from vit_jax.architecture.card import Card
from vit_jax.nn import tree
from vit_jax.training.workdir import Workdir

FOLDER = f'--config={ROOT}/configs/image_folder.py'
SHORT = ('--config.total=2 steps', '--config.batch_size=8', '--config.optim.warmup=0',
         '--config.optim.lr=0', '--config.optim.weight_decay=0', '--config.mesh=data')  # fmt: skip
TINY = dict(depth=1, width=16, mlp_dim=16, num_heads=2)


def shaken(model, seed=0):
  """With every parameter moved, the head of zeros included."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: np.asarray(x) + rng.normal(0, 0.3, x.shape).astype(x.dtype), model)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A model as timm has them: class token, learned positions, its own normalisation, no names."""
  model = shaken(vit_jax.create('S/16', num_classes=7, image_size=(32, 32), mlp='gelu', **TINY))
  folder = tmp_path_factory.mktemp('published')
  model.card = Card('timm', (32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 'bicubic', 0.9)
  vit_jax.save(model, folder / 'timm', 'timm')
  plain = shaken(vit_jax.create('S/16', num_classes=7, image_size=(32, 32), **TINY))
  vit_jax.save(plain, folder / 'plain.npz', 'vit')
  return folder


def record(run):
  return json.loads((run / 'config.json').read_text())


def test_the_documented_command_fine_tunes(typed, published, photos, tmp_path):
  """configs/image_folder.py wants sine positions and the mean: the checkpoint decides."""
  status, out, err = typed(
    'vit_jax.train', f'{FOLDER}:{photos}', f'--workdir={tmp_path}/run',
    f'--config.init={published}/timm', *SHORT,
  )  # fmt: skip
  assert status == 0, err
  tuned, start = vit_jax.load(tmp_path / 'run'), vit_jax.load(published / 'timm')
  assert (tuned.config.posemb, tuned.config.pool, tuned.config.mlp) == ('learned', 'token', 'gelu')
  assert tuned.config.image_size == (32, 32)
  card = tuned.card
  assert (card.mean, card.std, card.resize) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 'bicubic')
  assert card.class_names == ('cat', 'dog', 'fox')
  # With a learning rate of 0 everything but the head is what was loaded.
  before, after = (tree.flatten(model) for model in (start, tuned))
  for name in before.keys() - {'head/kernel', 'head/bias'}:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)
  assert after['head/kernel'].shape == (16, 3)
  assert not np.asarray(after['head/kernel']).any()
  assert 'head: new, for 3 classes, because' in out
  assert 'has 7 classes without names' in out
  assert 'model.posemb=learned (not sincos)' in out
  assert "--config.model.posemb='sincos'" in out
  assert '--config.task.mean=' in out
  # Continued and evaluated without the checkpoint, by the same command and by none.
  (published / 'timm').rename(published / 'away')
  try:
    (tmp_path / 'run' / 'result.json').unlink()
    status, out, err = typed(
      'vit_jax.train', f'{FOLDER}:{photos}', f'--workdir={tmp_path}/run',
      f'--config.init={published}/timm', *SHORT,
    )  # fmt: skip
    assert status == 0, err
    assert 'head:' not in out
    status, _, err = typed('vit_jax.evaluate', f'--workdir={tmp_path}/run')
    assert status == 0, err
  finally:
    (published / 'away').rename(published / 'timm')


def test_the_command_line_wins(typed, published, photos, tmp_path):
  status, out, err = typed(
    'vit_jax.train', f'{FOLDER}:{photos}', f'--workdir={tmp_path}/run',
    f'--config.init={published}/plain.npz', '--config.model.image_size=48',
    '--config.task.mean=0.5', '--config.model.drop_path=0.1', '--config.model.num_classes=7',
    '--config.data.crop.method=bilinear', *SHORT,
  )  # fmt: skip
  assert status == 0, err
  tuned = vit_jax.load(tmp_path / 'run')
  assert tuned.config.image_size == (48, 48)
  assert tuned.card.mean == (0.5, 0.5, 0.5)
  assert tuned.card.class_names == ()  # 7 logits for 3 classes
  np.testing.assert_array_equal(
    tuned.head.kernel[...], vit_jax.load(published / 'plain.npz').head.kernel[...]
  )
  assert 'head: kept' in out
  assert 'task.mean' not in out
  assert record(tmp_path / 'run')['data']['crop']['method'] == 'bilinear'


def test_what_the_checkpoint_decided_is_kept(typed, published, photos, tmp_path, monkeypatch):
  """Ten classes for three names, and an evaluation with another method than the checkpoint's."""
  shutil.copytree(published / 'timm', tmp_path / 'timm')
  shutil.copytree(photos, tmp_path / 'photos')
  monkeypatch.chdir(tmp_path)
  command = (
    'vit_jax.train', f'{FOLDER}:photos', '--config.init=timm', *SHORT, '--config.total=4 steps',
    '--config.optim.lr=1e-3', '--config.model.num_classes=10', '--config.log.every=1',
    '--config.evals.test.crop.method=area', '--config.evals.test.every=4',
    '--config.checkpoint.every=2', '--config.compilation_cache=',
  )  # fmt: skip
  status, out, err = typed(*command, '--workdir=whole')
  assert status == 0, err
  shutil.copytree('whole', 'again')
  shutil.rmtree('again/checkpoints/4')
  (tmp_path / 'again' / 'result.json').unlink()
  shutil.rmtree('timm')  # it is needed once
  status, out, err = typed(*command, '--workdir=again', '--config.model.remat=full')
  assert status == 0, err
  assert 'continuing again at step 2 of 4' in out
  runs.assert_bit_identical('whole', 'again')
  assert json.loads((tmp_path / 'again' / 'result.json').read_text())['step'] == 4
  facts = Workdir('again').checkpoints().facts()
  assert facts['model']['remat'] == 'full'
  # Another command is another run.
  for change, named in (
    ('--config.evals=None', 'evals.test: '), ('--config.data.crop.method=area', 'data.crop.method'),
    ('--config.model.pool=mean', "model.pool: None -> 'mean'"),
  ):  # fmt: skip
    given = [text for text in command if 'evals' not in change or 'evals' not in text]
    status, _, err = typed(*given, '--workdir=again', change)
    assert status == 1
    assert named in err
  # Names decide, although there are fewer of them than logits.
  shutil.rmtree('again/checkpoints/4')
  (tmp_path / 'again' / 'result.json').unlink()
  for split in ('train', 'test'):
    (tmp_path / 'photos' / split / 'fox').rename(tmp_path / 'photos' / split / 'ant')
  status, _, err = typed(*command, '--workdir=again')
  assert status == 1
  assert 'classes that the model does not know, ant' in err


def test_heads_are_kept_for_the_same_classes_in_their_new_order(typed, photos, tmp_path):
  model = shaken(vit_jax.create('S/16', num_classes=3, image_size=(32, 32), **TINY))
  model.card = Card('vit_jax', (32, 32), class_names=('fox', 'cat', 'dog'))
  vit_jax.save(model, tmp_path / 'start', 'vit_jax')
  arguments = (f'{FOLDER}:{photos}', f'--config.init={tmp_path}/start', *SHORT)
  status, out, err = typed('vit_jax.train', f'--workdir={tmp_path}/run', *arguments)
  assert status == 0, err
  assert 'head: kept' in out
  tuned = vit_jax.load(tmp_path / 'run')
  assert tuned.card.class_names == ('cat', 'dog', 'fox')
  np.testing.assert_array_equal(tuned.head.kernel[...], model.head.kernel[...][:, [1, 2, 0]])
  np.testing.assert_array_equal(tuned.head.bias[...], model.head.bias[...][[1, 2, 0]])
  # As many other classes: another head.
  shutil.copytree(photos, tmp_path / 'others')
  for split in ('train', 'test'):
    (tmp_path / 'others' / split / 'fox').rename(tmp_path / 'others' / split / 'ant')
  arguments = (f'{FOLDER}:{tmp_path}/others', f'--config.init={tmp_path}/start', *SHORT)
  status, out, err = typed('vit_jax.train', f'--workdir={tmp_path}/other', *arguments)
  assert status == 0, err
  assert 'head: new, for 3 classes, because' in out
  assert not np.asarray(vit_jax.load(tmp_path / 'other').head.kernel[...]).any()


def test_a_head_with_more_classes_is_matched_by_name(typed, photos, tmp_path):
  """Cat, dog and fox are known; the data have only dog and fox, whose numbers are others."""
  model = shaken(vit_jax.create('S/16', num_classes=3, image_size=(32, 32), **TINY))
  model.card = Card('vit_jax', (32, 32), class_names=('fox', 'cat', 'dog'))
  vit_jax.save(model, tmp_path / 'start', 'vit_jax')
  shutil.copytree(photos, tmp_path / 'two')
  for split in ('train', 'test'):
    shutil.rmtree(tmp_path / 'two' / split / 'cat')
  arguments = (f'{FOLDER}:{tmp_path}/two', f'--config.init={tmp_path}/start', *SHORT)
  status, out, err = typed(
    'vit_jax.train', f'--workdir={tmp_path}/run', '--config.model.num_classes=3', *arguments
  )
  assert status == 0, err
  assert 'with its 3 classes, matched by name' in out
  tuned = vit_jax.load(tmp_path / 'run')
  assert tuned.card.class_names == ('fox', 'cat', 'dog')
  np.testing.assert_array_equal(tuned.head.kernel[...], model.head.kernel[...])
  # Where a class is not among them, there is no other way than a new head.
  (tmp_path / 'two' / 'train' / 'fox').rename(tmp_path / 'two' / 'train' / 'ant')
  (tmp_path / 'two' / 'test' / 'fox').rename(tmp_path / 'two' / 'test' / 'ant')
  status, out, err = typed(
    'vit_jax.train', f'--workdir={tmp_path}/new', '--config.model.num_classes=3', *arguments
  )
  assert status == 0, err
  assert 'head: new, for 3 classes' in out
  assert 'keeps it' not in out
  assert 'but the data have 2 classes: the checkpoints will not name them' in out


def test_what_of_a_file_is_read(typed, published, photos, tmp_path):
  """Behind the path, and the messages that ask for it say so."""
  command = ('vit_jax.train', f'{FOLDER}:{photos}', f'--workdir={tmp_path}/run', *SHORT)
  status, _, err = typed('vit_jax.convert', f'{published}/plain.npz', tmp_path / 'a', '--to=timm')
  assert status == 0, err
  names = safetensors.numpy.load_file(tmp_path / 'a' / 'model.safetensors')
  both = {f'{part}.{n}': a for part in ('student', 'momentum') for n, a in names.items()}
  path = tmp_path / 'both.safetensors'
  safetensors.numpy.save_file(both, path)
  status, _, err = typed(*command, f'--config.init={path}', '--config.model.num_heads=2')
  assert status == 1
  assert 'choose one with prefix' in err
  assert f"--config.init='{path}?" in err
  status, _, err = typed(*command, f'--config.init={path}?prefx=momentum.')
  assert status == 1
  assert 'did you mean prefix' in err
  status, _, err = typed(
    *command, f'--config.init={path}?prefix=momentum.', '--config.model.num_heads=2'
  )
  assert status == 0, err
  start = vit_jax.load(published / 'plain.npz')
  for name, leaf in tree.flatten(vit_jax.load(tmp_path / 'run')).items():
    if not name.startswith('head'):
      np.testing.assert_array_equal(leaf, tree.flatten(start)[name])


@pytest.mark.parametrize(
  ('option', 'message'),
  [
    ('--config.model.variant=L/14', 'model.variant and init='),
    ('--config.model.width=64', 'Leave out what contradicts it: model.width=64'),
    ('--config.model.registers=4', 'Leave out what contradicts it: model.registers=4'),
  ],
)
def test_what_contradicts_the_checkpoint_is_named(
  typed, published, photos, tmp_path, option, message
):
  status, _, err = typed(
    'vit_jax.train', f'{FOLDER}:{photos}', f'--workdir={tmp_path}/run',
    f'--config.init={published}/timm', *SHORT, option,
  )  # fmt: skip
  assert status == 1
  assert message in err
  assert not (tmp_path / 'run').exists() or not list((tmp_path / 'run').iterdir())


@pytest.fixture(scope='module')
def run(tmp_path_factory, photos):
  """A run that tells the three colours apart, on data of its own."""
  from vit_jax.training import config as config_lib
  from vit_jax.training.loop import train

  folder = tmp_path_factory.mktemp('named')
  shutil.copytree(photos, folder / 'photos')
  config = config_lib.override(
    config_lib.load(f'{ROOT}/configs/image_folder.py:{folder}/photos'),
    [('model.variant', 'mu/16'), ('model.image_size', '32'), ('total', '24 steps'),
     ('batch_size', '8'), ('optim.warmup', '2 steps'), ('optim.lr', '0.01'), ('task.mixup', '0'),
     ('evals.test.every', '100%'), ('log.every', '8 steps'), ('model.dtype', 'float32')],
  )  # fmt: skip
  result = train(config, str(folder / 'run'))
  assert result['metrics']['test/top1'] == 1.0
  return folder


@pytest.fixture
def moved(run, tmp_path):
  """The run and its photos where they may be changed, and the option that says where they are."""
  shutil.copytree(run, tmp_path / 'here')
  return tmp_path / 'here', f'--config.data.source.dir={tmp_path}/here/photos'


def rename(folder, old, new):
  for split in ('train', 'test'):
    (folder / 'photos' / split / old).rename(folder / 'photos' / split / new)


def test_evaluation_refuses_classes_the_run_does_not_know(typed, moved):
  folder, option = moved
  rename(folder, 'fox', 'ant')
  status, _, err = typed('vit_jax.evaluate', f'--workdir={folder}/run', option)
  assert status == 1
  assert 'classes that the model does not know, ant; it knows cat, dog, fox' in err


def test_evaluation_needs_no_training_data(typed, moved):
  folder, option = moved
  shutil.rmtree(folder / 'photos' / 'train')
  status, out, err = typed('vit_jax.evaluate', f'--workdir={folder}/run', option)
  assert status == 0, err
  assert next(line for line in out.splitlines() if 'test/top1' in line).split()[3] == '1'
  status, _, err = typed('vit_jax.evaluate', f'--workdir={folder}/run', '--config.evals=None')
  assert status == 1
  assert 'no evaluations' in err
  status, _, err = typed(
    'vit_jax.evaluate', f'--workdir={folder}/run', f'{FOLDER}:{folder}/photos',
    '--config.model.variant=mu/16', '--config.model.width=64', '--config.model.image_size=32',
  )  # fmt: skip
  assert status == 1
  assert 'Leave it out to evaluate as the run does' in err


def test_labels_follow_names_not_numbers(typed, moved):
  """Without cats, dogs and foxes have other numbers than when the run was trained."""
  folder, option = moved
  for split in ('train', 'test'):
    shutil.rmtree(folder / 'photos' / split / 'cat')
  status, out, err = typed('vit_jax.evaluate', f'--workdir={folder}/run', option)
  assert status == 0, err
  assert 'labels are matched to classes by name' in out
  assert 'test/top1' in out
  assert next(line for line in out.splitlines() if 'test/top1' in line).split()[3] == '1'


def test_resuming_refuses_other_classes(typed, moved):
  folder, option = moved
  rename(folder, 'fox', 'ant')
  (folder / 'run' / 'result.json').unlink()
  shutil.rmtree(folder / 'run' / 'checkpoints' / '24')
  before = sorted(p.name for p in (folder / 'run').rglob('*'))
  status, _, err = typed(
    'vit_jax.train', f'{FOLDER}:{folder}/photos', f'--workdir={folder}/run', option,
    '--config.model.variant=mu/16', '--config.model.image_size=32', '--config.total=24 steps',
    '--config.batch_size=8', '--config.optim.warmup=2 steps', '--config.optim.lr=0.01',
    '--config.task.mixup=0', '--config.evals.test.every=100%', '--config.log.every=8 steps',
    '--config.model.dtype=float32',
  )  # fmt: skip
  assert status == 1
  assert 'classes that the model does not know, ant' in err
  assert sorted(p.name for p in (folder / 'run').rglob('*')) == before
