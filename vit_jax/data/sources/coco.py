"""Data sets with annotations like those of COCO: objects, panoptic segments and captions."""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.examples import Example, NoDataError, NoSplitError, Source, headline
from vit_jax.data.fields import Field
from vit_jax.data.sources import coco_files

_PARTS = {
  'annotations': coco_files.Objects, 'panoptic': coco_files.Segments,
  'captions': coco_files.Captions,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coco:
  """Images with annotations in JSON files like those of COCO, whose splits are train2017, val2017.

  There are boxes, labels (the classes that are there) and, where every object has one, masks.
  Classes are in the order of the ids of their categories. Boxes are cut at the edge of the image,
  and what is then without width or height is left out; images without objects are not. An example
  also has `image_id` and, of its objects, `annotation_ids`, as COCO numbers them.

  Attributes:
    dir: that all paths are in; may be a zip file, or in one.
    annotations: the file with objects; '{split}' stands for the name of the split. If it has no
      `annotations`, like that of a test set, examples are images alone. '' for none.
    images: the directory of the images; may be in a zip file of its own.
    panoptic: the file with panoptic segments, 'annotations/panoptic_{split}.json'; their PNG files
      are in a directory called like it, without '.json'. '' for none.
    captions: the file with captions, 'annotations/captions_{split}.json'. '' for none.
  """

  dir: str
  annotations: str = 'annotations/instances_{split}.json'
  images: str = '{split}'
  panoptic: str = ''
  captions: str = ''

  def __post_init__(self):
    given = [name for name in _PARTS if getattr(self, name)]
    if not given:
      raise RunError(f'data.source names no file of annotations: set one of {", ".join(_PARTS)}')
    for name in given:
      if '{split}' not in (text := getattr(self, name)):
        raise RunError(f'data.source.{name}={text!r} lacks {{split}}, for the name of the split')

  def open(self, split: str) -> CocoSource:
    """A split.

    Raises:
      NoDataError: if there is no such directory, or no such split (NoSplitError).
      RunError: if a file or an image is not there, or a file is not like those of COCO.
    """
    return CocoSource(self, split)


class CocoSource(Source):
  """See `Coco`."""

  def __init__(self, config: Coco, split: str):
    root, parts = paths.inside(config.dir), [name for name in _PARTS if getattr(config, name)]
    if not root.is_dir():
      raise NoDataError(f'there is no directory {root}: set data.source.dir')
    self.name = files.printable(f'{root}/{split}')
    self._said, self._parts, fields = list[str](), list[Any](), {'image': Field('image')}
    for name in parts:
      template = f'{root}/{getattr(config, name)}'
      path = files.put(template, split)
      if not split or not paths.inside(path).is_file():
        there = files.few(files.splits(template)) or 'none'
        raise NoSplitError(f'no split {split!r}, as there is no file {path}: there are {there}')
      file = coco_files.File(path)
      if name == parts[0]:
        self._images = coco_files.Images(file)
      if name == 'annotations' and name not in file.data:
        self._said.append(f'{path} has no annotations: examples are images alone')
      else:
        self._parts.append(part := _PARTS[name](file, self._images))
        fields |= part.fields
        self._said += part.said
    self.fields, self._folder = fields, f'{root}/{files.put(config.images, split)}'
    if others := coco_files.check_files(self._folder, self._images.files):
      self._said.append(f'{others:,} images in {self._folder} are not listed, and passed over')

  def __len__(self) -> int:
    return len(self._images.files)

  def __getitem__(self, index: int) -> Example:
    path = f'{self._folder}/{self._images.files[index]}'
    example = dict(image=files.read(path), image_id=self._images.ids[index], name=path)
    for part in self._parts:
      example |= part(index)
    return example

  def summary(self) -> list[str]:
    """What was found, and what was left out."""
    return [headline(self), *(f'{self.name}: {line}' for line in self._said)]
