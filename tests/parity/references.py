"""The reference implementations, small and with random weights, and what happens inside them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.torchvision import define_operators

define_operators()

import timm  # noqa: E402
import timm.models  # noqa: E402
import transformers as hf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from timm.models.mlp_mixer import _create_mixer  # noqa: E402
from timm.models.resnetv2 import _create_resnetv2_bit  # noqa: E402

BLOCK = re.compile(r'(?:.*\.)?(?:blocks|layers|layer|resblocks)\.(\d+)')
SECOND_NORM = re.compile(r'(?:.*\.)?(?:norm2|layernorm_after|layer_norm2|ln_2)')


def shake(module: torch.nn.Module, seed: int) -> torch.nn.Module:
  """No parameter is left at zero or one, so that every one of them matters."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in module.named_parameters():
      if 'logit_' in name or p.ndim == 0:
        continue
      size = 0.1 if p.ndim < 2 else 0.5 / max(1, p[0].numel()) ** 0.5 if p.ndim in (2, 4) else 0.3
      p.add_(torch.randn(p.shape, generator=generator) * size)
  return module.eval()


@dataclasses.dataclass
class Reference:
  """One model.

  Attributes:
    make: the PyTorch module.
    dialect: in which our copy of it is written back.
    run: (module, images) to named tensors; 'output' and what else is comparable.
    save: writes it to a folder; old names where there are two.
    image: shape of one image.
  """

  make: Callable[[], torch.nn.Module]
  dialect: str
  run: Callable[[Any, Any], dict[str, torch.Tensor]]
  save: Callable[[Any, Any], None] | None = None
  image: tuple[int, ...] = (32, 32, 3)


SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
PLAIN = dict(**SMALL, intermediate_size=48, image_size=32, patch_size=8)


def save_hf(module, folder):
  module.save_pretrained(folder, save_original_format=True)


def save_timm(module, folder):
  folder.mkdir(parents=True, exist_ok=True)
  timm.models.save_for_hf(module, folder, safe_serialization=True)


def save_state(module, folder):
  """Weights alone."""
  folder.mkdir(parents=True, exist_ok=True)
  state = {k: v.contiguous() for k, v in module.state_dict().items()}
  save_file(state, str(folder / 'model.safetensors'))


def logits(module, x):
  return {'output': module(x).logits}


def hidden(module, x):
  out = module(x)
  return {'encoded': out.last_hidden_state, 'output': out.pooler_output}


def plain(module, x):
  return {'output': module(x)}


def deit(module, x):
  out = module(x)
  return {
    'output': out.logits,
    'logits_class': out.cls_logits,
    'logits_distill': out.distillation_logits,
  }


def transformer(cls, config, run=logits, dialect='transformers'):
  return Reference(lambda: cls(config), dialect, run, save_hf)


def vision(name, image=32, **kwargs):
  def make():
    return timm.create_model(name, **{'img_size': image, 'num_classes': 5, 'depth': 3, **kwargs})

  return Reference(make, 'timm', plain, save_timm, image=(image, image, 3))


T = dict(embed_dim=48, num_heads=3)
HF: dict[str, Reference] = {
  'vit': transformer(hf.ViTForImageClassification, hf.ViTConfig(**PLAIN, num_labels=5)),
  'vit-pooler': transformer(hf.ViTModel, hf.ViTConfig(**PLAIN, qkv_bias=False), hidden),
  'deit': transformer(
    hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig(**PLAIN, num_labels=5), deit
  ),
  'beit': transformer(
    hf.BeitForImageClassification,
    hf.BeitConfig(**PLAIN, num_labels=5, use_relative_position_bias=True),
  ),
  'beit-shared': transformer(
    hf.BeitForImageClassification,
    hf.BeitConfig(**PLAIN, num_labels=5, use_shared_relative_position_bias=True,
                  use_absolute_position_embeddings=True, use_mask_token=True),
  ),
  'dinov2': transformer(
    hf.Dinov2Model, hf.Dinov2Config(**SMALL, image_size=32, patch_size=8), hidden
  ),
  'dinov2-swiglu': transformer(
    hf.Dinov2ForImageClassification,
    hf.Dinov2Config(**SMALL, image_size=32, patch_size=8, use_swiglu_ffn=True, num_labels=5),
  ),
  'dinov2-registers': transformer(
    hf.Dinov2WithRegistersForImageClassification,
    hf.Dinov2WithRegistersConfig(**SMALL, image_size=32, patch_size=8, num_labels=5,
                                 num_register_tokens=3),
  ),
  'dinov3': transformer(
    hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**PLAIN, num_register_tokens=2), hidden,
  ),
  'dinov3-plain': transformer(
    hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**PLAIN, num_register_tokens=0), hidden,
  ),
  'dinov3-gated': transformer(
    hf.DINOv3ViTModel,
    hf.DINOv3ViTConfig(**PLAIN, num_register_tokens=4, use_gated_mlp=True, hidden_act='silu',
                       query_bias=False, value_bias=False, rope_theta=50.0),
    hidden,
  ),
  'clip-vision': transformer(
    hf.CLIPVisionModelWithProjection, hf.CLIPVisionConfig(**PLAIN, projection_dim=16),
    lambda m, x: {'output': m(x).image_embeds},
  ),
  'siglip-vision': transformer(
    hf.SiglipVisionModel, hf.SiglipVisionConfig(**PLAIN), hidden, dialect='transformers-v5'
  ),
}  # fmt: skip
TIMM: dict[str, Reference] = {
  'augreg': vision('vit_tiny_patch16_224', patch_size=8, **T),
  'deit': vision('deit_tiny_distilled_patch16_224', patch_size=8, **T),
  'deit3': vision('deit3_small_patch16_224', patch_size=8, **T),
  'flexivit': vision('flexivit_small', patch_size=8, **T),
  'dinov2': vision('vit_small_patch14_dinov2', 28, patch_size=7, **T),
  'dinov2-registers': vision('vit_giant_patch14_reg4_dinov2', 28, patch_size=7, embed_dim=48,
                             num_heads=2),
  'clip': vision('vit_base_patch16_clip_224', patch_size=8, **T),
  'clip-quickgelu': vision('vit_base_patch16_clip_quickgelu_224', patch_size=8, **T),
  'siglip': vision('vit_so400m_patch14_siglip_224', patch_size=8, embed_dim=48, num_heads=4),
  'siglip-tanh': vision('vit_giantopt_patch16_siglip_256', patch_size=8, **T),
  'siglip-gap': vision('vit_base_patch16_siglip_gap_224', patch_size=8, **T),
  'so150m-map': vision('vit_so150m_patch16_reg4_map_256', patch_size=8, **T),
  'so150m-gap': vision('vit_so150m_patch16_reg4_gap_256', patch_size=8, **T),
  'so150m2': vision('vit_so150m2_patch16_reg1_gap_256', patch_size=8, **T),
  'medium-reg': vision('vit_medium_patch16_reg4_gap_256', patch_size=8, **T),
  'eva02-tiny': vision('eva02_tiny_patch14_224', 28, patch_size=7, **T),
  'eva02-base': vision('eva02_base_patch14_224', 28, patch_size=7, **T, ref_feat_shape=(3, 5)),
  'eva': vision('eva_giant_patch14_224', 28, patch_size=7, **T),
  'rope-reg': vision('vit_base_patch16_rope_reg1_gap_256', patch_size=8, **T),
  'dinov3': vision('vit_small_patch16_dinov3', patch_size=8, **T),
  'dinov3-qkvb': vision('vit_small_plus_patch16_dinov3_qkvb', patch_size=8, **T),
  'beit': vision('beit_base_patch16_224', patch_size=8, **T),
  'beitv2-shared': vision('beit_base_patch16_224', patch_size=8, use_rel_pos_bias=False,
                          use_shared_rel_pos_bias=True, **T),
  'hybrid-r26': vision('vit_small_r26_s32_224', 64, **T),
  'hybrid-r50': vision('vit_base_r50_s16_224', 64, **T),
  'hybrid-r': vision('vit_tiny_r_s16_p8_224', 64, **T),
}  # fmt: skip
REFERENCES = {f'hf/{k}': v for k, v in HF.items()} | {f'timm/{k}': v for k, v in TIMM.items()}


