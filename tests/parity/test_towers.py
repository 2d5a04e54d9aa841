"""Image and text together: CLIP, SigLIP, SigLIP 2 with packed images, OpenCLIP."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import open_clip
import pytest
import torch
from safetensors.numpy import load_file

import vit_jax
from tests.parity import references
from tests.parity.references import hf, numpy
from tests.parity.test_images import close, images, torch_images
from vit_jax.convert import layout
from vit_jax.convert.read import open_checkpoint
from vit_jax.models.vit import Patches
from vit_jax.nn import tree

pytestmark = pytest.mark.filterwarnings('ignore')  # of PyTorch about its own tracing
SMALL = references.SMALL
TEXT = dict(**SMALL, intermediate_size=40, vocab_size=100, max_position_embeddings=16)
VISION = dict(**SMALL, intermediate_size=48, image_size=32, patch_size=8)
NAFLEX = dict(**SMALL, intermediate_size=48, patch_size=8, num_patches=16)
MODELS = {
  'clip': lambda: hf.CLIPModel(
    hf.CLIPConfig(text_config={**TEXT, 'eos_token_id': 99}, vision_config=VISION, projection_dim=16)
  ),
  'clip-old-eos': lambda: hf.CLIPModel(
    hf.CLIPConfig(text_config={**TEXT, 'eos_token_id': 2}, vision_config=VISION, projection_dim=16)
  ),
  'siglip': lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION)),
  'siglip2': lambda: hf.Siglip2Model(hf.Siglip2Config(text_config=TEXT, vision_config=NAFLEX)),
}


def packed(rng):
  """Three images of different shapes, cut into patches and padded to 20."""
  shapes = np.array([[4, 4], [2, 9], [5, 3]])
  pixels = rng.normal(size=(3, 20, 8 * 8 * 3)).astype(np.float32)
  coords = np.zeros((3, 20, 2), np.int32)
  mask = np.zeros((3, 20), bool)
  for i, (h, w) in enumerate(shapes):
    coords[i, : h * w] = np.mgrid[:h, :w].reshape(2, -1).T
    mask[i, : h * w] = True
  return shapes, pixels, coords, mask


def inputs(name):
  """What the reference takes, and what we take."""
  rng = np.random.default_rng(1)
  tokens = rng.integers(3, 90, (4, 10))
  tokens[np.arange(4), [9, 5, 7, 2]] = 99
  theirs = {'input_ids': torch.from_numpy(tokens)}
  if name != 'siglip2':
    x = images((32, 32, 3))
    return {**theirs, 'pixel_values': torch_images(x)}, (x, tokens)
  shapes, pixels, coords, mask = packed(rng)
  theirs |= dict(
    pixel_values=torch.from_numpy(pixels), spatial_shapes=torch.from_numpy(shapes),
    pixel_attention_mask=torch.from_numpy(mask.astype(np.int64)),
  )  # fmt: skip
  return theirs, (Patches(*map(jnp.asarray, (pixels, coords, mask))), tokens)


@pytest.fixture(scope='module', params=list(MODELS))
def case(request, tmp_path_factory):
  torch.manual_seed(0)
  module = references.shake(MODELS[request.param](), 0)
  folder = tmp_path_factory.mktemp(request.param)
  module.save_pretrained(folder / 'theirs', save_original_format=True)
  return request.param, module, folder


def test_similarities_and_both_towers(case):
  name, module, folder = case
  theirs, ours = inputs(name)
  with torch.no_grad():
    want = module(**theirs, output_hidden_states=True)
  model = vit_jax.load(folder / 'theirs')
  with jax.default_matmul_precision('highest'):
    logits = jax.jit(lambda model, *a: model(*a))(model, *ours)
    image = jax.jit(lambda model, x: model.image.features(x))(model, ours[0])
    text = jax.jit(lambda model, x: model.text.features(x))(model, ours[1])
  close(logits, numpy(want.logits_per_image), 1e-5, 'logits')
  valid = (
    np.ones(image['encoded'].shape[:2], bool) if name != 'siglip2' else np.asarray(ours[0].mask)
  )
  for got, out in ((image, want.vision_model_output), (text, want.text_model_output)):
    for number, state in enumerate(out.hidden_states):
      at = 'tokens' if number == 0 else f'block{number - 1:02d}'
      real = valid if got is image else np.ones(state.shape[:2], bool)
      close(np.asarray(got[at])[real], numpy(state)[real], 1e-5, (number, got is image))
  close(model.encode_text(ours[1]), _unit(want.text_embeds), 1e-5, 'text')


def _unit(x):
  x = numpy(x)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_gradients(case):
  name, module, folder = case
  theirs, ours = inputs(name)
  module.zero_grad()
  weight = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
  (module(**theirs).logits_per_image * torch.from_numpy(weight)).sum().backward()
  model, opened = vit_jax.load(folder / 'theirs'), open_checkpoint(folder / 'theirs')

  @jax.jit
  def gradient(model, *a):
    return jax.grad(lambda model: (model(*a) * weight).sum())(model)

  with jax.default_matmul_precision('highest'):
    got = layout.write(opened.rules, tree.flatten(gradient(model, *ours)))
  for key, p in module.named_parameters():
    want = numpy(p.grad)
    scale = np.abs(want).max()
    if key.endswith('k_proj.bias'):
      scale = np.abs(got[key.replace('k_proj', 'q_proj')]).max()
    assert np.abs(got[key] - want).max() < 1e-4 * scale, key


def test_written_back_bit_by_bit_and_read_by_their_loader(case):
  name, module, folder = case
  model = vit_jax.load(folder / 'theirs')
  vit_jax.save(model, folder / 'ours', 'transformers')
  weights = [load_file(folder / side / 'model.safetensors') for side in ('theirs', 'ours')]
  assert weights[0].keys() == weights[1].keys()
  for key, value in weights[0].items():
    np.testing.assert_array_equal(weights[1][key], value, key)
  loaded, info = type(module).from_pretrained(folder / 'ours', output_loading_info=True)
  assert not any(info.values()), info
  theirs, _ = inputs(name)
  with torch.no_grad():
    assert torch.equal(loaded.eval()(**theirs).logits_per_image, module(**theirs).logits_per_image)


@pytest.mark.parametrize('quick', [True, False])
def test_open_clip(tmp_path, quick):
  """Their model, our copy, and back; also as OpenAI published it, as a TorchScript archive."""
  torch.manual_seed(0)
  config = dict(
    embed_dim=16, quick_gelu=quick,
    vision_cfg=dict(image_size=32, layers=3, width=48, head_width=12, patch_size=8, mlp_ratio=2.5),
    text_cfg=dict(context_length=12, vocab_size=100, width=32, heads=4, layers=2),
  )  # fmt: skip
  module = references.shake(open_clip.CLIP(**config), 0)
  folder = tmp_path / 'theirs'
  references.save_state(module, folder)
  (folder / 'model.safetensors').rename(folder / 'open_clip_model.safetensors')
  (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config}))
  x, tokens = images((32, 32, 3)), np.random.default_rng(0).integers(0, 99, (4, 12))
  with torch.no_grad():
    image, text, scale = module(torch_images(x), torch.from_numpy(tokens))
  want = numpy(scale * image @ text.T)
  model = vit_jax.load(folder)
  with jax.default_matmul_precision('highest'):
    close(model(x, tokens), want, 1e-5, 'logits')
  vit_jax.save(model, tmp_path / 'ours', 'openai')
  again = open_clip.CLIP(**config)
  state = {k: torch.from_numpy(v) for k, v in load_file(
    tmp_path / 'ours' / 'open_clip_model.safetensors').items()}  # fmt: skip
  again.load_state_dict(state, strict=True)
  for key, value in module.state_dict().items():
    assert torch.equal(again.state_dict()[key], value), key
  # PyTorch's own files, with and without the wrapping of training scripts, and a traced module.
  torch.save(module.state_dict(), tmp_path / 'plain.pt')
  torch.save({'epoch': 3, 'state_dict': {f'module.{k}': v for k, v in module.state_dict().items()}},
             tmp_path / 'training.pt')  # fmt: skip
  traced = torch.jit.trace(module, (torch_images(x), torch.from_numpy(tokens)), strict=False,
                           check_trace=False)  # fmt: skip
  torch.jit.save(traced, tmp_path / 'traced.pt')
  kind = 'quick_gelu' if quick else 'gelu'
  options = dict(image=dict(mlp=kind, num_heads=4), text=dict(mlp=kind, num_heads=4))
  for name in ('plain.pt', 'training.pt', 'traced.pt'):
    other = vit_jax.load(tmp_path / name, **options)
    for key, value in tree.flatten(model).items():
      np.testing.assert_array_equal(tree.flatten(other)[key], value, (name, key))
