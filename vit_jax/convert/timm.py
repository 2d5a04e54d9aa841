"""Checkpoints of timm (VisionTransformer, Eva, Beit, hybrids) and of Meta (DINOv2, DINOv3, MAE)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.architecture import MaeArchitecture, ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.architecture.vit import stem_stride
from vit_jax.convert import masked
from vit_jax.convert.layout import BLOCKS, Rule, Shapes, Table, To, rules
from vit_jax.convert.source import IMAGENET, INCEPTION, OPENAI, Source, pair
from vit_jax.core.errors import RunError
from vit_jax.models.masked import MaeConfig
from vit_jax.models.vit import ViTConfig

IGNORE = r'.*\.(periods|bias_mask|relative_position_index|k_bias)|local_cls_norm\..*|rope\..*'
# How the members of the family differ in names. 'scale': of LayerScale; 'qkv': one array or three;
# 'qkv_bias': one array, three, or none; 'glu': gate and value in one array, or names of each.
STYLES: dict[str, dict[str, Any]] = {
  'timm': dict(scale='ls{}.gamma', qkv='packed', qkv_bias='packed', glu='packed'),
  'eva': dict(scale='gamma_{}', qkv='packed', qkv_bias='split', glu='packed'),
  'eva-split': dict(scale='gamma_{}', qkv='split', qkv_bias='split', glu='split'),
  'dinov2': dict(scale='ls{}.gamma', qkv='packed', qkv_bias='packed', glu='w12'),
  'dinov3': dict(scale='ls{}.gamma', qkv='packed', qkv_bias='packed', glu='w123'),
  'mae': dict(scale='ls{}.gamma', qkv='packed', qkv_bias='packed', glu='packed', decoder=True),
}
# What MAE adds to an encoder.
_DECODER = re.compile(r'decoder_.*|mask_token')
# Architectures of timm with a tanh GELU, and ones that differ from all others in what no name of a
# parameter shows: where norms are, how positions are counted, which heads share keys.
GELU_TANH = re.compile(
  r'vit_(base_patch32_siglip_(gap_)?256|large_patch16_siglip_(gap_)?512'
  r'|(so400m|giantopt)_patch16_siglip_(gap_)?\d+)'
)
ODD = (
  'use_post_norm', 'rope_grid_offset', 'rope_mrope_section', 'pool_include_prefix', 'block_fn',
  'attn_layer', 'num_kv_heads', 'attn_only_layer_scale',
)  # fmt: skip
UNKNOWN = re.compile(
  r'(vit_(pe_|.*lingbot|.*sapiens2|.*_(rpn|18x2|xp)_|(d|p|dp)wee_|dlittle_|.*_rope(_mixed)?(_ape)?_\d'
  r')|eva02_enormous|aimv2).*'
)


def recognise(source: Source) -> dict[str, Any] | None:
  """Which of the family wrote a checkpoint; None if none of them."""
  if 'patch_embed.proj.weight' not in source:
    return None
  if {'decoder_embed.weight', 'decoder_pos_embed', 'decoder_pred.weight'} <= {*source.arrays}:
    return dict(STYLES['mae'])
  if 'decoder_embed.weight' in source:  # of something else, of which the encoder can be read
    source.dropped += [name for name in source.arrays if _DECODER.fullmatch(name)]
    source.arrays = {n: a for n, a in source.arrays.items() if n not in source.dropped}
  if 'masked_embed' in source:  # the mask token of iBOT's students
    source.dropped.append('masked_embed')
    source.arrays = {n: a for n, a in source.arrays.items() if n != 'masked_embed'}
  if any(re.match(r'blocks\.\d+\.\d+\.', name) for name in source.arrays):  # chunked by Meta
    source.arrays = {
      re.sub(r'^blocks\.\d+\.(\d+)\.', r'blocks.\1.', name): array
      for name, array in source.arrays.items()
    }
  block = 'blocks.0.'
  if not any(name.startswith(block) for name in source.arrays):
    return None
  has = lambda name: block + name in source  # noqa: E731
  if 'storage_tokens' in source:
    style = dict(STYLES['dinov3'])
  elif 'mask_token' in source and has('attn.qkv.bias') and 'reg_token' not in source:
    style = dict(STYLES['dinov2'])
  else:
    eva = (
      has('gamma_1')
      or has('attn.q_bias')
      or has('attn.q_proj.weight')
      or 'use_rot_pos_emb' in (source.config.get('model_args') or {})
      or ('head_dist.weight' not in source and not has('attn.qkv.bias') and has('mlp.fc1_g.weight'))
    )
    style = dict(STYLES['eva' if eva else 'timm'])
    if has('attn.qkv.bias'):
      style['qkv_bias'] = 'packed'
    if has('attn.q_proj.weight'):
      style['qkv'] = 'split'
    style['glu'] = 'split' if has('mlp.fc1_g.weight') else 'packed'
  return style


def table(config: ViTArchitecture, style: dict[str, Any]) -> Table:
  """From our names to theirs."""
  meta = style['glu'] in ('w12', 'w123')
  block, ours = 'blocks.{}.', BLOCKS
  names: dict[str, Any] = {
    'token': 'cls_token', 'distill_token': 'dist_token',
    'registers': 'reg_token', 'mask_token': 'mask_token', 'posemb': 'pos_embed',
    'embed/proj': 'patch_embed.proj', 'embed_norm': 'norm_pre',
    'encoder/norm': 'norm', 'pool_norm': 'fc_norm', 'head': 'head', 'distill_head': 'head_dist',
    'pre_logits': 'pre_logits.fc', 'encoder/relative/table':
      'rel_pos_bias.relative_position_bias_table',
    f'{ours}attn/relative/table': f'{block}attn.relative_position_bias_table',
    f'{ours}norm1': f'{block}norm1', f'{ours}norm2': f'{block}norm2',
    f'{ours}attn/query_norm': f'{block}attn.q_norm', f'{ours}attn/key_norm': f'{block}attn.k_norm',
    f'{ours}attn/out': f'{block}attn.proj',
    f'{ours}scale1': block + style['scale'].format(1),
    f'{ours}scale2': block + style['scale'].format(2),
    f'{ours}mlp/up': f'{block}mlp.fc1', f'{ours}mlp/norm': f'{block}mlp.norm',
    f'{ours}mlp/down': f'{block}mlp.fc2',
    'map_head/probe': 'attn_pool.latent', 'map_head/attn/query': 'attn_pool.q',
    'map_head/attn/key|value': 'attn_pool.kv', 'map_head/attn/out': 'attn_pool.proj',
    'map_head/norm': 'attn_pool.norm', 'map_head/mlp/up': 'attn_pool.mlp.fc1',
    'map_head/mlp/down': 'attn_pool.mlp.fc2',
  }  # fmt: skip
  if style['glu'] == 'w12' or style['glu'] == 'w123':
    names['registers'] = 'storage_tokens' if style['glu'] == 'w123' else 'register_tokens'
    names['mask_token'] = To('mask_token', ndim=2)
  if config.mlp == 'swiglu':
    if style['glu'] == 'split':
      names |= {f'{ours}mlp/gate': f'{block}mlp.fc1_g', f'{ours}mlp/up': f'{block}mlp.fc1_x'}
    elif style['glu'] == 'w123':
      names |= {
        f'{ours}mlp/{n}': f'{block}mlp.{w}'
        for n, w in (('gate', 'w1'), ('up', 'w2'), ('down', 'w3'))
      }
    else:
      names.pop(f'{ours}mlp/up')
      names[f'{ours}mlp/gate|up'] = f'{block}mlp.' + ('w12' if meta else 'fc1')
      names[f'{ours}mlp/down'] = f'{block}mlp.' + ('w3' if meta else 'fc2')
  if style['qkv'] == 'split':
    names |= {f'{ours}attn/{n}': f'{block}attn.{n[0]}_proj' for n in ('query', 'key', 'value')}
  else:
    names[f'{ours}attn/query|key|value/kernel'] = f'{block}attn.qkv.weight'
    if style['qkv_bias'] == 'packed':
      names[f'{ours}attn/query|key|value/bias'] = f'{block}attn.qkv.bias'
    else:
      for n in ('query', 'key', 'value'):
        names[f'{ours}attn/{n}/bias'] = f'{block}attn.{n[0]}_bias'
  if config.stem_width:
    base = 'patch_embed.backbone.'
    root = f'{base}stem.' if config.stem_depths else base
    names |= {'stem/root': f'{root}conv', 'stem/root_norm': f'{root}norm'}
    for stage, depth in enumerate(config.stem_depths):
      for unit in range(depth):
        at, to = f'stem/stage{stage}_unit{unit}/', f'{base}stages.{stage}.blocks.{unit}.'
        names |= {at + n: to + n for n in ('conv1', 'conv2', 'conv3', 'norm1', 'norm2', 'norm3')}
        names |= {f'{at}proj': f'{to}downsample.conv', f'{at}proj_norm': f'{to}downsample.norm'}
  return names


def make_rules(config: Any, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read and written."""
  if isinstance(config, MaeArchitecture):
    theirs = {name: f'decoder_{name}' for name in ('embed', 'norm')}
    theirs |= {'mask_token': 'mask_token', 'posemb': 'decoder_pos_embed'}
    blocks = {n: f'decoder_{to}' for n, to in table(config.decoder, style).items()}
    decoder = masked.decoder_table(blocks, theirs, config.decoder)
    both = {
      **{f'encoder/{name}': to for name, to in table(config.encoder, style).items()},
      **{f'decoder/{name}': to for name, to in decoder.items()}, 'head': 'decoder_pred',
    }  # fmt: skip
    return rules(both, shapes, torch=True)
  # Eva turns neighbouring features together; DINOv3 the two halves, as we do.
  interleaved = config.rope == 'grid'
  return rules(table(config, style), shapes, torch=True, interleaved=interleaved)


