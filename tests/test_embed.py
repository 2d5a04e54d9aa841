"""Tables of features: what is in them, on any devices, and after any kill."""

import json
import os
import pathlib
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

import vit_jax
from tests import runs, toys
from vit_jax import predict
from vit_jax.core import faults
from vit_jax.probing import features
from vit_jax.probing import table as table_lib
from vit_jax.probing.features import several
from vit_jax.probing.table import Table

FEATURES = 'class,mean@0,class+mean@-1,pixels@8'


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
  """A checkpoint without a head, and 18 + 9 images."""
  folder = tmp_path_factory.mktemp('embed')
  toys.toy(folder / 'data')
  vit_jax.save(toys.headless(depth=2), folder / 'model', 'transformers')
  return folder


@pytest.fixture
def small(monkeypatch):
  """Parts of eight examples."""
  monkeypatch.setattr(table_lib, 'PART', 8)


def arguments(toy, out, *more):
  return toy / 'model', toy / 'data', f'--out={out}', '--batch_size=4', *more


@pytest.fixture(scope='module')
def whole(toy):
  """A table that nothing interrupted, made by a process of its own."""
  out = toy / 'whole.parquet'
  done = command(toy, out, f'--features={FEATURES}')
  done = subprocess.run(**done, capture_output=True)
  assert done.returncode == 0, done.stderr
  return out


def command(toy, out, *more, devices=1, fault=''):
  """The command, with parts of eight examples."""
  code = (
    'import sys, runpy; from vit_jax.probing import table; table.PART = 8; '
    'sys.argv = ["vit_jax.embed", *sys.argv[1:]]; '
    'runpy.run_module("vit_jax.embed", run_name="__main__")'
  )
  env = {faults.VARIABLE: fault} if fault else {}
  return runs.python('-c', code, *arguments(toy, out, *more), devices=devices, env=env)


