"""Object stores as if they were directories: gs://, s3:// and whatever else fsspec knows.

A store has no directories, no renaming and no appending: an object is there whole, under its name,
or not at all. Every request ends after a time that is known before: what may pass by itself is
tried again until then, and counted in `retries`. Errors are OSErrors that say what is wrong.
`core.paths.at` leads here.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import functools
import io
import logging
import os
import posixpath
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vit_jax.core.entries import Entry
from vit_jax.core.errors import PassingError, RunError

# Seconds that all tries of a request may take together, and one of them, besides what a slow
# connection needs for the bytes.
TOGETHER, ONE = 20.0, 8.0
SLOWEST = 2**20  # bytes per second
LISTING = 600.0  # seconds that all pages of a listing may take
_PIECE = 2**26  # bytes that are read at once
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 4.0
# Packages by scheme, and the extra that installs each.
PACKAGES = {'gs': ('gcsfs', 'gcs'), 'gcs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}

_WEB, _LISTINGS = ('http', 'https', 'ftp'), ('ls', 'find')
# Options of file systems by which a single request ends.
_PAGES: dict[str, dict[str, Any]] = {
  'gs': {'requests_timeout': 30},
  'gcs': {'requests_timeout': 30},
  # Of large files so many parts of 50 MiB are in memory.
  's3': {'config_kwargs': {'connect_timeout': 10, 'read_timeout': 30}, 'max_concurrency': 2},
}
# What stores say of an object that is another thing once it was written again.
_STAMPS = ('generation', 'ETag', 'etag', 'LastModified', 'updated', 'created', 'mtime')
_lock = threading.Lock()
_retries = 0


def retries() -> int:
  """How often this process has asked a store again."""
  return _retries


class Stat(NamedTuple):
  """Of an object, with as much of `os.stat_result` as is needed."""

  st_size: int


@dataclasses.dataclass(frozen=True, order=True)
class StorePath:
  """An object, or a directory of them, with as much of `pathlib.Path` as is needed.

  It is no `os.PathLike`: what opens files itself would make local ones of it.

  Attributes:
    scheme: 'gs'.
    key: bucket and name, 'bucket/run/config.json'.
  """

  scheme: str
  key: str

  def __str__(self) -> str:
    return f'{self.scheme}://{self.key}'

  def __truediv__(self, other: object) -> StorePath:
    if isinstance(other, StorePath):
      return other
    key = posixpath.normpath(f'{self.key}/{other}')
    return StorePath(self.scheme, key.lstrip('/'))

  @property
  def name(self) -> str:
    """The last part."""
    return posixpath.basename(self.key)

  @property
  def stem(self) -> str:
    """The name without its suffix."""
    return posixpath.splitext(self.name)[0]

  @property
  def suffix(self) -> str:
    """Of the name, with its dot."""
    return posixpath.splitext(self.name)[1]

  @property
  def parts(self) -> tuple[str, ...]:
    """The store and the bucket, and every part of the name."""
    bucket, *names = self.key.split('/')
    return (f'{self.scheme}://{bucket}', *names)

  @property
  def parent(self) -> StorePath:
    """What it is in; a bucket is in itself."""
    return StorePath(self.scheme, posixpath.dirname(self.key) or self.key)

  def with_name(self, name: str) -> StorePath:
    """Another one beside it."""
    return self.parent / name

  def with_suffix(self, suffix: str) -> StorePath:
    """The same with another suffix, or, with '', without its own."""
    return self.with_name(self.stem + suffix)

  def absolute(self) -> StorePath:
    """Itself."""
    return self

  resolve = expanduser = absolute

  def is_file(self) -> bool:
    """Whether there is such an object."""
    try:
      return _ask(self, 'info')['type'] == 'file'
    except FileNotFoundError:
      return False

  def is_dir(self) -> bool:
    """Whether there are objects in it."""
    try:
      return _ask(self, 'info')['type'] == 'directory'
    except FileNotFoundError:
      return False

  def exists(self) -> bool:
    """Whether there is anything."""
    try:
      _ask(self, 'info')
    except FileNotFoundError:
      return False
    return True

  def stat(self) -> Stat:
    """Of an object."""
    return Stat(int(_ask(self, 'info').get('size') or 0))

  def mkdir(self, **options: Any) -> None:
    """Nothing: directories are there when something is in them."""

  def entries(self) -> list[Entry]:
    """What is in it, by name.

    Raises:
      FileNotFoundError: if nothing is.
    """
    found = {}
    for each in _ask(self, 'ls', detail=True):
      name = posixpath.basename(each['name'].rstrip('/'))
      if name and each['name'].rstrip('/') != self.key:  # some list the directory itself
        directory = each['type'] == 'directory'
        found[name] = Entry(name, str(self / name), directory)
    return [found[name] for name in sorted(found)]

  def stamps(self) -> dict[str, tuple[int, str]]:
    """See `core.paths.stamps`; none where nothing is."""
    try:
      found = _ask(self, 'ls', detail=True)
    except FileNotFoundError:
      return {}
    return {
      posixpath.basename(each['name']): (
        int(each.get('size') or 0), ' '.join(str(each[key]) for key in _STAMPS if key in each)
      )
      for each in found
      if each['type'] == 'file'
    }  # fmt: skip

  def iterdir(self) -> Iterator[StorePath]:
    """The paths of `entries`."""
    return (self / entry.name for entry in self.entries())

  def glob(self, pattern: str) -> Iterator[StorePath]:
    """Those whose names match, without directories below: `*` and `?` stand for what they do."""
    try:
      found = self.entries()
    except FileNotFoundError:
      return iter(())
    text = re.escape(pattern).replace(r'\*', '.*').replace(r'\?', '.')
    return (self / entry.name for entry in found if re.fullmatch(text, entry.name))

  def read_bytes(self, most: int = -1) -> bytes:
    """An object, or so many bytes of its beginning."""
    if most >= 0:
      return self.read_range(0, most)
    return _ask(self, 'cat_file', size=_PIECE)

  def read_range(self, start: int, stop: int) -> bytes:
    """The bytes from one place on and before another."""
    if stop <= start:
      return b''
    return _ask(self, 'cat_file', start=start, end=stop, size=stop - start)

  def read_text(self, encoding: str = 'utf-8', errors: str = 'strict') -> str:
    """An object of text."""
    return self.read_bytes().decode(encoding, errors)

  def write_bytes(self, data: bytes) -> None:
    """Makes an object, or another one of it."""
    _ask(self, 'pipe_file', data, size=len(data))

  def upload(self, source: str) -> None:
    """Makes an object of a local file, in pieces: files of any size."""
    _ask(self, 'put_file', source, size=os.path.getsize(source))

  def make(self, data: bytes) -> None:
    """Makes an object that is not there yet; of several who do this at once, one.

    Raises:
      FileExistsError: if it is.
    """
    _ask(self, 'pipe_file', data, mode='create', size=len(data))

  def unlink(self, missing_ok: bool = False) -> None:
    """Deletes an object."""
    try:
      if not missing_ok and not self.is_file():
        raise FileNotFoundError(errno.ENOENT, _ABSENT, str(self))
      _ask(self, 'rm_file')
    except FileNotFoundError:
      if not missing_ok:
        raise

  def open(self, mode: str = 'r', newline: str | None = None) -> Any:
    """An object to read from, as text or, with mode 'rb', as bytes."""
    if mode not in ('r', 'rb'):
      raise ValueError(f'{self}: objects are written whole, not with mode={mode!r}')
    raw = io.BufferedReader(_Reader(self), buffer_size=2**20)
    return raw if mode == 'rb' else io.TextIOWrapper(raw, encoding='utf-8', newline=newline)

  def files(self) -> dict[str, int]:
    """Names, after its own, and sizes of all objects in it, however deep; '' is itself."""
    try:
      found = _ask(self, 'find', detail=True)
    except FileNotFoundError:
      return {}
    cut = len(self.key) + 1
    sizes = {name.lstrip('/')[cut:]: int(info.get('size') or 0) for name, info in found.items()}
    # The consoles of clouds make objects that stand for directories.
    return {name: size for name, size in sizes.items() if not name.endswith('/')}


class _Reader(io.RawIOBase):
  """An object, read range by range as it is asked for."""

  def __init__(self, path: StorePath):
    self._path, self._at, self._size = path, 0, path.stat().st_size

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
    self._at = max(0, start + offset)
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer: Any) -> int:
    data = self._path.read_range(self._at, min(self._at + len(buffer), self._size))
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


def parse(text: str) -> StorePath | None:
  """The path that a URL is of; None for what is none, or of local files.

  Raises:
    RunError: for one of a store that cannot be read, or without a bucket.
  """
  match = re.match(r'([a-z][a-z0-9+.-]*):/+(.*)', text)
  if not match or match[1] == 'file':
    return None
  scheme, key = match[1], posixpath.normpath(match[2]).strip('/')
  if key in ('', '.'):
    raise RunError(f'{text}: which bucket? Write {scheme}://BUCKET/NAME')
  _filesystem(scheme)
  return StorePath(scheme, key)


def put(path: StorePath, source: str, names: Sequence[str]) -> None:
  """Uploads files of a directory, several at once; returns when all are there."""
  _each(lambda name: (path / name).upload(os.path.join(source, name)), names)


def delete(path: StorePath, first: str = '') -> None:
  """An object, and everything that is in it; of that the one with the name `first` before all."""
  names = path.files()
  if first and names.pop(first, None) is not None:
    (path / first).unlink(missing_ok=True)
  _each(lambda name: (path / name).unlink(missing_ok=True), list(names))
  if not _filesystem(path.scheme).async_impl and path.is_dir():  # one that has directories
    _ask(path, 'rm', recursive=True)


def move(path: StorePath, target: StorePath, first: str = '') -> None:
  """Everything that is in a directory: all is there twice before anything, `first`, is deleted."""
  sizes = path.files()
  copy = lambda name: _ask(path / name, 'cp_file', (target / name).key, size=sizes[name])  # noqa: E731
  _each(copy, list(sizes))
  delete(path, first)


def get(path: StorePath, write: Callable[[str, Iterator[bytes]], None]) -> None:
  """Reads an object, or all that is in a directory.

  Args:
    path: of it.
    write: is told the name of an object behind `path`, '' for that itself, and its bytes in pieces
      of bounded size, by several threads at once.
  """
  found = path.files()

  def pieces(name: str) -> Iterator[bytes]:
    for start in range(0, found[name], _PIECE):
      yield (path / name).read_range(start, min(start + _PIECE, found[name]))

  _each(lambda name: write(name, pieces(name)), list(found))


def _each(call: Callable[[str], Any], names: Sequence[str], workers: int = 8) -> None:
  """Calls it with each name, several at once."""
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    try:
      for done in [pool.submit(call, name) for name in names]:
        done.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)  # or each of the rest would take its time, too
      raise


@functools.cache
def _filesystem(scheme: str) -> Any:
  """fsspec's, without a memory of what was listed."""
  import fsspec
  import fsspec.config

  if scheme in _WEB:
    raise RunError(f'{scheme}:// is the web, and no store that can be read or written: download it')
  package, extra = PACKAGES.get(scheme, (f'the fsspec package of {scheme}://', ''))
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # its failures are ours to tell
  for name, timeout in _PAGES.items():  # of every request, also of those of other libraries
    for option, value in timeout.items():
      fsspec.config.conf.setdefault(name, {}).setdefault(option, value)
  try:
    return fsspec.filesystem(scheme, use_listings_cache=False)
  except ImportError:
    how = f"pip install 'vit_jax[{extra}]'" if extra else 'see the documentation of fsspec'
    raise RunError(f'{scheme}:// needs {package}: {how}') from None
  except ValueError:
    known = ', '.join(f'{name}://' for name in PACKAGES)
    raise RunError(
      f'{scheme}:// is no store that can be read or written: use a local path, {known} or another '
      'one that fsspec knows'
    ) from None


