"""Where examples come from."""

from __future__ import annotations

import functools
from typing import Any

from vit_jax.data import examples, folds
from vit_jax.data.examples import Example, Source
from vit_jax.data.folder import Folder
from vit_jax.data.synthetic import Synthetic
from vit_jax.data.tfds import Tfds

SOURCES = {'tfds': Tfds, 'folder': Folder, 'synthetic': Synthetic}


def open_split(config: Any, split: str, *, cache: bool = False) -> Source:
  """The examples of a split, or of a part of one: see `folds`.

  Args:
    config: one of `SOURCES`.
    split: its name, `fold 1/10 of NAME` or `NAME without fold 1/10`.
    cache: read all of the named split at once, for all runs of the process.

  Raises:
    RunError: if there is no such split, or it cannot be read.
  """
  fold = folds.parse(split)
  name = fold.split if fold else split
  source = _in_memory(config, name) if cache else config.open(name)
  return folds.Part(source, fold) if fold else source


class InMemory:
  """All examples of a source, read at once."""

  def __init__(self, source: Source):
    self.name, self.class_names, self.labels = source.name, source.class_names, source.labels
    self.summary = source.summary
    self._examples = examples.read(source, range(len(source)))

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]


@functools.lru_cache(maxsize=4)
def _in_memory(source: Any, split: str) -> InMemory:
  return InMemory(source.open(split))
