"""Checkpoints of Hugging Face transformers: weights and config.json, in their old and new names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.architecture import MaskedArchitecture, TwoTowersArchitecture, YolosArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import masked, reading, yolos
from vit_jax.convert.source import IMAGENET, INCEPTION, OPENAI, Source, pair
from vit_jax.convert.transformers_names import TOWERS
from vit_jax.convert.transformers_names import make_rules as make_rules
from vit_jax.core.errors import RunError, suggest
from vit_jax.models.masked import MaeConfig, MaskedConfig
from vit_jax.models.text import TextConfig
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.models.yolos import YolosConfig

IGNORE = r'(.*\.)?(position_ids|relative_position_index|inv_freq)'
ACTIVATIONS = {
  'gelu': 'gelu', 'gelu_python': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'quick_gelu': 'quick_gelu', 'silu': 'swiglu',
}  # fmt: skip
# By model_type: the name of the model inside the ones with a head, what images it was trained on.
TYPES: dict[str, dict[str, Any]] = {
  'vit': dict(inner='vit.', stats=INCEPTION, resize='bilinear', crop=0.0),
  'deit': dict(inner='deit.', stats=IMAGENET, resize='bicubic', crop=0.875),
  'beit': dict(inner='beit.', stats=INCEPTION, resize='bicubic', crop=0.875),
  'dinov2': dict(inner='dinov2.', stats=IMAGENET, resize='bicubic', crop=0.875),
  'dinov2_with_registers': dict(
    inner='dinov2_with_registers.', stats=IMAGENET, resize='bicubic', crop=0.875
  ),
  'dinov3_vit': dict(inner='model.', stats=IMAGENET, resize='bilinear', crop=0.0),
  'vit_mae': dict(inner='vit.', stats=IMAGENET, resize='bicubic', crop=0.875),
  'yolos': dict(inner='vit.', stats=IMAGENET, resize='bilinear', crop=0.0),
  'clip': dict(stats=OPENAI, resize='bicubic', crop=1.0),
  'siglip': dict(stats=INCEPTION, resize='bicubic', crop=0.0),
  'siglip2': dict(stats=INCEPTION, resize='bilinear', crop=0.0),
}
# As version 5 saves layers of MAE's decoder, taking them for an encoder's.
_DECODER = re.compile(r'^(decoder\.decoder_)encoder\.layer\.')
# As version 5 has positions between layers in memory.
_MIDDLE = re.compile(r'(?<=encoder\.)interpolation\.(mid_position_embeddings)$')
VISION_ONLY = {f'{tower}_vision_model': tower for tower in TOWERS}


def recognise(source: Source) -> dict[str, Any] | None:
  """The style of a checkpoint of transformers: type, old or new names, prefix; None if none."""
  kind = source.config.get('model_type')
  source.arrays = {_DECODER.sub(r'\1layers.', name): a for name, a in source.arrays.items()}
  names = source.arrays
  for prefix in ('vision_model.', ''):
    if f'{prefix}embeddings.patch_embedding.weight' not in source:
      continue
    two = 'text_model.embeddings.token_embedding.weight' in source
    kind = VISION_ONLY.get(str(kind), kind) or _guess_tower(source, prefix)
    if kind not in TOWERS:
      raise RunError(f'{source.where}: unknown model_type {kind!r}: {suggest(kind, TOWERS)}')
    return dict(kind=kind, two=two, old=True, prefix=prefix)
  embedded = [n for n in names if n.endswith('embeddings.cls_token')]
  if len(embedded) != 1 or kind in VISION_ONLY:
    return None
  if kind is None:
    kind = _guess(source)
  elif kind not in TYPES:
    raise RunError(f'{source.where}: unknown model_type {kind!r}: {suggest(kind, TYPES)}')
  old = any('.attention.attention.' in n for n in names)
  prefix = embedded[0].removesuffix('embeddings.cls_token')
  if kind == 'dinov3_vit':
    old = any(n.startswith(f'{prefix}layer.') for n in names)
  if kind == 'yolos':
    source.arrays = {_MIDDLE.sub(r'\1', name): a for name, a in source.arrays.items()}
  return dict(kind=kind, two=False, old=old, prefix=prefix, filled=_filled(source, prefix))


def _filled(source: Source, prefix: str) -> str:
  """What a model says of hidden patches: 'decoded' or plain 'pixels', 'codes'; '' for none."""
  if 'decoder.decoder_embed.weight' in source:
    return 'decoded'
  if f'{prefix}embeddings.mask_token' not in source:
    return ''
  heads = {'decoder.0.weight': 'pixels', 'lm_head.weight': 'codes'}
  return next((filled for head, filled in heads.items() if head in source), '')


def _guess_tower(source: Source, prefix: str) -> str:
  """The same for towers of two."""
  if f'{prefix}pre_layrnorm.weight' in source:
    return 'clip'
  flat = len(source.shape(f'{prefix}embeddings.patch_embedding.weight')) == 2
  return 'siglip2' if flat else 'siglip'


def _guess(source: Source) -> str:
  """The model_type of weights without a config.json."""
  has = lambda part: any(part in name for name in source.arrays)  # noqa: E731
  if has('decoder.decoder_embed.'):
    return 'vit_mae'
  if has('embeddings.detection_tokens'):
    return 'yolos'
  if has('.distillation_token'):
    return 'deit'
  if has('lambda_1'):
    return 'beit'
  if has('register_tokens'):
    return 'dinov2_with_registers' if has('position_embeddings') else 'dinov3_vit'
  return 'dinov2' if has('layer_scale1') else 'vit'


def architecture(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """The model of a checkpoint, by its config.json, and where that is silent by its arrays."""
  kind, given = style['kind'], source.config
  if kind in TOWERS:
    return _towers(source, style)
  if style['filled']:
    return _masked(source, style)
  if kind == 'yolos' and not style.get('bare'):
    return _yolos(source, style)
  prefix, has = style['prefix'], source.__contains__
  embed = f'{prefix}embeddings.patch_embeddings.' + ('' if kind == 'dinov3_vit' else 'projection.')
  width, channels, patch, _ = source.shape(f'{embed}weight', 4)
  layers = max(
    source.count(re.escape(prefix) + at + r'layers?\.(\d+)\.')
    for at in ('', r'encoder\.', r'model\.')
  )
  dino = kind.startswith('dino')
  found: dict[str, Any] = dict(
    variant='', width=width, patch_size=patch, in_channels=channels, depth=layers,
    num_heads=source.heads(width, given.get('num_attention_heads'),
                           special={1280: 20} if kind == 'dinov3_vit' else {1536: 24}),
    class_token=True, pool='token', interpolation='bicubic',
    eps=given.get('layer_norm_eps', 1e-5 if kind == 'dinov3_vit' else 1e-6 if dino else 1e-12),
    mlp=ACTIVATIONS.get(given.get('hidden_act', 'gelu'), ''),
    mask_token=has(f'{prefix}embeddings.mask_token'),
    distilled=has(f'{prefix}embeddings.distillation_token'),
  )  # fmt: skip
  first = next(n for n in source.arrays if re.match(re.escape(prefix) + r'.*layers?\.0\.', n))
  base = re.match(r'.*?layers?\.0\.', first[len(prefix) :])
  base = prefix + (base[0] if base else '')
  names = {
    'down': (
      'output.dense.weight', 'mlp.fc2.weight', 'mlp.weights_out.weight', 'mlp.down_proj.weight'
    ),
    'gate': ('mlp.weights_in.weight', 'mlp.gate_proj.weight'),
  }  # fmt: skip
  down = next((base + n for n in names['down'] if has(base + n)), base + 'mlp.fc2.weight')
  found['mlp_dim'] = source.shape(down, 2)[1]
  gated = any(has(base + n) for n in names['gate'])
  if gated and dino and not kind.startswith('dinov2') and found['mlp'] != 'swiglu' and given:
    raise RunError(f'{source.where}: a gated MLP with {given.get("hidden_act")!r} is not supported')
  if gated:
    found['mlp'] = 'swiglu'
  elif found['mlp'] in ('swiglu', ''):
    raise RunError(f'{source.where}: hidden_act={given.get("hidden_act")!r} is not supported')
  without = []
  for part in ('query', 'key', 'value'):
    old_name, new_name = f'attention.attention.{part}.bias', f'attention.{part[0]}_proj.bias'
    if not has(base + old_name) and not has(base + new_name):
      without.append(part)
  if not has(f'{base}attention.output.dense.bias') and not has(f'{base}attention.o_proj.bias'):
    without.append('out')
  if not has(
    down.replace('weight', 'bias').replace('weights_out.bias', 'weights_out.bias')
  ) and not has(down.removesuffix('weight') + 'bias'):
    without.append('mlp')
  found['no_bias'] = ','.join(without)
  if has(f'{base}layer_scale1.lambda1') or has(f'{base}lambda_1'):
    found['layerscale'] = float(
      given.get('layerscale_value') or given.get('layer_scale_init_value') or 1.0
    )
  if has(f'{prefix}embeddings.register_tokens'):
    found['registers'] = source.shape(f'{prefix}embeddings.register_tokens', 3)[1]
  if kind == 'dinov2_with_registers':
    found['interpolation'] = 'bicubic_aa'
  # Positions.
  size = pair(given.get('image_size'))
  posemb = f'{prefix}embeddings.position_embeddings'
  if has(posemb):
    rows, before = source.shape(posemb, 3)[1], {'class': 1 + found['distilled']}
    if kind == 'yolos':
      found['queries'] = source.shape(f'{prefix}embeddings.detection_tokens', 3)[1]
      before = {'all': 1 + found['queries']}
    found['image_size'], found['posemb_tokens'] = source.grid(rows, before, patch, size)
    if source.fixed(posemb, tuple(side // patch for side in found['image_size'])):
      found['posemb'] = 'sincos_mae'
      source.computed.append(posemb)
  else:
    found |= dict(posemb='none', image_size=size or (14 * patch, 14 * patch))
  if kind == 'dinov3_vit':
    found |= dict(rope='unit', rope_base=_theta(given))
  if kind == 'beit':
    tables = [n for n in source.arrays if n.endswith('relative_position_bias_table')]
    if tables:
      shared = len(tables) == 1 and ('shared_' in tables[0] or 'encoder.relative' in tables[0])
      found['relative_bias'] = 'shared' if shared else 'layer'
      rows = source.shape(tables[0], 2)[0]
      side = int(((rows - 3) ** 0.5 + 1) // 2) * patch
      if not has(posemb):
        found['image_size'] = size or (side, side)
      if len(set(found['image_size'])) > 1:  # their height and width are mixed up there
        raise RunError(f'{source.where}: relative positions of images that are not square')
    if has(f'{prefix}pooler.layernorm.weight'):
      found |= dict(pool='mean', pool_norm=True)
  # The head.
  heads = {'classifier.weight', 'cls_classifier.weight'} & set(source.arrays)
  for head in heads:
    classes, inputs = source.shape(head, 2)
    found['num_classes'] = classes
    if kind.startswith('dinov2') and inputs == 2 * width:
      found['pool'] = 'token_mean'
  if has(f'{prefix}pooler.dense.weight'):
    found['representation_size'] = source.shape(f'{prefix}pooler.dense.weight', 2)[0]
    if given.get('pooler_act', 'tanh') != 'tanh':
      raise RunError(f'{source.where}: pooler_act={given["pooler_act"]!r} is not supported')
  _check_config(source, found)
  config = ViTConfig(**found)
  return config, _card(source, kind, config.image_size, config.num_classes)


def _masked(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """A model that fills in hidden patches."""
  filled, given = style['filled'], source.config
  encoder, card = architecture(source.inside('encoder'), {**style, 'filled': ''})
  if filled == 'codes':
    if f'{style["prefix"]}layernorm.weight' in source:
      raise RunError(
        f'{source.where} has two norms behind its last block (use_mean_pooling=false), which is '
        'not supported'
      )
    return MaskedConfig(encoder, source.shape('lm_head.weight', 2)[0]), card
  if filled == 'pixels':
    outputs, pixels = source.shape('decoder.0.weight', 4)[0], encoder.patch_size**2
    if outputs != pixels * encoder.in_channels:
      raise RunError(
        f'{source.where} predicts {outputs} numbers for each patch, which has {pixels} pixels of '
        f'{encoder.in_channels} channels: only encoder_stride=patch_size is supported'
      )
    # As in SimMIM.
    return MaskedConfig(encoder, outputs), masked.trained(
      card, ratio=0.6, target='pixels', loss_of='l1'
    )
  mine, at = source.inside('decoder'), 'decoder.decoder_'
  width, mlp = source.shape(f'{at}embed.weight', 2)[0], 'intermediate.dense'
  mlp = mlp if style['old'] else 'mlp.fc1'
  bias = 'attention.attention.query.bias' if style['old'] else 'attention.q_proj.bias'
  found: dict[str, Any] = dict(
    variant='', width=width, depth=source.count(re.escape(at) + r'layers\.(\d+)\.'),
    mlp_dim=source.shape(f'{at}layers.0.{mlp}.weight', 2)[0], eps=encoder.eps, mlp=encoder.mlp,
    num_heads=mine.heads(width, given.get('decoder_num_attention_heads'), special=masked.HEADS),
    interpolation='bicubic', no_bias='' if f'{at}layers.0.{bias}' in source else 'query,key,value',
    **masked.decoder_positions(mine, f'{at}pos_embed', encoder.resolve()),
  )  # fmt: skip
  _check_config(source, found, DECODER_SIZES)
  normalized = given.get('norm_pix_loss', False)
  card = masked.trained(
    card,
    ratio=float(given.get('mask_ratio', 0.75)),
    target='normalized' if normalized else 'pixels',
  )
  return MaeConfig(encoder, source.shape(f'{at}pred.weight', 2)[0], ViTConfig(**found)), card


def _yolos(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """A detector that is nothing but a ViT."""
  encoder, card = architecture(source.inside('encoder'), {**style, 'bare': True})
  if encoder.posemb == 'none':
    raise RunError(f'{source.where} has no learned positions, which every published YOLOS has')
  classes = source.shape('class_labels_classifier.layers.2.weight', 2)[0] - 1
  # What its preprocessor says of sizes is of sides, whatever the shape of images.
  card = _card(source, 'yolos', encoder.image_size, classes)
  card = yolos.detecting(dataclasses.replace(card, size=encoder.image_size))
  middle = f'{style["prefix"]}encoder.mid_position_embeddings' in source
  return YolosConfig(encoder, classes, middle=middle), card


def _theta(given: dict[str, Any]) -> float:
  rope = given.get('rope_parameters') or {}
  return float(given.get('rope_theta') or rope.get('rope_theta') or 100.0)


# Names in config.json of what arrays say, too.
SIZES = {
  'hidden_size': 'width', 'num_hidden_layers': 'depth', 'patch_size': 'patch_size',
  'num_channels': 'in_channels', 'intermediate_size': 'mlp_dim',
}  # fmt: skip
DECODER_SIZES = {
  'decoder_hidden_size': 'width', 'decoder_num_hidden_layers': 'depth',
  'decoder_intermediate_size': 'mlp_dim',
}  # fmt: skip


def _check_config(source: Source, found: dict[str, Any], sizes: Mapping[str, str] = SIZES) -> None:
  """Raises RunError where config.json contradicts the arrays."""
  for name, ours in sizes.items():
    value = source.config.get(name)
    if isinstance(value, int) and value != found[ours]:
      raise RunError(
        f'{source.where}: config.json says {name}={value}, but the weights have {found[ours]}'
      )


def _towers(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  kind, has = style['kind'], source.__contains__
  given = source.config
  vision = given.get('vision_config', {} if style['two'] else given)
  v = style['prefix']
  embed = source.shape(f'{v}embeddings.patch_embedding.weight')
  depth = source.count(re.escape(v) + r'encoder\.layers\.(\d+)\.')
  width = embed[0]
  eps = 1e-5 if kind == 'clip' else 1e-6
  found: dict[str, Any] = dict(
    variant='', width=width, depth=depth,
    num_heads=source.heads(width, vision.get('num_attention_heads')),
    mlp_dim=source.shape(f'{v}encoder.layers.0.mlp.fc1.weight', 2)[0],
    mlp=_activation(source, vision, kind), eps=vision.get('layer_norm_eps', eps),
    interpolation='bilinear_aa' if kind == 'siglip2' else 'bicubic',
    class_token=kind == 'clip', pool='token' if kind == 'clip' else 'map',
    embed_norm=has(f'{v}pre_layrnorm.weight'),
  )  # fmt: skip
  if kind == 'siglip2' and len(embed) == 2:
    patch = vision.get('patch_size') or round((embed[1] / 3) ** 0.5)
    found['in_channels'] = embed[1] // patch**2
  else:
    patch, found['in_channels'] = (
      source.shape(f'{v}embeddings.patch_embedding.weight', 4)[2],
      embed[1],
    )
  found['patch_size'] = patch
  rows = source.shape(f'{v}embeddings.position_embedding.weight', 2)[0]
  size = None if kind == 'siglip2' else pair(vision.get('image_size'))
  prefix = {'class': 1} if kind == 'clip' else {'class': 0}
  found['image_size'], _ = source.grid(rows, prefix, patch, size)
  if kind == 'clip':
    found['no_bias'] = 'embed,head'
    if has('visual_projection.weight'):
      found['num_classes'] = source.shape('visual_projection.weight', 2)[0]
  elif has('classifier.weight'):  # of the mean of the patches; the other head is not used
    found |= dict(pool='mean', num_classes=source.shape('classifier.weight', 2)[0])
    head = [name for name in source.arrays if name.startswith(f'{v}head.')]
    source.dropped += head
    source.arrays = {name: a for name, a in source.arrays.items() if name not in head}
  elif not has(f'{v}head.probe'):
    found |= dict(pool='mean')
  _check_config(Source(source.where, {}, vision), found)
  image = ViTConfig(**found)
  card = _card(source, kind, image.image_size, 0 if kind == 'clip' else image.num_classes)
  if not style['two']:
    return image, card
  words = given.get('text_config', {})
  vocab, text_width = source.shape('text_model.embeddings.token_embedding.weight', 2)
  head = 'text_projection.weight' if kind == 'clip' else 'text_model.head.weight'
  eot = words.get('eos_token_id', 2 if kind == 'clip' else -1)
  text = TextConfig(
    variant='', vocab_size=vocab,
    width=text_width, depth=source.count(r'text_model\.encoder\.layers\.(\d+)\.'),
    num_heads=source.heads(text_width, words.get('num_attention_heads'), tower='text'),
    mlp_dim=source.shape('text_model.encoder.layers.0.mlp.fc1.weight', 2)[0],
    mlp=_activation(source, words, kind), eps=words.get('layer_norm_eps', eps),
    context_length=source.shape('text_model.embeddings.position_embedding.weight', 2)[0],
    num_classes=source.shape(head, 2)[0],
    causal=kind == 'clip', pool='eot' if kind == 'clip' else 'last',
    # 2 is what old configurations say by mistake; the token is then the largest number.
    eot=-1 if kind != 'clip' or eot == 2 else eot, no_bias='head' if kind == 'clip' else '',
  )  # fmt: skip
  length = text.context_length
  card = reading.trained(card, source, kind, length=length, sigmoid=kind != 'clip')
  return TwoTowersConfig('', image, text, logit_bias=kind != 'clip'), card


def _activation(source: Source, given: dict[str, Any], kind: str) -> str:
  name = given.get('hidden_act', 'quick_gelu' if kind == 'clip' else 'gelu_pytorch_tanh')
  if name not in ACTIVATIONS or name == 'silu':
    raise RunError(f'{source.where}: hidden_act={name!r} is not supported')
  return ACTIVATIONS[name]


def _card(source: Source, kind: str, size: tuple[int, ...], classes: int) -> Card:
  known, given = TYPES[kind], source.preprocessor
  crop = given.get('do_center_crop', bool(known['crop']))
  inner, outer = pair(given.get('crop_size')), pair(given.get('size'))
  share = known['crop']
  if given:
    share = min(inner) / min(outer) if crop and inner and outer else 1.0 if crop else 0.0
  resample = {2: 'bilinear', 3: 'bicubic'}.get(given.get('resample', 0), known['resize'])
  if given.get('resample', 2) not in (2, 3):
    source.notes.append(f'resample={given["resample"]!r} is not supported: {resample} instead')
  labels = source.config.get('id2label') or {}
  names = tuple(str(labels.get(str(i), labels.get(i, i))) for i in range(classes))
  if len(labels) != classes or names == tuple(f'LABEL_{i}' for i in range(classes)):
    names = ()
  mean, std = known['stats']
  return Card(
    dialect='transformers', size=(inner if crop else outer) or size,
    mean=tuple(given.get('image_mean') or mean), std=tuple(given.get('image_std') or std),
    resize=str(resample), crop=float(share), class_names=names,
  )  # fmt: skip


def style_for(config: Any, kind: str, *, old: bool) -> dict[str, Any]:
  """How a model is written.

  Args:
    config: of the model.
    kind: of its form, see `forms`; '' for two towers.
    old: in the names before version 5 of transformers.
  """
  if isinstance(config, TwoTowersArchitecture):
    kind = 'clip' if config.image.embed_norm else _siglip(config.image)
    return dict(kind=kind, two=True, old=True, prefix='vision_model.')
  if isinstance(config, YolosArchitecture) and not config.nothing:
    raise RunError('transformers cannot express nothing=False: its YOLOS has a logit of no object')
  if isinstance(config, MaskedArchitecture | YolosArchitecture):
    return dict(kind=kind, two=False, old=old, prefix=TYPES[kind]['inner'])
  if kind in TOWERS:
    prefix = 'vision_model.' if old or config.num_classes else ''
    return dict(kind='clip' if kind == 'clip' else _siglip(config), two=False, old=True,
                prefix=prefix)  # fmt: skip
  prefix = TYPES[kind]['inner'] if config.num_classes and kind != 'dinov3_vit' else ''
  return dict(kind=kind, two=False, old=old, prefix=prefix)


def _siglip(config: Any) -> str:
  # Among these only the models that keep aspect ratios (NaFlex) resize positions like this.
  naflex = config.pool == 'map' and config.interpolation == 'bilinear_aa'
  return 'siglip2' if naflex else 'siglip'
