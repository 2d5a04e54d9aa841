"""Checkpoints of UPerNet on BEiT, as Hugging Face transformers writes them: read, not written.

Of `BeitForSemanticSegmentation`, and of `UperNetForSemanticSegmentation` on a `BeitBackbone`. Their
batch norms are constants once a model is trained, and become a part of the convolution before them.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from vit_jax.architecture.card import Card
from vit_jax.convert import transformers
from vit_jax.convert.files import Stub
from vit_jax.convert.layout import Rule, Shapes, deconv, rules
from vit_jax.convert.source import Source
from vit_jax.convert.transformers_names import table as encoder_table
from vit_jax.core.errors import RunError
from vit_jax.models.upernet import UPerNetConfig

IGNORE = transformers.IGNORE
_FUSE = 'decode_head.fpn_bottleneck.conv.weight'
_PYRAMID = re.compile(r'(backbone\.)?fpn[12]\.')
_EPS = 1e-5  # of PyTorch's batch norm


def recognise(source: Source) -> dict[str, Any] | None:
  """How the encoder is called, and what is in front of the pyramid; None if it is no UPerNet."""
  if _FUSE not in source:
    return None
  prefix = 'backbone.' if any(name.startswith('backbone.') for name in source.arrays) else 'beit.'
  pyramid = 'backbone.' * (prefix == 'backbone.')
  if f'{pyramid}fpn1.0.weight' not in source:
    raise RunError(
      f'{source.where}: a UPerNet without a pyramid of its own (fpn1, fpn2): of transformers only '
      'those on BEiT can be read'
    )
  given = source.config.get('backbone_config') or source.config
  if given.get('model_type', 'beit') != 'beit':
    raise RunError(
      f'{source.where}: a UPerNet on {given["model_type"]!r}: of transformers only those on BEiT '
      'can be read'
    )
  encoder = transformers.recognise(_encoder(source, prefix))
  return encoder and dict(encoder=encoder, prefix=prefix, pyramid=pyramid)


def _encoder(source: Source, prefix: str) -> Source:
  """The same of the encoder alone."""
  inner = {
    name: array for name, array in source.arrays.items()
    if name.startswith(prefix) and not _PYRAMID.match(name)
  }  # fmt: skip
  found = source.inside('encoder', inner)
  given = source.config.get('backbone_config') or source.config
  return dataclasses.replace(found, config={**given, 'model_type': 'beit'})


def architecture(source: Source, style: dict[str, Any]) -> tuple[UPerNetConfig, Card]:
  """The model of a checkpoint: by its arrays, and what config.json says of its pyramid."""
  prefix, given = style['prefix'], source.config
  inner = _encoder(source, prefix)
  encoder, card = transformers.architecture(inner, style['encoder'])
  # Nothing there has the norm behind the last block, and nothing here reads it.
  for name, fill in ((f'{prefix}layernorm.weight', np.ones), (f'{prefix}layernorm.bias', np.zeros)):
    shape = (encoder.width,)
    source.arrays[name] = Stub(shape, np.float32, lambda s=shape, f=fill: f(s, np.float32))
  folded = _without_norms(source)
  source.notes.append(f'{folded} batch norms became a part of the convolutions before them')
  bins = tuple(given.get('pool_scales') or (1, 2, 3, 6))
  auxiliary = 'auxiliary_head.classifier.weight' in source
  if given.get('auxiliary_concat_input') or given.get('auxiliary_num_convs', 1) != 1:
    raise RunError(f'{source.where}: its auxiliary head is not one convolution: not supported')
  sizes: dict[str, int] = {}
  if auxiliary:
    sizes['auxiliary_channels'] = source.shape('auxiliary_head.convs.0.conv.weight', 4)[0]
  channels, _, _, _ = source.shape(_FUSE, 4)
  classes = source.shape('decode_head.classifier.weight', 4)[0]
  config = UPerNetConfig(
    encoder, classes, layers=_layers(source, style, encoder.depth), channels=channels, bins=bins,
    auxiliary=float(given.get('auxiliary_loss_weight', 0.4)) if auxiliary else 0.0, norm='none',
    **sizes,
  )  # fmt: skip
  labels = source.config.get('id2label') or {}
  names = tuple(str(labels.get(str(i), labels.get(i, f'LABEL_{i}'))) for i in range(classes))
  task = {'name': 'segmentation', 'mean': card.mean, 'std': card.std}
  known = all(name == f'LABEL_{i}' for i, name in enumerate(names))
  fields = {
    'image': {'kind': 'image', 'dtype': 'uint8'},
    'map': {'kind': 'map', 'names': () if known else names},
  }
  return config, dataclasses.replace(
    card, class_names=() if known else names, task=task, fields=fields
  )


def _layers(source: Source, style: dict[str, Any], depth: int) -> tuple[int, ...]:
  """Blocks that the pyramid reads, from 0, as transformers counts them."""
  backbone = source.config.get('backbone_config')
  given = (backbone or source.config).get('out_indices')
  if given is None:
    given = [depth * (i + 1) // 4 - 1 + (2 if not backbone else 1) for i in range(4)]
  # Of a backbone 1 is what the first block gives; of BEiT's own class what enters it.
  layers = tuple(index - (1 if backbone else 2) for index in given)
  if len(layers) != 4 or min(layers) < 0:
    raise RunError(
      f'{source.where}: out_indices={given} are not those of four blocks: not supported'
    )
  if not backbone:
    source.notes.append(
      f'the pyramid reads what blocks {", ".join(map(str, layers))} give, counted from 0, as '
      f'transformers does with out_indices={list(given)}'
    )
  return layers


def _without_norms(source: Source) -> int:
  """Folds every batch norm into the convolution before it; how many there were."""
  arrays, found = source.arrays, 0
  for name in [n for n in arrays if n.endswith('.running_var')]:
    norm = name.removesuffix('.running_var')
    conv = re.sub(r'\.(bn|batch_norm)$', '.conv', norm)
    if conv == norm:  # of the pyramid: a layer of a sequence
      conv = re.sub(r'\.1$', '.0', norm)
    parts = [arrays.pop(f'{norm}.{part}') for part in ('weight', 'bias', 'running_mean')]
    parts.append(arrays.pop(name))
    arrays.pop(f'{norm}.num_batches_tracked', None)
    weight, bias = arrays[f'{conv}.weight'], arrays.get(f'{conv}.bias')
    outputs = 1 if conv.endswith('fpn1.0') else 0  # the axis; a transposed convolution

    def scales(parts=parts):
      scale, shift, mean, variance = (np.asarray(part, np.float64) for part in parts)
      scale = scale / np.sqrt(variance + _EPS)
      return scale, shift - mean * scale

    def kernel(weight=weight, axis=outputs, scales=scales):
      shape = [1] * 4
      shape[axis] = -1
      return (np.asarray(weight, np.float64) * scales()[0].reshape(shape)).astype(np.float32)

    def offset(bias=bias, scales=scales):
      scale, shift = scales()
      own = 0.0 if bias is None else np.asarray(bias, np.float64) * scale
      return (own + shift).astype(np.float32)

    arrays[f'{conv}.weight'] = Stub(tuple(weight.shape), np.float32, kernel)
    arrays[f'{conv}.bias'] = Stub((weight.shape[outputs],), np.float32, offset)
    found += 1
  return found


def make_rules(config: UPerNetConfig, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read."""
  pyramid, width = style['pyramid'], config.encoder.width
  of_encoder = encoder_table(config.encoder, style['encoder'])
  table: dict[str, Any] = {f'encoder/{name}': to for name, to in of_encoder.items()}
  names = {
    f'bin{bins}': f'decode_head.psp_modules.{i}.1.conv' for i, bins in enumerate(config.bins)
  }
  for level in range(3):
    names[f'lateral{level}'] = f'decode_head.lateral_convs.{level}.conv'
    names[f'smooth{level}'] = f'decode_head.fpn_convs.{level}.conv'
  names |= {
    'context': 'decode_head.bottleneck.conv', 'fuse': 'decode_head.fpn_bottleneck.conv',
    'head': 'decode_head.classifier', 'auxiliary': 'auxiliary_head.convs.0.conv',
    'auxiliary_head': 'auxiliary_head.classifier',
  }  # fmt: skip
  ups = {'up4_first': 'fpn1.0', 'up4': 'fpn1.3', 'up2': 'fpn2.0'}
  for ours, theirs in ups.items():
    table[f'pyramid/{ours}/kernel'] = deconv(f'{pyramid}{theirs}', width, width)
    table[f'pyramid/{ours}/bias'] = f'{pyramid}{theirs}.bias'
  return rules({**table, **names}, shapes, torch=True)
