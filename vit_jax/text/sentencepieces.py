"""Vocabularies of SentencePiece (Kudo & Richardson 2018), read by the package sentencepiece."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.text.tokenizer import Filed, Frame, digest_of, once, without

WHAT = 'it is a model of SentencePiece, such as spiece.model or tokenizer.model'
# Fields of a model (sentencepiece_model.proto): pieces, how it was trained, how texts are written.
_NEEDED = {1, 2, 3}
# How texts are written, field 3: neither with another space in front (field 3 of that) nor without
# those of their own (field 4).
_AS_IT_IS = bytes([3 << 3 | 2, 4, 3 << 3, 0, 4 << 3, 0])


def _processor(data: bytes) -> Any:
  """The package's own; raises RunError without it."""
  try:
    import sentencepiece
  except ImportError:
    raise without('sentencepiece') from None
  return sentencepiece.SentencePieceProcessor(model_proto=data)


class Pieces:
  """See `Vocabulary`.

  Attributes:
    end, pad, start: numbers of the tokens of these meanings; -1 for none.
  """

  def __init__(self, data: bytes):
    """Of the bytes of a model; raises what the package does."""
    self._data, self._model = data, _processor(data)
    self.size, self.digest = self._model.get_piece_size(), digest_of(data)
    self.start, self.end = self._model.bos_id(), self._model.eos_id()
    self.pad = self._model.pad_id()

  def ids(self, text: str, most: int, *, begins: bool = True) -> list[int]:
    """See `Vocabulary`."""
    return (self._model if begins else self._inner).encode(text)

  @functools.cached_property
  def _inner(self) -> Any:
    """The model, without a space that it puts before texts."""
    # Of a field that is there twice, what the second one says counts.
    return _processor(self._data + _AS_IT_IS)

  def words(self, ids: Sequence[int]) -> str:
    """See `Vocabulary`."""
    return self._model.decode(list(ids))

  def number(self, piece: str) -> int:
    """See `Vocabulary`."""
    found = self._model.piece_to_id(piece)
    return found if self._model.id_to_piece(found) == piece else -1


@once
def read(path: paths.LocalPath) -> Pieces:
  """What is in a file; raises RunError if it is no whole model."""
  data = path.read_bytes()
  if not _fields(data) >= _NEEDED:
    raise RunError(f'{path} is no model of SentencePiece, or not all of one: {WHAT}')
  try:
    return Pieces(data)
  except (RuntimeError, OSError, ValueError) as error:
    raise RunError(f'{path} is a damaged model of SentencePiece: {error}') from None


def _fields(data: bytes) -> set[int]:
  """Numbers of the fields of a message of protocol buffers; none if it is not whole.

  What is cut between two fields is a message all the same, but with some that are missing.
  """
  at, found = 0, set()
  while at < len(data):
    tag, at = _varint(data, at)
    size, at = _varint(data, at) if tag & 7 == 2 else (0, -1)
    if at < 0 or at + size > len(data):
      return set()
    at += size
    found.add(tag >> 3)
  return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """A number at a place, and the place behind it; -1 if it does not end."""
  value = 0
  for shift in range(0, 64, 7):
    if at < 0 or at >= len(data):
      break
    value |= (data[at] & 127) << shift
    at += 1
    if data[at - 1] < 128:
      return value, at
  return 0, -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece(Filed):
  """Any model of SentencePiece. Texts are as they are, but for what the model itself does to them.

  A row ends with the end token of the model, if it has one, and is filled with its padding token;
  where it has none, with the end token.

  Attributes:
    file: the model, such as spiece.model or tokenizer.model.
    start: whether rows begin with the start token of the model.
  """

  kind: ClassVar[str] = 'sentencepiece'

  start: bool = False

  def opened(self) -> Pieces:
    """See `Tokenizer`."""
    return read(*self.there(WHAT))

  def framed(self, pieces: Pieces) -> Frame:
    """See `Tokenizer`."""
    if self.start and pieces.start < 0:
      raise RunError(f'tokenizer.start: {self.file} has no token that begins a text')
    before = (pieces.start,) if self.start else ()
    after = (pieces.end,) if pieces.end >= 0 else ()
    return Frame(before, after, pieces.pad if pieces.pad >= 0 else [*after, 0][0])
