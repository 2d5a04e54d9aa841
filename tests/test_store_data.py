"""Data in object stores: every source gives there what it gives in a local directory."""

import json
import pickle
import subprocess
import sys
import textwrap

import fsspec
import numpy as np
import pytest

from tests import emulators, test_coco, test_parquet, test_tar, test_tfds, toys
from vit_jax.convert import files as weights
from vit_jax.core import paths, stores
from vit_jax.core.errors import RunError
from vit_jax.data.sources import open_split
from vit_jax.data.sources.coco import Coco
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.manifest import Manifest
from vit_jax.data.sources.paired import Paired
from vit_jax.data.sources.parquet import Parquet
from vit_jax.data.sources.tar import Tar
from vit_jax.scaling import table


@pytest.fixture
def there():
  """A function that copies a local directory into a store, and gives its URL."""
  root = stores.parse('memory://bucket/data')

  def copy(folder):
    stores.delete(root)
    paths.upload(folder, root)
    return str(root)

  yield copy
  fsspec.filesystem('memory').rm('/bucket', recursive=True)  # it has directories, too


def everything(source, start):
  """What a source gives, without where it is."""
  plain = lambda text: text.replace(f'{start}/', '').replace(start, '')  # noqa: E731
  examples = [
    {name: plain(value) if isinstance(value, str) else value for name, value in each.items()}
    for each in source.read(range(len(source)))
  ]
  return examples, dict(source.fields), source.labels, [plain(s) for s in source.summary()]


def same(one, other):
  """Whether two trees of values are the same."""
  if isinstance(one, dict):
    return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
  if isinstance(one, list | tuple):
    return len(one) == len(other) and all(map(same, one, other))
  return test_parquet.equal(one, other)


def folder(root):
  toys.toy(root, 3, 2)
  return lambda where: Folder(where)


def manifest(root):
  toys.toy(root, 2, 1)
  (root / 'list').mkdir()
  names = sorted(str(path.relative_to(root)) for path in (root / 'train').rglob('*.png'))
  (root / 'list/t.csv').write_text('image,label\n' + ''.join(f'{n},{n[6:9]}\n' for n in names))
  return lambda where: Manifest(file=f'{where}/list/t.csv', root=where)


def paired(root):
  for name in 'ab':
    for kind in ('images', 'maps'):
      (root / kind / 'train').mkdir(parents=True, exist_ok=True)
      data = toys.encoded(np.full((4, 4), ord(name) - 97, np.uint8), 'PNG')
      (root / kind / 'train' / f'{name}.png').write_bytes(data)
  return lambda where: Paired(dir=where, fields={'image': 'images', 'map': 'maps'},
                              names={'map': 'one,two'})  # fmt: skip


def parquet(root):
  test_parquet.pets(root / 'train-00000-of-00002.parquet', 0, 4, row_group_size=2)
  test_parquet.pets(root / 'train-00001-of-00002.parquet', 4, 3, row_group_size=2)
  return lambda where: Parquet(dir=where)


def coco(root):
  test_coco.make(root)
  return lambda where: Coco(dir=where)


def tar(root):
  test_tar.shards(root)
  open_split(Tar(shards=str(root)), 'train')  # an index comes along, of files of other times
  return lambda where: Tar(shards=where)


SOURCES = [folder, manifest, paired, parquet, coco, tar]


@pytest.mark.parametrize('make', SOURCES)
def test_a_store_is_the_directory(tmp_path, there, make):
  config, split = make(tmp_path), 'train2017' if make is coco else 'train'
  url = there(tmp_path)
  here = everything(open_split(config(str(tmp_path)), split), str(tmp_path))
  source = open_split(config(url), split)
  assert same(everything(source, url), here)
  assert len(here[0]) > 1
  again = pickle.loads(pickle.dumps(source))  # as a worker process gets it
  assert same(everything(again, url), here)


