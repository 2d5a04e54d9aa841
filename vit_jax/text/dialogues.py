"""Dialogues as tokens: what a person asks of a language model, perhaps about an image, and answers.

A dialogue becomes pieces, each of which knows whether it is learned: masks are made with the tokens
and never found again in them, which goes wrong with one tokenizer or another (LLaVA's 'tokenization
mismatch'). Answers and the tokens that end them are learned, and nothing else. A text that spells a
special token of a template does not become one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.text import forms
from vit_jax.text.tokenizer import Tokenizer

# Numbers that are no tokens: a place that a feature of the image takes; what fills a row.
IMAGE, PADDING = -1, -2
# In what is asked: here goes the image.
MARKER = '<image>'
FIRST, TURN = 'first', 'turn'

# What is asked, and what is answered.
Turns = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """How a model expects a dialogue to be written.

  Attributes:
    name: for messages.
    specials: the special tokens that occur in these texts; others are texts.
    start: before everything but an image that is 'first'; None for what the tokenizer itself puts
      before a text.
    system: a sentence that says what the model is; '' for none. It may be replaced by another.
    around: what is before and behind that sentence.
    asked: what is before and behind the text of a question; None where questions are not written.
    lead: with what an answer begins, and is learned with it.
    end: the token that ends an answer; None for the end token of the tokenizer.
    after: between an answer and the next question, and behind the last answer.
    stops: special tokens that end an answer, too, where the tokenizer has them.
    image: where it goes: 'first', before everything, or 'turn', before the text of a question.
    behind: between the image and the text of the question.
    apart: whether each of these texts is cut into tokens by itself. Else they are joined, but for
      answers and around special tokens and the image, and only a text that begins the dialogue, or
      follows the image, has the space that SentencePiece puts before texts.
    strip: whether questions and answers lose the space around them.
    most: turns of a dialogue; 0 for any number.
  """

  name: str
  specials: tuple[str, ...] = ()
  start: str | None = ''
  system: str = ''
  around: tuple[str, str] = ('', '')
  asked: tuple[str, str] | None = ('', '')
  lead: str = ''
  end: str | None = None
  after: str = ''
  stops: tuple[str, ...] = ()
  image: str = TURN
  behind: str = '\n'
  apart: bool = False
  strip: bool = False
  most: int = 0

  def __post_init__(self):
    if self.image not in (FIRST, TURN):
      raise RunError(f'the template {self.name} has the image {self.image!r}: {FIRST} or {TURN}')
    if self.system and self.around == ('', ''):
      raise RunError(f'the template {self.name} has no place for a system sentence')


_CHATML = Template(
  name='chatml',
  specials=('<|im_start|>', '<|im_end|>'),
  system='You are a helpful AI assistant named SmolLM, trained by Hugging Face',
  around=('<|im_start|>system\n', '<|im_end|>\n'),
  asked=('<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n'),
  end='<|im_end|>',
  after='\n',
  stops=('<|endoftext|>',),
)

TEMPLATES = {
  each.name: each
  for each in (
    # Stage 1 of LLaVA (Liu et al. 2023), `preprocess_plain`: the image, its caption, a new line.
    Template(name='plain', start=None, asked=None, end='\n', behind='', most=1),
    # LLaVA-1.5 (Liu et al. 2023), `conv_vicuna_v1`.
    Template(
      name='vicuna',
      specials=('<s>', '</s>'),
      start='<s>',
      system=(
        'A chat between a curious user and an artificial intelligence assistant. The assistant '
        "gives helpful, detailed, and polite answers to the user's questions."
      ),
      around=('', ' '),
      asked=('USER: ', ' ASSISTANT:'),
      lead=' ',
      end='</s>',
    ),
    # SmolLM2-Instruct, by the template in its checkpoints.
    _CHATML,
    # Qwen2-Instruct and Qwen2.5-Instruct, by theirs.
    dataclasses.replace(_CHATML, name='qwen2', system='You are a helpful assistant.'),
    dataclasses.replace(
      _CHATML,
      name='qwen2.5',
      system='You are Qwen, created by Alibaba Cloud. You are a helpful assistant.',
    ),
    # Gemma-it, by the template in its checkpoints, which strips texts and has no system sentence.
    Template(
      name='gemma',
      specials=('<bos>', '<start_of_turn>', '<end_of_turn>'),
      start='<bos>',
      asked=('<start_of_turn>user\n', '<end_of_turn>\n<start_of_turn>model\n'),
      end='<end_of_turn>',
      after='\n',
      stops=('<eos>',),
      strip=True,
    ),
    # PaliGemma (Beyer et al. 2024), big_vision's configs/proj/paligemma.
    Template(
      name='paligemma',
      specials=('<bos>', '<eos>'),
      start='<bos>',
      asked=('', '\n'),
      end='<eos>',
      image=FIRST,
      apart=True,
      most=1,
    ),
    # Of models that are trained from nothing: question, answer, end.
    Template(name='answers', start=None, image=FIRST, apart=True),
  )
}

# Tokens that no answer has: where texts, turns and images begin.
_NEVER = (
  '<s>', '<bos>', '<pad>', '<|pad|>', '<|im_start|>', '<start_of_turn>', MARKER,
  '<image_soft_token>', '<start_of_image>', '<end_of_image>', '<|vision_start|>', '<|vision_end|>',
  '<|image_pad|>', '<|video_pad|>', '<|vision_pad|>',
)  # fmt: skip


class Encoded(NamedTuple):
  """A dialogue to learn from.

  Attributes:
    tokens: int32 (length,), `IMAGE` where features of the image go, `PADDING` behind the last.
    answered: bool (length,), True for tokens that are learned: those of answers and their ends.
    cut: how many tokens were left out because there was no room.
  """

  tokens: np.ndarray
  answered: np.ndarray
  cut: int


def encode(
  template: Template, tokenizer: Tokenizer, turns: Turns, images: int, length: int
) -> Encoded:  # fmt: skip
  """A finished dialogue; of one that is too long the end is left out.

  Args:
    template: one of `TEMPLATES`, or one like them.
    tokenizer: of the language model.
    turns: pairs of a question and its answer. One of the questions may say `MARKER` at the place of
      the image: at either end of the question it means the place that the template has for it.
      Without a marker the image goes with the first question.
    images: places that the image takes; 0 where there is no image.
    length: of the rows.

  Raises:
    ValueError: for a dialogue that cannot be used, as the end of a sentence about it: markers that
      do not fit, more turns than the template takes, nothing before the first answer, or nothing
      to learn, or not all of the image, within the length.
    RunError: for tokens of the template that the tokenizer does not have; or as `Tokenizer.ids`.
  """
  ids, answered = _written(template, tokenizer, turns, images, finished=True)
  if not any(answered[:length]):
    raise ValueError(
      f'has its first answer behind {answered.index(True):,} tokens, and rows have {length:,}: '
      'there is nothing to learn'
    )
  if ids[:length].count(IMAGE) != images:
    raise ValueError(f'has not all of its image within the {length:,} tokens of a row')
  tokens, learned = np.full(length, PADDING, np.int32), np.zeros(length, bool)
  kept = min(len(ids), length)
  tokens[:kept], learned[:kept] = ids[:kept], answered[:kept]
  return Encoded(tokens, learned, len(ids) - kept)


def prompt(template: Template, tokenizer: Tokenizer, turns: Turns, images: int) -> list[int]:
  """Tokens of a dialogue up to where the model goes on: `encode` of the finished one begins so.

  Args:
    template, tokenizer, turns, images: as of `encode`. The last answer is not looked at.

  Raises:
    ValueError, RunError: as `encode` does.
  """
  return _written(template, tokenizer, turns, images, finished=False)[0]


def ends(template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Tokens each of which ends an answer, first the one that answers are trained to end with.

  Raises:
    RunError: for any token of the template that the tokenizer does not have.
  """
  numbers = _numbers(template, tokenizer)
  pieces = tokenizer.opened()
  others = [*(pieces.number(stop) for stop in template.stops), tokenizer.end]
  found = [_end(template, tokenizer, numbers), *(number for number in others if number >= 0)]
  return tuple(dict.fromkeys(found))


