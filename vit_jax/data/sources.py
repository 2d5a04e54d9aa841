"""Where examples come from: random access to encoded images and their labels."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest


class Example(TypedDict):
  """One image, encoded (bytes) or as uint8 (height, width, channels), and what it shows."""

  image: bytes | np.ndarray | None
  label: int
  name: str


class Source(Protocol):
  """A picklable sequence of examples."""

  class_names: list[str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


# Data sets of the project's own: prepared from raw files on first use.
BUILDERS = {
  'digits': 'vit_jax.data.builders.digits:Digits',
  'fashion_mnist': 'vit_jax.data.builders.fashion_mnist:FashionMnist',
}


@dataclasses.dataclass(frozen=True)
class Tfds:
  """A TFDS data set stored as ArrayRecord; no TensorFlow is needed to read it.

  Attributes:
    dataset: its name, with '/config' and ':version' where needed, as for `tfds.builder`.
    dir: where prepared data sets live; '' means TFDS_DATA_DIR or ~/tensorflow_datasets.
    manual_dir: the raw files, for builders of the project's own that need some.
  """

  dataset: str
  dir: str = ''
  manual_dir: str = ''

  def open(self, split: str) -> Source:
    """Raises RunError if the data set or the split is not there, or has no image and label."""
    root = self.dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    return _TfdsSource(self._builder(paths.at(root)), self.dataset, split)

  def _builder(self, root: paths.Path) -> Any:
    import tensorflow_datasets as tfds

    if self.manual_dir and not paths.at(self.manual_dir).is_dir():
      raise RunError(f'no directory {self.manual_dir}: set data.source.manual_dir')
    if self.dataset in BUILDERS:
      module, name = BUILDERS[self.dataset].split(':')
      try:
        root.mkdir(parents=True, exist_ok=True)
        # One process at a time: the others find the data set prepared when their turn comes.
        with paths.locked(root / f'.{self.dataset}.lock'):
          builder = getattr(importlib.import_module(module), name)(
            data_dir=str(root), file_format='array_record'
          )
          download = tfds.download.DownloadConfig(manual_dir=self.manual_dir or str(root))
          tfds.disable_progress_bar()  # it would be drawn over ours
          builder.download_and_prepare(download_config=download)
      except OSError as error:
        raise RunError(f'cannot prepare {self.dataset} in {root}: {error.strerror}') from error
      return builder
    name, _, version = self.dataset.partition(':')
    versions = sorted(root.glob(f'{name}/{version or "*.*.*"}/dataset_info.json'), key=_version)
    if not versions:
      infos = [*root.glob('*/*/dataset_info.json'), *root.glob('*/*/*/dataset_info.json')]
      found = sorted({str(info.parent.parent.relative_to(root)) for info in infos})
      hint = suggest(name, found) if found else 'nor any other: set data.source.dir'
      raise RunError(f'no data set {self.dataset!r} is prepared in {root}: {hint}')
    return tfds.builder_from_directory(str(versions[-1].parent))


def _version(path: paths.Path) -> list[int]:
  return [int(part) for part in path.parent.name.split('.')]


class _TfdsSource:
  def __init__(self, builder: Any, dataset: str, split: str):
    import tensorflow_datasets as tfds

    self._name = f'{dataset}/{split}'
    features = builder.info.features
    if not {'image', 'label'} <= set(features):
      raise RunError(f'{dataset} has {", ".join(features)}; an image and a label are needed')
    if not hasattr(features['label'], 'names'):
      raise RunError(f'the label of {dataset} is not a class')
    self.class_names = list(features['label'].names)
    try:
      self._data = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    except ValueError as error:
      raise RunError(f'{dataset}: {error}') from None
    except NotImplementedError:
      raise RunError(
        f'{dataset} is not stored as ArrayRecord: prepare it with file_format="array_record"'
      ) from None

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, index: int) -> Example:
    return self._named(index, self._data[index])

  def read(self, indices: Sequence[int]) -> list[Example]:
    """Several at once, in a fifth of the time that they take one by one."""
    return list(map(self._named, indices, self._data.__getitems__(indices)))

  def _named(self, index: int, example: Any) -> Example:
    name = f'{self._name}[{index}]'
    return Example(image=example['image'], label=int(example['label']), name=name)


SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')


@dataclasses.dataclass(frozen=True)
class Folder:
  """A directory of images, one directory per split and in it one per class.

  Attributes:
    dir: holds {split}/{class}/*.{jpg,jpeg,png,webp}.
  """

  dir: str

  def open(self, split: str) -> Source:
    """Raises RunError if directories or images are missing, or classes are not those of train."""
    return _FolderSource(paths.at(self.dir), split)


class _FolderSource:
  def __init__(self, root: paths.Path, split: str):
    folder, train = root / split, root / 'train'
    if not folder.is_dir():
      raise RunError(f'no directory {folder}: images are expected in {folder}/CLASS/')
    self.class_names = _folders(train if train.is_dir() else folder)
    unknown = set(_folders(folder)) - set(self.class_names)
    if unknown:
      raise RunError(f'{folder} has classes that {train} lacks: {", ".join(sorted(unknown))}')
    self._files = [
      (str(path), label)
      for label, name in enumerate(self.class_names)
      for path in sorted(folder.joinpath(name).glob('**/*'))
      if path.suffix.lower() in SUFFIXES
    ]
    if not self._files:
      raise RunError(f'no images ({" ".join(SUFFIXES)}) in {folder}/CLASS/')

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> Example:
    path, label = self._files[index]
    try:
      return Example(image=paths.at(path).read_bytes(), label=label, name=path)
    except OSError as error:
      raise RunError(f'cannot read {path}: {error.strerror}') from None


def _folders(path: paths.Path) -> list[str]:
  return sorted(child.name for child in path.iterdir() if child.is_dir())


class InMemory:
  """All examples of a source, read at once."""

  def __init__(self, source: Source):
    self.class_names = source.class_names
    count, read = len(source), getattr(source, 'read', None)
    self._examples = read(range(count)) if read else [source[index] for index in range(count)]

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]


@functools.lru_cache(maxsize=4)
def in_memory(source: Any, split: str) -> InMemory:
  """A split that `source` opens; read once for all runs of a process."""
  return InMemory(source.open(split))


@dataclasses.dataclass(frozen=True)
class Synthetic:
  """Random images that cost nothing to read, for measuring speed.

  Attributes:
    num_classes: labels are drawn from this many.
    examples: in the data set.
    image_size: height and width; give the model's, and nothing is resized.
  """

  num_classes: int = 1000
  examples: int = 1_281_167
  image_size: tuple[int, int] = (224, 224)

  def open(self, split: str) -> Source:
    """The same for every split."""
    del split
    return _SyntheticSource(self)


class _SyntheticSource:
  def __init__(self, config: Synthetic):
    self._config = config
    self.class_names = [str(i) for i in range(config.num_classes)]

  @functools.cached_property
  def _images(self) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (16, *self._config.image_size, 3), dtype=np.uint8)

  def __len__(self) -> int:
    return self._config.examples

  def __getitem__(self, index: int) -> Example:
    label = index % self._config.num_classes
    return Example(image=self._images[index % 16], label=label, name=f'synthetic[{index}]')


SOURCES = {'tfds': Tfds, 'folder': Folder, 'synthetic': Synthetic}
