"""The transformer encoder: pre-norm blocks, scanned over depth, rematerialised by policy."""

from __future__ import annotations

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vit_jax import tree
from vit_jax.attention import Attention
from vit_jax.errors import RunError, suggest
from vit_jax.layers import LayerNorm, Mlp

# Activations that a block marks by name, in the order in which they are computed.
NAMES = ('query', 'key', 'value', 'context', 'attn', 'hidden', 'mlp')
REMAT = ('none', 'dots', 'names', 'full')


def remat(body, policy: str, *, scan: bool):
  """Wraps the body of a scan over layers in activation checkpointing (Chen et al. 2016).

  Args:
    body: the function of one layer.
    policy: 'none' keeps every activation for the backward pass; 'dots' the results of matrix
      products with weights; 'names' the attention output and the hidden MLP layer; 'full' only the
      block's input. Or the names to keep, out of `NAMES`, separated by commas.
    scan: whether the body is scanned; without a scan the compiler must be kept from undoing the
      recomputation by common-subexpression elimination.

  Raises:
    RunError: for an unknown policy or name.
  """
  if policy == 'none':
    return body
  policies = jax.checkpoint_policies
  if policy == 'full':
    saved = policies.nothing_saveable
  elif policy == 'dots':
    saved = policies.dots_with_no_batch_dims_saveable
  else:
    names = ('attn', 'hidden') if policy == 'names' else policy.split(',')
    for name in names:
      if name not in NAMES:
        raise RunError(f'unknown remat policy {name!r}: {suggest(name, (*REMAT, *NAMES))}')
    saved = policies.save_only_these_names(*names)
  return jax.checkpoint(body, policy=saved, prevent_cse=not scan)


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, equations 2 and 3)."""

  def __init__(self, width: int, mlp_dim: int, num_heads: int, rngs: nnx.Rngs):
    self.norm1 = LayerNorm(width, rngs)
    self.attn = Attention(width, num_heads, rngs)
    self.norm2 = LayerNorm(width, rngs)
    self.mlp = Mlp(width, mlp_dim, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, width) -> the same."""
    y = self.norm1(x)
    x = x + checkpoint_name(self.attn(y, y), 'attn')
    return x + checkpoint_name(self.mlp(self.norm2(x)), 'mlp')


class Encoder(nnx.Module):
  """`depth` blocks, stored as one block whose parameters have a leading layer axis, and a norm.

  The parameters are the same whether the layers are scanned or unrolled.
  """

  def __init__(
    self, width: int, depth: int, mlp_dim: int, num_heads: int, rngs: nnx.Rngs,
    *, scan: bool, policy: str,
  ):  # fmt: skip
    keys = jax.random.split(rngs.params(), depth)
    self.blocks = jax.vmap(lambda key: Block(width, mlp_dim, num_heads, nnx.Rngs(key)))(keys)
    self.norm = LayerNorm(width, rngs)
    self.depth, self.scan, self.policy = depth, scan, policy

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, width) -> the same, normalised."""
    blocks = cast_weights(self.blocks, x.dtype)
    body = remat(lambda x, block: (block(x), None), self.policy, scan=self.scan)
    if self.scan:
      x, _ = jax.lax.scan(body, x, blocks)
    else:
      for layer in range(self.depth):
        x, _ = body(x, layer_of(blocks, layer))
    return self.norm(x)


def layer_of(blocks: Block, layer: int) -> Block:
  """One block out of the stacked ones."""
  return jax.tree.map(lambda w: w[layer], blocks)


def cast_weights(blocks: Block, dtype) -> Block:
  """Weights of the stacked blocks in the compute dtype, cast once for all layers of a step.

  Norms keep float32: they are small, and their statistics are float32 as well.
  """

  def cast(path, w):
    return w if tree.name(path).startswith('norm') else w.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, blocks)
