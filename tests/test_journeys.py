"""Whole ways through the project, each step by the command that a person would type."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import vit_jax
from tests import compiling
from tests.conftest import ROOT
from vit_jax.architecture.card import Card

pytestmark = pytest.mark.slow
TINY = dict(depth=2, width=32, mlp_dim=64, num_heads=2, image_size=(32, 32))


@pytest.fixture
def sh(tmp_path):
  """Runs `python -m ARGUMENTS` in a directory of its own; gives what it printed."""

  def call(*arguments, devices=1, status=0, **environment):
    env = {
      **os.environ,
      'XLA_FLAGS': compiling.flags(devices),
      'PYTHONPATH': str(ROOT),
      **environment,
    }
    command = [sys.executable, '-m', *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    assert 'Traceback' not in done.stderr
    return done.stdout

  return call


def scores(text):
  """'test/top1 1' and the like in what `evaluate` prints."""
  return {name: float(value) for name, value in re.findall(r'(\w+/\w+)\s+│?\s*([\d.]+)', text)}


def logits(model, images):
  return np.asarray(model(images))


def losses(run):
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  return [line['train/loss'] for line in lines if 'train/loss' in line]


def published(folder, dialect):
  """A pretrained model as others publish it: 1,000 classes without names."""
  rng = np.random.default_rng(1)
  model = vit_jax.create('S/16', num_classes=1000, mlp='gelu', **TINY)
  for leaf in (model.embed.proj.kernel, model.posemb):
    leaf[...] = leaf[...] + rng.normal(0, 0.02, leaf.shape)
  model.card = Card(dialect, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'bicubic', 0.9)
  vit_jax.save(model, folder / dialect, dialect)
  return folder / dialect


@pytest.mark.parametrize('dialect', ['transformers', 'timm'])
def test_from_a_published_checkpoint_and_photos_to_one_of_our_own(sh, tmp_path, photos, dialect):
  start = published(tmp_path, dialect)
  config = ROOT / 'configs' / 'image_folder.py'
  out = sh(
    'vit_jax.train', f'--config={config}:{photos}', '--workdir=run', f'--config.init={start}',
    '--config.total=30 steps', '--config.batch_size=6', '--config.optim.lr=3e-3',
    '--config.optim.warmup=3 steps', '--config.model.dtype=float32', '--config.task.mixup=0',
    '--config.evals.test.every=100%',
  )  # fmt: skip
  assert 'head: new, for 3 classes' in out
  evaluated = scores(sh('vit_jax.evaluate', '--workdir=run'))
  assert evaluated['test/top1'] == 1.0
  # Every test image is predicted as the class of its directory.
  lines = sh('vit_jax.predict', 'run', photos / 'test', '--top=1').splitlines()
  for path, best in zip(lines[::2], lines[1::2], strict=True):
    assert best.split()[-1] == path.split('/')[-2]
  model = vit_jax.load(tmp_path / 'run')
  images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  for target in ('transformers', 'timm'):
    sh('vit_jax.convert', 'run', f'out-{target}', f'--to={target}')
    back = vit_jax.load(tmp_path / f'out-{target}')
    np.testing.assert_allclose(logits(back, images), logits(model, images), rtol=1e-5, atol=1e-5)
    assert back.card.class_names == ('cat', 'dog', 'fox')
    assert (back.card.mean, back.card.std) == (model.card.mean, model.card.std)
    assert back.card.resize == 'bicubic'
    assert sh('vit_jax.predict', f'out-{target}', photos / 'test', '--top=1').splitlines() == lines


def test_pretraining_that_is_killed_moved_cooled_down_and_exported(sh, tmp_path, data_dir):
  common = (
    f'--config={ROOT}/configs/digits.py', f'--config.data.source.dir={data_dir}',
    '--config.batch_size=16', '--config.optim.schedule=wsd', '--config.optim.warmup=2 steps',
    '--config.model.width=16', '--config.model.mlp_dim=32', '--config.model.num_heads=4',
    '--config.model.depth=2', '--config.checkpoint.every=4 steps', '--config.checkpoint.keep=9',
    '--config.log.every=1 step', '--config.evals.test.every=100%',
  )  # fmt: skip
  trunk = (*common, '--workdir=trunk', '--config.total=20 steps', '--config.optim.cooldown=0')
  sh('vit_jax.train', *trunk, status=-signal.SIGKILL, VIT_JAX_FAULT='kill at step 10')
  names = [path.name for path in (tmp_path / 'trunk' / 'checkpoints').iterdir()]
  steps = [int(name) for name in names if name.isdecimal()]
  assert max(steps) < 10
  out = sh('vit_jax.train', *trunk, '--config.mesh=2x2x1', devices=4)
  assert f'continuing trunk at step {max(steps)} of 20' in out
  whole = (*common, '--workdir=whole', '--config.total=20 steps', '--config.optim.cooldown=0')
  sh('vit_jax.train', *whole)
  for one, other in zip(losses(tmp_path / 'trunk'), losses(tmp_path / 'whole'), strict=True):
    assert one == pytest.approx(other, rel=1e-3)
  cooled = (*common, '--config.total=16 steps', '--config.optim.cooldown=4 steps')
  out = sh('vit_jax.train', *cooled, '--workdir=cooled', '--config.fork=trunk')
  assert 'continuing cooled at step 12 of 16' in out
  last = json.loads((tmp_path / 'cooled' / 'result.json').read_text())
  assert last['forked'] == {'from': 'trunk', 'step': 12}
  assert scores(sh('vit_jax.evaluate', '--workdir=cooled'))['test/loss'] == pytest.approx(
    last['metrics']['test/loss'], rel=1e-3
  )
  out = sh('vit_jax.convert', 'cooled', 'timm', '--to=timm')
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
  np.testing.assert_allclose(
    logits(vit_jax.load(tmp_path / 'timm'), images),
    logits(vit_jax.load(tmp_path / 'cooled'), images), rtol=1e-5, atol=1e-5,
  )  # fmt: skip


SWEEP = """
from experiments.sweeps.jobs import Sweep
from vit_jax.architecture import ViTArchitecture
from vit_jax.config import complete
from vit_jax.scaling import design

