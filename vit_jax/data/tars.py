"""Tar files read at any place: an index of their members, made once and kept in a file.

Headers alone are read, those of ustar, pax and GNU, in which names and sizes may be of any length:
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html and tar(5).
"""

from __future__ import annotations

import array
import collections
import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import files

if TYPE_CHECKING:
  import numpy as np

CLASSES = 'cls'  # suffix of members whose values are kept in the index
CUT_OFF = 'cut off'  # of `Shard.passed`: a file without a mark of its end
_LONGEST = 256  # bytes of such a value
_VERSION = 1  # of the file of an index
_FOLDER = '.vit_jax'  # of indices, beside the shards
_THREADS = 8  # that read tar files at once
_BLOCK = 512  # bytes, in which everything in a tar file is counted
# How files begin that gzip, bzip2, xz and zstd have made.
_MODES = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')
# Kinds of members: files, what is passed over and has no data, and what says more of the next one.
_FILES, _DIRECTORY, _SPARSE = (b'0', b'\0', b'7'), b'5', b'S'
_EMPTY = {b'1': 'links', b'2': 'links', b'3': 'devices', b'4': 'devices', b'6': 'pipes'}
_LONG_NAME, _LONG_LINK, _NEXT, _REST = b'L', b'K', b'x', b'g'
_COLUMNS = [('key', 'u4'), ('suffix', 'u2'), ('start', 'i8'), ('size', 'i8')]


class Shard(NamedTuple):
  """What is in a tar file.

  Attributes:
    keys: names of members up to the first dot behind the last slash, each once.
    suffixes: what is behind that dot, in lower case, each once.
    members: files in their order, structured (members,): `key` and `suffix`, places among these,
      and `start` and `size` in bytes.
    classes: what is in each member with the suffix `CLASSES`.
    passed: how many members were passed over, by why.
  """

  keys: files.Names
  suffixes: tuple[str, ...]
  members: np.ndarray
  classes: tuple[str, ...]
  passed: dict[str, int]


_Stamps = Mapping[str, tuple[int, str]]
_Known = Mapping[str, tuple[tuple[int, str], Shard]]


def indexed(root: paths.Path, names: Sequence[str], label: str) -> tuple[list[Shard], str]:
  """What is in some tar files, and where the index is kept; '' if nowhere.

  A file is read again once its size or time of change is another one. Of several processes of a
  machine that do this at once, one reads. The index is kept beside the files or, where nothing can
  be written there, in the directory for temporary files.

  Args:
    root: the directory they are in.
    names: of the files, paths in it.
    label: of what this is the index; a later one of the same takes its place.

  Raises:
    RunError: if a file is not there, no tar file, compressed or damaged.
  """
  stamps = _stamps(root, names)
  name = f'tar-{hashlib.sha256(label.encode()).hexdigest()[:16]}.npz'
  kept = [root / _FOLDER / name, paths.temporary(f'tar {root}') / name]
  for file in kept:
    known = _read(file)
    if all(each in known and known[each][0] == stamps[each] for each in names):
      return [known[each][1] for each in names], str(file)
  shards = None
  for file in kept:
    try:
      with _alone(file.parent):
        shards = shards or _scanned(root, names, stamps, _read(file))
        with contextlib.suppress(RunError):
          _write(file, names, stamps, shards)
          return shards, str(file)
    except OSError:  # nothing can be written there
      continue
  return shards or _scanned(root, names, stamps, {}), ''


def _stamps(root: paths.Path, names: Sequence[str]) -> _Stamps:
  """Sizes and times of change of files, which must be there."""
  found = {}
  for folder in dict.fromkeys(name.rpartition('/')[0] for name in names):
    there = paths.stamps(root / folder if folder else root)
    found |= {f'{folder}/{name}'.lstrip('/'): stamp for name, stamp in there.items()}
  if lacking := [name for name in names if name not in found]:
    raise RunError(f'{root} lacks {len(lacking):,} of {len(names):,} files: {files.few(lacking)}')
  return {name: found[name] for name in names}


