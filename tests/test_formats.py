"""Runs and models of every earlier format go on as with the version that made them.

`python -m tests.golden.make_runs` made them. What is restored is compared bit for bit everywhere,
what is computed on the kind of machine and with the version of XLA that made them: others round
otherwise.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import typing

import jaxlib
import numpy as np
import pytest

import vit_jax
from tests import compiling
from tests.conftest import ROOT
from tests.golden import make_runs
from vit_jax.architecture import TwoTowersArchitecture
from vit_jax.architecture.card import Card
from vit_jax.checkpoints import formats
from vit_jax.convert import adapt
from vit_jax.core.errors import RunError
from vit_jax.models.upernet import UPerNetConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import tree
from vit_jax.training import config as config_lib
from vit_jax.training.workdir import Workdir

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'runs'
FORMATS = sorted(os.listdir(GOLDEN))
SAVED = sorted(f'{path.parent.name}/{path.name}' for path in GOLDEN.glob('*/saved_*'))


def test_every_format_has_its_runs():
  assert {*FORMATS} >= {str(i) for i in range(formats.FORMAT)}
  assert runs_of('0') == ['fork', 'lanes', 'plain', 'started', 'trunk', 'unrolled']
  for path in GOLDEN.glob('*/*'):
    assert (path / 'expected.json').exists()


@pytest.fixture
def place(tmp_path, data_dir, monkeypatch):
  """A directory in which golden runs may go on, with the data they name."""
  monkeypatch.chdir(tmp_path)
  os.symlink(data_dir, tmp_path / 'data')
  return tmp_path


def runs_of(made):
  """Names of the golden runs of a format."""
  return sorted(path.parent.name for path in (GOLDEN / made).glob('*/metrics.jsonl'))


def record(folder):
  return json.loads((folder / 'expected.json').read_text())


def brought(place, made, names):
  """Copies golden runs of a format; what is to come of each."""
  for name in names:
    shutil.copytree(GOLDEN / made / name, place / name)
  return {name: record(place / name) for name in names}


@pytest.mark.parametrize('made', FORMATS)
def test_golden_runs_are_read(place, made):
  """Their records are those of the same configurations today, and their arrays are there."""
  for name, expected in brought(place, made, runs_of(made)).items():
    config, _ = config_lib.started(make_runs.configuration(name), ())
    assert not Workdir(place / name).changes(config_lib.to_dict(config)), name
    step = expected['step']
    restored = make_runs.arrays(place / name / 'checkpoints', step)
    digests = {n: make_runs.digest(a) for n, a in restored.items()}
    assert digests == expected['arrays'][str(step)], name


@pytest.mark.parametrize(
  ('made', 'names'),
  [
    (FORMATS[0], ('lanes', 'plain')), (FORMATS[-1], ('fork', 'grouped')),
    *(pytest.param(made, None, marks=pytest.mark.slow) for made in FORMATS),
  ],
)  # fmt: skip
def test_golden_runs_go_on(place, made, names):
  """More than ten seconds: a process of their own, with the flags of XLA that made them.

  All that are named, or all of one format, in one process, for the sake of its start.
  """
  expected = brought(place, made, names or runs_of(made))
  (flags,) = {each['machine']['flags'] for each in expected.values()}
  if any(each['machine']['jaxlib'] != jaxlib.__version__ for each in expected.values()):
    flags = compiling.CPU  # other flags, other rounding
  env = {**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-m', 'tests.golden.go_on', 'out.json', *expected]
  done = subprocess.run(command, env=env, cwd=place, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads((place / 'out.json').read_text())
  for name, want in expected.items():
    lines = [json.loads(line) for line in (place / name / 'metrics.jsonl').read_text().splitlines()]
    for line in lines:
      line.pop('images_per_second', None)
    arrays = make_runs.arrays(place / name / 'checkpoints', want['total'])
    digests = {n: make_runs.digest(a) for n, a in arrays.items()}
    last = str(want['total'])
    want['arrays'][last] = {
      formats.array(int(made), n): digest for n, digest in want['arrays'][last].items()
    }
    assert digests.keys() == want['arrays'][str(want['total'])].keys(), name
    # What is reported since then is not compared.
    assert all(
      line.keys() >= other.keys() for line, other in zip(lines, want['lines'], strict=True)
    )
    lines = [
      {key: line[key] for key in other} for line, other in zip(lines, want['lines'], strict=True)
    ]
    if found['machine'] == want['machine']:
      assert lines == want['lines'], name
      assert digests == want['arrays'][str(want['total'])], name
      assert found[name] == want['metrics'], name
    for line, other in zip(lines, want['lines'], strict=True):
      for key, value in line.items():
        np.testing.assert_allclose(value, other[key], rtol=2e-2, atol=1e-3, err_msg=key)


def test_a_run_that_cannot_go_on_as_it_began_says_so(place):
  """Of format 7 with dropout, whose numbers were drawn otherwise; without, it is the same."""
  brought(place, '7', ['plain', 'sized'])
  (said,) = _after(place / 'plain', dropout=0.1)
  assert 'dropout draws other numbers' in said
  assert not _after(place / 'sized')


def _after(folder, **model):
  """What a run says of going on, with a model that was otherwise."""
  path = folder / 'config.json'
  stored = json.loads(path.read_text())
  stored['model'] |= model
  path.write_text(json.dumps(stored))
  return Workdir(folder).otherwise


@pytest.mark.parametrize('name', SAVED)
def test_a_golden_model_is_read(name):
  expected = json.loads((GOLDEN / name / 'expected.json').read_text())
  model = vit_jax.load(GOLDEN / name)
  assert {n: make_runs.digest(a) for n, a in tree.flatten(model).items()} == expected


def test_a_record_of_a_later_version_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'format': formats.FORMAT + 1}))
  with pytest.raises(RunError, match='knows formats up to'):
    Workdir(tmp_path).record()


def test_the_pyramid_of_upernet_had_no_name():
  """Of format 9, in which its layers were those of the model; other names are what they were."""
  config = UPerNetConfig(
    ViTConfig('', image_size=(8, 8), patch_size=2, width=8, depth=4, mlp_dim=8, num_heads=1), 2,
    channels=8, auxiliary_channels=8,
  )  # fmt: skip
  names = [*adapt.abstract(config.resolve())]
  assert sum(name.startswith('pyramid/') for name in names) == 7
  for before in ('model/', 'opt/mu/', ''):
    for name in names:
      old = before + name.removeprefix('pyramid/')
      assert formats.array(9, old) == before + name
      assert formats.array(formats.FORMAT, before + name) == before + name


def test_a_new_field_needs_a_migration():
  """Else runs of today would be continued with whatever its default will be."""
  models = {'two_towers=': TwoTowersArchitecture, 'card=': Card}  # of checkpoints
  names = sorted(fields(config_lib.Config))
  names += [name for path, cls in models.items() for name in sorted(fields(cls, path))]
  path = pathlib.Path(__file__).parent / 'golden' / 'fields.json'
  if os.environ.get('VIT_JAX_WRITE_GOLDEN'):
    path.write_text(json.dumps({'format': formats.FORMAT, 'fields': names}, indent=0) + '\n')
  known = json.loads(path.read_text())
  assert names == known['fields'], (
    'the fields of a configuration have changed: raise checkpoints.formats.FORMAT, write the '
    'migration, keep golden runs of the format before, then VIT_JAX_WRITE_GOLDEN=1'
  )
  assert known['format'] == formats.FORMAT


def fields(cls, path=''):
  """Dotted names of every field of a configuration, whatever is chosen in it."""
  types = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    registry = field.metadata.get('choice') or field.metadata.get('choices')
    if registry:
      for name, chosen in registry.items():
        yield from fields(chosen, f'{path}{field.name}={name}.')
    elif dataclasses.is_dataclass(types[field.name]):
      yield from fields(types[field.name], f'{path}{field.name}.')
    else:
      yield f'{path}{field.name}'