def test_what_is_not_there(tmp_path, there):
  toys.toy(tmp_path, 2, 1)
  url = there(tmp_path)
  with pytest.raises(RunError, match=f'no directory {url}/val: .* it has test, train'):
    open_split(Folder(url), 'val')
  source = open_split(Folder(url), 'train')
  stores.parse(f'{url}/train/cat/0.png').unlink()
  with pytest.raises(RunError, match=r'cannot read .*train/cat/0.png: there is no such object'):
    source[0]
  with pytest.raises(RunError, match='zip files are not read in place: unpack it'):
    open_split(Folder(f'{url}/photos.zip'), 'train')


def test_weights_and_tables(tmp_path, there):
  arrays = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.ones(4, np.float32)}
  weights.write_safetensors(tmp_path / 'model.safetensors', arrays, {})
  np.savez(tmp_path / 'model.npz', **arrays)
  (tmp_path / 't.csv').write_text('loss,images\n1,2\n3,4\n')
  (tmp_path / 't.jsonl').write_text('{"loss": 1, "images": 2}\n{"loss": 3, "images": 4}\n')
  root = paths.at(there(tmp_path))
  for name in ('model.safetensors', 'model.npz'):
    found = weights.read(root / name)
    assert {k: np.asarray(v).tolist() for k, v in found.items()} == {
      k: v.tolist() for k, v in arrays.items()
    }
  for name in ('t.csv', 't.jsonl'):
    assert table.read(f'{root}/{name}')['images'].tolist() == [2, 4]
  with paths.target(root / 'new', overwrite=False) as place:
    place.mkdir()
    weights.write_npz(place / 'x.npz', arrays)
  assert sorted(weights.read(root / 'new' / 'x.npz')) == ['a', 'b']
  with pytest.raises(RunError, match='already exists'), paths.target(root / 'new', overwrite=False):
    pass


@pytest.mark.slow
def test_on_real_servers(tmp_path):
  """All of them at gs:// and s3://, read by another process, and ArrayRecord at gs://."""
  for make in SOURCES:
    (tmp_path / make.__name__).mkdir()
    make(tmp_path / make.__name__)
  test_tfds.make(tmp_path / 'tfds')
  code = """
    import json, sys
    from tests import test_store_data as own
    from vit_jax.core import paths
    from vit_jax.core.errors import RunError
    from vit_jax.data.sources import open_split
    from vit_jax.data.sources.tfds import Tfds
    local, out = paths.at(sys.argv[1]), {}
    for scheme in ('gs', 's3'):
      root = paths.at(f'{scheme}://bucket/data')
      paths.upload(local, root)
      for make in own.SOURCES:
        name, split = make.__name__, 'train2017' if make is own.coco else 'train'
        config = make(paths.at(sys.argv[2]) / scheme / name)
        here, url = str(local / name), str(root / name)
        found = own.everything(open_split(config(url), split), url)
        want = own.everything(open_split(config(here), split), here)
        out[f'{scheme} {name}'] = bool(own.same(found, want)) and len(want[0])
      try:
        found = open_split(Tfds(dataset='pets', dir=str(root / 'tfds')), 'train')
        want = open_split(Tfds(dataset='pets', dir=str(local / 'tfds')), 'train')
        out[f'{scheme} tfds'] = own.same(found.read([3, 19, 0]), want.read([3, 19, 0]))
      except RunError as error:
        out[f'{scheme} tfds'] = str(error)
    print(json.dumps(out))
  """
  for name in (f'{scheme}/{make.__name__}' for scheme in ('gs', 's3') for make in SOURCES):
    (tmp_path / 'scratch' / name).mkdir(parents=True)
  with emulators.stores() as changes:
    done = subprocess.run(
      [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code), str(tmp_path),
       str(tmp_path / 'scratch')],
      env=emulators.own(changes), text=True, capture_output=True, timeout=300,
    )  # fmt: skip
  assert not done.returncode, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert 'ArrayRecord files are read from gs:// alone' in found.pop('s3 tfds')
  assert found.pop('gs tfds') is True
  assert all(count > 1 for count in found.values()), found
  assert len(found) == 12
