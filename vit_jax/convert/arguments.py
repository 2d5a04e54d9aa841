"""Arguments of the commands that read checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vit_jax.architecture import MODELS, Backbone, ViTArchitecture
from vit_jax.core import command


def run(parser: command.Parser, main: Callable[..., int | None]) -> None:
  """As `command.run`; `main` also gets what `read.load` is told of a file.

  These are `step`, `part`, `prefix`, `ignore` and `base`. Its `changes` are fields of the model.
  """
  command.run(parser, main, fields=add(parser))


def add(parser: command.Parser) -> tuple[str, ...]:
  """Adds the flags of `run`; returns the names of fields of models."""
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
