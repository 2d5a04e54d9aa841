"""Checkpoints of DETR, of transformers and of Meta's code: their decoder and what reads it.

What is before the decoder there, a ResNet and an encoder behind it, has no counterpart: a ViT is in
its place here. Of what makes masks, all but the layers that read the ResNet is read.
"""

from __future__ import annotations

import re
from typing import Any

from vit_jax.architecture.card import Card
from vit_jax.convert.layout import BLOCKS, Rule, Shapes, To, rules
from vit_jax.convert.source import IMAGENET, Source
from vit_jax.convert.transformers import ACTIVATIONS
from vit_jax.core.errors import RunError
from vit_jax.models.detr import DecoderConfig

IGNORE = r'criterion\.empty_weight'
# Names of version 5 of transformers in memory, and those in files.
_OLD = (
  (r'^(model\.decoder\..*)\.o_proj\.', r'\1.out_proj.'),
  (r'^(model\.decoder\..*)\.mlp\.fc', r'\1.fc'),
  (r'^(bbox_attention\..)_proj\.', r'\1_linear.'),
  (r'^mask_head\.conv(\d)\.conv\.', r'mask_head.lay\1.'),
  (r'^mask_head\.conv(\d)\.norm\.', r'mask_head.gn\1.'),
  (r'^mask_head\.fpn_stages\.(\d)\.refine\.conv\.', r'mask_head.lay+\1.'),
  (r'^mask_head\.fpn_stages\.(\d)\.refine\.norm\.', r'mask_head.gn+\1.'),
  (r'^mask_head\.fpn_stages\.(\d)\.fpn_adapter\.', r'mask_head.adapter\1.'),
  (r'^mask_head\.output_conv\.', 'mask_head.out_lay.'),
)
# The stages of a pyramid are counted from 0 there, the layers in them from 3 in files.
_STAGE = re.compile(r'(?<=^mask_head\.)(lay|gn)\+(\d)')
_META, _THEIRS = 'query_embed.weight', 'model.query_position_embeddings.weight'
# Of what makes masks; `adapter1` to `adapter3` bring features of a ResNet to its width.
_MASKS = r'bbox_attention\.|mask_head\.(?!adapter)'
_ATTENTION = 'bbox_attention.q_linear.weight'
# What is called 'detr.NAME' in files with masks.
_INNER = re.compile(r'^detr\.')


def recognise(source: Source) -> dict[str, Any] | None:
  """Whose code wrote a checkpoint; None if it is no DETR. Only the decoder is left of it."""
  kind = source.config.get('model_type', 'detr')
  arrays = {_INNER.sub('', name): array for name, array in source.arrays.items()}
  dialect = 'detr' if _META in arrays else 'transformers' if _THEIRS in arrays else ''
  if not dialect or kind != 'detr':
    return None
  if dialect == 'transformers':
    arrays = {_old(name): array for name, array in arrays.items()}
    own = r'model\.(decoder|query_position)|class_labels_classifier|bbox_predictor'
  else:
    own = r'transformer\.decoder|query_embed|class_embed|bbox_embed'
  if source.hints.get('masks', True):
    own += f'|{_MASKS}'
  source.arrays = {name: array for name, array in arrays.items() if re.match(own, name)}
  masks = _ATTENTION in source
  source.notes.append(
    f'the decoder and its heads are read; the {len(arrays) - len(source.arrays)} arrays of the '
    f'network and the encoder before it{", and of what brings their features to masks," * masks} '
    'are not: a ViT is in their place here'
  )
  return dict(dialect=dialect)


def _old(name: str) -> str:
  """What an array of version 5 of transformers in memory is called in files."""
  for new, old in _OLD:
    name = re.sub(new, old, name)
  return _STAGE.sub(lambda found: f'{found[1]}{int(found[2]) + 3}', name)


