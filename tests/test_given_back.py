"""What a run gives back: predictions, evaluations of any checkpoint, events, what it was."""

import csv
import json
import struct
import sys

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests import toys
from vit_jax import inspect as inspect_lib
from vit_jax import predict, tasks
from vit_jax.config import complete
from vit_jax.convert import notes
from vit_jax.core.errors import RunError
from vit_jax.evaluate import evaluate_checkpoint
from vit_jax.nn import tree
from vit_jax.train import train
from vit_jax.training import writers
from vit_jax.training.config import LogConfig

SCENES = dict(name='generated', examples=64, held_out=24,
              generator=dict(name='scenes', size=(16, 16), most=2, pieces=1))  # fmt: skip
ENCODER = dict(variant='mu/8', image_size=(16, 16), width=16, depth=1, mlp_dim=32, num_heads=2,
               posemb='sincos')  # fmt: skip


def configured(task, **changes):
  model = dict(name='segmenter', encoder=ENCODER) if task == 'segmentation' else {
    **ENCODER, 'pool': 'mean'
  }  # fmt: skip
  return complete(dict(
    total='2 steps', batch_size=16, model=model, task=dict(name=task), data=dict(source=SCENES),
    optim=dict(lr=1e-2, warmup='0'), evals=dict(test=dict(name=task, batch_size=24)),
    log=dict(every='1 step', writers=('tensorboard',)), compilation_cache='', **changes,
  ))  # fmt: skip


@pytest.fixture(scope='module', params=['segmentation', 'regression'])
def run(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param) / 'run'
  return request.param, folder, train(configured(request.param), str(folder))


@pytest.fixture
def images(tmp_path):
  """Of three sizes, two of them in folders under the same name, and one that is none."""
  rng = np.random.default_rng(0)
  for name, size in (('a/x.png', (20, 30)), ('b/x.png', (16, 16)), ('c.png', (40, 25))):
    path = tmp_path / 'images' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3), np.uint8))
  (tmp_path / 'images' / 'd.png').write_bytes(b'\x89PNG\r\n\x1a\n and no more')
  return tmp_path / 'images'


def test_predictions_of_every_task_are_written(run, images, tmp_path, capsys):
  """A table and a picture of each; of the same name both; what is broken is named."""
  task, folder, _ = run
  for format in predict.FORMATS:
    out = tmp_path / f'out_{format}'
    status = predict.main(str(folder), [str(images)], 3, 2, None, {}, out=str(out), format=format,
                          attention=True)  # fmt: skip
    text, err = capsys.readouterr()
    assert status == 1
    assert 'd.png' in err
    assert err.count('error:') == 1
    assert 'images/s' in err
    assert f'on {jax.device_count()} x ' in err
    assert text.count(str(images)) == 3
  table = json.loads((tmp_path / 'out_json' / 'predictions.json').read_text())
  assert [row['picture'] for row in table] == ['x.png', 'x_2.png', 'c.png']
  with (tmp_path / 'out_csv' / 'predictions.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['image'] for row in rows] == [row['image'] for row in table]
  for row, flat in zip(table, rows, strict=True):
    source = cv2.imread(row['image'])
    with Image.open(tmp_path / 'out_json' / row['picture']) as picture:
      assert picture.mode == 'RGB'
      assert min(picture.size) >= 256
    if task == 'segmentation':
      labels = np.asarray(Image.open(tmp_path / 'out_json' / row['map']))
      assert labels.shape == source.shape[:2]
      assert sum(row['share'].values()) == pytest.approx(1)
      share = {n: (labels == c).mean() for c, n in enumerate(('ground', *'0123456789'))}
      assert row['share'] == pytest.approx({n: s for n, s in share.items() if s})
      assert float(flat[f'share.{next(iter(row["share"]))}']) == next(iter(row['share'].values()))
    else:
      assert [t['name'] for t in row['target']] == ['x', 'y', 'height']
      assert [t['unit'] for t in row['target']] == ['px'] * 3
      assert float(flat['target.1.value']) == row['target'][1]['value']


def test_predictions_are_those_of_the_model(run, images):
  """On several devices, in batches of any size; those of images alone."""
  task, folder, _ = run
  paths = [path for path in predict.images_in([str(images)]) if path.name != 'd.png']
  found = []
  model = vit_jax.load(folder)
  for size in (1, 2, 32):
    predictor = predict.Predictor(model, batch_size=size)
    found.append([p.outputs for p in predictor(predict.Inputs(paths))])
  for others in found[1:]:
    for one, other in zip(found[0], others, strict=True):
      for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-5)
  with pytest.raises(RunError, match='attention is drawn: give a folder'):
    predict.main(str(folder), [str(paths[0])], 5, 2, None, {}, attention=True)
  assert predictor.task.classed == ('map' if task == 'segmentation' else '')


