"""Checkpoints of encoder-only mask transformers: of EoMT's own code, and of transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_jax.architecture.card import Card
from vit_jax.convert import timm
from vit_jax.convert.layout import BLOCKS, Rule, Shapes, Table, To, behind, deconv, rules
from vit_jax.convert.source import IMAGENET, Source, pair
from vit_jax.core.errors import RunError
from vit_jax.models.eomt import EomtConfig
from vit_jax.models.vit import ViTConfig

BACKBONE = 'network.encoder.backbone.'
IGNORE = (
  r'(network\.)?attn_mask_probs|criterion\.empty_weight|network\.encoder\.pixel_(mean|std)'
  r'|embeddings\.position_ids'
)
# By what each calls the heads: their three layers, and what is called how in an upscaling.
_NAMES = {
  'eomt': dict(
    queries='network.q.weight', classes='network.class_head', layers='network.mask_head.{}',
    numbers=(0, 2, 4), upscale='network.upscale.{}.', norm='norm',
  ),
  'transformers': dict(
    queries='query.weight', classes='class_predictor', layers='mask_head.fc{}', numbers=(1, 2, 3),
    upscale='upscale_block.block.{}.', norm='layernorm2d',
  ),
}  # fmt: skip
# Of COCO's 133 panoptic classes the first are things.
_COCO = (133, 80)


def recognise(source: Source) -> dict[str, Any] | None:
  """Who wrote a checkpoint, and how its encoder is called; None if it has no queries for masks."""
  has = lambda names: names['queries'] in source and f'{names["classes"]}.weight' in source  # noqa: E731
  dialect = next((dialect for dialect, names in _NAMES.items() if has(names)), '')
  if not dialect:
    return None
  if dialect == 'transformers':
    return dict(dialect=dialect)
  encoder = timm.recognise(_encoder(source))
  if encoder is None:
    return None
  if encoder['scale'] == 'gamma_{}':
    raise RunError(
      f'{source.where}: files of EoMT on DINOv3 have differences to the parameters of DINOv3, and '
      'not these; files of transformers can be read'
    )
  return dict(dialect=dialect, encoder=encoder)


def _encoder(source: Source) -> Source:
  """The same of the encoder alone, where it is one of timm."""
  return dataclasses.replace(source.behind(BACKBONE, 'encoder'), computed=[])


def architecture(source: Source, style: dict[str, Any]) -> tuple[EomtConfig, Card]:
  """The model of a checkpoint, by its arrays, and what config.json says beside them."""
  given, names = source.config, _NAMES[style['dialect']]
  if style['dialect'] == 'eomt':
    encoder, _ = timm.architecture(_encoder(source), style['encoder'])
  else:
    encoder = _of_transformers(source)
  encoder = dataclasses.replace(encoder, pool='mean', num_classes=0)
  blocks = given.get('num_blocks')
  if blocks is None:
    blocks = 4 if encoder.depth > 12 else 3
    source.notes.append(f'no configuration says how many blocks see the queries; guessing {blocks}')
  upscale = names['upscale'].replace('.', r'\.').format(r'(\d+)')
  classes = source.shape(f'{names["classes"]}.weight', 2)[0] - 1
  config = EomtConfig(
    encoder, queries=source.shape(names['queries'], 2)[0], num_classes=classes,
    blocks=source.integer(blocks, 'num_blocks'), upscale=source.count(upscale),
  )  # fmt: skip
  labels = given.get('id2label') or {}
  called = tuple(str(labels.get(str(i), labels.get(i, f'class {i}'))) for i in range(classes))
  stuff = called[_COCO[1] :] if classes == _COCO[0] else ()
  mean, std = (
    tuple(source.preprocessor.get(f'image_{name}') or default)
    for name, default in zip(('mean', 'std'), IMAGENET, strict=True)
  )
  card = Card(
    style['dialect'], config.image_size, mean, std, resize='bilinear', class_names=called,
    task={'name': 'panoptic', 'mean': mean, 'std': std},
    fields={
      'image': {'kind': 'image', 'dtype': 'uint8', 'channels': encoder.in_channels},
      'panoptic': {'kind': 'panoptic', 'names': called, 'stuff': stuff},
    },
  )  # fmt: skip
  return config, card


def _of_transformers(source: Source) -> ViTConfig:
  given, has = source.config, source.__contains__
  if given.get('model_type', 'eomt') != 'eomt':
    raise RunError(f'{source.where}: model_type {given["model_type"]!r} cannot be read, only eomt')
  if given.get('hidden_act', 'gelu') != 'gelu':
    raise RunError(f'{source.where}: the activation {given["hidden_act"]!r} is not supported')
  width, channels, patch, _ = source.shape('embeddings.patch_embeddings.projection.weight', 4)
  gated = has('layers.0.mlp.gate_proj.weight')
  hidden = source.shape(f'layers.0.mlp.{"down_proj" if gated else "fc2"}.weight', 2)[1]
  rows, size = source.shape('embeddings.position_embeddings.weight', 2)[0], given.get('image_size')
  registers = source.shape('embeddings.register_tokens', 3)[1]
  image_size, _ = source.grid(rows, {'patches': 0}, patch, pair(size))
  return ViTConfig(
    '', width=width, patch_size=patch, in_channels=channels, image_size=image_size,
    depth=source.count(r'layers\.(\d+)\.'), mlp='swiglu' if gated else 'gelu', mlp_dim=hidden,
    num_heads=source.heads(width, given.get('num_attention_heads'), special={1536: 24}),
    class_token=True, posemb_tokens='patches', registers=registers,
    layerscale=1.0, eps=given.get('layer_norm_eps', 1e-6), interpolation='bicubic',
  )  # fmt: skip


def _table(config: EomtConfig, style: dict[str, Any]) -> Table:
  """From our names of the encoder to theirs."""
  if style['dialect'] == 'eomt':
    return behind(timm.table(config.encoder, style['encoder']), '', BACKBONE)
  block = 'layers.{}.'
  names: dict[str, Any] = {
    'token': 'embeddings.cls_token', 'registers': 'embeddings.register_tokens',
    'posemb': To('embeddings.position_embeddings.weight', ndim=2),
    'embed/proj': 'embeddings.patch_embeddings.projection', 'encoder/norm': 'layernorm',
    **{f'{BLOCKS}norm{i}': f'{block}norm{i}' for i in (1, 2)},
    **{f'{BLOCKS}scale{i}': f'{block}layer_scale{i}.lambda1' for i in (1, 2)},
    **{f'{BLOCKS}attn/{n}': f'{block}attention.{n[0]}_proj' for n in ('query', 'key', 'value')},
    f'{BLOCKS}attn/out': f'{block}attention.out_proj',
  }  # fmt: skip
  if config.encoder.mlp == 'swiglu':
    names |= {f'{BLOCKS}mlp/{n}': f'{block}mlp.{n}_proj' for n in ('gate', 'up', 'down')}
  else:
    names |= {f'{BLOCKS}mlp/up': f'{block}mlp.fc1', f'{BLOCKS}mlp/down': f'{block}mlp.fc2'}
  return names


def make_rules(config: EomtConfig, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read."""
  names, width = _NAMES[style['dialect']], config.encoder.width
  table: dict[str, Any] = {f'encoder/{n}': to for n, to in _table(config, style).items()}
  table |= {'queries': To(names['queries'], ndim=2), 'classes': names['classes']}
  for ours, theirs in enumerate(names['numbers']):
    table[f'mask_mlp/layer{ours}'] = names['layers'].format(theirs)
  for number in range(config.upscale):
    at, ours = names['upscale'].format(number), f'upscale{number}'
    table |= {
      f'{ours}/up/kernel': deconv(f'{at}conv1', width, width),
      f'{ours}/up/bias': f'{at}conv1.bias', f'{ours}/near': f'{at}conv2',
      f'{ours}/norm': f'{at}{names["norm"]}',
    }  # fmt: skip
  return rules(table, shapes, torch=True)
