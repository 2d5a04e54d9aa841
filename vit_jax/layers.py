"""The small parts of a Vision Transformer."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax.sharding import einsum, param, spec


def zeros(key: jax.Array, shape, sharding) -> jax.Array:
  """An initialiser, as all of these: key, shape and sharding to a float32 array."""
  del key
  return jnp.zeros(shape, out_sharding=sharding)


def ones(key: jax.Array, shape, sharding) -> jax.Array:
  """As `zeros`."""
  del key
  return jnp.ones(shape, out_sharding=sharding)


def normal(stddev: float):
  """Normal with the given standard deviation."""

  def init(key, shape, sharding):
    return jax.random.normal(key, shape, out_sharding=sharding) * stddev

  return init


def uniform(limit: float):
  """Uniform on [-limit, limit)."""

  def init(key, shape, sharding):
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit, out_sharding=sharding)

  return init


class LayerNorm(nnx.Module):
  """Layer normalisation over the last axis, statistics in float32 (Ba et al. 2016)."""

  def __init__(self, width: int, rngs: nnx.Rngs, *, eps: float = 1e-6):
    self.scale = param(ones, rngs, (width,), (None,))
    self.bias = param(zeros, rngs, (width,), (None,))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., width) -> the same, in the dtype of `x`."""
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    var = jnp.square(y - mean).mean(-1, keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(var + self.eps)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Dense(nnx.Module):
  """An affine map whose axes keep their meaning: (embed) -> (heads, head_dim), for example.

  Args:
    shape: of the kernel, contracted axes first.
    axes: logical name of each kernel axis, or None.
    contracted: how many leading axes of the kernel are summed over.
    kernel_init: Xavier uniform if not given.
  """

  def __init__(self, rngs: nnx.Rngs, shape, axes, *, contracted: int = 1, kernel_init=None):
    fan_in, fan_out = math.prod(shape[:contracted]), math.prod(shape[contracted:])
    kernel_init = kernel_init or uniform(math.sqrt(6 / (fan_in + fan_out)))
    self.kernel = param(kernel_init, rngs, shape, axes)
    # Biases are added to activations, whose embed axis is never sharded.
    bias_axes = tuple(None if axis == 'embed' else axis for axis in axes[contracted:])
    self.bias = param(zeros, rngs, shape[contracted:], bias_axes)

  def __call__(self, x: jax.Array, eqn: str, out: tuple[str | None, ...]) -> jax.Array:
    """Einsum `eqn` of `x` and the kernel, plus the bias, laid out as `out`."""
    return einsum(eqn, x, self.kernel[...], out=out) + self.bias[...].astype(x.dtype)


class Mlp(nnx.Module):
  """width -> mlp_dim -> width with a tanh-approximated GELU between (Hendrycks & Gimpel 2016)."""

  def __init__(self, width: int, mlp_dim: int, rngs: nnx.Rngs):
    self.up = Dense(rngs, (width, mlp_dim), ('embed', 'mlp'))
    self.down = Dense(rngs, (mlp_dim, width), ('mlp', 'embed'))

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, width) -> the same."""
    y = jax.nn.gelu(self.up(x, 'btd,df->btf', ('batch', None, 'mlp')))
    y = checkpoint_name(y, 'hidden')
    return self.down(y, 'btf,fd->btd', ('batch', None, None))


class PatchEmbed(nnx.Module):
  """Non-overlapping square patches, each mapped linearly to `width` features."""

  def __init__(self, patch_size: int, channels: int, width: int, rngs: nnx.Rngs):
    shape = (patch_size, patch_size, channels, width)
    # LeCun normal, as for a convolution with these patches as its receptive fields.
    init = normal(math.prod(shape[:3]) ** -0.5)
    self.proj = Dense(rngs, shape, (None, None, None, 'embed'), contracted=3, kernel_init=init)
    self.patch_size = patch_size

  def __call__(self, images: jax.Array) -> jax.Array:
    """(batch, height, width, channels) -> (batch, height / patch, width / patch, features)."""
    b, h, w, c = images.shape
    p = self.patch_size
    # One axis at a time: an explicitly sharded array cannot be cut along both in one reshape.
    x = images.reshape(b, h // p, p, w, c).reshape(b, h // p, p, w // p, p, c)
    return self.proj(x, 'bhpwqc,pqcd->bhwd', ('batch', None, None, None))


def prepend_token(token: jax.Array, x: jax.Array) -> jax.Array:
  """(1, 1, width) and (batch, tokens, width) -> (batch, 1 + tokens, width)."""
  shape = (x.shape[0], 1, x.shape[2])
  token = jnp.broadcast_to(token.astype(x.dtype), shape, out_sharding=spec('batch', None, None))
  return jnp.concatenate([token, x], axis=1)


def sincos2d(height: int, width: int, features: int, temperature: float = 10_000.0) -> np.ndarray:
  """Fixed two-dimensional sine-cosine position embedding (MoCo v3, Chen et al. 2021).

  Args:
    height, width: of the grid of patches.
    features: of the embedding, a multiple of 4: sin x, cos x, sin y, cos y in this order.
    temperature: longest wavelength over 2 pi.

  Returns:
    float32 array of shape (1, height * width, features).
  """
  omega = temperature ** -(np.arange(features // 4) / max(features // 4 - 1, 1))
  y, x = np.mgrid[:height, :width].reshape(2, -1, 1) * omega
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table[None].astype(np.float32)
