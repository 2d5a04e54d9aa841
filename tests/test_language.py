"""Language models: positions, logits, what is said of prompts, and their checkpoints."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from vit_jax.architecture.language import LanguageArchitecture
from vit_jax.convert import adapt
from vit_jax.core.errors import RunError
from vit_jax.costs import flops
from vit_jax.costs.parts import parts
from vit_jax.models.language import LanguageConfig
from vit_jax.nn import positions, sharding
from vit_jax.nn.generate import Prompt, Rules, Sampling, generate
from vit_jax.nn.masks import Mask

SMALL = dict(width=24, depth=2, mlp_dim=40, num_heads=4, vocab_size=50, context_length=32)
KINDS = {
  'llama': dict(kv_heads=2, head_dim=8, rope_scaling=(8.0, 1.0, 4.0, 16.0), rope_base=5e5),
  'qwen2': dict(kv_heads=2, no_bias='out,mlp', tied=True, rope_scaling=(2.0,)),
  'qwen3': dict(kv_heads=1, head_dim=10, qk_norm=True),
  'gemma': dict(
    kv_heads=1, head_dim=8, tied=True, scaled_embed=True, norm='rmsnorm1p', mlp='geglu_tanh'
  ),
}
PAD, END = 0, 7
PROMPTS = [[3, 9, 4, 11], [8], [12, 2, 6, 30, 41, 5], [20, 21]]


@functools.cache
def model(kind='llama'):
  """One in which nothing is zero, and whose logits are far from each other."""
  made = LanguageConfig('', **{**SMALL, **KINDS[kind]}).create(nnx.Rngs(0))
  rng = np.random.default_rng(3)
  return jax.tree.map(lambda w: w + jnp.asarray(0.4 * rng.normal(size=w.shape), w.dtype), made)


def padded(prompts, side):
  """Tokens and which of them there are, (batch, longest)."""
  longest = max(map(len, prompts))
  tokens = np.full((len(prompts), longest), PAD)
  there = np.zeros(tokens.shape, bool)
  for row, ids in enumerate(prompts):
    start = longest - len(ids) if side == 'left' else 0
    tokens[row, start : start + len(ids)] = ids
    there[row, start : start + len(ids)] = True
  return tokens, there


@functools.partial(jax.jit, static_argnames=('sampling', 'seen'))
def say(model, tokens, there, index, sampling, seen=False):
  prompt = Prompt(model.read(tokens), there, there if seen else None, index)
  sayable = tuple(number != PAD for number in range(model.config.vocab_size))
  return generate(model, prompt, Rules(sampling=sampling, ends=(END,), pad=PAD, sayable=sayable))


def said(prompts, sampling, side='right', seen=False, first=0):
  index = np.arange(first, first + len(prompts))
  found = say(model(), *padded(prompts, side), index, sampling, seen)
  return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize('sampling', [
  Sampling(most=6), Sampling(most=6, temperature=1.5, top_p=0.9, seed=4),
])  # fmt: skip
def test_an_answer_depends_on_its_prompt_alone(sampling):
  right, left = (said(PROMPTS, sampling, side) for side in ('right', 'left'))
  for a, b in zip(right, left, strict=True):
    np.testing.assert_array_equal(a, b)
  for number in (1, 2):
    alone = said(PROMPTS[number : number + 1], sampling, first=number)
    np.testing.assert_array_equal(alone.tokens[0], right.tokens[number])
    np.testing.assert_allclose(alone.log_probs[0], right.log_probs[number], atol=1e-5)


@pytest.mark.parametrize('seen', [False, True], ids=['causal', 'prompts see themselves'])
def test_the_likeliest_are_those_of_the_whole_sequence(seen):
  """With a cache as without one: the logits of everything that is there, again for each token."""
  found = said(PROMPTS, Sampling(most=5), seen=seen)
  whole = jax.jit(lambda model, tokens, mask: model(tokens, mask))
  for ids, tokens, count, log_probs in zip(PROMPTS, *found, strict=True):
    text = [*ids, *(int(token) for token in tokens[:count])]
    row = np.zeros((1, 12), int)
    row[0, : len(text)] = text
    prefix = np.arange(12)[None] < len(ids) if seen else None
    logits = np.array(whole(model(), row, Mask(causal=True, prefix=prefix)))[0]
    steps = logits[len(ids) - 1 : len(text) - 1]
    own = jax.nn.log_softmax(steps)[np.arange(count), text[len(ids) :]]
    np.testing.assert_allclose(log_probs[:count], own, atol=1e-5)
    steps[:, PAD] = -np.inf
    np.testing.assert_array_equal(steps.argmax(-1), text[len(ids) :])
    assert (tokens[count:] == PAD).all()
    assert END not in tokens[: count - 1]


def test_draws_are_of_the_model():
  """Of the first token, over many numbers of rows: its probabilities, and with `top_p` no other."""
  rows = [PROMPTS[0]] * 2000
  free, cut = (said(rows, Sampling(most=1, temperature=1.0, top_p=p, seed=1)) for p in (1.0, 0.6))
  logits = np.array(model()(np.array([PROMPTS[0]])))[0, -1]
  logits[PAD] = -np.inf
  probs = np.exp(logits - logits.max())
  probs /= probs.sum()
  shares = np.bincount(free.tokens[:, 0], minlength=50) / 2000
  error = np.sqrt(probs * (1 - probs) / 2000)
  assert (np.abs(shares - probs) <= 4.5 * error + 1e-6).all()
  order = np.argsort(-probs)
  allowed = set(order[: np.searchsorted(np.cumsum(probs[order]), 0.6) + 1].tolist())
  assert set(cut.tokens[:, 0].tolist()) == allowed


def test_no_token_knows_those_behind_it():
  tokens = np.array([PROMPTS[2]])
  other = tokens.copy()
  other[0, 4:] = 1
  one, two = model()(tokens), model()(other)
  np.testing.assert_array_equal(one[:, :4], two[:, :4])
  assert (np.abs(one[:, 4:] - two[:, 4:]).max(-1) > 1e-3).all()


@pytest.mark.parametrize('kind', KINDS)
def test_checkpoints_come_back(kind, tmp_path):
  """Written and read; with config.json as transformers has written it at other times, too."""
  made, folder = model(kind), tmp_path / 'model'
  vit_jax.save(made, folder, 'transformers')
  read = vit_jax.load(folder)
  assert adapt.abstract(read.config) == adapt.abstract(made.config)
  for one, two in zip(jax.tree.leaves(made), jax.tree.leaves(read), strict=True):
    np.testing.assert_array_equal(one, two)
  said = json.loads((folder / 'config.json').read_text())
  assert said['model_type'] == kind
  rope = said.pop('rope_parameters')
  (folder / 'config.json').write_text(json.dumps(said))
  assert vit_jax.load(folder).config == read.config
  del said['rope_scaling'], said['rope_theta']
  (folder / 'config.json').write_text(json.dumps({**said, 'rope_parameters': rope}))
  assert vit_jax.load(folder).config == read.config


def test_costs_are_those_of_the_parameters():
  for kind in KINDS:
    config = model(kind).config
    shapes = adapt.abstract(config)
    assert flops.costs(config).parameters() == sum(map(np.prod, shapes.values()))
    macs = {part.name: part.macs for part in parts(config)}
    assert macs['head'] == 32 * 24 * 50
  assert flops.costs(LanguageArchitecture('smollm2:135M').resolve()).parameters() == 134_515_008
  assert flops.costs(LanguageArchitecture('llama2:7B').resolve()).parameters() == 6_738_415_616
  assert flops.costs(LanguageArchitecture('gemma:2B').resolve()).parameters() == 2_506_172_416


def test_positions_are_stretched_as_in_llama_3():
  """Short wavelengths stay, long ones grow by the factor, and between them it is linear."""
  plain = positions.rotary(np.arange(3), 64, 5e5)
  scaled = positions.rotary(np.arange(3), 64, 5e5, (8.0, 1.0, 4.0, 8192.0))
  ratio, length = plain[1] / scaled[1], 2 * np.pi / plain[1]
  np.testing.assert_allclose(ratio[length < 8192 / 4], 1)
  np.testing.assert_allclose(ratio[length > 8192], 8, rtol=1e-6)
  between = ratio[(length >= 8192 / 4) & (length <= 8192)]
  assert len(between)
  assert ((between > 1) & (between < 8)).all()


@pytest.mark.parametrize(('fields', 'said'), [
  (dict(rope_scaling=(2.0, 3.0)), 'write (), (factor,) or (factor, low, high, length)'),
  (dict(rope_scaling=(8.0, 4.0, 1.0, 9.0)), 'low must be less than high'),
  (dict(head_dim=7), 'head_dim=7 is odd'),
  (dict(vocab_size=0), 'must be at least 1'),
  (dict(attention='h'), 'unknown model.attention'),
  (dict(variant='llama:7B'), 'unknown family of language models'),
  (dict(variant='llama2:8B'), 'unknown language model'),
])  # fmt: skip
def test_bad_fields(fields, said):
  config = LanguageConfig(**{'variant': '', **SMALL, **fields})
  with pytest.raises(RunError) as error:
    config.resolve()
  assert said in str(error.value)


def test_bad_checkpoints(tmp_path):
  folder = tmp_path / 'model'
  vit_jax.save(model(), folder, 'transformers')
  said = json.loads((folder / 'config.json').read_text())
  for change, words in (
    ({'model_type': 'gemma2'}, "model_type='gemma2' is not supported"),
    ({'vocab_size': 51}, 'vocab_size=51, but the weights have 50'),
    ({'hidden_act': 'relu', 'hidden_activation': None}, "hidden_act='relu' is not supported"),
    ({'rope_parameters': {'rope_type': 'yarn'}}, "kind 'yarn' are not supported"),
    ({'num_attention_heads': 5}, 'are not of 5 heads'),
  ):
    (folder / 'config.json').write_text(json.dumps({**said, **change}))
    with pytest.raises(RunError, match=words.replace('(', r'\(')):
      vit_jax.load(folder)
  odd = LanguageConfig('', **SMALL, mlp_norm=True).create(nnx.Rngs(0))
  with pytest.raises(RunError, match='cannot express mlp_norm=True'):
    vit_jax.save(odd, tmp_path / 'odd', 'transformers')
  with pytest.raises(RunError, match='has no language models'):
    vit_jax.save(model(), tmp_path / 'odd', 'openai')


def test_bad_prompts():
  with pytest.raises(ValueError, match='more than the 32 of the context'):
    said(PROMPTS, Sampling(most=30))
  for fields, words in (
    (dict(temperature=-1.0), 'temperature=-1'),
    (dict(top_p=0.0), 'top_p=0'),
    (dict(most=0), 'most'),
  ):
    with pytest.raises(RunError, match=words):
      Sampling(**fields)


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['2x2x2', '1x4x2'])
def test_answers_do_not_depend_on_the_mesh(layout):
  for sampling in (Sampling(most=5), Sampling(most=5, temperature=1.0, top_p=0.8, seed=3)):
    alone = said([*PROMPTS, *PROMPTS], sampling)
    with jax.set_mesh(sharding.make_mesh(layout)):
      config = dataclasses.replace(model().config)
      shape = jax.eval_shape(lambda config=config: config.create(nnx.Rngs(0)))
      placed = jax.tree.map(
        lambda w, like: jax.device_put(np.asarray(w), like.sharding),
        model(), sharding.fill_shardings(shape),
      )  # fmt: skip
      tokens, there = padded([*PROMPTS, *PROMPTS], 'left')
      tokens, there = (sharding.reshard(jnp.asarray(x), 'batch', None) for x in (tokens, there))
      index = sharding.reshard(jnp.arange(8), 'batch')
      found = say(placed, tokens, there, index, sampling)
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_allclose(found.log_probs, alone.log_probs, atol=1e-4)
