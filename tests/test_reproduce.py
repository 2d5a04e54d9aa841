"""Published numbers as one command: here on a stand-in for ImageNet, to the row it ends in."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.reproduce import __main__ as reproduce
from tests import compiling, toys
from tests.conftest import ROOT
from vit_jax.training import config as config_lib


def test_targets_are_configurations():
  for target in reproduce.TARGETS.values():
    config_lib.check(config_lib.load(str(ROOT / target.config)))
    assert 0.7 < target.top1 < 0.9


def ran(*arguments):
  command = [sys.executable, '-m', 'experiments.reproduce', *map(str, arguments)]
  env = {**os.environ, 'XLA_FLAGS': compiling.flags(1), 'PYTHONPATH': str(ROOT)}
  return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_mistakes_are_one_line():
  for arguments, said in (
    (['vit_s17'], 'did you mean vit_s16'), (['vit_s16', '--zone=a'], '--zone is an option of an'),
  ):  # fmt: skip
    done = ran(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert 'Traceback' not in done.stderr


def imagenet(root, count=2000):
  """As TFDS leaves it: JPEG files of 1,000 classes, and 100 to evaluate on."""
  rng = np.random.default_rng(0)

  class Imagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('5.1.0')

    def _info(self):
      label = tfds.features.ClassLabel(num_classes=1000)
      features = {'image': tfds.features.Image(encoding_format='jpeg'), 'label': label}
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      def made(count):
        for i in range(count):
          pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
          yield i, {'image': toys.encoded(pixels, 'JPEG'), 'label': i % 1000}

      return {'train': made(count), 'validation': made(100)}

    def _generate_examples(self):
      raise NotImplementedError

  Imagenet.name = 'imagenet2012'
  config = tfds.download.DownloadConfig(num_shards=4)
  with contextlib.redirect_stdout(None):
    builder = Imagenet(data_dir=str(root), file_format='array_record')
    builder.download_and_prepare(download_config=config)


@pytest.mark.slow
def test_from_jpeg_files_to_a_row(tmp_path):
  """All that DeiT does to images, small; the second command has nothing left to train."""
  imagenet(tmp_path / 'data')
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
