"""Checkpoints of Segmenter's own code (Strudel et al. 2021), both decoders: read, not written."""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_jax.architecture.card import Card
from vit_jax.convert import timm
from vit_jax.convert.layout import Rule, Shapes, To, behind, rules
from vit_jax.convert.source import IMAGENET, INCEPTION, Source
from vit_jax.models.segmenter import MaskTransformerConfig, SegmenterConfig
from vit_jax.models.vit import ViTConfig

ENCODER, DECODER = 'encoder.', 'decoder.'
IGNORE = timm.IGNORE
_TOKENS = f'{DECODER}cls_emb'
_EPS = 1e-5  # of all its norms
# Heads of the classification before, which nothing reads.
_UNUSED = tuple(
  f'{ENCODER}{n}.{part}' for n in ('head', 'head_dist') for part in ('weight', 'bias')
)


def recognise(source: Source) -> dict[str, Any] | None:
  """Which decoder a checkpoint has, and how its encoder is called; None if it is no Segmenter."""
  linear = f'{DECODER}head.weight' in source
  if (not linear and _TOKENS not in source) or f'{ENCODER}patch_embed.proj.weight' not in source:
    return None
  source.dropped += [name for name in _UNUSED if name in source]
  source.arrays = {n: a for n, a in source.arrays.items() if n not in _UNUSED}
  style = timm.recognise(source.behind(ENCODER, 'encoder'))
  return style and dict(linear=linear, encoder=style)


def architecture(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """The model of a checkpoint, by its arrays."""
  encoder, card = timm.architecture(source.behind(ENCODER, 'encoder'), style['encoder'])
  encoder = dataclasses.replace(encoder, eps=_EPS, interpolation='bilinear')
  # What was normalised how, variant.yml says, which is not read; DeiT's models have two tokens.
  mean, std = IMAGENET if encoder.distilled else INCEPTION
  task = {'name': 'segmentation', 'mean': mean, 'std': std}
  fields = {'image': {'kind': 'image', 'dtype': 'uint8'}, 'map': {'kind': 'map'}}
  card = dataclasses.replace(
    card, mean=mean, std=std, crop=0.0, class_names=(), task=task, fields=fields
  )
  if style['linear']:
    classes = source.shape(f'{DECODER}head.weight', 2)[0]
    return SegmenterConfig(encoder, classes), card
  decoder = source.behind(DECODER, 'decoder')
  _, classes, width = source.shape(_TOKENS, 3)
  config = MaskTransformerConfig(
    encoder, classes,
    ViTConfig(
      '', width=width, depth=decoder.count(r'blocks\.(\d+)\.'),
      num_heads=decoder.heads(width), mlp_dim=decoder.shape('blocks.0.mlp.fc1.weight', 2)[0],
      mlp='gelu', eps=_EPS, posemb='none',
    ),
  )  # fmt: skip
  return config, card


def make_rules(config: Any, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read."""
  names: dict[str, Any] = {
    **behind(timm.table(config.encoder, style['encoder']), 'encoder/', ENCODER)
  }
  if style['linear']:
    return rules({**names, 'head': f'{DECODER}head'}, shapes, torch=True)
  names |= behind(timm.table(config.decoder, style['encoder']), 'decoder/', DECODER)
  names |= {
    'decoder/embed/proj/kernel': To(f'{DECODER}proj_dec.weight', ndim=2),
    'decoder/embed/proj/bias': f'{DECODER}proj_dec.bias',
    'decoder/queries': _TOKENS, 'decoder/encoder/norm': f'{DECODER}decoder_norm',
    'of_patch/kernel': To(f'{DECODER}proj_patch', plain=True),
    'of_class/kernel': To(f'{DECODER}proj_classes', plain=True), 'norm': f'{DECODER}mask_norm',
  }  # fmt: skip
  return rules(names, shapes, torch=True)
