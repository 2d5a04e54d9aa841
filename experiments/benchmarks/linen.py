"""The ViT of most JAX codebases, to measure against: flax.linen's own layers put together plainly.

It is what big_vision trains (its options for images of 224 pixels: learned positions, mean pooling,
tanh GELU, a scan over layers with recomputation or unrolled layers): same sizes and numbers of
parameters as `vit_jax.create(variant, pool='mean')`, same AdamW, same dtypes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.models.vit import ViTConfig


class Block(nn.Module):
  """One layer."""

  num_heads: int
  mlp_dim: int
  dtype: Any

  @nn.compact
  def __call__(self, x, _=None):
    """(batch, tokens, width) -> the same, as a scan wants it."""
    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = nn.MultiHeadDotProductAttention(
      self.num_heads, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype
    )(y, y)
    x = x + y
    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = nn.gelu(nn.Dense(self.mlp_dim, dtype=self.dtype)(y))
    return x + nn.Dense(x.shape[-1], dtype=self.dtype)(y), None


class ViT(nn.Module):
  """Images (batch, height, width, 3) -> logits."""

  variant: str
  num_classes: int = 1000
  scan: bool = False
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, images):
    """(batch, height, width, 3) -> float32 (batch, num_classes)."""
    sizes = ViTConfig(variant=self.variant).resolve()
    width, patch = sizes.width, sizes.patch
    x = nn.Conv(width, patch, patch, 'VALID', dtype=self.dtype)(images)
    x = x.reshape(x.shape[0], -1, width)
    positions = self.param('positions', nn.initializers.normal(0.02), (1, x.shape[1], width))
    x = x + positions.astype(self.dtype)
    block: Any = Block
    if self.scan:
      block = nn.remat(block, prevent_cse=False, policy=None)
      block = nn.scan(
        block, variable_axes={'params': 0}, split_rngs={'params': True}, length=sizes.depth
      )
    options = dict(num_heads=sizes.num_heads, mlp_dim=sizes.mlp_dim, dtype=self.dtype)
    for number in range(1 if self.scan else sizes.depth):
      x, _ = block(**options, name=f'block{number}')(x, None)
    x = nn.LayerNorm(dtype=self.dtype)(x).mean(1)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)


class Training(NamedTuple):
  """What is compiled to train.

  Attributes:
    init: a jitted function without arguments, which gives the state.
    step: a jitted function from (state, images, labels) to the next state and the loss.
    shapes: of these arguments, with their shardings.
  """

  init: Any
  step: Any
  shapes: tuple[Any, Any, Any]


def training(
  devices: Any, variant: str, per_device: int, *, scan: bool, dtype: Any = jnp.bfloat16
) -> Training:
  """Data parallel, AdamW, float32 state, images of 224 px.

  Args:
    devices: to compile for.
    variant: 'B/16'.
    per_device: images.
    scan: over layers, with recomputation, or unrolled without.
    dtype: of activations.
  """
  model = ViT(variant, scan=scan, dtype=dtype)
  optimizer = optax.adamw(1e-3, weight_decay=1e-4)
  mesh = jax.make_mesh((len(devices),), ('data',), (jax.sharding.AxisType.Auto,), devices=devices)
  replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
  batch = per_device * len(devices)
  images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.uint8, sharding=split)
  labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split)

  @functools.partial(jax.jit, out_shardings=replicated)
  def init():
    params = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))['params']
    return params, optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=(replicated, replicated))
  def step(state, images, labels):
    params, opt = state

    def loss(params):
      logits: Any = model.apply({'params': params}, images / 127.5 - 1)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt = optimizer.update(grads, opt, params)
    return (optax.apply_updates(params, updates), opt), value

  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), jax.eval_shape(init)
  )
  return Training(init, step, (state, images, labels))
