"""Checkpoints of networks that are no transformers: timm's, BiT's, big_vision's and Mixer's own."""

from __future__ import annotations

import re
from typing import Any

from vit_jax import models
from vit_jax.architecture.backbones import (
  Backbone,
  ConvNeXtArchitecture,
  MixerArchitecture,
  ResNetArchitecture,
)
from vit_jax.architecture.card import Card
from vit_jax.convert import images, timm
from vit_jax.convert.layout import Rule, Shapes, Table, To, rules
from vit_jax.convert.source import IMAGENET, INCEPTION, Source, pair
from vit_jax.core.errors import RunError

# Counts of steps, optimizer state and statistics that no network here has.
IGNORE = r'(opt|extra|states?|step)(/.*)?|.*\.num_batches_tracked'
# By the array that tells them: the kind, and how its parameters are called. BiT's own files say
# resnet/ before everything.
MARKS = {
  'stages.0.blocks.0.conv_dw.weight': ('convnext', 'timm'),
  'stages.0.blocks.0.conv3.weight': ('resnet', 'timm'),
  'blocks.0.mlp_tokens.fc1.weight': ('mixer', 'timm'),
  'resnet/root_block/standardized_conv2d/kernel': ('resnet', 'bit'),
  'root_block/conv_root/kernel': ('resnet', 'big_vision'),
  'MixerBlock_0/token_mixing/Dense_0/kernel': ('mixer', 'big_vision'),
}
# The dialects in which each kind can be written.
WRITTEN = {'resnet': ('timm', 'big_vision'), 'convnext': ('timm',), 'mixer': ('timm', 'big_vision')}
# What timm calls those whose sizes none of its arguments can change.
_TIMM = {
  'resnet': {
    f'R{size}': f'resnetv2_{size}_bit'
    for size in ('50x1', '50x3', '101x1', '101x3', '152x2', '152x4')
  },
  'mixer': {
    f'{size}/{patch}': f'mixer_{size.lower()}{patch}_224' for size in 'SBL' for patch in (32, 16)
  },
}
# What a file of timm may have, and these kinds here have not.
_OTHERS = {
  'running statistics of batch norms': r'.*\.running_mean',
  'global response norms (ConvNeXt V2)': r'.*\.grn\..*',
  'a stem of several convolutions': r'stem\.(conv[123]|[2-9])\..*',
}


def recognise(source: Source) -> dict[str, Any] | None:
  """The kind of a network, and how its parameters are called; None if it is none of these."""
  if any('standardized_conv2d_' in name for name in source.arrays):  # numbered in some files
    source.arrays = {
      re.sub(r'standardized_conv2d_\d+', 'standardized_conv2d', name): array
      for name, array in source.arrays.items()
    }
  for mark, (kind, names) in MARKS.items():
    if mark in source:
      return dict(kind=kind, names=names)
  return None


def _resnet(config: ResNetArchitecture, names: str) -> Table:
  units = [(stage, unit) for stage, depth in enumerate(config.depths) for unit in range(depth)]
  features, classes = 4 * config.width * 2 ** (len(config.depths) - 1), config.num_classes
  if names == 'timm':
    found: dict[str, Any] = {
      'body/root': 'stem.conv', 'body/norm': 'norm', 'head/bias': 'head.fc.bias',
      'head/kernel': To('head.fc.weight', shape=(classes, features, 1, 1)),
    }  # fmt: skip
    for stage, unit in units:
      ours, theirs = f'body/stage{stage}_unit{unit}/', f'stages.{stage}.blocks.{unit}.'
      found |= {f'{ours}{n}{i}': f'{theirs}{n}{i}' for n in ('conv', 'norm') for i in (1, 2, 3)}
      found[f'{ours}proj'] = f'{theirs}downsample.conv'
    return found
  if names == 'bit':
    conv = 'standardized_conv2d'
    found = {
      'body/root': f'resnet/root_block/{conv}', 'head/bias': 'resnet/head/conv2d/bias',
      'body/norm/scale': 'resnet/group_norm/gamma', 'body/norm/bias': 'resnet/group_norm/beta',
      'head/kernel': To('resnet/head/conv2d/kernel', shape=(1, 1, features, classes)),
    }  # fmt: skip
    for stage, unit in units:
      ours, theirs = (
        f'body/stage{stage}_unit{unit}/',
        f'resnet/block{stage + 1}/unit{unit + 1:02d}/',
      )
      for i, letter in enumerate('abc', 1):
        found |= {
          f'{ours}conv{i}': f'{theirs}{letter}/{conv}',
          f'{ours}norm{i}/scale': f'{theirs}{letter}/group_norm/gamma',
          f'{ours}norm{i}/bias': f'{theirs}{letter}/group_norm/beta',
        }
      found[f'{ours}proj'] = f'{theirs}a/proj/{conv}'
    return found
  found = {
    'body/root': 'root_block/conv_root', 'body/norm': To('norm-pre-head', ndim=4), 'head': 'head'
  }  # fmt: skip
  for stage, unit in units:
    ours, theirs = f'body/stage{stage}_unit{unit}/', f'block{stage + 1}/unit{unit + 1:02d}/'
    found |= {f'{ours}conv{i}': f'{theirs}conv{i}' for i in (1, 2, 3)}
    found |= {f'{ours}norm{i}': To(f'{theirs}gn{i}', ndim=4) for i in (1, 2, 3)}
    found[f'{ours}proj'] = f'{theirs}conv_proj'
  return found


