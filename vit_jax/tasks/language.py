"""Answers to questions about images: captions, visual question answering, dialogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.architecture.multimodal import MultimodalArchitecture
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs.step import Pass
from vit_jax.data.examples import Example
from vit_jax.data.rows import Rows
from vit_jax.data.rows.dialogues import Dialogue, kind_of
from vit_jax.data.rows.texts import texts_of
from vit_jax.data.views import View
from vit_jax.tasks.reading import Reading
from vit_jax.tasks.task import Batch, Context, Fields, Prediction, Seen, Sums
from vit_jax.text import dialogues
from vit_jax.text.dialogues import TEMPLATES

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.models import multimodal
  from vit_jax.nn import generate
  from vit_jax.tasks import words

AVERAGES = ('tokens', 'examples')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelling(Reading):
  """Trains a language model to answer questions about an image, or to describe it.

  With task.frozen=('vision/.*', 'language/.*') only the projector is trained, the first stage of
  LLaVA (Liu et al. 2023); with ('vision/.*',) its second one, which starts from the first by
  `--config.init`.

  Attributes:
    template: how a dialogue is written; one of `text.dialogues.TEMPLATES`.
    length: tokens of a row, those of the image included.
    asked: of captions what is asked for them, of questions what is said with them, 'answer en {}';
      '' for nothing.
    average: the loss is the mean over the 'tokens' of all answers of a batch (LLaVA), or over
      'examples' of the mean of each (PaliGemma). Whatever it is, the mean over tokens is reported.
    blind: images are blank: what questions alone tell, a control.
    most: tokens of an answer in predictions and evaluations, its end included.
  """

  template: str = 'answers'
  length: int = 64
  asked: str = ''
  average: str = 'tokens'
  blind: bool = False
  most: int = 16

  def __post_init__(self):
    super().__post_init__()
    if self.template not in TEMPLATES:
      raise RunError(
        f'unknown task.template {self.template!r}: {suggest(self.template, TEMPLATES)}'
      )
    if self.average not in AVERAGES:
      raise RunError(f'unknown task.average {self.average!r}: {suggest(self.average, AVERAGES)}')
    if min(self.length, self.most) < 1:
      raise RunError(f'task.length={self.length} and task.most={self.most} must be at least 1')
    if self.tokenizer.length != self.tokenizer.usual:
      raise RunError(
        f'task.tokenizer.length={self.tokenizer.length} is of texts alone: a row of a dialogue has '
        'task.length tokens'
      )

  def fitted(self, model: Any, fields: Fields) -> Any:
    """See `Task`: a language model for the tokens there are."""
    del fields
    if not isinstance(model, MultimodalArchitecture):
      raise RunError(f'task.name=language needs model.name=multimodal, not {model.kind}')
    own = dict(vocab_size=self.tokenizer.size, context_length=self.length + self.most)
    language = model.language
    if language.variant:
      return model
    unset = {name: value for name, value in own.items() if getattr(language, name) is None}
    return dataclasses.replace(model, language=dataclasses.replace(language, **unset))

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`; raises RunError for a model that cannot read the tokens, or not so many."""
    language = model.language
    if self.tokenizer.size > language.vocab_size:
      raise RunError(
        f'the tokenizer has {self.tokenizer.size:,} tokens, and the language model '
        f'{language.vocab_size:,} (model.language.vocab_size): it was trained with another one'
      )
    if self.length + self.most > language.context_length:
      raise RunError(
        f'task.length={self.length} and an answer of task.most={self.most} are more than the '
        f'{language.context_length} tokens of the language model (model.language.context_length)'
      )
    if model.places >= self.length:
      raise RunError(
        f'task.length={self.length} has no place for texts: an image takes {model.places} tokens. '
        'Give more, or merge patches with model.shuffle'
      )
    # A token that is missing is said before anything is made.
    dialogues.ends(TEMPLATES[self.template], self.tokenizer)
    return super().adapt(model, fields)

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """See `Task`."""
    lines = super().notes(model, fields)
    lines.append(f'{model.places} of {self.length} tokens of a row are of the image')
    return [*lines, 'blind: images are blank'] if self.blind else lines

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    dialogue = Dialogue(
      tokenizer=self.tokenizer, template=TEMPLATES[self.template], length=self.length,
      images=model.places, kind=kind_of(fields, 'the data'), asked=self.asked, train=train,
    )  # fmt: skip
    return self.columns(model, fields, view, drawn=(dialogue,))

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: the image tower as far as it is computed, and rows of `length`."""
    language = dataclasses.replace(model.language, context_length=self.length)
    return [Pass(dataclasses.replace(model, vision=model.seeing, layer=-1, language=language))]

  def augment(self, batch: Batch, key: Any, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`."""
    batch = super().augment(batch, key, hyper)
    return {**batch, 'image': jnp.zeros_like(batch['image'])} if self.blind else batch

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`."""
    return {'examples': batch['mask'].sum(), 'tokens': _counts(batch).sum()}

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[Any, Sums, dict[str, Any]]:
    """See `Task`: reported are 'token_loss', the mean over tokens, and the share that is right."""
    tokens, counts = part['tokens'], _counts(part)
    first = part['answered'].argmax(1)
    asked = jnp.arange(tokens.shape[1]) < first[:, None]
    x = model.encode(part['image'], tokens, asked, key=ctx.noise)
    follows = jnp.maximum(tokens[:, 1:], 0)
    judged = words.cross_entropy(x[:, :-1], model.language.table, follows, counts)
    each = judged.loss.sum(1)
    if self.average == 'examples':
      each, over = each / jnp.maximum(counts.sum(1), 1), 'examples'
    else:
      over = 'tokens'
    left_out = (part['tokens_left_out'] * part['mask']).sum()
    sums = {
      'loss': (each.sum(), over), 'token_loss': (judged.loss.sum(), 'tokens'),
      'right': (judged.right.sum(), 'tokens'), 'tokens_left_out': (left_out, 'examples'),
    }  # fmt: skip
    return each.sum() / ctx.totals[over], sums, {}

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """The likeliest answers: 'said', int32 (batch, most), 'log_prob' of each whole, (batch,)."""
    tokens = batch['tokens']
    there = multimodal.there(tokens)
    x = model.read(model.see(batch['image']), tokens)
    numbers = jnp.zeros_like(tokens[:, 0])  # nothing is drawn
    prompt = generate.Prompt(x, there, there if model.config.prefix else None, numbers)
    rules = self.rules(model.config, generate.Sampling(most=self.most))
    found = generate.generate(model.language, prompt, rules)
    return {'said': found.tokens, 'log_prob': found.log_probs.sum(1)}

  def rules(self, model: Any, sampling: Any) -> Any:
    """How answers are said: `nn.generate.Rules`.

    Args:
      model: its configuration, resolved.
      sampling: of tokens.
    """
    ends = dialogues.ends(TEMPLATES[self.template], self.tokenizer)
    sayable = dialogues.sayable(self.tokenizer, model.language.vocab_size)
    return generate.Rules(
      sampling=sampling, ends=ends, pad=ends[0], sayable=tuple(map(bool, sayable))
    )

  def answer(self, ids: Any) -> str:
    """What tokens of an answer say, up to its end."""
    return dialogues.said(TEMPLATES[self.template], self.tokenizer, ids)

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: what was asked, and the answer."""
    del seen
    asked = texts_of(example, 'question')[0] if 'question' in example else self.asked
    return Prediction({
      'asked': asked, 'answer': self.answer(outputs['said']),
      'log_prob': float(outputs['log_prob']),
    })  # fmt: skip

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    facts = prediction.facts
    return [line for line in (facts['asked'], facts['answer']) if line]


def _counts(batch: Batch) -> jax.Array:
  """Which tokens follow that are answers, of examples that are there: bool (batch, tokens - 1)."""
  return (batch['answered'][:, 1:] > 0) & (batch['mask'][:, None] > 0)
