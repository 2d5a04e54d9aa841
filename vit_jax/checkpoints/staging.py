"""Checkpoints on their way to an object store, through a directory of this machine."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any

import jax

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.processes import exchange, peers

FACTS = '_CHECKPOINT_METADATA'  # in the directory of a checkpoint, as Orbax names it
_PATIENCE = 900.0  # seconds that a store may not serve, as TensorStore has it by default
_LOCK = '__lock'  # of TensorStore, in names of files


class Staging:
  """A directory of this machine that all processes see, and what is uploaded from there.

  Attributes:
    place: of the directory, where TMPDIR says.
  """

  def __init__(self, directory: paths.StorePath):
    """Empties it; raises RunError if some process does not see it.

    Args:
      directory: of the checkpoints, in a store.
    """
    self._directory = directory
    self.place = place = paths.temporary(str(directory))
    proof = place / 'proof'

    def empty() -> str:
      with paths.writing(place):
        paths.delete(place)
        place.mkdir(parents=True)
      text = secrets.token_hex()
      paths.write_text(proof, text)
      return text

    text = peers.agreed('a directory for checkpoints', empty)
    if exchange.largest(int(not proof.is_file() or proof.read_text() != text)):
      raise RunError(
        f'{directory}: checkpoints go to {directory.scheme}:// through a directory that '
        f'all processes see, which {place} is not: set TMPDIR to one, or use gs://'
      )

  def upload(self, step: int) -> None:
    """Each process uploads a part of what all have written; process 0 what makes it count."""
    staged, target = self.place / str(step), self._directory / str(step)
    part = slice(jax.process_index(), None, jax.process_count())
    rest = lambda name: name != FACTS and not name.endswith(_LOCK)  # noqa: E731
    patiently(lambda: paths.upload(staged, target, rest, part))
    peers.meet(f'the upload of {target}', seconds=4 * _PATIENCE)
    if jax.process_index() == 0:
      # Files that a process did not see are nobody's part.
      patiently(lambda: _complete(staged, target, rest))
      patiently(lambda: paths.upload(staged, target, lambda name: name == FACTS))
      _cleared(staged)

  def close(self) -> None:
    """Deletes the directory."""
    if jax.process_index() == 0:
      _cleared(self.place)


def patiently(work: Callable[[], Any]) -> None:
  """Does it, in the background, as often as it takes a store to serve."""
  end = time.monotonic() + _PATIENCE
  while True:
    try:
      work()
      return
    except TimeoutError:
      if time.monotonic() > end:
        raise
    time.sleep(5)


def _complete(
  staged: paths.LocalPath, target: paths.StorePath, which: Callable[[str], bool]
) -> None:
  """Uploads what is not there, or not as long as it should be."""
  there = target.files()
  for name in paths.below(staged):
    if which(name.rpartition('/')[2]) and there.get(name) != (staged / name).stat().st_size:
      paths.upload(staged / name, target / name)


def _cleared(path: paths.LocalPath) -> None:
  """Deletes files that do not last; whatever of them is left is deleted the next time."""
  with contextlib.suppress(OSError):  # TensorStore takes its locks away later than it says
    paths.delete(path)
