"""Models: thin compositions over the encoder."""

from vit_jax.models.vit import ViTConfig

MODELS = {'vit': ViTConfig}