def _mae(source: Source, style: dict[str, Any]) -> tuple[MaeConfig, Card]:
  """The encoder and the decoder of MAE."""
  args = source.config.get('model_args') or {}
  inner = {n: a for n, a in source.arrays.items() if not _DECODER.fullmatch(n)}
  encoder, _ = architecture(source.inside('encoder', inner), {**style, 'decoder': False})
  mine, width = source.inside('decoder'), source.shape('decoder_embed.weight', 2)[0]
  decoder = ViTConfig(
    '', width=width, depth=source.count(r'decoder_blocks\.(\d+)\.'),
    mlp_dim=source.shape('decoder_blocks.0.mlp.fc1.weight', 2)[0],
    num_heads=mine.heads(width, args.get('decoder_num_heads'), special=masked.HEADS), mlp='gelu',
    eps=1e-6, interpolation='bicubic_aa',
    **masked.decoder_positions(mine, 'decoder_pos_embed', encoder.resolve()),
  )  # fmt: skip
  normalized = args.get('norm_pix_loss')
  if normalized is None:
    # The files that were published to look at are of those without it.
    normalized = 'visualize' not in source.where.rpartition('/')[2]
    source.notes.append(
      'no configuration says what was predicted; guessing '
      + ('normalized pixels' if normalized else 'pixels')
    )
  card = Card('mae', encoder.image_size, *IMAGENET, crop=0.875)
  card = masked.trained(card, ratio=0.75, target='normalized' if normalized else 'pixels')
  return MaeConfig(encoder, source.shape('decoder_pred.weight', 2)[0], decoder), card


