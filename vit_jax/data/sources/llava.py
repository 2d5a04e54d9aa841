"""Dialogues about images, in files like those of LLaVA (Liu et al. 2023)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.data import files
from vit_jax.data.examples import Example, NoDataError, NoSplitError, Source, headline
from vit_jax.data.fields import Field
from vit_jax.data.sources import coco_files, conversations

MISSING = ('error', 'skip')
WHAT = (
  'it is a list of {"image": "a.jpg", "conversations": [{"from": "human", "value": ...}, {"from": '
  '"gpt", "value": ...}]}'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llava:
  """Images with dialogues in a JSON file like llava_v1_5_mix665k.json.

  The fields are `image` and `dialogue`; an example also has `id`, as the file has it. Where no
  example has an image, there are dialogues alone.

  Attributes:
    file: its path, '{split}' for the name of the split; without that all is train.
    images: the directory of the images, '' for that of the file; either may be in a zip file.
    missing: whether an example without an image, where others have one, is an 'error' or left out
      ('skip').
  """

  file: str
  images: str = ''
  missing: str = 'error'

  def __post_init__(self):
    if self.missing not in MISSING:
      raise RunError(
        f'unknown data.source.missing {self.missing!r}: {suggest(self.missing, MISSING)}'
      )

  def open(self, split: str) -> LlavaSource:
    """A split.

    Raises:
      NoDataError: if there is no such file, or no such split (NoSplitError).
      RunError: if the file is not like those of LLaVA, or an image is not there.
    """
    return LlavaSource(self, split)


class LlavaSource(Source):
  """See `Llava`."""

  def __init__(self, config: Llava, split: str):
    path = paths.inside(files.put(config.file, split))
    if '{split}' in config.file:
      if not split or not path.is_file():
        there = files.few(files.splits(config.file)) or 'none'
        raise NoSplitError(f'no split {split!r}, as there is no file {path}: there are {there}')
      self.name = files.printable(str(path))
    else:
      if not path.is_file():
        raise NoDataError(f'there is no file {path}: set data.source.file')
      if split != 'train':
        raise NoSplitError(f'{path} has no split {split!r}: without {{split}} in it all is train')
      self.name = files.printable(f'{path}/{split}')
    self._said: list[str] = []
    kept = self._checked(config, str(path))
    self._folder = str(paths.inside(config.images) if config.images else path.parent)
    self.fields, self._images = {'dialogue': Field('dialogue')}, None
    if kept[0][1]:
      self.fields = {'image': Field('image'), **self.fields}
      self._images = files.Names(image for _, image, _ in kept)
      if others := coco_files.check_files(self._folder, self._images):
        self._said.append(f'{others:,} images in {self._folder} are not listed, and passed over')
    # As ASCII, which also holds halves of characters.
    self._ids = files.Names(json.dumps(number) for number, _, _ in kept)
    self._turns = files.Names(json.dumps(turns) for _, _, turns in kept)

  def _checked(self, config: Llava, path: str) -> list[tuple[Any, str, Any]]:
    """Id, image and turns of each example."""
    try:
      data = json.loads(paths.read_text(paths.inside(path)))
    except (ValueError, RecursionError) as error:
      raise RunError(f'{path} is not JSON: {error}') from None
    if not isinstance(data, list) or not data:
      raise RunError(f'{path} is no list of dialogues: {WHAT}')
    found = []
    for number, item in enumerate(data):
      if not isinstance(item, dict) or 'conversations' not in item:
        raise RunError(f'{path}: number {number} has no conversations: {WHAT}')
      image = item.get('image') or ''
      if not isinstance(image, str):
        raise RunError(
          f'{path}: number {number} has the image {image!r:.60}, and one path is expected'
        )
      try:
        found.append((item.get('id', number), image, conversations.turns(item['conversations'])))
      except ValueError as error:
        raise RunError(f'{path}: the dialogue number {number} {error}') from None
    kept = [each for each in found if each[1]]
    lacking = len(found) - len(kept)
    if not kept or not lacking:
      return found
    if config.missing == 'error':
      first = next(at for at, each in enumerate(found) if not each[1])
      raise RunError(
        f'{path}: {lacking:,} of {len(found):,} examples have no image, such as number {first}. To '
        'leave these out: data.source.missing=skip'
      )
    self._said.append(f'{lacking:,} examples without an image are left out')
    return kept

  def __len__(self) -> int:
    return len(self._turns)

  def __getitem__(self, index: int) -> Example:
    example: dict[str, Any] = {
      'dialogue': tuple(map(tuple, json.loads(self._turns[index]))),
      'id': json.loads(self._ids[index]),
    }
    if self._images is None:
      return {**example, 'name': f'{self.name} {example["id"]}'}
    path = f'{self._folder}/{self._images[index]}'
    return {**example, 'image': files.read(path), 'name': path}

  def summary(self) -> list[str]:
    """What was found, and what was left out."""
    return [headline(self), *(f'{self.name}: {line}' for line in self._said)]
