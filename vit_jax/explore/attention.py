"""Which patches a prediction drew on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.architecture import ViTArchitecture, encoders
from vit_jax.core.errors import RunError
from vit_jax.models.vit import ViT
from vit_jax.nn.attention import Context, Memory
from vit_jax.nn.encoder import layer_of
from vit_jax.nn.sharding import spec


def looking(config: Any) -> str:
  """The name of the tower of a model whose attention can be shown; '' for the model itself.

  Raises:
    RunError: if it has none.
  """
  towers = encoders(config)
  found = [name for name, tower in towers.items() if isinstance(tower, ViTArchitecture)]
  if not found:
    raise RunError(f'a model of the kind {config.kind} has no attention over patches')
  if (pattern := towers[found[0]].attention) != 'full':
    raise RunError(f'attention={pattern!r} is not of all patches, and has no picture of them')
  return found[0]


def drawn_on(model: Any, images: jax.Array) -> jax.Array:
  """`rollout` of the tower of a model that sees images."""
  tower = looking(model.config)
  return rollout(getattr(model, tower) if tower else model, images)


def rollout(model: ViT, images: jax.Array) -> jax.Array:
  """Attention rollout (Abnar & Zuidema 2020, section 3), ending in the pooling of the model.

  In each layer the attention weights, averaged over heads, are mixed half and half with the
  identity for the residual connection; the product over layers says how much of every patch
  reaches every token, and the pooling how much of every token reaches the head.

  Args:
    model: with any pooling.
    images: normalised, as the model takes them.

  Returns:
    float32 (batch, *grid) over the grid of patches, each summing to 1 less what stays with tokens
    that are not patches.

  Raises:
    ValueError: for attention along axes, or several in a layer.
  """
  prefix, encoder = model.config.prefix, model.encoder
  x, context = model.tokens(images)
  grid = context.grid or model.config.grid
  contexts = encoder.contexts(x, context)
  whole = x.shape[0], x.shape[1], x.shape[1]
  mixed = jnp.broadcast_to(jnp.eye(x.shape[1]), whole, out_sharding=spec('batch', None, None))
  for layer in range(model.config.depth):
    block = layer_of(encoder.blocks, layer)
    y = block.norm1(x) if model.config.norm_place == 'pre' else x
    own = contexts[layer % len(contexts)]
    if len(own) > 1:
      raise ValueError('attention rollout is of layers with one attention each')
    weights = block.attn.weights(y, own[-1]).mean(axis=1)
    mixed = 0.5 * weights @ mixed + 0.5 * mixed
    x, _ = block(x, own)
  mean = mixed[:, prefix:].mean(axis=1)
  if model.config.pool == 'map':
    x = (encoder.norm(x) if hasattr(encoder, 'norm') else x)[:, prefix:]
    seen = Context(memory=Memory(x))
    pooling = model.map_head.attn.weights(model.map_head.queries(x), seen).mean(axis=(1, 2))
    share = jnp.einsum('bt,btp->bp', pooling, mixed[:, prefix:])
  elif model.config.pool == 'mean':
    share = mean
  else:
    share = mixed[:, 0] if model.config.pool == 'token' else (mixed[:, 0] + mean) / 2
  return share[:, prefix:].reshape(-1, *grid, out_sharding=spec('batch', None, None))
