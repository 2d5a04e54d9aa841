"""Directories side by side: images, and maps or texts of the same names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.data import files, kinds
from vit_jax.data.examples import Example, NoDataError, NoSplitError, Source, headline
from vit_jax.data.fields import Field, Mapped

KINDS = ('image', 'map', 'text')
USUAL = {'image': '{split}/images', 'map': '{split}/maps'}
MISSING = ('error', 'skip')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired(Mapped):
  """Directories of images, maps and texts, in which the files of an example have the same name.

  A column of `fields` is a directory: 'images/{split}' for an image, 'image: {split}/before' where
  the name of the field does not say that. If none are given they are {split}/images and
  {split}/maps. Texts are files NAME.txt, several lines several texts, and may be in the directory
  of the images. Names are paths in the directory, suffixes aside. Where no directory has '{split}'
  in its name, the only split is train.

  Attributes:
    dir: what the directories are in; may be a zip file, or in one.
    strip: ends of names, before the suffix, that do not count: '_mask' pairs a_mask.png with a.jpg.
    missing: whether an example that lacks some of its files is an 'error' or left out ('skip').
  """

  dir: str
  strip: tuple[str, ...] = ()
  missing: str = 'error'

  def __post_init__(self):
    if self.missing not in MISSING:
      raise RunError(
        f'unknown data.source.missing {self.missing!r}: {suggest(self.missing, MISSING)}'
      )

  def open(self, split: str) -> PairedSource:
    """A split.

    Raises:
      NoDataError: if the directory is not there, or the split (NoSplitError).
      RunError: if a directory is not there, files are not in pairs, or classes have no names.
    """
    given = paths.inside(self.dir)
    if not given.is_dir():
      raise NoDataError(f'there is no directory {given}: set data.source.dir')
    return PairedSource(self, given, split)


class PairedSource(Source):
  """See `Paired`."""

  def __init__(self, config: Paired, given: paths.AnyPath, split: str):
    asked = dataclasses.replace(config, fields=config.fields or USUAL).wanted()
    folders = {name: wanted.columns[0] for name, wanted in asked.items()}
    self.fields = {name: _field(config, name, wanted.kind) for name, wanted in asked.items()}
    config.check(self.fields)
    own = {name: files.put(folder, split) for name, folder in folders.items()}
    root = files.entered(given, [*own.values(), *(files.put(f, 'train') for f in folders.values())])
    self.name, self._lines = files.printable(f'{root}/{split}'), []
    if root != given:
      self._lines.append(f'{given}: its only directory, {root.name}, is entered')
    _check_split(root, folders, split)
    described = {own[name] for name, field in self.fields.items() if field.kind == 'text'}
    found = {}
    for name, folder in own.items():
      passed = files.Passed()
      texts = self.fields[name].kind == 'text'
      there = files.texts(root / folder) if texts else files.images(root / folder, passed)
      found[name] = _by_stem(there, root / folder, config.strip)
      if folder in described:
        passed.suffixes.pop(files.TEXT, 0)
      if str(passed):
        of = '' if len(own) == 1 else f' of {name}'
        self._lines.append(f'{self.name}: passed over{of}: {passed}')
    every = dict.fromkeys(stem for stems in found.values() for stem in stems)
    stems = [stem for stem in every if all(stem in there for there in found.values())]
    if lacking := [
      f'{len(lone):,} {"lack" if len(lone) > 1 else "lacks"} {name} ({files.few(lone, 3)})'
      for name, there in found.items()
      if (lone := [stem for stem in every if stem not in there])
    ]:
      if config.missing == 'error':
        raise RunError(
          f'{self.name}: of {len(every):,} examples {", ".join(lacking)}. Where names differ at '
          'their end: data.source.strip; to leave these out: data.source.missing=skip'
        )
      self._lines.append(f'{self.name}: left out: {", ".join(lacking)}')
    if not stems:
      raise RunError(
        f'{self.name}: no images in {files.few([str(root / f) for f in own.values()])}'
      )
    self._files = {
      name: files.Names(there[stem] for stem in stems) for name, there in found.items()
    }
    self._first = next(
      (n for n, field in self.fields.items() if field.kind == 'image'), next(iter(found))
    )

  def __len__(self) -> int:
    return len(next(iter(self._files.values())))

  def __getitem__(self, index: int) -> Example:
    own = {name: there[index] for name, there in self._files.items()}
    example: dict[str, Any] = {name: files.read(path) for name, path in own.items()}
    for name, path in own.items():
      if self.fields[name].kind == 'text':
        example[name] = files.captions(example[name], path)
    return {**example, 'name': own[self._first]}

  def summary(self) -> list[str]:
    """What was found, and what was left out or passed over."""
    return [headline(self), *self._lines]


def _by_stem(
  found: Sequence[str], folder: paths.AnyPath, strip: tuple[str, ...]
) -> dict[str, str]:  # fmt: skip
  """Paths of files in a directory, by what they are paired by."""
  stems = dict[str, str]()
  for path in found:
    stem = os.path.splitext(path[len(str(folder)) + 1 :])[0]
    end = max((end for end in strip if stem.endswith(end)), key=len, default='')
    stem = stem[: len(stem) - len(end)]
    if stem in stems:
      raise RunError(f'{stems[stem]} and {path} are both {stem!r}: which belongs to the others?')
    stems[stem] = path
  return stems


def captioned(folder: paths.AnyPath) -> dict[str, str]:
  """Fields of a directory with texts beside images, there or in its directory train; else none."""
  for inner, column in (('', '.'), ('train', '{split}')):
    place = folder / inner if inner else folder
    names = [e.name for e in paths.entries(place) if not e.is_dir()] if place.is_dir() else []
    stems = {os.path.splitext(name)[0] for name in names if name.lower().endswith(files.TEXT)}
    images = (
      n for n in names if os.path.splitext(n)[0] in stems and kinds.is_image(f'{place}/{n}')
    )
    if stems and any(images):
      return {'image': column, 'text': column}
  return {}


def map_field(config: Mapped, name: str) -> Field:
  """A field of maps; raises RunError unless the configuration names its classes."""
  field = config.field(name, Field('map'))
  if not field.names:
    raise RunError(
      f'the classes of {name!r} are not in the files: give data.source.names.{name}, which is '
      'how many there are, their names, separated by commas, or a file with a name in each line'
    )
  return field


def _field(config: Paired, name: str, kind: str) -> Field:
  if kind not in KINDS:
    raise RunError(f'data.source.fields.{name}: a directory holds {", ".join(KINDS)}, not {kind}')
  return map_field(config, name) if kind == 'map' else config.field(name, Field(kind))


def _check_split(root: paths.AnyPath, folders: dict[str, str], split: str) -> None:
  """Raises RunError unless there is a directory for each field."""
  there = []
  for folder in folders.values():
    if '{split}' in folder:
      names = files.splits(str(root / folder))
      there += [name for name in names if (root / files.put(folder, name)).is_dir()]
  there = list(dict.fromkeys(there)) or ['train'] * all(
    '{split}' not in f for f in folders.values()
  )
  lacking = [f for f in folders.values() if not (root / files.put(f, split)).is_dir()]
  if split not in there:
    raise NoSplitError(
      f'{root} has no split {split!r}: it has {files.few(there) or "none"}, in '
      f'{", ".join(folders.values())}; where directories are called otherwise: data.source.fields'
    )
  if lacking:
    raise RunError(
      f'there is no directory {root / files.put(lacking[0], split)}; where it is called otherwise: '
      'data.source.fields'
    )
