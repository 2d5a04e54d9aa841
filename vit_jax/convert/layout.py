"""Our parameters under other names and in other layouts, one rule per foreign array.

A dialect is a table from our names to theirs. From the table and the shapes of a model come the
rules, and every rule works in both directions, so that what can be read can be written.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.core.errors import RunError

BLOCKS = 'encoder/blocks/'
_ROTARY = re.compile(r'blocks/attn/(query|key)(_norm)?/')


@dataclasses.dataclass(frozen=True)
class To:
  """Where a leaf or a module goes, if a name alone does not say it.

  Attributes:
    name: of the foreign array; '{}' stands for the layer.
    ndim: dimensions of the foreign array, fewer or more than ours by leading ones.
    plain: not transposed, though their other matrices are.
    shape: of the foreign array, where it is ours in another shape.
    axis: along which the parts of a pack follow one another.
    rest: shape of those that our model lacks, if it is not that of the others.
    channels: where our features are of pixels and these channels of each, and theirs of channels
      first, how many there are.
    late: rows of ours, the last axis but one, that are the last of theirs: number of the first, and
      how many.
  """

  name: str
  ndim: int | None = None
  plain: bool = False
  shape: tuple[int, ...] | None = None
  axis: int = 0
  rest: tuple[int, ...] | None = None
  channels: int = 0
  late: tuple[int, int] = (0, 0)


Table = Mapping[str, 'str | To']
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Rule:
  """One foreign array and the parts of ours it is made of, one after another along an axis.

  Attributes:
    theirs: its name.
    ours: name, layer (None: not one of stacked layers) and shape of each part; a part that our
      model lacks has no name and stands for zeros.
    kind: 'plain'; 'flat', theirs has one axis; 'linear', our kernel has its inputs first and theirs
      its outputs; 'conv', the same for two-dimensional convolutions.
    ndim: dimensions of theirs if not implied.
    fixed: shape of theirs, likewise.
    interleaved: rotary features 2i and 2i + 1 of theirs are i and i + head_dim / 2 of ours.
    axis: of theirs, along which the parts are.
    channels, late: see `To`.
  """

  theirs: str
  ours: tuple[tuple[str | None, int | None, tuple[int, ...]], ...]
  kind: str
  ndim: int | None = None
  fixed: tuple[int, ...] | None = None
  interleaved: bool = False
  axis: int = 0
  channels: int = 0
  late: tuple[int, int] = (0, 0)

  def write(self, parts: list[np.ndarray]) -> np.ndarray:
    """Our parts -> their array."""
    out = []
    for part, (name, _, _) in zip(parts, self.ours, strict=True):
      if self.interleaved and name and _ROTARY.search(name):
        part = _turned(part, 2)
      if self.channels:
        part = _turned(part, part.shape[-1] // self.channels)
      if self.late[1]:
        part = _exchanged(part, *self.late)
      if self.kind == 'conv':
        part = part.transpose(3, 2, 0, 1)
      elif self.kind == 'linear':
        inputs = np.prod(part.shape[: _contracted(name)], dtype=int)
        part = part.reshape(inputs, -1).T
      elif self.kind == 'flat':
        part = part.reshape(-1)
      if self.fixed is not None:
        part = part.reshape(self.fixed)
      elif self.ndim is not None:
        lead, rest = part.shape[: max(part.ndim - self.ndim, 0)], part.shape[-self.ndim :]
        rest = rest if self.ndim else ()
        if set(lead) - {1}:
          raise RunError(f'{name} {part.shape} cannot be written as {self.theirs}')
        part = part.reshape((1,) * (self.ndim - len(rest)) + rest)
      out.append(part)
    return out[0] if len(out) == 1 else np.concatenate(out, self.axis)

  def read(self, array: np.ndarray) -> list[np.ndarray]:
    """Their array -> our parts."""
    parts = [array]
    if self.axis:
      own = (3, 2, 0, 1)[self.axis] if self.kind == 'conv' else self.axis
      ends = np.cumsum([shape[own] for _, _, shape in self.ours])
      parts = np.split(array, ends[:-1], self.axis)
    elif len(self.ours) > 1:
      parts = np.split(array, len(self.ours))
    out = []
    for part, (name, _, shape) in zip(parts, self.ours, strict=True):
      if self.kind == 'conv':
        part = part.transpose(2, 3, 1, 0)
      elif self.kind == 'linear':
        part = part.T
      part = part.reshape(shape)
      if self.interleaved and name and _ROTARY.search(name):
        part = _turned(part, part.shape[-1] // 2)
      if self.late[1]:
        first, count = self.late
        part = _exchanged(part, first, part.shape[-2] - first - count)
      out.append(_turned(part, self.channels) if self.channels else part)
    return out

  @property
  def shape(self) -> tuple[int, ...]:
    """Of their array."""
    zero = np.zeros((), np.int8)
    return self.write([np.broadcast_to(zero, shape) for _, _, shape in self.ours]).shape


def _contracted(name: str | None) -> int:
  """Leading axes of one of our kernels that are summed over."""
  if name and name.endswith('embed/proj/kernel'):
    return 3
  return 2 if name and name.endswith('attn/out/kernel') else 1


def _turned(x: np.ndarray, rows: int) -> np.ndarray:
  """The last axis, read as a matrix of so many rows, column by column."""
  return x.reshape(*x.shape[:-1], rows, -1).swapaxes(-1, -2).reshape(x.shape)


def _exchanged(x: np.ndarray, first: int, count: int) -> np.ndarray:
  """`count` rows from number `first` on behind those after them."""
  before, some, rest = np.split(x, [first, first + count], axis=-2)
  return np.concatenate([before, rest, some], axis=-2)


def deconv(name: str, inputs: int, outputs: int) -> To:
  """The kernel of a transposed convolution of PyTorch, of windows of 2 x 2: `layers.Deconv`."""
  return To(f'{name}.weight', plain=True, shape=(inputs, outputs, 2, 2), channels=outputs)


def behind(table: Table, ours: str, theirs: str) -> dict[str, To]:
  """A table of a part: with a prefix before our names, and one before theirs."""
  found = {}
  for name, to in table.items():
    own = to if isinstance(to, To) else To(to)
    found[ours + name] = dataclasses.replace(own, name=theirs + own.name)
  return found


def rules(table: Table, shapes: Shapes, *, torch: bool, interleaved: bool = False) -> list[Rule]:
  """The rules by which a model is read and written.

  Args:
    table: from our names to theirs. A key is a leaf ('token', 'encoder/blocks/norm1/bias') or a
      module, and leaves count first; 'a|b' in a key means both, packed into one array. Under their
      module the leaves are 'weight' and 'bias' in PyTorch and 'kernel', 'scale' and 'bias' in JAX.
    shapes: of our leaves, by name.
    torch: whether their kernels are transposed.
    interleaved: see `Rule`.

  Raises:
    RunError: if a leaf has no place in the table.
  """
  found = []
  packs = _packs(table)
  done = set()
  for leaf in shapes:
    if leaf in done:
      continue
    module, _, kind = leaf.rpartition('/')
    if leaf in packs or module in packs:
      names, to = packs[leaf] if leaf in packs else packs[module]
      suffix = '' if leaf in packs else f'/{kind}'
    else:
      raise RunError(f'{leaf} has no counterpart in this dialect')
    names = [name + suffix for name in names]
    done |= set(names)
    to = to if isinstance(to, To) else To(to)
    theirs = to.name + (_suffix(kind, torch) if suffix else '')
    how = 'plain'
    if kind == 'kernel' and torch and not to.plain:
      how = 'conv' if len(shapes[leaf]) - ('{}' in to.name) == 4 else 'linear'
    elif kind == 'bias' and torch:
      how = 'flat'
    if leaf.endswith('embed/proj/kernel') and to.ndim == 2:
      how = 'linear'
    ndim = None if how == 'linear' else to.ndim
    stacked = leaf.startswith(BLOCKS) or f'/{BLOCKS}' in leaf
    layers = range(shapes[leaf][0]) if stacked and '{}' in to.name else [None]
    for layer in layers:
      own = slice(layer is not None, None)
      lacking = to.rest or shapes[leaf][own]
      ours = tuple(
        (name, layer, shapes[name][own]) if name in shapes else (None, layer, lacking)
        for name in names
      )
      found.append(
        Rule(
          theirs.format(layer), ours, how, ndim, to.shape, interleaved, to.axis, to.channels,
          to.late,
        )
      )  # fmt: skip
  return found


def _packs(table: Table) -> dict[str, tuple[list[str], str | To]]:
  """Each name in the keys of a table -> all names of its pack, and where they go."""
  found = {}
  for key, to in table.items():
    head, _, last = key.rpartition('/')
    options = last.split('|')
    base = f'{head}/' if head else ''
    names = [base + option for option in options]
    if len(options) == 1 and '|' in head:  # 'attn/query|key/kernel'
      head, _, middle = head.rpartition('/')
      names = [f'{head}/{option}/{last}' for option in middle.split('|')]
    for name in names:
      found[name] = names, to
  return found


def _suffix(kind: str, torch: bool) -> str:
  if torch:
    return '.bias' if kind == 'bias' else '.weight'
  return f'/{kind}'


class Piece(NamedTuple):
  """Where one of our leaves, or a layer of it, comes from: a part of what a rule reads."""

  layer: int | None
  rule: Rule
  part: int


def pieces(rule_list: list[Rule]) -> dict[str, list[Piece]]:
  """All pieces of each of our leaves, by its name."""
  found: dict[str, list[Piece]] = collections.defaultdict(list)
  for rule in rule_list:
    for part, (name, layer, _) in enumerate(rule.ours):
      if name is not None:
        found[name].append(Piece(layer, rule, part))
  return dict(found)


def write(rule_list: list[Rule], leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Foreign arrays from our leaves."""
  arrays = {}
  for rule in rule_list:
    parts = []
    for name, layer, shape in rule.ours:
      part = np.zeros(shape, np.float32) if name is None else np.asarray(leaves[name])
      parts.append(part if layer is None or name is None else part[layer])
    arrays[rule.theirs] = np.array(rule.write(parts), order='C')
  return arrays
