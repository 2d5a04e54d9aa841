"""Language models: Llama, Qwen 2 and 3 and Gemma of transformers, both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_jax
from tests.parity.references import hf, numpy
from vit_jax.nn.generate import Prompt, Rules, Sampling, generate

pytestmark = pytest.mark.filterwarnings('ignore')  # of PyTorch about its own tracing
SMALL = dict(
  vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
  num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_LLAMA3 = dict(
  rope_type='llama3', rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=32,
)  # fmt: skip
MODELS = {
  'llama': lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, rms_norm_eps=1e-5)),
  'llama3': lambda: hf.LlamaForCausalLM(
    hf.LlamaConfig(**SMALL, head_dim=12, rope_parameters=_LLAMA3)
  ),
  'smollm': lambda: hf.LlamaForCausalLM(
    hf.LlamaConfig(
      **SMALL, tie_word_embeddings=True, rope_parameters=dict(rope_type='default', rope_theta=1e5)
    )
  ),
  'qwen2': lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SMALL, tie_word_embeddings=False)),
  'qwen3': lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL, head_dim=16)),
  'gemma': lambda: hf.GemmaForCausalLM(
    hf.GemmaConfig(**{**SMALL, 'num_key_value_heads': 1}, head_dim=16)
  ),
}
TOKENS = np.random.default_rng(0).integers(3, 99, (3, 11))


@pytest.fixture(scope='module', params=list(MODELS))
def case(request, tmp_path_factory):
  """Their model, in which nothing is as it is made, and where it is saved in small files."""
  torch.manual_seed(0)
  theirs = MODELS[request.param]().eval()
  with torch.no_grad():
    for name, weight in theirs.named_parameters():
      weight.normal_(0, 0.2)
      if 'norm' in name and request.param != 'gemma':
        weight.add_(1)
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder, max_shard_size='20KB')
  assert len(list(folder.glob('*.safetensors'))) > 1
  return theirs, vit_jax.load(folder), folder


def logits_of(theirs, tokens=TOKENS):
  with torch.no_grad():
    return numpy(theirs(torch.from_numpy(tokens)).logits)


def test_logits(case):
  theirs, ours, _ = case
  want = logits_of(theirs)
  np.testing.assert_allclose(ours(TOKENS), want, atol=1e-5 * np.abs(want).max())


def test_gradients(case):
  """Of the cross-entropy, by what is embedded and by the last norm."""
  theirs, ours, _ = case
  theirs.zero_grad()
  theirs(torch.from_numpy(TOKENS), labels=torch.from_numpy(TOKENS)).loss.backward()

  def loss(model):
    log_probs = jax.nn.log_softmax(model(TOKENS)[:, :-1])
    return -jnp.take_along_axis(log_probs, TOKENS[:, 1:, None], -1).mean()

  found = jax.grad(loss)(ours)
  for mine, other in (
    (found.embed[...], theirs.model.embed_tokens.weight),
    (found.encoder.norm.scale[...], theirs.model.norm.weight),
  ):
    want = numpy(other.grad)
    np.testing.assert_allclose(mine, want, atol=1e-4 * np.abs(want).max())


def test_written(case, tmp_path):
  """Read by transformers again: the same parameters and logits."""
  theirs, ours, _ = case
  folder = tmp_path / 'written'
  vit_jax.save(ours, folder, 'transformers')
  again = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
  assert type(again) is type(theirs)
  own = theirs.state_dict()
  for name, weight in again.state_dict().items():
    np.testing.assert_array_equal(numpy(weight), numpy(own[name]), err_msg=name)
  np.testing.assert_allclose(logits_of(again), logits_of(theirs), atol=1e-6)


def test_said(case):
  """The likeliest tokens, of prompts of several lengths at once."""
  theirs, ours, _ = case
  lengths = np.array([4, 11, 7])
  there = np.arange(11) >= 11 - lengths[:, None]
  inputs = (torch.from_numpy(x) for x in (np.where(there, TOKENS, 0), there.astype(int)))
  given = dict(zip(('input_ids', 'attention_mask'), inputs, strict=True))
  want = numpy(theirs.generate(**given, max_new_tokens=6, do_sample=False))[:, 11:]
  found = generate(
    ours,
    Prompt(ours.read(TOKENS), there, None, np.arange(3)),
    Rules(sampling=Sampling(most=6), ends=(2,)),
  )
  np.testing.assert_array_equal(found.tokens[:, : want.shape[1]], want)


def test_half_precision_is_near(case):
  """With bfloat16 it is as far from float32 as theirs is."""
  theirs, ours, folder = case
  half = vit_jax.load(folder, dtype='bfloat16')
  assert half.config == dataclasses.replace(ours.config, dtype='bfloat16')
  want = logits_of(theirs)
  own = np.abs(half(TOKENS) - want).mean()
  with torch.no_grad():
    other = theirs.to(torch.bfloat16)(torch.from_numpy(TOKENS)).logits.float()
  theirs.to(torch.float32)
  assert own < 2 * np.abs(numpy(other) - want).mean()
