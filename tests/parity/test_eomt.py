"""Encoder-only mask transformers of transformers: outputs, losses, gradients, files."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import vit_jax
from tests.parity import references
from tests.parity.references import hf, numpy
from tests.parity.test_images import close, images, torch_images
from vit_jax.convert.read import open_checkpoint

CONFIG = dict(
  hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=64, patch_size=16,
  num_blocks=2, num_queries=6, num_labels=5, num_register_tokens=2, train_num_points=64,
)  # fmt: skip


def made(folder, **config):
  torch.manual_seed(0)
  module = hf.EomtForUniversalSegmentation(hf.EomtConfig(**{**CONFIG, **config}))
  references.shake(module, 0)
  module.save_pretrained(folder / 'theirs')
  return module


def original(module, folder):
  """The same arrays as EoMT's own code calls them."""
  state, arrays = {n: numpy(v).copy() for n, v in module.state_dict().items()}, {}
  backbone = 'network.encoder.backbone.'
  names = {
    r'embeddings\.cls_token': 'cls_token', r'embeddings\.register_tokens': 'reg_token',
    r'embeddings\.patch_embeddings\.projection': 'patch_embed.proj', r'layernorm\.': 'norm.',
    r'layers\.': 'blocks.', r'attention\.out_proj': 'attn.proj',
    r'layer_scale(\d)\.lambda1': r'ls\1.gamma',
  }  # fmt: skip
  heads = {
    'query.weight': 'network.q.weight', 'class_predictor': 'network.class_head',
    'mask_head.fc1': 'network.mask_head.0', 'mask_head.fc2': 'network.mask_head.2',
    'mask_head.fc3': 'network.mask_head.4', 'upscale_block.block': 'network.upscale',
    'layernorm2d': 'norm', 'attn_mask_probs': 'network.attn_mask_probs',
  }  # fmt: skip
  for name, value in state.items():
    if name.startswith(('embeddings', 'layers', 'layernorm.')):
      for old, new in names.items():
        name = re.sub(old, new, name)
      if name == 'embeddings.position_embeddings.weight':
        arrays[f'{backbone}pos_embed'] = value[None]
      elif match := re.match(r'(blocks\.\d+\.)attention\.q_proj\.(\w+)', name):
        theirs = match[1].replace('blocks', 'layers') + 'attention.{}_proj.' + match[2]
        packed = np.concatenate([state[theirs.format(n)] for n in 'qkv'])
        arrays[f'{backbone}{match[1]}attn.qkv.{match[2]}'] = packed
      elif 'attention.' not in name:
        arrays[backbone + name] = value
    else:
      for old, new in heads.items():
        name = name.replace(old, new)
      arrays[name] = value
  arrays['network.encoder.pixel_mean'] = np.zeros((1, 3, 1, 1), np.float32)
  (folder / 'original').mkdir()
  save_file(arrays, folder / 'original' / 'model.safetensors')
  said = {n: getattr(module.config, n) for n in ('image_size', 'num_blocks', 'num_queries')}
  (folder / 'original' / 'config.json').write_text(json.dumps(said))


@pytest.mark.parametrize('config', [{}, dict(use_swiglu_ffn=True, patch_size=8, num_blocks=4)])
def test_outputs(config, tmp_path):
  """With masks for all queries, and without; of the file of either."""
  module = made(tmp_path, **config)
  x = images((64, 64, 3), batch=2)
  original(module, tmp_path)
  model = vit_jax.load(tmp_path / 'theirs')
  blocks, queries = model.config.blocks, model.config.queries
  found = open_checkpoint(tmp_path / 'theirs')
  assert not found.problems()
  assert sum(leaf.size for leaf in jax.tree.leaves(model)) == sum(
    p.numel() for p in module.parameters()
  )
  assert model.card.fields['panoptic']['names'] == tuple(f'LABEL_{i}' for i in range(5))
  for probability in (0.0, 1.0):
    module.attn_mask_probs.fill_(probability)
    with torch.no_grad():
      want = module(torch_images(x))
    lifted = jnp.full((2, blocks, queries), not probability)
    run = jax.jit(lambda model, x, lifted: model(x, lifted=lifted, deep=True))
    with jax.default_matmul_precision('highest'):
      got = run(model, x, lifted)
      plain = jax.jit(lambda model, x: model(x))(model, x)
    close(got['logits'][:, -1], numpy(want.class_queries_logits), 1e-5, 'logits')
    close(got['masks'][:, -1], numpy(want.masks_queries_logits), 1e-5, 'masks')
    assert got['masks'].shape[1] == blocks + 1
    same = np.abs(np.asarray(plain['masks'] - got['masks'][:, -1:])).max() < 1e-3
    assert same == (not probability)  # masks change something
  if config:
    return  # gated MLPs have other names there
  other = vit_jax.load(tmp_path / 'original', encoder=dict(num_heads=4))
  assert (other.card.dialect, other.config.blocks) == ('eomt', blocks)
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, x: model(x))(other, x)
  close(got['logits'], plain['logits'], 1e-6, 'of the original')
  close(got['masks'], plain['masks'], 1e-6, 'of the original')