def sayable(tokenizer: Tokenizer, size: int) -> np.ndarray:
  """Which tokens an answer may have, bool (size,): not those that begin texts, images or turns.

  Padding may not be said either, unless it also ends answers, and nothing beyond the vocabulary.

  Args:
    tokenizer: of the language model.
    size: rows of the model's table, which may have more than the vocabulary.

  Raises:
    RunError: if the table has fewer; or as `Tokenizer.frame` does.
  """
  pieces, frame = tokenizer.opened(), tokenizer.frame
  if pieces.size > size:
    raise RunError(
      f'the tokenizer has {pieces.size:,} tokens, and the model knows {size:,}: it is that of '
      'another model'
    )
  finish = {token for each in TEMPLATES.values() for token in (each.end, *each.stops) if token}
  kept = {*frame.after, *map(pieces.number, finish)}
  never = {frame.pad, *frame.before, *map(pieces.number, _NEVER)} - kept - {-1}
  found = np.arange(size) < pieces.size
  found[[*never]] = False
  return found


def said(template: Template, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
  """The text of an answer, of the tokens that a model has given, up to the first that ends it.

  Raises:
    RunError: as `ends` does.
  """
  stops, kept = {*ends(template, tokenizer)}, list[int]()
  for number in ids:
    if number in stops:
      break
    kept.append(int(number))
  return tokenizer.opened().words(kept).removeprefix(template.lead)


def _numbers(template: Template, tokenizer: Tokenizer) -> dict[str, int]:
  """Of the special tokens of a template; raises RunError if one is missing."""
  pieces = tokenizer.opened()
  found = {token: pieces.number(token) for token in template.specials}
  for token, number in found.items():
    if number < 0:
      raise RunError(
        f'the template {template.name!r} needs the token {token}, and the tokenizer '
        f'{", ".join([tokenizer.kind, *tokenizer.files])} has none like it: another template, or '
        'the tokenizer of the model'
      )
  return found


def _end(template: Template, tokenizer: Tokenizer, numbers: dict[str, int]) -> int:
  """The token that ends an answer; raises RunError if there is none."""
  if template.end in numbers:
    return numbers[template.end]
  if template.end is None:
    found = [tokenizer.end] * (tokenizer.end >= 0)
    what = 'the end token of the tokenizer'
  else:
    found, what = tokenizer.ids(template.end, begins=False), repr(template.end)
  if len(found) != 1:
    raise RunError(
      f'the template {template.name!r} ends answers by {what}, and the tokenizer '
      f'{", ".join([tokenizer.kind, *tokenizer.files])} has no one token for that'
    )
  return found[0]


class _Writer:
  """Writes tokens, and beside each whether it is learned."""

  def __init__(self, template: Template, tokenizer: Tokenizer):
    self.ids, self.answered = list[int](), list[bool]()
    self._template, self._tokenizer = template, tokenizer
    self._numbers = _numbers(template, tokenizer)
    self.end = _end(template, tokenizer, self._numbers)
    self._special = '|'.join(map(re.escape, template.specials))
    self._text, self._begins = '', True

  def put(self, *numbers: int, answered: bool = False) -> None:
    """Tokens that are no pieces of texts."""
    self.flush()
    self.ids += numbers
    self.answered += [answered] * len(numbers)

  def image(self, places: int) -> None:
    """The image, behind which a text begins anew: LLaVA cuts texts there, and reads each part."""
    if places:
      self.put(*[IMAGE] * places)
      self._begins = True

  def literal(self, text: str) -> None:
    """A text of the template, with its special tokens."""
    for part in re.split(f'({self._special})', text) if self._special else [text]:
      if part in self._numbers:
        self.put(self._numbers[part])
      else:
        self.say(part)

  def say(self, text: str, *, answered: bool = False) -> None:
    """A text, which goes on with what was said before, unless one of them is an answer."""
    if answered or self._template.apart:
      self.flush()
    self._text += text
    if answered or self._template.apart:
      self.flush(answered=answered)

  def flush(self, *, answered: bool = False) -> None:
    """Cuts what was said into tokens."""
    begins = self._begins or self._template.apart
    for part in self._harmless(self._text):
      found = self._tokenizer.ids(part, begins=begins)
      self.ids += found
      self.answered += [answered] * len(found)
      self._begins = begins = False
    self._text = ''

  def _harmless(self, text: str) -> Iterator[str]:
    """A text, or parts of it such that none has a special token of the template.

    What users have defined is found in any text: by SentencePiece, and what is not called special
    in a tokenizer.json.
    """
    at = 0
    spelled = [*re.finditer(self._special, text)] if self._special else []
    if spelled and {*self._tokenizer.ids(text)} & {*self._numbers.values()}:
      for found in spelled:
        yield text[at : found.start() + 1]
        at = found.start() + 1
    if text:
      yield text[at:]


def _written(
  template: Template, tokenizer: Tokenizer, turns: Turns, images: int, *, finished: bool
) -> tuple[list[int], list[bool]]:  # fmt: skip
  """Tokens of a dialogue, and which of them are learned; if not finished, without the last answer.

  Raises:
    ValueError, RunError: as `encode` does.
  """
  turns = [(forms.whole(asked), forms.whole(answer)) for asked, answer in turns]
  marked = _marked(template, turns, images)
  writer = _Writer(template, tokenizer)
  if template.image == FIRST:
    writer.image(images)
  if template.start is None:
    writer.put(*tokenizer.frame.before)
  else:
    writer.literal(template.start)
  if template.system:
    writer.literal(template.around[0])
    writer.say(template.system)
    writer.literal(template.around[1])
  for number, (asked, answer) in enumerate(turns):
    _ask(template, writer, asked, images * (number == marked and template.image == TURN))
    writer.flush()
    if not writer.ids:
      raise ValueError('has nothing before its first answer: neither a question nor an image')
    if number == len(turns) - 1 and not finished:
      break
    writer.say(template.lead + (answer.strip() if template.strip else answer), answered=True)
    writer.put(writer.end, answered=True)
    writer.literal(template.after)
  writer.flush()
  return writer.ids, writer.answered


def _marked(template: Template, turns: Turns, images: int) -> int:
  """The turn with the image; raises ValueError for turns that cannot be."""
  if not turns:
    raise ValueError('is a dialogue without a turn')
  if template.most and len(turns) > template.most:
    raise ValueError(
      f'has {len(turns)} turns, and the template {template.name!r} takes {template.most}'
    )
  places = [number for number, (asked, _) in enumerate(turns) for _ in range(asked.count(MARKER))]
  if len(places) > 1:
    raise ValueError(f'has {len(places)} markers {MARKER}, and there is one image at most')
  if places and not images:
    raise ValueError(f'has the marker {MARKER}, and there is no image')
  return places[0] if places else 0


def _ask(template: Template, writer: _Writer, asked: str, images: int) -> None:
  """Writes a question, with the image if it goes there."""
  before, marker, behind = asked.partition(MARKER)
  inside = bool(marker and before.strip() and behind.strip())
  if inside and template.asked and template.image == FIRST:
    raise ValueError(
      f'has the marker {MARKER} inside of a question, and the template {template.name!r} puts the '
      'image before everything'
    )
  if template.asked is None:
    writer.image(images)
    return
  # As in LLaVA's `preprocess_multimodal`.
  text = (before + behind).strip() if marker else asked
  text = text.strip() if template.strip else text
  writer.literal(template.asked[0])
  if inside:
    writer.say(before.lstrip() if template.strip else before)
    writer.image(images)
    writer.say(behind.rstrip() if template.strip else behind)
  else:
    writer.image(images)
    writer.say(template.behind * bool(text and images) + text)
  writer.literal(template.asked[1])
