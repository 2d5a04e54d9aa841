"""Tokenizers without a file: bytes, for texts of anybody, and words, for those that are drawn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.text import forms
from vit_jax.text.tokenizer import Frame, Tokenizer, digest_of


class _Bytes:
  """See `Vocabulary`."""

  size, digest = 258, 'utf-8'

  def ids(self, text: str, most: int, *, begins: bool = True) -> list[int]:
    """See `Vocabulary`: 1 for the byte 0, and so on."""
    return [byte + 1 for byte in text[:most].encode()]

  def words(self, ids: Sequence[int]) -> str:
    """See `Vocabulary`."""
    return bytes(number - 1 for number in ids if 0 < number < 257).decode('utf-8', 'replace')

  def number(self, piece: str) -> int:
    """See `Vocabulary`."""
    return piece.encode()[0] + 1 if len(piece.encode()) == 1 else -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
  """UTF-8, byte by byte: no vocabulary is needed, and nothing is unknown.

  0 fills rows, 257 ends texts, which are otherwise as they are. A text that is cut may end within a
  character.
  """

  kind: ClassVar[str] = 'bytes'
  usual: ClassVar[int] = 128

  def opened(self) -> _Bytes:
    """See `Tokenizer`."""
    return _Bytes()

  def framed(self, pieces: _Bytes) -> Frame:
    """See `Tokenizer`."""
    return Frame((), (pieces.size - 1,), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blank(Tokenizer):
  """Stands for a tokenizer whose file is not there, where only the sizes of things matter.

  Attributes:
    size, end: its.
  """

  kind: ClassVar[str] = 'blank'
  size: int = 1  # type: ignore
  end: int = 0  # type: ignore

  @classmethod
  def like(cls, other: Tokenizer) -> Blank:
    """Of the sizes of another one, which are known without its file."""
    return cls(length=other.length, size=other.size, end=other.end)

  def opened(self) -> _Bytes:
    """See `Tokenizer`."""
    return _Bytes()

  def framed(self, pieces: _Bytes) -> Frame:
    """See `Tokenizer`."""
    del pieces
    return Frame((), (self.end,), 0)

  def row(self, text: str) -> np.ndarray:
    """See `Tokenizer`: of any text the same."""
    del text
    row = np.zeros(self.length, np.int32)
    row[-1] = self.end
    return row


class _Words:
  """See `Vocabulary`."""

  def __init__(self, words: tuple[str, ...]):
    self._words = ('', '?', *words, '')
    self._numbers: Mapping[str, int] = {word: number for number, word in enumerate(words, 2)}
    self.size, self.digest = len(self._words), digest_of('\n'.join(words).encode())

  def ids(self, text: str, most: int, *, begins: bool = True) -> list[int]:
    """See `Vocabulary`."""
    return [self._numbers.get(word, 1) for word in text.split(' ', most)[:most] if word]

  def words(self, ids: Sequence[int]) -> str:
    """See `Vocabulary`."""
    return ' '.join(filter(None, (self._words[number] for number in ids)))

  def number(self, piece: str) -> int:
    """See `Vocabulary`."""
    return self._numbers.get(piece, -1)


_words = functools.lru_cache(8)(_Words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(Tokenizer):
  """A list of words: for texts that are made from few of them.

  Texts are in lower case and cut at white space. 0 fills rows, 1 is any other word, 2 the first of
  the list; the largest number ends texts.

  Attributes:
    vocabulary: the words, in lower case; of a task those of the data, if they say them.
  """

  kind: ClassVar[str] = 'words'
  usual: ClassVar[int] = 16

  vocabulary: tuple[str, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    for word in self.vocabulary:
      if not isinstance(word, str) or self.form(word) != word or len(word.split()) != 1:
        raise RunError(
          f'tokenizer.vocabulary has {word!r}: words are in lower case, without spaces'
        )
    if twice := sorted({w for w in self.vocabulary if self.vocabulary.count(w) > 1}):
      raise RunError(f'tokenizer.vocabulary has {twice[0]!r} twice')

  def opened(self) -> _Words:
    """See `Tokenizer`."""
    if not self.vocabulary:
      raise RunError('tokenizer.vocabulary is empty: give the words of the texts')
    return _words(self.vocabulary)

  def framed(self, pieces: _Words) -> Frame:
    """See `Tokenizer`."""
    return Frame((), (pieces.size - 1,), 0)

  def form(self, text: str) -> str:
    """See `Tokenizer`."""
    return ' '.join(forms.whole(text).lower().split())
