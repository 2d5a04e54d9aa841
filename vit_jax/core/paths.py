"""Files and directories: the only module that makes paths from strings.

Everything else asks `at` for a path and goes on with what pathlib's paths can do; libraries that
open files themselves (TensorStore, safetensors, zipfile, TFDS) get such a path. Object stores will
be another kind of path that `at` returns. What is only read may be in a zip file: see `inside`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from vit_jax.core import zips
from vit_jax.core.errors import RunError

Path = pathlib.Path
ZipPath = zips.ZipPath
AnyPath = Path | ZipPath


def at(text: str | Path) -> Path:
  """The path that a person wrote; '~' is their home.

  Raises:
    RunError: for a URL.
  """
  if scheme := re.match(r'([a-z][a-z0-9+.-]*):/', str(text)):
    raise RunError(
      f'{text}: only local paths can be read and written; mount the {scheme[1]}: store as a '
      'directory (gcsfuse, s3fs, rclone mount) and give that'
    )
  return Path(text).expanduser()


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
  for i, part in enumerate(path.parts, 1):
    if part.lower().endswith('.zip') and (file := Path(*path.parts[:i])).is_file():
      found = ZipPath(str(file))
      for name in path.parts[i:]:
        found /= name
        if name.lower().endswith('.zip') and found.is_file():
          raise RunError(f'{found} is a zip file in another: unpack {file}')
      return found
  return path


def here(file: str) -> Path:
  """The directory of a module, from its `__file__`, for the data files next to it."""
  return Path(file).parent


def entries(folder: AnyPath) -> Sequence[os.DirEntry[str] | zips.Entry]:
  """What is in a directory, by name; each says what it is without being asked for by path.

  Raises:
    RunError: if it cannot be read.
  """
  try:
    if isinstance(folder, ZipPath):
      return folder.entries()
    with os.scandir(folder) as found:
      return sorted(found, key=lambda entry: entry.name)
  except OSError as error:
    raise RunError(f'cannot read the directory {folder}: {error.strerror}') from None


def head(path: AnyPath, size: int) -> bytes:
  """The first bytes of a file; none if it cannot be read."""
  try:
    if isinstance(path, ZipPath):
      return path.read_bytes(size)
    with path.open('rb') as file:
      return file.read(size)
  except OSError:
    return b''


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Turns a full or read-only disk into a RunError about `path`."""
  try:
    yield
  except OSError as error:
    raise RunError(
      f'cannot write {path}: {error.strerror}. Nothing that was saved is lost: free some space, '
      'then run the same command again.'
    ) from error


@contextlib.contextmanager
def _replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
  """A file to write: `path` is either the old one or the whole new one, even after a power cut."""
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
  except (OSError, UnicodeDecodeError) as error:
    raise RunError(f'cannot read {path}: {error}') from None


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
    raise RunError(f'cannot read {path}: {error.strerror}') from error
  except (ValueError, RecursionError) as error:
    raise RunError(f'{path} is not JSON: {error}') from None


def read_object(path: Path) -> dict[str, Any]:
  """As `read_json`, of a file that must hold an object."""
  value = read_json(path)
  if not isinstance(value, dict):
    raise RunError(f'{path} does not contain a JSON object')
  return value


def appending(path: Path) -> IO[bytes]:
  """A file opened for unbuffered appending."""
  with writing(path):
    return path.open('ab', buffering=0)


def delete(path: Path) -> None:
  """A file, a directory with everything in it, or nothing if there is nothing."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def target(path: Path, *, overwrite: bool) -> Iterator[Path]:
  """A place to write a file or folder, which becomes `path` when the block ends well.

  Raises:
    RunError: if `path` exists already and may not be overwritten, or cannot be written.
  """
  if path.exists() and not overwrite:
    raise RunError(f'{path} already exists; use --overwrite (overwrite=True) to replace it')
  place = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
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
def locked(path: Path) -> Iterator[None]:
  """One process at a time; the others wait. `path` is made, and left behind."""
  with path.open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
