"""A checkpoint that has been recognised and not been read yet.

Its parameters are read one after another, each into the layout and type that it will have, so that
a model may be larger than the memory of any one process.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax import models
from vit_jax.architecture.card import Card
from vit_jax.convert import adapt, layout
from vit_jax.convert.files import TYPES
from vit_jax.core.errors import RunError
from vit_jax.core.misfits import misfits, refuse
from vit_jax.nn import sharding, tree

Wanted = Mapping[str, jax.ShapeDtypeStruct]


class Unread:
  """A parameter in a checkpoint. `np.asarray` reads all of it, as float32."""

  def __init__(self, opened: Opened, name: str, shape: tuple[int, ...]):
    self.opened, self.name, self.shape = opened, name, shape

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    """The parameter itself."""
    del copy
    struct = jax.ShapeDtypeStruct(self.shape, np.dtype(dtype or np.float32))
    return self.opened.read({self.name: struct})[self.name]


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
    fetch: of our own checkpoints, in place of rules: reads arrays as `read` does, in their type.
    run: what a checkpoint of a run says of it: recipe, revision, step, evaluations.
    revision: of a repository of the hub, the commit.
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
  fetch: Callable[[Wanted], dict[str, Any]] | None = None
  run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  revision: str = ''

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

  def leaves(self) -> dict[str, Any]:
    """Our parameters by name, as `Unread`; raises RunError for what does not fit."""
    self._refuse()
    return {name: Unread(self, name, shape) for name, shape in adapt.abstract(self.config).items()}

  def read(self, wanted: Wanted) -> dict[str, Any]:
    """Some of our parameters by name, laid out and of the types that are wanted.

    Args:
      wanted: by name; what has no sharding is returned as NumPy's array.

    Raises:
      RunError: for what cannot be read, or holds no finite floating-point numbers.
    """
    if self.fetch is not None:
      return self._fetched(self.fetch, wanted)
    arrays = {**self.arrays, **self._fresh_arrays}
    return {
      name: self._assembled(name, leaf, self._pieces[name], arrays) for name, leaf in wanted.items()
    }

  @functools.cached_property
  def _pieces(self) -> dict[str, list[layout.Piece]]:
    return layout.pieces(self.rules or [])

  def _fetched(self, fetch: Callable[[Wanted], dict[str, Any]], wanted: Wanted) -> dict[str, Any]:
    kinds = {name: self._kind(name, self.arrays[name]) for name in wanted if name not in self.fresh}
    found = fetch({name: wanted[name].update(dtype=kind) for name, kind in kinds.items()})
    for name, array in self._fresh_arrays.items():
      if name in wanted:
        found[name] = array if wanted[name].sharding is None else jax.device_put(
          array, wanted[name].sharding
        )  # fmt: skip
    return {name: found[name].astype(leaf.dtype, copy=False) for name, leaf in wanted.items()}

  def _assembled(
    self, name: str, leaf: jax.ShapeDtypeStruct, pieces: list[layout.Piece],
    arrays: Mapping[str, Any],
  ) -> Any:  # fmt: skip
    blocks = self._blocks(name, leaf, pieces, arrays, sharding.parts(leaf))
    return jax.block_until_ready(sharding.assembled(leaf, blocks))

  def _blocks(
    self, name: str, leaf: jax.ShapeDtypeStruct, pieces: list[layout.Piece],
    arrays: Mapping[str, Any], parts: Iterable[sharding.Bounds],
  ) -> dict[sharding.Bounds, np.ndarray]:  # fmt: skip
    """Parts of a parameter; beside them one array of the file is held."""
    blocks = {part: np.empty([b - a for a, b in part], leaf.dtype) for part in parts}
    for layer, rule, at in pieces:
      self._kind(name, arrays[rule.theirs])
      with np.errstate(over='ignore'):  # what becomes infinite is refused
        array = rule.read(np.asarray(arrays[rule.theirs]))[at].astype(leaf.dtype, copy=False)
      if not np.isfinite(array).all():
        raise RunError(f'{self.where}: {name} has values that are not finite')
      for part, block in blocks.items():
        if layer is None:
          block[...] = array[sharding.slices(part)]
        elif part[0][0] <= layer < part[0][1]:
          block[layer - part[0][0]] = array[sharding.slices(part[1:])]
    return blocks

  def _kind(self, name: str, array: Any) -> np.dtype:
    if np.dtype(array.dtype) not in TYPES:
      raise RunError(f'{self.where}: {name} holds {array.dtype}, not floating-point numbers')
    return np.dtype(array.dtype)

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

  @functools.cached_property
  def _fresh_arrays(self) -> dict[str, np.ndarray]:
    if not self.fresh:
      return {}
    model = jax.jit(lambda key: models.create(self.config, nnx.Rngs(key)))(jax.random.key(0))
    arrays = {name: np.asarray(jax.device_get(x)) for name, x in tree.flatten(model).items()}
    if self.rules is not None:
      arrays = layout.write([rule for rule in self.rules if rule.theirs in self.fresh], arrays)
    return {name: arrays[name] for name in self.fresh}
