"""The ResNets of BiT (Kolesnikov et al. 2020): in front of hybrid Vision Transformers, or alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.architecture.vit import STEM_GROUPS
from vit_jax.nn import remat as remat_lib
from vit_jax.nn.layers import Conv, ones, zeros
from vit_jax.nn.sharding import param


class StdConv(Conv):
  """Convolution whose weights are standardised per output feature (Qiao et al. 2019)."""

  def __init__(
    self, size: int, inputs: int, outputs: int, rngs: nnx.Rngs, *, stride: int, convention: str,
    pad: str | tuple[int, int] = 'SAME',
  ):  # fmt: skip
    super().__init__(size, inputs, outputs, rngs, stride=stride, pad=pad, bias=False)
    self.convention = convention

  def weights(self) -> jax.Array:
    """See `Conv`."""
    w = super().weights()
    w = w - w.mean((0, 1, 2))
    var = jnp.square(w).mean((0, 1, 2))
    return w / (jnp.sqrt(var) + 1e-5) if self.convention == 'bit' else w * jax.lax.rsqrt(var + 1e-8)


class GroupNorm(nnx.Module):
  """Group normalisation, statistics in float32 (Wu & He 2018).

  Of features that the number of groups does not divide there are as many groups as divide both.
  """

  def __init__(
    self, features: int, rngs: nnx.Rngs, *, convention: str, scale=ones, groups: int = STEM_GROUPS
  ):
    self.groups = math.gcd(features, groups)
    self.scale = param(scale, rngs, (features,), (None,))
    self.bias = param(zeros, rngs, (features,), (None,))
    self.eps = 1e-6 if convention == 'bit' else 1e-5

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, height, width, features) -> the same."""
    y = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
    y = y - y.mean((1, 2, 4), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean((1, 2, 4), keepdims=True) + self.eps)
    return (y.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)


class Unit(nnx.Module):
  """A bottleneck: 1x1, 3x3 and 1x1 convolutions around a residual connection."""

  def __init__(self, inputs: int, width: int, rngs: nnx.Rngs, *, stride: int, convention: str):
    conv = lambda size, a, b, stride=1: StdConv(  # noqa: E731
      size, a, b, rngs, stride=stride, convention=convention
    )
    norm = lambda n, **kwargs: GroupNorm(n, rngs, convention=convention, **kwargs)  # noqa: E731
    if inputs != 4 * width or stride > 1:
      self.proj, self.proj_norm = conv(1, inputs, 4 * width, stride), norm(4 * width)
    self.conv1, self.norm1 = conv(1, inputs, width), norm(width)
    self.conv2, self.norm2 = conv(3, width, width, stride), norm(width)
    # Each unit starts as the identity.
    self.conv3, self.norm3 = conv(1, width, 4 * width), norm(4 * width, scale=zeros)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, height, width, inputs) -> (batch, height / stride, width / stride, 4 * width)."""
    shortcut = self.proj_norm(self.proj(x)) if hasattr(self, 'proj') else x
    x = jax.nn.relu(self.norm1(self.conv1(x)))
    x = jax.nn.relu(self.norm2(self.conv2(x)))
    return jax.nn.relu(shortcut + self.norm3(self.conv3(x)))


class PreUnit(nnx.Module):
  """The same of version 2 (He et al. 2016b): norms and ReLUs come before convolutions."""

  def __init__(self, inputs: int, width: int, rngs: nnx.Rngs, *, stride: int, convention: str):
    conv = lambda size, a, b, stride=1: StdConv(  # noqa: E731
      size, a, b, rngs, stride=stride, convention=convention, pad=(size // 2, size // 2)
    )
    norm = lambda n: GroupNorm(n, rngs, convention=convention)  # noqa: E731
    if inputs != 4 * width or stride > 1:
      self.proj = conv(1, inputs, 4 * width, stride)
    self.norm1, self.conv1 = norm(inputs), conv(1, inputs, width)
    self.norm2, self.conv2 = norm(width), conv(3, width, width, stride)
    self.norm3, self.conv3 = norm(width), conv(1, width, 4 * width)

  def __call__(self, x: jax.Array) -> jax.Array:
    """As `Unit`."""
    y = jax.nn.relu(self.norm1(x))
    shortcut = self.proj(y) if hasattr(self, 'proj') else x
    y = jax.nn.relu(self.norm2(self.conv1(y)))
    y = jax.nn.relu(self.norm3(self.conv2(y)))
    return shortcut + self.conv3(y)


class ResNet(nnx.Module):
  """A 7x7 convolution, a pooling, and stages of units, each stage twice as wide as the last.

  Args:
    channels: of the images.
    width: of the first stage's bottlenecks, a multiple of 32.
    depths: units of each stage; none is only convolution and pooling.
    convention: one of `architecture.STEM_CONVENTIONS`.
    preact: whether it is of version 2, with a norm at the end; paddings are then those of BiT
      (Kolesnikov et al. 2020), the same on all sides.
    remat: what the backward pass keeps of units; see `remat.checkpoint`.
  """

  def __init__(
    self, channels: int, width: int, depths: tuple[int, ...], rngs: nnx.Rngs, *, convention: str,
    preact: bool = False, remat: str = 'none',
  ):  # fmt: skip
    kwargs: Any = dict(convention=convention)
    self.root = StdConv(
      7, channels, width, rngs, stride=2, pad=(3, 3) if preact else 'SAME', **kwargs
    )
    if not preact:
      self.root_norm = GroupNorm(width, rngs, **kwargs)
    inputs = width
    for stage, depth in enumerate(depths):
      for unit in range(depth):
        stride = 2 if stage and not unit else 1
        kind = PreUnit if preact else Unit
        made = kind(inputs, width * 2**stage, rngs, stride=stride, **kwargs)
        setattr(self, f'stage{stage}_unit{unit}', made)
        inputs = 4 * width * 2**stage
    if preact:
      self.norm = GroupNorm(inputs, rngs, **kwargs)
    self.depths, self.preact, self.remat = depths, preact, remat

  def __call__(self, images: jax.Array) -> jax.Array:
    """(batch, height, width, channels) -> (batch, height / stride, width / stride, features)."""
    return [*self.stages(images)][-1]

  def stages(self, images: jax.Array) -> Iterator[jax.Array]:
    """What pooling and each stage give, the last one normed where it is of version 2."""
    x, pad = self.root(images), 'SAME'
    if self.preact:
      x, pad = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 'VALID'
    else:
      x = jax.nn.relu(self.root_norm(x))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pad)
    if not self.depths:
      yield x
    for stage, depth in enumerate(self.depths):
      for unit in range(depth):
        apply = remat_lib.checkpoint(lambda unit, x: unit(x), self.remat, scan=False)
        x = apply(getattr(self, f'stage{stage}_unit{unit}'), x)
      last = self.preact and stage == len(self.depths) - 1
      yield jax.nn.relu(self.norm(x)) if last else x


def features(width: int, depths: tuple[int, ...]) -> int:
  """Features of the output of a `ResNet`."""
  return 4 * width * 2 ** (len(depths) - 1) if depths else width
