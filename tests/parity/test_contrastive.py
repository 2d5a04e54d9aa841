"""Contrastive losses and their gradients, and classes by name, beside transformers and OpenCLIP."""

import json
import shutil

import pytest

from experiments.benchmarks.torchvision import define_operators

define_operators()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers as hf  # noqa: E402
from open_clip import loss as losses  # noqa: E402
from open_clip import tokenizer as open_clip_tokenizer  # noqa: E402
from PIL import Image  # noqa: E402

import vit_jax  # noqa: E402
from tests.parity import references  # noqa: E402
from vit_jax import tasks  # noqa: E402
from vit_jax.core import paths  # noqa: E402
from vit_jax.nn import pairs, tree  # noqa: E402
from vit_jax.nn.noise import Noise  # noqa: E402
from vit_jax.predict import Inputs, Predictor  # noqa: E402
from vit_jax.tasks import naming  # noqa: E402
from vit_jax.tasks.contrastive import Contrastive  # noqa: E402
from vit_jax.tasks.task import Context  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore')
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
              image_size=28, patch_size=14)  # fmt: skip
TEXT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=77, vocab_size=49408, eos_token_id=49407)  # fmt: skip


@pytest.mark.parametrize('kind', pairs.KINDS)
@pytest.mark.parametrize('form', ['dense', 'ring'])
def test_losses_of_open_clip(kind, form):
  """Values and gradients of vectors, scale and bias: fresh ones of odd sizes."""
  rng = np.random.default_rng(3)
  image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, 21, 9)))
  scale, bias = 13.0, -4.0
  given = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (image, text, scale)]
  shift = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
  softmax = kind == 'softmax'
  wanted = losses.ClipLoss()(*given) if softmax else losses.SigLipLoss()(*given, shift)
  wanted.backward()

  def total(image, text, scale, bias):
    both = pairs.Pairs(image, text, image[:, :0], jnp.ones(len(image)))
    run = pairs.dense if form == 'dense' else lambda *args: pairs.around(args[0], 7, *args[1:])
    return run(kind, both, scale, bias).loss.sum() / len(image)

  inputs = [jnp.asarray(x, jnp.float32) for x in (image, text, scale, bias)]
  found, grads = jax.value_and_grad(total, (0, 1, 2, 3))(*inputs)
  assert float(found) == pytest.approx(wanted.item(), rel=1e-6)
  for ours, theirs in zip(grads, (*given, shift), strict=True):
    if theirs.grad is not None:
      bound = 2e-6 * max(1e-3, theirs.grad.abs().max().item())
      np.testing.assert_allclose(np.asarray(ours), theirs.grad.numpy(), rtol=0, atol=bound)


@pytest.mark.parametrize('kind', ['clip', 'siglip'])
def test_loss_of_transformers(kind, tmp_path):
  """Of whole models, with gradients of all their parameters."""
  torch.manual_seed(0)
  if kind == 'clip':
    config = hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    module = references.shake(hf.CLIPModel(config), 0)
  else:
    text = {**TEXT, 'max_position_embeddings': 8, 'vocab_size': 64, 'projection_size': 32}
    module = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION))
    module = references.shake(module, 0)
    module.logit_scale.data[:], module.logit_bias.data[:] = 1.3, -2.0
  module.eval().save_pretrained(tmp_path / 'theirs')
  rng = np.random.default_rng(0)
  images = rng.normal(size=(5, 3, 28, 28)).astype(np.float32)
  length = 77 if kind == 'clip' else 8
  tokens = rng.integers(1, 60, (5, length)).astype(np.int64)
  if kind == 'clip':
    tokens[:, 6:] = 49407
  wanted = module(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(images),
                  return_loss=True).loss  # fmt: skip
  wanted.backward()
  model = vit_jax.load(tmp_path / 'theirs')
  task = Contrastive(loss_of='softmax' if kind == 'clip' else 'sigmoid', duplicates='apart')

  def loss(model):
    batch = {
      'image': jnp.asarray(images.transpose(0, 2, 3, 1)), 'tokens': jnp.asarray(tokens, jnp.int32),
      'same': jnp.zeros((5, 3)), 'mask': jnp.ones(5),
    }  # fmt: skip
    ctx = Context({}, {'examples': 5.0}, {}, Noise(jax.random.key(0), examples=5), 0, None)
    return task.loss(model, batch, ctx)[0]

  found, grad = jax.value_and_grad(loss)(model)
  assert float(found) == pytest.approx(wanted.item(), rel=1e-5)
  there = {n: p for n, p in module.named_parameters() if p.grad is not None}
  largest = max(p.grad.abs().max().item() for p in there.values())
  # As a checkpoint of the same names, which the bridge writes.
  vit_jax.save(grad_model(grad, model), tmp_path / 'grads', 'transformers')
  from safetensors.numpy import load_file

  ours = load_file(tmp_path / 'grads' / 'model.safetensors')
  for name, parameter in there.items():
    wanted = parameter.grad.numpy()
    # Those of biases of keys are 0 but for rounding.
    bound = 1e-4 * max(np.abs(wanted).max(), 1e-2 * largest)
    np.testing.assert_allclose(ours[name].reshape(wanted.shape), wanted, rtol=0, atol=bound,
                               err_msg=name)  # fmt: skip


def grad_model(grad, model):
  """Gradients in the place of parameters."""
  grad = tree.unflatten(model, tree.flatten(grad))
  grad.card = model.card
  return grad


def test_classes_by_name(tmp_path):
  """A folder as transformers writes it: predictions with its tokenizer, template and image."""
  config = hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
  module = references.shake(hf.CLIPModel(config), 1).eval()
  folder = tmp_path / 'clip'
  module.save_pretrained(folder)
  shutil.copy(open_clip_tokenizer.default_bpe(), folder)
  processor = hf.CLIPImageProcessor(size={'shortest_edge': 28}, crop_size=28)
  processor.save_pretrained(folder)
  pixels = np.random.default_rng(0).integers(256, size=(28, 28, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'x.png')
  names = ('a dog', 'two cats', 'Röntgen image')
  tokens = open_clip_tokenizer.SimpleTokenizer()([f'a photo of a {name}.' for name in names])
  seen = hf.CLIPImageProcessor(size={'shortest_edge': 28}, crop_size=28)(
    pixels, return_tensors='pt'
  )
  logits = module(input_ids=tokens, pixel_values=seen['pixel_values']).logits_per_image
  wanted = logits.softmax(-1)[0].detach().numpy()
  model = vit_jax.load(folder)
  task, _ = tasks.of(model.card)
  named = naming.classifier(model, task, names, 'photo')
  (predicted,) = Predictor(named)(Inputs([paths.at(str(tmp_path / 'x.png'))]))
  found = {each['class']: each['probability'] for each in predicted.prediction.facts['classes']}
  np.testing.assert_allclose([found[name] for name in names], wanted, rtol=1e-4)
  assert json.dumps(model.card.task)
