"""Fine-tuning in one command: what is chosen, why, what is written down, and what comes of it."""

import json
import pathlib
import shutil
import sys
import zipfile

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import vit_jax
from tests import test_coco, toys
from vit_jax.architecture import ViTArchitecture
from vit_jax.checkpoints.store import Checkpoints
from vit_jax.config import complete
from vit_jax.convert import notes
from vit_jax.core.errors import RunError
from vit_jax.data.sources.guess import guess
from vit_jax.nn import tree
from vit_jax.probing.head import fitted
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training import finetune

SMALL = dict(variant='mu/8', image_size=(32, 32), width=16, depth=2, mlp_dim=32, num_heads=2)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """Of images of 32 pixels, with learned positions, without a head."""
  model = vit_jax.create(**SMALL)
  card, rng = model.card, np.random.default_rng(0)
  model = jax.tree.map(lambda x: np.asarray(rng.normal(0, 0.3, x.shape), np.float32), model)
  model.card = card
  path = tmp_path_factory.mktemp('model') / 'small.npz'
  with notes.printed(sys.stderr):
    vit_jax.save(model, path, 'vit')
  return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Twelve images in each of three folders, no splits."""
  root = toys.toy(tmp_path_factory.mktemp('toy'), 12, 1)
  return root / 'train'


def rows_of(folder):
  files = sorted(folder.rglob('*.png'))
  return [{'image': path, 'label': path.parent.name} for path in files]


def test_what_reads_the_data(folder, tmp_path):
  """Folders with and without splits, zip files of both, tables, Parquet, names of TFDS."""
  found = guess(str(folder), [])
  assert found[:3] == ({'name': 'folder', 'dir': str(folder)}, 'all', '')
  assert (len(found.opened), found.opened.class_names) == (36, ('cat', 'dog', 'fox'))
  assert guess(str(folder.parent), [])[1:3] == ('train', 'test')
  for name, inside, want in (('a', folder, ('all', '')), ('b', folder.parent, ('train', 'test'))):
    with zipfile.ZipFile(tmp_path / f'{name}.zip', 'w') as archive:
      for path in sorted(inside.rglob('*.png')):
        archive.write(path, pathlib.Path('photos') / path.relative_to(inside))
    found = guess(str(tmp_path / f'{name}.zip'), [])
    assert found[1:3] == want
    assert found.opened.class_names == ('cat', 'dog', 'fox')
  rows = rows_of(folder)
  lines = ['image,kind,split', *(f'{r["image"]},{r["label"]},{("train", "val")[i % 2]}'
                                for i, r in enumerate(rows))]  # fmt: skip
  (tmp_path / 'table').mkdir()
  (tmp_path / 'table' / 'all.csv').write_text('\n'.join(lines))
  for text in (tmp_path / 'table', tmp_path / 'table' / 'all.csv'):
    found = guess(str(text), [('data.source.fields.label', 'kind')])
    assert found[1:3] == ('train', 'val')
    assert found.source['fields'] == {'label': 'kind'}
    assert len(found.opened) == 18
  (tmp_path / 'hub').mkdir()
  table = [{'image': {'bytes': r['image'].read_bytes(), 'path': 'x'}, 'label': r['label']}
           for r in rows]  # fmt: skip
  pq.write_table(pa.Table.from_pylist(table), tmp_path / 'hub' / 'train.parquet')
  assert guess(str(tmp_path / 'hub'), [])[0]['name'] == 'parquet'


def test_images_with_captions(folder, tmp_path):
  """Texts beside images, with and without splits; files of COCO, with and without objects."""
  for name in ('a', 'b/train', 'b/val'):
    (tmp_path / name).mkdir(parents=True)
    for path in sorted((folder / 'cat').iterdir())[:3]:
      shutil.copy(path, tmp_path / name)
      (tmp_path / name / path.name).with_suffix('.txt').write_text('a cat')
  for name, column, test in (('a', '.', ''), ('b', '{split}', 'val')):
    found = guess(str(tmp_path / name), [])
    fields = {'image': column, 'text': column}
    assert found.source == {'name': 'paired', 'dir': str(tmp_path / name), 'fields': fields}
    assert (found.split, found.test, found.opened[0]['text']) == ('train', test, 'a cat')
  test_coco.make(tmp_path / 'c', captions=test_coco.CAPTIONS)
  for captioned in (True, False):
    found = guess(str(tmp_path / 'c'), [])
    assert (found.split, found.test) == ('train2017', '')
    assert {'image', 'boxes'} <= {*found.opened.fields}
    assert ('text' in found.opened.fields) == captioned
    (tmp_path / 'c/annotations/captions_train2017.json').unlink(missing_ok=True)
  (tmp_path / 'c/annotations/instances_train2017.json').unlink()
  test_coco.make(tmp_path / 'c', name='annotations/captions_train2017.json',
                 instances=test_coco.CAPTIONS)  # fmt: skip
  (tmp_path / 'c/images').mkdir()
  (tmp_path / 'c/train2017').rename(tmp_path / 'c/images/train2017')
  shutil.copytree(tmp_path / 'c/images/train2017', tmp_path / 'c/images/val2017')
  for name in ('captions_val2017', 'captions_val2014'):
    shutil.copy(tmp_path / 'c/annotations/captions_train2017.json',
                tmp_path / f'c/annotations/{name}.json')  # fmt: skip
  found = guess(str(tmp_path / 'c'), [])
  assert found.source['annotations'] == ''
  assert (found.split, found.test, {*found.opened.fields}) == (
    'train2017', 'val2017', {'image', 'text'}
  )  # fmt: skip


def test_names_of_tfds(data_dir):
  found = guess('digits', [('data.source.dir', data_dir)])
  assert found[1:3] == ('train', 'test')
  assert len(found.opened) == 1437


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('No Such', 'there is no .*No Such: give a directory, a zip file, a table, or a name of TFDS'),
    ('a.txt', r'a\.txt is neither a directory, nor a zip file, nor one of \.csv'),
    ('a.parquet', r'a\.parquet is one of the files of a data set: give its directory'),
    ('empty', r'no images in'),
  ],
)
def test_what_nothing_reads_is_refused(name, message, tmp_path):
  (tmp_path / 'empty').mkdir()
  for file in ('a.txt', 'a.parquet'):
    (tmp_path / file).write_text('x')
  with pytest.raises(RunError, match=message):
    guess(str(tmp_path / name), [])


def test_the_head_is_that_of_scikit_learn():
  """On standardised features, of the strength that is best on folds; logits up to a constant."""
  rng = np.random.default_rng(0)
  for classes in (2, 4):
    labels = rng.integers(classes, size=120)
    x = rng.normal(size=(120, 6)) * 3 + 5 + labels[:, None] * rng.normal(size=6)
    head = fitted(x, labels, classes)
    scale = StandardScaler().fit(x)
    # Of two classes scikit-learn has one vector, half of whose square ours have together.
    strength = head.strength * 2 if classes == 2 else head.strength
    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-8)
    want = model.fit(scale.transform(x), labels).predict_log_proba(scale.transform(x))
    got = np.asarray(jax.nn.log_softmax(x @ head.kernel + head.bias))
    np.testing.assert_allclose(got, want, atol=2e-4)
  # A class without images is not said.
  head = fitted(x, labels % 2 * 2, 4)
  assert set((x @ head.kernel + head.bias).argmax(1)) == {0, 2}


def test_one_command(checkpoint, folder, tmp_path, typed):
  """Held out, head first, said with reasons, written down as what train runs, reported."""
  run = tmp_path / 'run'
  command = ('vit_jax.finetune', checkpoint, folder, f'--workdir={run}', '--config.total=2 epochs',
             '--config.model.image_size=48', '--config.model.drop_path=0.3',
             '--config.batch_size=8')  # fmt: skip
  status, out, err = typed(*command)
  assert status == 0, err
  for line in (
    'data.split=all without fold 1/5: to train on',
    'evals.test.split=fold 1/5 of all: held out, as there is no split to test on: one of 5 folds',
    'data.flip=horizontal: half of the images are mirrored', 'total=2 epochs: as it was given',
    'linear probe: 100.00% right of', 'head: kept from',
    'of the linear probe that it began with 100.00%: fine-tuning has gained nothing here, and',
  ):  # fmt: skip
    assert line in out, line
  result = json.loads((run / 'result.json').read_text())
  assert result['metrics']['test/top1'] == 1.0
  record = json.loads((run / 'config.json').read_text())
  assert record['model']['image_size'] == [48, 48]
  assert record['init'] == str(run / 'start.safetensors')
  # The file is a configuration, and says the same run.
  status, out, _ = typed('vit_jax.train', f'--config={run / "finetune.py"}', f'--workdir={run}')
  assert (status, 'is complete' in out) == (0, True)
  status, out, _ = typed(*command)
  assert (status, 'is complete' in out) == (0, True)
  assert 'the run begins with that head' in out
  # Where it begins is where the probe ends, of images and positions of another size.
  start = vit_jax.load(run / 'start.safetensors')
  assert start.config.image_size == (48, 48)
  assert start.card.class_names == ('cat', 'dog', 'fox')
  # Fields of training alone count, too, although the head's file is of a model without.
  _, facts = Checkpoints(run / 'checkpoints').peek()
  assert facts['model']['drop_path'] == record['model']['drop_path'] == 0.3
  page = (run / 'report.html').read_text()
  assert 'linear probe before' in page
  assert 'half of the images are mirrored' in page
  low, high = binomtest(7, 7).proportion_ci(method='wilson')
  assert f'({low:.4g} to {high:.4g})'[:6] in page
  assert 'Confusion' in page or 'confusion' in page
  _, width, _ = np.asarray(Image.open(run / 'evals/test/worst_0.png')).shape
  plain = train(
    config_lib.override(
      complete(record_of(record)), [('evals.test.attention', 'false'), ('total', '1 step')]
    ),
    str(tmp_path / 'plain'),
  )
  assert plain
  image = np.asarray(Image.open(tmp_path / 'plain' / 'evals/test/worst_0.png'))
  assert width > 1.3 * image.shape[1]
  # Another plan does not touch what is there.
  status, _, err = typed(*command[:-1], '--config.batch_size=16')
  assert status == 1
  assert 'holds another run: to go on with that, python -m vit_jax.train --config=' in err


def record_of(record):
  return {name: value for name, value in record.items() if name != 'format'}


def test_a_plan_alone(checkpoint, folder, tmp_path, typed):
  """Nothing is trained; low-rank changes have a learning rate of their own."""
  status, _, err = typed(
    'vit_jax.finetune', checkpoint, folder, f'--workdir={tmp_path / "run"}', '--plan',
    '--config.lora.rank=2', '--config.model.image_size=40',
  )  # fmt: skip
  assert status == 0, err
  assert {path.name for path in (tmp_path / 'run').iterdir()} == {
    'finetune.py',
    'plan.json',
    'start.safetensors',
  }
  config = config_lib.load(str(tmp_path / 'run' / 'finetune.py'))
  assert config.lora.rank == 2
  assert config.optim.layer_decay == 1.0
  assert config_lib.insisted(config) >= {'model.image_size'}
  status, _, err = typed('vit_jax.finetune', checkpoint, folder,
                          f'--config={tmp_path / "run" / "finetune.py"}')  # fmt: skip
  assert (status, '--config=FILE is of vit_jax.train' in err) == (1, True)


def facts(**changes):
  model = ViTArchitecture(**SMALL).resolve()
  return finetune.Facts(**{**dict(count=500, classes=('cat', 'dog'), side=40, model=model),
                           **changes})  # fmt: skip


def test_images_that_do_not_decode_are_said_before_anything_is_trained(
  checkpoint, folder, tmp_path, typed
):  # fmt: skip
  images = tmp_path / 'images'
  shutil.copytree(folder, images)
  (images / 'cat' / 'broken.png').write_bytes(b'no image')
  command = ('vit_jax.finetune', checkpoint, images, f'--workdir={tmp_path / "run"}', '--plan')
  status, _, err = typed(*command)
  assert status == 1
  assert 'cat/broken.png: ' in err
  assert 'leave such images out by --config.data.on_corrupt=skip' in err
  status, out, err = typed(*command, '--config.data.on_corrupt=skip')
  assert status == 0, err
  assert 'left out: ' in out
  assert 'cat/broken.png' in out
  # What else makes no sense is answered before features are computed.
  for name in ('dog', 'fox'):
    shutil.rmtree(images / name)
  for where, argument, message in (
    (images, '--config.batch_size=4', 'has the class cat alone: there is nothing to tell apart'),
    (folder, '--config.total=2 epoches', 'epoches'),
  ):
    status, out, err = typed('vit_jax.finetune', checkpoint, where, *command[3:], argument)
    assert (status, message in err, 'computing features' in out) == (1, True, False), err


def test_choices_follow_from_the_data():
  """More images are seen fewer times, in larger batches; digits are not mirrored."""
  chosen = [finetune.chosen(facts(count=n)) for n in (50, 500, 5000, 50_000, 500_000, 5_000_000)]
  epochs = [int(c['total'].value.split()[0]) for c in chosen]
  assert epochs == sorted(epochs, reverse=True)
  assert epochs[0] > epochs[-1] >= 1
  sizes = [c['batch_size'].value for c in chosen]
  assert sizes == sorted(sizes)
  assert all(size % 8 == 0 for size in sizes)  # of devices
  assert finetune.chosen(facts(classes=tuple('0123')))['data.flip'].value == 'none'
  assert finetune.chosen(facts())['data.flip'].value == 'horizontal'
  # The size of the checkpoint, unless the images have fewer pixels: then eight patches at least.
  assert 'model.image_size' not in finetune.chosen(facts())
  large = ViTArchitecture(**{**SMALL, 'image_size': (512, 512)}).resolve()
  for side, want in ((28, 64), (100, 104), (600, None)):
    found = finetune.chosen(facts(model=large, side=side)).get('model.image_size')
    assert (found.value if found else None) == (want and (want, want))
  assert finetune.chosen(facts(accelerated=True))['model.dtype'].value == 'bfloat16'


def test_a_file_may_insist(tmp_path, checkpoint, folder):
  """On fields that the checkpoint would decide otherwise; without that they are wishes."""
  given = dict(
    total='1 step', batch_size=8, init=str(checkpoint), model=dict(image_size=(48, 48)),
    data=dict(source=dict(name='folder', dir=str(folder.parent))),
  )  # fmt: skip
  for name, insisted in (('wish', ()), ('insist', ('model.image_size',))):
    path = tmp_path / f'{name}.py'
    path.write_text(f'from vit_jax.config import complete\n\n\ndef get_config():\n'
                    f'  return complete({given!r}, insisted={insisted!r})\n')  # fmt: skip
    loaded = config_lib.load(str(path))
    config, wishes = config_lib.started(loaded, config_lib.insisted(loaded))
    assert config.model.image_size == ((48, 48) if insisted else None)
    assert wishes == ({} if insisted else {'model.image_size': (48, 48)})


def test_frozen_parts_layer_decay_and_resampled_positions(checkpoint, folder, tmp_path):
  """Together: what is frozen stays, the rest moves by its distance from the output."""
  given = dict(
    total='2 steps', batch_size=8, init=str(checkpoint), model=dict(image_size=(48, 48)),
    data=dict(source=dict(name='folder', dir=str(folder.parent)), audit=0),
    task=dict(frozen=('embed/.*',)), optim=dict(name='sgd', lr=0.5, warmup='0', clip=0.0),
    compilation_cache='',
  )  # fmt: skip
  moved = {}
  for decay in (1.0, 0.5):
    given['optim']['layer_decay'] = decay
    train(complete(given), str(tmp_path / str(decay)))
    start = tree.flatten(vit_jax.load(checkpoint, image_size=48, num_classes=3))
    end = tree.flatten(vit_jax.load(tmp_path / str(decay)))
    moved[decay] = {n: np.asarray(end[n]) - np.asarray(start[n]) for n in start}
  assert moved[1.0]['posemb'].shape == (1, 37, 16)
  for name, change in moved[1.0].items():
    # The head is zero at first, so that what is below it moves in the second step alone.
    away = {'embed': 0.0, 'encoder': 1.0, 'head': 1.0}.get(name.split('/')[0], 1 / 8)
    if '/blocks/' in name:
      away = np.array([1 / 4, 1 / 2]).reshape(-1, *(1,) * (change.ndim - 1))
    np.testing.assert_allclose(moved[0.5][name], change * away, rtol=1e-3, atol=1e-6, err_msg=name)
  assert np.abs(moved[1.0]['posemb']).max() > 1e-4


def test_splits_that_are_given_come_first(checkpoint, folder, tmp_path):
  """What the head is fitted to is never what is tested on."""
  given = [('data.split', 'all without fold 2/3'), ('evals.test.split', 'fold 2/3 of all')]
  plan = finetune.planned(str(checkpoint), str(folder), given)
  assert (plan.data.split, plan.data.test) == (given[0][1], given[1][1])
  assert len(plan.data.opened) == plan.facts.count == 24
  for wrong, message in (
    ([given[0]], 'leaves nothing to test on'),
    ([('data.split', 'all'), given[1]], 'has images of data.split=all'),
  ):
    with pytest.raises(RunError, match=message):
      finetune.planned(str(checkpoint), str(folder), wrong)
