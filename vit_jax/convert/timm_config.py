"""The config.json with which timm makes a model (`timm.create_model('local-dir:FOLDER')`).

It names an architecture of timm and arguments. The architectures here are those whose arguments can
make them anything that their class can be, and that differ in what no argument says.
"""

from __future__ import annotations

from typing import Any

from vit_jax.architecture.card import Card
from vit_jax.convert import images
from vit_jax.core.errors import RunError
from vit_jax.models.vit import ViTConfig

POOLS = {'mean': 'avg', 'map': 'map', 'token': 'token'}
HYBRIDS = {
  (): 'vit_tiny_r_s16_p8_224', (2, 2, 2, 2): 'vit_small_r26_s32_224',
  (3, 4, 9): 'vit_base_r50_s16_224', (3, 4, 6, 3): 'vit_large_r50_s32_224',
}  # fmt: skip


def sidecar(config: ViTConfig, card: Card, kind: str, style: dict[str, Any]) -> dict[str, Any]:
  """The contents of config.json.

  Args:
    config: of a model in a form of timm.
    card: of the model.
    kind: of its form, see `forms`.
    style: in which its parameters are named.

  Raises:
    RunError: if no architecture of timm has this combination of fields.
  """
  makers = {'eva': _eva, 'eva-rope': _eva, 'beit': _beit}
  architecture, args = makers.get(kind, _vit)(config, kind, style)
  gated = 2 if config.mlp == 'swiglu' and makers.get(kind, _vit) is _vit else 1
  args = {
    'img_size': list(config.image_size), 'patch_size': config.patch_size,
    'in_chans': config.in_channels, 'embed_dim': config.width, 'depth': config.depth,
    'num_heads': config.num_heads, 'mlp_ratio': _ratio(gated * config.mlp_dim, config.width),
    'qkv_bias': 'query' not in config.without, 'global_pool': POOLS[config.pool], **args,
  }  # fmt: skip
  return {
    'architecture': architecture,
    'num_classes': config.num_classes,
    'num_features': config.width,
    'global_pool': POOLS[config.pool],
    'model_args': args,
    **({'label_names': list(card.class_names)} if card.class_names else {}),
    'pretrained_cfg': {
      'fixed_input_size': True, 'num_classes': config.num_classes, 'classifier': 'head',
      'first_conv': 'patch_embed.proj', **images.for_timm(card),
    },
  }  # fmt: skip


def _vit(config: ViTConfig, kind: str, style: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  """Of VisionTransformer and what is derived from it."""
  del style
  args: dict[str, Any] = dict(
    qk_norm=config.qk_norm, proj_bias='out' not in config.without, init_values=config.layerscale,
    class_token=config.class_token, pos_embed='none' if config.posemb == 'none' else 'learn',
    no_embed_class=config.prefix > 0 and config.posemb_prefix == 0, reg_tokens=config.registers,
    pre_norm=config.embed_norm, fc_norm=config.pool_norm, scale_mlp_norm=config.mlp_norm,
  )  # fmt: skip
  gated, coarse = config.mlp == 'swiglu', config.eps > 1e-6
  if coarse and (gated or kind != 'vit' or config.norm != 'layernorm'):
    raise RunError(f'timm cannot express eps={config.eps!r} of such a model')
  name = 'vit_base_patch16_224'
  if kind == 'distilled':
    name = 'deit_tiny_distilled_patch16_224'
    args.pop('no_embed_class')
  elif kind == 'hybrid':
    name = HYBRIDS[config.stem_depths]
  elif gated:
    name = 'vit_giant_patch14_dinov2'
  elif coarse:
    name = 'vit_base_patch16_clip_224'
  if not gated:
    args['act_layer'] = config.mlp
  if config.norm == 'rmsnorm':
    args['norm_layer'] = 'rmsnorm'
  elif config.embed_norm and not coarse:
    args['norm_layer'] = 'layernorm'  # or readers would take it for CLIP
  return name, args


def _eva(config: ViTConfig, kind: str, style: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  coarse = config.eps > 1e-6
  if coarse and not config.layerscale:
    raise RunError(f'timm cannot express eps={config.eps!r} without layerscale')
  rotary = config.rope != 'none'
  args = dict(
    qkv_fused=style['qkv'] == 'packed', qk_norm=config.qk_norm, swiglu_mlp=config.mlp == 'swiglu',
    # Anything but 0 gives gate and value matrices of their own.
    swiglu_align_to=int(style['glu'] == 'split' and not config.mlp_norm), scale_mlp=config.mlp_norm,
    attn_type='rope' if kind == 'eva-rope' else 'eva', class_token=config.class_token,
    num_reg_tokens=config.registers, use_abs_pos_emb=config.posemb == 'learned',
    no_embed_class=config.prefix > 0 and config.posemb_prefix == 0, use_rot_pos_emb=rotary,
    use_fc_norm=config.pool_norm, dynamic_img_size=False,
    rope_type='dinov3' if config.rope == 'unit' else 'cat',
    rope_rotate_half=config.rope == 'unit', rope_temperature=config.rope_base,
    ref_feat_shape=list(config.rope_grid) if all(config.rope_grid) else None,
    **(dict(init_values=config.layerscale) if config.layerscale else {}),
  )  # fmt: skip
  return 'vit_small_patch16_dinov3' if coarse else 'eva_giant_patch14_224', args


def _beit(config: ViTConfig, kind: str, style: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  del kind, style
  return 'beit_base_patch16_224', dict(
    swiglu_mlp=config.mlp == 'swiglu', scale_mlp=config.mlp_norm, init_values=config.layerscale,
    use_abs_pos_emb=config.posemb == 'learned', use_rel_pos_bias=config.relative_bias == 'layer',
    use_shared_rel_pos_bias=config.relative_bias == 'shared', use_fc_norm=config.pool_norm,
  )  # fmt: skip


def _ratio(hidden: int, width: int) -> float:
  """Of which timm makes `hidden` again: it multiplies and rounds down."""
  ratio = hidden / width
  return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
