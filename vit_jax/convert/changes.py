"""Low-rank changes in checkpoints, added to what they change while that is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.convert.opened import Wanted
from vit_jax.nn import tree


def applied(
  arrays: Mapping[str, Any], fetch: Callable[[Wanted], dict[str, Any]], scale: float
) -> tuple[dict[str, Any], Callable[[Wanted], dict[str, Any]]]:
  """The parameters of a model where arrays have low-rank changes of some; see `tree.LowRank`.

  Args:
    arrays: with shapes and dtypes, by name.
    fetch: reads them, as `Opened.fetch`.
    scale: of the changes.

  Returns:
    Both, of whole parameters.
  """
  changed = {tree.whole(name) for name in arrays if tree.whole(name) != name}
  plain = {name: array for name, array in arrays.items() if tree.whole(name) == name}
  plain |= {n: jax.ShapeDtypeStruct(plain[n].shape, np.float32) for n in changed}

  def whole(wanted: Wanted) -> dict[str, Any]:
    asked = {n: s.update(dtype=arrays[n].dtype) if n in changed else s for n, s in wanted.items()}
    for name in changed & wanted.keys():
      for factor in tree.FACTORS:  # small, and whole on every device
        own = arrays[f'{name}/{factor}']
        asked[f'{name}/{factor}'] = jax.ShapeDtypeStruct(own.shape, own.dtype)
    found = fetch(asked)
    for name in changed & wanted.keys():
      a, b = (found.pop(f'{name}/{factor}') for factor in tree.FACTORS)
      low = tree.LowRank(a, b, scale)
      add = low.added_to if wanted[name].sharding is None else jax.jit(low.added_to)
      found[name] = add(found[name])
    return found

  return plain, whole
