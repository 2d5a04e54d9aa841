"""Files and directories: the only module that makes paths from strings.

Everything else asks `at` for a path and goes on with what pathlib's paths can do: those of object
stores can as much of it as is used. Libraries that open files themselves (TensorStore, safetensors,
zipfile, TFDS) get such a path, or one from `local`. What is only read may be in a zip file: see
`inside`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from vit_jax.core import stores, zips
from vit_jax.core.entries import Entry
from vit_jax.core.errors import PassingError, RunError

LocalPath = pathlib.Path
StorePath = stores.StorePath
Path = LocalPath | StorePath
ZipPath = zips.ZipPath
AnyPath = Path | ZipPath
DirEntry = os.DirEntry[str] | Entry
is_passing, retries = stores.is_passing, stores.retries


def at(text: str | Path) -> Path:
  """The path that a person wrote; '~' is their home, 'gs://bucket/name' an object store.

  Raises:
    RunError: for a URL of what cannot be read.
  """
  if isinstance(text, StorePath):
    return text
  url = str(text)
  return stores.parse(url) or LocalPath(url.removeprefix('file://')).expanduser()


def local(path: Path, what: str) -> LocalPath:
  """A path of this machine, for what cannot be anywhere else.

  Raises:
    RunError: for one of a store, saying `what` it is.
  """
  if isinstance(path, StorePath):
    raise RunError(f'{path}: {what} must be on this machine')
  return path


def inside(text: str | AnyPath) -> AnyPath:
  """As `at`, of what is only read: a part of the path may be a zip file, 'photos.zip/train'.

  Raises:
    RunError: for a URL, a zip file that is damaged, or one in another.
  """
  if isinstance(text, ZipPath):
    return text
  path = at(text)
  if '.zip' not in str(path).lower():
    return path
  if isinstance(path, StorePath):
    if any(part.lower().endswith('.zip') for part in path.parts):
      raise RunError(f'{path}: in an object store, zip files are not read in place: unpack it')
    return path
  for i, part in enumerate(path.parts, 1):
    if part.lower().endswith('.zip') and (file := LocalPath(*path.parts[:i])).is_file():
      found = ZipPath(str(file))
      for name in path.parts[i:]:
        found /= name
        if name.lower().endswith('.zip') and found.is_file():
          raise RunError(f'{found} is a zip file in another: unpack {file}')
      return found
  return path


def here(file: str) -> LocalPath:
  """The directory of a module, from its `__file__`, for the data files next to it."""
  return LocalPath(file).parent


def entries(folder: AnyPath) -> Sequence[DirEntry]:
  """What is in a directory, by name; each says what it is without being asked for by path.

  Raises:
    RunError: if it cannot be read.
  """
  try:
    if isinstance(folder, ZipPath | StorePath):
      return folder.entries()
    with os.scandir(folder) as found:
      return sorted(found, key=lambda entry: entry.name)
  except OSError as error:
    raise failure(f'cannot read the directory {folder}', error) from None


def below(folder: Path) -> Iterator[str]:
  """Paths of all files in a directory, however deep, after its own; in no order."""
  if isinstance(folder, StorePath):
    yield from folder.files()
  else:
    yield from (str(file.relative_to(folder)) for file in folder.rglob('*') if file.is_file())


def stamps(folder: Path) -> dict[str, tuple[int, str]]:
  """Of each file in a directory its size, and a text that is another one once it was written again.

  Raises:
    RunError: if it cannot be read.
  """
  try:
    if isinstance(folder, StorePath):
      return folder.stamps()
    with os.scandir(folder) as entries:
      found = {entry.name: entry.stat() for entry in entries if entry.is_file()}
  except FileNotFoundError:
    return {}
  except OSError as error:
    raise failure(f'cannot read the directory {folder}', error) from None
  return {name: (stat.st_size, str(stat.st_mtime_ns)) for name, stat in found.items()}


def read_range(path: Path, start: int, stop: int) -> bytes:
  """The bytes of a file from one place on and before another, as many as there are.

  Raises:
    OSError: if it cannot be read.
  """
  if isinstance(path, StorePath):
    return path.read_range(start, stop)
  with path.open('rb') as file:
    file.seek(start)
    return file.read(stop - start)


def failure(what: str, error: OSError) -> RunError:
  """What is raised where something has failed: PassingError if it may succeed later."""
  kind = PassingError if isinstance(error, TimeoutError) else RunError
  return kind(f'{what}: {error.strerror}')


def head(path: AnyPath, size: int) -> bytes:
  """The first bytes of a file; none if it cannot be read."""
  try:
    if isinstance(path, ZipPath | StorePath):
      return path.read_bytes(size)
    with path.open('rb') as file:
      return file.read(size)
  except OSError:
    return b''


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Turns a full or read-only disk, or a store that takes nothing, into a RunError about `path`."""
  try:
    yield
  except OSError as error:
    how = 'see to that' if isinstance(path, StorePath) else 'free some space'
    kind = PassingError if isinstance(error, TimeoutError) else RunError
    raise kind(
      f'cannot write {path}: {error.strerror}. Nothing that was saved is lost: {how}, then run the '
      'same command again.'
    ) from error


