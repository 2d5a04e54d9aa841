"""Configurations as trees of frozen dataclasses: defaults filled in, every mistake named.

A field annotated with a dataclass is a section. A field made by `choice(REGISTRY)` is a section
whose key `name` picks the dataclass: `dict(name='wsd', cooldown='20%')`. A field made by
`choices(REGISTRY)` holds any number of such sections under keys of the user's own, one made by
`tuples()` tuples of numbers, one made by `texts()` texts. A field whose default is None may be left
unset, whatever its type. A field of type `Schedule` is a number or a text. Of a union of types a
value is of the first that it fits, so that one number can stand for several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any

from vit_jax.core.errors import RunError, suggest
from vit_jax.core.schedule import Schedule


def choice(registry: Mapping[str, type], default: str | None = None) -> Any:
  """A dataclass field holding one instance of a class of `registry`, picked by its name."""
  kwargs: Any = {} if default is None else {'default_factory': registry[default]}
  return dataclasses.field(metadata={'choice': registry, 'default': default}, **kwargs)


def choices(registry: Mapping[str, type], default: str) -> Any:
  """A dataclass field holding a dict of instances of classes of `registry`."""
  metadata = {'choices': registry, 'default': default}
  return dataclasses.field(metadata=metadata, default_factory=dict)


def tuples() -> Any:
  """A dataclass field holding a dict of tuples, of numbers or of texts."""
  return dataclasses.field(metadata={'tuples': True}, default_factory=dict)


def texts() -> Any:
  """A dataclass field holding a dict of texts."""
  return dataclasses.field(metadata={'texts': True}, default_factory=dict)


# Of a dataclass the types of its fields, which do not change and take long to find out.
types_of = functools.cache(typing.get_type_hints)


class StandIns(typing.NamedTuple):
  """What takes the place of some values in a completed tree.

  Attributes:
    unset: of a field that is left unset; called with its type.
    loose: of a value that may be a number or a text; called with it.
  """

  unset: Callable[[Any], Any] = lambda kind: None
  loose: Callable[[Any], Any] = lambda value: value


PLAIN = StandIns()


def complete(
  cls: type, given: Mapping[str, Any], path: str = 'config', stand: StandIns = PLAIN
) -> dict[str, Any]:  # fmt: skip
  """`given` as a nested dict in which every field of `cls` is present.

  Args:
    cls: a dataclass.
    given: values of some of its fields.
    path: of the fields, for messages.
    stand: for values that a tree of plain ones cannot hold.

  Raises:
    RunError: a name that does not exist (with the nearest ones), a field without a default that
      is missing, or a value of the wrong type.
  """
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
  for name in given:
    if name not in fields:
      raise RunError(f'unknown field {path}.{name}: {suggest(name, fields)}')
  types = types_of(cls)
  tree = {}
  for name, field in fields.items():
    where, default = f'{path}.{name}', field.metadata.get('default')
    if 'choices' in field.metadata:
      tree[name] = {
        key: _complete_choice(field.metadata['choices'], section, default, f'{where}.{key}', stand)
        for key, section in given.get(name, {}).items()
      }
    elif 'choice' in field.metadata:
      tree[name] = _complete_choice(
        field.metadata['choice'], given.get(name, {}), default, where, stand
      )
    elif 'tuples' in field.metadata:
      tree[name] = {
        key: _checked(values, tuple[Any, ...], f'{where}.{key}')
        for key, values in given.get(name, {}).items()
      }
    elif 'texts' in field.metadata:
      tree[name] = {
        key: _checked(text, str, f'{where}.{key}') for key, text in given.get(name, {}).items()
      }
    elif types[name] is Schedule:
      tree[name] = stand.loose(_scheduled(given.get(name, field.default), where))
    elif dataclasses.is_dataclass(types[name]):
      own = given.get(name, {})
      if field.default_factory is not dataclasses.MISSING:
        own = _over(_differences_of(field.default_factory()), own)
      tree[name] = complete(typing.cast(type, types[name]), own, where, stand)
    elif name in given and not (given[name] is None and field.default is None):
      tree[name] = _checked(given[name], types[name], where)
    elif field.default is dataclasses.MISSING:
      raise RunError(f'{where} is missing')
    elif field.default is None:
      tree[name] = stand.unset(_unset(types[name]))
    else:
      tree[name] = field.default
  return tree


def _differences_of(section: Any) -> dict[str, Any]:
  """Fields of a section that are not what its class says they are by default, nested."""
  found = {}
  for field in dataclasses.fields(section):
    value, factory = getattr(section, field.name), field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    if field.init and value != default:
      found[field.name] = _differences_of(value) if _is_section(value) else value
  return found


def _over(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
  """Nested values, those of `other` first."""
  both = {**one, **other}
  return {
    name: _over(one[name], value) if isinstance(value, Mapping) and name in one else value
    for name, value in both.items()
  }


def build(cls: type, given: Mapping[str, Any], path: str = 'config') -> Any:
  """An instance of `cls` from a nested mapping; raises as `complete` does."""
  tree = complete(cls, given, path)
  types = types_of(cls)
  for field in dataclasses.fields(cls):
    where = f'{path}.{field.name}'
    if 'choices' in field.metadata:
      registry = field.metadata['choices']
      tree[field.name] = {
        key: _build_choice(registry, section, f'{where}.{key}')
        for key, section in tree[field.name].items()
      }
    elif 'choice' in field.metadata:
      tree[field.name] = _build_choice(field.metadata['choice'], tree[field.name], where)
    elif types[field.name] is Schedule:
      tree[field.name] = Schedule(tree[field.name])
    elif dataclasses.is_dataclass(types[field.name]):
      tree[field.name] = build(typing.cast(type, types[field.name]), tree[field.name], where)
  return cls(**tree)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], path: str = '') -> dict[str, tuple]:
  """Dotted names of the fields in which two nested mappings differ, with both values."""
  found: dict[str, tuple] = {}
  for key in sorted({*a, *b}):
    one, two = a.get(key), b.get(key)
    if isinstance(one, Mapping) and isinstance(two, Mapping):
      found |= differences(one, two, f'{path}{key}.')
    elif one != two:
      found[f'{path}{key}'] = (one, two)
  return found


def missing(given: Mapping[str, Any], whole: Mapping[str, Any], path: str = '') -> list[str]:
  """Dotted names of what `whole` has and `given` has not."""
  found = []
  for key, value in whole.items():
    if key not in given:
      found.append(f'{path}{key}')
    elif isinstance(value, Mapping):
      found += missing(given[key], value, f'{path}{key}.')
  return found


def decided(asked: Any, resolved: Any) -> dict[str, Any]:
  """What `resolved` says where `asked`, of the same classes, leaves a field unset: nested names."""
  found = {}
  for name, value in _items(asked):
    other = dict(_items(resolved))[name]
    if value is None:
      inside = other
    elif _is_section(value):
      inside = decided(value, other) or None
    else:
      continue
    if inside is not None:
      found[name] = inside
  return found


def filled(section: Any, known: Mapping[str, Any]) -> Any:
  """`section` with its unset fields set to what `decided` once gave, also after a detour by JSON.

  Raises:
    RunError: for a value of another type.
  """
  if isinstance(section, dict):
    return {n: filled(value, known[n]) if n in known else value for n, value in section.items()}
  types, changes = types_of(type(section)), {}
  for name, value in _items(section):
    if name in known and value is None:
      changes[name] = _checked(known[name], types[name], name)
    elif name in known and isinstance(known[name], Mapping) and _is_section(value):
      changes[name] = filled(value, known[name])
  return dataclasses.replace(section, **changes)


def leaves(section: Any, path: str = '') -> dict[str, Any]:
  """Values of all fields of a dataclass and the sections in it, by dotted name."""
  found = {}
  for name, value in _items(section):
    if _is_section(value):
      found |= leaves(value, f'{path}{name}.')
    else:
      found[f'{path}{name}'] = value
  return found


def scheduled(section: Any) -> dict[str, Schedule]:
  """The schedules among `leaves`, in the order of their names."""
  found = {name: value for name, value in leaves(section).items() if isinstance(value, Schedule)}
  return dict(sorted(found.items()))


def replaced(section: Any, name: str, value: Any) -> Any:
  """A dataclass with the field of a dotted name changed."""
  first, _, rest = name.partition('.')
  if isinstance(section, dict):
    return {**section, first: replaced(section[first], rest, value)}
  new = replaced(getattr(section, first), rest, value) if rest else value
  return dataclasses.replace(section, **{first: new})


def _is_section(value: Any) -> bool:
  return isinstance(value, dict) or (
    dataclasses.is_dataclass(value) and not isinstance(value, Schedule)
  )


def _items(section: Any) -> list[tuple[str, Any]]:
  """Names and values of a dataclass, or of a dict of them."""
  return list(section.items() if isinstance(section, dict) else vars(section).items())


def pick(registry: Mapping[str, type], name: str, path: str) -> type:
  """The class of a name; raises RunError."""
  if name not in registry:
    raise RunError(f'unknown {path}.name {name!r}: {suggest(name, registry)}')
  return registry[name]


def _fields(section: Mapping[str, Any]) -> dict[str, Any]:
  """What a section holds apart from the name of its class."""
  return {key: value for key, value in section.items() if key != 'name'}


def _complete_choice(registry, section, default, path, stand):
  name = section.get('name') or default
  if name is None:
    raise RunError(f'{path}.name is missing: choose from {", ".join(registry)}')
  return {
    'name': name,
    **complete(pick(registry, name, path), _fields(section), path, stand),
  }


def _build_choice(registry, section, path):
  return build(pick(registry, section['name'], path), _fields(section), path)


def _scheduled(value: Any, path: str) -> float | str:
  """A number or a text that makes a `Schedule`, or one."""
  if value is dataclasses.MISSING:
    raise RunError(f'{path} is missing')
  value = getattr(value, 'text', value)
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    raise RunError(f'{path} must be a number or a schedule, not {value!r}')
  try:
    constant = Schedule(value).constant
  except RunError as error:
    raise RunError(f'{path}: {error}') from None
  return value if constant is None else constant


def alternatives(kind: Any) -> tuple[Any, ...]:
  """The types of a union, but for None, in their order; or the only type."""
  if typing.get_origin(kind) not in (typing.Union, UnionType):
    return (kind,)
  return tuple(each for each in typing.get_args(kind) if each is not type(None))


def _unset(kind: Any) -> Any:
  """What a stand-in for a value of a type may become."""
  kinds = {typing.get_origin(each) or each for each in alternatives(kind)}
  return kinds.pop() if len(kinds) == 1 else object


def _checked(value: Any, wanted: Any, path: str) -> Any:
  """`value` as the type `wanted`; whole numbers may stand for floats, lists for tuples."""
  if wanted is Any:
    return value
  kinds = alternatives(wanted)
  if len(kinds) == 1:
    return _checked_as(value, kinds[0], path)
  for kind in kinds:
    with contextlib.suppress(RunError):
      return _checked_as(value, kind, path)
  raise RunError(f'{path}={value!r}: {" or ".join(map(expected, kinds))} is expected')


def expected(kind: Any) -> str:
  """A type in words."""
  origin = typing.get_origin(kind) or kind
  if origin is tuple:
    kinds = typing.get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
      return f'{expected(kinds[0])}, or several with commas'
    if len(kinds) > 1 and set(kinds) == {int}:
      return f'{len(kinds)} whole numbers'
    return ' and '.join(map(expected, kinds)) if kinds else 'several values with commas'
  return {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a text'}[origin]


def _checked_as(value: Any, wanted: Any, path: str) -> Any:
  origin = typing.get_origin(wanted) or wanted
  if origin is float and type(value) is int:
    return float(value)
  if origin is tuple and isinstance(value, list | tuple | int | float):
    return _checked_tuple(value, typing.get_args(wanted), path)
  if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
    raise RunError(f'{path} must be of type {origin.__name__}, not {value!r}')
  return value


def _checked_tuple(value: Any, kinds: tuple[Any, ...], path: str) -> tuple[Any, ...]:
  """One number stands for as many as a tuple has."""
  endless = not kinds or kinds[-1] is Ellipsis
  if not isinstance(value, list | tuple):
    value = (value,) if endless else (value,) * len(kinds)
  if endless:
    kinds = (kinds[0] if kinds else object,) * len(value)
  if len(value) != len(kinds):
    raise RunError(f'{path} must have {len(kinds)} values, not {value!r}')
  return tuple(_checked(v, kind, path) for v, kind in zip(value, kinds, strict=True))
