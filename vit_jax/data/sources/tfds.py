"""Data sets of TFDS."""

from __future__ import annotations

import bisect
import concurrent.futures
import contextlib
import dataclasses
import importlib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.data.examples import Example, NoDataError, NoSplitError, Source, headline
from vit_jax.data.fields import Mapped
from vit_jax.data.files import few
from vit_jax.data.sources.features import fields_of

# Data sets of the project's own: prepared from raw files on first use.
BUILDERS = {
  'digits': 'vit_jax.data.builders.digits:Digits',
  'fashion_mnist': 'vit_jax.data.builders.fashion_mnist:FashionMnist',
}
_NAME = re.compile(r'([a-zA-Z]\w*(?:/\w[\w.+-]*)?)(?::(\d[\d.]*))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')


@dataclasses.dataclass(frozen=True)
class Tfds(Mapped):
  """A TFDS data set stored as ArrayRecord; no TensorFlow is needed to read it.

  A column is a feature, or one inside of another: 'objects/bbox'. Of boxes the features beside them
  give the classes ('label') and say which are crowds ('is_crowd'). Several features may make a
  vector, points (x, y, x, y, ... in pixels), or classes, each of which is there or not.

  Attributes:
    dataset: its name, with '/config' and ':version' where needed, as for `tfds.builder`.
    dir: where prepared data sets live; '' means TFDS_DATA_DIR or ~/tensorflow_datasets.
    manual_dir: raw files, for those of the project's builders that need them.
  """

  dataset: str
  dir: str = ''
  manual_dir: str = ''

  def open(self, split: str) -> TfdsSource:
    """A split; parts of it may be named as TFDS does: 'train[:90%]', 'train+test'.

    Raises:
      NoDataError: if the data set is not there, or the split (NoSplitError).
      RunError: if it is damaged, or has no image and label.
    """
    if self.manual_dir and not paths.at(self.manual_dir).is_dir():
      raise NoDataError(f'no directory {self.manual_dir}: set data.source.manual_dir')
    root = paths.at(self.dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets'))
    if self.dataset not in BUILDERS:
      folder = _find(root, self.dataset)
      return TfdsSource(self, folder, split, 'Copy or prepare the data set again')
    folder = self._prepared(root)
    remedy = f'Delete {folder}, and it is prepared again'
    return TfdsSource(self, folder, split, remedy)

  def _prepared(self, root: paths.Path) -> paths.Path:
    """The directory of a data set of the project's own, prepared if it was not there."""
    module, name = BUILDERS[self.dataset].split(':')
    cls = getattr(importlib.import_module(module), name)
    folder = root / self.dataset / str(cls.VERSION)
    if folder.exists():
      return folder
    import tensorflow_datasets as tfds

    root = paths.local(root, 'a data set that is not prepared yet')
    try:
      root.mkdir(parents=True, exist_ok=True)
      # One process at a time: the others find the data set prepared when their turn comes.
      with paths.locked(root / f'.{self.dataset}.lock'):
        if not folder.exists():
          builder = cls(data_dir=str(root), file_format='array_record')
          download = tfds.download.DownloadConfig(manual_dir=self.manual_dir or str(root))
          tfds.disable_progress_bar()  # it would be drawn over ours
          builder.download_and_prepare(download_config=download)
    except OSError as error:
      raise RunError(f'cannot prepare {self.dataset} in {root}: {error.strerror}') from error
    return folder


def versions(folder: paths.Path) -> list[str]:
  """Of a data set in a directory of its name, from the oldest to the newest."""
  if not folder.is_dir():
    return []
  found = [
    entry.name
    for entry in paths.entries(folder)
    if _VERSION.fullmatch(entry.name) and (folder / entry.name).is_dir()
  ]
  return sorted(found, key=lambda name: [int(part) for part in name.split('.')])


def _find(root: paths.Path, dataset: str) -> paths.Path:
  """The directory of the newest version of a data set, or of the one that is asked for."""
  match = _NAME.fullmatch(dataset)
  if not match:
    raise RunError(
      f'data.source.dataset={dataset!r} is not the name of a data set: write NAME, NAME/CONFIG or '
      'NAME:1.0.0'
    )
  name, version = match.groups()
  found = versions(root / name)
  if version is None and found:
    whole = [each for each in found if (root / name / each / 'dataset_info.json').exists()]
    if whole and found[-1] not in whole:
      raise NoDataError(
        f'{root / name / found[-1]} is not complete, but {few(whole)} is: write '
        f'data.source.dataset={name}:{whole[-1]}, or prepare {found[-1]} again'
      )
    return root / name / found[-1]
  if version in found:
    return root / name / version
  if found:
    raise NoDataError(f'{root / name} has no version {version}: it has {few(found)}')
  if half := _unfinished(root / name):
    raise NoDataError(
      f'the data set {name!r} in {root} is not complete, there is only {half}: prepare it again'
    )
  there = _data_sets(root)
  hint = suggest(name, there) if there else 'nor any other: set data.source.dir'
  raise NoDataError(f'no data set {name!r} is prepared in {root}: {hint}')


def _unfinished(folder: paths.Path) -> str:
  """The name of a directory that TFDS was writing to when it was stopped; '' for none."""
  names = [entry.name for entry in paths.entries(folder)] if folder.is_dir() else []
  return next((name for name in names if name.startswith('incomplete.')), '')


def _data_sets(root: paths.Path) -> list[str]:
  """Names of all that are prepared, those of configs with a slash."""
  found = []
  for entry in paths.entries(root) if root.is_dir() else []:
    if not entry.is_dir() or entry.name.startswith('.'):
      continue
    folder = paths.at(entry.path)
    if versions(folder):
      found.append(entry.name)
    configs = [child for child in paths.entries(folder) if child.is_dir()]
    found += [f'{entry.name}/{c.name}' for c in configs if versions(paths.at(c.path))]
  return found


@contextlib.contextmanager
def _damage(where: Any, remedy: str) -> Iterator[None]:
  """Says of whatever goes wrong where that was, and what to do.

  TFDS, protocol buffers and ArrayRecord meet damaged files with errors of every type there is.
  """
  try:
    yield
  except NoDataError:
    raise
  except RunError as error:
    raise RunError(f'{error}. {remedy}') from None
  except Exception as error:
    raise RunError(f'{where} is damaged: {_line(error)}. {remedy}') from None


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:300] or type(error).__name__


