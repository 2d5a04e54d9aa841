"""Checkpoints of DETR, of transformers and of Meta's code: their decoder and what reads it.

What is before the decoder there, a ResNet and an encoder behind it, has no counterpart: a ViT is in
its place here.
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
_OLD = (('.o_proj.', '.out_proj.'), ('.mlp.fc', '.fc'))
_META, _THEIRS = 'query_embed.weight', 'model.query_position_embeddings.weight'


def recognise(source: Source) -> dict[str, Any] | None:
  """Whose code wrote a checkpoint; None if it is no DETR. Only the decoder is left of it."""
  kind = source.config.get('model_type', 'detr')
  dialect = 'detr' if _META in source else 'transformers' if _THEIRS in source else ''
  if not dialect or kind != 'detr':
    return None
  arrays = dict(source.arrays)
  if dialect == 'transformers':
    for new, old in _OLD:
      arrays = {
        n.replace(new, old) if n.startswith('model.decoder.') else n: a for n, a in arrays.items()
      }
    own = re.compile(r'model\.(decoder|query_position)|class_labels_classifier|bbox_predictor')
  else:
    own = re.compile(r'transformer\.decoder|query_embed|class_embed|bbox_embed')
  source.arrays = {name: a for name, a in arrays.items() if own.match(name)}
  source.notes.append(
    f'the decoder and its heads are read; the {len(arrays) - len(source.arrays)} arrays of the '
    'network and the encoder before it are not: a ViT is in their place here'
  )
  return dict(dialect=dialect)


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
