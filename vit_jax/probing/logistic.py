"""Logistic regression by L-BFGS, many problems at once.

As CLIP (Radford et al. 2021, section 3.2) and DINOv2 (Oquab et al. 2024, section 7.1) judge
features. What is minimised is the mean cross-entropy and `l2` / 2 times the sum of the squares of
the kernel; the bias is free. scikit-learn's `C` is 1 / (`l2` * examples).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.probing.alone import alone

# Largest entry of the gradient at which a problem is solved; float32 can tell a tenth from 0.
TOLERANCE = 1e-6
STEPS = 500
# Nor does it tell such a share of a loss from nothing: steps may increase it by as much, and a
# problem is solved, too, after so many steps without a smaller loss.
_PROGRESS, _PATIENCE = 1e-6, 5
# Bytes that are held at a time.
_MEMORY = 1 << 28


class Fitted(NamedTuple):
  """Solutions of some problems.

  Attributes:
    kernel: float32 (problems, features, classes).
    bias: float32 (problems, classes).
    gradient: its largest entry, float32 (problems,).
    steps: that were taken, int (problems,).
  """

  kernel: np.ndarray
  bias: np.ndarray
  gradient: np.ndarray
  steps: np.ndarray

  def logits(self, problem: int, features: np.ndarray) -> np.ndarray:
    """Of some examples, float32 (examples, classes)."""
    return features @ self.kernel[problem] + self.bias[problem]


def fit(
  features: np.ndarray, labels: np.ndarray, l2: np.ndarray, classes: int, *,
  weights: np.ndarray | None = None, lanes: int = 0,
) -> Fitted:  # fmt: skip
  """Solves problems that share their examples, side by side.

  Where there are fewer examples than features, kernels are combinations of the examples, so that
  the problem is solved in the space that these span, rotated.

  Args:
    features: float (examples, features), best of equal scale.
    labels: int (examples,).
    l2: of each problem, (problems,).
    classes: how many there are.
    weights: of the examples in each problem, (problems, examples), 0 for those that are none of
      it; 1 if not given.
    lanes: problems of a program, so that calls with fewer of them share it; 0 for as many as there
      are. With fewer at a time where their logits take too much memory.
  """
  l2, axes = np.asarray(l2, np.float32), None
  if features.shape[1] > len(features):
    left, lengths, axes = np.linalg.svd(np.asarray(features, np.float64), full_matrices=False)
    features = left * lengths
  if weights is None:
    weights = np.broadcast_to(np.float32(1), (len(l2), len(labels)))
  # Logits of the examples, and as many copies of the kernel as L-BFGS remembers.
  floats = (len(labels) + 24 * features.shape[1]) * classes
  each = min(lanes or len(l2), max(1, _MEMORY // (4 * floats)))
  found = []
  with alone():
    x = jnp.asarray(features, jnp.float32)
    truth = jnp.asarray(labels, jnp.int32)
    for first in range(0, len(l2), each):
      part = slice(first, first + each)
      own, share = l2[part], np.asarray(weights[part], np.float32)
      more = each - len(own)  # the last program is that of the others
      own, share = np.pad(own, (0, more), 'edge'), np.pad(share, ((0, more), (0, 0)), 'edge')
      solved = jax.device_get(_solve(x, truth, own, share, classes))
      found.append([array[: each - more] for array in solved])
  kernel, *others = (np.concatenate(parts) for parts in zip(*found, strict=True))
  if axes is not None:
    kernel = np.matmul(axes.T, kernel).astype(np.float32)
  return Fitted(kernel, *others)


@functools.partial(jax.jit, static_argnums=4)
def _solve(x: jax.Array, labels: jax.Array, l2: jax.Array, weights: jax.Array, classes: int) -> Any:
  search = optax.scale_by_backtracking_linesearch(
    10, rtol=_PROGRESS, decrease_factor=0.5, store_grad=True
  )
  optimizer = optax.lbfgs(linesearch=search)

  def one(l2: jax.Array, weight: jax.Array) -> Any:
    share = weight / jnp.maximum(weight.sum(), 1)
    # So that the curvature along the kernel is about 1, however strong the regularisation is.
    scale = 1 / jnp.sqrt(l2 + 1)

    def loss(params: Any) -> jax.Array:
      kernel, bias = params[0] * scale, params[1]
      logits = jnp.matmul(x, kernel, precision='highest') + bias
      right = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
      misses = jax.nn.logsumexp(logits, 1) - right
      return (misses * share).sum() + l2 / 2 * jnp.square(kernel).sum()

    value_and_grad = optax.value_and_grad_from_state(loss)

    def steep(grad: Any) -> jax.Array:
      return jnp.maximum(*(jnp.abs(leaf).max() for leaf in grad))

    def step(carry: Any) -> Any:
      params, state, number, _, least, still = carry
      value, grad = value_and_grad(params, state=state)
      updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      params = optax.apply_updates(params, updates)
      still = jnp.where(value < least, 0, still + 1)
      least = jnp.minimum(least, value)
      return params, state, number + 1, steep(optax.tree.get(state, 'grad')), least, still

    def goes_on(carry: Any) -> jax.Array:
      _, _, number, gradient, _, still = carry
      return (gradient > TOLERANCE) & (still < _PATIENCE) & (number < STEPS)

    start = jnp.zeros((x.shape[1], classes)), jnp.zeros(classes)
    far = jnp.float32(jnp.inf)
    carry = start, optimizer.init(start), 0, far, far, 0
    (kernel, bias), _, number, gradient, _, _ = jax.lax.while_loop(goes_on, step, carry)
    return kernel * scale, bias, gradient, number

  return jax.vmap(one)(l2, weights)