def test_a_checkpoint_is_evaluated_as_its_run_was(run, tmp_path):
  """Saved, read, and evaluated without the run; with other crops where that is asked for."""
  task, folder, result = run
  vit_jax.save(vit_jax.load(folder), tmp_path / 'model', 'vit_jax')
  want = {n: v for n, v in result['metrics'].items() if n.startswith('test/')}
  for path in (folder, tmp_path / 'model'):
    assert evaluate_checkpoint(str(path), configured(task)) == pytest.approx(want, rel=1e-4)
  with pytest.raises(RunError, match='nothing to do'):
    evaluate_checkpoint(str(folder), complete({**configured(task).to_dict(), 'evals': {}}))


def test_a_published_checkpoint_is_evaluated(tmp_path, capsys):
  """Of classes without names by number, of known ones by name; others are refused."""
  root = toys.toy(tmp_path / 'toy', 2, 3)
  model = vit_jax.create('mu/8', image_size=(16, 16), num_classes=len(toys.COLOURS), width=16,
                         depth=1, mlp_dim=32, num_heads=2)  # fmt: skip
  rng = np.random.default_rng(0)
  model = jax.tree.map(lambda x: np.asarray(x) + rng.normal(0, 0.1, x.shape).astype(x.dtype), model)
  vit_jax.save(model, tmp_path / 'model.npz', 'vit')
  config = complete(dict(
    total='1 step', batch_size=8, data=dict(source=dict(name='folder', dir=str(root))),
    optim=dict(lr=1e-3), evals=dict(test=dict(report=('top1', 'loss'))), compilation_cache='',
  ))  # fmt: skip
  scores = evaluate_checkpoint(str(tmp_path / 'model.npz'), config)
  out = capsys.readouterr().out
  assert 'does not name its' in out
  assert 'as the checkpoint says, the whole image' in out
  hits = 0
  read = vit_jax.load(tmp_path / 'model.npz')
  names = sorted(toys.COLOURS)
  for label, name in enumerate(names):
    for path in sorted((root / 'test' / name).iterdir()):
      x = predict.prepare(path.read_bytes(), read.card, 3)[None]
      hits += int(np.asarray(read(x)).argmax() == label)
  assert scores['test/top1'] == pytest.approx(hits / (3 * len(names)))
  assert scores['test/examples'] == 3 * len(names)
  few = vit_jax.load(tmp_path / 'model.npz', num_classes=2)
  vit_jax.save(few, tmp_path / 'few.npz', 'vit')
  with pytest.raises(RunError, match=r'has 2 classes without names, and .* has'):
    evaluate_checkpoint(str(tmp_path / 'few.npz'), config)
  none = vit_jax.load(tmp_path / 'model.npz', num_classes=0)
  vit_jax.save(none, tmp_path / 'none.npz', 'vit')
  with pytest.raises(RunError, match='no head for classification'):
    evaluate_checkpoint(str(tmp_path / 'none.npz'), config)


def test_evaluations_and_heads_are_of_their_task(run, tmp_path, capsys):
  """Another evaluation is refused by name; a head that gives something else is new."""
  task, folder, _ = run
  config = configured(task).to_dict()
  config['evals'] = {'test': {'name': 'classification'}}
  with pytest.raises(RunError, match=f'test: name=classification needs label, which .* {task}'):
    train(complete(config), str(tmp_path / 'other'))
  if task == 'regression':
    for target, text in ((task, 'head: kept'), ('multilabel', 'head: new')):
      config = {**configured(target).to_dict(), 'init': str(folder), 'model': {'name': 'vit'}}
      train(complete(config), str(tmp_path / target))
      assert text in capsys.readouterr().out
    with notes.printed(sys.stdout):
      vit_jax.save(vit_jax.load(folder), tmp_path / 'timm', 'timm')
    assert 'that it is regression is lost' in capsys.readouterr().out


