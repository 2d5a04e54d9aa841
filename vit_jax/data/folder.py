"""A directory of images."""

from __future__ import annotations

import dataclasses

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import files
from vit_jax.data.examples import Example, NoDataError, NoSplitError, headline, without_images


@dataclasses.dataclass(frozen=True)
class Folder:
  """A directory of images, one directory per split and in it one per class.

  Whatever decodes is an image: JPEG, PNG, WebP, BMP, GIF (the first frame), TIFF (the first page),
  PNM, JPEG 2000 and AVIF files, and uint8 arrays (height, width, channels) in .npy files; files
  without a suffix that is known are looked into. Hidden and system files are passed over, links are
  followed.

  Attributes:
    dir: holds {split}/{class}/, with images at any depth.
  """

  dir: str

  def open(self, split: str) -> FolderSource:
    """A split; the classes are those of train, if that is there.

    Raises:
      NoDataError: if the directory is not there, or the split (NoSplitError).
      RunError: if there are no images, or of classes that train lacks.
    """
    root = paths.at(self.dir)
    if not root.is_dir():
      raise NoDataError(f'there is no directory {root}: set data.source.dir')
    if not (root / split).is_dir():
      there = files.folders(root, files.Passed())
      has = f'it has {files.few(there)}' if there else 'it is empty'
      raise NoSplitError(
        f'no directory {root / split}: images are expected in {root / split}/CLASS/, but {has}'
      )
    return FolderSource(root, split)


class FolderSource:
  """See `Folder`."""

  def __init__(self, root: paths.Path, split: str):
    folder, train = root / split, root / 'train'
    self.name, self._passed = files.printable(str(folder)), files.Passed()
    own = files.folders(folder, self._passed)
    classes = files.folders(train, files.Passed()) if train.is_dir() else own
    self.class_names = [files.printable(name) for name in classes]
    unknown = [name for name in own if name not in set(classes)]
    if unknown:
      raise RunError(f'{folder} has classes that {train} lacks: {files.few(unknown)}')
    there = set(own)
    self._files: list[str] = []
    self.labels: list[int] = []
    for label, name in enumerate(classes):
      found = files.images(folder / name, self._passed) if name in there else []
      self._files += found
      self.labels += [label] * len(found)
    if not self._files:
      found = f'; passed over: {self._passed}' if str(self._passed) else ''
      raise RunError(f'no images in {folder}/CLASS/{found}')

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> Example:
    path = self._files[index]
    try:
      image = paths.at(path).read_bytes()
    except OSError as error:
      raise RunError(f'cannot read {path}: {error.strerror}') from None
    return Example(image=image, label=self.labels[index], name=path)

  def summary(self) -> list[str]:
    """What was found, what not, and what was passed over."""
    lines = [headline(self)]
    if empty := without_images(self):
      lines.append(f'{self.name}: no images of {files.few(empty)}')
    if passed := str(self._passed):
      lines.append(f'{self.name}: passed over: {passed}')
    return lines
