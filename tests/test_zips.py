"""Zip files stand where directories do."""

import pickle
import shutil
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests import toys
from vit_jax.core import paths, zips
from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.sources import open_split
from vit_jax.data.sources.folder import Folder

DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


def pack(folder, target, how=STORED, start='', explicit=False):
  """A zip file of what is in a folder, by the standard library."""
  with zipfile.ZipFile(target, 'w', how) as archive:
    for path in sorted(folder.rglob('*')):
      if path.is_file() or explicit:
        archive.write(path, f'{start}{path.relative_to(folder)}')
  return target


def write(target, members, how=STORED):
  with zipfile.ZipFile(target, 'w', how) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return target


@pytest.fixture
def folder(tmp_path):
  root = toys.toy(tmp_path / 'toy', 3, 2)
  deep = root / 'train' / 'cat' / 'b-c' / 'd'
  deep.mkdir(parents=True)
  shutil.copy(root / 'train' / 'dog' / '0.png', deep / 'unknown')
  shutil.copy(root / 'train' / 'dog' / '1.png', root / 'train' / 'cat' / 'b.png')
  shutil.copytree(root / 'train' / 'dog', root / 'train' / 'été')
  (root / 'train' / 'cat' / 'notes.txt').write_text('a cat')
  (root / 'train' / 'hen').mkdir()
  return root


def everything(dir_, split='train'):
  """What a folder gives, without where it is."""
  source = open_split(Folder(str(dir_)), split)
  start = f'{dir_}/'
  examples = [{**e, 'name': e['name'].removeprefix(start)} for e in source.read(range(len(source)))]
  return examples, source.fields, source.labels, [s.replace(start, '') for s in source.summary()]


@pytest.mark.parametrize('how', [STORED, DEFLATED])
def test_a_zip_is_the_directory(folder, tmp_path, how):
  archive = pack(folder, tmp_path / 'toy.ZIP', how, explicit=True)
  for split in ('train', 'test'):
    assert everything(archive, split) == everything(folder, split)
  inner = pack(tmp_path, tmp_path / 'all.zip', how, explicit=True) / 'toy'
  assert everything(inner) == everything(folder)
  assert len(everything(folder)[0]) == 14


def test_paths_are_as_in_a_directory(folder, tmp_path):
  archive = paths.inside(pack(folder, tmp_path / 'toy.zip'))
  assert isinstance(archive, paths.ZipPath)
  shutil.rmtree(folder / 'train' / 'hen')  # it is not in the archive
  for real in (folder, *folder.rglob('*')):
    part = str(real.relative_to(folder))
    path = archive / part
    assert path == paths.inside(f'{archive}/{part}'.removesuffix('/.'))
    assert (path.exists(), path.is_dir(), path.is_file()) == (True, real.is_dir(), real.is_file())
    if part != '.':
      assert (path.name, path.suffix) == (real.name, real.suffix)
      assert (path / '..', path.parent / real.name) == (path.parent, path)
    if real.is_dir():
      found = [(e.name, e.is_dir(), e.is_file(), e.is_symlink()) for e in paths.entries(path)]
      assert found == [
        (e.name, e.is_dir(), e.is_file(), e.is_symlink()) for e in paths.entries(real)
      ]
      assert [e.path for e in paths.entries(path)] == [f'{path}/{name}' for name, *_ in found]
      with pytest.raises(OSError, match='Is a directory'):
        path.read_bytes()
    else:
      assert path.read_bytes() == real.read_bytes()
      assert paths.head(path, 5) == real.read_bytes()[:5]
  for name in ('', 'train/co', 'train/cat/0.png/x', '../toy/train', 'nothing'):
    assert (archive / name).exists() == (not name)
  assert (archive.name, archive.suffix, archive.parent) == ('toy.zip', '.zip', archive)
  assert paths.entries(archive / 'nothing') == []
  assert paths.head(archive / 'nothing', 5) == b''
  with pytest.raises(RunError, match=r'there is no file .*toy\.zip/nothing'):
    paths.read_text(archive / 'nothing')
  (tmp_path / 'a.zip').mkdir()
  for text in ('a.zip', 'a.zip/b', 'no.zip/b', 'b'):
    assert paths.inside(tmp_path / text) == tmp_path / text


def test_threads_and_pickles(folder, tmp_path):
  archive = pack(folder, tmp_path / 'toy.zip', DEFLATED)
  want = everything(folder)[0]
  source = pickle.loads(pickle.dumps(open_split(Folder(str(archive)), 'train')))
  zips._open.clear()  # as in another process
  assert len(pickle.dumps(paths.inside(archive))) < 200
  places = np.random.default_rng(0).integers(0, len(source), 500).tolist()
  with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(source.__getitem__, places))
  assert [e['image'] for e in found] == [want[i]['image'] for i in places]
  assert len(zips._open) == 1


def test_an_archive_that_changes_is_read_again(tmp_path):
  archive = write(tmp_path / 'a.zip', {'a': b'one'})
  path = paths.inside(archive / 'a')
  assert path.read_bytes() == b'one'
  write(tmp_path / 'b.zip', {'a': b'two', 'b': b''}).replace(archive)
  assert path.read_bytes() == b'two'
  archive.unlink()
  with pytest.raises(RunError, match=r'cannot read .*a\.zip/a: No such file'):
    files.read(str(path))


