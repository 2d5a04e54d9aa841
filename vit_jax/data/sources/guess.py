"""Which source reads what a person points at: a folder, a zip file, a table, Parquet, TFDS."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vit_jax.core import overrides, paths, schema
from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import NoSplitError, Source
from vit_jax.data.sources import SOURCES, open_split, tar
from vit_jax.data.sources.coco import Coco
from vit_jax.data.sources.folder import WHOLE
from vit_jax.data.sources.paired import captioned

TABLES = ('.csv', '.tsv', '.jsonl', '.ndjson')
# Examples, with fewer of which a fifth is held out, else a tenth.
_SMALL = 1000
# Names of splits that may be tested on, the first that is there.
TESTS = ('test', 'validation', 'valid', 'val', 'dev', 'eval')


class Guess(NamedTuple):
  """How data are read.

  Attributes:
    source: fields of `data.source`.
    split: to train on.
    test: to test on; '' if there is no such split.
    opened: the split to train on.
  """

  source: dict[str, Any]
  split: str
  test: str
  opened: Source


def guess(text: str, given: Sequence[tuple[str, str]]) -> Guess:
  """What reads `text`, opened.

  Args:
    text: a directory or zip file of images in folders by class, with a folder for each split or
      without; a table (CSV, TSV, JSON lines) or a directory with one; a directory of Parquet files
      or of tar files, or a pattern of the latter; a directory of images with texts beside them, or
      like that of COCO; or the name of a data set of TFDS.
    given: fields of the source, dotted names of the configuration and texts.

  Raises:
    RunError: if nothing reads it; or it cannot be read.
  """
  tree = overrides.apply(DataConfig, {'source': _kind(text)}, [
    (name.removeprefix('data.'), value) for name, value in given
  ])  # fmt: skip
  fields = tree['source']
  kind = fields.pop('name')
  config = schema.build(schema.pick(SOURCES, kind, 'data.source'), fields, 'data.source')
  split, tests = _splits(config)
  try:
    opened = open_split(config, split)
  except NoSplitError:
    if kind != 'folder':
      raise
    split, opened = WHOLE, open_split(config, WHOLE)
  test = _test(split, lambda name: open_split(config, name), tests)
  return Guess({'name': kind, **fields}, split, test, opened)


def held_out(data: Guess) -> tuple[Guess, int]:
  """Data without a split to test on, with a fold held out for that; and the number of folds."""
  split, test, count = _folds(data.split, len(data.opened))
  return data._replace(split=split, test=test, opened=opened(data.source, split)), count


def _folds(split: str, examples: int) -> tuple[str, str, int]:
  count = 5 if examples < _SMALL else 10
  return f'{split} without fold 1/{count}', f'fold 1/{count} of {split}', count


def there(data: DataConfig) -> tuple[str, str, Source | None]:
  """The split to learn from, the one to judge by ('' if there is none), and the first, opened.

  Where there is neither 'train' nor data without splits, what others will find missing.
  """
  for split in ('train', WHOLE):
    with contextlib.suppress(NoSplitError):
      source = data.open(split)
      return split, _test(split, data.open), source
  return 'train', 'test', None


def usual(data: DataConfig) -> tuple[str, str]:
  """Splits to learn from and to judge by where nobody names any, of which one may have to be made.

  Args:
    data: of any source.
  """
  split, test, source = there(data)
  return (split, test) if test or source is None else _folds(split, len(source))[:2]


def opened(source: dict[str, Any], split: str) -> Source:
  """A split of a source that is given by its fields."""
  fields = {name: value for name, value in source.items() if name != 'name'}
  return open_split(schema.build(SOURCES[source['name']], fields, 'data.source'), split)


def _kind(text: str) -> dict[str, Any]:
  """Fields of the source, of its name one."""
  place = paths.inside(text)
  if place.is_dir():
    names = [entry.name for entry in paths.entries(place) if not files.is_hidden(entry.name)]
    if tar.looks_like(place):  # beside them img2dataset puts what it knows of them, as Parquet
      return {'name': 'tar', 'shards': text}
    inside = [n for n in ('', 'data') if not n or n in names]
    if not isinstance(place, paths.ZipPath) and any(
      entry.name.endswith('.parquet') for name in inside for entry in paths.entries(place / name)
    ):
      return {'name': 'parquet', 'dir': text}
    tables = [name for name in names if name.lower().endswith(TABLES)]
    if len(tables) == 1:
      return {'name': 'manifest', 'file': f'{text.rstrip("/")}/{tables[0]}'}
    if 'annotations' in names and (parts := _coco(text.rstrip('/'), names)):
      return {'name': 'coco', 'dir': text, **parts}
    if fields := captioned(place):
      return {'name': 'paired', 'dir': text, 'fields': fields}
    return {'name': 'folder', 'dir': text}
  if re.search(r'\.tar(\.\w+)?$', text):
    return {'name': 'tar', 'shards': text}
  if place.is_file():
    if place.suffix.lower() in TABLES:
      return {'name': 'manifest', 'file': text}
    if place.suffix.lower() == '.parquet':
      raise RunError(f'{text} is one of the files of a data set: give its directory')
    raise RunError(f'{text} is neither a directory, nor a zip file, nor one of {", ".join(TABLES)}')
  if re.fullmatch(r'[a-z][a-z0-9_]*(/\w[\w.+-]*)?', text):
    return {'name': 'tfds', 'dataset': text}
  raise RunError(f'there is no {text}: give a directory, a zip file, a table, or a name of TFDS')


def _coco(folder: str, names: Sequence[str]) -> dict[str, str]:
  """Fields of the source of a directory with files of annotations like those of COCO; else none."""
  usual = {'annotations': Coco.annotations, 'captions': 'annotations/captions_{split}.json'}
  there = {part: files.splits(f'{folder}/{template}') for part, template in usual.items()}
  if not any(there.values()):
    return {}
  # Captions go along where all images have some.
  whole = there['captions'] and set(there['captions']) >= set(there['annotations'])
  parts = {'annotations': usual['annotations'] if there['annotations'] else ''}
  parts |= {'captions': usual['captions']} if whole else {}
  return parts | ({'images': 'images/{split}'} if 'images' in names else {})


def _splits(config: Any) -> tuple[str, Sequence[str]]:
  """The split to train on, unless there are none, and those that may be tested on."""
  if not isinstance(config, Coco):
    return 'train', TESTS
  names = files.splits(f'{config.dir.rstrip("/")}/{config.annotations or config.captions}')
  train = max((name for name in names if name.startswith('train')), default='train')
  return train, [name for name in names if name == f'val{train.removeprefix("train")}']


def _test(split: str, opens: Callable[[str], Source], names: Sequence[str] = TESTS) -> str:
  """The first of some names that is there beside the split to train on; '' for none."""
  for name in names if split != WHOLE else ():
    with contextlib.suppress(NoSplitError):
      opens(name)
      return name
  return ''