def _ask(path: StorePath, name: str, *args: Any, size: int = 0, **options: Any) -> Any:
  """One request of fsspec, tried again while that may help; raises OSErrors that say why not.

  A listing, which is as many requests as it has pages, gets more time if the store serves.
  """
  global _retries
  sys.audit('vit_jax.store', name, str(path))  # for `core.faults`
  one = ONE + size / SLOWEST
  end, pause, tries = time.monotonic() + TOGETHER - ONE + one, _FIRST_PAUSE, 0
  while True:
    tries += 1
    begun = time.monotonic()
    try:
      return _once(path, name, args, options, min(one, end - begun))
    except Exception as error:
      kind, text = _meaning(error)
      now = time.monotonic()
      if name in _LISTINGS and _is_late(error) and one < LISTING and _serves(path):
        one *= 4  # there is much to list
        end = now + one + TOGETHER
      elif kind is not TimeoutError or end - now < pause:
        if kind is TimeoutError:
          text = f'{text} ({tries} tries in {TOGETHER - end + now + one - ONE:.0f} s)'
        number = _NUMBERS.get(kind, errno.EIO)
        raise _KINDS.get(kind, kind)(number, text, str(path)) from error
    with _lock:
      _retries += 1
    time.sleep(pause)
    pause = min(2 * pause, _LONGEST_PAUSE)