def get_sweep():
  base = ViTArchitecture(
    'mu/4', image_size=(8, 8), in_channels=1, num_classes=10, pool='mean'
  ).resolve()
  config = complete(dict(
    total='1 step', batch_size=16,
    model=dict(variant='mu/4', image_size=(8, 8), in_channels=1, pool='mean'),
    data=dict(source=dict(name='tfds', dataset='digits', dir={dir!r}), cache=True),
    optim=dict(warmup='2 steps', schedule='wsd'),
    evals=dict(test=dict(every='100%', batch_size=360)),
  )).unlock()
  models = [
    design.resized(base, head_dim=8, width=w, depth=1, mlp_dim=4 * w) for w in (8, 16, 32)
  ]
  runs = design.isoflop(models, [4e7, 8e7, 1.6e8], 16, steps=8, images=(0, 1e6))
  return Sweep(base=config, design=runs, lanes=dict(lr=(3e-3, 1e-2)))
"""


def test_from_a_sweep_to_the_run_that_its_report_advises(sh, tmp_path, data_dir):
  pytest.importorskip('matplotlib')
  (tmp_path / 'sweep.py').write_text(SWEEP.replace('{dir!r}', repr(data_dir)))
  sh('experiments.sweep', 'sweep.py', '--dir=sweep')
  out = sh('experiments.report', 'sweep', '--budget=1.6e8')
  assert (tmp_path / 'sweep' / 'report.html').exists()
  advice = json.loads((tmp_path / 'sweep' / 'card.json').read_text())['advice']
  assert advice, out
  model = advice[0]['model']
  steps = round(advice[0]['images'] / 16)
  sizes = [f'--config.model.{n}={model[n]}' for n in ('width', 'depth', 'mlp_dim', 'num_heads')]
  sh(
    'vit_jax.train', f'--config={ROOT}/configs/digits.py', '--workdir=advised',
    f'--config.data.source.dir={data_dir}', f'--config.total={steps} steps',
    '--config.batch_size=16', '--config.model.variant=mu/4', '--config.model.pool=mean',
    '--config.optim.schedule=wsd', '--config.optim.warmup=2 steps', *sizes,
  )  # fmt: skip
  result = json.loads((tmp_path / 'advised' / 'result.json').read_text())
  assert result['step'] == steps
  assert np.isfinite(result['metrics']['test/loss'])


SHIPPED = {
  'digits.py': (),
  'fashion_mnist.py:quick': (),
  'fashion_mnist.py': (),
  'image_folder.py:PHOTOS': (),
  'synthetic.py:mu/16': (),
  'tfds.py:digits': ('--config.task.mean=0.5', '--config.task.std=0.5'),
}  # fmt: skip


@pytest.mark.parametrize('name', SHIPPED)
def test_a_run_of_every_shipped_configuration_converts_loads_and_predicts(
  sh, tmp_path, data_dir, photos, name
):
  config = f'{ROOT}/configs/{name.replace("PHOTOS", str(photos))}'
  options = [
    '--config.total=2 steps', '--config.batch_size=8', '--config.optim.warmup=0',
    '--config.model.depth=1', '--config.model.width=16', '--config.model.mlp_dim=32',
    '--config.model.num_heads=2', '--config.model.image_size=16', '--config.model.patch_size=4',
    '--config.compilation_cache=', '--config.evals=None', *SHIPPED[name],
  ]  # fmt: skip
  if 'fashion' in name:  # its files may not be here
    options += ['--config.data.source.name=tfds', '--config.data.source.dataset=digits',
                '--config.data.source.manual_dir=']  # fmt: skip
  if 'photos' not in config and 'synthetic' not in name and 'image_folder' not in name:
    options.append(f'--config.data.source.dir={data_dir}')
  sh('vit_jax.train', f'--config={config}', '--workdir=run', *options)
  model = vit_jax.load(tmp_path / 'run', dtype='float32')
  channels = model.config.in_channels
  image = tmp_path / 'image.png'
  shutil.copy(next(iter((photos / 'test').rglob('*.jpg'))), image)
  before = sh('vit_jax.predict', 'run', image)
  assert '%' in before
  images = np.random.default_rng(0).normal(size=(2, 16, 16, channels)).astype(np.float32)
  for dialect in ('timm', 'vit_jax'):
    sh('vit_jax.convert', 'run', dialect, f'--to={dialect}')
    back = vit_jax.load(tmp_path / dialect, dtype='float32')
    np.testing.assert_allclose(logits(back, images), logits(model, images), rtol=1e-4, atol=1e-5)
    assert back.card.class_names == model.card.class_names
    assert '%' in sh('vit_jax.predict', dialect, image)
