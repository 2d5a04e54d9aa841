"""The one regular-expression language for groups of parameters."""

from __future__ import annotations

import re
from typing import Any

import jax

from vit_jax.core.errors import RunError, suggest
from vit_jax.nn import tree
from vit_jax.optim.config import Groups


def groups(entries: Groups, params: Any, field: str) -> Any:
  """The factor of every parameter: a tree of floats like `params`.

  Raises:
    RunError: for a parameter that no entry matches, or an entry that matches none.
  """
  used = set()

  def factor(path, _):
    name = tree.group(path)
    for pattern, value in entries:
      if re.fullmatch(pattern, name):
        used.add(pattern)
        return float(value)
    raise RunError(f'optim.{field} has no entry for the parameter {name}')

  factors = jax.tree_util.tree_map_with_path(factor, params)
  gone = [tree.group(path) for path, leaf in jax.tree_util.tree_leaves_with_path(
    params, is_leaf=lambda leaf: leaf is None
  ) if leaf is None]  # fmt: skip
  for pattern, _ in entries:
    # A catch-all at the end may be left with nothing to catch, and what is frozen is in no group.
    caught = pattern in used or any(re.fullmatch(pattern, name) for name in gone)
    if not caught and pattern != '.*':
      names = tree.flatten(params)
      raise RunError(f'optim.{field}: {pattern!r} is the first match of no parameter that is '
                     f'trained: {suggest(pattern, names)}')  # fmt: skip
  return factors
