"""Heads for maps: UPerNet on BEiT of transformers, Segmenter, and what losses are made of."""

import types

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional

import vit_jax
from tests.parity import references
from tests.parity.references import shake
from vit_jax.models.segmenter import enlarged
from vit_jax.tasks import pixels

BEIT = dict(
  hidden_size=32, num_hidden_layers=5, num_attention_heads=4, intermediate_size=64, image_size=64,
  patch_size=16, layer_scale_init_value=0.5, use_relative_position_bias=True,
)  # fmt: skip
STAGES = ['stage1', 'stage2', 'stage3', 'stage5']


def beit():
  config = hf.BeitConfig(**BEIT, out_indices=[2, 3, 4, 5], auxiliary_channels=8, num_labels=5)
  return hf.BeitForSemanticSegmentation(config)


def upernet():
  backbone = hf.BeitConfig(**BEIT, add_fpn=True, reshape_hidden_states=True, out_features=STAGES)
  return hf.UperNetForSemanticSegmentation(hf.UperNetConfig(
    backbone_config=backbone, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=32,
    num_labels=5,
  ))  # fmt: skip


@pytest.mark.parametrize(('make', 'layers'), [(beit, (0, 1, 2, 3)), (upernet, (0, 1, 2, 4))])
def test_upernet_on_beit(make, layers, tmp_path):
  theirs = shake(make(), 0)
  for name, value in theirs.named_buffers():  # statistics of a trained model
    if name.endswith('running_var'):
      nn.init.uniform_(value, 0.5, 2)
    elif name.endswith('running_mean'):
      nn.init.normal_(value, std=0.3)
  theirs.save_pretrained(tmp_path)
  ours = vit_jax.load(tmp_path)
  assert ours.config.layers == layers
  assert ours.card.task['name'] == 'segmentation'
  found = {}
  hook = lambda name: lambda module, given, out: found.update({name: out})  # noqa: E731
  theirs.decode_head.register_forward_hook(hook('main'))
  theirs.auxiliary_head.register_forward_hook(hook('auxiliary'))
  images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
  theirs(torch.tensor(images).permute(0, 3, 1, 2))
  for name, said in zip(('main', 'auxiliary'), ours.said(images), strict=True):
    want = found[name].detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(said, want, atol=1e-5 * np.abs(want).max(), err_msg=name)


class Block(nn.TransformerEncoderLayer):
  """Of Segmenter: pre-norm, GELU, eps 1e-5."""

  def __init__(self, width):
    super().__init__(
      width, width // 64, 4 * width, 0.0, functional.gelu, batch_first=True, norm_first=True
    )


