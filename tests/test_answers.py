"""Training to answer, and how answers are judged: bad configurations, totals, evaluations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_conformance import SCENES, SEEN, SPEAKING, WORDS
from vit_jax.config import complete
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.evaluators.answers import Answers, _Others
from vit_jax.tasks.language import LanguageModelling
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment

TASK = dict(name='language', length=24, most=8, tokenizer=dict(name='words', vocabulary=WORDS))


def experiment(**fields):
  made = complete(dict(
    total='2 steps', batch_size=8, data=SCENES, optim=dict(name='adamw'),
    model=dict(name='multimodal', vision={**SEEN, 'pool': None}, language=SPEAKING),
    task={**TASK, **fields},
  ))  # fmt: skip
  return Experiment(schema.build(config_lib.Config, made.to_dict()))


@pytest.mark.parametrize(('fields', 'message'), [
  (dict(template='viccuna'), "unknown task.template 'viccuna'"),
  (dict(average='batch'), "unknown task.average 'batch'"),
  (dict(most=0), 'must be at least 1'),
  (dict(tokenizer=dict(name='words', vocabulary=WORDS, length=8)), 'is of texts alone'),
  (dict(length=4), 'has no place for texts: an image takes 4 tokens'),
  (dict(template='chatml'), "the template 'chatml' needs the token <|im_start|>"),
])  # fmt: skip
def test_bad_fields(fields, message):
  with pytest.raises(RunError) as error:
    experiment(**fields)
  assert message in str(error.value)


def batch(counts):
  """Of examples with so many tokens to learn each."""
  rng, length = np.random.default_rng(0), 24
  tokens = rng.integers(2, 12, (len(counts), length))
  tokens[:, :4] = -1
  answered = (np.arange(length) >= 10) & (np.arange(length) < 10 + np.array(counts)[:, None])
  return {
    'image': rng.normal(size=(len(counts), 16, 16, 3)).astype(np.float32),
    'tokens': tokens, 'answered': answered.astype(np.float32),
    'tokens_left_out': np.zeros(len(counts), np.float32),
    'mask': np.ones(len(counts), np.float32),
  }  # fmt: skip


def test_averages_are_those_of_their_names():
  """The mean over tokens of the batch, and over examples of the mean of each; tokens in both."""
  given, found = batch([1, 6]), {}
  for average in ('tokens', 'examples'):
    made = experiment(average=average)
    task = made.config.task
    model = made.abstract_state.model
    model = jax.tree.map(
      lambda leaf: 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), model
    )
    totals = task.totals(given)
    assert {n: float(v) for n, v in totals.items()} == {'examples': 2, 'tokens': 7}
    ctx = dataclasses.make_dataclass('Ctx', ['totals', 'noise'])(totals, None)
    loss, sums, _ = task.loss(model, given, ctx)
    found[average] = float(loss), {n: float(total) for n, (total, _) in sums.items()}
    logits = model(given['image'], given['tokens'])[:, :-1]
    own = jnp.take_along_axis(
      jax.nn.log_softmax(logits), np.maximum(given['tokens'][:, 1:], 0)[..., None], -1
    )[..., 0]
    counts = given['answered'][:, 1:]
    each = -(own * counts).sum(1)
    want = each.sum() / 7 if average == 'tokens' else (each / counts.sum(1)).mean()
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(sums['token_loss'][0], each.sum(), rtol=1e-5)
  assert abs(found['tokens'][0] - found['examples'][0]) > 1e-3


def test_a_blind_model_sees_nothing():
  task = LanguageModelling(blind=True, mean=(0.5,), std=(0.5,))
  given = batch([3, 3])
  assert not task.augment({**given, 'image': given['image']}, None, {})['image'].any()


def test_images_of_others_are_of_others():
  source = experiment().source
  others = _Others(source)
  own, moved = source.read([3, 95]), others.read([3, 95])
  for one, two, far in zip(own, moved, source.read([51, 47]), strict=True):
    assert one['text'] == two['text']
    np.testing.assert_array_equal(two['image'], far['image'])


@pytest.mark.parametrize(('fields', 'message'), [
  (dict(images='mine'), "unknown images 'mine'"), (dict(measure=('rouge',)), "measure 'rouge'"),
])  # fmt: skip
def test_bad_evaluations(fields, message):
  with pytest.raises(RunError, match=message):
    Answers(**fields)
