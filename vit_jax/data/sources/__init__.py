"""Where examples come from."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vit_jax.core import paths, schema
from vit_jax.data import folds
from vit_jax.data.examples import Example, Source, Wrapped
from vit_jax.data.sources import tar
from vit_jax.data.sources.coco import Coco
from vit_jax.data.sources.embedded import Features
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.generated import Generated
from vit_jax.data.sources.llava import Llava
from vit_jax.data.sources.manifest import Manifest
from vit_jax.data.sources.mixture import Mixed, checked
from vit_jax.data.sources.paired import Paired, captioned
from vit_jax.data.sources.parquet import Parquet
from vit_jax.data.sources.synthetic import Synthetic
from vit_jax.data.sources.tar import Tar
from vit_jax.data.sources.tfds import Tfds, versions
from vit_jax.data.sources.tiles import Tiles
from vit_jax.data.sources.xbd import Xbd

# Of these a mixture may be made.
PLAIN = {
  'tfds': Tfds, 'folder': Folder, 'manifest': Manifest, 'paired': Paired,
  'parquet': Parquet, 'coco': Coco, 'synthetic': Synthetic, 'generated': Generated,
  'xbd': Xbd, 'tiles': Tiles, 'tar': Tar, 'features': Features, 'llava': Llava,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several sources as one: of every thousand examples that are trained on, each has its share.

  Splits have the same name in all of them. Classes are matched by name, and together are those of
  the mixture. An epoch is as many examples as all have; where it is evaluated, each comes once.

  Attributes:
    sources: by names of your own.
    weights: of the sources, numbers of any scale, by these names; 1 where none is given.
  """

  sources: dict[str, Any] = schema.choices(PLAIN, 'folder')
  weights: dict[str, str] = schema.texts()

  def open(self, split: str) -> Source:
    """A split, or the same fold of it in each source; raises RunError as these do."""
    weights = checked(self.sources, self.weights)
    return Mixed(
      f'mixture/{split}', {name: open_split(each, split) for name, each in self.sources.items()},
      weights,
    )  # fmt: skip


SOURCES = {**PLAIN, 'mixture': Mixture}
# Of these the files are found by listing or by reading what lists them.
_LISTED = (Folder, Manifest, Paired, Parquet, Coco, Xbd, Tiles, Tar, Llava)
# What opens a source that is given by a function: in a run of several processes one for all.
_opened: contextvars.ContextVar[Callable[[Callable[[], Source]], Source]] = contextvars.ContextVar(
  'opened', default=lambda make: make()
)
# Of a data set whose first images cannot be used.
_TRIES = 32


@contextlib.contextmanager
def opened_by(once: Callable[[Callable[[], Source]], Source]) -> Iterator[None]:
  """Inside, files are looked for by `once(open)`: it may let one process do it, and tell others."""
  token = _opened.set(once)
  try:
    yield
  finally:
    _opened.reset(token)


def open_split(config: Any, split: str, *, cache: bool = False) -> Source:
  """The examples of a split, or of a part of one: see `folds`.

  Args:
    config: one of `SOURCES`.
    split: its name, `fold 1/10 of NAME` or `NAME without fold 1/10`.
    cache: read all of the named split at once, for all runs of the process.

  Raises:
    RunError: if there is no such split, or it cannot be read.
  """
  fold = None if isinstance(config, Mixture) else folds.parse(split)
  name = fold.split if fold else split
  source = _in_memory(config, name) if cache else _found(config, name)
  return folds.Part(source, fold) if fold else source


def found(path: paths.Path) -> Any:
  """The data set in a directory, or in a zip file of images: one of `PLAIN`."""
  if versions(path):
    return Tfds(dataset=path.name, dir=str(path.parent))
  if path.is_dir() and tar.looks_like(path):
    return Tar(shards=str(path))
  if path.is_dir() and any(name.endswith('.parquet') for name in paths.below(path)):
    return Parquet(dir=str(path))
  if fields := captioned(path):
    return Paired(dir=str(path), fields=fields)
  return Folder(str(path))


class InMemory(Wrapped):
  """All examples of a source, read at once."""

  def __init__(self, source: Source):
    super().__init__(source)
    self._summary = source.summary()
    self._examples = source.read(range(len(source)))
    del self.source

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    return [self._examples[index] for index in indices]

  def summary(self) -> list[str]:
    """See `Source`."""
    return self._summary


_KEPT: collections.OrderedDict[str, InMemory] = collections.OrderedDict()


def _in_memory(source: Any, split: str) -> InMemory:
  """Of the last four splits that were read."""
  key = f'{source!r} {split!r}'
  if key not in _KEPT:
    _KEPT[key] = InMemory(_found(source, split))
  _KEPT.move_to_end(key)
  while len(_KEPT) > 4:
    _KEPT.popitem(last=False)
  return _KEPT[key]


def _found(config: Any, split: str) -> Source:
  """A split, opened by one process for all where that means to look for files."""
  make = lambda: _looked_at(config.open(split))  # noqa: E731
  return _opened.get()(make) if isinstance(config, _LISTED) else make()


def _looked_at(source: Source) -> Source:
  """A source that knows of its images of which type they are, from the first that can be read."""
  unknown = [n for n, f in source.fields.items() if f.kind == 'image' and not f.dtype]
  if unknown:
    from vit_jax.data.preprocess import described, nodata

    fields = dict(source.fields)
    for index in range(min(len(source), _TRIES)):
      example = source[index]
      try:
        for name in unknown:
          _, channels, dtype = described(example[name])
          gaps = nodata(example[name]) is not None
          fields[name] = dataclasses.replace(
            fields[name], dtype=dtype, channels=channels, gaps=gaps
          )
      except ValueError:
        continue
      break
    source.fields = fields
  return source
