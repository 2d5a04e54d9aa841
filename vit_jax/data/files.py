"""Which of the files in a directory are images. What is passed over is counted, to be said."""

from __future__ import annotations

import array
import collections
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import overload

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import kinds

# Left behind by systems, archives and editors; what begins with a dot is passed over, too.
_SYSTEM = re.compile(
  r'\..*|__MACOSX|__pycache__|(ehthumbs|Thumbs)\.db|desktop\.ini|@eaDir|#recycle|\$RECYCLE\.BIN|'
  r'System Volume Information|lost\+found|.*~|.*\.(crdownload|swp)',
  re.IGNORECASE,
)
TEXT = '.txt'  # suffix of files with what is said of an image
_Key = tuple[int, int] | paths.ZipPath | paths.StorePath


def is_hidden(name: str) -> bool:
  """Whether a file or directory of this name is hidden, or the system's."""
  return bool(_SYSTEM.fullmatch(name))


class Passed:
  """What was passed over, and why."""

  def __init__(self):
    self.why = collections.Counter[str]()
    self.suffixes = collections.Counter[str]()

  def __str__(self) -> str:
    """'hidden or system entries (2), files that are not images (3 .txt)'; '' for nothing."""
    parts = [f'{why} ({count:,})' for why, count in self.why.items()]
    if self.suffixes:
      others = few([f'{count:,} {suffix}' for suffix, count in self.suffixes.most_common()], 4)
      parts.append(f'files that are not images ({others})')
    return ', '.join(parts)


class Names(Sequence[str]):
  """Many texts in one piece of memory: each takes its bytes and four to eight more."""

  def __init__(self, texts: Iterable[str]):
    text, ends = bytearray(), array.array('Q')
    for each in texts:
      text += each.encode('utf-8', 'surrogateescape')
      ends.append(len(text))
    self._text = bytes(text)
    self._ends = ends if len(text) >= 2**32 else array.array('I', ends)

  def __len__(self) -> int:
    return len(self._ends)

  @overload
  def __getitem__(self, index: int) -> str: ...
  @overload
  def __getitem__(self, index: slice) -> list[str]: ...
  def __getitem__(self, index: int | slice) -> str | list[str]:
    if isinstance(index, slice):
      return [self[at] for at in range(*index.indices(len(self)))]
    at = range(len(self))[index]
    start = self._ends[at - 1] if at else 0
    return self._text[start : self._ends[at]].decode('utf-8', 'surrogateescape')


def few(items: list[str], most: int = 8) -> str:
  """Some words as one text, not more than `most` of them."""
  more = len(items) - most
  return printable(', '.join(items[:most])) + (f' and {more:,} more' if more > 0 else '')


def printable(text: str) -> str:
  """A path, or a part of one, whose bytes need not be UTF-8."""
  return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


def folders(root: paths.AnyPath, passed: Passed) -> list[str]:
  """Names of the directories in `root` that may be classes; counts what else there is."""
  found, above = [], _above(root)
  for entry in paths.entries(root):
    if is_hidden(entry.name):
      passed.why['hidden or system entries'] += 1
    elif not _is_directory(entry):
      _count(entry, passed)
    elif _key(paths.inside(entry.path)) in above:
      passed.why['links that lead back'] += 1
    else:
      found.append(entry.name)
  return found


def images(root: paths.AnyPath, passed: Passed) -> list[str]:
  """Paths of the images in `root` and below, in order: see `below`."""
  return below(root, passed, kinds.is_image)


def texts(root: paths.AnyPath) -> list[str]:
  """Paths of the files of texts in `root` and below, in order: see `below`."""
  return below(root, Passed(), lambda path: path.lower().endswith(TEXT))


