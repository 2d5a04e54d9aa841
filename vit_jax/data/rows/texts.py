"""Texts of an example, as numbers of tokens."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.data.examples import Example
from vit_jax.data.rows import Array

# 24 bits each are exact in float32; two texts are the same in all by a chance of 1 in 5e21.
KEYS = 3


def key(tokens: np.ndarray) -> np.ndarray:
  """float32 (KEYS,): equal where rows of tokens are, and else different."""
  digest = hashlib.blake2b(np.ascontiguousarray(tokens, '<i4').tobytes(), digest_size=3 * KEYS)
  parts = np.frombuffer(digest.digest(), np.uint8).reshape(KEYS, 3).astype(np.int64)
  return (parts @ [1, 256, 65536]).astype(np.float32)


def texts_of(example: Example, field: str) -> tuple[str, ...]:
  """All that say the same."""
  value: Any = example[field]
  return (value,) if isinstance(value, str) else tuple(value)


@dataclasses.dataclass(frozen=True)
class Caption:
  """One of the texts, drawn: 'tokens', int32 (length,), and its `key`, 'same'.

  An empty text is drawn only where there is no other.

  Attributes:
    tokenizer: one of `text.TOKENIZERS`.
  """

  tokenizer: Any
  field: str = 'text'

  @property
  def needs(self) -> Mapping[str, str]:
    """See `columns.Drawn`."""
    return {self.field: 'text'}

  def arrays(self) -> dict[str, Array]:
    """See `columns.Drawn`."""
    length = self.tokenizer.length
    return {'tokens': Array((length,), np.int32), 'same': Array((KEYS,), np.float32)}

  def make(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """See `columns.Drawn`; raises ValueError for an example without a text."""
    every = texts_of(example, self.field)
    if not every:
      raise ValueError(f'has no {self.field}')
    texts = [text for text in every if text] or every
    tokens = self.tokenizer.row(texts[int(rng.integers(len(texts)))])
    return {'tokens': tokens, 'same': key(tokens)}


@dataclasses.dataclass(frozen=True)
class Described:
  """Rows of texts and of what an image tower has made of the image, without the image.

  Attributes:
    columns: of fields, which need no view.
    drawn: see `columns.Columns`.
  """

  columns: tuple[Any, ...]
  drawn: tuple[Any, ...] = ()

  @property
  def needs(self) -> dict[str, str]:
    """See `Rows`."""
    every = (*self.columns, *self.drawn)
    return {name: kind for each in every for name, kind in each.needs.items()}

  def arrays(self) -> dict[str, Array]:
    """See `Rows`."""
    found: dict[str, Array] = {}
    for each in self.columns:
      found |= each.arrays((0, 0))
    for each in self.drawn:
      found |= each.arrays()
    return found

  def make(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """See `Rows`."""
    row: dict[str, Any] = {}
    for each in self.columns:
      row |= each.make(example, None)
    for each in self.drawn:
      row |= each.make(example, rng)
    return row

  def about(self, example: Example) -> list[str]:
    """See `Rows`."""
    del example
    return []


@dataclasses.dataclass(frozen=True)
class Captions:
  """The first texts: `name`, int32 (most, length), and `name`_known, float32 (most,), if there.

  An empty text is none.

  Attributes:
    tokenizer: one of `text.TOKENIZERS`.
    most: how many.
    field: of the texts.
  """

  tokenizer: Any
  most: int
  field: str = 'text'
  name: str = 'tokens'

  @property
  def needs(self) -> Mapping[str, str]:
    """See `columns.Column`."""
    return {self.field: 'text'}

  def arrays(self, size: tuple[int, int]) -> dict[str, Array]:
    """See `columns.Column`."""
    del size
    tokens = Array((self.most, self.tokenizer.length), np.int32)
    return {self.name: tokens, f'{self.name}_known': Array((self.most,), np.float32)}

  def make(self, example: Example, placement: Any) -> dict[str, Any]:
    """See `columns.Column`."""
    del placement
    texts = texts_of(example, self.field)[: self.most]
    tokens = np.zeros((self.most, self.tokenizer.length), np.int32)
    for row, text in zip(tokens, texts, strict=False):
      row[:] = self.tokenizer.row(text)
    known = np.zeros(self.most, np.float32)
    known[: len(texts)] = list(map(bool, texts))
    return {self.name: tokens, f'{self.name}_known': known}
