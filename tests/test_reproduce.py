"""Published numbers as one command: here on a stand-in for ImageNet, to the row it ends in."""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.reproduce import __main__ as reproduce
from experiments.reproduce import imagenette_ssl
from experiments.ssl import judged
from tests import compiling, toys
from tests.conftest import ROOT
from vit_jax.core import schema
from vit_jax.data import folds
from vit_jax.training import config as config_lib

SSL = 'experiments.reproduce.imagenette_ssl'


def test_targets_are_configurations():
  for target in reproduce.TARGETS.values():
    config_lib.check(config_lib.load(str(ROOT / target.config)))
    assert 0.7 < target.top1 < 0.9


def ran(*arguments, module='experiments.reproduce'):
  command = [sys.executable, '-m', module, *map(str, arguments)]
  env = {**os.environ, 'XLA_FLAGS': compiling.flags(1), 'PYTHONPATH': str(ROOT)}
  return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_mistakes_are_one_line():
  for arguments, said in (
    (['vit_s17'], 'did you mean vit_s16'), (['vit_s16', '--zone=a'], '--zone is an option of an'),
    ([SSL, 'dina'], 'did you mean dino'), ([SSL, '--data=D', '--set=optim.lr=1'], 'by its rules'),
    ([SSL, 'mae', '--data=D', '--set=task.local=2'], 'none of mae has this field'),
    ([SSL, 'mae', '--data=D', '--set=model.depth=2'], 'none of mae has this field'),
    ([SSL, 'mae', '--data=tests', '--set=evals.test.every=1'], 'is not Imagenette'),
  ):  # fmt: skip
    own = arguments[:1] == [SSL]
    done = ran(*arguments[own:], module=SSL if own else 'experiments.reproduce')
    assert done.returncode == 1
    assert said in done.stderr
    assert 'Traceback' not in done.stderr


