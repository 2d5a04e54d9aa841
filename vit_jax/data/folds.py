"""Parts of a split that are held out of it by name, where a data set has nothing to test on.

`fold 1/10 of train` is a tenth of train, and `train without fold 1/10` is the rest of it, likewise
for all ten. What a fold holds depends on the data set alone: not on the seed, nor on the machine.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example, Source, Wrapped, headline, without_images
from vit_jax.data.files import few

GRAMMAR = "write 'fold 1/10 of train' for a tenth of train, 'train without fold 1/10' for the rest"
_FOLD = r'fold\s+(\d{1,9})\s*/\s*(\d{1,9})'
_HELD_OUT = re.compile(rf'{_FOLD}\s+of\s+(.+)')
_REST = re.compile(rf'(.+?)\s+without\s+{_FOLD}')
# What only somebody writes who means a fold, rightly or not; a split may be called fold-1.
_MEANT = re.compile(r'\bfold\s|\bfold\s*\d+\s*/|\swithout\s', re.IGNORECASE)
# Any number; another one would deal every data set anew.
_KEY = 2**32 + 0xF01D


@dataclasses.dataclass(frozen=True)
class Fold:
  """One of `count` equal parts of a split, number `number` from 1 on, or all others together."""

  split: str
  number: int
  count: int
  rest: bool


def parse(split: str) -> Fold | None:
  """What the name of a split says of folds; None if it says nothing.

  Raises:
    RunError: if it seems to, but not so that it can be read.
  """
  if not _MEANT.search(split):
    return None
  if match := _HELD_OUT.fullmatch(split.strip()):
    number, count, name = match.groups()
  elif match := _REST.fullmatch(split.strip()):
    name, number, count = match.groups()
  else:
    raise RunError(f'the split {split!r} cannot be read: {GRAMMAR}')
  if _MEANT.search(name):
    raise RunError(f'the split {split!r} is a fold of a fold: {GRAMMAR}')
  if not 1 <= int(number) <= int(count) or int(count) < 2:
    raise RunError(
      f'the split {split!r}: there is no fold {number} of {count}; they are numbered from 1, and '
      'there are at least two'
    )
  return Fold(name, int(number), int(count), match.re is _REST)


def overlap(one: str, other: str) -> bool:
  """Whether two splits have examples in common, as far as their names say."""
  a, b = (parse(text) or Fold(text.strip(), 1, 1, False) for text in (one, other))
  if a.split != b.split:
    return False
  if a.count != b.count or a.count == 1:
    return True  # with folds of different numbers, almost certainly
  if a.rest and b.rest:
    return a.count > 2 or a.number == b.number
  return (a.number == b.number) == (a.rest == b.rest)


def way_out(train: str, evaluation: str) -> str:
  """What to say where there is nothing to evaluate on: the flags that hold out a part of `train`.

  Args:
    train: the split to train on.
    evaluation: the field with the split that is missing, such as 'evals.test.split'.
  """
  other = f'Another split: --config.{evaluation}=NAME. '
  fold = parse(train) or Fold(train, 1, 10, False)
  held_out = f"--config.{evaluation}='fold {fold.number}/{fold.count} of {fold.split}'"
  if fold.rest:
    return f'{other}To use what is held out of {fold.split}: {held_out}'
  rest = f"--config.data.split='{fold.split} without fold {fold.number}/{fold.count}'"
  return f'{other}To hold out a part of {fold.split}: {rest} {held_out}'


class Part(Wrapped):
  """A fold of a source, or the rest of it, in the order of the source."""

  def __init__(self, source: Source, fold: Fold):
    import numpy as np

    super().__init__(source)
    self.name = f'{source.name} ({"without " * fold.rest}fold {fold.number}/{fold.count})'
    if fold.count > len(source):
      raise RunError(f'{self.name}: {source.name} has {len(source):,} examples, fewer than folds')
    held_out = _deal(source, fold.count) == fold.number - 1
    self._indices = np.flatnonzero(held_out != fold.rest)
    every = source.labels
    self.labels = None if every is None else [every[i] for i in self._indices.tolist()]
    self.parts = ()

  def __len__(self) -> int:
    return len(self._indices)

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    return self.source.read([int(self._indices[index]) for index in indices])

  def summary(self) -> list[str]:
    """How many it has, which classes it lacks, and what is known of the whole."""
    lines = [headline(self, f' of {len(self.source):,}')]
    lacking = set(without_images(self)) - set(without_images(self.source))
    if lacking:
      names = [name for name in self.class_names if name in lacking]
      lines.append(f'{self.name}: no images of {few(names)}')
    return lines + self.source.summary()[1:]


def _deal(source: Source, count: int):
  """The number of the fold, from 0 on, of each example: int (len(source),).

  In every `count` examples that follow each other, classes one after the other where labels are
  known, each fold gets one: all folds have as many, up to one, of all examples and of each class.
  Which gets which is random, so that a data set with a period of its own is not cut by class.
  """
  import numpy as np

  labels, size = source.labels, len(source)
  order = np.arange(size) if labels is None else np.argsort(labels, kind='stable')
  rounds = -(-size // count)
  # Bits of Philox are the same in every version of NumPy, its permutations need not be.
  draws = np.random.Philox(key=_KEY).random_raw(rounds * count).reshape(rounds, count)
  folds = np.empty(size, np.int64)
  folds[order] = draws.argsort(axis=1, kind='stable').ravel()[:size]
  return folds
