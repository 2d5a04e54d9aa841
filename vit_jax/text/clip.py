"""CLIP's tokenizer: pairs of bytes, merged in words (Sennrich et al. 2016, Radford et al. 2021).

The package regex knows letters and numbers of all alphabets as CLIP's own code does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import heapq
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.text import forms
from vit_jax.text.tokenizer import Filed, Frame, digest_of, once, without

# Of the published vocabulary; its file has more, which are not used.
SIZE = 49408
_MERGES = SIZE - 2 * 256 - 2
_END = '</w>'
_SPECIAL = (('<|startoftext|>', '<|endoftext|>'), ('<start_of_text>', '<end_of_text>'))
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Words that are longer, in bytes, are not remembered.
_LONG = 64
_WHAT = (
  "it is CLIP's bpe_simple_vocab_16e6.txt.gz, or of a checkpoint of transformers tokenizer.json, "
  'or vocab.json with merges.txt beside it'
)


def _letters() -> dict[str, int]:
  """A visible character for each byte, in the order in which they are numbered."""
  shown = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
  hidden = [byte for byte in range(256) if byte not in shown]
  return {chr(byte): byte for byte in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTE = _letters()
_LETTER = {byte: letter for letter, byte in _BYTE.items()}
# What pieces are made of: bytes, and bytes that end words.
_UNITS = (*_BYTE, *(letter + _END for letter in _BYTE))


@functools.cache
def _split() -> Callable[[str], Iterator[Any]]:
  try:
    import regex
  except ImportError:
    raise without('regex') from None
  return regex.compile(_WORD, regex.IGNORECASE).finditer


class BytePairs:
  """Words, cut into bytes that are merged pair by pair in the order of a list.

  Attributes:
    size, digest: see `Vocabulary`.
    start, end: numbers of the tokens around a text.
  """

  def __init__(
    self, merges: Sequence[tuple[str, str]], numbers: Mapping[str, int], special: tuple[str, str]
  ):
    """Pairs in the order in which they are merged, and numbers of all pieces, special ones too."""
    self._ranks = {pair: rank for rank, pair in enumerate(merges)}
    self._numbers = dict(numbers)
    self._pieces = {number: piece for piece, number in numbers.items()}
    self.start, self.end = (self._numbers[name] for name in special)
    self._special = {self.start: '', self.end: ''}
    self.size = max(self._pieces) + 1
    others = [p for n, p in sorted(self._pieces.items()) if n not in self._special]
    self.digest = digest_of(repr((list(merges), others, self.start, self.end)).encode())
    self._remembered = functools.lru_cache(1 << 16)(self._word)

  def ids(self, text: str, most: int, *, begins: bool = True) -> list[int]:
    """See `Vocabulary`: words do not know of each other, so what follows is not looked at."""
    found: list[int] = []
    for match in _split()(text):
      word = match[0].encode()
      found += self._word(word) if len(word) > _LONG else self._remembered(word)
      if len(found) >= most:
        break
    return found

  def _word(self, word: bytes) -> tuple[int, ...]:
    """Numbers of the pieces of a word.

    All occurrences of the pair that comes first in the list are merged, from left to right, then
    those of the next that is there; in n log n steps for n bytes.
    """
    parts = [_LETTER[byte] for byte in word]
    parts[-1] += _END
    count, ranks = len(parts), self._ranks
    left, right = list(range(-1, count - 1)), list(range(1, count + 1))
    heap = [
      (ranks[pair], at) for at, pair in enumerate(itertools.pairwise(parts)) if pair in ranks
    ]  # fmt: skip
    heapq.heapify(heap)
    while heap:
      rank, places = heap[0][0], []
      while heap and heap[0][0] == rank:
        places.append(heapq.heappop(heap)[1])
      for at in places:
        other = right[at]
        if other == count or ranks.get((parts[at], parts[other])) != rank:
          continue  # one of the two has been merged since
        parts[at] += parts[other]
        parts[other] = ''
        right[at] = beyond = right[other]
        if beyond < count:
          left[beyond] = at
        for a, b in ((left[at], at), (at, beyond)):
          if a >= 0 and b < count and (pair := (parts[a], parts[b])) in ranks:
            heapq.heappush(heap, (ranks[pair], a))
    return tuple(self._numbers[part] for part in parts if part)

  def words(self, ids: Sequence[int]) -> str:
    """See `Vocabulary`."""
    found = bytearray()
    for number in ids:
      piece = self._special.get(number, self._pieces[number])
      found += bytes(_BYTE[letter] for letter in piece.removesuffix(_END))
      found += b' ' if piece.endswith(_END) else b''
    return found.decode('utf-8', 'replace').strip()

  def number(self, piece: str) -> int:
    """See `Vocabulary`."""
    return self._numbers.get(piece, -1)


def _numbered(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
  """Pieces of a list of merges, numbered as CLIP does: bytes, bytes that end words, products."""
  pieces = [*_UNITS, *map(''.join, merges), *_SPECIAL[0]]
  return {piece: number for number, piece in enumerate(pieces)}


@once
def read(path: paths.LocalPath, merges_of: paths.LocalPath | None = None) -> BytePairs:
  """What is in one of the files that hold it; raises RunError for any other one.

  Args:
    path: of a list of merges, tokenizer.json, or vocab.json.
    merges_of: the list that belongs to vocab.json.
  """
  if path.suffix != '.json':
    merges = _listed(path)
    return _checked(path, merges, _numbered(merges))
  given = paths.read_object(path)
  if merges_of:
    return _checked(path, _listed(merges_of), given)
  model: Any = given.get('model')
  try:
    kind, ends = model.get('type', 'BPE'), model.get('end_of_word_suffix')
    if kind == 'BPE' and ends == _END:
      merges = [tuple(m.split(' ')) if isinstance(m, str) else tuple(m) for m in model['merges']]
      added = {each['content']: each['id'] for each in given.get('added_tokens', ())}
      return _checked(path, merges, {**model['vocab'], **added})
  except (AttributeError, KeyError, TypeError):
    raise RunError(f'{path} is no tokenizer: {_WHAT}') from None
  raise RunError(
    f"{path} is not CLIP's tokenizer, but one of the kind {kind} that does not mark the ends of "
    "words: for such a file, name='json'"
  )


def _listed(path: paths.LocalPath) -> list[tuple[str, str]]:
  """The pairs of a text file, packed or not, below its heading."""
  data = path.read_bytes()
  if data[:2] == b'\x1f\x8b':
    try:
      data = gzip.decompress(data)
    except (EOFError, OSError, zlib.error):
      raise RunError(f'{path} is damaged: not all of it can be unpacked') from None
  try:
    lines = data.decode().split('\n')
  except UnicodeDecodeError:
    raise RunError(f'{path} is no text: {_WHAT}') from None
  if '#version' not in lines[0]:
    raise RunError(f'{path} does not begin with a line that says #version: {_WHAT}')
  ended = not lines[-1].strip()
  lines = [line.rstrip('\r') for line in lines[1:] if line.strip()]
  if len(lines) < _MERGES and not ended:
    raise RunError(f'{path} ends in the middle of a line: it is not whole')
  return [tuple(line.split(' ')) for line in lines[:_MERGES]]  # pyright: ignore


def _checked(path: paths.LocalPath, merges: Any, numbers: Any) -> BytePairs:
  """Raises RunError where numbers would be missing or ambiguous."""
  special = next((s for s in _SPECIAL if set(s) <= numbers.keys()), None)
  known = {*_UNITS}
  for at, pair in enumerate(merges):
    if len(pair) != 2 or not known.issuperset(pair):
      raise RunError(
        f'{path}: merge {at + 1:,}, {" ".join(map(str, pair))!r:.60}, is not a pair of what is '
        f'there before it: {_WHAT}'
      )
    known.add(pair[0] + pair[1])
  with contextlib.suppress(TypeError):
    if special and known <= numbers.keys() and (
      sorted(numbers.values()) == list(range(len(numbers)))
    ):  # fmt: skip
      return BytePairs(merges, numbers, special)
  raise RunError(
    f'{path} does not give each piece of its merges, {_SPECIAL[0][0]} and {_SPECIAL[0][1]} a '
    f'number of its own, from 0 on: {_WHAT}'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Filed):
  """The tokenizer of CLIP and of most OpenCLIP checkpoints.

  Texts are mended (by ftfy), their entities resolved, and in lower case. A row begins with the
  token <|startoftext|>, ends with <|endoftext|>, and is filled with 0. That a text spells one of
  these does not make it one.

  Attributes:
    file: bpe_simple_vocab_16e6.txt.gz as in the packages of CLIP and OpenCLIP; or of a checkpoint
      of transformers tokenizer.json, merges.txt, or vocab.json with merges.txt beside it.
  """

  kind: ClassVar[str] = 'clip'
  usual: ClassVar[int] = 77

  @property
  def files(self) -> tuple[str, ...]:
    """See `Tokenizer`."""
    path = paths.at(self.file)
    if path.name != 'vocab.json':
      return super().files
    return self.file, str(path.with_name('merges.txt'))

  def opened(self) -> BytePairs:
    """See `Tokenizer`."""
    return read(*self.there(_WHAT))

  @property
  def size(self) -> int:
    """See `Tokenizer`; where no file is named, that of the published one."""
    return self.opened().size if self.file else SIZE

  def framed(self, pieces: BytePairs) -> Frame:
    """See `Tokenizer`."""
    return Frame((pieces.start,), (pieces.end,), 0)

  @property
  def frame(self) -> Frame:
    """See `Tokenizer`; where no file is named, that of the published one."""
    return super().frame if self.file else Frame((SIZE - 2,), (SIZE - 1,), 0)

  def form(self, text: str) -> str:
    """See `Tokenizer` and `forms.cleaned`."""
    return forms.cleaned(text)
