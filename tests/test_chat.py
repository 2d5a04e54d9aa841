"""Dialogues in a terminal."""

import cv2
import jax
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.test_conformance import SEEN, SPEAKING, WORDS
from vit_jax import chat, tasks
from vit_jax.architecture.card import Card
from vit_jax.core.errors import RunError
from vit_jax.models.language import LanguageConfig
from vit_jax.models.multimodal import MultimodalConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import sharding
from vit_jax.nn.generate import Sampling
from vit_jax.tasks.language import LanguageModelling
from vit_jax.text.plain import Words


@pytest.fixture(scope='module')
def model():
  """One that says many things."""
  tokenizer = Words(vocabulary=WORDS)
  config = MultimodalConfig(
    ViTConfig(**{**SEEN, 'pool': None}),
    LanguageConfig(**SPEAKING, vocab_size=tokenizer.size, context_length=128),
  )
  made = config.create(nnx.Rngs(0))
  rng = np.random.default_rng(5)
  made = jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape).astype(w.dtype), made)
  task = LanguageModelling(tokenizer=tokenizer, length=40)
  fields = {'image': {'kind': 'image', 'dtype': 'uint8'}, 'question': {'kind': 'text'},
            'answer': {'kind': 'text'}}  # fmt: skip
  made.card = Card('vit_jax', (16, 16), task=tasks.described(task), fields=fields)
  return made


def image():
  pixels = np.random.default_rng(2).integers(0, 256, (20, 24, 3), dtype=np.uint8)
  return cv2.imencode('.png', pixels)[1].tobytes()


def test_a_dialogue(model):
  """The pieces of an answer are those of its text, and what was said before counts."""
  with jax.set_mesh(sharding.make_mesh('1x1x1', jax.devices()[:1])):
    speaker = chat.Speaker(model, Sampling(most=6))
    speaker.look(image())
    first = [*speaker.ask('a 3')]
    assert len(first) > 1
    assert speaker.turns == [('a 3', ''.join(first))]
    [*speaker.ask('a 3')]
    assert len(speaker.turns) == 2
    again = chat.Speaker(model, Sampling(most=6))
    again.look(image())
    assert ''.join(again.ask('a 3')) == ''.join(first)
    speaker.turns = [('a 3 and nothing', 'a 4')] * 20
    with pytest.raises(RunError, match='Begin a new one'):
      next(speaker.ask('a 3'))
    speaker.look(image())
    assert speaker.turns == []
    with pytest.raises(RunError, match='the image cannot be used'):
      speaker.look(b'no image')


def test_only_models_that_answer():
  other = vit_jax.create('mu/4', image_size=(8, 8), num_classes=2)
  other.card = Card('vit_jax', (8, 8))
  with pytest.raises(RunError, match='a dialogue is with a language model that sees'):
    chat.Speaker(other, Sampling())
