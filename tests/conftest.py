import functools
import gc
import os
import pathlib
import runpy
import sys
import time

from tests import compiling

os.environ['JAX_PLATFORMS'] = 'cpu'  # whatever else there is: TPUs are only compiled for
os.environ['XLA_FLAGS'] = compiling.CPU
os.environ['JAX_COMPILATION_CACHE_DIR'] = compiling.cache()
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
os.environ['NO_GCE_CHECK'] = 'true'  # or gs:// looks for a machine of Google's, for 15 seconds

import absl.flags
import jax
import numpy as np
import pytest
from PIL import Image

from experiments.launch import job as job_lib
from vit_jax.nn import sharding
from vit_jax.training import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent

# Tracing makes so many objects that an eighth of all time would go into looking for garbage.
gc.set_threshold(100_000, 50, 100)
jax.devices()  # now the flags are read, for the rest of this process
os.environ['XLA_FLAGS'] = compiling.ANY

absl.flags.FLAGS.mark_as_parsed()  # Grain's workers read flags


# Continuous integration has an hour: tests that would start later are skipped, and counted.
_END = time.monotonic() + float(os.environ.get('VIT_JAX_TEST_SECONDS', 'inf'))


def pytest_runtest_setup():
  if time.monotonic() > _END:
    pytest.skip('no time left (VIT_JAX_TEST_SECONDS)')


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory, worker_id):
  """A TFDS directory that all tests of a worker share."""
  return str(tmp_path_factory.mktemp('data'))


def tiers(cases, *first):
  """Cases to parametrize with, of which those at the places `first` are not slow."""
  return [
    case if at in first
    else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
    for at, case in enumerate(cases)
  ]  # fmt: skip


def make_digits(data_dir, **changes):
  """The configuration of a run of seconds on the digits; model__width=8 sets model.width."""
  config = dict(
    total='12 steps', batch_size=16,
    model=dict(variant='mu/4', image_size=(8, 8), in_channels=1, depth=2, width=16, mlp_dim=32,
               num_heads=8),
    data=dict(source=dict(name='tfds', dataset='digits', dir=data_dir), crop=dict(name='affine')),
    optim=dict(lr=3e-3, weight_decay=0.1, warmup='4 steps', eps=1e-3),
    evals=dict(test=dict(every='6 steps', batch_size=256)),
    log=dict(every='1 step'), checkpoint=dict(every='4 steps'),
  )  # fmt: skip
  config = config_lib.complete(config).unlock()
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return config.lock()


@pytest.fixture
def digits(data_dir):
  """`make_digits` on the data of this worker."""
  return functools.partial(make_digits, data_dir)


@pytest.fixture(scope='session')
def finished(tmp_path_factory, data_dir):
  """Directory, result and configuration of an uninterrupted run; copy it to change it."""
  from vit_jax.train import train  # what most tests do without

  config = make_digits(data_dir)
  workdir = tmp_path_factory.mktemp('run') / 'finished'
  return workdir, train(config, str(workdir)), config


@pytest.fixture
def typed(capsys, monkeypatch):
  """What `python -m MODULE ARGUMENT...` ends with: exit status, stdout and stderr.

  In this process, which has started JAX already.
  """
  monkeypatch.setattr('vit_jax.launch.start._start', lambda *_: None)

  def call(module, *arguments):
    monkeypatch.setattr(sys, 'argv', [module, *map(str, arguments)])
    for name in (module, f'{module}.__main__'):  # or running it once more would be a warning
      monkeypatch.delitem(sys.modules, name, raising=False)
    capsys.readouterr()
    status = 0
    try:
      runpy.run_module(module, run_name='__main__')
    except SystemExit as ended:
      status = ended.code or 0
    return status, *capsys.readouterr()

  return call


@pytest.fixture
def paused(monkeypatch):
  """The pauses that the launcher would have made."""
  tries = []
  monkeypatch.setattr(job_lib, 'pause', tries.append)
  return tries


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
  """{train,test}/{cat,dog,fox}/N.jpg: solid colours of 40x48 pixels with noise, 6 + 3 a class."""
  folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
  colours = {'cat': (200, 40, 40), 'dog': (40, 200, 40), 'fox': (40, 40, 200)}
  for split, count in (('train', 6), ('test', 3)):
    for name, colour in colours.items():
      (folder / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = np.clip(np.array(colour) + rng.normal(0, 20, (40, 48, 3)), 0, 255)
        path = folder / split / name / f'{i}.jpg'
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
  return folder


@pytest.fixture
def mesh():
  """A context with a mesh of the given layout over the first devices."""

  def make(data, fsdp, tensor):
    count = data * fsdp * tensor
    return jax.set_mesh(
      jax.make_mesh((data, fsdp, tensor), sharding.AXES, devices=jax.devices()[:count])
    )

  return make
