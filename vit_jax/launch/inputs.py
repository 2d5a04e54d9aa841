"""A checkpoint and data, as the commands that look at features name them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epy

from vit_jax.convert import arguments
from vit_jax.core import command, paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.data.classes import aligned
from vit_jax.data.config import ON_CORRUPT, DataConfig
from vit_jax.data.examples import Source, with_names
from vit_jax.data.sources import found, opened_by
from vit_jax.launch import start
from vit_jax.training import config as config_lib

# Arguments are checked before JAX is there.
with epy.lazy_imports():
  from vit_jax.convert import notes, read
  from vit_jax.training import workdir

DATA = (
  'a directory of images by split and class, a data set of TFDS or Parquet files, the directory of '
  'a run, or configs/NAME.py[:ARGUMENT] with --config.data.FIELD=VALUE'
)


def run(parser: command.Parser, main: Callable[..., int | None]) -> None:
  """As `start.plain`, of a command that reads a checkpoint and data.

  `main` gets, beside the parser's arguments, `choice`, arguments of `read.open_checkpoint`, and
  `overrides`, fields of a configuration as texts.
  """
  fields = arguments.add(parser)
  parser.add_argument(
    '--batch_size', type=int, metavar='N', help='images at a time, over all devices (64)'
  )
  parser.add_argument(
    '--on_corrupt', default='error', choices=ON_CORRUPT, help='images that cannot be used (error)'
  )
  parser.add_argument(
    '--seed', type=int, default=0, metavar='N', help='of random parameters and what is drawn (0)'
  )

  def split(*, texts: dict[str, str], **given: Any) -> int | None:
    overrides, changes = [], {}
    for name, text in texts.items():
      if name.startswith('config.data.'):
        overrides.append((name.removeprefix('config.'), text))
      elif name.startswith('config.'):
        raise RunError(
          f'--{name}: of a configuration this command takes fields of the data only, '
          '--config.data.FIELD=VALUE'
        )
      elif name in fields:
        changes[name] = command.literal(text)
      else:
        command.refuse(name, parser, fields)
    return main(choice=arguments.choice(given, changes), overrides=overrides, **given)

  start.plain(parser, split)


def model_of(checkpoint: str, choice: Mapping[str, Any]) -> tuple[Any, str]:
  """The model in a checkpoint, on the mesh in context, and the dialect that it is in."""
  with notes.printed(sys.stderr):
    opened = read.open_checkpoint(checkpoint, **choice)
    return read.model_of(opened), opened.dialect


def data_of(text: str, overrides: Sequence[tuple[str, str]]) -> DataConfig:
  """The data that a person names; see `DATA`.

  Raises:
    RunError: if there are none.
  """
  name, _, _ = text.partition(':')
  path = paths.at(text)
  if name.endswith('.py') or (path / 'config.json').is_file():
    config = config_lib.load(text) if name.endswith('.py') else workdir.Workdir(text).record()
    return config_lib.check(config_lib.override(config, overrides)).data
  if overrides:
    raise RunError(
      f'--config.{overrides[0][0]} changes a configuration, and {text} is none: name '
      'configs/NAME.py, or the directory of a run'
    )
  if not paths.inside(text).is_dir():
    raise RunError(f'there is no directory {text}; data are {DATA}')
  return DataConfig(source=found(path))


def sources_of(data: DataConfig, splits: Sequence[str]) -> dict[str, Source]:
  """Splits by their names, with the classes of the first; their summaries are said.

  Raises:
    RunError: if one is not there, or has classes that the first has not.
  """
  import jax

  from vit_jax.processes import exchange

  sources: dict[str, Source] = {}
  with opened_by(exchange.from_first):
    for split in splits:
      if split in sources:
        raise RunError(f'the split {split!r} is named twice')
      source = data.open(split)
      first = next(iter(sources.values()), source)
      if 'image' not in source.fields:
        raise RunError(f'{source.name} has no images: it has {", ".join(source.fields)}')
      if 'label' in first.fields and 'label' in source.fields:
        source = _with_classes(source, first)
      sources[split] = source
  for line in dict.fromkeys(line for source in sources.values() for line in source.summary()):
    if jax.process_index() == 0:
      print(line, file=sys.stderr)
  return sources


def _with_classes(source: Source, first: Source) -> Source:
  """A split with the classes of another one, or without names with as many."""
  own, names = source.class_names, first.class_names
  if own and names and not {*own} <= {*names}:
    unknown = next(name for name in own if name not in names)
    raise RunError(
      f'{source.name} has the class {unknown!r}, which {first.name} lacks: '
      f'{suggest(unknown, names)}'
    )
  return aligned(source, names) if own else _named(source, names)


def _named(source: Source, names: Sequence[str]) -> Source:
  source.fields = with_names(source.fields, 'label', names)
  return source


def broken(failed: list[str]) -> Callable[[str, ValueError], None]:
  """Is told of examples that cannot be used, and says so."""

  def told(name: str, error: ValueError) -> None:
    failed.append(name)
    print(f'left out: {name}: {error}', file=sys.stderr)

  return told
