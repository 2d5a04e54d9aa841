"""Tar files of images and what belongs to them, as WebDataset has them."""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import fnmatch
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.data import files, kinds, tars
from vit_jax.data.examples import (
  Example,
  NoDataError,
  NoSplitError,
  Source,
  headline,
  without_images,
)  # fmt: skip
from vit_jax.data.fields import Field, Mapped, Wanted
from vit_jax.data.sources.paired import map_field

if TYPE_CHECKING:
  import numpy as np

_KINDS = ('image', 'map', 'text', 'class')
_CAPTION = 'json/caption'  # unless there are members txt
_LOOKED = 8  # objects that are looked into for captions
_GAP = 2**16  # bytes between members that are read with these, in one piece
_SPLITS = re.compile('train|test|val|valid|validation|dev|eval', re.IGNORECASE)
_COMPRESSED = re.compile(r'.*\.(tar\.\w+|tgz|tbz2?|txz)', re.IGNORECASE)
_BRACES = re.compile(r'\{([^{}]*)\}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tar(Mapped):
  """Tar files of members with a key in common: KEY.jpg, KEY.txt, KEY.json, KEY.cls.

  KEY goes up to the first dot. A column of `fields` is what is behind it: 'txt', 'seg.png',
  'jpg;png' for the first that is there, or 'json/caption' for what is in an object. Unless they are
  given the image is what has the suffix of one, the label cls, and the text txt, several lines
  several texts, or else json/caption. What is not asked for makes a field only if at least half of
  the images have it. Examples are read in any order by an index, which is made when the files are
  first opened, and kept.

  Attributes:
    shards: a directory with files SPLIT-000000.tar or directories SPLIT; or a pattern such as
      'data/{split}-{000000..000012}.tar' or 'data/{split}/*.tar', in which {split} stands for the
      name of the split. Where no name says a split, the only one is train.
  """

  shards: str

  def open(self, split: str) -> TarSource:
    """A split.

    Raises:
      NoDataError: if there is no such directory or file, or no such split (NoSplitError).
      RunError: if a file is compressed or damaged, or has no such members.
    """
    return TarSource(self, split)


class TarSource(Source):
  """See `Tar`."""

  def __init__(self, config: Tar, split: str):
    import numpy as np

    self._root, self._shards = found(config.shards, split)
    self.name = files.printable(f'{config.shards}/{split}')
    shards, kept = tars.indexed(
      self._root, self._shards, f'{split} {config.shards.removeprefix(str(self._root))}'
    )
    self._said = _about(shards, kept)
    members = _Members(shards)
    if members.again:
      self._said.append(
        f'{members.again:,} members have the name of an earlier one, and replace it'
      )
    asked = self._asked(config, members)
    columns = {name: wanted.columns[0].partition('/')[0] for name, wanted in asked.items()}
    places = {name: members.of(column) for name, column in columns.items()}
    whole = np.all([own >= 0 for own in places.values()], axis=0)
    if lacking := [
      f'{count:,} lack{"s" * (count == 1)} {columns[name]}'
      for name, own in places.items()
      if (count := int((own < 0).sum()))
    ]:
      self._said.append(f'of {len(whole):,} keys {", ".join(lacking)}: left out')
    rows = np.flatnonzero(whole)
    if not len(rows):
      raise RunError(f'{self.name}: no key has all of {", ".join(columns.values())}')
    every = itertools.chain.from_iterable(shard.keys for shard in shards)
    self._keys = files.Names(itertools.compress(every, whole))
    # The first row of each shard, and what is behind the last.
    self._starts = np.searchsorted(rows, np.cumsum([0, *(len(shard.keys) for shard in shards)]))
    self._inner = {name: wanted.columns[0].split('/')[1:] for name, wanted in asked.items()}
    self._columns, self._spans, self.fields = columns, {}, {}
    for name, wanted in asked.items():
      own = places[name][rows]
      if wanted.kind == 'class':
        self.fields[name], self._labels = _classes(config, name, members.classes(own))
        continue
      self._spans[name] = members.start[own], members.size[own]
      if wanted.kind == 'map':
        self.fields[name] = map_field(config, name)
      else:
        self.fields[name] = config.field(name, Field(wanted.kind))
    if 'label' in self.fields and self.fields['label'].kind == 'class':
      self.labels = self._labels
    config.check(self.fields)

  def _asked(self, config: Tar, members: _Members) -> dict[str, Wanted]:
    """The fields that are asked for, and those that are there by themselves."""
    asked = config.wanted()
    for name, (kind, columns, _) in asked.items():
      column, inner = columns[0].partition('/')[::2]
      where = f'data.source.fields.{name}={columns[0]!r}'
      if kind not in _KINDS:
        raise RunError(f'{where}: a tar file has no {kind}, only {", ".join(_KINDS)}')
      if (kind == 'class') != (column == tars.CLASSES) or bool(inner) > (kind == 'text'):
        raise RunError(
          f'{where}: a class is in KEY.{tars.CLASSES}, and only of a text something is in an object'
        )
      if unknown := [each for each in column.split(';') if each not in members.counts]:
        raise RunError(
          f'{where}: no member is KEY.{unknown[0]}: {suggest(unknown[0], members.counts)}'
        )
    images = [suffix[1:] for suffix in kinds.readable() if suffix[1:] in members.counts]
    image = ';'.join(images)
    usual = [('image', image), ('label', tars.CLASSES), ('text', 'txt')]
    usual += [('text', _CAPTION)] * self._has_captions(members)
    most = max(members.count(image), 1)
    for name, column in usual:
      if name not in asked and 2 * members.count(column.partition('/')[0]) >= most:
        asked[name] = Wanted({'label': 'class'}.get(name, name), (column,), ('',))
    if not asked:
      raise RunError(
        f'{self.name} has no images: its members are KEY.{files.few([*members.counts])}'
      )
    used = {s for w in asked.values() for s in w.columns[0].partition('/')[0].split(';')}
    if others := [f'{n:,} .{suffix}' for suffix, n in members.counts.items() if suffix not in used]:
      self._said.append(f'members not used: {files.few(others)}')
    return {name: asked[name] for name in dict.fromkeys((*dict(usual), *asked)) if name in asked}

  def _has_captions(self, members: _Members) -> bool:
    """Whether one of the first objects has something under the usual name."""
    places = members.of('json')
    for member in places[places >= 0][:_LOOKED].tolist():
      shard, start, size = members.where(member)
      path = self._root / self._shards[shard]
      (data,) = _read(path, [(start, start + size)])
      with contextlib.suppress(RunError):
        if _inside(data, str(path), _CAPTION.split('/')[1:]):
          return True
    return False

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, index: int) -> Example:
    key = self._keys[index]
    path = self._root / self._shards[int(self._starts.searchsorted(index, 'right')) - 1]
    example: dict[str, Any] = {'name': files.printable(f'{path}/{key}')}
    spans = [(int(start[index]), int(size[index])) for start, size in self._spans.values()]
    pieces = _read(path, [(start, start + size) for start, size in spans])
    for name, data in zip(self._spans, pieces, strict=True):
      example[name] = data
      if self.fields[name].kind == 'text':
        example[name] = self._text(data, f'{example["name"]}.{self._columns[name]}', name)
    return {n: example[n] if n in example else self._labels[index] for n in (*self.fields, 'name')}

  def _text(self, data: bytes, where: str, name: str) -> str | tuple[str, ...]:
    inner = self._inner[name]
    return _inside(data, where, inner) if inner else files.captions(data, where)

  def summary(self) -> list[str]:
    """What was found, and what was left out, not used or passed over."""
    lines = [headline(self), *(f'{self.name}: {line}' for line in self._said)]
    if empty := without_images(self):
      lines.append(f'{self.name}: no images of {files.few(empty)}')
    return lines