def test_the_only_directory_is_entered(folder, tmp_path):
  archive = pack(folder, tmp_path / 'toy.zip', start='photos/')
  with zipfile.ZipFile(archive, 'a') as more:
    more.writestr('__MACOSX/photos/train/cat/._0.png', b'')
    more.writestr('photos/train/cat/._0.png', b'')
    more.writestr('LICENSE', b'free')
  source = open_split(Folder(str(archive)), 'test')
  assert [e['image'] for e in source] == [e['image'] for e in everything(folder, 'test')[0]]
  assert source.summary()[-1] == f'{archive}: its only directory, photos, is entered'
  assert len(source.summary()) == 3
  with pytest.raises(RunError, match=r'no directory .*zip/photos/val: .* it has test, train'):
    open_split(Folder(str(archive)), 'val')
  only = pack(folder / 'train', tmp_path / 'only.zip', start='train/')
  with pytest.raises(RunError, match=r'no directory .*only\.zip/test: .* it has train'):
    open_split(Folder(str(only)), 'test')


def test_names_of_other_systems(tmp_path):
  names = {
    'mac': (3, 'train/é/1.png'.encode(), 0), 'old': (3, 'train/é/1.png'.encode('cp437'), 0),
    'windows': (0, b'train\\\xc3\xa9\\1.png', 0), 'odd': (3, b'.//train/./\xc3\xa9//1.png', 0x800),
  }  # fmt: skip
  for system, (number, name, flag) in names.items():
    info = zipfile.ZipInfo('x' * len(name))
    info.create_system = number
    archive = write(tmp_path / f'{system}.zip', {info: b'image'})
    data = archive.read_bytes().replace(b'x' * len(name), name)
    at = data.index(b'PK\1\2')
    data = data[: at + 8] + flag.to_bytes(2, 'little') + data[at + 10 :]
    archive.write_bytes(data)
    assert [e.name for e in paths.entries(paths.inside(archive / 'train'))] == ['é'], system
    assert files.read(f'{archive}/train/é/1.png') == b'image'


def test_links_are_passed_over(folder, tmp_path):
  link = zipfile.ZipInfo('train/cat/link.png')
  link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
  archive = pack(folder, tmp_path / 'toy.zip')
  with zipfile.ZipFile(archive, 'a') as more:
    more.writestr(link, '0.png')
  examples, _, _, said = everything(archive)
  assert len(examples) == 14
  assert 'broken links or special files (1)' in '\n'.join(said)
  with pytest.raises(RunError, match=r'link\.png is a link, and cannot be read in place: unpack'):
    files.read(f'{archive}/train/cat/link.png')
  assert not (paths.inside(archive) / link.filename).exists()


def damaged(data, change):
  """A zip of one file 'a.png' with some of its bytes changed."""
  at = data.index(b'PK\1\2')
  new = bytearray(data)
  change(new, at)
  return bytes(new)


def put(where, value):
  def change(data, at):
    data[at + where if where >= 0 else -where] = value

  return change


@pytest.mark.parametrize(
  ('how', 'change', 'message'),
  [
    (STORED, put(8, 1), r'a\.png is encrypted, and cannot be read in place: unpack .*a\.zip'),
    (STORED, put(10, 12), r'a\.png is compressed by method 12, not by deflate, and cannot be read'),
    (
      STORED,
      put(-40, 7),
      r'a\.png is damaged \(it is not what was packed\): copy or make',
    ),
    (DEFLATED, put(-35, 255), r'a\.png is damaged \(Error -3 while decompressing'),
    (DEFLATED, put(20, 1), r'a\.png is damaged \(Error -5 while decompressing'),
    (STORED, put(-1, 0), r'a\.png is damaged \(no file begins where one should\)'),
    (STORED, put(1, 0), r'a\.zip is damaged, or no zip file \(Bad magic number'),
    (
      STORED,
      lambda data, at: data.clear(),
      r'a\.zip is damaged, or no zip file \(File is not',
    ),
    (STORED, lambda data, at: data.__delitem__(slice(60, None)), r'damaged, or no zip file'),
  ],
)
def test_damage_is_said(tmp_path, how, change, message):
  archive = write(tmp_path / 'a.zip', {'a.png': bytes(range(200)) * 3}, how)
  archive.write_bytes(damaged(archive.read_bytes(), change))
  with pytest.raises(RunError, match=message) as caught:
    files.read(f'{archive}/a.png')
  assert '\n' not in str(caught.value)


def test_what_else_is_refused(tmp_path):
  inner = write(tmp_path / 'inner.zip', {'train/a/1.png': b''}).read_bytes()
  archive = write(tmp_path / 'a.zip', {'b/inner.zip': inner, 'c.zip/train/a/1.png': b''})
  with pytest.raises(RunError, match=r'a\.zip/b/inner\.zip is a zip file in another: unpack'):
    Folder(f'{archive}/b/inner.zip/').open('train')
  assert (paths.inside(archive) / 'c.zip' / 'train').is_dir()
  with pytest.raises(RunError, match=r'there is no directory .*a\.zip/d: set data\.source\.dir'):
    Folder(f'{archive}/d').open('train')
  with pytest.raises(RunError, match=r'no directory .*a\.zip/train: .* but it has b, c\.zip'):
    Folder(str(archive)).open('train')
  with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(archive, 'a') as more:
    more.writestr('b/inner.zip', b'')
  with pytest.raises(RunError, match=r'a\.zip has b/inner\.zip twice: make it again'):
    Folder(str(archive)).open('train')
  with pytest.raises(RunError, match=r'there is no directory .*not\.zip: set data\.source\.dir'):
    Folder(str(tmp_path / 'not.zip')).open('train')


def test_an_archive_that_may_not_be_read(tmp_path, monkeypatch):
  archive = write(tmp_path / 'a.zip', {'train/a/1.png': b''})

  def refuse(path, flags):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(zips.os, 'open', refuse)
  with pytest.raises(RunError, match=r'cannot read .*a\.zip: Permission denied'):
    Folder(str(archive)).open('train')
