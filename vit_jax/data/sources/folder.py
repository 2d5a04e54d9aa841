"""A directory of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.examples import (
  Example,
  NoDataError,
  NoSplitError,
  Source,
  headline,
  without_images,
)  # fmt: skip
from vit_jax.data.fields import Field

WHOLE = 'all'  # the split of a directory without any


@dataclasses.dataclass(frozen=True)
class Folder:
  """A directory of images, one directory per split and in it one per class.

  Whatever decodes is an image: JPEG, PNG, WebP, BMP, GIF (the first frame), TIFF (the first page),
  PNM, JPEG 2000 and AVIF files, and arrays (height, width, channels) in .npy files; files
  without a suffix that is known are looked into. Hidden and system files are passed over, links are
  followed.

  Attributes:
    dir: holds {split}/{class}/, with images at any depth. It may be a zip file, or in one; links
      in zip files are passed over. Where there are no splits, {class}/ alone, that is the split
      'all'.
  """

  dir: str

  def open(self, split: str) -> FolderSource:
    """A split; the classes are those of train, if that is there.

    Raises:
      NoDataError: if the directory is not there, or the split (NoSplitError).
      RunError: if there are no images, or of classes that train lacks.
    """
    given = paths.inside(self.dir)
    if not given.is_dir():
      raise NoDataError(f'there is no directory {given}: set data.source.dir')
    root = files.entered(given, (split, 'train'))
    if split == WHOLE and not (root / split).is_dir():
      return FolderSource(*_whole(root))
    if not (root / split).is_dir():
      there = files.folders(root, files.Passed())
      has = f'it has {files.few(there)}' if there else 'it is empty'
      raise NoSplitError(
        f'no directory {root / split}: images are expected in {root / split}/CLASS/, but {has}'
      )
    said = '' if root == given else f'{given}: its only directory, {root.name}, is entered'
    return FolderSource(root / split, root / 'train', said)


def _whole(root: paths.AnyPath) -> tuple[paths.AnyPath, paths.AnyPath, str]:
  """What `FolderSource` is given of a directory of classes; of a zip file of its only directory."""
  inner = files.folders(root, files.Passed())
  if not isinstance(root, paths.ZipPath) or root.inner or len(inner) != 1:
    return root, root, ''
  place = root / inner[0]
  return place, place, f'{root}: its only directory, {inner[0]}, is entered'


class FolderSource(Source):
  """See `Folder`; classes are those of `train`, `said` is one more line of the summary."""

  def __init__(self, folder: paths.AnyPath, train: paths.AnyPath, said: str = ''):
    self._said = said
    self.name, self._passed = files.printable(str(folder)), files.Passed()
    own = files.folders(folder, self._passed)
    classes = files.folders(train, files.Passed()) if train.is_dir() else own
    names = tuple(files.printable(name) for name in classes)
    self.fields = {'image': Field('image'), 'label': Field('class', names)}
    unknown = [name for name in own if name not in set(classes)]
    if unknown:
      raise RunError(f'{folder} has classes that {train} lacks: {files.few(unknown)}')
    there = set(own)
    self._folders = [f'{folder / name}/' for name in classes]
    labels: list[int] = []

    def found() -> Iterator[str]:
      """Of every image its path in the directory of its class."""
      for label, name in enumerate(classes):
        paths_here = files.images(folder / name, self._passed) if name in there else []
        labels.extend([label] * len(paths_here))
        yield from (path[len(self._folders[label]) :] for path in paths_here)

    self._files = files.Names(found())
    self.labels = self._labels = labels
    if not self._files:
      passed = f'; passed over: {self._passed}' if str(self._passed) else ''
      raise RunError(f'no images in {folder}/CLASS/{passed}')

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> Example:
    label = self._labels[index]
    path = self._folders[label] + self._files[index]
    return dict(image=files.read(path), label=label, name=path)

  def summary(self) -> list[str]:
    """What was found, what not, and what was passed over."""
    lines = [headline(self)]
    if empty := without_images(self):
      lines.append(f'{self.name}: no images of {files.few(empty)}')
    if passed := str(self._passed):
      lines.append(f'{self.name}: passed over: {passed}')
    return [*lines, self._said] if self._said else lines