def _convnext(config: ConvNeXtArchitecture, names: str) -> Table:
  del names
  found = {
    'stage0_down': 'stem.0', 'stage0_norm': 'stem.1', 'norm': 'head.norm', 'head': 'head.fc'
  }  # fmt: skip
  for stage, depth in enumerate(config.depths):
    if stage:
      found[f'stage{stage}_norm'] = f'stages.{stage}.downsample.0'
      found[f'stage{stage}_down'] = f'stages.{stage}.downsample.1'
    for block in range(depth):
      ours, theirs = f'stage{stage}_block{block}/', f'stages.{stage}.blocks.{block}.'
      found |= {
        f'{ours}conv': f'{theirs}conv_dw', f'{ours}norm': f'{theirs}norm',
        f'{ours}mlp/up': f'{theirs}mlp.fc1', f'{ours}mlp/down': f'{theirs}mlp.fc2',
        f'{ours}scale': f'{theirs}gamma',
      }  # fmt: skip
  return found


def _mixer(config: MixerArchitecture, names: str) -> Table:
  timm_names = names == 'timm'
  found = {
    'embed/proj': 'stem.proj' if timm_names else 'stem', 'head': 'head',
    'norm': 'norm' if timm_names else 'pre_head_layer_norm',
  }  # fmt: skip
  for block in range(config.depth):
    ours = f'block{block}/'
    theirs = f'blocks.{block}.' if timm_names else f'MixerBlock_{block}/'
    found |= {
      f'{ours}norm1': theirs + ('norm1' if timm_names else 'LayerNorm_0'),
      f'{ours}norm2': theirs + ('norm2' if timm_names else 'LayerNorm_1'),
    }
    for own, over in (('tokens', 'tokens'), ('mlp', 'channels')):
      first, second = (
        (f'mlp_{over}.fc1', f'mlp_{over}.fc2') if timm_names else
        (f'{over.removesuffix("s")}_mixing/Dense_0', f'{over.removesuffix("s")}_mixing/Dense_1')
      )  # fmt: skip
      found |= {f'{ours}{own}/up': theirs + first, f'{ours}{own}/down': theirs + second}
  return found


_TABLES = {'resnet': _resnet, 'convnext': _convnext, 'mixer': _mixer}


