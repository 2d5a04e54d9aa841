"""What every tokenizer does: a text becomes a row of numbers of one length, with a frame."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.text import forms


class Frame(NamedTuple):
  """The numbers around the pieces of a text.

  Attributes:
    before: those at the start of a row.
    after: those behind the last piece, also where a text is cut.
    pad: fills the row.
  """

  before: tuple[int, ...]
  after: tuple[int, ...]
  pad: int


class Vocabulary(Protocol):
  """Pieces and their numbers, without a frame.

  Attributes:
    size: one more than the largest number.
    digest: of whatever decides about numbers.
  """

  size: int
  digest: str

  def ids(self, text: str, most: int, *, begins: bool = True) -> list[int]:
    """Numbers of the pieces of a text; of more than `most` perhaps only the first `most`.

    Args:
      text: in its form.
      most: how many are wanted.
      begins: whether nothing is before it. Else it has no space in front that is not its own.
    """
    ...

  def words(self, ids: Sequence[int]) -> str:
    """What numbers of pieces say; those of special tokens may be among them."""
    ...

  def number(self, piece: str) -> int:
    """Of a piece; -1 if there is none like it."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(abc.ABC):
  """A vocabulary, the form of texts that it expects, and the frame of rows.

  Attributes:
    length: tokens of a row; 0 for what is usual for its kind: 77 of CLIP, 128 of bytes, 16 of
      words, 64 of all others.
    known: the `digest` that it must have; '' for any. Checkpoints say it of theirs, so that another
      file under the same name is refused.
  """

  kind: ClassVar[str]
  usual: ClassVar[int] = 64

  length: int = 0
  known: str = ''

  def __post_init__(self):
    object.__setattr__(self, 'length', self.length or self.usual)
    if self.length < 1:
      raise RunError(f'tokenizer.length={self.length} must be at least 1')

  @property
  def files(self) -> tuple[str, ...]:
    """Paths of what is read; a checkpoint keeps copies under the same names."""
    return ()

  @abc.abstractmethod
  def opened(self) -> Vocabulary:
    """The pieces; raises RunError for a file that is not what it should be."""

  @abc.abstractmethod
  def framed(self, pieces: Any) -> Frame:
    """The frame of rows of pieces that are opened; raises RunError for fields that do not fit."""

  @property
  def frame(self) -> Frame:
    """Of rows; raises RunError as `opened` does."""
    return self.framed(self.opened())

  @property
  def size(self) -> int:
    """How many different tokens there are: the rows of a model's table."""
    return self.opened().size

  @property
  def end(self) -> int:
    """Number of the token that ends every text, the first of its kind in a row; -1 for none."""
    return self.frame.after[-1] if self.frame.after else -1

  @property
  def digest(self) -> str:
    """Sixteen letters that are others if any text could have another row."""
    return self._digest(self.opened())

  @property
  def named(self) -> Self:
    """Itself, bound to what its files hold now: see `known`; raises RunError as `row` does."""
    return dataclasses.replace(self, known=self._digest(self._checked()[0]))

  def form(self, text: str) -> str:
    """How texts are written before they are cut into pieces.

    Halves of characters (surrogates without the other one), which JSON can hold and UTF-8 cannot,
    become U+FFFD, as everywhere in Unicode.

    Raises:
      RunError: for what is no text.
    """
    return forms.whole(text)

  def ids(self, text: str, *, begins: bool = True) -> list[int]:
    """Numbers of the pieces of a text alone, however many; raises RunError as `opened` does.

    Args:
      text: whatever.
      begins: whether nothing is before it. Else it goes on behind other pieces, without the space
        that some vocabularies put before texts.
    """
    return self._checked()[0].ids(self.form(text), sys.maxsize, begins=begins)

  def row(self, text: str) -> np.ndarray:
    """int32 (length,): a text in its frame. One that is too long is cut, and ended all the same.

    Raises:
      RunError: as `opened` does; for what is no text; or if the frame alone fills the row.
    """
    pieces, (before, after, pad) = self._checked()
    room = self.length - len(before) - len(after)
    if room < 1:
      raise RunError(
        f'tokenizer.length={self.length} leaves no place for a text: '
        f'{len(before) + len(after)} tokens are around it'
      )
    ids = [*before, *pieces.ids(self.form(text), room)[:room], *after]
    row = np.full(self.length, pad, np.int32)
    row[: len(ids)] = ids
    return row

  def words(self, ids: Any) -> str:
    """What a row, or pieces of a text, say; up to the first token that ends a text.

    Args:
      ids: whole numbers.

    Raises:
      RunError: for a number that no token has.
    """
    pieces, (before, after, pad) = self._checked()
    numbers = [int(number) for number in ids]
    for number in numbers:
      if not 0 <= number < pieces.size:
        raise RunError(
          f'there is no token {number}: this tokenizer has those from 0 to {pieces.size - 1:,}'
        )
    if before and tuple(numbers[: len(before)]) == before:
      numbers = numbers[len(before) :]
    if after and after[-1] in numbers:
      numbers = numbers[: numbers.index(after[-1])]
    while not after and numbers and numbers[-1] == pad:
      numbers.pop()
    return pieces.words(numbers)

  def _digest(self, pieces: Vocabulary) -> str:
    return _digest_of_rows(self.kind, self.length, self.framed(pieces), pieces.digest)

  def _checked(self) -> tuple[Vocabulary, Frame]:
    """The pieces and the frame, if they are those that are known."""
    pieces = self.opened()
    if self.known and self.known != (found := self._digest(pieces)):
      where = f'{", ".join(self.files)} is' if self.files else 'it is'
      raise RunError(
        f'this is another tokenizer than the one that the model was trained with: {where} '
        f'{found} at {self.length} tokens, and {self.known} is expected. Give the file that it was '
        'trained with, and its length'
      )
    return pieces, self.framed(pieces)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filed(Tokenizer):
  """A tokenizer whose pieces are in a file.

  Attributes:
    file: where it is.
  """

  file: str = ''

  @property
  def files(self) -> tuple[str, ...]:
    """See `Tokenizer`."""
    return (self.file,) if self.file else ()

  def there(self, what: str) -> list[paths.LocalPath]:
    """Its files on this machine; raises RunError if there is none, or none is named.

    Args:
      what: they must be.
    """
    if not self.file:
      raise RunError(f'tokenizer.file is missing: {what}')
    found = []
    for file in self.files:
      path = paths.fetched(paths.at(file))
      if not path.is_file():
        said = f'{file} is a directory' if path.is_dir() else f'there is no file {file}'
        raise RunError(f'{said}: {what}')
      found.append(path)
    return found


def once(read: Callable[..., Any]) -> Callable[..., Any]:
  """A function of files, called again only for others: another place, time or size."""

  @functools.lru_cache(8)
  def kept(files: tuple[paths.LocalPath, ...], stamps: tuple[tuple[int, int], ...]) -> Any:
    return read(*files)

  def opened(*files: paths.LocalPath) -> Any:
    found = [file.stat() for file in files]
    return kept(files, tuple((each.st_mtime_ns, each.st_size) for each in found))

  return opened


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


@functools.lru_cache
def _digest_of_rows(*said: Any) -> str:
  return _digest(repr(said).encode())


def digest_of(*parts: bytes) -> str:
  """Of bytes, in this order."""
  return _digest(b''.join(hashlib.sha256(part).digest() for part in parts))


def without(package: str) -> RunError:
  """What is raised where a package is missing that reads a vocabulary."""
  return RunError(f"texts are read by the package {package}: pip install 'vit_jax[text]'")
