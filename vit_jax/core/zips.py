"""Zip files read in place, as if they were directories. `core.paths.inside` leads here."""

from __future__ import annotations

import array
import bisect
import contextlib
import dataclasses
import errno
import os
import posixpath
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator

from vit_jax.core.entries import Entry
from vit_jax.core.errors import RunError

_HEADER = 30  # bytes before the name of a member
_MOST = 1032  # times that deflate makes anything smaller
_UTF8 = 0x800  # flag of a member: its name is in UTF-8
_LINK, _ENCRYPTED = 1 << 16, 1 << 17  # beside the method of compression
# What zipfile and zlib raise.
_DAMAGE = (
  zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, zlib.error,
)  # fmt: skip
_open: dict[str, tuple[tuple[int, ...], Archive]] = {}
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True, order=True)
class ZipPath:
  """A file or directory in a zip file, with as much of `pathlib.Path` as is needed.

  Attributes:
    file: the path of the zip file.
    inner: the path in it; '' is all of it.
  """

  file: str
  inner: str = ''

  def __str__(self) -> str:
    return f'{self.file}/{self.inner}' if self.inner else self.file

  def __truediv__(self, other: str) -> ZipPath:
    inner = posixpath.normpath(f'{self.inner or "."}/{other}')
    return ZipPath(self.file, '' if inner == '.' else inner)

  @property
  def name(self) -> str:
    """The last part."""
    return posixpath.basename(str(self))

  @property
  def suffix(self) -> str:
    """Of the name, with its dot."""
    return posixpath.splitext(self.name)[1]

  @property
  def parent(self) -> ZipPath:
    """The directory it is in; the zip file as a whole is its own."""
    return ZipPath(self.file, posixpath.dirname(self.inner))

  def is_dir(self) -> bool:
    """Whether there is such a directory."""
    return opened(self.file).has_folder(self.inner)

  def is_file(self) -> bool:
    """Whether there is such a file; links are none."""
    return opened(self.file).has_file(self.inner)

  def exists(self) -> bool:
    """Whether there is anything."""
    return self.is_file() or self.is_dir()

  def read_bytes(self, most: int = -1) -> bytes:
    """A file, or so many bytes of its beginning.

    Raises:
      OSError: if it is not there.
      RunError: if it is damaged, encrypted, or compressed by another method than deflate.
    """
    return opened(self.file).read(self.inner, most)

  def entries(self) -> list[Entry]:
    """What is in a directory, by name."""
    return sorted(opened(self.file).entries(self.inner))


def opened(file: str) -> Archive:
  """The index of a zip file, read once for all as long as the file does not change.

  Raises:
    OSError: if it cannot be read.
    RunError: if it is no zip file, or damaged.
  """
  found = os.stat(file)
  stamp = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
  known = _open.get(file)
  if known is None or known[0] != stamp:
    with _lock:
      known = _open.get(file)
      if known is None or known[0] != stamp:
        known = _open[file] = stamp, Archive(file)
  return known[1]


