"""Dialogues, questions with answers, and captions, as tokens for a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.fields import Field
from vit_jax.data.misfit import MisfitError
from vit_jax.data.rows import Array
from vit_jax.data.rows.texts import texts_of
from vit_jax.text.dialogues import PADDING, Template, encode, prompt

# Fields by what they make, the first of which are there.
NEEDS: dict[str, dict[str, str]] = {
  'dialogue': {'dialogue': 'dialogue'},
  'question': {'question': 'text', 'answer': 'text'},
  'text': {'text': 'text'},
}
PLACE = '{}'


def kind_of(fields: Mapping[str, Field], where: str) -> str:
  """Which of `NEEDS` examples with these fields have.

  Raises:
    RunError: if they have none, naming the source `where`.
  """
  kinds = {name: field.kind for name, field in fields.items()}
  for kind, needs in NEEDS.items():
    if needs.items() <= kinds.items():
      return kind
  there = ', '.join(f'{name} ({kind})' for name, kind in kinds.items()) or 'none'
  raise RunError(
    f'{where} has no field dialogue, no question and answer of the kind text, and no text; it has '
    f'{there}. Where a column has another name: --config.data.source.fields.text=COLUMN'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue:
  """What is asked and answered, as tokens: see `columns.Drawn`.

  To learn: 'tokens', int32 (length,), and 'answered', float32 (length,), 1 for those that are
  learned, see `text.dialogues.encode`; 'tokens_left_out', float32 (), is how many there was no room
  for. Of several questions, answers or texts that say the same one is drawn; empty answers and
  texts are none.

  To be answered: 'tokens', int32 (length,), the prompt up to where the model goes on, of the first
  question, with `PADDING` behind it. Of a dialogue the last answer is asked for.

  Attributes:
    tokenizer: one of `text.TOKENIZERS`.
    template: how the model expects a dialogue to be written.
    images: places that an image takes; 0 without images.
    length: of the rows.
    kind: what it is made of, one of `NEEDS`.
    asked: of texts what is asked for them; of questions what is said with them, with '{}' for the
      question, 'answer en {}'. '' for nothing.
    train: whether it is to be learned.
  """

  tokenizer: Any
  template: Template
  length: int
  images: int = 0
  kind: str = 'dialogue'
  asked: str = ''
  train: bool = True

  def __post_init__(self):
    if self.kind == 'dialogue' and self.asked:
      raise RunError(f'asked={self.asked!r}: dialogues say what is asked')
    if self.kind == 'question' and self.asked and self.asked.count(PLACE) != 1:
      raise RunError(f'asked={self.asked!r} needs one {PLACE}, where the question goes')

  @property
  def needs(self) -> Mapping[str, str]:
    """See `columns.Drawn`: what is asked for is not needed to be answered."""
    if self.train or self.kind == 'dialogue':
      return NEEDS[self.kind]
    return {'question': 'text'} if self.kind == 'question' else {}

  def arrays(self) -> dict[str, Array]:
    """See `columns.Drawn`."""
    tokens = {'tokens': Array((self.length,), np.int32)}
    if not self.train:
      return tokens
    answered = Array((self.length,), np.float32)
    return {**tokens, 'answered': answered, 'tokens_left_out': Array((), np.float32)}

  def make(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """See `columns.Drawn`.

    Raises:
      MisfitError: for an example that cannot be used, saying why.
      RunError: for tokens of the template that the tokenizer does not have.
    """
    turns = self._turns(example, rng)
    try:
      if self.train:
        found = encode(self.template, self.tokenizer, turns, self.images, self.length)
        answered = found.answered.astype(np.float32)
        return {'tokens': found.tokens, 'answered': answered, 'tokens_left_out': found.cut}
      ids = prompt(self.template, self.tokenizer, turns, self.images)
      if len(ids) > self.length:
        raise ValueError(f'asks with {len(ids):,} tokens, and rows have {self.length:,}')
    except ValueError as error:
      raise MisfitError(str(error), fix='Change it, give rows more tokens') from None
    return {'tokens': np.array([*ids, *[PADDING] * (self.length - len(ids))], np.int32)}

  def _turns(self, example: Example, rng: np.random.Generator) -> Any:
    if self.kind == 'dialogue':
      return example['dialogue']
    asked, answer = self.asked, ''
    if self.kind == 'question':
      questions = texts_of(example, 'question')
      question = questions[int(rng.integers(len(questions))) if self.train else 0]
      asked = asked.replace(PLACE, question) if asked else question
    if self.train:
      field = 'answer' if self.kind == 'question' else 'text'
      texts = [text for text in texts_of(example, field) if text.strip()]
      if not texts:
        raise MisfitError(f'has no {field}: there is nothing to learn', fix='Give it one')
      answer = texts[int(rng.integers(len(texts)))]
    return [(asked, answer)]
