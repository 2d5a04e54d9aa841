"""What models are made of, by name and by field, in plain Python."""

from vit_jax.architecture import variants
from vit_jax.architecture.backbones import (
  Backbone,
  ConvNetArchitecture,
  ConvNeXtArchitecture,
  MixerArchitecture,
  ResNetArchitecture,
)
from vit_jax.architecture.change import ChangeArchitecture
from vit_jax.architecture.detr import DecoderArchitecture, DetrArchitecture
from vit_jax.architecture.dino import DinoArchitecture
from vit_jax.architecture.eomt import EomtArchitecture
from vit_jax.architecture.language import LanguageArchitecture
from vit_jax.architecture.masked import MaeArchitecture, MaskedArchitecture
from vit_jax.architecture.multimodal import MultimodalArchitecture
from vit_jax.architecture.segmenter import (
  MaskTransformerArchitecture,
  SegmenterArchitecture,
  UPerNetArchitecture,
)
from vit_jax.architecture.token_detector import TokenDetectorArchitecture
from vit_jax.architecture.towers import (
  Composition,
  TextArchitecture,
  TwoTowersArchitecture,
  encoders,
)
from vit_jax.architecture.vit import EncoderConfig, ViTArchitecture
from vit_jax.architecture.yolos import YolosArchitecture

# By the names that configurations choose from.
MODELS = {
  'vit': ViTArchitecture, 'two_towers': TwoTowersArchitecture, 'segmenter': SegmenterArchitecture,
  'resnet': ResNetArchitecture, 'convnext': ConvNeXtArchitecture, 'mixer': MixerArchitecture,
  'convnet': ConvNetArchitecture, 'masked': MaskedArchitecture, 'mae': MaeArchitecture,
  'dino': DinoArchitecture, 'eomt': EomtArchitecture, 'detr': DetrArchitecture,
  'yolos': YolosArchitecture, 'change': ChangeArchitecture,
  'token_detector': TokenDetectorArchitecture,
  'mask_transformer': MaskTransformerArchitecture,
  'upernet': UPerNetArchitecture, 'language': LanguageArchitecture,
  'multimodal': MultimodalArchitecture,
}  # fmt: skip

# Models that give one vector for each image.
SINGLE = (ViTArchitecture, Backbone)

__all__ = [
  'MODELS',
  'SINGLE',
  'Backbone',
  'ChangeArchitecture',
  'Composition',
  'ConvNeXtArchitecture',
  'ConvNetArchitecture',
  'DecoderArchitecture',
  'DetrArchitecture',
  'DinoArchitecture',
  'EncoderConfig',
  'EomtArchitecture',
  'LanguageArchitecture',
  'MaeArchitecture',
  'MaskTransformerArchitecture',
  'MaskedArchitecture',
  'MixerArchitecture',
  'MultimodalArchitecture',
  'ResNetArchitecture',
  'SegmenterArchitecture',
  'TextArchitecture',
  'TokenDetectorArchitecture',
  'TwoTowersArchitecture',
  'UPerNetArchitecture',
  'ViTArchitecture',
  'YolosArchitecture',
  'encoders',
  'named',
  'names',
]


def names() -> list[str]:
  """Of all variants of networks of images, as `named` takes them."""
  kinds = [kind for kind in MODELS.values() if issubclass(kind, Backbone)]
  return [
    *variants.names(), *(f'{kind.kind}:{variant}' for kind in kinds for variant in kind.VARIANTS)
  ]  # fmt: skip


def named(variant: str) -> tuple[str, str]:
  """The kind and the variant that a name stands for: 'convnext:T' is ('convnext', 'T').

  Names without a kind of their own, 'S/16' and 'dinov2:S/14', are those of ViTs.
  """
  kind, _, own = variant.partition(':')
  return (kind, own) if kind in MODELS and issubclass(MODELS[kind], Backbone) else ('vit', variant)
