"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545)."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from vit_jax.architecture.backbones import ConvNeXtArchitecture
from vit_jax.models.backbone import Backbone, pooled
from vit_jax.nn import remat
from vit_jax.nn.layers import Conv, Mlp, Norm, constant, normal
from vit_jax.nn.noise import Noise, dropped
from vit_jax.nn.sharding import param

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(ConvNeXtArchitecture):
  """A ConvNeXt by its `ConvNeXtArchitecture`, which documents the fields."""

  def create(self, rngs: nnx.Rngs) -> ConvNeXt:
    """The model itself, sharded over the mesh in context."""
    return ConvNeXt(self, rngs)


class Block(nnx.Module):
  """x + scale * mlp(norm(depthwise convolution(x))) (figure 4)."""

  def __init__(self, width: int, config: ConvNeXtArchitecture, rngs: nnx.Rngs):
    pad = config.kernel // 2
    self.conv = Conv(
      config.kernel, width, width, rngs, pad=(pad, pad), groups=width, init=normal(0.02)
    )
    self.norm = Norm(width, rngs, eps=EPS)
    self.mlp = Mlp(width, 4 * width, rngs, kind='gelu')
    if config.layerscale:
      self.scale = param(constant(config.layerscale), rngs, (width,), (None,))

  def __call__(self, x: jax.Array, key: Noise | None, rate: float) -> jax.Array:
    """(batch, height, width, features) -> the same."""
    y = self.norm(self.conv(x))
    y = self.mlp(y.reshape(y.shape[0], -1, y.shape[-1])).reshape(x.shape)
    if hasattr(self, 'scale'):
      y = y * self.scale[...].astype(y.dtype)
    return x + dropped(y, key, rate)


class ConvNeXt(Backbone):
  """See `Backbone`; `features` has the maps 'stage0', ... that each stage gives."""

  def __init__(self, config: ConvNeXtConfig, rngs: nnx.Rngs):
    config = config.resolve()
    inputs, window = config.in_channels, config.patch_size
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
      if stage:
        setattr(self, f'stage{stage}_norm', Norm(inputs, rngs, eps=EPS))
        window = 2
      made = Conv(window, inputs, width, rngs, stride=window, init=normal(0.02))
      setattr(self, f'stage{stage}_down', made)
      if not stage:
        self.stage0_norm = Norm(width, rngs, eps=EPS)
      for block in range(depth):
        setattr(self, f'stage{stage}_block{block}', Block(width, config, rngs))
      inputs = width
    self.norm = Norm(inputs, rngs, eps=EPS)
    super().__init__(config, inputs, rngs)

  def inside(self, images: jax.Array, key: Noise | None) -> dict[str, jax.Array]:
    """See `Backbone`."""
    config, x, out = self.config, images, {}
    count = sum(config.depths)
    keys = iter([None] * count if key is None else key.split(count))
    rates = iter([config.drop_path * at / max(count - 1, 1) for at in range(count)])
    for stage, depth in enumerate(config.depths):
      norm, down = getattr(self, f'stage{stage}_norm'), getattr(self, f'stage{stage}_down')
      x = down(norm(x)) if stage else norm(down(x))
      for block in range(depth):
        rate = next(rates)
        body = lambda block, x, key, rate=rate: block(x, key if rate else None, rate)  # noqa: E731
        apply = remat.checkpoint(body, config.remat, scan=False)
        x = apply(getattr(self, f'stage{stage}_block{block}'), x, next(keys))
      out[f'stage{stage}'] = x
    return {**out, 'pooled': self.norm(pooled(x))}
