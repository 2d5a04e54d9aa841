"""Which of the files in a directory are images. What is passed over is counted, to be said."""

from __future__ import annotations

import collections
import os
import re

from vit_jax.core import paths
from vit_jax.data import kinds

# Left behind by systems, archives and editors; what begins with a dot is passed over, too.
_SYSTEM = re.compile(
  r'\..*|__MACOSX|__pycache__|(ehthumbs|Thumbs)\.db|desktop\.ini|@eaDir|#recycle|\$RECYCLE\.BIN|'
  r'System Volume Information|lost\+found|.*~|.*\.(crdownload|swp)',
  re.IGNORECASE,
)
_Key = tuple[int, int]


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


def few(items: list[str], most: int = 8) -> str:
  """Some words as one text, not more than `most` of them."""
  more = len(items) - most
  return printable(', '.join(items[:most])) + (f' and {more:,} more' if more > 0 else '')


def printable(text: str) -> str:
  """A path, or a part of one, whose bytes need not be UTF-8."""
  return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


def folders(root: paths.Path, passed: Passed) -> list[str]:
  """Names of the directories in `root` that may be classes; counts what else there is."""
  found, above = [], _above(root)
  for entry in paths.entries(root):
    if is_hidden(entry.name):
      passed.why['hidden or system entries'] += 1
    elif not _is_directory(entry):
      _count(entry, passed)
    elif _key(paths.at(entry.path)) in above:
      passed.why['links that lead back'] += 1
    else:
      found.append(entry.name)
  return found


def images(root: paths.Path, passed: Passed) -> list[str]:
  """Paths of the images in `root` and below, in order; every directory is read once.

  Links to directories are followed, those to where `root` is in or to what was read already are
  not: no image is found twice through them.
  """
  found: list[tuple[tuple[str, ...], str]] = []
  above, seen = _above(root) - {_key(root)}, set[_Key]()
  # Links wait until all that is not behind one has been read under its own name.
  waiting: list[tuple[tuple[str, ...], paths.Path]] = [((), root)]
  links: collections.deque[tuple[tuple[str, ...], paths.Path]] = collections.deque()
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
        (links if entry.is_symlink() else waiting).append((name, paths.at(entry.path)))
      elif _is_file(entry) and kinds.is_image(entry.path):
        found.append((name, entry.path))
      else:
        _count(entry, passed)
  return [path for _, path in sorted(found)]


def _count(entry: os.DirEntry[str], passed: Passed) -> None:
  """Counts what is not a directory, and not an image where one is expected."""
  if not _is_file(entry):
    passed.why['broken links or special files'] += 1
  elif kinds.is_image(entry.path):
    passed.why['images outside of class directories'] += 1
  else:
    passed.suffixes[os.path.splitext(entry.name)[1].lower() or 'without a suffix'] += 1


def _is_directory(entry: os.DirEntry[str]) -> bool:
  # An entry complains about a link to itself; a path just says no.
  return paths.at(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
  return paths.at(entry.path).is_file() if entry.is_symlink() else entry.is_file()


def _above(root: paths.Path) -> set[_Key]:
  """The directory and all that it is in."""
  whole = root.resolve()
  return {_key(path) for path in (whole, *whole.parents)}


def _key(path: paths.Path) -> _Key:
  found = path.stat()
  return found.st_dev, found.st_ino