def architecture(source: Source, style: dict[str, Any]) -> tuple[DecoderConfig, Card]:
  """The decoder of a checkpoint, by its arrays and, if there is one, its config.json."""
  given, ours = source.config, style['dialect'] == 'detr'
  queries, width = source.shape(_META if ours else _THEIRS, 2)
  layers = 'transformer.decoder.layers' if ours else 'model.decoder.layers'
  head = 'class_embed.weight' if ours else 'class_labels_classifier.weight'
  up = f'{layers}.0.' + ('linear1.weight' if ours else 'fc1.weight')
  act = given.get('activation_function', 'relu')
  if act not in (*ACTIVATIONS, 'relu') or act == 'silu':
    raise RunError(f'{source.where}: activation_function={act!r} is not supported')
  classes = source.shape(head, 2)[0] - 1
  config = DecoderConfig(
    width=width, depth=source.count(re.escape(layers) + r'\.(\d+)\.'), queries=queries,
    mlp_dim=source.shape(up, 2)[0], mlp=ACTIVATIONS.get(act, 'relu'), num_classes=classes,
    num_heads=source.heads(width, given.get('decoder_attention_heads'), special={256: 8}),
    masks=_ATTENTION in source,
  )  # fmt: skip
  labels = given.get('id2label') or {}
  names = tuple(str(labels.get(str(i), i)) for i in range(classes)) if labels else ()
  return config, Card(style['dialect'], (800, 1344), *IMAGENET, 'bilinear', class_names=names)


def make_rules(config: DecoderConfig, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a decoder is read."""
  table: dict[str, Any]
  if style['dialect'] == 'detr':
    at = 'transformer.decoder.layers.{}.'
    table = _blocks(
      at, ('self_attn', 'multihead_attn'), 'out_proj', ('norm1', 'norm2', 'norm3'),
      ('linear1', 'linear2'),
    )  # fmt: skip
    for name, theirs in (('before1/attn', 'self_attn'), ('attn', 'multihead_attn')):
      for kind, suffix in (('kernel', 'weight'), ('bias', 'bias')):
        table[f'{BLOCKS}{name}/query|key|value/{kind}'] = f'{at}{theirs}.in_proj_{suffix}'
    table |= {'norm': 'transformer.decoder.norm', 'queries': To(_META, ndim=2)}
    table['head'], boxes = 'class_embed', 'bbox_embed'
  else:
    at = 'model.decoder.layers.{}.'
    norms = ('self_attn_layer_norm', 'encoder_attn_layer_norm', 'final_layer_norm')
    table = _blocks(at, ('self_attn', 'encoder_attn'), 'out_proj', norms, ('fc1', 'fc2'))
    for name, theirs in (('before1/attn', 'self_attn'), ('attn', 'encoder_attn')):
      for part in ('query', 'key', 'value'):
        table[f'{BLOCKS}{name}/{part}'] = f'{at}{theirs}.{part[0]}_proj'
    table |= {'norm': 'model.decoder.layernorm', 'queries': To(_THEIRS, ndim=2)}
    table['head'], boxes = 'class_labels_classifier', 'bbox_predictor'
  table |= {f'boxes/layers/{i}': f'{boxes}.layers.{i}' for i in range(3)}
  table |= {f'masks/{name}': f'bbox_attention.{name[0]}_linear' for name in ('query', 'key')}
  table |= {
    'masks/features|maps/kernel': To('mask_head.lay1.weight', axis=1),
    'masks/maps/bias': 'mask_head.lay1.bias', 'masks/out': 'mask_head.out_lay',
  }  # fmt: skip
  for number, name in enumerate(('maps', 'merge', 'refine0', 'refine1', 'refine2'), 1):
    table[f'masks/{name}_norm'] = f'mask_head.gn{number}'
    if number > 1:
      table[f'masks/{name}'] = f'mask_head.lay{number}'
  return rules(table, shapes, torch=True)


def _blocks(
  at: str, attentions: tuple[str, str], out: str, norms: tuple[str, str, str], mlp: tuple[str, str]
) -> dict[str, Any]:
  """From our names to theirs, of all that is called alike in both but for its name."""
  return {
    **{f'{BLOCKS}{ours}/attn/out'.replace('//', '/'): f'{at}{theirs}.{out}'
       for ours, theirs in zip(('before1', ''), attentions, strict=True)},
    **{f'{BLOCKS}{ours}': at + theirs
       for ours, theirs in zip(('before1/norm', 'norm1', 'norm2'), norms, strict=True)},
    f'{BLOCKS}mlp/up': at + mlp[0], f'{BLOCKS}mlp/down': at + mlp[1],
  }  # fmt: skip