class _Members:
  """Members of several tar files, one after another.

  Attributes:
    counts: how many there are with each suffix.
    start, size: of each, int64 (members,), in bytes.
    keys: how many there are.
    again: how many members have the name of another one.
  """

  def __init__(self, shards: Sequence[tars.Shard]):
    import numpy as np

    self._suffixes = list(dict.fromkeys(itertools.chain(*(shard.suffixes for shard in shards))))
    places = {suffix: place for place, suffix in enumerate(self._suffixes)}
    members = np.concatenate([shard.members for shard in shards])
    self.start, self.size = members['start'], members['size']
    lengths = [len(shard.members) for shard in shards]
    self._ends = np.cumsum(lengths)
    keys = np.array([len(shard.keys) for shard in shards])
    self.keys = int(keys.sum())
    self._key = members['key'] + np.repeat(np.cumsum(keys) - keys, lengths)
    self._suffix = np.concatenate([
      np.array([places[suffix] for suffix in shard.suffixes], np.int32)[shard.members['suffix']]
      for shard in shards
    ])  # fmt: skip
    self.again = len(members) - len(np.unique(self._key * len(places) + self._suffix))
    self._classes = list(itertools.chain(*(shard.classes for shard in shards)))
    numbers = np.bincount(self._suffix, minlength=len(places)).tolist()
    self.counts = dict(zip(self._suffixes, numbers, strict=True))

  def of(self, column: str) -> np.ndarray:
    """Of each key its member, or -1: of equal ones the last, of 'jpg;png' the first there is."""
    import numpy as np

    found = np.full(self.keys, -1)
    for suffix in reversed(column.split(';')):
      if suffix in self.counts:
        own = np.flatnonzero(self._suffix == self._suffixes.index(suffix))
        found[self._key[own]] = own
    return found

  def count(self, column: str) -> int:
    """How many keys have such a member."""
    return int((self.of(column) >= 0).sum())

  def where(self, member: int) -> tuple[int, int, int]:
    """The number of its shard, where it starts there, and its size."""
    shard = int(self._ends.searchsorted(member, 'right'))
    return shard, int(self.start[member]), int(self.size[member])

  def classes(self, members: np.ndarray) -> list[str]:
    """What is in members with the suffix of classes."""
    import numpy as np

    every = np.flatnonzero(self._suffix == self._suffixes.index(tars.CLASSES))
    return [self._classes[place] for place in np.searchsorted(every, members).tolist()]