def test_features_are_those_of_the_model(toy, whole):
  found, model = Table(whole), vit_jax.load(toy / 'model')
  assert found.splits == ('train', 'test')
  assert found.classes == ('cat', 'dog', 'fox')
  assert found.features == tuple(FEATURES.split(','))
  for split, count in (('train', 18), ('test', 9)):
    rows = found.rows(split)
    names = sorted(str(path) for path in (toy / 'data' / split).rglob('*.png'))
    assert rows.names == names
    assert rows.index.tolist() == list(range(count))
    assert rows.labels.tolist() == np.repeat([0, 1, 2], count // 3).tolist()
    images = np.stack(
      [predict.prepare(pathlib.Path(name).read_bytes(), model.card, channels=3) for name in names]
    )
    out = jax.jit(lambda model, x: model.features(x))(model, jnp.asarray(images))
    encoded, block = out['encoded'], model.encoder.norm(out['block00'])
    want = {
      'class': encoded[:, 0], 'mean@0': block[:, 1:].mean(1),
      'class+mean@-1': np.concatenate([encoded[:, 0], encoded[:, 1:].mean(1)], 1),
      # The mean of 2 by 2 pixels, weighted as a triangle of twice that width.
      'pixels@8': jax.image.resize(images, (count, 8, 8, 3), 'linear').reshape(count, -1),
    }  # fmt: skip
    for name, values in want.items():
      np.testing.assert_allclose(rows.features[name], values, atol=1e-5, err_msg=name)
  file = pq.ParquetFile(whole)
  sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
  assert sizes == [8, 8, 2, 8, 1]
  card = found.card
  assert card['preprocessing']['size'] == [16, 16]
  assert card['features']['class+mean@-1'] == 32
  assert card['digest'].startswith('sha256:')
  assert not (whole.parent / 'whole.parquet.parts').exists()


def test_the_digest_is_of_the_parameters_whatever_the_dialect(toy, typed, tmp_path, small, whole):
  vit_jax.save(vit_jax.load(toy / 'model'), tmp_path / 'other', 'timm')
  out = tmp_path / 'f.parquet'
  status, _, err = typed('vit_jax.embed', tmp_path / 'other', toy / 'data', f'--out={out}')
  assert status == 0, err
  assert Table(out).card['digest'] == Table(whole).card['digest']
  assert Table(out).card['dialect'] == 'timm'


@pytest.mark.slow
@pytest.mark.parametrize(
  'place',
  [
    'rename */f.parquet.parts/00-000000.parquet', 'rename */f.parquet.parts/00-000001.parquet',
    'rename */f.parquet.parts/01-000001.parquet', 'rename */f.parquet', 'rmdir */f.parquet.parts',
  ],
)  # fmt: skip
def test_killed_it_goes_on_and_ends_as_if_nothing_had_been(toy, tmp_path, whole, place):
  out = tmp_path / 'f.parquet'
  run = lambda **more: subprocess.run(  # noqa: E731
    **command(toy, out, f'--features={FEATURES}', **more), capture_output=True
  )
  assert run(fault=f'kill before {place}').returncode == -signal.SIGKILL
  left = tmp_path / 'f.parquet.parts'
  written = {path.name: path.stat().st_mtime_ns for path in left.glob('*.parquet')}
  done = run()
  assert done.returncode == 0, done.stderr
  assert out.read_bytes() == whole.read_bytes()
  assert [path.name for path in tmp_path.iterdir()] == ['f.parquet']
  if written and 'rmdir' not in place:
    assert f'{len(written)} parts of 8 are there' in done.stderr


def test_killed_in_this_process_no_example_is_computed_twice(toy, tmp_path, small, whole, typed):
  """What a kill leaves is kept: the parts that are whole are not written again."""
  out, flags = tmp_path / 'f.parquet', f'--features={FEATURES}'

  def stop(*_):
    raise runs.CutOff

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(faults.VARIABLE, 'kill before rename */f.parquet.parts/00-000002.parquet')
    patch.setattr(os, 'kill', stop)
    with pytest.raises(runs.CutOff):
      typed('vit_jax.embed', *arguments(toy, out, flags))
  left = tmp_path / 'f.parquet.parts'
  assert {path.name for path in left.glob('[0-9]*')} == {'00-000000.parquet', '00-000001.parquet'}
  seen = []
  with pytest.MonkeyPatch.context() as patch:
    read = table_lib.Embedded.joined.__func__

    def counted(cls, parts):
      seen.extend(n for part in parts for n in part.names)
      return read(cls, parts)

    patch.setattr(table_lib.Embedded, 'joined', classmethod(counted))
    status, _, err = typed('vit_jax.embed', *arguments(toy, out, flags))
  assert status == 0, err
  assert 'continuing' in err
  assert len({*seen}) == 2 + 9  # of 18 + 9
  one, other = Table(out), Table(whole)
  for split in ('train', 'test'):
    a, b = one.rows(split), other.rows(split)
    assert (a.names, a.labels.tolist()) == (b.names, b.labels.tolist())
    for name in one.features:
      np.testing.assert_allclose(a.features[name], b.features[name], atol=1e-5)
  status, _, err = typed('vit_jax.embed', *arguments(toy, out, flags))
  assert (status, 'is complete: there is nothing to do' in err) == (0, True)


def test_eight_devices_find_the_same(toy, tmp_path, small, whole, typed):
  """This process has eight; batches of four become batches of eight."""
  out = tmp_path / 'f.parquet'
  status, _, err = typed('vit_jax.embed', *arguments(toy, out, f'--features={FEATURES}'))
  assert status == 0, err
  assert Table(out).card['batch_size'] == 8
  same(out, whole)


def same(out, whole):
  one, other = Table(out), Table(whole)
  for split in ('train', 'test'):
    a, b = one.rows(split), other.rows(split)
    assert (a.names, a.index.tolist()) == (b.names, b.index.tolist())
    for name in one.features:
      np.testing.assert_allclose(a.features[name], b.features[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_find_the_same(toy, tmp_path, whole):
  out = tmp_path / 'f.parquet'
  make = lambda _, *found: command(toy, out, f'--features={FEATURES}', *found, devices=2)  # noqa: E731
  with runs.started(*runs.several(2, make)) as processes:
    runs.finish(processes)
  same(out, whole)


def test_half_precision_and_what_does_not_fit_into_it(toy, tmp_path, small, whole, typed):
  out = tmp_path / 'half.parquet'
  status, _, err = typed('vit_jax.embed', *arguments(toy, out, '--dtype=float16'))
  assert status == 0, err
  found = Table(out).rows('test', ['pooled']).features['pooled']
  assert found.dtype == np.float16
  want = Table(whole).rows('test', ['class']).features['class']
  np.testing.assert_allclose(found, want, atol=2e-3)
  parts = table_lib._Parts.__new__(table_lib._Parts)
  parts.card = {'dtype': 'float16'}
  with pytest.raises(vit_jax.RunError, match=r'up to 7e\+04, too large for float16'):
    parts._cast('class', np.array([7e4, 1]))
  parts.card = {'dtype': 'float32'}
  with pytest.raises(vit_jax.RunError, match="features 'class' have values that are not finite"):
    parts._cast('class', np.array([np.nan]))


def test_images_that_cannot_be_used(toy, tmp_path, small, typed):
  toys.toy(tmp_path / 'data')
  (tmp_path / 'data/train/dog/2.png').write_bytes(b'\x89PNG and nothing')
  paths = toy / 'model', tmp_path / 'data', f'--out={tmp_path}/f.parquet'
  status, _, err = typed('vit_jax.embed', *paths)
  assert status == 1
  assert 'dog/2.png' in err
  status, _, err = typed('vit_jax.embed', *paths, '--on_corrupt=skip')
  assert status == 0, err
  rows = Table(tmp_path / 'f.parquet').rows('train')
  assert 8 not in rows.index
  assert len(rows.index) == 17


def test_directories_of_classes_without_splits(toy, tmp_path, small, typed):
  out = tmp_path / 'f.parquet'
  folder = toy / 'data' / 'test'
  status, _, err = typed('vit_jax.embed', toy / 'model', folder, f'--out={out}', '--split=.')
  assert status == 0, err
  assert len(Table(out).rows('.').index) == 9
  out.unlink()
  status, _, err = typed('vit_jax.embed', toy / 'model', folder, f'--out={out}')
  assert status == 0, err
  assert len(Table(out).rows('all').index) == 9
  # Without one to judge by, a fold is.
  status, said, err = typed('vit_jax.probe', toy / 'model', folder, '--methods=knn')
  assert status == 0, err
  assert 'of all without fold 1/5' in said
  assert 'of fold 1/5 of all' in said


def test_pooled_features_are_what_the_head_reads():
  """Of a hidden layer before it, that is what it gives."""
  model = vit_jax.create(
    'mu/4', image_size=(8, 8), depth=1, width=8, mlp_dim=8, num_heads=1, num_classes=3,
    representation_size=5,
  )  # fmt: skip
  model.head.kernel[...] = np.random.default_rng(0).normal(size=(5, 3))
  images = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
  found = features.compute(model, features.several('pooled,output'), images)
  assert found['pooled'].shape == (2, 5)
  want = found['pooled'] @ model.head.kernel[...] + model.head.bias[...]
  np.testing.assert_allclose(found['output'], want, atol=1e-5)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--features=colour'], "unknown features 'colour': choose from pooled, class"),
    (['--features=class@7'], 'features class@7: the model has the blocks 0 to 1'),
    (['--features=pooled@1'], 'pooled is of the whole model, and of no block'),
    (['--features=class,class'], "features 'class' are asked for twice"),
    (['--features=class;mean'], "features 'class;mean' cannot be read: write names such as"),
    (['--features=patches', '--most=1e-6'], '27 examples of patches (64) in float32, 6.91e-06 GB: '
     'more than --most=1e-06 GB'),
    (['--out=features.csv'], '--out=features.csv: the table is a Parquet file'),
    (['--split=train,dev'], 'no directory'),
    (['--batch_size=0'], '--batch_size=0 must be at least 1'),
    (['--colour=red'], 'unknown argument --colour'),
    (['--config.data.split=a'], 'changes a configuration, and'),
    (['--config.modle.depth=2'], '--config.modle.depth: of a configuration this command takes'),
  ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(toy, tmp_path, typed, flags, message):
  status, _, err = typed(
    'vit_jax.embed', toy / 'model', toy / 'data', f'--out={tmp_path}/f.parquet', *flags
  )
  assert status == 1
  errors = [line for line in err.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1
  assert message in errors[0]
  assert not list(tmp_path.iterdir())


def test_a_table_of_another_command_is_kept(toy, tmp_path, small, typed):
  out = tmp_path / 'f.parquet'
  assert typed('vit_jax.embed', *arguments(toy, out))[0] == 0
  before = out.read_bytes()
  status, _, err = typed('vit_jax.embed', *arguments(toy, out, '--features=class'))
  assert status == 1
  assert 'is of another command: there features.class is None, and now 16' in err
  assert out.read_bytes() == before
  status, _, err = typed('vit_jax.embed', *arguments(toy, out, '--features=class', '--overwrite'))
  assert status == 0, err
  assert Table(out).features == ('class',)


def test_what_is_no_table(tmp_path, whole):
  with pytest.raises(vit_jax.RunError, match='there is no file'):
    Table(tmp_path / 'nowhere.parquet')
  (tmp_path / 'text.parquet').write_text('no')
  with pytest.raises(vit_jax.RunError, match='is damaged, or no Parquet file'):
    Table(tmp_path / 'text.parquet')
  pq.write_table(pq.read_table(whole).replace_schema_metadata(None), tmp_path / 'bare.parquet')
  with pytest.raises(vit_jax.RunError, match='has no card'):
    Table(tmp_path / 'bare.parquet')
  with pytest.raises(vit_jax.RunError, match="has no split 'dev': choose from train, test"):
    Table(whole).rows('dev')
  with pytest.raises(vit_jax.RunError, match="has no features 'mean'"):
    Table(whole).rows('test', ['mean'])


def test_a_model_without_a_class_token_says_what_it_has(tmp_path, toy, typed):
  vit_jax.save(toys.headless(pool='mean'), tmp_path / 'model.npz', 'big_vision')
  flags = (tmp_path / 'model.npz', toy / 'data', f'--out={tmp_path}/f.parquet')
  for name in ('class', 'class@0'):
    status, _, err = typed('vit_jax.embed', *flags, f'--features={name}')
    assert status == 1
    assert "has no features 'class': it has pooled, patches, output, mean and pixels" in err


def test_names_are_read_as_they_are_written():
  feature, other = several('random:class+mean@-2, pixels@28')
  assert feature.random
  assert [tuple(part) for part in feature.parts] == [('class', None), ('mean', -2)]
  assert [tuple(part) for part in other.parts] == [('pixels', 28)]
  assert json.dumps(feature.name) == '"random:class+mean@-2"'
