"""What models are made of, by name and by field, in plain Python."""

from vit_jax.architecture.segmenter import SegmenterArchitecture
from vit_jax.architecture.towers import (
  Composition,
  TextArchitecture,
  TwoTowersArchitecture,
  encoders,
)
from vit_jax.architecture.vit import EncoderConfig, ViTArchitecture

# By the names that configurations choose from.
MODELS = {
  'vit': ViTArchitecture, 'two_towers': TwoTowersArchitecture, 'segmenter': SegmenterArchitecture
}  # fmt: skip

__all__ = [
  'MODELS',
  'Composition',
  'EncoderConfig',
  'SegmenterArchitecture',
  'TextArchitecture',
  'TwoTowersArchitecture',
  'ViTArchitecture',
  'encoders',
]