def prepared(root, name, train, test, classes, size=''):
  """As TFDS leaves it: so many JPEG files to train on and to evaluate on, in ArrayRecord."""
  rng = np.random.default_rng(0)

  class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('5.1.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=size)] if size else []

    def _info(self):
      label = tfds.features.ClassLabel(num_classes=classes)
      features = {'image': tfds.features.Image(encoding_format='jpeg'), 'label': label}
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      def made(count):
        for i in range(count):
          pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
          yield i, {'image': toys.encoded(pixels, 'JPEG'), 'label': i % classes}

      return {'train': made(train), 'validation': made(test)}

    def _generate_examples(self):
      raise NotImplementedError

  Prepared.name = name
  config = tfds.download.DownloadConfig(num_shards=4)
  with contextlib.redirect_stdout(None):
    builder = Prepared(data_dir=str(root), file_format='array_record')
    builder.download_and_prepare(download_config=config)


@pytest.mark.slow
def test_from_jpeg_files_to_a_row(tmp_path):
  """All that DeiT does to images, small; the second command has nothing left to train."""
  prepared(tmp_path / 'data', 'imagenet2012', 2000, 100, 1000)
  changes = {
    'data.source.dir': tmp_path / 'data', 'total': '6 steps', 'batch_size': 16,
    'optim.warmup': '2 steps', 'model.image_size': 32, 'model.depth': 2, 'evals.test.every': '100%',
    'evals.test.batch_size': 50, 'checkpoint.every': '3 steps',
  }  # fmt: skip
  arguments = ['deit_ti', f'--workdir={tmp_path / "run"}', f'--results={tmp_path / "results"}']
  arguments += [f'--set={field}={value}' for field, value in changes.items()]
  done = ran(*arguments)
  assert done.returncode == 0, done.stderr
  row = json.loads((tmp_path / 'results' / 'deit_ti.json').read_text())
  assert row['changed'] == {field: str(value) for field, value in changes.items()}
  assert not row['reproduces']
  assert (row['published'], row['examples'], row['steps']) == (0.722, 100, 6)
  low, high = row['interval']
  assert 0 <= low <= row['top1'] <= high <= 1
  assert row['images_per_second_per_chip'] > 0
  assert row['goodput']['hours'] > 0
  assert row['packages']['jax']
  again = ran(*arguments)
  assert again.returncode == 0
  assert 'Nothing to do' in again.stdout


# --- without labels, on Imagenette ---


def built(method, splits=imagenette_ssl.CHOICE, own=None, asked=None, **changes):
  """The configuration of a run of the comparison."""
  source = {'name': 'folder', 'dir': 'nowhere'}
  asked = asked or imagenette_ssl.Asked(source, 'val', 9469, ROOT, 3, changes)
  fields = imagenette_ssl.fields_of(asked, method, splits, own or {'optim.lr': '5e-4'})
  config = config_lib.load(str(ROOT / imagenette_ssl.config_of(method)))
  return schema.build(config_lib.Config, config_lib.override(config, [*fields.items()]).to_dict())


def test_imagenette_of_tfds(tmp_path, monkeypatch):
  """By the name that TFDS has for it; and numbers of other images are no reproduction."""
  size = 'imagenette/320px-v2'
  prepared(tmp_path, 'imagenette', 40, 20, 10, size='320px-v2')
  known = []
  monkeypatch.setattr(imagenette_ssl, 'measured', lambda asked, method: known.append(asked) or {})
  monkeypatch.setattr(imagenette_ssl, 'page', lambda rows: f'{len(rows)} rows')
  given = argparse.Namespace(
    methods=['mae'], data=size, workdir=str(tmp_path / 'runs'), seeds=3, results=tmp_path / 'r',
    set=[f'data.source.dir={tmp_path}'],
  )  # fmt: skip
  imagenette_ssl.main(given)
  assert (tmp_path / 'r' / 'README.md').read_text() == '1 rows'
  (asked,) = known
  assert (asked.test, asked.images) == ('validation', 40)
  data = built('mae', asked=asked).data
  assert [len(data.open(split)) for split in (*imagenette_ssl.CHOICE, 'validation')] == [36, 4, 20]


def test_choosing_a_rate_sees_nothing_to_judge_by():
  """Whatever names a split is a part of train; the part to choose by is not trained on."""
  train, held = imagenette_ssl.CHOICE
  assert not folds.overlap(train, held)
  for method in imagenette_ssl.METHODS:
    config = built(method)
    assert config.data.split == train
    named = {split for each in config.evals.values() for split in each.splits().values()}
    assert named == {train, held}


def test_the_best_rate_of_the_held_out_tenth_is_taken(tmp_path, monkeypatch):
  """Runs to choose by are trained and judged on parts of train, before those that are reported."""
  seen = []

  def trained(asked, method, place, splits, own):
    seen.append((method, splits, dict(own)))
    place.mkdir(parents=True)
    facts = {'flops': {'training_total': 2e18}, 'seconds': {'step': 3600.0, 'compile': 1800.0}}
    names = 'images_per_second_per_chip mfu peak_memory device devices epochs step packages python'
    facts |= dict.fromkeys([*names.split(), 'git'])
    (place / 'result.json').write_text(json.dumps(facts))
    return place

  def apart(place, number, splits, rules):
    seen.append((place.parent.name, splits))
    best = 90 if '1.5e-3' in place.name else 80
    right = np.arange(100)[None] < (best if place.parent.name == 'rates' else 50 + number)
    names = ['linear'] if rules.methods == ('linear',) else [*rules.methods, judged.ANSWERS]
    return {judged.OURS: dict.fromkeys(names, right), judged.RANDOM: {'linear': right}}

  monkeypatch.setattr(imagenette_ssl, 'trained', trained)
  monkeypatch.setattr(imagenette_ssl, 'apart', apart)
  asked = imagenette_ssl.Asked({}, 'val', 9469, tmp_path, 3, {})
  row = imagenette_ssl.measured(asked, 'mae')
  choice = imagenette_ssl.CHOICE
  assert seen[:6] == [
    each for rate in imagenette_ssl.RATES
    for each in (('mae', choice, {'optim.lr': rate}), ('rates', choice))
  ]  # fmt: skip
  final = ('train', 'val')
  assert seen[6:10] == [
    ('mae', final, {'optim.lr': '1.5e-3', 'seed': '0'}), ('runs', final),
    ('labels', final,
     {**imagenette_ssl.TUNED, 'init': str(tmp_path / 'runs' / 'mae-0'), 'seed': '0'}),
    ('tuned', final),
  ]  # fmt: skip
  assert len(seen) == 6 + 3 * 4
  assert row['tried'] == {'1.5e-4': 0.8, '5e-4': 0.8, '1.5e-3': 0.9}
  assert row['scores']['mae']['linear']['runs'] == [0.5, 0.51, 0.52]
  assert row['scores']['mae']['linear']['top1'] == pytest.approx(0.51)
  assert (row['hours'], row['exaflops'], row['reproduction']) == (1.5, 2.0, False)
  assert judged.RANDOM not in row['scores']  # that is of the encoder with labels, for all
  assert judged.RANDOM in imagenette_ssl.measured(asked, 'labels')['scores']
  assert len(seen) == 18 + 6 + 3 * 2
  assert '| mae, changed |' in imagenette_ssl.page([row])
  monkeypatch.setattr(imagenette_ssl, 'TESTED', 100)
  for changes, ruled in (
    ({'model.encoder.remat': 'full', 'data.source.dir': 'd'}, True), ({'total': '9 steps'}, False),
  ):  # fmt: skip
    asked = asked._replace(folder=tmp_path / str(ruled), changes=changes)
    assert imagenette_ssl.measured(asked, 'mae')['reproduction'] == ruled


def test_methods_are_under_the_same_rules():
  """All that the rules say, in the runs; and a change is of every run that has the field."""
  found = [built(method) for method in imagenette_ssl.METHODS]
  encoders = [getattr(each.model, 'encoder', each.model).resolve() for each in found]
  for values in (
    [(each.total, each.batch_size, each.optim.lr, each.optim.warmup) for each in found],
    [(type(each.optim), each.optim.schedule, each.data.source, each.task.mean) for each in found],
    [next(iter(each.evals.values())).crop for each in found],
    [(e.width, e.depth, e.num_heads, e.patch, e.image_size, e.mlp, e.pool) for e in encoders],
  ):
    assert all(value == values[0] for value in values)
  tuned = built('labels', ('train', 'val'), {**imagenette_ssl.TUNED, 'init': 'run'},
                **{'model.depth': '2', 'task.local': '2', 'batch_size': '8'})  # fmt: skip
  assert (tuned.total, tuned.optim.layer_decay, tuned.batch_size) == ('100 epochs', 0.75, 8)
  assert tuned.model.depth is None  # the checkpoint says it
  assert built('labels', **{'model.depth': '2'}).model.depth == 2
  assert built('dino', **{'task.local': '2', 'model.depth': '2'}).task.local == 2


def test_costs_of_methods_from_their_configurations():
  """4.61 GMAC of a ViT-S/16 are what timm publishes; those of DINO are added up here."""
  images = 200 * 9469
  found = {method: imagenette_ssl.exaflops(method) for method in imagenette_ssl.METHODS}
  assert found['labels'] == pytest.approx(6 * 4.61e9 * images / 1e18, rel=0.02)
  assert found['mae'] < 0.5 * found['simmim']  # a quarter of the tokens, and a decoder
  # Products of a pass by hand: twelve blocks on n + 1 tokens, and n patches of 768 numbers.
  by_hand = lambda n: 12 * (12 * 384**2 * (n + 1) + 2 * 384 * (n + 1) ** 2) + n * 768 * 384  # noqa: E731
  head = 384 * 2048 + 2048**2 + 2048 * 256 + 256 * 8192
  # Two large views, small ones, and two large ones without a gradient.
  products = 3 * (2 * by_hand(196) + 8 * by_hand(36) + 10 * head) + 2 * (by_hand(196) + head)
  steps = -(-images // 256)
  assert found['dino'] == pytest.approx(2 * products * 256 * steps / 1e18, rel=1e-3)


@pytest.mark.slow
def test_the_command_leaves_devices_to_what_it_starts(tmp_path):
  """A process that touches a GPU keeps most of its memory."""
  right: Any = {f'{judged.OURS}/linear': np.ones((1, 8), bool)}
  np.savez(tmp_path / 'judged.npz', **right)
  (tmp_path / 'config.json').write_text('{"model": {}}')
  np.savez(tmp_path.parent / 'pixels0-usual.npz')
  code = f"""
import pathlib
from experiments.reproduce import imagenette_ssl
from experiments.ssl import judged
from jax._src import xla_bridge
imagenette_ssl.exaflops('dino')
found = judged.apart(pathlib.Path({str(tmp_path)!r}), 0, ('train', 'val'), imagenette_ssl.JUDGED)
print(judged.summary([found[judged.OURS]['linear']])['top1'], xla_bridge.backends_are_initialized())
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == '1.0 False\n', done.stderr


@pytest.mark.slow
def test_from_images_of_ten_classes_to_a_table(tmp_path, monkeypatch, capfd):
  """With labels and without, in the folders of fastai; the second time nothing is trained."""
  rng = np.random.default_rng(0)
  data, results = tmp_path / 'imagenette2-320', tmp_path / 'results'
  for split, count in (('train', 5), ('val', 1)):
    for number in range(10):
      folder = data / split / f'n{number:08}'
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 256, (36, 40, 3), np.uint8)
        (folder / f'{i}.JPEG').write_bytes(toys.encoded(pixels, 'JPEG'))
  changes = {
    'total': '2 steps', 'batch_size': 16, 'optim.warmup': '1 step', 'evals.knn.every': '100%',
    'evals.test.every': '100%', 'checkpoint.every': '100%', 'log.every': '1 step',
    **{f'model.{where}{name}': value for where in ('', 'encoder.')
       for name, value in dict(image_size=32, depth=1, width=24, mlp_dim=32, num_heads=2).items()},
    'model.prototypes': 16, 'model.hidden': 16, 'task.local': 2, 'task.local_size': 16,
  }  # fmt: skip
  changes = {field: str(value) for field, value in changes.items()}
  given = argparse.Namespace(
    methods=['labels', 'dino'], data=str(data), workdir=str(tmp_path / 'runs'), seeds=1,
    results=results, set=[f'{field}={text}' for field, text in changes.items()],
  )  # fmt: skip
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('XLA_FLAGS', compiling.flags(1))
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setattr(imagenette_ssl, 'RATES', ('5e-4',))
  imagenette_ssl.main(given)
  rows = {name: json.loads((results / f'{name}.json').read_text()) for name in given.methods}
  for name, row in rows.items():
    assert not row['reproduction']
    assert row['changed'] == changes
    assert (row['examples'], row['steps'], row['seeds']) == ([50, 10], 2, 1)
    assert [*row['tried']] == [row['rate']] == ['5e-4']
    assert {*row['scores'][name]} == {'knn', 'linear', '1 labels a class', 'all labels'}
    for score in row['scores'][name].values():
      low, high = score['interval']
      assert 0 <= low <= score['top1'] <= high <= 1
    # To choose a rate, five images of train were looked at; then all of val.
    for place, count in (('rates', 5), ('runs', 10)):
      last = '5e-4' if place == 'rates' else 0
      with np.load(tmp_path / 'runs' / place / f'{name}-{last}' / 'judged.npz') as found:
        assert {array.shape[-1] for array in found.values()} == {count}
  assert len(rows['labels']['scores']) == 4  # controls
  assert rows['dino']['published'] == 0.861
  table = (results / 'README.md').read_text()
  assert re.findall(r'^\| (.*?), changed \|', table, re.M) == [
    'labels',
    judged.RANDOM,
    judged.PIXELS,
    judged.COMPONENTS,
    'dino',
  ]
  capfd.readouterr()
  imagenette_ssl.main(given)
  assert capfd.readouterr().out.count('Nothing to do') == 5
  for name, row in rows.items():
    again = json.loads((results / f'{name}.json').read_text())
    assert {**again, 'date': ''} == {**row, 'date': ''}
  assert (results / 'README.md').read_text() == table
