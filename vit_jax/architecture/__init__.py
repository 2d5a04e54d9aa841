"""What models are made of, by name and by field, in plain Python."""

from vit_jax.architecture.towers import TextArchitecture, TwoTowersArchitecture
from vit_jax.architecture.vit import EncoderConfig, ViTArchitecture

__all__ = ['EncoderConfig', 'TextArchitecture', 'TwoTowersArchitecture', 'ViTArchitecture']
