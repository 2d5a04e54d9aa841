"""Files of annotations like those of COCO, https://cocodataset.org/#format-data, as arrays."""

from __future__ import annotations

import array
import contextlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import files, kinds
from vit_jax.data.fields import Boxes, Field, Masks, Panoptic


class File:
  """A file, while it is read.

  Attributes:
    data: what is in it.
  """

  def __init__(self, path: str):
    self.path = path
    try:
      data = json.loads(paths.read_text(paths.inside(path)), object_hook=_compact)
    except (ValueError, RecursionError) as error:
      raise RunError(f'{path} is not JSON: {error}') from None
    self.data: dict[str, Any] = data if isinstance(data, dict) else {}

  def column(self, key: str, name: str) -> list[Any]:
    """A value of each object of a list; raises RunError if one has none."""
    items = self.data.get(key)
    if not isinstance(items, list):
      raise RunError(f'{self.path} has no list {key!r}, as files of COCO have')
    for number, item in enumerate(items):
      if not isinstance(item, dict) or name not in item:
        raise RunError(f'{self.path}: number {number} of its {key} has no {name!r}')
    return [item[name] for item in items]

  def numbers(self, key: str, name: str, width: int) -> Any:
    """As `column`, of some numbers each: float64 (objects, width)."""
    import numpy as np

    values = self.column(key, name)
    try:
      return np.array(values, np.float64).reshape(len(values), width)
    except (ValueError, TypeError):
      what = f'{width} numbers' if width > 1 else 'a number'
      raise RunError(f'{self.path}: not every {name!r} of its {key} is {what}') from None

  def classes(self, ids: Sequence[Any]) -> tuple[Any, tuple[str, ...]]:
    """Of ids of categories their places, int64, and the names of all classes."""
    import numpy as np

    own, called = self.column('categories', 'id'), self.column('categories', 'name')
    names = dict(zip(own, called, strict=True))
    if not 0 < len({*called}) == len(names) == len(own):
      raise RunError(f'{self.path} has no categories, or two of the same id or name')
    places = {number: place for place, number in enumerate(sorted(names))}
    if unknown := [number for number in ids if number not in places]:
      raise RunError(f'{self.path} has annotations of the category {unknown[0]!r}, which it lacks')
    return np.array([places[i] for i in ids], np.int64), tuple(str(names[i]) for i in places)


class Images:
  """The images of a split.

  Attributes:
    ids, files: of each image, the latter paths in the directory.
    sizes: width and height, float64 (images, 2).
    places: by id.
  """

  def __init__(self, file: File):
    import numpy as np

    self.ids, self.files = file.column('images', 'id'), file.column('images', 'file_name')
    self.sizes = np.hstack([file.numbers('images', name, 1) for name in ('width', 'height')])
    self.places = {number: place for place, number in enumerate(self.ids)}
    if not 0 < len(self.places) == len(self.ids):
      raise RunError(f'{file.path} has no images, or two of the same id')
    if not (self.sizes > 0).all():
      raise RunError(f'{file.path} has images whose width or height is not above 0')

  def find(self, file: File) -> tuple[Any, list[str]]:
    """Places of the images of annotations, int64, -1 for others, and lines that count these."""
    import numpy as np

    at = [self.places.get(number, -1) for number in file.column('annotations', 'image_id')]
    others = at.count(-1)
    said = [f'{others:,} annotations of images that are not listed are left out'] if others else []
    return np.array(at, np.int64), said

  def every(self, file: File) -> tuple[list[list[Any]], list[str]]:
    """The annotations of each image, which must have some, and lines for people."""
    places, said = self.find(file)
    found: list[list[Any]] = [[] for _ in self.ids]
    for place, item in zip(places.tolist(), file.data['annotations'], strict=True):
      if place >= 0:
        found[place].append(item)
    if lacking := [number for number, own in zip(self.ids, found, strict=True) if not own]:
      raise RunError(
        f'{file.path} has nothing of {len(lacking):,} of {len(found):,} images, such as id '
        f'{lacking[0]}: leave this file out, or these images'
      )
    return found, said


