"""Directories of ImageNet, and of what was made to test its classifiers, with its 1,000 classes.

Their directories of classes are called by WordNet ids, in ImageNet-V2 by numbers. Everybody numbers
the classes in the order of their ids.
"""

from __future__ import annotations

import functools
import importlib.util

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data.classes import aligned
from vit_jax.data.examples import Source, with_names
from vit_jax.data.files import few


@functools.cache
def classes() -> tuple[str, ...]:
  """WordNet ids of the 1,000 classes, in order: a file of TFDS, which is not imported for it."""
  spec = importlib.util.find_spec('tensorflow_datasets')
  file = paths.here(getattr(spec, 'origin', '')) / 'datasets' / 'imagenet2012' / 'labels.txt'
  return tuple(paths.read_text(file).split())


def standard(source: Source) -> Source:
  """A source whose classes are called by WordNet ids, or numbered, with all 1,000 classes.

  Raises:
    RunError: for a class that is none of them.
  """
  ids, own = classes(), source.class_names
  numbers = all(name.isdecimal() for name in own)
  known = {str(i) for i in range(len(ids))} if numbers else {*ids}
  if unknown := [name for name in own if name not in known]:
    what = 'numbers from 0 to 999' if numbers else 'WordNet ids of its 1,000 classes, n01440764'
    raise RunError(
      f'{source.name} has the directories {few(unknown)}; of ImageNet they are called by {what}'
    )
  if numbers:  # and not in the order of their texts, 0, 1, 10, 100
    source.fields = with_names(source.fields, 'label', [ids[int(name)] for name in own])
  return aligned(source, ids)
