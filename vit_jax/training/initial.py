"""The checkpoint, of any dialect, that a run starts from (`config.init`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.architecture import ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import adapt, notes, read
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.misfits import refuse
from vit_jax.data.files import few
from vit_jax.training.config import OWN

# What may be said behind a path; see `read.load`.
_CHOICE = ('part', 'prefix', 'ignore', 'step')
# Fields that no checkpoint can be loaded with other values of.
_SIZES = ('width', 'depth', 'mlp_dim', 'num_heads')


class Start:
  """What a run takes over from a checkpoint, before anything of it is read.

  Attributes:
    model: the architecture in it, with the fields that the run sets changed; without a head, unless
      the run says how many classes it has.
    card: what the checkpoint says of images and classes.
    notes: what was decided, a line each.
  """

  def __init__(self, path: str, fields: Any):
    """Opens a checkpoint.

    Args:
      path: of it.
      fields: a `ViTArchitecture` of which the fields that are set change the checkpoint's model.

    Raises:
      RunError: if the checkpoint cannot be read, or cannot be changed like that.
    """
    given = {f.name: getattr(fields, f.name) for f in dataclasses.fields(fields)}
    hints = {k: v for k, v in given.items() if k != 'variant' and v is not None}
    self.path, choice = chosen(path)
    try:
      with notes.printed():
        self._opened = read.open_checkpoint(self.path, **choice, **hints)
      refuse(self._opened.problems(), self.path)
    except RunError as error:
      raise RunError(f'{error}{_ways_out(str(error), self.path, hints)}') from None
    path = self.path
    if not isinstance(self._opened.config, ViTArchitecture):
      raise RunError(f'init={path} has an image and a text tower: a run trains a single model')
    model: Any = self._opened.config
    self.model: Any = adapt.changed(model, hints)
    self.card: Card = adapt.card_for_channels(self._opened.card, self.model.in_channels)
    self.notes: list[str] = []
    self._order: list[int] | None = None
    self._fresh_head = False

  def set_classes(self, names: Sequence[str]) -> tuple[str, ...]:
    """Decides what becomes of the head: it is kept where it is for the same classes by name.

    Args:
      names: of the classes of the data. Their number is that of the model unless the run sets one.

    Returns:
      Names of the classes by label: the checkpoint's, where all of its classes are kept because the
      run sets their number and it knows those of the data.
    """
    theirs, count = self._opened.card.class_names, self._opened.config.num_classes
    wanted, names = self.model.num_classes, tuple(names)
    self.model = dataclasses.replace(self.model, num_classes=wanted or len(names))
    known = bool(names) and {*names} <= {*theirs}
    if known and len(theirs) == len(names) and count == self.model.num_classes:
      self._order = [theirs.index(name) for name in names]
      self.notes.append(f'head: kept from {self.path}, which has the same {count} classes')
    elif wanted == count and known:
      self.notes.append(f'head: kept from {self.path} with its {count} classes, matched by name')
      return theirs
    elif wanted and wanted == count and not theirs:
      self.notes.append(
        f'head: kept from {self.path}, as model.num_classes={wanted} is set; its classes have no '
        'names, so label i of the data is its class i'
      )
    else:
      self._fresh_head = True
      reason = 'has no head' if not count else f'has {count} classes without names'
      reason = f'has the classes {few(list(theirs), 5)}' if theirs else reason
      by_number = not theirs and count == len(names)
      keep = f' (--config.model.num_classes={count} keeps it)' if known or by_number else ''
      self.notes.append(
        f'head: new, for {self.model.num_classes} classes, because {self.path} {reason}{keep}'
      )
    return names

  def compare(self, wishes: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
    """Notes where the checkpoint decided otherwise than a configuration file.

    Args:
      wishes: by dotted name, of `config.started`.
      decided: likewise.
    """
    other = {n: v for n, v in wishes.items() if n in decided and not _same(v, decided[n])}
    if not other:
      return
    lines = ', '.join(f'{n}={decided[n]} (not {value})' for n, value in other.items())
    self.notes.append(f'{self.path} decides {lines}')
    ways = ' '.join(
      f"--config.{n}='{value}'" for n, value in other.items() if n.rpartition('.')[2] not in _SIZES
    )
    if ways:
      self.notes.append(f'to have it as the configuration says: {ways}')

  def leaves(self, model: Any) -> dict[str, np.ndarray]:
    """Parameters by name for `model`, what the run has made of `self.model`; raises RunError."""
    changes = {name: getattr(model, name) for name in adapt.CHANGES}
    config, card, leaves = self._opened.config, self._opened.card, self._opened.leaves()
    if self._fresh_head:
      config, card, leaves = adapt.adapt(config, card, leaves, {'num_classes': 0})
    _, _, leaves = adapt.adapt(config, card, leaves, changes)
    if self._order is not None:
      heads = [name for name in leaves if name.split('/')[0] in ('head', 'distill_head')]
      leaves |= {name: leaves[name][..., self._order] for name in heads}
    return leaves


def chosen(text: str) -> tuple[str, dict[str, Any]]:
  """A path, and what of it to read, from 'PATH?part=teacher&prefix=module.&ignore=head.*&step=9'.

  Raises:
    RunError: for other names, or a step that is no number.
  """
  path, _, query = text.partition('?')
  choice: dict[str, Any] = {}
  for item in query.split('&') if query else ():
    name, _, value = item.partition('=')
    if name not in _CHOICE:
      raise RunError(f'init={text}: unknown {name!r} behind the path: {suggest(name, _CHOICE)}')
    choice[name] = value
  if not str(choice.get('step', '0')).isdigit():
    raise RunError(f'init={text}: step must be a number')
  if 'step' in choice:
    choice['step'] = int(choice['step'])
  return path, choice


def _ways_out(error: str, path: str, hints: Mapping[str, Any]) -> str:
  """What to add to the message of a checkpoint that cannot be read."""
  text = ''
  if hints and 'does not fit' in error:
    given = ', '.join(f'model.{name}={value}' for name, value in hints.items() if name not in OWN)
    text = f'\nThe checkpoint decides the model. Leave out what contradicts it: {given}' * bool(
      given
    )
  if 'does not fit' in error or any(f'--{name}' in error for name in _CHOICE):
    text += f"\nA run chooses behind the path: --config.init='{path}?ignore=REGEX' names what may "
    text += 'differ; part=, prefix= and step= are written likewise, joined by &.'
  return text


def _same(a: Any, b: Any) -> bool:
  """Whether two values are equal; one number stands for all channels."""
  try:
    return bool(np.allclose(a, b, atol=1e-6))
  except (TypeError, ValueError):
    return a == b
