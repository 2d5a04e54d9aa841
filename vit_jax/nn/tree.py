"""Names for the leaves of a tree: 'encoder/blocks/attn/query/kernel'."""

import re
from typing import Any

import jax


def name(path: tuple[Any, ...]) -> str:
  """The name of a leaf, from its key path; how Flax stores a parameter does not show in it."""
  return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def group(path: tuple[Any, ...]) -> str:
  """The same name for the same parameter of all layers, whether they are one array or several."""
  return re.sub(r'/blocks/\d+/', '/blocks/', name(path))


def flatten(tree: Any) -> dict[str, Any]:
  """Leaf by name."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(like: Any, leaves: dict[str, Any]) -> Any:
  """The inverse of `flatten`, for a tree of the structure of `like`."""
  return jax.tree_util.tree_map_with_path(lambda path, _: leaves[name(path)], like)