def make_rules(config: Any, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a network is read and written."""
  table = _TABLES[style['kind']](config, style['names'])
  return rules(table, shapes, torch=style['names'] == 'timm')


def architecture(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """The network of a checkpoint, by its arrays and by what timm saves with them."""
  kind, names = style['kind'], style['names']
  given = source.config.get('pretrained_cfg') or source.config
  for what, pattern in _OTHERS.items() if names == 'timm' else ():
    if any(re.fullmatch(pattern, name) for name in source.arrays):
      raise RunError(f'{source.where} has {what}, which is not supported')
  args = source.config.get('model_args') or {}
  hint = source.hints.get('image_size')
  found: dict[str, Any] = dict(variant='')
  found['image_size'] = (
    pair(args.get('img_size')) or pair((given.get('input_size') or [0])[1:])
    or (hint if isinstance(hint, tuple) else (224, 224))
  )  # fmt: skip
  mean, std = INCEPTION
  card: dict[str, Any] = dict(resize='bicubic', crop=0.875)
  if kind == 'resnet':
    _of_resnet(source, names, found)
    card['resize'] = 'bilinear'
  elif kind == 'convnext':
    _of_convnext(source, found)
    mean, std = IMAGENET
  else:
    _of_mixer(source, names, found)
    # As its authors trained it, or as timm computes it.
    found['mlp'] = 'gelu' if names == 'timm' else 'gelu_tanh'
  config = models.config_of(kind)(**found)
  card |= dict(dialect=names, size=config.image_size, mean=mean, std=std)
  return config, timm.told(source, given, card, config.num_classes or 0)


def _classes(source: Source, name: str, axis: int) -> int:
  return source.arrays[name].shape[axis] if name in source else 0


def _of_resnet(source: Source, names: str, found: dict[str, Any]) -> None:
  torch = names == 'timm'
  root = {
    'timm': 'stem.conv.weight', 'bit': 'resnet/root_block/standardized_conv2d/kernel',
    'big_vision': 'root_block/conv_root/kernel',
  }[names]  # fmt: skip
  head = {
    'timm': 'head.fc.weight', 'bit': 'resnet/head/conv2d/kernel', 'big_vision': 'head/kernel'
  }[names]  # fmt: skip
  if torch and 'norm.weight' not in source:
    raise RunError(f'{source.where} is no ResNet of version 2: it has no norm before its head')
  shape = source.shape(root, 4)
  found['in_channels'], found['width'] = (shape[1], shape[0]) if torch else shape[2:]
  found['num_classes'] = _classes(source, head, 0 if torch else -1)
  if torch:
    at = r'stages\.{}\.blocks\.(\d+)\.'
    stages = source.count(r'stages\.(\d+)\.')
    found['depths'] = tuple(source.count(at.format(stage)) for stage in range(stages))
    return
  at = '{}block{}/unit(\\d+)/'
  units = []
  for stage in range(1, 9):
    pattern = at.format('resnet/' if names == 'bit' else '', stage)
    numbers = {int(match[1]) for n in source.arrays if (match := re.match(pattern, n))}
    units += [len(numbers)] if numbers else []
  found['depths'] = tuple(units)


def _of_convnext(source: Source, found: dict[str, Any]) -> None:
  _, channels, window, _ = source.shape('stem.0.weight', 4)
  stages = source.count(r'stages\.(\d+)\.')
  at = r'stages\.{}\.blocks\.(\d+)\.'
  widths = [source.shape(f'stages.{s}.blocks.0.conv_dw.weight', 4)[0] for s in range(stages)]
  found |= dict(
    in_channels=channels, patch_size=window, widths=tuple(widths),
    depths=tuple(source.count(at.format(stage)) for stage in range(stages)),
    kernel=source.shape('stages.0.blocks.0.conv_dw.weight', 4)[2],
    layerscale=1e-6 if 'stages.0.blocks.0.gamma' in source else 0.0,
    num_classes=_classes(source, 'head.fc.weight', 0),
  )  # fmt: skip


def _of_mixer(source: Source, names: str, found: dict[str, Any]) -> None:
  torch = names == 'timm'
  shape = source.shape('stem.proj.weight' if torch else 'stem/kernel', 4)
  patch, channels, width = (shape[2], shape[1], shape[0]) if torch else shape[1:]
  at, end = (
    ('blocks.0.mlp_{}.fc1', '.weight') if torch else ('MixerBlock_0/{}_mixing/Dense_0', '/kernel')
  )
  tokens, features = (
    source.shape(at.format(over) + end, 2)
    for over in (('tokens', 'channels') if torch else ('token', 'channel'))
  )
  if torch:
    tokens, features = tokens[::-1], features[::-1]
  pattern = r'blocks\.(\d+)\.' if torch else r'MixerBlock_(\d+)/'
  size, _ = source.grid(tokens[0], {'patches': 0}, patch, found['image_size'])
  found |= dict(
    width=width, patch_size=patch, in_channels=channels, depth=source.count(pattern),
    tokens_mlp_dim=tokens[1], mlp_dim=features[1], image_size=size,
    num_classes=_classes(source, 'head.weight' if torch else 'head/kernel', 0 if torch else 1),
  )  # fmt: skip


def style_for(config: Backbone, dialect: str) -> dict[str, Any]:
  """How a network is written in 'timm' or 'big_vision'; raises RunError for any other dialect."""
  if dialect not in WRITTEN.get(config.kind, ()):
    raise RunError(f'{dialect} has no models of the kind {config.kind}')
  if isinstance(config, MixerArchitecture):
    wanted = 'gelu' if dialect == 'timm' else 'gelu_tanh'
    if config.mlp != wanted:
      raise RunError(f'{dialect} cannot express mlp={config.mlp!r} of a mixer')
  return dict(kind=config.kind, names=dialect)


def sidecar(config: Any, card: Card) -> dict[str, Any]:
  """The config.json with which timm makes a network; raises RunError if it has none like it."""
  args: dict[str, Any] = dict(in_chans=config.in_channels)
  if isinstance(config, ConvNeXtArchitecture):
    # After patches of two pixels timm halves the sides once more.
    if len(config.depths) != 4 or config.patch_size == 2:
      raise RunError(
        f'timm cannot express depths={config.depths} and patch_size={config.patch_size} of a '
        'convnext: it has four stages, and other patches than of 2 pixels'
      )
    name, features = 'convnext_tiny', config.widths[-1]
    args |= dict(
      depths=list(config.depths), dims=list(config.widths), patch_size=config.patch_size,
      kernel_sizes=config.kernel, ls_init_value=config.layerscale or None,
    )  # fmt: skip
    first, classifier = 'stem.0', 'head.fc'
  elif config.name not in _TIMM.get(config.kind, {}):
    known = ', '.join(_TIMM[config.kind])
    raise RunError(f'timm has no {config.kind} of these sizes, only {known}')
  elif isinstance(config, ResNetArchitecture):
    name, features = _TIMM['resnet'][config.name], 4 * config.width * 8
    first, classifier = 'stem.conv', 'head.fc'
  else:
    name, features = _TIMM['mixer'][config.name], config.width
    args['img_size'] = list(config.image_size)
    first, classifier = 'stem.proj', 'head'
  return {
    'architecture': name, 'num_classes': config.num_classes, 'num_features': features,
    'model_args': args,
    **({'label_names': list(card.class_names)} if card.class_names else {}),
    'pretrained_cfg': {
      'num_classes': config.num_classes, 'classifier': classifier, 'first_conv': first,
      'fixed_input_size': isinstance(config, MixerArchitecture), **images.for_timm(card),
    },
  }  # fmt: skip