@contextlib.contextmanager
def _alone(folder: paths.Path) -> Iterator[None]:
  """One process of a machine at a time; in a store several may do the same."""
  if isinstance(folder, paths.StorePath):
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  with paths.locked(folder / 'lock'):
    yield


def _scanned(
  root: paths.Path, names: Sequence[str], stamps: _Stamps, known: _Known
) -> list[Shard]:  # fmt: skip
  """What is in tar files, of those that are known as it is known."""

  def one(name: str) -> Shard:
    if name in known and known[name][0] == stamps[name]:
      return known[name][1]
    path = root / name
    try:
      with path.open('rb') as file:
        return scan(file, stamps[name][0], str(path))
    except OSError as error:
      raise paths.failure(f'cannot read {path}', error) from None

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    try:
      return [future.result() for future in [pool.submit(one, name) for name in names]]
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def scan(file: Any, length: int, path: str) -> Shard:
  """Reads the headers of a tar file.

  Args:
    file: open, in binary.
    length: of it.
    path: for messages.

  Raises:
    RunError: if it is no tar file, compressed or damaged, or has members with holes.
  """
  import numpy as np

  keys, suffixes = dict[str, int](), dict[str, int]()
  columns = array.array('I'), array.array('H'), array.array('q'), array.array('q')
  classes, passed = list[str](), collections.Counter[str]()
  for kind, name, start, size in _members(file, length, path):
    folder, slash, last = name.removeprefix('./').rpartition('/')
    stem, dot, suffix = last.partition('.')
    if kind == _DIRECTORY or not last:
      continue
    if kind not in _FILES:
      passed[_EMPTY.get(kind, 'members of other kinds')] += 1
    elif files.is_hidden(last):
      passed['hidden or system files'] += 1
    elif not dot:
      passed['files without a suffix'] += 1
    elif start + size <= length:
      key = keys.setdefault(f'{folder}{slash}{stem}', len(keys))
      suffix = suffixes.setdefault(suffix.lower(), len(suffixes))
      for column, value in zip(columns, (key, suffix, start, size), strict=True):
        column.append(value)
      if suffix == suffixes.get(CLASSES):
        file.seek(start)
        value = file.read(size) if size <= _LONGEST else b''
        classes.append(value.decode('utf-8', 'replace').strip())
  file.seek(max(0, length - _BLOCK))
  if any(file.read()):  # a mark of the end is two blocks of zeros
    passed[CUT_OFF] = 1
  members = np.empty(len(columns[0]), _COLUMNS)
  for (name, _), column in zip(_COLUMNS, columns, strict=True):
    members[name] = column
  return Shard(files.Names(keys), tuple(suffixes), members, tuple(classes), dict(passed))