class Archive:
  """The index of a zip file. Any number of threads may read."""

  def __init__(self, file: str):
    self._file, self._handle = file, -1
    try:
      self._handle = os.open(file, os.O_RDONLY)
    except OSError as error:
      raise RunError(f'cannot read {file}: {error.strerror}') from None
    with self._damage(file), os.fdopen(os.dup(self._handle), 'rb') as copy:
      members: dict[str, zipfile.ZipInfo] = {}
      for member in zipfile.ZipFile(copy).infolist():
        name = _name(member)
        if name in members and not name.endswith('/'):
          raise RunError(f'{file} has {name} twice: make it again, with each file once')
        if name:
          members[name] = member
      # Sorted, what is in a directory follows on each other; millions of files need little memory.
      self._names = sorted(members)
      self._numbers = array.array('Q')
      for name in self._names:
        m = members[name]
        how = m.compress_type | (_ENCRYPTED if m.flag_bits & 1 else 0)
        if m.create_system == 3 and stat.S_ISLNK(m.external_attr >> 16):
          how |= _LINK
        self._numbers.extend((m.header_offset, m.compress_size, m.file_size, m.CRC, how))
    self._size = os.fstat(self._handle).st_size

  def __del__(self):
    if self._handle >= 0:
      os.close(self._handle)

  def _at(self, name: str) -> int:
    """The number of a member, a file or a link; -1 if it is not there."""
    at = bisect.bisect_left(self._names, name)
    return at if name and self._names[at : at + 1] == [name] else -1

  def _is_link(self, at: int) -> bool:
    return bool(self._numbers[5 * at + 4] & _LINK)

  def has_file(self, name: str) -> bool:
    """Whether there is a file of this name."""
    at = self._at(name)
    return at >= 0 and not self._is_link(at)

  def has_folder(self, name: str) -> bool:
    """Whether there is a directory of this name."""
    at = bisect.bisect_left(self._names, f'{name}/')
    return not name or any(n.startswith(f'{name}/') for n in self._names[at : at + 1])

  def entries(self, folder: str) -> Iterator[Entry]:
    """What is in a directory, in any order."""
    start = f'{folder}/' if folder else ''
    at = bisect.bisect_left(self._names, start)
    while at < len(self._names) and self._names[at].startswith(start):
      name, slash, _ = self._names[at][len(start) :].partition('/')
      if name:
        path = f'{self._file}/{start}{name}'
        yield Entry(name, path, bool(slash), not slash and self._is_link(at))
      # '0' is what comes after '/': nothing in the directory is looked at.
      at = bisect.bisect_left(self._names, f'{start}{name}0', at) if slash else at + 1

  def read(self, name: str, most: int = -1) -> bytes:
    """See `ZipPath.read_bytes`."""
    path, at = f'{self._file}/{name}', self._at(name)
    if at < 0:
      code = errno.EISDIR if self.has_folder(name) else errno.ENOENT
      raise OSError(code, os.strerror(code), path)
    offset, packed, size, crc, how = self._numbers[5 * at : 5 * at + 5]
    if how not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      why = 'is encrypted' if how & _ENCRYPTED else f'is compressed by method {how}, not by deflate'
      why = 'is a link' if how & _LINK else why
      raise RunError(f'{path} {why}, and cannot be read in place: unpack {self._file}')
    with self._damage(path):
      header = os.pread(self._handle, _HEADER, offset)
      if header[:4] != b'PK\3\4':
        raise ValueError('no file begins where one should')
      start = offset + _HEADER + sum(struct.unpack('<HH', header[26:]))
      if start + packed > self._size or size > _MOST * packed + 1:
        raise ValueError('its size cannot be right')
      if most >= 0:
        data = os.pread(self._handle, min(packed, most + 1024), start)
        return zlib.decompressobj(-15).decompress(data, most) if how and most else data[:most]
      data = os.pread(self._handle, packed, start)
      if how:
        data = zlib.decompress(data, -15, max(size, 1))
      if len(data) != size or zlib.crc32(data) != crc:
        raise ValueError('it is not what was packed')
    return data

  @contextlib.contextmanager
  def _damage(self, where: str) -> Iterator[None]:
    """Turns the many errors of damaged files into a RunError."""
    try:
      yield
    except _DAMAGE as error:
      what = 'damaged, or no zip file' if where == self._file else 'damaged'
      raise RunError(f'{where} is {what} ({error}): copy or make {self._file} again') from None


def _name(member: zipfile.ZipInfo) -> str:
  """The path of a member, with a slash behind it if it is a directory."""
  name = member.filename
  if not member.flag_bits & _UTF8 and not name.isascii():
    with contextlib.suppress(UnicodeError):  # macOS writes UTF-8 without saying so
      name = name.encode('cp437').decode('utf-8')
  if member.create_system == 0:  # old programs on Windows
    name = name.replace('\\', '/')
  parts = '/'.join(part for part in name.split('/') if part not in ('', '.'))
  return f'{parts}/' if parts and name.endswith('/') else parts