def staged(module, x):
  """The output, and the maps that stages give; the last one of a ResNet is normed later."""
  maps = module.forward_intermediates(x, intermediates_only=True)
  first = len(maps) - len(getattr(module, 'stages', maps))
  last = len(maps) - first - (first > 0)
  name = 'stage{}' if hasattr(module, 'stages') else 'block{:02d}'
  found = {name.format(i): y.permute(0, 2, 3, 1) for i, y in enumerate(maps[first:][:last])}
  if not hasattr(module, 'stages'):
    found = {n: y.flatten(1, 2) for n, y in found.items()}
  return {'output': module(x), **found}


def network(make, name, dialect, image, **kwargs):
  return Reference(lambda: make(name, num_classes=5, **kwargs), dialect, staged, save_timm, image)


# No transformers.
NETWORKS = {
  'networks/resnet': network(
    _create_resnetv2_bit, 'resnetv2_50x1_bit', 'big_vision', (57, 70, 3), layers=[2, 1, 2, 1],
    width_factor=0.5,
  ),
  'networks/convnext': network(
    timm.create_model, 'convnext_tiny', 'timm', (67, 72, 3), depths=(1, 2, 3, 1),
    dims=(16, 24, 32, 48),
  ),
  'networks/convnext-plain': network(
    timm.create_model, 'convnext_tiny', 'timm', (32, 48, 1), depths=(1, 1, 2, 1),
    dims=(8, 16, 16, 24), ls_init_value=None, kernel_sizes=5, patch_size=3, in_chans=1,
  ),
  'networks/mixer': network(
    _create_mixer, 'mixer_b16_224', 'big_vision', (32, 32, 3), img_size=32, patch_size=8,
    num_blocks=3, embed_dim=48,
  ),
}  # fmt: skip


def watch(module: torch.nn.Module, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """What `run` returns, and of each block: its input, the sum after attention, its output."""
  seen: dict[str, Any] = {}
  hooks = []

  def block(name):
    number = int(BLOCK.fullmatch(name)[1])

    def hook(_, args, kwargs, out):
      x = args[0] if args else kwargs['hidden_states']
      if number == 0:
        seen['tokens'] = x
      seen[f'block{number:02d}'] = out[0] if isinstance(out, tuple) else out

    return hook

  def norm(name):
    number = int(re.findall(r'\.(\d+)\.', f'.{name}')[-1])
    return lambda _, args, out: seen.__setitem__(f'mid{number:02d}', args[0])

  for name, child in module.named_modules():
    if 'backbone' in name or 'text_model' in name:
      continue
    if BLOCK.fullmatch(name):
      hooks.append(child.register_forward_hook(block(name), with_kwargs=True))
    elif SECOND_NORM.fullmatch(name) and re.search(r'\.\d+\.', f'.{name}'):
      hooks.append(child.register_forward_hook(norm(name)))
  try:
    return {**run(), **seen}
  finally:
    for hook in hooks:
      hook.remove()


def numpy(x: torch.Tensor) -> np.ndarray:
  return x.detach().cpu().numpy()
