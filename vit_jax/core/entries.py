"""What is in a directory that is none of the operating system's."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
  """A file, a directory or a link, with as much of `os.DirEntry` as is needed."""

  name: str
  path: str
  directory: bool
  link: bool = False

  def is_dir(self) -> bool:
    """Whether it is a directory."""
    return self.directory

  def is_file(self) -> bool:
    """Whether it is a file; links are none, and are not followed."""
    return not self.directory and not self.link

  def is_symlink(self) -> bool:
    """Whether it is a link."""
    return self.link
