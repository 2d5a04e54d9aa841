"""How well questions about images are answered, and images described."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import Example, Source, Wrapped
from vit_jax.data.rows.dialogues import Dialogue
from vit_jax.data.rows.texts import texts_of
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores, Table
from vit_jax.tasks.task import Seen
from vit_jax.text import dialogues, measures

IMAGES = ('own', 'others', 'blank')
# Values of single answers by their name, functions of the right ones and of what was said.
EACH: Mapping[str, Callable[[Sequence[str], str], float]] = {
  'exact': lambda right, said: float(any(measures.exact(each, said) for each in right)),
  'vqa': measures.vqa_accuracy,
}
ALL = ('bleu', 'cider')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(Evaluator):
  """Answers that a model gives, compared with the right ones: the likeliest tokens, one by one.

  'exact' is the share that is one of the right answers, once both are normalised as in VQA; 'vqa'
  the accuracy of VQA (Antol et al. 2015); 'bleu' BLEU-4 and 'cider' CIDEr-D of captions, over the
  split. What was said of each example is left in evals/NAME.npz.

  Attributes:
    images: that are shown with the questions: their 'own', those of 'others', or 'blank' ones: what
      a model answers that does not look.
    measure: names out of exact, vqa, bleu and cider.
  """

  score = 'surprise'
  of = ('tokens',)
  images: str = 'own'
  measure: tuple[str, ...] = ('exact',)

  def __post_init__(self):
    if self.images not in IMAGES:
      raise RunError(f'unknown images {self.images!r}: {suggest(self.images, IMAGES)}')
    known = (*EACH, *ALL)
    for name in self.measure:
      if name not in known:
        raise RunError(f'unknown measure {name!r}: {suggest(name, known)}')

  def open(self, data: DataConfig, split: str) -> Source:
    """See `Evaluator`."""
    source = super().open(data, split)
    return _Others(source) if self.images == 'others' else source

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`."""
    batch = task.augment(batch, None, {})
    if self.images == 'blank':
      batch = {**batch, 'image': batch['image'] * 0}
    return task.predict(model, batch)

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: how unlikely the model thinks its own answer."""
    del batch
    return -outputs['log_prob']

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: what is said, and the right answers."""
    (dialogue,) = (each for each in seen.rows.drawn if isinstance(each, Dialogue))
    said = dialogues.said(dialogue.template, dialogue.tokenizer, row['said'].tolist())
    return _Said(said.strip(), _right(example, dialogue.kind))

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    records: list[_Said] = found['test'].records
    if not records:
      raise RunError(f'{found["test"].source.name}: no example can be used')
    values, arrays = {}, {'said': np.array([each.said for each in records])}
    for name in self.measure:
      if name in EACH:
        arrays[name] = np.array([EACH[name](each.right, each.said) for each in records])
        values[name] = float(arrays[name].mean())
    if {*ALL} & {*self.measure}:
      right = [[measures.words(text) for text in each.right] for each in records]
      said = [measures.words(each.said) for each in records]
      if 'bleu' in self.measure:
        values['bleu'] = float(measures.bleu(right, said)[-1])
      if 'cider' in self.measure:
        scored = measures.cider(right, said)
        values['cider'], arrays['cider'] = float(scored.value), np.asarray(scored.each)
    often = collections.Counter(each.said for each in records).most_common(10)
    table = Table('What is said most often', ('answer', 'times'), often)
    return Scores(values, arrays, [table])


class _Said(NamedTuple):
  """Of an example: what is said, and what would be right."""

  said: str
  right: tuple[str, ...]


def _right(example: Example, kind: str) -> tuple[str, ...]:
  """The right answers of an example."""
  if kind == 'dialogue':
    return (example['dialogue'][-1][1],)
  return tuple(filter(None, texts_of(example, 'answer' if kind == 'question' else 'text')))


class _Others(Wrapped):
  """Examples with the image of another one, half of the split away."""

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    count = len(self.source)
    others = self.source.read([(index + max(count // 2, 1)) % count for index in indices])
    return [
      {**own, 'image': other['image']}
      for own, other in zip(self.source.read(indices), others, strict=True)
    ]
