"""What is known of a data set before anything is trained on it: counted, compared, said."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.data import pipeline, preprocess
from vit_jax.data.examples import Example, Source
from vit_jax.data.fields import Field
from vit_jax.data.files import few
from vit_jax.data.order import Keyed
from vit_jax.data.rows.columns import Columns, Image
from vit_jax.data.views import View

# Vectors, or images, of so many examples make the mean and the standard deviation.
_ENOUGH = 1000
# Examples that follow each other in a sample.
_RUN = 16
# Maps, and images of more than 8 bits, that are looked into: they are decoded whole.
_MAPS = 32


def sample(source: Source, most: int) -> Iterator[Example]:
  """Up to so many examples, of all parts of a source; always the same, a few at a time in memory.

  Neighbours come together: what is stored in large groups is read in few of them.
  """
  count = len(source)
  runs = -(-count // _RUN)
  looked = np.arange(min(runs, most // _RUN + 1))
  if count > most:
    looked = np.sort(Keyed(runs, 0)(looked))
  for run in looked.tolist():
    places = range(run * _RUN, min((run + 1) * _RUN, count))[:most]
    most -= len(places)
    yield from source.read(places) if places else ()


def with_statistics(source: Source) -> dict[str, Field]:
  """The fields of a source, those of vectors with the mean and the spread of their numbers.

  Of a vector of which no number is known they stay unset.
  """
  fields = dict(source.fields)
  lacking = [n for n, f in fields.items() if f.kind == 'vector' and not f.center]
  if not lacking:
    return fields
  found: dict[str, list[Any]] = {name: [] for name in lacking}
  for example in sample(source, _ENOUGH):
    for name in lacking:
      found[name].append(example[name])
  for name in lacking:
    values = np.array(found[name], np.float64)
    known = np.isfinite(values)
    if not known.any():
      continue
    count = np.maximum(known.sum(0), 1)
    center = np.where(known, values, 0).sum(0) / count
    spread = np.sqrt((np.where(known, values - center, 0) ** 2).sum(0) / count)
    spread = np.where(spread > 0, spread, 1)  # what is always the same has none
    fields[name] = dataclasses.replace(
      fields[name], center=tuple(center.tolist()), spread=tuple(spread.tolist())
    )
  return fields


def with_bands(
  source: Source, fields: Mapping[str, Field], images: Sequence[Image], skip: Any = None
) -> dict[str, Field]:
  """Fields, those of images with the mean and the spread of each band, to six digits.

  Of all pixels of a thousand examples alike, the images at their own size; those that are missing
  do not count. Whole numbers are shares of the largest of their type.

  Args:
    source: of examples.
    fields: of the source.
    images: how each is decoded.
    skip: is told of examples that cannot be used; without it they are refused.

  Raises:
    RunError: if no pixel is known.
  """
  sums = {image.field: (0, np.zeros(image.channels), np.zeros(image.channels)) for image in images}
  columns = Columns(View(), tuple(images))
  for example in sample(source, _ENOUGH):
    try:
      found, there = columns.decoded(example)
    except ValueError as error:
      pipeline.tell(skip, example['name'], error)
      continue
    for image in images:
      values = found[image.field][there].astype(np.float64)
      sums[image.field] = _joined(sums[image.field], values)
  measured = dict(fields)
  for image in images:
    count, center, squares = sums[image.field]
    if not count:
      raise RunError(f'{source.name}: no pixel of {image.field} is known: nothing can be measured')
    spread = np.sqrt(squares / count)
    spread = np.where(spread > 0, spread, 1)  # what is always the same has none
    largest = 1 if image.dtype == 'float32' else np.iinfo(image.dtype).max
    center, spread = (
      tuple(float(f'{x:.6g}') for x in (each / largest).tolist()) for each in (center, spread)
    )
    measured[image.field] = dataclasses.replace(fields[image.field], center=center, spread=spread)
  return measured


def _joined(held: tuple[int, Any, Any], values: np.ndarray) -> tuple[int, Any, Any]:
  """Count, mean, squared distances from it (Chan et al. 1979), with further values (n, bands)."""
  count, center, squares = held
  if not len(values):
    return held
  own = values.mean(0)
  both, apart = count + len(values), own - center
  squares = squares + np.square(values - own).sum(0) + apart**2 * (count * len(values) / both)
  return both, center + apart * (len(values) / both), squares


def audit(sources: Mapping[str, Source], most: int) -> list[str]:
  """Lines for people about some sources: sizes, channels, classes, numbers, texts, duplicates.

  Args:
    sources: by what they are for, the training data first; those that are made up are left out.
    most: how many examples of each are looked at.
  """
  lines: list[str] = []
  seen: dict[bytes, str] = {}
  for source in sources.values():
    if not most or source.made_up:
      continue
    values: dict[str, list[Any]] = {name: [] for name in source.fields}
    digests: list[bytes] = []
    for example in sample(source, most):
      for name, field in source.fields.items():
        values[name].append(_noted(field, example[name], len(digests)))
      digests.append(_digest(source, example))
    part = f' of {len(digests):,} looked at' if len(digests) < len(source) else ''
    for name, field in source.fields.items():
      every = source.labels if name == 'label' and source.labels is not None else values[name]
      about = _about(field, every, values.get('image', []))
      lines += [f'{source.name}: {name}: {text}{part}' for text in about]
    if any(field.kind == 'image' for field in source.fields.values()):
      lines += _duplicates(source, digests, seen, part)
  return lines


class _Image(NamedTuple):
  """What is noted of an image: height and width, what it is made of, and its extreme values."""

  size: tuple[int, int]
  form: str
  ends: tuple[float, float] | None


def _noted(field: Field, value: Any, number: int) -> Any:
  """What is kept of a value until all have been seen: little."""
  if field.kind == 'map':
    return value if number < _MAPS else None
  if field.kind == 'text':
    return (value,) if isinstance(value, str) else value
  if field.kind == 'masks':
    return len(value.label)
  if field.kind == 'panoptic':
    return len(value.segments)
  if field.kind != 'image':
    kept = ('class', 'classes', 'vector', 'points', 'boxes', 'dialogue')
    return value if field.kind in kept else None
  try:
    size, channels, dtype = preprocess.described(value)
    ends = None
    if dtype != 'uint8' and number < _MAPS:
      pixels = preprocess.whole(value)
      pixels = pixels[np.isfinite(pixels)]
      ends = (float(pixels.min()), float(pixels.max())) if pixels.size else None
    return _Image(size, f'{channels} channel{"s"[: channels > 1]} of {dtype}', ends)
  except ValueError:
    return None


def _digest(source: Source, example: Example) -> bytes:
  """Of the images of an example, as they are stored."""
  digest = hashlib.blake2b(digest_size=16)
  for name, field in source.fields.items():
    if field.kind == 'image':
      value = example[name]
      digest.update(value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes())
  return digest.digest()


def _about(field: Field, values: Sequence[Any], images: Sequence[_Image | None]) -> list[str]:
  """What there is to say of the values of a field, and of the images that they belong to."""
  if field.kind == 'image':
    return _images(values)
  if field.kind == 'class':
    return _classes(collections.Counter(values), field)
  if field.kind == 'classes':
    counts = collections.Counter(int(label) for labels in values for label in labels)
    each = np.mean([len(labels) for labels in values]) if values else 0
    return [f'{each:.1f} classes an image', *_classes(counts, field)]
  if field.kind == 'vector':
    return _numbers(field, np.array(values, np.float64).reshape(len(values), -1))
  if field.kind == 'points':
    return _points(np.array(values, np.float64), images)
  if field.kind == 'boxes':
    counts = [len(boxes.label) for boxes in values]
    labels = collections.Counter(int(label) for boxes in values for label in boxes.label)
    each = f'{np.mean(counts):.1f} boxes an image, {max(counts)} at most' if counts else 'none'
    return [each, *_classes(labels, field)]
  if field.kind in ('masks', 'panoptic') and values:
    called = {'masks': 'masks', 'panoptic': 'segments'}[field.kind]
    return [f'{np.mean(values):.1f} {called} an image, {max(values)} at most']
  if field.kind == 'map':
    return _maps(field, values[:_MAPS])
  if field.kind == 'dialogue' and values:
    counts = [len(turns) for turns in values]
    sizes = [len(answer) for turns in values for _, answer in turns]
    return [
      f'{np.mean(counts):.1f} questions a dialogue, {max(counts)} at most',
      f'answers of {np.median(sizes):.0f} characters in the median, {max(sizes):,} at most',
    ]
  return _texts(values) if field.kind == 'text' else []


def _images(values: Sequence[_Image | None]) -> list[str]:
  found = [value for value in values if value is not None]
  sizes = collections.Counter(image.size for image in found)
  forms = collections.Counter(image.form for image in found)
  lines = []
  if sizes:
    sides = np.array(list(sizes))
    written = lambda size: f'{size[0]}x{size[1]}'  # noqa: E731
    if len(sizes) == 1:
      lines.append(f'all {written(sides[0])}')
    else:
      lines.append(
        f'{sides[:, 0].min()} to {sides[:, 0].max()} pixels high and {sides[:, 1].min()} to '
        f'{sides[:, 1].max()} wide, mostly {written(sizes.most_common(1)[0][0])}'
      )
  if len(forms) > 1:
    lines.append(', '.join(f'{form} ({count:,})' for form, count in forms.most_common()))
  elif forms:
    lines[-1] += f', {next(iter(forms))}'
  if broken := len(values) - len(found):
    lines.append(f'{broken:,} cannot be decoded')
  if ends := [image.ends for image in found if image.ends]:
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    lines.append(f'values from {low:.4g} to {high:.4g} in {len(ends)} images')
  return lines


def _classes(counts: collections.Counter, field: Field) -> list[str]:
  """Of how many examples each class is, where that is uneven; labels that are no class."""
  count = len(field.names)
  lines = []
  if outside := sorted(label for label in counts if not 0 <= label < count):
    lines.append(f'{outside[0]} to {outside[-1]} are outside the {count} classes')
  inside = sorted((n, label) for label, n in counts.items() if 0 <= label < count)
  if len(inside) > 1 and inside[0][0] < inside[-1][0]:
    (least, rare), (most, common) = inside[0], inside[-1]
    lines.append(f'from {least:,} of {field.names[rare]!r} to {most:,} of {field.names[common]!r}')
  return lines


def _numbers(field: Field, values: np.ndarray) -> list[str]:
  lines = []
  units = field.units or ('',) * len(field.names)
  for name, unit, column in zip(field.names, units, values.T, strict=True):
    known = column[np.isfinite(column)]
    lacking = len(column) - len(known)
    unknown = f', {lacking:,} not known' if lacking else ''
    if len(known):
      span = f'{known.min():.4g} to {known.max():.4g}' + f' {unit}' * bool(unit)
      lines.append(f'{name} from {span}{unknown}')
    else:
      lines.append(f'{name}: none is known')
  return lines if len(lines) <= 8 else [*lines[:8], f'and {len(lines) - 8} more']


def _points(values: np.ndarray, images: Sequence[_Image | None]) -> list[str]:
  """How many points are known, where they are, and how many are in no image."""
  known = np.isfinite(values).all(-1)
  lines = [f'{known.mean():.1%} of the points are known']
  if known.any():
    (x, y) = values[known].T
    lines[0] += f', x from {x.min():.4g} to {x.max():.4g}, y from {y.min():.4g} to {y.max():.4g}'
    if max(x.max(), y.max()) <= 1:
      lines.append('all points are between 0 and 1: they are read as pixels, not as shares')
  sizes = np.full((len(values), 2), np.inf)
  for row, image in enumerate(images):
    if image is not None:
      sizes[row] = image.size[::-1]
  away = known & ((values < 0) | (values > sizes[:, None])).any(-1)
  if away.any():
    lines.append(f'{away.sum():,} points are outside of their image, and do not count')
  return lines


def _maps(field: Field, values: Sequence[Any]) -> list[str]:
  from vit_jax.data.masks import decode_map

  found: set[int] = set()
  broken = 0
  for value in values:
    try:
      found |= set(np.unique(decode_map(value)).tolist())
    except ValueError:
      broken += 1
  inside = {label for label in found if 0 <= label < len(field.names)}
  other = sorted(found - inside - set(field.ignore))
  lines = [f'{len(inside)} of {len(field.names)} classes in {len(values) - broken} maps']
  if broken:
    lines.append(f'{broken:,} of {len(values)} cannot be read')
  if other:
    lines.append(
      f'the values {few([str(value) for value in other])} are no class, and not among those that '
      'are ignored'
    )
  return lines


def _texts(values: Sequence[Sequence[str]]) -> list[str]:
  """How long the texts of each example are, how many it has, whether others have the same."""
  lengths = [len(text) for texts in values for text in texts] or [0]
  several = [len(texts) for texts in values if len(texts) > 1]
  lines = [f'{np.median(lengths):.0f} characters in the median, {max(lengths):,} at most']
  have = lambda count: f'{count:,} example{"s have" if count > 1 else " has"}'  # noqa: E731
  if several:
    lines.append(f'{have(len(several))} several texts, {max(several)} at most')
  if empty := sum(not all(map(str.strip, texts)) or not texts for texts in values):
    lines.append(f'{have(empty)} an empty text')
  counts = collections.Counter(text for texts in values for text in {*texts} if text.strip())
  if shared := sum(any(counts[text] > 1 for text in texts) for texts in values):
    lines.append(f'{have(shared)} a text that others have, too')
  return lines


def _duplicates(
  source: Source, digests: Sequence[bytes], seen: dict[bytes, str], part: str
) -> list[str]:
  """Images that are in another source, too, and those that are twice in this one."""
  own: dict[bytes, str] = {}
  twice, elsewhere = 0, collections.Counter()
  for key in digests:
    twice += key in own
    if key in seen:
      elsewhere[seen[key]] += 1
    own[key] = source.name
  seen |= {key: name for key, name in own.items() if key not in seen}
  are = lambda count: f'{count:,} image{"s are" if count > 1 else " is"}'  # noqa: E731
  lines = [f'{source.name}: {are(twice)} there more than once{part}'] if twice else []
  return lines + [
    f'{source.name}: {are(count)} in {name}, too{part}' for name, count in elsewhere.items()
  ]
