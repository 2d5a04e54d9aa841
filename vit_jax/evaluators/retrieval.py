"""How well texts are found by their images, and images by their texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.fields import Field
from vit_jax.data.rows.texts import Captions, texts_of
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax.numpy as jnp

# Cosines that differ by less are equal: those of the same two vectors may, in products of matrices.
_SAME = 1e-6
_CHUNK = 1 << 24  # cosines at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluator):
  """Recall: 'text_1' is the share of images with a text of their own among the most similar one.

  'image_1' is the share of texts with an image of theirs likewise (Karpathy & Fei-Fei 2015). Where
  texts are the same, all their images are right. What is equally similar counts against the model:
  one that makes all the same finds nothing. 'alignment' is the mean squared distance of an image
  and its texts, 'uniformity' the logarithm of the mean of exp(-2 d^2) over pairs of images (Wang &
  Isola 2020, equations 4 and 5). The rank of each is left in evals/NAME.npz, 0 for the first.

  Attributes:
    k: among how many.
    wrong: a field with a text that does not fit an image, though its words do. 'preferred' is then
      the share of images that are more like their own, among those that have such a text.
  """

  score = 'distance'
  of = ('tokens',)
  k: tuple[int, ...] = (1, 5, 10)
  wrong: str = ''

  def __post_init__(self):
    if not self.k or min(self.k) < 1:
      raise RunError(f'k={self.k} must be positive')

  def rows(self, task: Any, model: Any, fields: Mapping[str, Field]) -> Any:
    """See `Evaluator`."""
    rows = super().rows(task, model, fields)
    if not self.wrong or not hasattr(task, 'tokenizer'):
      return rows
    wrong = Captions(task.tokenizer, 1, self.wrong, 'wrong')
    return dataclasses.replace(rows, columns=(*rows.columns, wrong))

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`."""
    found = super().outputs(task, model, batch)
    if self.wrong:
      found |= {'wrong': task.read(model, batch['wrong']), 'wrong_known': batch['wrong_known']}
    return found

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: vectors of the image and of its texts, and the texts."""
    texts = texts_of(example, _field(seen))[: len(row['known'])]
    own = row['text'][row['known'] > 0]
    like = float('nan')
    if self.wrong and row['wrong_known'][0] and len(own):
      like = float(own[0] @ row['image'] - row['wrong'][0] @ row['image'])
    return Looked(row['image'], own, tuple(filter(None, texts)), like)

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: the distance to the nearest of its texts."""
    del batch
    cosines = (outputs['text'] * outputs['image'][:, None]).sum(-1)
    return 1 - jnp.where(outputs['known'] > 0, cosines, -1).max(1)

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    records: list[Looked] = found['test'].records
    if not records:
      raise RunError(f'{found["test"].source.name}: no example can be used')
    if not any(len(each.texts) for each in records):
      raise RunError(f'{found["test"].source.name}: no example has a text')
    images = np.stack([each.image for each in records])
    ranks = ranked(images, [each.texts for each in records], [each.said for each in records])
    values: dict[str, Any] = {}
    for name, of in (('text', ranks.texts), ('image', ranks.images)):
      values |= {f'{name}_{k}': float((of < k).mean()) for k in self.k}
    apart = [((each.image - each.texts) ** 2).sum(-1) for each in records]
    values['alignment'] = float(np.concatenate(apart).mean())
    values['uniformity'] = _uniformity(images)
    arrays = {'text_rank': ranks.texts, 'image_rank': ranks.images}
    if self.wrong:
      more = np.array([each.preferred for each in records])
      arrays['preferred'] = more = more[np.isfinite(more)] > _SAME
      values['preferred'] = float(more.mean()) if len(more) else 0.0
    return Scores(values, arrays)


class Looked(NamedTuple):
  """An example.

  Attributes:
    image: its unit vector, float32 (width,).
    texts: those of its texts, float32 (texts, width).
    said: these.
    preferred: by how much it is more like the first of them than like a wrong one; NaN without one.
  """

  image: np.ndarray
  texts: np.ndarray
  said: tuple[str, ...]
  preferred: float


class Ranks(NamedTuple):
  """How many wrong ones are at least as similar as the best right one.

  Attributes:
    texts: by image that has a text, int (images,).
    images: by text, in the order of the images, int (texts,).
  """

  texts: np.ndarray
  images: np.ndarray


def ranked(images: np.ndarray, texts: list[np.ndarray], said: list[tuple[str, ...]]) -> Ranks:
  """Ranks of all against all.

  Args:
    images: unit vectors, float32 (images, width).
    texts: of each image (its texts, width).
    said: of each image its texts.
  """
  owner = np.repeat(np.arange(len(images)), [len(own) for own in texts])
  numbers: dict[str, int] = {}
  same = np.array([numbers.setdefault(text, len(numbers)) for own in said for text in own])
  vectors = np.concatenate(texts)
  # Which image goes with which different text, as pairs of numbers.
  pairs = np.unique(np.stack([owner, same], 1), axis=0)
  right_texts = _members(pairs[:, 0], pairs[:, 1], len(images))
  by_text = pairs[np.argsort(pairs[:, 1], kind='stable')]
  right_images = _members(by_text[:, 1], by_text[:, 0], len(numbers))
  of_texts, of_images = np.zeros(len(images), np.int64), np.zeros(len(vectors), np.int64)
  alike = np.zeros(len(numbers), bool)
  for at, cosines in _against(images, vectors):
    alike[right_texts[at]] = True
    if len(right_texts[at]):
      of_texts[at] = _rank(cosines, alike[same])
    alike[right_texts[at]] = False
  there = np.zeros(len(images), bool)
  for at, cosines in _against(vectors, images):
    there[right_images[same[at]]] = True
    of_images[at] = _rank(cosines, there)
    there[right_images[same[at]]] = False
  return Ranks(of_texts[[len(own) > 0 for own in texts]], of_images)


def _members(groups: np.ndarray, members: np.ndarray, count: int) -> list[np.ndarray]:
  """By group its members; groups are sorted."""
  return np.split(members, np.searchsorted(groups, np.arange(1, count)))


def _against(some: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Cosines of each with all others, without all of them at once."""
  step = max(1, _CHUNK // max(len(others), 1))
  for start in range(0, len(some), step):
    yield from enumerate(some[start : start + step] @ others.T, start)


def _rank(cosines: np.ndarray, right: np.ndarray) -> int:
  return int((cosines[~right] >= cosines[right].max() - _SAME).sum())


def _uniformity(images: np.ndarray) -> float:
  """Over all pairs of different images."""
  count = len(images)
  if count < 2:
    return 0.0
  total = sum(float(np.exp(4 * (cosines.astype(np.float64) - 1)).sum())
              for _, cosines in _against(images, images))  # fmt: skip
  return float(np.log((total - count) / (count * (count - 1))))


def _field(seen: Seen) -> str:
  """The field of the texts."""
  return next(name for name, kind in seen.rows.needs.items() if kind == 'text')