class Restated(nn.Module):
  """Segmenter with its mask transformer (Strudel et al. 2021, section 3.2), by the paper."""

  def __init__(self, width=128, classes=5, patch=8, size=(32, 64)):
    super().__init__()
    rows, columns = (side // patch for side in size)
    self.patch, self.classes = patch, classes
    self.cut = nn.Conv2d(3, width, patch, patch)
    self.token = nn.Parameter(torch.randn(1, 1, width))
    self.places = nn.Parameter(torch.randn(1, 1 + rows * columns, width))
    self.encoder, self.decoder = (
      nn.ModuleList(Block(width) for _ in range(depth)) for depth in (3, 2)
    )
    self.norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
    self.enter = nn.Linear(width, width)
    self.tokens = nn.Parameter(torch.randn(1, classes, width))
    self.of_patch, self.of_class = (
      nn.Parameter(torch.randn(width, width) / width**0.5) for _ in range(2)
    )
    self.mask_norm = nn.LayerNorm(classes)

  def forward(self, images):
    x = self.cut(images)
    grid = x.shape[2:]
    x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).mT], 1) + self.places
    for block in self.encoder:
      x = block(x)
    x = self.enter(self.norm(x)[:, 1:])
    x = torch.cat([x, self.tokens.expand(len(x), -1, -1)], 1)
    for block in self.decoder:
      x = block(x)
    x = self.decoder_norm(x)
    patches, classes = x[:, : -self.classes] @ self.of_patch, x[:, -self.classes :] @ self.of_class
    cosine = functional.normalize(patches, dim=-1) @ functional.normalize(classes, dim=-1).mT
    return self.mask_norm(cosine).unflatten(1, grid)

  def saved(self):
    """As the authors' code names it."""
    found = {
      'encoder.patch_embed.proj': self.cut, 'encoder.norm': self.norm,
      'decoder.proj_dec': self.enter, 'decoder.decoder_norm': self.decoder_norm,
      'decoder.mask_norm': self.mask_norm, 'encoder.head': nn.Linear(8, 1000),
    }  # fmt: skip
    for part, blocks in (('encoder', self.encoder), ('decoder', self.decoder)):
      for i, block in enumerate(blocks):
        attention = block.self_attn
        packed = types.SimpleNamespace(weight=attention.in_proj_weight, bias=attention.in_proj_bias)
        found |= {
          f'{part}.blocks.{i}.{name}': module for name, module in (
            ('norm1', block.norm1), ('norm2', block.norm2), ('attn.qkv', packed),
            ('attn.proj', attention.out_proj), ('mlp.fc1', block.linear1),
            ('mlp.fc2', block.linear2),
          )
        }  # fmt: skip
    arrays = {
      f'{name}.{part}': getattr(module, part).detach()
      for name, module in found.items() for part in ('weight', 'bias')
    }  # fmt: skip
    return arrays | {
      'encoder.cls_token': self.token.data, 'encoder.pos_embed': self.places.data,
      'decoder.cls_emb': self.tokens.data, 'decoder.proj_patch': self.of_patch.data,
      'decoder.proj_classes': self.of_class.data,
    }  # fmt: skip


def test_segmenter(tmp_path):
  torch.manual_seed(0)
  theirs = shake(Restated(), 1)
  torch.save({'model': theirs.saved(), 'epoch': 3}, tmp_path / 'checkpoint.pth')
  ours = vit_jax.load(tmp_path / 'checkpoint.pth', encoder=dict(image_size=(32, 64)))
  assert (ours.config.decoder.depth, ours.config.num_classes) == (2, 5)
  images = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype(np.float32)
  want = theirs(torch.tensor(images).permute(0, 3, 1, 2)).detach().numpy()
  np.testing.assert_allclose(ours(images), want, atol=2e-5 * np.abs(want).max())
  # The linear decoder, in the same names.
  linear = {n: a for n, a in theirs.saved().items() if n.startswith('encoder.')}
  linear |= {'decoder.head.weight': torch.randn(7, 128), 'decoder.head.bias': torch.randn(7)}
  torch.save({'model': linear}, tmp_path / 'linear.pth')
  plain = vit_jax.load(tmp_path / 'linear.pth', encoder=dict(image_size=(32, 64)))
  patches = plain.encoder.features(images)['patches']
  want = np.asarray(patches) @ linear['decoder.head.weight'].numpy().T
  want += linear['decoder.head.bias'].numpy()
  np.testing.assert_allclose(plain(images), want, atol=1e-4)


def test_losses():
  """Weighted cross-entropy, resizing and the focal factor as PyTorch has them."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 6, 7, 5)).astype(np.float32)
  label = rng.integers(0, 5, (2, 12, 21))
  there = torch.tensor(logits).permute(0, 3, 1, 2)
  large = functional.interpolate(there, (12, 21), mode='bilinear', align_corners=False)
  np.testing.assert_allclose(
    enlarged(logits, (12, 21)), large.permute(0, 2, 3, 1).numpy(), atol=1e-6
  )
  each = functional.cross_entropy(large, torch.tensor(label), reduction='none')
  ours = enlarged(logits, (12, 21))
  np.testing.assert_allclose(pixels.crossentropy(ours, label), each, atol=1e-5)
  focal = (1 - torch.exp(-each)) ** 2 * each
  np.testing.assert_allclose(pixels.crossentropy(ours, label, 2.0), focal, atol=1e-5)
  assert references  # its import makes torchvision one that can be imported
