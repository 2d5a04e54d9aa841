"""A dialogue about an image: `python -m vit_jax.chat CHECKPOINT IMAGE`."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epy

from vit_jax.convert import arguments
from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.text.tokenizer import Filed

# Arguments are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import numpy as np

  from vit_jax import tasks
  from vit_jax.convert import notes, read
  from vit_jax.core import paths
  from vit_jax.models import multimodal
  from vit_jax.nn import generate, sharding
  from vit_jax.tasks import images, language
  from vit_jax.text import dialogues

# Prompts are filled up to a multiple of so many tokens: a program for each length.
STEP = 64
HELP = 'ask, or: /image PATH for another image, /new to begin again, an empty line to leave'


class Speaker:
  """A model in a dialogue about an image.

  Attributes:
    turns: what was asked, and answered.
  """

  def __init__(self, model: Any, sampling: Any, vocabulary: str = ''):
    """Create it under the mesh that the model is on.

    Args:
      model: a `models.multimodal.Multimodal` with a card; see `vit_jax.load`.
      sampling: `nn.generate.Sampling` of its answers.
      vocabulary: file of its tokenizer, where none is beside the checkpoint.

    Raises:
      RunError: if it does not answer, or has no vocabulary.
    """
    task = tasks.of(model.card)[0]
    if not isinstance(task, language.LanguageModelling):
      raise RunError(
        f'this is a {model.config.kind} trained for {tasks.described(task)["name"]}: a dialogue is '
        'with a language model that sees'
      )
    tokenizer: Any = task.tokenizer
    if vocabulary and isinstance(tokenizer, Filed):
      tokenizer = dataclasses.replace(tokenizer, file=vocabulary)
    elif isinstance(tokenizer, Filed) and not tokenizer.file:
      raise RunError(
        f'there is no vocabulary by the checkpoint: --vocabulary=FILE, for {tokenizer.kind}'
      )
    self.turns: list[tuple[str, str]] = []
    self._task, self._model = dataclasses.replace(task, tokenizer=tokenizer), model
    self._template = dialogues.TEMPLATES[task.template]
    self._rules = self._task.rules(model.config, sampling)
    self._seen: Any = None
    laid = 'batch', None, None, None
    self._see = jax.jit(lambda model, images: model.see(sharding.reshard(images, *laid)))
    self._begin = jax.jit(functools.partial(_begin, rules=self._rules))
    self._advance = jax.jit(
      lambda model, state: generate.advance(model.language, state, self._rules), donate_argnums=1
    )

  def look(self, image: bytes) -> None:
    """At an encoded image; the dialogue begins anew.

    Raises:
      RunError: if it cannot be decoded.
    """
    channels = self._model.config.vision.in_channels
    try:
      pixels = images.prepare(image, self._model.card, channels)
    except ValueError as error:
      raise RunError(f'the image cannot be used: {error}') from None
    self._seen, self.turns = self._see(self._model, pixels[None]), []

  def ask(self, question: str) -> Iterator[str]:
    """The answer, piece by piece; it is then one of the turns.

    Raises:
      RunError: if the dialogue is too long, or cannot be written by the template.
    """
    limit, most = self._model.config.language.context_length, self._rules.sampling.most
    try:
      ids = dialogues.prompt(
        self._template, self._task.tokenizer, [*self.turns, (question, '')],
        self._model.config.places,
      )  # fmt: skip
    except ValueError as error:
      raise RunError(f'this dialogue {error}') from None
    if len(ids) + most > limit:
      raise RunError(
        f'the dialogue has {len(ids):,} tokens, and an answer up to {most}: the model reads '
        f'{limit:,}. Begin a new one, or give --most'
      )
    room = min(-(-len(ids) // STEP) * STEP, limit - most)
    tokens = np.array([[dialogues.PADDING] * (room - len(ids)) + ids], np.int32)
    state = self._begin(self._model, self._seen, tokens)
    said, given = '', list[int]()
    for number in range(most):
      if number:
        state = self._advance(self._model, state)
      given.append(int(state.token[0]))
      text = dialogues.said(self._template, self._task.tokenizer, given)
      whole = text.removesuffix('\ufffd')  # of a character that has begun
      if whole.startswith(said):
        yield whole[len(said) :]
        said = whole
      if bool(state.done[0]):
        break
    self.turns.append((question, dialogues.said(self._template, self._task.tokenizer, given)))


def _begin(model: Any, seen: Any, tokens: Any, rules: Any) -> Any:
  """The first token of an answer."""
  tokens = sharding.reshard(tokens, 'batch', None)
  there = multimodal.there(tokens)
  prefix, numbers = there if model.config.prefix else None, 0 * tokens[:, 0]
  prompt = generate.Prompt(model.read(seen, tokens), there, prefix, numbers)
  return generate.begin(model.language, prompt, rules)


def main(
  checkpoint: str, image: str, prompt: str, temperature: float, top_p: float, most: int, seed: int,
  vocabulary: str, choice: Mapping[str, Any],
) -> None:  # fmt: skip
  """Answers one prompt, or those that are typed."""
  sampling = generate.Sampling(temperature=temperature, top_p=top_p, most=most, seed=seed)
  with jax.set_mesh(sharding.make_mesh('1x1x1', jax.devices()[:1])):
    with notes.printed(sys.stderr):
      model = read.model_of(read.open_checkpoint(checkpoint, **choice))
    speaker = Speaker(model, sampling, vocabulary)
    speaker.look(_bytes(image))
    if prompt:
      _answer(speaker, prompt)
      return
    print(HELP, file=sys.stderr)
    while question := _typed():
      try:
        if question == '/new':
          speaker.turns = []
        elif question.startswith('/image '):
          speaker.look(_bytes(question.removeprefix('/image ').strip()))
        else:
          _answer(speaker, question)
      except RunError as error:  # the dialogue goes on
        print(f'error: {error}', file=sys.stderr)


def _answer(speaker: Speaker, question: str) -> None:
  for piece in speaker.ask(question):
    print(piece, end='', flush=True)
  print()


def _bytes(image: str) -> bytes:
  path = paths.inside(image)
  try:
    return path.read_bytes()
  except OSError as error:
    raise RunError(f'cannot read {image}: {error.strerror or error}') from None


def _typed() -> str:
  """A line from the keyboard; '' at its end."""
  try:
    return input('> ').strip()
  except (EOFError, KeyboardInterrupt):
    print()
    return ''


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.chat',
    'Answers questions about an image, one after another, with a language model that sees.',
    (
      'runs/vqa photo.jpg',
      'llava-1.5-7b-hf photo.jpg --prompt="What is on the table?" --temperature=0.7 --top_p=0.9',
    ),
  )
  parser.add_argument('checkpoint', help='of a model that answers: a run, or a published one')
  parser.add_argument('image', help='that is asked about')
  parser.add_argument('--prompt', default='', help='a single question, instead of a dialogue')
  parser.add_argument('--temperature', type=float, default=0.0, help='0 says the likeliest (0)')
  parser.add_argument('--top_p', type=float, default=1.0, help='of the likeliest tokens (1)')
  parser.add_argument('--most', type=int, default=128, help='tokens of an answer (128)')
  parser.add_argument('--seed', type=int, default=0, help='of what is drawn (0)')
  parser.add_argument('--vocabulary', default='', help='of the tokenizer, if it is not there')
  arguments.run(parser, main)