@contextlib.contextmanager
def _replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
  """A file to write: `path` is either the old one or the whole new one, even after a power cut."""
  if isinstance(path, StorePath):
    buffer = io.BytesIO()
    file: Any = buffer if 'b' in mode else io.TextIOWrapper(buffer, encoding='utf-8')
    yield file
    file.flush()
    with writing(path):
      path.write_bytes(buffer.getvalue())
    return
  partial = path.with_name(f'.{path.name}.partial')
  with writing(path), partial.open(mode) as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
  """Writes a file whole or not at all."""
  with _replacing(path, 'w') as file:
    file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
  """As `write_text`."""
  with _replacing(path, 'wb') as file:
    file.write(data)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
  """A file to write in pieces, as `write_text`; of a store it is written here first."""
  if isinstance(path, StorePath):
    with target(path, overwrite=True) as place, place.open('wb') as file:
      yield file
    return
  with _replacing(path, 'wb') as file:
    yield file


def write_json(path: Path, value: Any) -> None:
  """As `write_text`; numbers that are not finite, which JSON has not, are null."""
  write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + '\n')


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {name: _finite(each) for name, each in value.items()}
  return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
  """As `write_text`, of arrays."""
  import numpy as np

  with _replacing(path, 'wb') as file:
    np.savez_compressed(file, **arrays)


def read_text(path: AnyPath) -> str:
  """A text file in UTF-8, without a byte order mark, lines of all systems ended by a newline.

  Raises:
    RunError: if it is not there, or cannot be read.
  """
  try:
    text = path.read_bytes().decode('utf-8-sig')
    return text.replace('\r\n', '\n').replace('\r', '\n')
  except FileNotFoundError:
    raise RunError(f'there is no file {path}') from None
  except OSError as error:
    raise failure(f'cannot read {path}', error) from None
  except UnicodeDecodeError as error:
    raise RunError(
      f'{path} is no text in UTF-8 ({error.reason} at byte {error.start:,}): save it as UTF-8'
    ) from None


def read_json(path: Path) -> Any:
  """A value from a JSON file.

  Raises:
    RunError: if it is not there, cannot be read, or is not JSON.
  """
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise RunError(f'there is no file {path}') from None
  except OSError as error:
    raise failure(f'cannot read {path}', error) from error
  except (ValueError, RecursionError) as error:
    raise RunError(f'{path} is not JSON: {error}') from None


def read_object(path: Path) -> dict[str, Any]:
  """As `read_json`, of a file that must hold an object."""
  value = read_json(path)
  if not isinstance(value, dict):
    raise RunError(f'{path} does not contain a JSON object')
  return value


def appending(path: LocalPath) -> IO[bytes]:
  """A file opened for unbuffered appending."""
  with writing(path):
    return path.open('ab', buffering=0)