def looks_like(folder: paths.AnyPath, *, splits: bool = True) -> bool:
  """Whether a directory has tar files and no directories; with `splits`, or only such ones."""
  if isinstance(folder, paths.ZipPath):
    return False
  inside = [entry for entry in paths.entries(folder) if not files.is_hidden(entry.name)]
  folders = [paths.at(entry.path) for entry in inside if entry.is_dir()]
  here = any(entry.name.lower().endswith('.tar') for entry in inside)
  if not folders or here:
    return here and not folders
  return splits and all(looks_like(each, splits=False) for each in folders)


def found(shards: str, split: str) -> tuple[paths.Path, list[str]]:
  """The directory of the tar files of a split, and their paths in it, in their order.

  Raises:
    NoDataError: if there are none, or none of the split (NoSplitError).
    RunError: if they are compressed.
  """
  special = re.search(r'[{*?]', shards)
  if not special:
    return _in_directory(paths.at(shards), split)
  root, slash, _ = shards[: special.start()].rpartition('/')
  root, rest = paths.at(root or slash or '.'), shards[len(root) + len(slash) :]
  if '{split}' not in rest and split != 'train':
    raise NoSplitError(f'{shards} has no split {split!r}: without {{split}} in it all is train')
  names = _expanded(files.put(rest, split))
  _refuse_compressed(names, root)
  there = list[str]()
  for folder in dict.fromkeys(name.rpartition('/')[0] for name in names):
    there += [f'{folder}/{name}'.lstrip('/') for name in paths.stamps(root / folder)]
  known, chosen = set(there), list[str]()
  for name in names:
    # The rest of what is not there is named when all of it is looked up.
    several = fnmatch.filter(there, name) if re.search(r'[*?]', name) else [name]
    chosen += sorted(several)
  if not known.intersection(chosen):
    kind = NoSplitError if '{split}' in rest else NoDataError
    raise kind(f'no tar files {root / files.put(rest, split)}: set data.source.shards')
  return root, list(dict.fromkeys(chosen))


def _in_directory(root: paths.Path, split: str) -> tuple[paths.Path, list[str]]:
  """As `found`, of a directory, or of a file."""
  if not root.is_dir():
    if not root.is_file():
      raise NoDataError(f'there is neither a directory nor a file {root}: set data.source.shards')
    _refuse_compressed([root.name], root.parent)
    if split != 'train':
      raise NoSplitError(f'{root} has no split {split!r}: all of a single file is train')
    return root.parent, [root.name]
  groups = collections.defaultdict[str, list[str]](list)
  inside = [entry for entry in paths.entries(root) if not files.is_hidden(entry.name)]
  for entry in inside:
    if entry.is_dir():
      own = [f'{entry.name}/{name}' for name in sorted(paths.stamps(root / entry.name))]
      if tars_there := [name for name in own if name.lower().endswith('.tar')]:
        groups[entry.name] += tars_there
    elif entry.name.lower().endswith('.tar'):
      words = re.split(r'[-_.]', entry.name)
      groups[next((word for word in words if _SPLITS.fullmatch(word)), 'train')].append(entry.name)
  if not groups:
    _refuse_compressed([entry.name for entry in inside if not entry.is_dir()], root)
    raise NoDataError(f'no tar files in {root}, nor in directories there')
  if split not in groups:
    raise NoSplitError(f'{root} has no split {split!r}: it has {files.few(sorted(groups))}')
  return root, groups[split]


