"""Tar files: whatever tar writes is read, in any order, by an index that is made once."""

import collections
import concurrent.futures
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from tests import toys
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import crops, tars
from vit_jax.data.examples import NoDataError, NoSplitError
from vit_jax.data.order import drawn
from vit_jax.data.pipeline import iterate, train_batches
from vit_jax.data.rows.columns import Columns, Image
from vit_jax.data.sources import Folder, open_split
from vit_jax.data.sources import found as any_source
from vit_jax.data.sources.guess import guess
from vit_jax.data.sources.tar import Tar, found
from vit_jax.data.views import View

FORMATS = {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}


def picture(number):
  return toys.encoded(np.full((6, 6, 3), number, np.uint8), 'PNG')


def write(path, members, form=tarfile.PAX_FORMAT, mode='w'):
  """A tar file, by the standard library, of what is given by name; texts are stored as UTF-8."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, mode, format=form) as tar:
    for name, data in members.items():
      info, data = tarfile.TarInfo(name), data.encode() if isinstance(data, str) else data
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def example(key, number):
  return {f'{key}.png': picture(number), f'{key}.txt': f'number {number}\n'}


def shards(root, each=4, count=3):
  for shard in range(count):
    numbers = range(each * shard, each * (shard + 1))
    members = [example(f'{number:04}', number) for number in numbers]
    write(root / f'train-{shard:03}.tar', {k: v for one in members for k, v in one.items()})
  return root


def opened(root, split='train', **given):
  return open_split(Tar(shards=str(root), **given), split)


def said(source):
  return '\n'.join(source.summary())


def values(source, *names):
  return [tuple(each[name] for name in names) for each in source.read(range(len(source)))]


def test_examples_are_what_was_packed(tmp_path):
  source = opened(shards(tmp_path))
  assert {name: field.kind for name, field in source.fields.items()} == {
    'image': 'image', 'text': 'text'
  }  # fmt: skip
  want = [(picture(i), f'number {i}') for i in range(12)]
  assert values(source, 'image', 'text') == want
  assert source[5]['name'] == f'{tmp_path}/train-001.tar/0005'
  assert values(pickle.loads(pickle.dumps(source)), 'image', 'text') == want
  assert '24 members of 3 files; their index is kept in ' in said(source)
  assert source.fields['image'].dtype == 'uint8'
  assert len(opened(tmp_path, 'fold 1/3 of train')) == 4


@pytest.mark.parametrize('form', FORMATS)
def test_all_formats_are_read_as_the_standard_library_does(tmp_path, form):
  """Names of any length and any letters; the library says where data are, and how many."""
  deep = '/'.join(['folder'] * 12) + '/' + 'k' * 90
  members = {f'{key}.{suffix}': f'{key} {suffix}'.encode() * 40
             for key in ('a', 'b/ä-é', './c', deep, *(['x' * 240] * (form != 'ustar')))
             for suffix in ('png', 'seg.PNG', 'txt')}  # fmt: skip
  path = write(tmp_path / 'x.tar', members, FORMATS[form])
  with path.open('rb') as file:
    shard = tars.scan(file, path.stat().st_size, str(path))
  names = [f'{shard.keys[int(key)]}.{shard.suffixes[suffix]}' for key, suffix, *_ in shard.members]
  with tarfile.open(path) as tar:
    want = [(m.name.removeprefix('./').lower(), m.offset_data, m.size) for m in tar if m.isfile()]
  places = shard.members[['start', 'size']].tolist()
  assert [(n, *place) for n, place in zip(names, places, strict=True)] == want
  assert not shard.passed


@pytest.mark.skipif(not shutil.which('tar'), reason='needs tar')
@pytest.mark.parametrize('form', ['v7', 'oldgnu', 'gnu', 'ustar', 'posix'])
def test_what_tar_itself_writes(tmp_path, form):
  """Directories are nothing; links, hidden files and such are passed over, and counted."""
  there = tmp_path / 'there'
  for name, data in (example('a/one', 1) | example('two', 2)).items():
    (there / name).parent.mkdir(parents=True, exist_ok=True)
    (there / name).write_bytes(data if isinstance(data, bytes) else data.encode())
  (there / '.DS_Store').write_bytes(b'x')
  (there / 'README').write_bytes(b'x')
  (there / 'three.txt').symlink_to('two.txt')
  os.link(there / 'two.txt', there / 'zwei.txt')
  path = tmp_path / 'made.tar'
  command = ['tar', f'--format={form}', '--sort=name', '-cf', str(path), '.']
  subprocess.run(command, cwd=there, check=True)
  source = opened(path)
  assert values(source, 'image', 'text') == [(picture(1), 'number 1'), (picture(2), 'number 2')]
  for part in ('hidden or system files (1)', 'files without a suffix (1)', 'links (2)'):
    assert part in said(source).split('passed over: ')[1]


def test_members_beyond_four_gigabytes(tmp_path):
  """The file has holes, and takes no room; sizes that octal digits cannot say."""
  for form, size in (('gnu', 9 * 2**30), ('pax', 9 * 2**30), ('ustar', 3 * 2**30)):
    path = write(tmp_path / f'{form}.tar', example('a', 1), FORMATS[form])
    with path.open('r+b') as file:
      file.seek(4 * 512)  # behind two members of a block each
      info = tarfile.TarInfo('video.mp4')
      info.size = size
      header = info.tobuf(FORMATS[form])
      file.write(header)
      file.seek(4 * 512 + len(header) + size)
      for name, data in {'b.png': picture(2), 'b.txt': b'two'}.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        file.write(info.tobuf() + data.ljust(512, b'\0'))
      file.write(bytes(1024))
    source = opened(path)
    assert values(source, 'image', 'text') == [(picture(1), 'number 1'), (picture(2), 'two')]
    assert 'members not used: 1 .mp4' in said(source)
    path.unlink()


def test_which_members_are_fields(tmp_path):
  members = {
    'a.jpg': picture(1), 'a.seg.png': picture(3), 'a.cls': '10', 'a.txt': 'first\n\nsecond \n',
    'a.json': json.dumps({'caption': 'one', 'alt': {'text': [' x', 'y', None]}}),
    'b.png': picture(2), 'b.seg.png': picture(4), 'b.cls': '9\n', 'b.txt': '',
    'b.json': json.dumps({'caption': None}),
  }  # fmt: skip
  write(tmp_path / 'train.tar', members)
  source = opened(tmp_path)
  assert values(source, 'image', 'label', 'text') == [
    (picture(1), 1, ('first', 'second')), (picture(2), 0, '')
  ]  # fmt: skip
  assert source.class_names == ('9', '10')
  assert list(source.labels) == [1, 0]
  assert 'members not used: 2 .seg.png, 2 .json' in said(source)
  source = opened(
    tmp_path, names={'map': '5', 'label': ','.join('abcdefghijk')},
    fields={'text': 'json/caption', 'other': 'text: json/alt/text', 'map': 'seg.png'},
  )  # fmt: skip
  assert list(source.fields) == ['image', 'label', 'text', 'other', 'map']
  assert values(source, 'map', 'label', 'text', 'other') == [
    (picture(3), 10, 'one', ('x', 'y')), (picture(4), 9, '', '')
  ]  # fmt: skip
  only = opened(tmp_path, fields={'image': 'png'})
  assert values(only, 'image') == [(picture(2),)]
  assert 'of 2 keys 1 lacks png: left out' in said(only)
  write(
    tmp_path / 'test.tar', {n: d for n, d in members.items() if n[2:] in ('jpg', 'png', 'json')}
  )
  assert values(opened(tmp_path, 'test'), 'text') == [('one',), ('',)]


def test_keys_without_an_image_or_a_text_are_counted(tmp_path):
  members = example('a', 1) | example('b', 2) | example('c', 3) | {'d.png': picture(4)}
  write(tmp_path / '0.tar', members | {'e.txt': 'nothing', 'f.txt': 'nothing'})
  write(tmp_path / '1.tar', {'g.png': picture(7), 'a.png': picture(8), 'a.txt': 'another a'})
  source = opened(tmp_path)
  assert [text for (text,) in values(source, 'text')] == ['number 1', 'number 2', 'number 3',
                                                          'another a']  # fmt: skip
  assert 'of 8 keys 2 lack png, 2 lack txt: left out' in said(source)
  write(tmp_path / 'x/train.tar', example('a', 1) | {'b.json': '{}'})
  with pytest.raises(RunError, match='no key has all of png, txt, json'):
    opened(tmp_path / 'x', fields={'other': 'text: json'})


def test_members_that_are_there_again_replace_the_first(tmp_path):
  """As when they are unpacked; they need not stand side by side, either."""
  path = write(tmp_path / 'train.tar', example('a', 1) | {'b.png': picture(2)})
  write(path, {'b.txt': 'two', 'a.txt': 'again'}, mode='a')
  source = opened(tmp_path)
  assert values(source, 'image', 'text') == [(picture(1), 'again'), (picture(2), 'two')]
  assert '1 members have the name of an earlier one, and replace it' in said(source)


@pytest.mark.parametrize('kept', [3 * 512 + 9, 3 * 512, 2 * 512 + 100, 4 * 512])
def test_a_file_that_is_cut_off(tmp_path, kept):
  """In a member, behind its header, in a header, between members: what is whole is there."""
  path = write(tmp_path / 'train.tar', {'a.png': picture(1), 'b.png': picture(2)})
  path.write_bytes(path.read_bytes()[:kept])
  source = opened(tmp_path)
  whole = [(picture(1),), (picture(2),)][: 2 if kept == 4 * 512 else 1]
  assert values(source, 'image') == whole
  assert '1 of 1 files have no mark of their end, and seem to be cut off' in said(source)


def test_any_start_continues_the_same_stream(tmp_path):
  """Batches of a run that goes on, with an index that is read again, are those of one run."""
  root = shards(tmp_path, 5)

  def stream(start, steps):
    source = opened(root)
    rows = Columns(View(crops.Affine(), size=(6, 6)), (Image(3),))
    order = drawn(source, 3, 'keyed')
    iterator = iterate(train_batches(rows, source, 4, range(4), order, 3), start=start, workers=0)
    out = [next(iterator) for _ in range(steps)]
    iterator.close()
    return {name: np.stack([batch[name] for batch in out]) for name in ('image', 'index')}

  whole, rest = stream(0, 9), stream(4, 5)
  for name in whole:
    np.testing.assert_array_equal(whole[name][4:], rest[name])
  assert len(np.unique(whole['index'])) == 15
  np.testing.assert_array_equal(whole['image'][0][:, 3, 3, 0], whole['index'][0])


# --- the index ---


@pytest.fixture
def scans(monkeypatch):
  """Counts how often each file is read through."""
  counts, scan = collections.Counter(), tars.scan

  def counted(file, length, path):
    counts[os.path.basename(path)] += 1
    return scan(file, length, path)

  monkeypatch.setattr(tars, 'scan', counted)
  return counts


def test_the_index_is_made_once_and_again_where_something_changed(tmp_path, scans):
  root = shards(tmp_path)
  first = opened(root)
  again = opened(root)
  assert scans == {'train-000.tar': 1, 'train-001.tar': 1, 'train-002.tar': 1}
  assert values(first, 'image', 'text') == values(again, 'image', 'text')
  assert first.summary() == again.summary()
  stat = os.stat(root / 'train-001.tar')
  write(root / 'train-001.tar', example('x', 99) | {'y.md': 'z' * 10_000})
  os.utime(root / 'train-001.tar', ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of another size
  assert [t for (t,) in values(opened(root), 'text')][3:6] == ['number 3', 'number 99', 'number 8']
  write(root / 'train-003.tar', example('y', 100))
  assert len(opened(root)) == 10
  os.utime(root / 'train-000.tar', ns=(1, 1))
  assert len(opened(root)) == 10
  assert scans == {f'train-00{i}.tar': count for i, count in enumerate((2, 2, 1, 1))}


def test_an_index_that_cannot_be_read_is_made_anew(tmp_path, scans):
  root = shards(tmp_path, count=1)
  opened(root)
  (file,) = (root / '.vit_jax').glob('*.npz')
  whole = file.read_bytes()
  for data in (b'', b'junk', whole[: len(whole) // 2], whole[:-30]):
    file.write_bytes(data)
    assert len(opened(root)) == 4
  assert scans['train-000.tar'] == 5
  assert file.read_bytes()[:2] == b'PK'
  tars._VERSION += 1
  try:
    opened(root)
  finally:
    tars._VERSION -= 1
  assert scans['train-000.tar'] == 6


def test_where_nothing_can_be_written(tmp_path, scans, monkeypatch):
  """The index is kept elsewhere; where that is impossible, too, it is made at every start."""
  root, elsewhere = shards(tmp_path / 'data', count=1), tmp_path / 'tmp'
  monkeypatch.setattr(paths, 'temporary', lambda name: elsewhere)
  locked = paths.locked

  def refused(path):
    if str(path).startswith(str(refusing)):
      raise PermissionError(13, 'Permission denied')
    return locked(path)

  monkeypatch.setattr(paths, 'locked', refused)
  refusing = root
  assert f'kept in {elsewhere}/tar-' in said(opened(root))
  assert len(opened(root)) == 4
  assert scans['train-000.tar'] == 1
  shutil.rmtree(elsewhere)
  refusing = tmp_path
  for _ in range(2):
    assert 'which cannot be kept, and is made at every start' in said(opened(root))
  assert scans['train-000.tar'] == 3


def test_several_at_once_make_one_index(tmp_path, scans):
  root = shards(tmp_path, each=40)
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    sources = list(pool.map(lambda _: opened(root), range(6)))
  assert [len(source) for source in sources] == [120] * 6
  assert set(scans.values()) == {1}


def test_the_index_is_small(tmp_path):
  """Of 20,000 members: no Python object for each."""
  members = {f'{i:09}.{suffix}': b'x' for i in range(10_000) for suffix in ('png', 'txt')}
  write(tmp_path / 'train.tar', members)
  source = open_split(Tar(shards=str(tmp_path), fields={'image': 'png'}), 'train')
  assert len(source) == 10_000
  assert len(pickle.dumps(source)) < 60 * 10_000
  (file,) = (tmp_path / '.vit_jax').glob('*.npz')
  assert file.stat().st_size < 10 * 20_000


# --- where shards are ---


def test_how_shards_are_found(tmp_path):
  shards(tmp_path / 'a')
  write(tmp_path / 'a/test-000.tar', example('t', 50))
  for name in ('00000', '00001'):
    write(tmp_path / f'b/{name}.tar', example(name, 1))
    write(tmp_path / f'c/val/{name}.tar', example(name, 1))
    write(tmp_path / f'd/cc3m-train-{name}.tar', example(name, 1))
  a, b, c, d = (str(tmp_path / name) for name in 'abcd')
  for text, split, names in (
    (a, 'train', ['train-000.tar', 'train-001.tar', 'train-002.tar']),
    (a, 'test', ['test-000.tar']),
    (f'{a}/train-{{001..002}}.tar', 'train', ['train-001.tar', 'train-002.tar']),
    (f'{a}/{{split}}-{{001..002}}.tar', 'train', ['train-001.tar', 'train-002.tar']),
    (f'{a}/{{split}}-*.tar', 'test', ['test-000.tar']),
    (f'{a}/{{train-001,test-000}}.tar', 'train', ['train-001.tar', 'test-000.tar']),
    (f'{a}/train-001.tar', 'train', ['train-001.tar']),
    (b, 'train', ['00000.tar', '00001.tar']),
    (c, 'val', ['val/00000.tar', 'val/00001.tar']),
    (f'{tmp_path}/{{split}}/{{00000..00001}}.tar', 'b', ['b/00000.tar', 'b/00001.tar']),
    (d, 'train', ['cc3m-train-00000.tar', 'cc3m-train-00001.tar']),
  ):  # fmt: skip
    _, given = found(text, split)
    assert given == names, text
    assert len(opened(text, split)) > 0
  for text, split, message in (
    (a, 'val', "has no split 'val': it has test, train"),
    (b, 'test', "has no split 'test': it has train"),
    (f'{a}/{{split}}-{{000..002}}.tar', 'val', r'no tar files .*val-\{000..002\}.tar'),
    (f'{a}/train-*.tar', 'test', r'without \{split\} in it all is train'),
    (f'{a}/train-001.tar', 'test', 'all of a single file is train'),
  ):
    with pytest.raises(NoSplitError, match=message):
      found(text, split)
  for text, message in (
    (f'{a}x', 'there is neither a directory nor a file'),
    (f'{a}/x-*.tar', 'no tar files'),
    (f'{tmp_path}/e', 'no tar files in .*, nor in directories there'),
  ):
    (tmp_path / 'e').mkdir(exist_ok=True)
    with pytest.raises(NoDataError, match=message):
      found(text, 'train')
  with pytest.raises(RunError, match=r'lacks 2 of 5 files: train-003.tar, train-004.tar'):
    opened(f'{a}/train-{{000..004}}.tar')


def test_tar_files_are_guessed(tmp_path):
  """An archive beside what was unpacked from it is none of the data."""
  shards(tmp_path / 'a')
  (tmp_path / 'a/train-000.parquet').touch()  # as img2dataset does
  write(tmp_path / 'b/train/0.tar', example('a', 1))
  write(tmp_path / 'b/val/0.tar', example('a', 1))
  pattern = f'{tmp_path}/a/train-{{000..001}}.tar'
  for text, test, count in (
    (f'{tmp_path}/a', '', 12), (f'{tmp_path}/b', 'val', 1), (pattern, '', 8),
    (f'{tmp_path}/a/train-001.tar', '', 4),
  ):  # fmt: skip
    data = guess(text, [])
    assert data.source == {'name': 'tar', 'shards': text}
    assert (data.split, data.test, len(data.opened)) == ('train', test, count)
  assert any_source(tmp_path / 'a') == Tar(shards=f'{tmp_path}/a')
  toys.toy(tmp_path / 'c', 1, 1)
  write(tmp_path / 'c/train.tar', example('a', 1))
  assert guess(f'{tmp_path}/c', []).source['name'] == 'folder'
  assert any_source(tmp_path / 'c') == Folder(f'{tmp_path}/c')
  (tmp_path / 'x.tar.gz').touch()
  with pytest.raises(RunError, match=r'x.tar.gz is compressed'):
    guess(f'{tmp_path}/x.tar.gz', [])


# --- what is refused ---


def test_what_is_no_tar_file(tmp_path):
  good = write(tmp_path / 'train.tar', example('a', 1) | example('b', 2))
  whole = good.read_bytes()
  changed = bytearray(whole)
  changed[4 * 512 + 3] ^= 1
  members = example('a', 1) | {'x' * 120 + '.png': b'1'}
  twisted = bytearray(write(good, members).read_bytes())
  assert twisted[5 * 512 :].startswith(b'134 path=xxx')
  twisted[5 * 512 + 2] += 1
  for number, (data, message) in enumerate((
    (bytes(changed), r'train.tar is damaged at byte 2,048: copy it again'),
    (bytes(twisted), r'train.tar is damaged at byte 2,048: copy it again'),
    (b'no tar file at all' * 99, 'train.tar is no tar file'),
    (b'', 'train.tar has no members'),
    (bytes(1024), 'train.tar has no members'),
    (b'\x1f\x8b' + bytes(600), r'train.tar is compressed, so that nothing .*: unpack it'),
  )):  # fmt: skip
    (tmp_path / str(number)).mkdir()
    (tmp_path / str(number) / 'train.tar').write_bytes(data)
    with pytest.raises(RunError, match=message):
      opened(tmp_path / str(number) / 'train.tar')
  good.unlink()
  for name in ('train-0.tar.gz', 'train-0.tgz'):
    (tmp_path / 'z').mkdir(exist_ok=True)
    (tmp_path / 'z' / name).write_bytes(b'\x1f\x8b')
    for text in (
      tmp_path / 'z',
      tmp_path / 'z' / name,
      f'{tmp_path}/z/{{split}}-{{0..0}}{name[7:]}',
    ):
      with pytest.raises(RunError, match=f'{name} is compressed'):
        found(str(text), 'train')
    (tmp_path / 'z' / name).unlink()


@pytest.mark.skipif(not shutil.which('tar'), reason='needs tar')
@pytest.mark.parametrize('form', ['gnu', 'posix'])
def test_files_with_holes_are_refused(tmp_path, form):
  with (tmp_path / 'a.png').open('wb') as file:
    file.truncate(2**22)
  command = ['tar', f'--format={form}', '--sparse', '-cf', 'train.tar', 'a.png']
  subprocess.run(command, cwd=tmp_path, check=True)
  with pytest.raises(RunError, match=r'a.png is stored with holes: pack it without --sparse'):
    opened(tmp_path / 'train.tar')


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (dict(fields={'text': 'txtt'}), r"fields.text='txtt': no member is KEY.txtt: did you mean txt"),
    (dict(fields={'boxes': 'json'}), 'a tar file has no boxes, only image, map, text, class'),
    (dict(fields={'label': 'txt'}), 'a class is in KEY.cls'),
    (dict(fields={'x': 'image: json/caption'}), 'only of a text something is in an object'),
    (dict(fields={'map': 'png'}), r'the classes of .map. are not in the files'),
    (dict(names={'label': 'a,b'}), r"KEY.cls='7' is no class of data.source.names.label"),
    (dict(names={'lable': 'a,b'}), r'names.lable: there is no such field: did you mean label'),
  ],
)
def test_what_cannot_be_asked_for(tmp_path, given, message):
  write(tmp_path / 'train.tar', example('a', 1) | {'a.cls': '7', 'a.json': '{}'})
  with pytest.raises(RunError, match=message):
    opened(tmp_path, **given)


def test_what_turns_out_when_it_is_read(tmp_path):
  members = {'a.png': picture(1), 'a.txt': b'\xff\xfe\x00', 'a.json': '{"caption": 7}'}
  path = write(tmp_path / 'train.tar', members | {'a.md': '{'})
  for given, message in (
    ({}, r'train.tar/a.txt is no text in UTF-8'),
    ({'text': 'json/caption'}, r'train.tar/a.json: caption=7 is no text'),
    ({'text': 'md/caption'}, r'train.tar/a.md is not JSON'),
  ):
    with pytest.raises(RunError, match=message):
      opened(tmp_path, fields=given)[0]
  source = opened(tmp_path, fields={'text': 'md'})
  path.write_bytes(path.read_bytes()[:600])
  with pytest.raises(RunError, match=r'train.tar is shorter than it was when its members'):
    source[0]
  path.unlink()
  with pytest.raises(RunError, match=r'cannot read .*train.tar: No such file'):
    source[0]
  write(path, {'a.md': 'text'})
  with pytest.raises(RunError, match=r'has no images: its members are KEY.md'):
    opened(tmp_path)
