"""Who wrote a checkpoint, and what model is in it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_jax.architecture import encoders
from vit_jax.architecture.card import Card
from vit_jax.convert import (
  adapt,
  backbones,
  detr,
  dino,
  eomt,
  language,
  multimodal,
  npz,
  openai,
  parts,
  segmenter,
  timm,
  transformers,
  upernet,
  yolos,
)
from vit_jax.convert.dialects import DIALECTS
from vit_jax.convert.opened import Opened
from vit_jax.convert.source import Source
from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest

READERS: dict[str, Any] = {
  'multimodal': multimodal, 'language': language,
  'detr': detr, 'eomt': eomt, 'npz': npz, 'openai': openai, 'upernet': upernet,
  'segmenter': segmenter, 'yolos': yolos,
  'transformers': transformers, 'timm': timm,
  'backbones': backbones, 'dino': dino,
}  # fmt: skip


class UnrecognisedError(RunError):
  """A checkpoint of no known dialect."""


class HintsError(RunError):
  """Fields of another kind of model than the one in a checkpoint."""


def recognise(source: Source) -> tuple[str, Any, dict[str, Any], Any, Card]:
  """Who wrote a checkpoint, how, and what model is in it; raises RunError."""
  for name, reader in READERS.items():
    try:
      style = reader.recognise(source)
      if style is None:
        continue
      config, card = reader.architecture(source, style)
      config = with_hints(config, source.hints, source.where)
      config = schema.build(type(config), dataclasses.asdict(config), 'the model').resolve()
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
      raise RunError(f'{source.where}: the configuration is inconsistent: {error}') from None
    return name, reader, style, config, card
  names = ', '.join(list(source.arrays)[:5])
  raise UnrecognisedError(
    f'{source.where} is in no known dialect ({", ".join(DIALECTS)}); its names begin with {names}'
  )


def with_hints(config: Any, hints: Mapping[str, Any], where: str) -> Any:
  """What the caller says about the file; what is to be changed after reading comes later.

  Raises:
    RunError: for fields of one tower where there are two, or the other way round.
  """
  towers = getattr(config, 'towers', {})
  for name, value in hints.items():
    if bool(towers) != isinstance(value, Mapping):
      several = f'the towers {", ".join(towers)}: give {next(iter(towers), "")}={{{name!r}: ...}}'
      raise HintsError(
        f'{where} has {several if towers else "one tower: give its fields by themselves"}'
      )
    if towers and name not in towers:
      raise HintsError(f'{where} has no tower {name!r}: {suggest(name, towers)}')
  if towers:
    return dataclasses.replace(
      config, **{n: with_hints(tower, hints.get(n, {}), where) for n, tower in towers.items()}
    )
  fields = {field.name for field in dataclasses.fields(config)}
  if wrong := [name for name in hints if name not in fields]:
    raise HintsError(f'unknown field {wrong[0]!r} of {where}: {suggest(wrong[0], fields)}')
  fields = {k: v for k, v in hints.items() if k not in adapt.CHANGES}
  return dataclasses.replace(config, **fields)


def search(
  names: Collection[str], prefix: str | None, ignore: str, attempt: Callable[[str], Source],
  where: str,
) -> tuple[Opened, Source]:  # fmt: skip
  """The reading in which a model fits, if possible without ignoring any name; else the nearest.

  Args:
    names: of all arrays.
    prefix: of the names to read; None to find it.
    ignore: regular expression of names that may be missing, unexpected or misshapen.
    attempt: makes the source of the names that begin with a prefix, without it.
    where: they are.

  Raises:
    RunError: if there is no model, or there are several.
  """
  known = [p for p in parts.prefixes(names) if p]
  if prefix is not None and not any(name.startswith(prefix) for name in names):
    hint = f'; those of a model begin with {", ".join(known)}' if known else ''
    raise RunError(f'{where} has no names that begin with prefix={prefix!r}{hint}')
  candidates = [prefix] if prefix is not None else ['', *known]
  errors: list[RunError] = []
  nearest: list[tuple[Opened, Source]] = []
  for pattern in ('', ignore) if ignore else ('',):
    found, errors = {}, []
    for candidate in candidates:
      try:
        opened, source = _interpreted(attempt(candidate), pattern)
      except UnrecognisedError as error:
        errors.append(error)
        continue
      except RunError as error:
        if not candidate:  # a model, but not as it is said to be
          raise
        errors.append(error)
        continue
      found[candidate] = dataclasses.replace(opened, prefix=candidate), source
      if not candidate and not opened.problems():
        break
    found = {p: pair for p, pair in found.items() if not _cuts(p, found)}
    fitting = parts.maximal([p for p, (opened, _) in found.items() if not opened.problems()])
    if len(fitting) > 1:
      raise RunError(
        f'{where} has a model behind each of the prefixes {", ".join(fitting)}: choose one with '
        'prefix (--prefix=NAME)'
      )
    if fitting:
      return found[fitting[0]]
    nearest = sorted(found.values(), key=lambda pair: len(pair[0].problems())) or nearest
  if nearest:
    return nearest[0]
  raise next((e for e in errors if not isinstance(e, UnrecognisedError)), errors[0])


def _cuts(prefix: str, found: Mapping[str, tuple[Opened, Source]]) -> bool:
  """Whether a prefix leaves out what is a part of the model behind a shorter one."""
  for shorter, (opened, _) in found.items():
    if prefix.startswith(shorter):
      used = [f'{shorter}{name}' for name in opened.wanted if name in opened.arrays]
      if not all(name.startswith(prefix) for name in used):
        return True
  return False


def _interpreted(source: Source, ignore: str) -> tuple[Opened, Source]:
  """A source as a model; where that fails, without the names that are ignored."""
  less = dataclasses.replace(
    source,
    arrays={n: a for n, a in source.arrays.items() if not re.fullmatch(ignore, n)},
    dropped=[n for n in source.arrays if re.fullmatch(ignore, n)],
    notes=[],
  )
  whole = dict(source.arrays)
  try:
    opened = _as_model(source).ignoring(ignore)
    if not ignore or not opened.problems():
      return opened, source
    first = None
  except RunError as error:
    opened, first = None, error
  if ignore and less.dropped:
    with contextlib.suppress(RunError):
      other = _as_model(less)
      # Ignored names that fit are read.
      wanted = other.wanted
      back = {n: whole[n] for n in less.dropped if wanted.get(n) == tuple(whole[n].shape)}
      other = dataclasses.replace(other, arrays={**other.arrays, **back}).ignoring(ignore)
      less.dropped = [name for name in less.dropped if name not in back]
      if opened is None or not other.problems():
        return other, less
  if opened is None:
    assert first is not None
    raise first
  return opened, source


def _as_model(source: Source) -> Opened:
  name, reader, style, config, card = recognise(source)
  seeing = [t for t in encoders(config).values() if hasattr(t, 'in_channels')]
  card = adapt.card_for_channels(card, seeing[0].in_channels) if seeing else card
  try:
    made = reader.make_rules(config, adapt.abstract(config), style)
  except (ValueError, OverflowError, TypeError) as error:
    raise RunError(f'{source.where}: the configuration is inconsistent: {error}') from None
  buffers = '|'.join([reader.IGNORE, *map(re.escape, source.computed)])
  return Opened(
    card.dialect or name, config, card, source.arrays, made, buffers, source.where,
    changes=source.hints,
  )  # fmt: skip