def _serves(path: StorePath) -> bool:
  """Whether a small request is answered, whatever it says."""
  try:
    _once(path, 'info', (), {}, ONE)
  except Exception as error:
    return _meaning(error)[0] is not TimeoutError
  return True


def _once(path: StorePath, name: str, args: Any, options: Any, timeout: float) -> Any:
  import fsspec.asyn

  system = _filesystem(path.scheme)
  args = (*args, path.key) if name == 'put_file' else (path.key, *args)
  if not system.async_impl:
    return getattr(system, name)(*args, **options)
  call = getattr(system, f'_{name}')
  return fsspec.asyn.sync(system.loop, call, *args, timeout=max(timeout, 0.1), **options)


class BusyError(PassingError, TimeoutError):
  """A store that did not serve in time, and may later."""

  def __str__(self) -> str:
    return f'{self.filename}: {self.strerror}'


class DeniedError(RunError, PermissionError):
  """A store that does not serve this account."""

  __str__ = BusyError.__str__


class RefusedError(RunError, OSError):
  """Whatever else a store refuses."""

  __str__ = BusyError.__str__


_KINDS = {TimeoutError: BusyError, PermissionError: DeniedError, OSError: RefusedError}
_NUMBERS = {
  FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST,
  TimeoutError: errno.ETIMEDOUT,
}  # fmt: skip
_ABSENT, _PRESENT = 'there is no such object, or no such bucket', 'there is one already'
# Of HTTP: what a person must change, and what may pass.
_FORBIDDEN, _PASSING, _FULL = (401, 403), (408, 425, 429, 500, 502, 503, 504), 507


