"""Plain convolutions with a receptive field that is known; see `ConvNetArchitecture`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.backbones import ConvNetArchitecture
from vit_jax.models.backbone import Backbone, pooled
from vit_jax.nn import remat
from vit_jax.nn.layers import Conv, Norm, normal
from vit_jax.nn.noise import Noise


@dataclasses.dataclass(frozen=True)
class ConvNetConfig(ConvNetArchitecture):
  """A convnet by its `ConvNetArchitecture`, which documents the fields."""

  def create(self, rngs: nnx.Rngs) -> ConvNet:
    """The model itself, sharded over the mesh in context."""
    return ConvNet(self, rngs)


class Layer(nnx.Module):
  """relu(norm(convolution(x))), and x itself where that is asked for and has the same shape."""

  def __init__(self, number: int, config: ConvNetArchitecture, rngs: nnx.Rngs):
    layers = config.layers
    inputs, own = layers[number - 1].width if number else config.in_channels, layers[number]
    self.conv = Conv(
      own.kernel, inputs, own.width, rngs, stride=own.stride, dilation=own.dilation, pad=own.pad,
      init=normal((2 / (own.kernel**2 * inputs)) ** 0.5), bias=False,  # He et al. 2015
    )  # fmt: skip
    # Over the features of a place: a norm over places would see all of the image.
    self.norm = Norm(own.width, rngs)
    self.residual = config.residual

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, height, width, features) -> (batch, height / stride, width / stride, features)."""
    y = jax.nn.relu(self.norm(self.conv(x)))
    return x + y if self.residual and x.shape == y.shape else y


class ConvNet(Backbone):
  """See `Backbone`; `features` has 'layer0', ..., and 'local', the logits of each place."""

  def __init__(self, config: ConvNetConfig, rngs: nnx.Rngs):
    config = config.resolve()
    for number in range(len(config.layers)):
      setattr(self, f'layer{number}', Layer(number, config, rngs))
    super().__init__(config, config.widths[-1], rngs)

  def inside(self, images: jax.Array, key: Noise | None) -> dict[str, jax.Array]:
    """See `Backbone`."""
    x, out = images, {}
    for number in range(len(self.config.layers)):
      apply = remat.checkpoint(lambda layer, x: layer(x), self.config.remat, scan=False)
      x = out[f'layer{number}'] = apply(getattr(self, f'layer{number}'), x)
    if self.config.num_classes:
      logits = self.head(x.astype(jnp.float32), 'bhwd,dc->bhwc', ('batch', None, None, None))
      out['local'] = logits
    return {**out, 'pooled': pooled(x)}
