"""Whole runs in tests: started as commands, cut off at named places, and compared."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import compiling
from vit_jax.core import faults, paths
from vit_jax.evaluate import restore
from vit_jax.nn import sharding
from vit_jax.train import train

ROOT = pathlib.Path(__file__).parent.parent
TIMES = ('images_per_second',)


def lines(workdir):
  """metrics.jsonl, less what depends on the clock."""
  text = (paths.at(workdir) / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  timed = lambda name: name in TIMES or name.startswith('hosts/')  # noqa: E731
  return [{k: v for k, v in row.items() if not timed(k)} for row in rows]


def leaves(workdir, mesh='data'):
  with jax.set_mesh(sharding.make_mesh(mesh)):
    _, state = restore(str(workdir))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def checkpoints(workdir):
  """Names of what is in the directory of checkpoints."""
  folder = paths.at(workdir) / 'checkpoints'
  return {path.name for path in folder.iterdir()} if folder.exists() else set()


def assert_bit_identical(a, b):
  for x, y in zip(leaves(a), leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)
  assert lines(a) == lines(b)


def assert_close(a, b):
  for x, y in zip(lines(a), lines(b), strict=True):
    assert x == pytest.approx(y, rel=1e-3, abs=1e-4)


def command(
  workdir, config, *flags, devices=1, module='train', fault='', first='', slices=0, configs='',
  env=None,
):  # fmt: skip
  """A command line and environment; `config` is written to a file that returns it.

  `first` is run before that. The command is on so many `slices`, if there are any. The file is
  called like `configs`, where `workdir` is in a store.
  """
  path = pathlib.Path(configs or workdir).with_suffix('.py')
  path.write_text(
    f'import json\nfrom vit_jax.config import complete\n{first}\n'
    f'def get_config():\n  return complete(json.loads({config.to_json()!r}))\n'
  )
  env = {
    **os.environ,
    **(env or {}),
    'XLA_FLAGS': compiling.flags(devices),
    'PYTHONPATH': str(ROOT),
  }
  if fault:
    env[faults.VARIABLE] = fault
  pretended = ['tests.slices', str(slices)] if slices else []
  args = [*pretended, f'vit_jax.{module}', f'--config={path}', f'--workdir={workdir}', *flags]
  return dict(args=[sys.executable, '-m', *args], env=env, text=True, cwd=ROOT)


def run(workdir, config, *flags, **kwargs):
  return subprocess.run(**command(workdir, config, *flags, **kwargs), capture_output=True)


def start(workdir, config, *flags, **kwargs):
  return subprocess.Popen(
    **command(workdir, config, *flags, **kwargs), stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )


def killed(workdir, config, place, *flags, **kwargs):
  """Runs a command that is killed at a place, for real."""
  process = run(workdir, config, *flags, fault=f'kill {place}', **kwargs)
  assert process.returncode == -9, (place, process.stdout, process.stderr)


class CutOff(BaseException):
  """Raised where a run in this process is cut off."""


def cut_off(workdir, config, place):
  """Trains in this process up to a place; saves that were begun come to their end."""

  def stop(*_):
    raise CutOff

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(faults.VARIABLE, f'kill {place}')
    patch.setattr(os, 'kill', stop)
    with pytest.raises(CutOff):
      train(config, str(workdir))


def with_fault(workdir, config, fault, **options):
  """Trains in this process with a fault."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(faults.VARIABLE, fault)
    return train(config, str(workdir), **options)