class Objects:
  """Boxes and masks: one long array of each, those of an image together."""

  def __init__(self, file: File, images: Images):
    import numpy as np

    at, self.said = images.find(file)
    items: list[Any] = file.data['annotations']
    label, names = file.classes(file.column('annotations', 'category_id'))
    corners = file.numbers('annotations', 'bbox', 4)
    corners[:, 2:] += corners[:, :2]
    inside = np.clip(corners, 0, np.tile(images.sizes[at], 2))
    sides = inside[:, 2:] - inside[:, :2]
    empty = ~(sides > 0).all(1)
    if count := int((empty & (at >= 0)).sum()):
      self.said.append(f'{count:,} boxes without width or height in their image are left out')
    kept = np.flatnonzero(~empty & (at >= 0))
    kept = kept[np.argsort(at[kept], kind='stable')]
    if count := int((abs(corners - inside)[kept].max(1, initial=0) > 1).sum()):
      self.said.append(f'{count:,} boxes reach more than a pixel beyond their image, and are cut')
    items = [items[i] for i in kept]
    self._starts = np.searchsorted(at[kept], np.arange(len(images.ids) + 1))
    if count := int((np.diff(self._starts) == 0).sum()):
      self.said.append(f'{count:,} images have no objects')
    self._corners, self._label = inside[kept], label[kept].astype(np.int32)
    self._crowd = np.array([bool(item.get('iscrowd')) for item in items], bool)
    area = np.array([item.get('area') for item in items], np.float64)
    self._area = np.where(np.isfinite(area), area, sides[kept].prod(1))
    self._ids = file.numbers('annotations', 'id', 1)[kept, 0].astype(np.int64)
    self.fields = {'boxes': Field('boxes', names), 'labels': Field('classes', names)}
    shapes = [item.get('segmentation') for item in items]
    if lacking := sum(not shape for shape in shapes):
      self.said.append(f'no masks, as {lacking:,} of {len(shapes):,} objects have none')
    else:
      self.fields['masks'] = Field('masks', names)
      self._keep(shapes, file.path)

  def _keep(self, shapes: list[Any], path: str) -> None:
    """Polygons one after the other, and run lengths as they are."""
    import numpy as np

    self._runs, numbers, counts, polygons = {}, array.array('f'), [0], [0]
    for row, shape in enumerate(shapes):
      if isinstance(shape, dict) and shape.keys() >= {'size', 'counts'}:
        self._runs[row] = {'size': shape['size'], 'counts': shape['counts']}
      elif isinstance(shape, list) and all(isinstance(p, array.array) for p in shape):
        for polygon in shape:
          if len(polygon) % 2:
            raise RunError(f'{path}: the annotation {self._ids[row]} has a polygon of half a point')
          numbers.extend(polygon)
          counts.append(len(numbers))
      else:
        raise RunError(
          f'{path}: the segmentation of the annotation {self._ids[row]} is neither polygons nor '
          'run lengths'
        )
      polygons.append(len(counts) - 1)
    self._numbers = np.array(numbers, np.float32)
    self._counts, self._polygons = np.array(counts), np.array(polygons)

  def _shape(self, row: int) -> Any:
    import numpy as np

    if row in self._runs:
      return self._runs[row]
    ends = self._counts[self._polygons[row] : self._polygons[row + 1] + 1].tolist()
    return [
      self._numbers[start:end].reshape(-1, 2).astype(np.float64)
      for start, end in itertools.pairwise(ends)
    ]

  def __call__(self, index: int) -> dict[str, Any]:
    """Of an image."""
    rows = slice(*self._starts[index : index + 2].tolist())
    label, crowd = self._label[rows], self._crowd[rows]
    found = {
      'boxes': Boxes(self._corners[rows], label, crowd, self._area[rows]),
      'labels': sorted({*label.tolist()}), 'annotation_ids': self._ids[rows],
    }  # fmt: skip
    if 'masks' in self.fields:
      found['masks'] = Masks([self._shape(i) for i in range(rows.start, rows.stop)], label, crowd)
    return found


class Segments:
  """Panoptic segments: one long array, those of an image together."""

  def __init__(self, file: File, images: Images):
    import numpy as np

    file.column('annotations', 'segments_info')
    file.column('annotations', 'file_name')
    found, self.said = images.every(file)
    if twice := [own for own in found if len(own) > 1]:
      raise RunError(f'{file.path} has two annotations of the image {twice[0][0]["image_id"]}')
    own = [annotation['segments_info'] for (annotation,) in found]
    try:
      every = [segment for segments in own for segment in segments]
      rows = [[each['id'], bool(each.get('iscrowd')), each['category_id']] for each in every]
    except (KeyError, TypeError) as error:
      raise RunError(f'{file.path} has a segment without {error}') from None
    label, names = file.classes([row[2] for row in rows])
    self._rows = np.hstack([np.array(rows, np.int64).reshape(-1, 3)[:, :2], label[:, None]])
    self._starts = np.cumsum([0, *map(len, own)])
    self._folder = file.path.removesuffix('.json')
    self._files = [annotation['file_name'] for (annotation,) in found]
    check_files(self._folder, self._files)
    stuff = {each['name'] for each in file.data['categories'] if each.get('isthing') == 0}
    self.fields = {
      'panoptic': Field('panoptic', names, stuff=tuple(n for n in names if n in stuff))
    }

  def __call__(self, index: int) -> dict[str, Any]:
    """Of an image."""
    rows = self._rows[slice(*self._starts[index : index + 2])].tolist()
    ids = files.read(f'{self._folder}/{self._files[index]}')
    return {'panoptic': Panoptic(ids, {n: (label, bool(crowd)) for n, crowd, label in rows})}


class Captions:
  """What is said of images."""

  def __init__(self, file: File, images: Images):
    file.column('annotations', 'caption')
    found, self.said = images.every(file)
    self._texts = [tuple(str(each['caption']) for each in own) for own in found]
    self.fields = {'text': Field('text')}

  def __call__(self, index: int) -> dict[str, Any]:
    """Of an image."""
    return {'text': self._texts[index]}


def check_files(folder: str, names: Sequence[str]) -> int:
  """How many images are in a directory besides these; raises RunError unless all these are."""
  there, wanted = set[str](), {*names}
  for inner in {name.rpartition('/')[0] for name in names}:
    place = paths.inside(f'{folder}/{inner}')
    if place.is_dir():
      there |= {f'{inner}/{entry.name}'.lstrip('/') for entry in paths.entries(place)}
  if lacking := sorted(wanted - there):
    few = files.few(lacking, 3)
    raise RunError(f'{folder} lacks {len(lacking):,} of {len(names):,} images: {few}')
  return sum(kinds.is_image(f'{folder}/{name}') for name in there - wanted)


def _compact(item: dict[str, Any]) -> dict[str, Any]:
  """An object of a file, its polygons in a tenth of the memory."""
  polygons = item.get('segmentation')
  if isinstance(polygons, list):
    with contextlib.suppress(TypeError):  # what it is will be said when it is known of what
      item['segmentation'] = [array.array('f', polygon) for polygon in polygons]
  return item
