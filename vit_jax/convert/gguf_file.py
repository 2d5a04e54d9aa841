"""GGUF, the format in which llama.cpp keeps models: facts by name, and arrays of few bits a number.

Arrays are read when they are asked for. What a file says of itself is believed as far as the file
goes: a damaged one, or one that was made to harm, is refused before memory is taken for it.

Source: docs/gguf.md of github.com/ggml-org/ggml, and its ggml-quants.c for blocks of numbers.
"""

from __future__ import annotations

import contextlib
import functools
import math
import reprlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from vit_jax.convert.stubs import Arrays, Stub
from vit_jax.core import paths
from vit_jax.core.errors import RunError

MAGIC = b'GGUF'
VERSIONS = (2, 3)
Facts = dict[str, Any]

# What a fact may be, by the number of its type.
_NUMBERS = {0: 'u1', 1: 'i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4', 6: '<f4', 7: '?', 10: '<u8',
            11: '<i8', 12: '<f8'}  # fmt: skip
_FLOAT, _BOOL, _TEXT, _ARRAY = 6, 7, 8, 9
# Arrays in arrays; no known file has any.
_DEEPEST = 4
# GGML_MAX_DIMS of ggml.h.
_MOST_AXES = 4
_ALIGNMENT = 'general.alignment'

# What a message shows of a file.
_SHORT = reprlib.Repr()
_SHORT.maxstring = 100
short = _SHORT.repr


class _Kind(NamedTuple):
  """A type of arrays: its name, one block of it, how many numbers that is, and which they are."""

  name: str
  block: np.dtype
  numbers: int
  decoded: Callable[[np.ndarray], np.ndarray]


def _plain(numbers: np.ndarray) -> np.ndarray:
  return numbers.astype(np.float32)


def _column(blocks: np.ndarray, name: str) -> np.ndarray:
  return blocks[name].astype(np.float32)[:, None]


def _nibbles(blocks: np.ndarray) -> np.ndarray:
  """Numbers from 0 to 15: those in the low halves of the bytes of a block, then the high ones."""
  return np.concatenate([blocks['pairs'] & 15, blocks['pairs'] >> 4], axis=1)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
  return _column(blocks, 'scale') * blocks['numbers']


