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
from vit_jax.convert import layout
from vit_jax.convert.read import open_checkpoint
from vit_jax.core.schedule import Schedule
from vit_jax.nn import tree
from vit_jax.tasks import mask_losses
from vit_jax.tasks.panoptic import Panoptic
from vit_jax.tasks.task import Context

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


class Drawn:
  """Points in place of random ones: of each image and layer its own, of masks of one the same."""

  def __init__(self, batch, layers, points, tried, more):
    rng = np.random.default_rng(3)
    make = lambda *shape: rng.random((*shape, 2)).astype(np.float32)  # noqa: E731
    self.match = make(batch, layers, points)
    self.tried, self.more = make(layers, tried), make(layers, more)
    self.batch, self.calls = batch, 0

  def __call__(self, count, points, _, device=None):
    """As `torch.rand` is called: of a layer once for each image, and twice for all masks."""
    layer, call = divmod(self.calls, self.batch + 2)
    self.calls += 1
    if call < self.batch:
      return torch.from_numpy(self.match[call, layer, None])
    found = (self.tried, self.more)[call - self.batch][layer]
    assert len(found) == points
    return torch.from_numpy(found).expand(count, -1, -1).contiguous()

  def ours(self, targets):
    batch = self.batch
    each = lambda x: np.broadcast_to(x[None, :, None], (batch, len(x), targets, *x.shape[1:]))  # noqa: E731
    return mask_losses.Points(self.match, each(self.tried), each(self.more), 48)


def test_loss_and_gradients(tmp_path, monkeypatch):
  """Of every parameter, with points that both are given; one image has few segments."""
  module = made(tmp_path)
  module.attn_mask_probs.fill_(1.0)
  model, x = vit_jax.load(tmp_path / 'theirs'), images((64, 64, 3), batch=2)
  rng, most = np.random.default_rng(0), 5
  ids = np.kron(rng.integers(0, 5, (2, 4, 4)), np.ones((16, 16), int)).astype(np.uint8)
  ids[1] = np.where(ids[1] > 2, 0, ids[1])
  label = rng.integers(0, 5, (2, most)).astype(np.int32)
  known = np.array([[n in ids[i] for n in range(1, most + 1)] for i in range(2)], np.float32)
  there = [np.flatnonzero(row) for row in known]
  masks = [
    torch.from_numpy(np.stack([ids[i] == n + 1 for n in own]).astype(np.float32))
    for i, own in enumerate(there)
  ]
  drawn = Drawn(2, 3, 64, 192, 16)
  monkeypatch.setattr(torch, 'rand', drawn)
  out = module(
    torch_images(x),
    mask_labels=masks,
    class_labels=[torch.from_numpy(label[i, own]).long() for i, own in enumerate(there)],
  )
  out.loss.backward()
  monkeypatch.undo()
  monkeypatch.setattr(mask_losses, 'drawn', lambda *args: drawn.ours(most))
  monkeypatch.setattr(Panoptic, '_lifted', lambda self, *args: jnp.zeros((2, 2, 6), bool))
  task = Panoptic(most=most, points=64, lifted=Schedule(0.0))
  batch = dict(image=x, mask=np.ones(2, np.float32), segments=ids, segments_label=label,
               segments_known=known, segments_left_out=np.zeros(2),
               drawn=np.zeros((2, 2), np.uint32))  # fmt: skip
  context = Context({}, task.totals(batch), {'task.lifted': 0.0}, None, 0, None)

  @jax.jit
  def both(model, batch):
    return jax.value_and_grad(lambda model: task.loss(model, batch, context)[0])(model)

  with jax.default_matmul_precision('highest'):
    value, gradient = both(model, batch)
  assert float(value) == pytest.approx(out.loss.item(), rel=1e-5)
  found = layout.write(open_checkpoint(tmp_path / 'theirs').rules, tree.flatten(gradient))
  worst = {}
  for name, p in module.named_parameters():
    grad = numpy(p.grad)
    scale = np.abs(grad).max()
    if name.endswith('k_proj.bias'):  # nothing but rounding
      scale = np.abs(found[name.replace('k_proj', 'q_proj')]).max()
    worst[name] = np.abs(found[name] - grad).max() / scale
  assert max(worst.values()) < 1e-4, sorted(worst.items(), key=lambda each: -each[1])[:5]
  assert len(worst) > 60