def architecture(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """The model of a checkpoint, by its arrays and by the configuration that timm saves with them."""
  if style.get('decoder'):
    return _mae(source, style)
  args = source.config.get('model_args') or {}
  given = source.config.get('pretrained_cfg') or source.config
  name = str(source.config.get('architecture') or '').partition('.')[0]
  if UNKNOWN.fullmatch(name) or any(args.get(option) for option in ODD):
    raise RunError(f'{source.where}: the architecture {name or "in model_args"} is not supported')
  block, has = 'blocks.0.', source.__contains__
  meta = style['glu'] in ('w12', 'w123')
  width, channels, patch, _ = source.shape('patch_embed.proj.weight', 4)
  found: dict[str, Any] = dict(
    variant='', width=width, depth=source.count(r'blocks\.(\d+)\.'), mlp='gelu',
    patch_size=patch, eps=1e-6,
    class_token=has('cls_token'), distilled=has('dist_token'), mask_token=has('mask_token'),
    embed_norm=has('norm_pre.weight'), qk_norm=has(f'{block}attn.q_norm.weight'),
    mlp_norm=has(f'{block}mlp.norm.weight'), interpolation='bicubic_aa',
  )  # fmt: skip
  if has('patch_embed.backbone.conv.weight') or has('patch_embed.backbone.stem.conv.weight'):
    stem = 'patch_embed.backbone.' + (
      'stem.' if has('patch_embed.backbone.stem.conv.weight') else ''
    )
    found['stem_width'], channels = source.shape(f'{stem}conv.weight', 4)[:2]
    stages = source.count(r'patch_embed\.backbone\.stages\.(\d+)\.')
    found['stem_depths'] = tuple(
      source.count(rf'patch_embed\.backbone\.stages\.{s}\.blocks\.(\d+)\.') for s in range(stages)
    )
    found['stem_convention'] = 'timm'
  found['in_channels'] = channels
  stride = patch * (stem_stride(found['stem_depths']) if 'stem_width' in found else 1)
  clip = args.get('norm_layer') is None and (found['embed_norm'] or '_clip_' in name)
  if meta or clip or 'dinov3' in name:
    found['eps'] = 1e-6 if style['glu'] == 'w12' else 1e-5
  found['registers'] = next(
    (source.shape(n, 3)[1] for n in ('reg_token', 'register_tokens', 'storage_tokens') if has(n)), 0
  )
  # The MLP.
  if style['glu'] == 'split' and has(f'{block}mlp.fc1_g.weight'):
    found |= dict(mlp='swiglu', mlp_dim=source.shape(f'{block}mlp.fc1_g.weight', 2)[0])
  elif meta and has(f'{block}mlp.w3.weight'):
    found |= dict(mlp='swiglu', mlp_dim=source.shape(f'{block}mlp.w3.weight', 2)[1])
  else:
    hidden = source.shape(f'{block}mlp.fc2.weight', 2)[1]
    found['mlp_dim'] = hidden
    if source.shape(f'{block}mlp.fc1.weight', 2)[0] == 2 * hidden:
      found['mlp'] = 'swiglu'
    elif 'quickgelu' in name or args.get('act_layer') == 'quick_gelu':
      found['mlp'] = 'quick_gelu'
    elif GELU_TANH.fullmatch(name) or args.get('act_layer') == 'gelu_tanh':
      found['mlp'] = 'gelu_tanh'
  # Attention.
  scale = f'{block}{style["scale"].format(1)}'
  found['layerscale'] = 1e-5 if has(scale) else 0.0
  without = []
  for part in ('query', 'key', 'value'):
    letter = part[0]
    separate = has(f'{block}attn.{letter}_bias') or has(f'{block}attn.{letter}_proj.bias')
    packed = has(f'{block}attn.qkv.bias') and not (part == 'key' and style['glu'] == 'w123')
    if not separate and not packed:
      without.append(part)
  without += [] if has('patch_embed.proj.bias') else ['embed']
  without += [] if has(f'{block}norm1.bias') else ['norm']
  if not has(f'{block}norm1.bias'):
    found['norm'] = 'rmsnorm'
    without.remove('norm')
  without += [] if has(f'{block}attn.proj.bias') else ['out']
  without += [] if has(f'{block}mlp.fc2.bias') or has(f'{block}mlp.w3.bias') else ['mlp']
  without += ['head'] if has('head.weight') and not has('head.bias') else []
  found['no_bias'] = ','.join(without)
  rows = 0
  if has(f'{block}attn.relative_position_bias_table'):
    found['relative_bias'] = 'layer'
    rows, heads = source.shape(f'{block}attn.relative_position_bias_table', 2)
  elif has('rel_pos_bias.relative_position_bias_table'):
    found['relative_bias'] = 'shared'
    rows, heads = source.shape('rel_pos_bias.relative_position_bias_table', 2)
  else:
    special = {1280: 20} if found['registers'] and not has('pos_embed') else {}
    special |= {} if has('attn_pool.latent') else {1536: 24}
    heads = source.heads(width, args.get('num_heads'), special=special)
  found['num_heads'] = heads
  # Positions.
  size = pair(args.get('img_size')) or pair((given.get('input_size') or [0])[1:])
  prefix = found['class_token'] + found['distilled'] + found['registers']
  if has('pos_embed'):
    count = source.shape('pos_embed', 3)[1]
    prefixes = {'class': prefix - found['registers'], 'all': prefix, 'patches': 0}
    if not found['registers']:
      prefixes.pop('all')
    found['image_size'], found['posemb_tokens'] = source.grid(count, prefixes, stride, size)
    grid = tuple(side // stride for side in found['image_size'])
    if source.fixed('pos_embed', grid):
      found['posemb'] = 'sincos_mae'
      source.computed.append('pos_embed')
  else:
    found['posemb'] = 'none'
    if rows:
      size = (int(((rows - 3) ** 0.5 + 1) // 2) * stride,) * 2
    found['image_size'] = (
      size
      if size and not any(s % stride for s in size)
      else ((224, 224) if 224 % stride == 0 else (14 * stride, 14 * stride))
    )
  eva = style['scale'] == 'gamma_{}'
  rotary = args.get('use_rot_pos_emb', True)
  if style['glu'] == 'w123' or (eva and rotary and _is_dinov3(name, args, found, has)):
    found |= dict(rope='unit', rope_base=float(args.get('rope_temperature') or 100.0))
    if not name:
      found['eps'] = 1e-5
  elif eva and not rows and args.get('use_rot_pos_emb', _is_rotary(name, found, has)):
    reference = args.get('ref_feat_shape', (16, 16))
    reference = pair(reference) or (0, 0)
    base = float(args.get('rope_temperature') or 10_000.0)
    found |= dict(rope='grid', rope_base=base, rope_grid=reference)
  if style['glu'] == 'w12':
    found['interpolation'] = 'bicubic_aa' if found['registers'] else 'bicubic_offset'
  # The head.
  pool = args.get('global_pool') or source.config.get('global_pool')
  pools = {'avg': 'mean', 'map': 'map', 'token': 'token'}
  if pool and pool not in pools:
    raise RunError(f'{source.where}: pooling {pool!r} is not supported')
  if has('attn_pool.latent'):
    found['pool'] = 'map'
  elif pool:
    found['pool'] = pools[pool]
  else:
    # What timm does if it is not told otherwise.
    dinov3 = eva and found.get('rope') == 'unit'
    mean = has('fc_norm.weight') or not found['class_token'] or dinov3
    found['pool'] = 'mean' if mean else 'token'
  found['pool_norm'] = has('fc_norm.weight')
  if has('head.weight'):
    found['num_classes'] = source.shape('head.weight', 2)[0]
  if has('pre_logits.fc.weight'):
    found['representation_size'] = source.shape('pre_logits.fc.weight', 2)[0]
  config = ViTConfig(**found)
  return config, _card(source, name, given, config, meta)


def _is_dinov3(name: str, args: dict, found: dict, has: Any) -> bool:
  if 'rope_type' in args:
    return args['rope_type'] == 'dinov3'
  if name:
    return 'dinov3' in name
  # timm's DINOv3 has a class token, registers and no positions but rotary ones.
  return bool(found['class_token'] and found['registers'] and not has('pos_embed'))


def _is_rotary(name: str, found: dict, has: Any) -> bool:
  if name:
    return not name.startswith('eva_')
  # EVA, alone among these, has learned positions and a plain MLP.
  return found['mlp'] == 'swiglu' or not has('pos_embed')


def _card(source: Source, name: str, given: dict, config: ViTConfig, meta: bool) -> Card:
  mae = config.posemb == 'sincos_mae'
  mean, std = IMAGENET if meta or mae else OPENAI if config.embed_norm else INCEPTION
  card: dict[str, Any] = dict(dialect='timm', size=config.image_size, mean=mean, std=std, crop=0.9)
  if meta:
    card |= dict(dialect='dinov3' if config.rope == 'unit' else 'dinov2', crop=0.875)
  elif mae:
    card['crop'] = 0.875
  return told(source, given, card, config.num_classes)


def told(source: Source, given: Mapping[str, Any], card: dict[str, Any], classes: int) -> Card:
  """A card with what the configuration next to the weights says of images and classes.

  Args:
    source: of the model.
    given: its pretrained_cfg.
    card: what is assumed without.
    classes: that the model has.
  """
  if given.get('mean') and given.get('std'):
    card |= dict(mean=tuple(given['mean']), std=tuple(given['std']))
  if given.get('crop_pct'):
    card['crop'] = float(given['crop_pct'])
  if given.get('crop_mode') == 'squash' and card['crop'] == 1:
    card['crop'] = 0.0
  elif given.get('crop_mode', 'center') != 'center':
    source.notes.append(f'crop_mode={given["crop_mode"]!r} is not supported: a central crop')
  if given.get('interpolation') in ('bilinear', 'bicubic'):
    card['resize'] = given['interpolation']
  elif given.get('interpolation'):
    source.notes.append(f'interpolation={given["interpolation"]!r} is not supported: bicubic')
  labels = given.get('label_names') or source.config.get('label_names') or ()
  if len(labels) == classes:
    card['class_names'] = tuple(map(str, labels))
  return Card(**card)


def facts(config: Any, card: Card) -> dict[str, int]:
  """What the header of a file of Meta's dialects says, in the words of their classes.

  Raises:
    RunError: for MLPs that these cannot have.
  """
  if not isinstance(config, MaeArchitecture):
    return dict(num_heads=config.num_heads)
  (wide, mlp), (own, ours) = ((t.width, t.mlp_dim) for t in (config.encoder, config.decoder))
  if ours * wide != mlp * own:
    raise RunError(
      f'mae cannot express decoder.mlp_dim={ours}: its decoder has the mlp_ratio of the encoder, '
      f'{mlp / wide:.3g} times {own}'
    )
  return dict(
    num_heads=config.encoder.num_heads, decoder_num_heads=config.decoder.num_heads,
    norm_pix_loss=int(card.task.get('target') == 'normalized'),
  )  # fmt: skip


def style_for(config: Any, dialect: str, kind: str) -> dict[str, Any]:
  """How a model is written; for 'timm', by the kind of its form, see `forms`."""
  if dialect != 'timm':
    return dict(STYLES[dialect])
  if kind not in ('eva', 'eva-rope', 'beit'):
    return dict(STYLES['timm'])
  style = dict(STYLES['eva'])
  if kind == 'eva-rope':
    style['qkv_bias'] = 'packed'
  if config.mlp == 'swiglu' and (config.mlp_norm or config.rope == 'unit' or kind == 'beit'):
    style['glu'] = 'split'
  if config.mlp_norm and kind == 'eva':
    style['qkv'] = 'split'
  return style
