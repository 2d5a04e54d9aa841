"""Low-rank changes of frozen parameters (LoRA, Hu et al. 2021), as trees beside that of a model."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.nn.layers import Dense, uniform


def divided(
  model: Any, frozen: Any, *, rank: int, scale: float, patterns: Sequence[str],
  train: Sequence[str], key: jax.Array,
) -> tuple[Any, Any]:  # fmt: skip
  """Trainable and frozen parameters of which most are frozen, and some of these get factors.

  At the start one factor is zero, so that the model is the one that is given. The other one is
  uniform on +-1/sqrt(inputs), as in the authors' loralib and in peft.

  Args:
    model: parameters, None where one is in `frozen` already: these get no factors.
    frozen: the others.
    rank: of the change.
    scale: its factor.
    patterns: regular expressions of whole names of matrices that are changed, of those that are
      not trained in full.
    train: likewise of what is trained in full.
    key: of the factors.

  Returns:
    Both, in the tree of the model: in the first one `tree.LowRank` where a matrix is changed.

  Raises:
    RunError: for a pattern that matches nothing, or no matrix.
  """
  rest, trained = tree.partition(model, train, 'lora.train')
  _, chosen = tree.partition(rest, patterns, 'lora.patterns')
  inputs = _inputs(model)

  def factors(path: Any, leaf: Any, own: Any) -> Any:
    if leaf is None:
      return own
    name, stacked = tree.group(path), int(tree.is_stacked(path))
    if leaf.ndim - stacked < 2:
      raise RunError(f'lora.patterns match {name}, which is no matrix: {leaf.shape}')
    last = stacked + (inputs.get(name) or leaf.ndim - stacked - 1)
    return _drawn(leaf, stacked, last, rank, scale, jax.random.fold_in(key, _number(name)))

  held = jax.tree_util.tree_map_with_path(
    factors, chosen, trained, is_leaf=lambda leaf: leaf is None
  )
  return held, tree.merge(frozen, rest)


def _drawn(
  leaf: Any, stacked: int, last: int, rank: int, scale: float, key: jax.Array
) -> tree.LowRank:
  """Factors of a matrix whose inputs are its axes from `stacked` to `last`."""
  layer, ins, outs = leaf.shape[:stacked], leaf.shape[stacked:last], leaf.shape[last:]
  spec = None
  if not jax.sharding.get_abstract_mesh().empty:
    spec = (*jax.typeof(leaf).sharding.spec, *(None,) * leaf.ndim)[: leaf.ndim]
  layout = lambda *axes: None if spec is None else jax.P(*axes)  # noqa: E731
  before, behind = (spec[:last], spec[last:]) if spec else ((), ())
  first = uniform(1 / math.sqrt(math.prod(ins)))(key, (*layer, *ins, rank), layout(*before, None))
  second = jnp.zeros(
    (*layer, rank, *outs), jnp.float32, out_sharding=layout(*before[:stacked], None, *behind)
  )
  return tree.LowRank(first, second, scale)


def _inputs(model: Any) -> dict[str, int]:
  """Of the kernels of a model how many axes of each are summed over, by name."""
  nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, Dense))
  kernel = jax.tree_util.GetAttrKey('kernel')
  return {tree.group((*path, kernel)): d.contracted for path, d in nodes if isinstance(d, Dense)}


def _number(name: str) -> int:
  """The same in every process."""
  return zlib.crc32(name.encode())
