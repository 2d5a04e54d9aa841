"""Fields of a configuration that are set by text: --config.model.width=64.

Entries are removed first (`--config.evals=None`), then names that choose a class are set
(`--config.data.crop.name=center`), with which the sections they change begin anew, but for parts
that the class before had, too (`model.encoder`), and then values: a name and its fields may be
given together, in any order.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.schedule import Schedule

UNSET = ('', 'None')
_BOOLS = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}


def apply(
  cls: type, given: Mapping[str, Any], items: Sequence[tuple[str, str]], root: str = 'config'
) -> dict[str, Any]:
  """A nested dict of fields of `cls`, with some of them set.

  Args:
    cls: a dataclass, as for `schema.complete`.
    given: fields with values.
    items: dotted names below `root`, and texts. 'None' or nothing unsets a field, and removes an
      entry of `schema.choices`. Where a field of the same name is given twice, the last counts.
    root: before the names, in messages.

  Raises:
    RunError: for a name that does not exist, or a text that is not of the field's type.
  """
  tree = _copy(given)
  wanted = [(name.split('.'), text) for name, text in items]
  first = [item for item in wanted if _removes(cls, *item)]
  rest = [item for item in wanted if item not in first]
  names = sorted((item for item in rest if item[0][-1] == 'name'), key=lambda item: len(item[0]))
  for path, text in (*first, *names, *(item for item in rest if item[0][-1] != 'name')):
    _set(cls, tree, path, text, root)
  return tree


def _removes(cls: type, path: list[str], text: str) -> bool:
  """Whether all sections that a person named go, or one: `evals=None`, `evals.test=None`."""
  fields = {field.name: field for field in dataclasses.fields(cls)}
  named = path[0] in fields and 'choices' in fields[path[0]].metadata
  return named and len(path) < 3 and text in UNSET


def _copy(tree: Any) -> Any:
  return {k: _copy(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _set(cls: type, tree: dict[str, Any], path: list[str], text: str, where: str) -> None:
  """Sets the field `path` below `where`, a section of class `cls` with the values `tree`."""
  name, rest = path[0], path[1:]
  fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
  if name not in fields:
    raise RunError(f'unknown field {where}.{name}: {suggest(name, fields)}')
  field, kind = fields[name], schema.types_of(cls)[name]
  where = f'{where}.{name}'
  if {'tuples', 'texts'} & {*field.metadata}:
    _set_named(tree.setdefault(name, {}), rest, text, where, texts='texts' in field.metadata)
  elif 'choices' in field.metadata:
    _set_entry(field, tree.setdefault(name, {}), rest, text, where)
  elif 'choice' in field.metadata:
    _set_chosen(field.metadata, tree.setdefault(name, {}), rest, text, where)
  elif dataclasses.is_dataclass(kind) and kind is not Schedule:
    if not rest:
      inside = ', '.join(f'{where}.{each.name}' for each in dataclasses.fields(kind)[:3])
      raise RunError(f'{where} is a section: set its fields, {inside}, ...')
    _set(typing.cast(type, kind), tree.setdefault(name, {}), rest, text, where)
  elif rest:
    raise RunError(f'{where} is not a section: it has no field {rest[0]!r}')
  else:
    tree[name] = value(text, kind, field.default, where)


def _set_named(
  entries: dict[str, Any], path: list[str], text: str, where: str, *, texts: bool
) -> None:
  """Sets, or removes, one of the tuples of `schema.tuples` or of the texts of `schema.texts`."""
  if len(path) > 1 or (not path and text not in UNSET):
    what = f'texts by name: {where}.NAME=TEXT' if texts else f'tuples by name: {where}.NAME=1,2,3'
    raise RunError(f'{where} holds {what}')
  if not path:
    entries.clear()
  elif text in UNSET:
    entries.pop(path[0], None)
  elif texts:
    entries[path[0]] = text
  else:
    found = (_number(part.strip()) for part in text.strip('()[]').split(',') if part.strip())
    entries[path[0]] = tuple(found)


def _number(text: str) -> Any:
  """A whole number, a number, or the text as it is."""
  for kind in (int, float):
    with contextlib.suppress(ValueError):
      return kind(text)
  return text.strip('\'"')


def _set_entry(field: Any, entries: dict[str, Any], path: list[str], text: str, where: str) -> None:
  """Sets a field of one of the sections that a person named."""
  if not path:
    if text not in UNSET:
      raise RunError(f'{where} holds sections by name: {where}.NAME.{next(iter(entries), "name")}=')
    entries.clear()
    return
  key, rest = path[0], path[1:]
  if not rest:
    if text not in UNSET:
      raise RunError(f'{where}.{key} is a section: {where}.{key}=None removes it')
    if entries.pop(key, None) is None:
      raise RunError(
        f'{where} has no {key!r}: {suggest(key, entries) if entries else "it is empty"}'
      )
    return
  if key not in entries and rest != ['name']:
    raise RunError(
      f'{where} has no {key!r}: {suggest(key, entries) if entries else "it is empty"}; to add one, '
      f'begin with --{where}.{key}.name={field.metadata["default"]}'
    )
  metadata = {'choice': field.metadata['choices'], 'default': field.metadata['default']}
  _set_chosen(metadata, entries.setdefault(key, {}), rest, text, f'{where}.{key}')


def _set_chosen(
  metadata: Mapping[str, Any], tree: dict[str, Any], path: list[str], text: str, where: str
) -> None:
  """Sets the name of a section whose class is chosen, or a field of the class it has."""
  registry = metadata['choice']
  name = tree.get('name') or metadata['default']
  if not path:
    raise RunError(f'{where} is a section: choose with {where}.name={"|".join(registry)}')
  if path == ['name']:
    if text not in registry:
      raise RunError(f'unknown {where}.name {text!r}: {suggest(text, registry)}')
    if text != name:  # what is left would be of another class, but for parts that both have
      shared = _parts(registry[text]) & _parts(registry.get(name))
      for field in {*tree} - shared:
        del tree[field]
    tree['name'] = text
    return
  if name is None:
    raise RunError(f'{where}.name is missing: choose from {", ".join(registry)}')
  _set(schema.pick(registry, name, where), tree, path, text, where)


def _parts(cls: type | None) -> set[str]:
  """Names of the fields of a class that are sections of one class each."""
  if cls is None:
    return set()
  types = schema.types_of(cls)
  return {
    field.name for field in dataclasses.fields(cls)
    if field.init and not field.metadata and dataclasses.is_dataclass(types[field.name])
    and types[field.name] is not Schedule
  }  # fmt: skip


def value(text: str, kind: Any, default: Any, where: str) -> Any:
  """A text as a value of a field's type.

  Args:
    text: from a command line.
    kind: the type.
    default: of the field; None where it may be left unset.
    where: names the field in messages.
  """
  kinds = schema.alternatives(kind)
  if text in UNSET and (default is None or str not in kinds):
    if default is None:
      return None
    if default == ():
      return ()
    raise RunError(f'{where} cannot be unset: give a value')
  for each in kinds:
    with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
      return _value(text, each)
  raise RunError(f'{where}={text!r}: {" or ".join(map(schema.expected, kinds))} is expected')


def _value(text: str, kind: Any) -> Any:
  """A text as a value of one type; raises what is raised where it is none."""
  origin = typing.get_origin(kind) or kind
  if origin is str:
    return '' if text == 'None' else text
  if origin is Schedule:
    return _number(text)
  if origin is bool:
    return _BOOLS[text.lower()]
  if origin is int:
    return _integer(text)
  if origin is float:
    return _float(text)
  if origin is tuple:
    return _tuple(text, typing.get_args(kind))
  raise AssertionError(f'fields of type {kind} cannot be set by text')


def _integer(text: Any) -> int:
  if isinstance(text, int) and not isinstance(text, bool):
    return text
  try:
    return int(text)
  except ValueError:
    number = float(text)  # 1e6
    if number != int(number):
      raise
    return int(number)


def _float(text: Any) -> float:
  if isinstance(text, bool) or math.isnan(number := float(text)):
    raise ValueError
  return number


def _tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
  """'32,32', '(32, 32)', '32' for a pair of equal numbers, or any nesting of them."""
  try:
    found = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    whole = re.fullmatch(r'\d+(x\d+)+', text)  # an image size, as elsewhere
    found = tuple(part.strip() for part in text.split('x' if whole else ','))
  return _as(found, typing.cast(Any, tuple)[kinds] if kinds else tuple)


def _as(found: Any, kind: Any) -> Any:
  """What was read as a value of a type."""
  origin = typing.get_origin(kind) or kind
  if origin is tuple:
    kinds = typing.get_args(kind)
    endless = len(kinds) == 2 and kinds[1] is Ellipsis
    if not isinstance(found, list | tuple):
      found = (found,) if endless or not kinds else (found,) * len(kinds)
    if not kinds:
      return tuple(found)
    if endless:
      return tuple(_as(each, kinds[0]) for each in found)
    if len(found) != len(kinds):
      raise ValueError
    return tuple(map(_as, found, kinds))
  if origin is str:
    if not isinstance(found, str):
      raise ValueError
    return found
  return {int: _integer, float: _float, bool: bool}[origin](found)
