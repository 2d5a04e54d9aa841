"""Which patches a prediction drew on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.encoder import layer_of
from vit_jax.models.vit import ViT


def rollout(model: ViT, images: jax.Array) -> jax.Array:
  """Attention rollout (Abnar & Zuidema 2020, section 3), ending in the pooling of the model.

  In each layer the attention weights, averaged over heads, are mixed half and half with the
  identity for the residual connection; the product over layers says how much of every patch
  reaches every token, and the pooling how much of every token reaches the head.

  Args:
    model: with any pooling.
    images: normalised, (batch, height, width, channels).

  Returns:
    float32 (batch, rows, columns) over the grid of patches, each summing to 1 (with a class token:
    to 1 less what stays with the token itself).
  """
  x = model.tokens(images)
  mixed = jnp.broadcast_to(jnp.eye(x.shape[1]), (x.shape[0], x.shape[1], x.shape[1]))
  for layer in range(model.encoder.depth):
    block = layer_of(model.encoder.blocks, layer)
    y = block.norm1(x)
    weights = block.attn.weights(y, y).mean(axis=1)
    mixed = 0.5 * weights @ mixed + 0.5 * mixed
    x = block(x)
  if model.config.pool == 'map':
    x = model.encoder.norm(x)
    pooling = model.map_head.attn.weights(model.map_head.queries(x), x).mean(axis=(1, 2))
    share = jnp.einsum('bt,btp->bp', pooling, mixed)
  elif model.config.pool == 'token':
    share = mixed[:, 0, 1:]
  else:
    share = mixed.mean(axis=1)
  return share.reshape(-1, *model.config.grid)
