"""Examples that are drawn when they are asked for."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.data.examples import Example, NoSplitError, Source, headline
from vit_jax.data.generators import GENERATORS


@dataclasses.dataclass(frozen=True)
class Generated:
  """A data set that is drawn: an example is a function of seed, split and number.

  Attributes:
    generator: what draws it; see `data.generators`.
    examples: to train on.
    held_out: examples of every other split.
    seed: another one makes another data set.
  """

  generator: Any = schema.choice(GENERATORS)
  examples: int = 10_000
  held_out: int = 1000
  seed: int = 0

  def __post_init__(self):
    if min(self.examples, self.held_out) < 1 or self.seed < 0:
      raise RunError(
        f'data.source.examples={self.examples} and held_out={self.held_out} must be at least 1, '
        f'seed={self.seed} at least 0'
      )

  def open(self, split: str) -> Source:
    """A split: any name makes one, unless the generator has names for them.

    Raises:
      NoSplitError: for another name.
    """
    name, known = _called(self.generator), getattr(self.generator, 'splits', (split,))
    if split not in known:
      raise NoSplitError(f'{name} has no split {split!r}: {suggest(split, known)}')
    return GeneratedSource(self, split)


class GeneratedSource(Source):
  """See `Generated`."""

  made_up = True

  def __init__(self, config: Generated, split: str):
    self.name, self._config, self._split = f'{_called(config.generator)}/{split}', config, split
    self.fields = dict(config.generator.fields)
    self._key = config.seed, zlib.crc32(split.encode())

  def __len__(self) -> int:
    return self._config.examples if self._split == 'train' else self._config.held_out

  def __getitem__(self, index: int) -> Example:
    import numpy as np

    if not 0 <= index < len(self):  # or iterating over it would never end
      raise IndexError(index)
    rng = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, index, 0]))
    example = self._config.generator.example(rng, split=self._split)
    return {**example, 'name': f'{self.name}[{index}]'}

  def summary(self) -> list[str]:
    """How many there are, and that they are drawn."""
    return [headline(self), f'{self.name}: drawn, with seed {self._config.seed}']


def _called(generator: Any) -> str:
  return next(name for name, kind in GENERATORS.items() if isinstance(generator, kind))