def below(
  root: paths.AnyPath, passed: Passed, wanted: Callable[[str], bool]
) -> list[str]:  # fmt: skip
  """Paths of some files in `root` and below, in order; every directory is read once.

  Links to directories are followed, those to where `root` is in or to what was read already are
  not: no file is found twice through them.
  """
  found: list[tuple[tuple[str, ...], str]] = []
  above, seen = _above(root) - {_key(root)}, set[_Key]()
  # Links wait until all that is not behind one has been read under its own name.
  waiting: list[tuple[tuple[str, ...], paths.AnyPath]] = [((), root)]
  links: collections.deque[tuple[tuple[str, ...], paths.AnyPath]] = collections.deque()
  while waiting or links:
    parts, folder = waiting.pop() if waiting else links.popleft()
    key = _key(folder)
    if key in above or key in seen:
      passed.why['links that lead back'] += 1
      continue
    seen.add(key)
    for entry in paths.entries(folder):
      name = *parts, entry.name
      if is_hidden(entry.name):
        passed.why['hidden or system entries'] += 1
      elif _is_directory(entry):
        (links if entry.is_symlink() else waiting).append((name, paths.inside(entry.path)))
      elif _is_file(entry) and wanted(entry.path):
        found.append((name, entry.path))
      else:
        _count(entry, passed)
  return [path for _, path in sorted(found)]


def read(path: str) -> bytes:
  """A file, which may be in a zip file.

  Raises:
    RunError: if it cannot be read.
  """
  try:
    return paths.inside(path).read_bytes()
  except OSError as error:
    raise paths.failure(f'cannot read {path}', error) from None


def captions(data: bytes, path: str) -> str | tuple[str, ...]:
  """What a text file beside an image says of it: a text, or several, a line each; '' for nothing.

  Raises:
    RunError: if it is no text in UTF-8.
  """
  try:
    lines = data.decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as error:
    raise RunError(
      f'{path} is no text in UTF-8 ({error.reason} at byte {error.start:,}): save it as UTF-8'
    ) from None
  found = tuple(filter(None, map(str.strip, lines)))
  return found if len(found) > 1 else ''.join(found)


def entered(root: paths.AnyPath, wanted: Iterable[str]) -> paths.AnyPath:
  """Where the directories `wanted` are: in `root`, or, of a zip file, in its only directory."""
  names = list(wanted)
  if not isinstance(root, paths.ZipPath) or root.inner:
    return root
  inner = [e.name for e in paths.entries(root) if e.is_dir() and not is_hidden(e.name)]
  if len(inner) != 1 or any((root / name).is_dir() for name in names):
    return root
  return root / inner[0] if any((root / inner[0] / name).is_dir() for name in names) else root


def splits(template: str) -> list[str]:
  """What '{split}' may stand for in a path, by what is there."""
  before, _, after = template.partition('{split}')
  folder, slash, start = before.rpartition('/')
  end, place = after.partition('/')[0], paths.inside(folder or slash or '.')
  names = [entry.name for entry in paths.entries(place)] if place.is_dir() else []
  found = [
    name[len(start) : len(name) - len(end)]
    for name in names
    if name.startswith(start) and name.endswith(end) and not is_hidden(name)
  ]
  return [name for name in found if name and paths.inside(put(template, name)).exists()]


def put(template: str, split: str) -> str:
  """A path with the name of the split in it."""
  return template.replace('{split}', split)


def _count(entry: paths.DirEntry, passed: Passed) -> None:
  """Counts what is not a directory, and not an image where one is expected."""
  if not _is_file(entry):
    passed.why['broken links or special files'] += 1
  elif kinds.is_image(entry.path):
    passed.why['images outside of class directories'] += 1
  else:
    passed.suffixes[os.path.splitext(entry.name)[1].lower() or 'without a suffix'] += 1


def _is_directory(entry: paths.DirEntry) -> bool:
  # An entry complains about a link to itself; a path just says no.
  return paths.at(entry.path).is_dir() if _is_link(entry) else entry.is_dir()


def _is_file(entry: paths.DirEntry) -> bool:
  return paths.at(entry.path).is_file() if _is_link(entry) else entry.is_file()


def _is_link(entry: paths.DirEntry) -> bool:
  """Whether it is a link that can be followed."""
  return entry.is_symlink() and isinstance(entry, os.DirEntry)


def _above(root: paths.AnyPath) -> set[_Key]:
  """The directory and all that it is in."""
  if isinstance(root, paths.ZipPath | paths.StorePath):  # in which no links are followed
    return set()
  whole = root.resolve()
  return {_key(path) for path in (whole, *whole.parents)}


def _key(path: paths.AnyPath) -> _Key:
  if isinstance(path, paths.ZipPath | paths.StorePath):
    return path
  found = path.stat()
  return found.st_dev, found.st_ino