def _members(file: Any, length: int, path: str) -> Iterator[tuple[bytes, str, int, int]]:
  """Of each member its kind and name, where its data start, and how many they are in bytes."""
  at, every, own = 0, dict[str, str](), dict[str, str]()
  while at < length:
    file.seek(at)
    block = file.read(_BLOCK)
    if not any(block) or (at and len(block) < _BLOCK):
      break
    try:
      kind, name, size = _header(block)
      if kind not in (_NEXT, _REST, _LONG_NAME, _LONG_LINK):
        said = every | own
        name, size = said.get('path') or name, int(said.get('size') or size)
        own = {}
        if size < 0:
          raise ValueError
        if kind == _SPARSE or any(each.startswith('GNU.sparse') for each in said):
          raise RunError(f'{path}: {name} is stored with holes: pack it without --sparse')
        yield kind, name, at + _BLOCK, size
      elif at + _BLOCK + size <= length:
        data = file.read(size)
        if kind == _NEXT:
          own |= _records(data)
        elif kind == _REST:
          every |= _records(data)
        elif kind == _LONG_NAME:
          own['path'] = _text(data)
    except ValueError:
      raise RunError(_damage(path, at, block)) from None
    empty = kind in _EMPTY or kind == _DIRECTORY
    at += _BLOCK * (1 if empty else 1 - (-size // _BLOCK))
  if not at:
    raise RunError(f'{path} has no members')


def _header(block: bytes) -> tuple[bytes, str, int]:
  """Kind, name and size of a member; raises ValueError if this is no header."""
  before, wanted, behind = block[:148], _number(block[148:156]), block[156:]
  total = sum(before) + sum(behind) + 8 * ord(' ')
  if total != wanted and total - 256 * sum(byte > 127 for byte in before + behind) != wanted:
    raise ValueError
  name, prefix = _text(block[:100]), _text(block[345:500])
  if prefix and block[257:263] == b'ustar\0':
    name = f'{prefix}/{name}'
  return block[156:157], name, _number(block[124:136])


def _number(field: bytes) -> int:
  """Octal digits or, where those are too few, the bytes of the number itself."""
  if field[:1] == b'\x80':
    return int.from_bytes(field[1:], 'big')
  digits = field.partition(b'\0')[0].strip()
  return int(digits, 8) if digits else 0


def _text(field: bytes) -> str:
  return field.partition(b'\0')[0].decode('utf-8', 'surrogateescape')


def _records(data: bytes) -> dict[str, str]:
  """Of pax: 'LENGTH KEY=VALUE', the length that of all of it, and a newline."""
  found = {}
  while data and data[0]:
    digits, _, _ = data.partition(b' ')
    record, data = data[: int(digits)], data[int(digits) :]
    key, sign, value = record[len(digits) + 1 : -1].partition(b'=')
    if not sign or len(record) < int(digits) or not record.endswith(b'\n'):
      raise ValueError
    found[_text(key)] = _text(value)
  return found


def _damage(path: str, at: int, block: bytes) -> str:
  if at:
    return f'{path} is damaged at byte {at:,}: copy it again'
  compressed = any(block.startswith(each) for each in _MODES)
  return refusal(path) if compressed else f'{path} is no tar file'


def refusal(path: str) -> str:
  """What is said of a compressed tar file."""
  return (
    f'{path} is compressed, so that nothing in it can be read by itself: unpack it to a .tar file; '
    'images are compressed already'
  )


def _write(
  file: paths.Path, names: Sequence[str], stamps: _Stamps, shards: Sequence[Shard]
) -> None:  # fmt: skip
  """Keeps an index."""
  import numpy as np

  rows = [
    [name, *stamps[name], len(s.keys), s.suffixes, len(s.members), len(s.classes), s.passed]
    for name, s in zip(names, shards, strict=True)
  ]
  members = np.concatenate([shard.members for shard in shards])
  texts = {
    'head': json.dumps({'version': _VERSION, 'shards': rows}),
    'keys': '\0'.join(itertools.chain.from_iterable(shard.keys for shard in shards)),
    'classes': '\0'.join(itertools.chain.from_iterable(shard.classes for shard in shards)),
  }
  paths.write_npz(file, {
    **{name: members[name] for name, _ in _COLUMNS},
    **{n: np.frombuffer(t.encode('utf-8', 'surrogateescape'), np.uint8) for n, t in texts.items()},
  })  # fmt: skip


def _read(file: paths.Path) -> _Known:
  """What `_write` has kept; nothing if that is not there, or cannot be read."""
  import numpy as np

  try:
    with np.load(io.BytesIO(file.read_bytes())) as arrays:
      head, keys, classes = (
        arrays[name].tobytes().decode('utf-8', 'surrogateescape')
        for name in ('head', 'keys', 'classes')
      )
      rows = json.loads(head)
      if rows['version'] != _VERSION:
        return {}
      members = np.empty(len(arrays['key']), _COLUMNS)
      for name, _ in _COLUMNS:
        members[name] = arrays[name]
    found, place = {}, 0
    every, called = iter(keys.split('\0')), iter(classes.split('\0'))
    for name, size, stamp, count, suffixes, length, named, passed in rows['shards']:
      found[name] = (size, stamp), Shard(
        files.Names(itertools.islice(every, count)), tuple(suffixes),
        members[place : place + length], tuple(itertools.islice(called, named)), passed,
      )  # fmt: skip
      place += length
    return found
  except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
    return {}