def _q4_0(blocks: np.ndarray) -> np.ndarray:
  return _column(blocks, 'scale') * (_nibbles(blocks).astype(np.int8) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
  return _column(blocks, 'scale') * _nibbles(blocks) + _column(blocks, 'least')


_SCALE = ('scale', '<f2')
_PAIRS = ('pairs', 'u1', 16)
_KINDS = {
  0: _Kind('F32', np.dtype('<f4'), 1, _plain),
  1: _Kind('F16', np.dtype('<f2'), 1, _plain),
  30: _Kind('BF16', np.dtype(ml_dtypes.bfloat16), 1, _plain),
  8: _Kind('Q8_0', np.dtype([_SCALE, ('numbers', 'i1', 32)]), 32, _q8_0),
  2: _Kind('Q4_0', np.dtype([_SCALE, _PAIRS]), 32, _q4_0),
  3: _Kind('Q4_1', np.dtype([_SCALE, ('least', '<f2'), _PAIRS]), 32, _q4_1),
}
# Those that are not read, for messages.
_OTHERS = {
  6: 'Q5_0', 7: 'Q5_1', 9: 'Q8_1', 10: 'Q2_K', 11: 'Q3_K', 12: 'Q4_K', 13: 'Q5_K', 14: 'Q6_K',
  15: 'Q8_K', 16: 'IQ2_XXS', 17: 'IQ2_XS', 18: 'IQ3_XXS', 19: 'IQ1_S', 20: 'IQ4_NL', 21: 'IQ3_S',
  22: 'IQ2_S', 23: 'IQ4_XS', 24: 'I8', 25: 'I16', 26: 'I32', 27: 'I64', 28: 'F64', 29: 'IQ1_M',
  34: 'TQ1_0', 35: 'TQ2_0', 39: 'MXFP4',
}  # fmt: skip


class _Reader:
  """What follows in a file; RunError for what is not there."""

  def __init__(self, path: paths.LocalPath, file: IO[bytes], size: int):
    self.path, self.size, self.at, self._file = path, size, 0, file

  def error(self, problem: str) -> RunError:
    return RunError(f'{self.path} is damaged: {problem}')

  def take(self, size: int) -> bytes:
    if size > self.size - self.at:
      raise self.error(
        f'of {size:,} bytes that should follow byte {self.at:,} there are {self.size - self.at:,}'
      )
    data = self._file.read(size)
    if len(data) != size:
      raise self.error('it became shorter while it was read')
    self.at += size
    return data

  def whole(self, size: int) -> int:
    return int.from_bytes(self.take(size), 'little')

  def text(self) -> str:
    data = self.take(self.whole(8))
    try:
      return data.decode()
    except UnicodeDecodeError as error:
      raise self.error(f'the text before byte {self.at:,} is not UTF-8: {error.reason}') from None

  def numbers(self, kind: int, count: int) -> np.ndarray:
    dtype = np.dtype(_NUMBERS[kind])
    array = np.frombuffer(self.take(count * dtype.itemsize), dtype)
    if kind == _BOOL and array.view(np.uint8).max(initial=0) > 1:
      raise self.error(f'what should be true or false before byte {self.at:,} is neither')
    return array

  def fact(self, kind: int, depth: int = 0) -> Any:
    if kind in _NUMBERS:
      # A float32 remains one: the shortest decimal that means it is not that of its float64.
      number = self.numbers(kind, 1)[0]
      return number if kind == _FLOAT else number.item()
    if kind == _TEXT:
      return self.text()
    if kind != _ARRAY:
      raise self.error(f'there is no type {kind} of facts')
    inside, count = self.whole(4), self.whole(8)
    if inside in _NUMBERS:
      return self.numbers(inside, count)
    if depth == _DEEPEST:
      raise self.error(f'there are arrays in more than {_DEEPEST} others')
    return [self.fact(inside, depth + 1) for _ in range(count)]


def facts(path: paths.Path) -> Facts:
  """What a file says beside its arrays, by name.

  Returns:
    Whole numbers, floats (`np.float32` where the file has those), bools and texts; of these, lists
    of texts and of lists, and arrays of anything else.

  Raises:
    RunError: if the file is missing, damaged or not of this format.
  """
  with _opened(path) as reader:
    return _facts(reader)[0]


def read(path: paths.Path) -> tuple[Facts, Arrays]:
  """What a file holds: see `facts`, and its arrays under their names in it.

  All arrays become float32, their shapes in NumPy's order, (outputs, inputs).

  Raises:
    RunError: as `facts` does; or for an array of a type other than F32, F16, BF16, Q8_0, Q4_0 and
      Q4_1, or one that lies outside the file or upon another.
  """
  with _opened(path) as reader:
    found, count = _facts(reader)
    alignment = found.get(_ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
      raise reader.error(f'{_ALIGNMENT} is {short(alignment)}, not a power of two')
    places = dict(_place(reader, alignment) for _ in range(count))
    if len(places) != count:
      raise reader.error('two arrays have the same name')
    start = reader.at + -reader.at % alignment
    end, before = start, ''
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
      if start + place.offset < end:
        raise reader.error(f'{short(name)} and {short(before)} lie upon each other')
      end, before = start + place.offset + place.size, name
      if end > reader.size:
        raise reader.error(f'{short(name)} should end at byte {end:,} of {reader.size:,}')
    fetch = functools.partial(_fetch, reader.path, start)
    return found, {
      name: Stub(place.shape, np.float32, functools.partial(fetch, name, place))
      for name, place in places.items()
    }


@contextlib.contextmanager
def _opened(path: paths.Path) -> Iterator[_Reader]:
  if not path.is_file():
    raise RunError(f'there is no file {path}')
  path = paths.fetched(path)
  try:
    with path.open('rb') as file:
      yield _Reader(path, file, path.stat().st_size)
  except OSError as error:
    raise paths.failure(f'cannot read {path}', error) from None


def _facts(reader: _Reader) -> tuple[Facts, int]:
  """The facts, and how many arrays are described behind them."""
  if reader.take(min(4, reader.size)) != MAGIC:
    raise RunError(f'{reader.path} is no GGUF file: it does not begin with {MAGIC.decode()}')
  version = reader.whole(4)
  if version not in VERSIONS:
    swapped = int.from_bytes(version.to_bytes(4, 'little'), 'big') in VERSIONS
    raise RunError(
      f'{reader.path} is GGUF '
      + ('for big-endian machines' if swapped else f'of version {version}')
      + ', and versions 2 and 3 for little-endian ones are read: convert the model again'
    )
  arrays, count = reader.whole(8), reader.whole(8)
  found: Facts = {}
  for _ in range(count):
    name = reader.text()
    if name in found:
      raise reader.error(f'it says {short(name)} twice')
    found[name] = reader.fact(reader.whole(4))
  return found, arrays


class _Place(NamedTuple):
  """Where an array is, in bytes from the first array on, and what its numbers are."""

  shape: tuple[int, ...]
  kind: _Kind
  offset: int
  size: int


def _place(reader: _Reader, alignment: int) -> tuple[str, _Place]:
  name, axes = reader.text(), reader.whole(4)
  if not 1 <= axes <= _MOST_AXES:
    raise reader.error(f'{short(name)} has {axes} axes')
  shape = tuple(reader.whole(8) for _ in range(axes))[::-1]
  code, offset = reader.whole(4), reader.whole(8)
  if code not in _KINDS:
    if code not in _OTHERS:
      raise reader.error(f'{short(name)} is of the unknown type {code}')
    raise RunError(
      f'{reader.path}: {short(name)} is of type {_OTHERS[code]}, and only '
      f'{", ".join(kind.name for kind in _KINDS.values())} are read: make a file of one of them '
      'with llama-quantize'
    )
  kind = _KINDS[code]
  if 0 in shape or shape[-1] % kind.numbers:
    raise reader.error(f'there is no array {short(name)} of type {kind.name} and shape {shape}')
  if offset % alignment:
    raise reader.error(
      f'{short(name)} begins at byte {offset:,}, which is no multiple of {alignment}'
    )
  return name, _Place(shape, kind, offset, math.prod(shape) // kind.numbers * kind.block.itemsize)


def _fetch(path: paths.LocalPath, start: int, name: str, place: _Place) -> np.ndarray:
  start += place.offset
  try:
    data = paths.read_range(path, start, start + place.size)
  except OSError as error:
    raise paths.failure(f'cannot read {path}', error) from None
  if len(data) != place.size:
    raise RunError(f'{path} is damaged: {short(name)} is not all there any more')
  with np.errstate(all='ignore'):  # whoever reads it refuses what is not finite
    return place.kind.decoded(np.frombuffer(data, place.kind.block)).reshape(place.shape)