def test_pictures_do_not_replace_maps(images, tmp_path):
  folder = predict._Folder(str(tmp_path / 'out'), 'json')
  picture = np.zeros((4, 4, 3), np.uint8)
  for name, arrays in (('a.png', {'map': picture[..., 0]}), ('a_map.png', {}), ('b/a.png', {})):
    prediction = tasks.task.Prediction({}, arrays)
    folder.add(predict.Predicted({'name': name}, prediction, {}, None), picture)
  rows = json.loads(folder.finish().read_text())
  assert [row['picture'] for row in rows] == ['a.png', 'a_map_2.png', 'a_2.png']
  assert rows[0]['map'] == 'a_map.png'


def events(folder):
  """Of TensorBoard's files: (step, tag, value or 'image')."""
  from tensorboardX.proto.event_pb2 import Event

  for path in sorted((folder / 'tensorboard').iterdir()):
    data = path.read_bytes()
    at = 0
    while at < len(data):
      (size,) = struct.unpack_from('<Q', data, at)
      event = Event.FromString(data[at + 12 : at + 12 + size])
      for value in event.summary.value:
        kind = value.WhichOneof('value')
        yield event.step, value.tag, value.simple_value if kind == 'simple_value' else kind
      at += 16 + size


def test_tensorboard_has_what_metrics_have(run):
  _, folder, _ = run
  found = list(events(folder))
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  numbers = {(step, tag): value for step, tag, value in found if isinstance(value, float)}
  for line in lines:
    for name, value in line.items():
      if name != 'step':
        assert numbers[line['step'], name] == pytest.approx(value, rel=1e-5)
  shown = {tag for _, tag, value in found if value == 'image'}
  assert {f'test/{group}/{i}' for group in ('best', 'worst') for i in range(4)} == shown


def test_a_writer_that_fails_stops_no_run(tmp_path, monkeypatch, capsys):
  class Full:
    package = ''

    def __init__(self, folder, start):
      pass

    def scalars(self, step, values):
      raise OSError('no space left')

    picture = close = scalars

  monkeypatch.setitem(writers.WRITERS, 'tensorboard', Full)
  result = train(configured('regression'), str(tmp_path / 'run'))
  assert result['step'] == 2
  assert capsys.readouterr().out.count('tensorboard is left alone from here on: no space') == 1
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'tensorboard').touch()  # where a directory should be
  monkeypatch.undo()
  assert train(configured('regression'), str(tmp_path / 'other'))['step'] == 2
  assert capsys.readouterr().out.count('tensorboard is left alone from here on') == 1
  with pytest.raises(RunError, match=r"unknown log\.writers 'wandb'"):
    LogConfig(writers=('wandb',))


def test_a_checkpoint_says_what_it_is_of(run, capsys):
  """Recipe, revision and history, also after it was copied away from its run."""
  task, folder, result = run
  assert inspect_lib.main(str(folder), False, {}, recipe=True) == 0
  out = capsys.readouterr().out
  assert f'task          {task}' in out
  assert 'step 2' in out
  assert f"task.name='{task}'" in out
  assert 'optim.lr=0.01' in out
  assert 'evaluated at step 2: ' in out
  if result['git']:
    assert result['git'] in out


def test_what_an_evaluation_leaves(run):
  """Tables, pictures of the best and the worst, all that the report needs; and the report."""
  task, folder, result = run
  left = json.loads((folder / 'evals' / 'test.json').read_text())
  assert (left['evaluator'], left['split'], left['step']) == (task, 'test', 2)
  values = {n.removeprefix('test/'): v for n, v in result['metrics'].items() if '/' in n}
  assert {n: values[n] for n in left['values']} == left['values']
  assert left['tables'][0]['rows']
  groups = [shown['group'] for shown in left['pictures']]
  assert sorted(groups) == ['best'] * 4 + ['worst'] * 4
  scores = {g: [p['score'] for p in left['pictures'] if p['group'] == g] for g in groups}
  assert scores['best'] == sorted(scores['best'])
  assert scores['worst'] == sorted(scores['worst'], reverse=True)
  assert scores['best'][-1] <= scores['worst'][-1]
  for shown in left['pictures']:
    with Image.open(folder / 'evals' / shown['file']) as picture:
      assert picture.mode == 'RGB'
  page = (folder / 'report.html').read_text()
  assert page.count('data:image/png') == 8
  session = json.loads((folder / 'command.json').read_text())
  assert [line['step'] for line in session] == [0]
  assert not any(path.startswith('frozen') for path in tree.flatten(vit_jax.load(folder)))
