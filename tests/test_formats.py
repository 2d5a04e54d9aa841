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
import typing

import numpy as np
import pytest

import vit_jax
from tests.golden import make_runs
from vit_jax.checkpoints import formats
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.training import config as config_lib
from vit_jax.training.loop import train
from vit_jax.training.workdir import Workdir

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'runs'
RUNS = [f'{f}/{n}' for f in sorted(os.listdir(GOLDEN)) for n in make_runs.RUNS]
SAVED = [f'{f}/{n}' for f in sorted(os.listdir(GOLDEN)) for n in ('saved_vit', 'saved_towers')]


def test_every_format_has_its_runs():
  assert {path.name for path in GOLDEN.iterdir()} >= {str(i) for i in range(formats.FORMAT)}
  for name in RUNS + SAVED:
    assert (GOLDEN / name / 'expected.json').exists()


@pytest.fixture
def place(tmp_path, data_dir, monkeypatch):
  """A directory in which golden runs may go on, with the data they name."""
  monkeypatch.chdir(tmp_path)
  os.symlink(data_dir, tmp_path / 'data')
  return tmp_path


@pytest.mark.parametrize('name', RUNS)
def test_a_golden_run_goes_on(place, name):
  folder = place / name.partition('/')[2]
  shutil.copytree(GOLDEN / name, folder)
  shutil.copytree(GOLDEN / pathlib.Path(name).parent / 'trunk', place / 'trunk', dirs_exist_ok=True)
  expected = json.loads((folder / 'expected.json').read_text())
  record = Workdir(folder).record()
  config = config_lib.complete(record)
  assert not Workdir(folder).changes(config_lib.to_dict(config))
  restored = make_runs.arrays(folder / 'checkpoints', expected['step'])
  assert {n: make_runs.digest(a) for n, a in restored.items()} == expected['arrays'][
    str(expected['step'])
  ]
  result = train(config, str(folder))
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  for line in lines:
    line.pop('images_per_second', None)
  digests = {
    n: make_runs.digest(a)
    for n, a in make_runs.arrays(folder / 'checkpoints', expected['total']).items()
  }
  assert digests.keys() == expected['arrays'][str(expected['total'])].keys()
  if make_runs.machine() == expected['machine']:
    assert lines == expected['lines']
    assert digests == expected['arrays'][str(expected['total'])]
    assert result['metrics'] == expected['metrics']
  for line, other in zip(lines, expected['lines'], strict=True):
    assert line.keys() == other.keys()
    for key, value in line.items():
      np.testing.assert_allclose(value, other[key], rtol=2e-2, atol=1e-3, err_msg=key)


@pytest.mark.parametrize('name', SAVED)
def test_a_golden_model_is_read(name):
  expected = json.loads((GOLDEN / name / 'expected.json').read_text())
  model = vit_jax.load(GOLDEN / name)
  assert {n: make_runs.digest(a) for n, a in tree.flatten(model).items()} == expected


def test_a_record_of_a_later_version_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'format': formats.FORMAT + 1}))
  with pytest.raises(RunError, match='knows formats up to'):
    Workdir(tmp_path).record()


def test_a_new_field_needs_a_migration():
  """Else runs of today would be continued with whatever its default will be."""
  names = sorted(fields(config_lib.Config))
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
