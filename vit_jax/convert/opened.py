"""A checkpoint that has been recognised and not been read yet."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from vit_jax import models
from vit_jax.architecture.card import Card
from vit_jax.convert import adapt, layout
from vit_jax.core.errors import RunError
from vit_jax.core.misfits import misfits, refuse
from vit_jax.nn import tree

TYPES = {np.dtype(t) for t in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Opened:
  """A recognised checkpoint.

  Attributes:
    dialect: who wrote it.
    config: resolved, of the model in it.
    card: of the model.
    arrays: in the part of the file that is read, by name; shapes and dtypes known.
    rules: from them to our parameters; none for our own.
    buffers: regular expression of names that are not parameters.
    where: it is.
    ignore: regular expression of names that the caller ignores.
    changes: fields of the model to change after reading.
    parts: of the file, and how many arrays each has.
    part: the one that is read; '' for what is in none.
    prefix: what the names that are read begin with, taken off `arrays`.
    fresh: wanted names that are ignored and missing or misshapen; a fresh model has their values.
  """

  dialect: str
  config: Any
  card: Card
  arrays: Mapping[str, Any]
  rules: list[layout.Rule] | None
  buffers: str
  where: str
  ignore: str = ''
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  part: str = ''
  prefix: str = ''
  fresh: tuple[str, ...] = ()

  @property
  def wanted(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that make up the model, by the checkpoint's own names."""
    if self.rules is None:
      return dict(adapt.abstract(self.config))
    return {rule.theirs: rule.shape for rule in self.rules}

  def ignoring(self, ignore: str) -> Opened:
    """The same checkpoint, in which some names may be missing, unexpected or misshapen."""
    if not ignore:
      return self
    found = {name: tuple(array.shape) for name, array in self.arrays.items()}
    fresh = tuple(
      name
      for name, shape in self.wanted.items()
      if found.get(name) != shape and re.fullmatch(ignore, name)
    )
    return dataclasses.replace(self, ignore=ignore, fresh=fresh)

  def problems(self) -> list[str]:
    """What does not fit: names missing, unexpected and misshapen, but those that are ignored."""
    wanted = {name: shape for name, shape in self.wanted.items() if name not in self.fresh}
    found = {n: tuple(a.shape) for n, a in self.arrays.items() if n not in self.fresh}
    return misfits(wanted, found, '|'.join(filter(None, (self.buffers, self.ignore))))

  @property
  def unread(self) -> list[str]:
    """Names of the parameters in the file that are not the model's."""
    wanted = self.wanted
    return [n for n in self.arrays if n not in wanted and not re.fullmatch(self.buffers, n)]

  @property
  def untrained(self) -> set[str]:
    """Names of our parameters that get the values of a fresh model."""
    if self.rules is None:
      return set(self.fresh)
    fresh = [rule for rule in self.rules if rule.theirs in self.fresh]
    return {name for rule in fresh for name, _, _ in rule.ours if name}

  def leaves(self) -> dict[str, np.ndarray]:
    """Our parameters by name, float32; raises RunError for what does not fit, or is no number."""
    self._refuse()
    arrays = {**self.arrays, **(self._fresh_arrays() if self.fresh else {})}
    if self.rules is None:
      leaves = {name: np.asarray(arrays[name]) for name in self.wanted}
    else:
      leaves = layout.read(self.rules, arrays)
    for name, leaf in leaves.items():
      if leaf.dtype not in TYPES:
        raise RunError(f'{self.where}: {name} holds {leaf.dtype}, not floating-point numbers')
      leaves[name] = leaf = leaf.astype(np.float32)
      if not np.isfinite(leaf).all():
        raise RunError(f'{self.where}: {name} has values that are not finite')
    return leaves

  def _refuse(self) -> None:
    chosen = [f'part {self.part!r}'] if self.part else []
    chosen += [f'prefix {self.prefix!r}'] if self.prefix else []
    which = f' ({", ".join(chosen)})' if chosen else ''
    try:
      refuse(self.problems(), f'{self.where}{which}')
    except RunError as error:
      raise RunError(
        f'{error}\nTo load it anyway, give the names that may differ: --ignore=REGEX (in Python '
        'ignore=REGEX).'
      ) from None

  def _fresh_arrays(self) -> dict[str, np.ndarray]:
    model = jax.jit(lambda key: models.create(self.config, nnx.Rngs(key)))(jax.random.key(0))
    arrays = {name: np.asarray(jax.device_get(x)) for name, x in tree.flatten(model).items()}
    if self.rules is not None:
      arrays = layout.write([rule for rule in self.rules if rule.theirs in self.fresh], arrays)
    return {name: arrays[name] for name in self.fresh}