def _meaning(error: BaseException) -> tuple[type[OSError], str]:
  """Which OSError an error is, TimeoutError for those that may pass, and what it says."""
  text = ' '.join(str(error).split()) or type(error).__name__
  if isinstance(error, FileNotFoundError):
    return FileNotFoundError, _ABSENT
  if isinstance(error, FileExistsError):
    return FileExistsError, _PRESENT
  number = _status(error)
  if number == _FULL or ('quota' in text.lower() and number not in _PASSING):
    return OSError, f'it is full: {text}'
  denied = isinstance(error, PermissionError) or 'Forbidden' in text or 'AccessDenied' in text
  if denied or number in _FORBIDDEN:
    return PermissionError, f'not permitted: {text}'
  if number == 412 or 'PreconditionFailed' in text:
    return FileExistsError, _PRESENT
  if number == 404 or 'NoSuchBucket' in text:
    return FileNotFoundError, _ABSENT
  if _is_late(error):
    return TimeoutError, 'it does not answer in time'
  if number in _PASSING or _is_passing(error):
    return TimeoutError, f'it does not serve: {type(error).__name__}: {text}'
  return OSError, f'{type(error).__name__}: {text}'


def _is_late(error: BaseException) -> bool:
  return type(error).__name__ == 'FSTimeoutError'


def is_passing(error: BaseException) -> bool:
  """Whether an error, of whichever library, is of a store that may serve later."""
  return _meaning(error)[0] is TimeoutError


def _status(error: BaseException) -> int:
  """Of HTTP, wherever a library has put it; 0 for none."""
  for name in ('code', 'status', 'status_code'):
    value = getattr(error, name, None)
    if isinstance(value, int | str) and str(value).isdecimal():
      return int(value)
  response = getattr(error, 'response', None)
  if isinstance(response, dict):
    return int(response.get('ResponseMetadata', {}).get('HTTPStatusCode') or 0)
  return 0 if error.__cause__ is None else _status(error.__cause__)


def _is_passing(error: BaseException) -> bool:
  """Whether it is of the connection, by its class or what it was raised from."""
  if isinstance(error, TimeoutError | ConnectionError):
    return True
  if getattr(error, 'errno', None) in (errno.EBUSY, errno.EAGAIN, errno.ENETUNREACH):
    return True
  names = {kind.__name__ for kind in type(error).__mro__}
  if names & {'ClientError', 'ConnectionError', 'HTTPClientError', 'FSTimeoutError', 'HttpError'}:
    # botocore's ClientError is an answer, aiohttp's is none.
    return not hasattr(error, 'response')
  return error.__cause__ is not None and _is_passing(error.__cause__)
