"""Vision Transformers in JAX: one encoder, one training loop, any mesh.

Nothing heavy is imported until it is asked for:

>>> import vit_jax
>>> model = vit_jax.create('S/16', num_classes=1000)   # an nnx.Module, float32 parameters
>>> logits = model(images)                             # (batch, 224, 224, 3) -> (batch, 1000)
>>> model = vit_jax.load('B_16.npz')                   # any published checkpoint
"""

from __future__ import annotations

import typing

from vit_jax.core import lazy

__version__ = '0.1.0'

if typing.TYPE_CHECKING:
  from vit_jax.models.vit import ViT


__getattr__ = lazy.getter(
  __name__,
  {
    'load': 'vit_jax.convert.read', 'save': 'vit_jax.convert.write',
    'RunError': 'vit_jax.core.errors',
  },
)  # fmt: skip


def create(variant: str, *, seed: int = 0, **config) -> ViT:
  """A freshly initialised Vision Transformer, or another network of images.

  Args:
    variant: 'S/16', 'dinov2:S/14', 'R50+B/16', see `vit_jax.architecture.variants`; or
      'resnet:R50x1', 'convnext:T', 'mixer:B/16', 'convnet:small', see `architecture.backbones`.
    seed: of the random initialisation.
    **config: any other field of `vit_jax.architecture.ViTArchitecture`, or of that of the kind.

  Returns:
    The model, callable on float images of shape (batch, height, width, in_channels).

  Raises:
    vit_jax.RunError: for an unknown variant or fields that contradict each other.
  """
  import jax
  from flax import nnx

  from vit_jax import models
  from vit_jax.architecture import named
  from vit_jax.core import schema

  kind, own = named(variant)
  model = schema.build(models.config_of(kind), {'variant': own, **config}, 'vit_jax.create')
  return jax.jit(lambda key: model.create(nnx.Rngs(key)))(jax.random.key(seed))
