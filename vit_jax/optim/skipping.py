"""Updates that are not taken: those whose gradient is far larger than gradients have been.

The measure is the median of the last norms, those of skipped updates included: a spike does not
move it, and where gradients have grown for good it follows them. OLMo-core and Levanter skip by the
standard deviation of as many steps instead.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax.optim.config import WINDOW


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Skipping:
  """What is remembered of the steps so far.

  Attributes:
    norms: float32 (WINDOW,), the last that were finite; infinite where there was none yet, so that
      nothing finite is skipped before half of them are known.
    count: int32, updates that were skipped.
    row: int32, how many of them just now, one after another.
  """

  norms: jax.Array
  count: jax.Array
  row: jax.Array


def start() -> Skipping:
  """Before the first step."""
  return Skipping(jnp.full(WINDOW, jnp.inf), jnp.int32(0), jnp.int32(0))


def judged(
  seen: Skipping, step: jax.Array, norm: jax.Array, loss: jax.Array, limit: float
) -> tuple[jax.Array, Skipping]:
  """Whether the update of a step is skipped, and what is remembered after it.

  Args:
    seen: of the steps before.
    step: its number.
    norm: of its gradient.
    loss: of its batch.
    limit: largest norm, in medians.
  """
  skip = ~(jnp.isfinite(norm) & jnp.isfinite(loss))
  skip |= norm > limit * jnp.sort(seen.norms)[(WINDOW - 1) // 2]
  at = step % WINDOW
  norms = seen.norms.at[at].set(jnp.where(jnp.isfinite(norm), norm, seen.norms[at]))
  return skip, Skipping(norms, seen.count + skip, jnp.where(skip, seen.row + 1, 0))
