"""Arguments of the commands that read checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vit_jax.architecture import MODELS, Backbone, ViTArchitecture
from vit_jax.core import command

# What `read.load` is told of a file, beside fields of the model.
CHOICE = ('step', 'part', 'prefix', 'ignore', 'base')


def run(parser: command.Parser, main: Callable[..., int | None]) -> None:
  """As `command.run`; `main` also gets `choice`, arguments of `read.load`."""

  def chosen(*, changes: dict[str, Any], **given: Any) -> int | None:
    return main(choice=choice(given, changes), **given)

  command.run(parser, chosen, fields=add(parser))


def choice(given: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `read.load`: those of the flags, which are taken out of what was given, and fields
  of the model.
  """
  return {name: given.pop(name) for name in CHOICE} | changes


def add(parser: command.Parser) -> tuple[str, ...]:
  """Adds the flags of `CHOICE`; returns the names of fields of models."""
  parser.add_argument(
    '--step', type=int, metavar='N', help='of a run: which checkpoint, if not the newest'
  )
  parser.add_argument(
    '--part', default='', help="entry of the file to read, such as 'state_dict' or 'teacher'"
  )
  parser.add_argument('--prefix', help="of the names to read, such as 'model.'")
  parser.add_argument(
    '--ignore', default='', metavar='REGEX',
    help='names that may be missing, unexpected or misshapen',
  )  # fmt: skip
  parser.add_argument(
    '--base', default='', metavar='PATH',
    help='of a file of changes: the checkpoint that is changed, if it has moved',
  )  # fmt: skip
  single = [ViTArchitecture, *(kind for kind in MODELS.values() if issubclass(kind, Backbone))]
  fields = [field.name for kind in single for field in dataclasses.fields(kind)]
  towers = [name for model in MODELS.values() for name in getattr(model(), 'towers', ())]
  return tuple(dict.fromkeys((*fields, *towers)))
