"""Fields: what an example is made of, whatever source it is from.

| kind | value in an example |
|---|---|
| image | an encoded file, or an array (height, width, channels) of uint8, uint16 or float32 |
| class | int, a place among the names |
| classes | ints, places among the names |
| vector | float64 (n,), NaN where a number is not known |
| points | float64 (n, 2), x and y in pixels, NaN where a point is not known |
| boxes | `Boxes` |
| masks | `Masks` |
| map | an encoded file without loss, or an array of ints (height, width): a class for each pixel |
| panoptic | `Panoptic` |
| text | str, or a tuple of several that say the same |
| dialogue | a tuple of pairs of str, what is asked and what is answered |

Pixels are areas: the upper left one is between 0 and 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError, suggest

if TYPE_CHECKING:
  import numpy as np

KINDS = (
  'image', 'class', 'classes', 'vector', 'points', 'boxes', 'masks', 'map', 'panoptic', 'text',
  'dialogue',
)  # fmt: skip
# Whose names are those of classes.
CLASSED = ('class', 'classes', 'boxes', 'masks', 'map', 'panoptic')
# Kinds of fields that are called like this.
USUAL = {kind: kind for kind in KINDS} | {
  'label': 'class', 'labels': 'classes', 'target': 'vector', 'question': 'text', 'answer': 'text',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Field:
  """A field that all examples of a source have.

  Attributes:
    kind: one of `KINDS`.
    names: of classes, or of the numbers of a vector or the points; of texts all words that there
      are, where that is known.
    units: of the numbers of a vector; '' where there is none.
    dtype: of the pixels of an image, once that is known: 'uint8', 'uint16' or 'float32'.
    channels: of the image, once that is known; 0 before.
    ignore: values of a map that are no class.
    stuff: names of the classes of panoptic segments that are not counted, such as sky.
    center, spread: mean and standard deviation of the numbers of a vector, or of the bands of an
      image (shares of the largest whole number, floats in their own unit), once they are known.
    gaps: whether pixels of an image may be missing: by what its file calls nodata, or, where the
      source knows it, by 'there' in examples, bool (height, width).
  """

  kind: str
  names: tuple[str, ...] = ()
  units: tuple[str, ...] = ()
  dtype: str = ''
  channels: int = 0
  ignore: tuple[int, ...] = ()
  stuff: tuple[str, ...] = ()
  center: tuple[float, ...] = ()
  spread: tuple[float, ...] = ()
  gaps: bool = False

  @classmethod
  def from_dict(cls, given: Mapping[str, Any]) -> Field:
    """The inverse of `dataclasses.asdict`, also after a detour through JSON."""
    fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return cls(**fields)


class Boxes(NamedTuple):
  """Boxes of one image, in the order of the source.

  Attributes:
    corners: left, top, right and bottom edge, float64 (n, 4), in pixels.
    label: places among the names of the classes, int (n,).
    crowd: whether a box is around several objects that are not told apart, bool (n,).
    area: of the object in pixels, float64 (n,); that of the box where it is not known.
    relative: whether the corners are shares of the width and height of the image instead.
  """

  corners: np.ndarray
  label: np.ndarray
  crowd: np.ndarray
  area: np.ndarray
  relative: bool = False


class Masks(NamedTuple):
  """Shapes of the objects of one image, in the order of the source.

  Attributes:
    shapes: each a bool array (height, width), a list of polygons, float64 (corners, 2) in pixels,
      or a mapping with the `size` and `counts` of COCO's run-length encoding.
    label, crowd: as of `Boxes`.
  """

  shapes: list[Any]
  label: np.ndarray
  crowd: np.ndarray


class Panoptic(NamedTuple):
  """Every pixel is of a segment, or of none.

  Attributes:
    ids: an image file in which red + 256 green + 65536 blue is the number of the segment, 0 for
      none, or these numbers, int (height, width).
    segments: by number: (class, whether a crowd).
  """

  ids: Any
  segments: Mapping[int, tuple[int, bool]]


# Of a pixel of a map that is of no class, whatever number its source has for that.
VOID = 2**31 - 1


class Changed(NamedTuple):
  """A map that is decoded and then changed, when it is asked for: what is damaged may be skipped.

  Attributes:
    value: as the source has it.
    change: a function of the numbers, int64 (height, width).
  """

  value: Any
  change: Callable[[Any], Any]


class Wanted(NamedTuple):
  """A field as it is asked for: where in the source its values are.

  Attributes:
    kind: of the field.
    columns: of the source, that make the value.
    units: of the columns; '' where none is given.
  """

  kind: str
  columns: tuple[str, ...]
  units: tuple[str, ...]


GRAMMAR = "write 'COLUMN', 'KIND: COLUMN', or 'vector: COLUMN [UNIT], COLUMN [UNIT]'"
_COLUMN = re.compile(r'(.*?)\s*(?:\[([^\[\]]*)\])?')


def wanted(name: str, text: str) -> Wanted:
  """What the configuration of a source says of a field, '[KIND:] COLUMN [UNIT][, ...]'.

  Raises:
    RunError: if it cannot be read, or the kind of the field is neither given nor known by its name.
  """
  kind, colon, columns = text.partition(':')
  if not colon:
    kind, columns = USUAL.get(name, ''), text
  kind = kind.strip()
  if not kind:
    raise RunError(
      f'fields.{name}={text!r}: of which kind is it? Write KIND: {text}, with a kind out of '
      f'{", ".join(KINDS)}'
    )
  if kind not in KINDS:
    raise RunError(f'fields.{name}={text!r}: unknown kind {kind!r}: {suggest(kind, KINDS)}')
  parts = [_COLUMN.fullmatch(part.strip()) for part in columns.split(',')]
  if not all(part and part[1] for part in parts):
    raise RunError(f'fields.{name}={text!r} cannot be read: {GRAMMAR}')
  found = [(part[1], part[2] or '') for part in parts if part]
  if len(found) > 1 and kind not in ('vector', 'points', 'boxes', 'classes'):
    raise RunError(f'fields.{name}={text!r}: a field of the kind {kind} is one column')
  names, units = zip(*found, strict=True)
  return Wanted(kind, names, units)


def require(fields: Mapping[str, Field], needs: Mapping[str, str], where: str) -> None:
  """Raises RunError unless there are fields of these names and kinds."""
  for name, kind in needs.items():
    if name not in fields:
      there = ', '.join(f'{n} ({field.kind})' for n, field in fields.items())
      columns = "'X, Y, X, Y, ...'" if kind == 'points' else 'COLUMN'
      raise RunError(
        f'{where} has no field {name!r} of the kind {kind}, which the task needs; it has '
        f'{there or "none"}. Where a column has another name: --config.data.source.fields.{name}='
        f'{columns}'
      )
    if fields[name].kind != kind:
      raise RunError(
        f'the field {name!r} of {where} is of the kind {fields[name].kind}, and the task needs '
        f'{kind}'
      )


def named(text: str) -> tuple[str, ...]:
  """Names of classes from the configuration of a source.

  Args:
    text: names separated by commas, a number of classes without names, or the path of a file with a
      name in each line.

  Raises:
    RunError: if the file cannot be read, or a name is there twice.
  """
  if text.isdigit():
    return tuple(str(i) for i in range(int(text)))
  parts = text.split(',')
  if len(parts) == 1 and re.search(r'[./\\]', text):
    parts = [line for line in paths.read_text(paths.inside(text)).splitlines() if line.strip()]
  names = tuple(part.strip() for part in parts)
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise RunError(f'names of classes: {twice[0]!r} is there twice')
  return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mapped:
  """What all sources have whose columns may be called anything.

  Attributes:
    fields: where the values of a field are, by its name: 'COLUMN'; 'KIND: COLUMN' where the name
      does not say of which kind it is, see `data.fields`; 'vector: COLUMN [UNIT], COLUMN [UNIT]'.
      Columns that are called like a field need not be named.
    names: of the classes of a field, where the source does not know them: separated by commas, a
      number of them, or a file with a name in each line.
    ignore: values of maps that are no class.
  """

  fields: dict[str, str] = schema.texts()
  names: dict[str, str] = schema.texts()
  ignore: tuple[int, ...] = ()

  def wanted(self) -> dict[str, Wanted]:
    """The fields that are asked for."""
    return {name: wanted(name, text) for name, text in self.fields.items()}

  def field(self, name: str, field: Field) -> Field:
    """A field of the source with the names that are given, and what is ignored."""
    if name in self.names:
      names = named(self.names[name])
      if field.names and len(names) != len(field.names):
        raise RunError(
          f'data.source.names.{name} has {len(names)} names, and the source knows '
          f'{len(field.names)} classes'
        )
      field = dataclasses.replace(field, names=names)
    return dataclasses.replace(field, ignore=self.ignore) if field.kind == 'map' else field

  def check(self, fields: Mapping[str, Field]) -> None:
    """Raises RunError for names of a field that is not there."""
    for name in self.names:
      if name not in fields:
        raise RunError(f'data.source.names.{name}: there is no such field: {suggest(name, fields)}')
