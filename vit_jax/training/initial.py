"""The checkpoint, of any dialect, that a run starts from (`config.init`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.architecture import ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import adapt, notes, read
from vit_jax.core.errors import RunError
from vit_jax.core.misfits import refuse
from vit_jax.data.files import few

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
    self.path = path
    with notes.printed():
      self._opened = read.open_checkpoint(path, **hints)
    refuse(self._opened.problems(), path)
    if not isinstance(self._opened.config, ViTArchitecture):
      raise RunError(f'init={path} has an image and a text tower: a run trains a single model')
    model: Any = self._opened.config
    self.model: Any = adapt.changed(model, hints)
    self.card: Card = adapt.card_for_channels(self._opened.card, self.model.in_channels)
    self.notes: list[str] = []
    self._order: list[int] | None = None
    self._fresh_head = False

  def set_classes(self, names: Sequence[str]) -> None:
    """Decides what becomes of the head: it is kept where it is for the same classes by name.

    Args:
      names: of the classes of the data. Their number is that of the model unless the run sets one.
    """
    theirs, count = self._opened.card.class_names, self._opened.config.num_classes
    wanted = self.model.num_classes
    self.model = dataclasses.replace(self.model, num_classes=wanted or len(names))
    if theirs and sorted(theirs) == sorted(names) and count == self.model.num_classes:
      self._order = [theirs.index(name) for name in names]
      self.notes.append(f'head: kept from {self.path}, which has the same {count} classes')
    elif wanted and wanted == count:
      self.notes.append(f'head: kept from {self.path}, as model.num_classes={wanted} is set')
    else:
      self._fresh_head = True
      reason = 'has no head' if not count else f'has {count} classes without names'
      reason = f'has the classes {few(list(theirs), 5)}' if theirs else reason
      keep = f' (--config.model.num_classes={count} keeps it)' if count == len(names) else ''
      self.notes.append(
        f'head: new, for {self.model.num_classes} classes, because {self.path} {reason}{keep}'
      )

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


def _same(a: Any, b: Any) -> bool:
  """Whether two values are equal; one number stands for all channels."""
  try:
    return bool(np.allclose(a, b, atol=1e-6))
  except (TypeError, ValueError):
    return a == b
