"""Language models that see: LLaVA, PaliGemma and Idefics 3 of transformers, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_jax
from tests.parity.references import hf, numpy
from tests.parity.test_images import torch_images
from vit_jax.nn.generate import Prompt, Rules, Sampling, generate

pytestmark = pytest.mark.filterwarnings('ignore')  # of PyTorch about its own tracing
VISION = dict(
  hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28,
  patch_size=7,
)  # fmt: skip
TEXT = dict(
  vocab_size=99, hidden_size=40, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
  num_key_value_heads=2, max_position_embeddings=64, head_dim=16, pad_token_id=0, bos_token_id=1,
  eos_token_id=2,
)  # fmt: skip
TOKEN = 98
MODELS = {
  'llava': lambda: hf.LlavaForConditionalGeneration(
    hf.LlavaConfig(
      vision_config=hf.CLIPVisionConfig(**VISION), text_config=hf.LlamaConfig(**TEXT),
      image_token_index=TOKEN, image_seq_length=16,
    )
  ),
  'llava-qwen': lambda: hf.LlavaForConditionalGeneration(
    hf.LlavaConfig(
      vision_config=hf.CLIPVisionConfig(**VISION),
      text_config=hf.Qwen2Config(**{n: v for n, v in TEXT.items() if n != 'head_dim'}),
      image_token_index=TOKEN, image_seq_length=16, vision_feature_layer=-3,
    )
  ),
  'paligemma': lambda: hf.PaliGemmaForConditionalGeneration(
    hf.PaliGemmaConfig(
      vision_config={**VISION, 'model_type': 'siglip_vision_model', 'vision_use_head': False},
      text_config={**TEXT, 'model_type': 'gemma'}, image_token_index=TOKEN, projection_dim=40,
      hidden_size=40, vocab_size=99,
    )
  ),
  'idefics3': lambda: hf.Idefics3ForConditionalGeneration(
    hf.Idefics3Config(
      vision_config=VISION, text_config=hf.LlamaConfig(**TEXT), scale_factor=2,
      image_token_id=TOKEN,
    )
  ),
}  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
WORDS = np.random.default_rng(1).integers(3, 97, (2, 6))


class Case:
  """Their model, in which nothing is as it is made, and ours, read from what it saves."""

  def __init__(self, name, folder):
    torch.manual_seed(0)
    self.name, self.folder, self.theirs = name, folder, MODELS[name]().eval()
    with torch.no_grad():
      for leaf, weight in self.theirs.named_parameters():
        weight.normal_(0, 0.2)
        gemma = name == 'paligemma' and 'language' in leaf
        if 'norm' in leaf and leaf.endswith('weight') and not gemma:
          weight.add_(1)
    self.theirs.save_pretrained(folder)
    self.ours = vit_jax.load(folder)
    image = np.full((2, self.ours.config.places), -1)
    first = 0 if name == 'paligemma' else 2
    self.tokens = np.concatenate([WORDS[:, :first], image, WORDS[:, first:]], 1)
    # Of the prefix, but for the last two.
    self.asked = np.arange(self.tokens.shape[1]) < self.tokens.shape[1] - 2

  def given(self, count=None):
    """What theirs is called with."""
    tokens = self.tokens[:, :count]
    pixels = torch_images(IMAGES)
    found = {
      'input_ids': torch.from_numpy(np.where(tokens < 0, TOKEN, tokens)),
      'pixel_values': pixels[:, None] if self.name == 'idefics3' else pixels,
      'attention_mask': torch.ones(tokens.shape, dtype=torch.long),
    }
    if self.name == 'paligemma' and count is None:
      found['token_type_ids'] = torch.from_numpy(
        np.broadcast_to(~self.asked, tokens.shape).astype(int)
      )
    return found

  def logits(self, model=None):
    """Theirs."""
    with torch.no_grad():
      return numpy((model or self.theirs)(**self.given()).logits)

  @property
  def prefix(self):
    """What ours is called with besides images and tokens."""
    return np.broadcast_to(self.asked, self.tokens.shape)


@pytest.fixture(scope='module', params=list(MODELS))
def case(request, tmp_path_factory):
  return Case(request.param, tmp_path_factory.mktemp(request.param))


def test_logits(case):
  want = case.logits()
  found = case.ours(IMAGES, case.tokens, case.prefix)
  np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


def test_gradients(case):
  """Of the mean cross-entropy, by the first layer of the projector."""
  case.theirs.zero_grad()
  logits = case.theirs(**case.given()).logits.log_softmax(-1)
  follows = np.maximum(case.tokens[:, 1:], 0)
  own = logits[:, :-1].gather(-1, torch.from_numpy(follows)[..., None])
  (-own.mean()).backward()
  first = next(w for n, w in case.theirs.named_parameters() if 'linear' in n or 'connector' in n)

  def loss(model):
    log_probs = jax.nn.log_softmax(model(IMAGES, case.tokens, case.prefix)[:, :-1])
    return -jnp.take_along_axis(log_probs, follows[..., None], -1).mean()

  found = np.asarray(jax.grad(loss)(case.ours).projector.layers[0].kernel[...]).T
  want = numpy(first.grad)
  np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())


def test_written(case, tmp_path):
  folder = tmp_path / 'written'
  vit_jax.save(case.ours, folder, 'transformers')
  again = type(case.theirs).from_pretrained(folder).eval()
  own = case.theirs.state_dict()
  for name, weight in again.state_dict().items():
    np.testing.assert_array_equal(numpy(weight), numpy(own[name]), err_msg=name)
  want = case.logits()
  np.testing.assert_allclose(case.logits(again), want, atol=1e-6 * np.abs(want).max())


def test_said(case):
  """The likeliest tokens of an answer."""
  want = numpy(case.theirs.generate(**case.given(-2), max_new_tokens=5, do_sample=False))
  want = want[:, case.tokens.shape[1] - 2 :]
  tokens = case.tokens[:, :-2]
  there = np.ones(tokens.shape, bool)
  x = case.ours.read(case.ours.see(IMAGES), tokens)
  prefix = there if case.ours.config.prefix else None
  found = generate(
    case.ours.language,
    Prompt(x, there, prefix, np.arange(2)),
    Rules(sampling=Sampling(most=5), ends=(2,)),
  )
  for row, other in zip(np.asarray(found.tokens), want, strict=True):
    length = np.flatnonzero(other == 2)[0] + 1 if 2 in other else len(other)
    np.testing.assert_array_equal(row[:length], other[:length])
