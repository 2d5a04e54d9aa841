"""Pictures before and after disasters, with outlines of buildings, in the layout of xBD."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.examples import Example, NoDataError, NoSplitError, Source, headline
from vit_jax.data.fields import Field

NAMES = ('no building', 'no damage', 'minor', 'major', 'destroyed')
# Buildings that nobody could judge are taken for undamaged, as by the winner of xView2.
_LEVELS = {
  'no-damage': 1, 'minor-damage': 2, 'major-damage': 3, 'destroyed': 4, 'un-classified': 1,
}  # fmt: skip
_DATES = {'before': '_pre_disaster', 'after': '_post_disaster'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Xbd:
  """xBD (Gupta et al. 2019) as it is given out: SPLIT/images and SPLIT/labels.

  Images are called NAME_pre_disaster and NAME_post_disaster. Of the second one there is a JSON file
  of this name, whose `features/xy` are outlines of buildings in pixels with their level of damage.
  Fields: `before`, `after` and `map`, of no building and the four levels. Where outlines overlap,
  the later one counts.

  Attributes:
    dir: that the splits are in: train, tier3, test, hold; may be a zip file, or in one.
  """

  dir: str

  def open(self, split: str) -> XbdSource:
    """A split.

    Raises:
      NoDataError: if there is no such directory, or no such split (NoSplitError).
      RunError: if of a pair of images something is missing.
    """
    return XbdSource(self, split)


class XbdSource(Source):
  """See `Xbd`."""

  def __init__(self, config: Xbd, split: str):
    given = paths.inside(config.dir)
    if not given.is_dir():
      raise NoDataError(f'there is no directory {given}: set data.source.dir')
    root = files.entered(given, [split, 'train'])
    folder = root / split
    if not split or not (folder / 'images').is_dir():
      there = [e.name for e in paths.entries(root) if (root / e.name / 'images').is_dir()]
      raise NoSplitError(
        f'{root} has no split {split!r}, a directory with images and labels: it has '
        f'{files.few(sorted(there)) or "none"}'
      )
    self.name = files.printable(str(folder))
    image = Field('image')
    self.fields = {'before': image, 'after': image, 'map': Field('map', NAMES)}
    passed, found = files.Passed(), dict[str, dict[str, str]]()
    for path in files.images(folder / 'images', passed):
      stem = os.path.splitext(os.path.basename(path))[0]
      for date, end in _DATES.items():
        if stem.endswith(end):
          found.setdefault(stem[: -len(end)], {})[date] = path
    labels = {entry.name for entry in paths.entries(folder / 'labels')}
    for name, own in found.items():
      label = f'{name}{_DATES["after"]}.json'
      lacking = [f'{name}{end}' for date, end in _DATES.items() if date not in own]
      lacking += [f'labels/{label}'] * (label not in labels)
      if lacking:
        raise RunError(f'{self.name}: of {name} there is no {" and no ".join(lacking)}')
      own['map'] = str(folder / 'labels' / label)
    if not found:
      raise RunError(f'{self.name}/images holds no NAME{_DATES["before"]} images')
    self._files = {
      kind: files.Names(own[kind] for own in found.values()) for kind in (*_DATES, 'map')
    }
    self._said = f'{self.name}: passed over: {passed}' if str(passed) else ''

  def __len__(self) -> int:
    return len(self._files['before'])

  def __getitem__(self, index: int) -> Example:
    own = {kind: there[index] for kind, there in self._files.items()}
    images = {date: files.read(own[date]) for date in _DATES}
    return {**images, 'map': drawn(files.read(own['map']), own['map']), 'name': own['before']}

  def summary(self) -> list[str]:
    """How many pairs there are, and what was passed over."""
    return [headline(self), *[self._said] * bool(self._said)]


def drawn(data: bytes, path: str) -> Any:
  """Levels of damage by a file of outlines, uint8 (height, width).

  Raises:
    RunError: if the file is not like those of xBD.
  """
  import numpy as np

  from vit_jax.data import masks

  try:
    found = json.loads(data)
    size = int(found['metadata']['height']), int(found['metadata']['width'])
    outlines = [(each['properties']['subtype'], each['wkt']) for each in found['features']['xy']]
  except (ValueError, KeyError, TypeError):
    raise RunError(
      f'{path} is not like the files of xBD after a disaster: wanted are metadata/height and '
      'width, and features/xy, each with properties/subtype and wkt'
    ) from None
  levels = np.zeros(size, np.uint8)
  for kind, text in outlines:
    if kind not in _LEVELS:
      raise RunError(f'{path}: unknown damage {kind!r}: there are {", ".join(_LEVELS)}')
    for whole, *holes in polygons(text, path):
      inside = masks.polygons([whole], size)
      levels[inside & ~masks.polygons(holes, size)] = _LEVELS[kind]
  return levels


def polygons(text: str, path: str) -> list[list[Any]]:
  """Polygons as well-known text: of each its outline, and those of its holes, float64 (n, 2)."""
  import numpy as np

  if not re.match(r'\s*(MULTI)?POLYGON\b', text):
    raise RunError(f'{path}: {text[:40]!r} is no POLYGON')
  try:
    return [
      [
        np.array([[float(x) for x in point.split()[:2]] for point in ring.split(',')]).reshape(
          -1, 2
        )
        for ring in re.findall(r'\(?([^()]+)\)?', polygon)
        if ring.strip(' ,')
      ]
      for polygon in re.findall(r'\(\s*(\([^()]*\)(?:\s*,\s*\([^()]*\))*)\s*\)', text)
    ]
  except ValueError:
    raise RunError(f'{path}: {text[:40]!r} cannot be read') from None
