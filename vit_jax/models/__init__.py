"""Models: thin compositions over the encoder, and networks that have none."""

from __future__ import annotations

import importlib
from typing import Any

from vit_jax.architecture import (
  MODELS,
  ChangeArchitecture,
  ConvNetArchitecture,
  ConvNeXtArchitecture,
  DecoderArchitecture,
  DetrArchitecture,
  DinoArchitecture,
  EomtArchitecture,
  LanguageArchitecture,
  MaeArchitecture,
  MaskedArchitecture,
  MaskTransformerArchitecture,
  MixerArchitecture,
  MultimodalArchitecture,
  ResNetArchitecture,
  SegmenterArchitecture,
  TextArchitecture,
  TokenDetectorArchitecture,
  TwoTowersArchitecture,
  UPerNetArchitecture,
  ViTArchitecture,
  YolosArchitecture,
)  # fmt: skip

# The module of each architecture, 'package.module:Class', imported when one is created: listing
# models needs no JAX.
MODULES: dict[type, str] = {
  ViTArchitecture: 'vit_jax.models.vit:ViT',
  TextArchitecture: 'vit_jax.models.text:Text',
  TwoTowersArchitecture: 'vit_jax.models.two_towers:TwoTowers',
  ChangeArchitecture: 'vit_jax.models.change:Change',
  SegmenterArchitecture: 'vit_jax.models.segmenter:Segmenter',
  ResNetArchitecture: 'vit_jax.models.resnet:ResNet',
  ConvNeXtArchitecture: 'vit_jax.models.convnext:ConvNeXt',
  MixerArchitecture: 'vit_jax.models.mixer:Mixer',
  ConvNetArchitecture: 'vit_jax.models.convnet:ConvNet',
  MaskedArchitecture: 'vit_jax.models.masked:Masked',
  MaeArchitecture: 'vit_jax.models.masked:Mae',
  DinoArchitecture: 'vit_jax.models.dino:Dino',
  EomtArchitecture: 'vit_jax.models.eomt:Eomt',
  DetrArchitecture: 'vit_jax.models.detr:Detr',
  DecoderArchitecture: 'vit_jax.models.detr:Decoder',
  YolosArchitecture: 'vit_jax.models.yolos:Yolos',
  TokenDetectorArchitecture: 'vit_jax.models.token_detector:TokenDetector',
  MaskTransformerArchitecture: 'vit_jax.models.segmenter:MaskTransformer',
  UPerNetArchitecture: 'vit_jax.models.upernet:UPerNet',
  LanguageArchitecture: 'vit_jax.models.language:Language',
  MultimodalArchitecture: 'vit_jax.models.multimodal:Multimodal',
}


def config_of(kind: str) -> type:
  """The configuration of a model by its name in `MODELS`, with `create` where there is one."""
  module, _, name = MODULES[MODELS[kind]].partition(':')
  return getattr(importlib.import_module(module), f'{name}Config', MODELS[kind])


def create(config: Any, rngs: Any) -> Any:
  """The module that an architecture describes, sharded over the mesh in context.

  Args:
    config: a resolved architecture, of one of `MODULES`.
    rngs: `nnx.Rngs` for the initial parameters.
  """
  where = next(MODULES[kind] for kind in type(config).__mro__ if kind in MODULES)
  module, _, name = where.partition(':')
  return getattr(importlib.import_module(module), name)(config, rngs)
