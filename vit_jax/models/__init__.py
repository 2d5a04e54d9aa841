"""Models: thin compositions over the encoder, each with its variants beside it."""

from vit_jax.models.vit import ViTConfig

MODELS = {'vit': ViTConfig}