class TfdsSource(Source):
  """See `Tfds`."""

  def __init__(self, config: Tfds, folder: paths.Path, split: str, remedy: str):
    import tensorflow_datasets as tfds

    dataset = config.dataset
    self.name, self._remedy = f'{dataset}/{split}', remedy
    stored = {}
    for name in ('dataset_info.json', 'features.json'):
      with _damage(folder / name, remedy):
        stored[name] = paths.read_object(folder / name)
    # For types it does not know TFDS asks TensorFlow, and warns at length if there is none.
    with _damage(folder, remedy), contextlib.redirect_stderr(io.StringIO()):
      builder: Any = tfds.builder_from_directory(str(folder))
      features, splits = builder.info.features, builder.info.splits
    made, self._unused = fields_of(config, features, dataset)
    self.fields = {name: field for name, (field, _) in made.items()}
    self._readers = {name: read for name, (_, read) in made.items()}
    if 'label' in self.fields and 'label' not in {*config.fields, *config.names}:
      _check_names(folder, stored['features.json'], list(self.class_names), remedy)
    if isinstance(folder, paths.StorePath) and folder.scheme != 'gs':
      raise RunError(
        f'{folder}: of the object stores, ArrayRecord files are read from gs:// alone: mount '
        f'{folder.scheme}:// as a directory, copy the data set, or have it as Parquet files'
      )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
      raise RunError(
        f'{dataset} is not stored as ArrayRecord: prepare it with file_format="array_record"'
      )
    names = [part.partition('[')[0] for part in re.split(r'\s*\+\s*', split.strip())]
    for name in names:
      if name not in (*splits, 'all'):
        raise NoSplitError(f'{dataset} has no split {name!r}: it has {few(list(splits))}')
    try:
      part = splits[split]
    except ValueError as error:
      raise RunError(f'{dataset}: the split {split!r} cannot be read: {_line(error)}') from None
    with _damage(folder / 'dataset_info.json', remedy):
      files = part.file_instructions
      whole = [splits[name] for name in (splits if 'all' in names else dict.fromkeys(names))]
      shards = [
        shard
        for each in whole
        for shard in zip(map(str, each.filepaths), each.shard_lengths, strict=True)
      ]
    if not sum(file.take for file in files):
      raise RunError(f'{self.name} has no examples')
    self._files = [str(file.filename) for file in files]
    self._ends = list(itertools.accumulate(file.take for file in files))
    with concurrent.futures.ThreadPoolExecutor(min(32, len(shards))) as pool:
      list(pool.map(self._check, *zip(*shards, strict=True)))
    with _damage(folder, remedy):
      skipped = _encoded(features, tfds.decode.SkipDecoding())
      self._data = builder.as_data_source(split, decoders=skipped)

  def _check(self, file: str, examples: int) -> None:
    """Raises RunError unless a shard is there, and has as many examples as it should."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not paths.at(file).exists():
      if not examples:
        return
      raise RunError(f'there is no file {file}. {self._remedy}')
    with _damage(file, self._remedy):
      reader = ArrayRecordReader(file)
      found = reader.num_records()
      reader.close()
    if found != examples:
      raise RunError(
        f'{file} has {found:,} examples, and dataset_info.json says {examples:,}. {self._remedy}'
      )

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Example:
    with _damage(self._files[bisect.bisect_right(self._ends, index)], self._remedy):
      return self._named(index, self._data[index])

  def read(self, indices: Sequence[int]) -> list[Example]:
    """Several at once, in a fifth of the time that they take one by one."""
    try:
      return list(map(self._named, indices, self._data.__getitems__(indices)))
    except Exception:  # one by one, it is clear which file is to blame
      return [self[index] for index in indices]

  def summary(self) -> list[str]:
    """What was found, and which features are in no field."""
    unused = f'{self.name}: features that make no field: {few(self._unused)}'
    return [headline(self), unused] if self._unused else [headline(self)]

  def _named(self, index: int, example: Any) -> Example:
    values = {name: read(example) for name, read in self._readers.items()}
    return {**values, 'name': f'{self.name}[{index}]'}


def _check_names(folder: paths.Path, features: Any, names: list[str], remedy: str) -> None:
  """Raises RunError unless there are as many names as features.json says, and those of the file."""
  for key in ('featuresDict', 'features', 'label', 'classLabel', 'numClasses'):
    features = features.get(key) if isinstance(features, dict) else None
  file = folder / 'label.labels.txt'
  if file.exists():
    with _damage(file, remedy):
      lines = [line.strip() for line in file.read_text().split('\n') if line.strip()]
    if lines != names or features not in (None, str(len(names))):
      raise RunError(
        f'{file} has {len(lines)} names, and features.json says {features} classes. {remedy}'
      )


def _encoded(features: Any, skip: Any) -> Any:
  """Decoders that leave images as they are stored."""
  import tensorflow_datasets as tfds

  found = {}
  for name in features:
    if isinstance(features[name], tfds.features.Image):
      found[name] = skip
  return found
