"""The ResNet of BiT (Kolesnikov et al. 2020, https://arxiv.org/abs/1912.11370)."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from vit_jax.architecture.backbones import ResNetArchitecture
from vit_jax.models.backbone import Backbone, pooled
from vit_jax.nn import resnet
from vit_jax.nn.noise import Noise


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ResNetArchitecture):
  """A ResNet by its `ResNetArchitecture`, which documents the fields."""

  def create(self, rngs: nnx.Rngs) -> ResNet:
    """The model itself, sharded over the mesh in context."""
    return ResNet(self, rngs)


class ResNet(Backbone):
  """See `Backbone`; `features` has the maps 'stage0', ... that each stage gives."""

  def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
    config = config.resolve()
    self.body = resnet.ResNet(
      config.in_channels, config.width, config.depths, rngs, convention='timm', preact=True,
      remat=config.remat,
    )  # fmt: skip
    super().__init__(config, resnet.features(config.width, config.depths), rngs)

  def inside(self, images: jax.Array, key: Noise | None) -> dict[str, jax.Array]:
    """See `Backbone`."""
    maps = [*self.body.stages(images)]
    out = {f'stage{number}': x for number, x in enumerate(maps)}
    return {**out, 'pooled': pooled(maps[-1])}
