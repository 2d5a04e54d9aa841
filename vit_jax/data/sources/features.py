"""Fields from the features of a TFDS data set, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.fields import Boxes, Field, Mapped
from vit_jax.data.sources.columns import names_of_points

# How the value of a field is read from an example of TFDS.
Reader = Callable[[Any], Any]
# Kinds of fields that may be made of several features.
_JOINED = ('vector', 'points', 'classes')
_FLAGS = ('false', 'true')
# What is read of boxes besides themselves: their classes, and which are crowds.
_BESIDE = _LABEL, _CROWD = 'label', 'is_crowd'


class _Feature(NamedTuple):
  """A feature of TFDS.

  Attributes:
    path: through dictionaries; a name in it may have slashes of its own.
    type: of TFDS.
    within: whether it is one of several in a sequence of dictionaries.
    beside: others in the same dictionary, by name.
  """

  path: tuple[str, ...]
  type: Any
  within: bool
  beside: Mapping[str, Any]

  def read(self, example: Any, beside: str = '') -> Any:
    """Its value, or that of one beside it."""
    for name in (*self.path[:-1], beside or self.path[-1]):
      example = example[name]
    return example

  @property
  def name(self) -> str:
    """What it is called in a configuration."""
    return '/'.join(self.path)

  @property
  def numbers(self) -> str:
    """Of which kind its numbers are, as NumPy has it: b, i, u, f; '' if it has none."""
    import numpy as np

    try:
      kind = np.dtype(getattr(self.type, 'np_dtype', None) or object).kind
    except TypeError:  # of a text
      return ''
    return kind if kind in 'biuf' else ''

  @property
  def kinds(self) -> tuple[str, ...]:
    """Of fields that it can make; the first of them unasked, where that is not ''."""
    import tensorflow_datasets as tfds

    inner = getattr(self.type, 'feature', None)
    either = lambda kind: isinstance(self.type, kind) or isinstance(inner, kind)  # noqa: E731
    if either(tfds.features.BBoxFeature):
      return ('boxes',)
    if either(tfds.features.Text):
      return ('text',)
    if either(tfds.features.ClassLabel):
      return ('classes',) if inner or self.within else ('class',)
    if inner or self.within:
      return ()
    if isinstance(self.type, tfds.features.LabeledImage):
      return ('map',)
    if isinstance(self.type, tfds.features.Image):
      return ('image', 'map')
    shape = tuple(getattr(self.type, 'shape', None) or ())
    if not self.numbers or None in shape or len(shape) > 2:
      return ()
    if len(shape) == 2:
      return ('', 'points') * (shape[1] == 2)
    # Whole numbers may be classes, or mean nothing: only who asks for them knows.
    unasked = 'vector' if self.numbers == 'f' else ''
    if shape:
      return (unasked, 'vector')
    more = {'f': ('points',), 'b': ('class', 'classes')}.get(self.numbers, ('points', 'class'))
    return (unasked, 'vector', *more)


def fields_of(
  config: Mapped, features: Any, name: str
) -> tuple[dict[str, tuple[Field, Reader]], list[str]]:
  """The fields of a data set and how each is read, and the features that are in none.

  Args:
    config: which feature is which field, and names of classes.
    features: of TFDS.
    name: of the data set.

  Raises:
    RunError: for a feature that is not there, or cannot make what is asked for.
  """
  found, asked = {}, config.wanted()
  # TFDS has them in an order of chance.
  there = {each.name: each for each in sorted(_all(features), key=lambda each: each.path)}
  used = {column for each in asked.values() for column in each.columns}
  for path, feature in there.items():
    kind = next(iter(feature.kinds), '')
    field = 'boxes' if kind == 'boxes' else path
    outside = '/' not in path or kind == 'boxes'
    if kind and outside and field not in asked and path not in used:
      found[field] = _MAKE[kind](config, field, [feature], ('',))
      used.add(path)
  for field, (kind, columns, units) in asked.items():
    for path in columns:
      if path not in there:
        raise RunError(
          f'{name} has no feature {path!r} for the field {field!r}: {suggest(path, there)}'
        )
      if kind not in (able := list(filter(None, there[path].kinds))):
        what = ' or '.join(dict.fromkeys(able)) or 'no field'
        raise RunError(
          f'the feature {path!r} of {name} is {type(there[path].type).__name__}, which makes '
          f'{what}, not {kind}'
        )
    if len(columns) > 1 and kind not in _JOINED:
      raise RunError(f'fields.{field}: in TFDS, a field of the kind {kind} is one feature')
    found[field] = _MAKE[kind](config, field, [there[path] for path in columns], units)
  found = {field: (config.field(field, made), read) for field, (made, read) in found.items()}
  config.check({field: made for field, (made, _) in found.items()})
  boxes = [there[path].path[:-1] for path in used if 'boxes' in there[path].kinds]
  used |= {'/'.join((*folder, name)) for folder in boxes for name in _BESIDE}
  return found, [path for path in there if path not in used]


def _all(
  features: Any, path: tuple[str, ...] = (), within: bool = False, beside: Any = None
) -> Iterator[_Feature]:
  """All features, however deep."""
  inner = getattr(features, 'feature', features)  # of a sequence
  if hasattr(inner, 'keys'):
    every = {name: inner[name] for name in inner.keys()}  # noqa: SIM118
    for name, each in every.items():
      yield from _all(each, (*path, name), within or inner is not features, every)
  elif path:
    yield _Feature(path, features, within, beside or {})


def _names(feature: Any) -> tuple[str, ...]:
  """Of classes."""
  inner = getattr(feature, 'feature', None) or feature
  return tuple(getattr(inner, 'names', None) or getattr(inner, 'labels', None) or ())


Features = Sequence[_Feature]


def _image(config: Mapped, name: str, of: Features, units: Any) -> tuple[Field, Reader]:
  import numpy as np

  del config, name, units
  image = of[0].type
  field = Field('image', dtype=np.dtype(image.np_dtype).name, channels=image.shape[-1] or 0)
  return field, of[0].read


def _map(config: Mapped, name: str, of: Features, units: Any) -> tuple[Field, Reader]:
  del config, name, units
  return Field('map', _names(of[0].type)), of[0].read


def _class(config: Mapped, name: str, of: Features, units: Any) -> tuple[Field, Reader]:
  del units
  names = _names(of[0].type) or _FLAGS * (of[0].numbers == 'b')
  if not names and name not in config.names:
    raise RunError(
      f'the classes of {of[0].name!r} have numbers and no names: give data.source.names.{name}, '
      'which is how many there are, their names, separated by commas, or a file with a name in '
      'each line'
    )
  return Field('class', names), lambda example: int(of[0].read(example))


def _classes(config: Mapped, name: str, of: Features, units: Any) -> tuple[Field, Reader]:
  import numpy as np

  del config, units
  flags = ['class' in feature.kinds for feature in of]
  if not any(flags):
    read = lambda example: np.asarray(of[0].read(example), np.int64).reshape(-1)  # noqa: E731
    if len(of) == 1:
      return Field('classes', _names(of[0].type)), read
  if not all(flags):
    raise RunError(f'fields.{name}: several features are classes if each says whether one is there')
  names = tuple(feature.path[-1] for feature in of)
  return Field('classes', names), lambda example: np.flatnonzero(
    [bool(feature.read(example)) for feature in of]
  )


def _vector(config: Mapped, name: str, of: Features, units: Sequence[str]) -> tuple[Field, Reader]:
  import numpy as np

  del config, name
  names, its = [], []
  for feature, unit in zip(of, units, strict=True):
    own = [f'{feature.name}[{i}]' for i in range(*feature.type.shape)] if feature.type.shape else []
    names += own or [feature.name]
    its += [unit] * len(own or [feature.name])

  def read(example: Any) -> np.ndarray:
    return np.hstack([np.asarray(feature.read(example), np.float64) for feature in of])

  return Field('vector', tuple(names), tuple(its) if any(its) else ()), read


def _points(config: Mapped, name: str, of: Features, units: Any) -> tuple[Field, Reader]:
  import numpy as np

  del config, units
  if len(of) == 1 and len(of[0].type.shape) == 2:
    names = tuple(f'p{i}' for i in range(of[0].type.shape[0]))
  else:
    names = names_of_points(name, [feature.path[-1] for feature in of])

  def read(example: Any) -> np.ndarray:
    values = [np.asarray(feature.read(example), np.float64) for feature in of]
    return np.hstack([value.reshape(-1) for value in values]).reshape(-1, 2)

  return Field('points', names), read


def _boxes(config: Mapped, name: str, of: Features, units: Any) -> tuple[Field, Reader]:
  import numpy as np

  del config, name, units
  boxes = of[0]

  def beside(example: Any, other: str, otherwise: np.ndarray) -> np.ndarray:
    if other not in boxes.beside:
      return otherwise
    return np.asarray(boxes.read(example, other)).reshape(-1).astype(otherwise.dtype)

  def read(example: Any) -> Boxes:
    # TFDS has top, left, bottom and right as shares of the image.
    corners = np.asarray(boxes.read(example), np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
    label = beside(example, _LABEL, np.zeros(len(corners), np.int64))
    crowd = beside(example, _CROWD, np.zeros(len(corners), bool))
    # Areas of masks are in pixels, and the boxes here are not: theirs stand in.
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    return Boxes(corners, label, crowd, area, relative=True)

  return Field('boxes', _names(boxes.beside.get(_LABEL))), read


def _text(config: Mapped, name: str, of: Features, units: Any) -> tuple[Field, Reader]:
  del config, name, units
  return Field('text'), lambda example: _texts(of[0].read(example))


def _texts(value: Any) -> Any:
  if isinstance(value, bytes | str):
    return value.decode() if isinstance(value, bytes) else value
  return tuple(_texts(each) for each in value)


_MAKE: Mapping[str, Callable[[Mapped, str, Features, Any], tuple[Field, Reader]]] = {
  'image': _image, 'map': _map, 'class': _class, 'classes': _classes, 'vector': _vector,
  'points': _points, 'boxes': _boxes, 'text': _text,
}  # fmt: skip