def free(path: Path) -> int | None:
  """Bytes that are free where `path` is, or would be; None where nobody can say."""
  if isinstance(path, StorePath):
    return None
  while not path.exists() and path != path.parent:
    path = path.parent
  try:
    found = os.statvfs(path)
  except OSError:
    return None
  return found.f_bavail * found.f_frsize


def delete(path: Path, first: str = '') -> None:
  """A file, a directory with everything in it, or nothing; in a store the object `first` first."""
  if isinstance(path, StorePath):
    stores.delete(path, first)
  elif path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def move(path: Path, target: Path, first: str = '') -> None:
  """Gives a directory another name; in a store the object `first` is what goes from there first."""
  if isinstance(path, StorePath):
    assert isinstance(target, StorePath)
    stores.move(path, target, first)
  else:
    path.rename(local(target, 'what is renamed'))


def upload(
  source: LocalPath, path: StorePath, which: Callable[[str], bool] = lambda name: True,
  part: slice = slice(None),
) -> None:  # fmt: skip
  """A file, or a `part` of those in a directory whose names are `which`."""
  if source.is_file():
    if which(source.name):
      path.upload(str(source))
    return
  names = sorted(name for name in below(source) if which(os.path.basename(name)))
  stores.put(path, str(source), names[part])


@contextlib.contextmanager
def copied(path: StorePath) -> Iterator[LocalPath]:
  """A copy of an object or a directory, where TMPDIR says, until the block ends."""
  with tempfile.TemporaryDirectory(prefix='vit_jax-') as folder:
    yield _copy(path, LocalPath(folder))


_fetched: dict[StorePath, LocalPath] = {}


def fetched(path: Path) -> LocalPath:
  """The path itself, or of a store a copy, made once and kept until the process ends.

  For libraries that open files themselves.
  """
  if not isinstance(path, StorePath):
    return path
  if path not in _fetched:
    folder = LocalPath(tempfile.mkdtemp(prefix='vit_jax-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _fetched[path] = _copy(path, folder)
  return _fetched[path]


def _copy(path: StorePath, folder: LocalPath) -> LocalPath:
  place = folder / path.scheme / path.key

  def write(name: str, pieces: Iterator[bytes]) -> None:
    file = place / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open('wb') as opened:
      for piece in pieces:
        opened.write(piece)

  stores.get(path, write)
  return place


def temporary(name: str) -> LocalPath:
  """A path for files that do not last, where TMPDIR says; the same for all who ask by that name."""
  digest = hashlib.sha256(f'{os.getuid()} {name}'.encode()).hexdigest()
  return LocalPath(tempfile.gettempdir()) / f'vit_jax-{digest[:16]}'


@contextlib.contextmanager
def target(path: Path, *, overwrite: bool, last: str = '') -> Iterator[LocalPath]:
  """A place to write a file or folder, which becomes `path` when the block ends well.

  In a store, the files whose names are `last` come last.

  Raises:
    RunError: if `path` exists already and may not be overwritten, or cannot be written.
  """
  if path.exists() and not overwrite:
    raise RunError(f'{path} already exists; use --overwrite (overwrite=True) to replace it')
  if isinstance(path, StorePath):
    with tempfile.TemporaryDirectory() as folder:
      yield LocalPath(folder) / path.name
      try:
        stores.delete(path)
        upload(LocalPath(folder) / path.name, path, lambda name: name != last)
        upload(LocalPath(folder) / path.name, path, lambda name: name == last)
      except OSError as error:
        raise failure(f'cannot write {path}', error) from None
    return
  place = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = LocalPath(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    yield place / path.name
    old = place / 'old'
    if path.exists():
      path.replace(old)
    try:
      (place / path.name).replace(path)
    except OSError:
      if old.exists():
        old.replace(path)
      raise
  except OSError as error:
    raise RunError(f'cannot write {path}: {error}') from None
  finally:
    if place is not None:
      shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def locked(path: LocalPath) -> Iterator[None]:
  """One process at a time; the others wait. `path` is made, and left behind."""
  with path.open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
