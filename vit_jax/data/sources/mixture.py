"""Several sources as one."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.classes import aligned, matched, voided
from vit_jax.data.examples import Example, Portion, Source, with_names
from vit_jax.data.fields import CLASSED, VOID
from vit_jax.data.files import few


class Mixed(Source):
  """One source after the other; training draws from each by its weight."""

  def __init__(self, name: str, sources: Mapping[str, Source], weights: Mapping[str, float]):
    self.name, shared = name, set.intersection(*({*s.fields} for s in sources.values()))
    first = next(iter(sources.values()))
    self.fields = {n: field for n, field in first.fields.items() if n in shared}
    if not self.fields:
      raise RunError(f'{name}: its sources have no field in common')
    for field, own in self.fields.items():
      kinds = {source.fields[field].kind for source in sources.values()}
      types = {source.fields[field].dtype for source in sources.values()}
      if len(kinds) > 1 or len(types) > 1:
        different = few(sorted(kinds | types))
        raise RunError(f'{name}: the field {field!r} is of different kinds: {different}')
      if own.kind in ('vector', 'points'):
        sources = {n: matched(s, {field: own}, (field,)) for n, s in sources.items()}
      if own.kind == 'map':
        sources = {n: voided(s, field) for n, s in sources.items()}
        self.fields[field] = dataclasses.replace(own, ignore=(VOID,))
      if own.kind == 'text':  # words of which one does not know all are not known
        words = [s.fields[field].names for s in sources.values()]
        every = dict.fromkeys(word for each in words for word in each) if all(words) else ()
        self.fields = with_names(self.fields, field, tuple(every))
      if own.kind in CLASSED:
        every = [n for s in sources.values() for n in s.fields[field].names]
        names = list(dict.fromkeys(every))
        self.fields = with_names(self.fields, field, names)
        sources = {n: aligned(s, names, field) for n, s in sources.items()}
    self._sources = list(sources.values())
    self._dropped = {
      n: [f for f in s.fields if f not in shared] for n, s in sources.items()
    }  # fmt: skip
    self._ends = list(itertools.accumulate(map(len, self._sources)))
    self.parts = [Portion(len(s), weights[n]) for n, s in sources.items()]
    if all(s.labels is not None for s in self._sources) and 'label' in self.fields:
      self.labels = [label for s in self._sources for label in s.labels or ()]
    self._weights = dict(weights)

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Example:
    return self.read([index])[0]

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`: of each part together."""
    where = [bisect.bisect_right(self._ends, index) for index in indices]
    found: dict[int, Example] = {}
    for part in sorted(set(where)):
      places = [at for at, each in enumerate(where) if each == part]
      first = self._ends[part] - len(self._sources[part])
      examples = self._sources[part].read([indices[at] - first for at in places])
      found |= dict(zip(places, examples, strict=True))
    return [
      {name: found[at][name] for name in (*self.fields, 'name')} for at in range(len(indices))
    ]

  def summary(self) -> list[str]:
    """What is mixed, how, and what not all have."""
    total = math.fsum(self._weights.values())
    lines = [
      f'{self.name}: {weight / total:.1%} of what is trained on is {name}, {len(source):,} examples'
      for (name, weight), source in zip(self._weights.items(), self._sources, strict=True)
    ]
    lines += [
      f'{self.name}: not all have {few(fields)}, which is not used'
      for fields in self._dropped.values() if fields
    ]  # fmt: skip
    return [*lines, *(line for source in self._sources for line in source.summary())]


def checked(sources: Mapping[str, Any], weights: Mapping[str, str]) -> dict[str, float]:
  """The weight of each source; 1 where none is given.

  Raises:
    RunError: for weights of sources that are not there, that are not positive, or so small that the
      source would never be seen.
  """
  if not sources:
    raise RunError('a mixture has no sources: data.source.sources.NAME.name=folder')
  if unknown := [name for name in weights if name not in sources]:
    raise RunError(f'data.source.weights.{unknown[0]}: {suggest(unknown[0], sources)}')
  whole = {}
  for name in sources:
    try:
      whole[name] = float(weights.get(name, '1'))
    except ValueError:
      raise RunError(f'data.source.weights.{name}={weights[name]!r} must be a number') from None
  total = math.fsum(whole.values())
  for name, weight in whole.items():
    if not weight > 0 or weight / total < 1 / 1024:
      raise RunError(
        f'data.source.weights.{name}={weight:g} is {weight / total:.2%} of the mixture: give at '
        'least a thousandth, or leave the source out'
      )
  return whole