def _refuse_compressed(names: Sequence[str], root: paths.Path) -> None:
  if found := [name for name in names if _COMPRESSED.fullmatch(name)]:
    raise RunError(tars.refusal(str(root / found[0])))


def _expanded(pattern: str) -> list[str]:
  """All that braces stand for: '{000..012}' for numbers, '{a,b}' for words."""
  match = _BRACES.search(pattern)
  if not match:
    return [pattern]
  first, dots, last = match[1].partition('..')
  if dots and first.isdigit() and last.isdigit():
    each = [f'{number:0{len(first)}}' for number in range(int(first), int(last) + 1)]
  else:
    each = match[1].split(',')
  before, behind = pattern[: match.start()], _expanded(pattern[match.end() :])
  return [f'{before}{middle}{end}' for middle in each for end in behind]


def _about(shards: Sequence[tars.Shard], kept: str) -> list[str]:
  """Lines for people on shards."""
  passed = collections.Counter[str]()
  for shard in shards:
    passed.update(shard.passed)
  members, count = sum(len(shard.members) for shard in shards), len(shards)
  where = f'kept in {kept}' if kept else 'which cannot be kept, and is made at every start'
  said = [f'{members:,} members of {count:,} file{"s"[: count > 1]}; their index is {where}']
  if cut := passed.pop(tars.CUT_OFF, 0):
    said.append(f'{cut:,} of {count:,} files have no mark of their end, and seem to be cut off')
  if passed:
    said.append(f'passed over: {", ".join(f"{why} ({n:,})" for why, n in passed.items())}')
  return said


def _classes(config: Tar, name: str, values: list[str]) -> tuple[Field, Sequence[int]]:
  """A field of classes, and the class of each example."""
  number = re.compile(r'-?\d+').fullmatch
  field = config.field(name, Field('class'))
  if not field.names:
    every = sorted({*values})
    every = sorted(every, key=int) if all(map(number, every)) else every
    field = dataclasses.replace(field, names=tuple(every))
  places = {each: place for place, each in enumerate(field.names)}
  if not any(map(number, field.names)):
    places |= {str(place): place for place in range(len(field.names))}
  if unknown := {*values} - {*places}:
    raise RunError(
      f'KEY.{tars.CLASSES}={min(unknown)!r} is no class of data.source.names.{name}, which has '
      f'{files.few(list(field.names))}'
    )
  return field, array.array('i', (places[value] for value in values))


def _read(path: paths.Path, spans: Sequence[tuple[int, int]]) -> list[bytes]:
  """Pieces of a file, those near each other in one go."""
  pieces = dict[tuple[int, int], bytes]()
  together = list[tuple[int, int]]()
  for span in sorted(spans):
    if together and span[0] - together[-1][1] > _GAP:
      pieces |= _at_once(path, together)
      together = []
    together.append(span)
  pieces |= _at_once(path, together)
  return [pieces[span] for span in spans]


def _at_once(
  path: paths.Path, spans: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], bytes]:  # fmt: skip
  start, stop = spans[0][0], max(stop for _, stop in spans)
  try:
    data = paths.read_range(path, start, stop)
  except OSError as error:
    raise paths.failure(f'cannot read {path}', error) from None
  if len(data) < stop - start:
    raise RunError(f'{path} is shorter than it was when its members were listed')
  return {span: data[span[0] - start : span[1] - start] for span in spans}


def _inside(data: bytes, where: str, keys: Sequence[str]) -> str | tuple[str, ...]:
  """A text, or several, in an object; '' where there is none."""
  try:
    value = json.loads(data)
  except (ValueError, RecursionError):
    raise RunError(f'{where} is not JSON') from None
  for key in keys:
    value = value.get(key) if isinstance(value, Mapping) else None
  every = value if isinstance(value, list) else [value]
  if not all(isinstance(each, str | None) for each in every):
    raise RunError(f'{where}: {"/".join(keys)}={value!r:.40} is no text')
  texts = tuple(filter(None, ((each or '').strip() for each in every)))
  return texts if len(texts) > 1 else ''.join(texts)
