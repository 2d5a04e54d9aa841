"""Linear classifiers trained by stochastic gradients, all of them by one program.

As DINOv2 does it (Oquab et al. 2024, section 7.1): a grid of learning rates and of choices of
features; momentum of 0.9, no weight decay, cosine decay to 0. Features are those of the images
themselves, computed once, without augmentation, and standardised (as by the normalisation without
parameters of MAE, He et al. 2022, appendix A.1).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.probing.alone import alone

MOMENTUM = 0.9


class Recipe(NamedTuple):
  """How a classifier is trained.

  Attributes:
    epochs: passes over the examples.
    batch_size: examples of a step; all, if there are fewer.
    seed: of their order.
  """

  epochs: int = 10
  batch_size: int = 256
  seed: int = 0


def train(
  features: np.ndarray, labels: np.ndarray, classes: int, rates: Sequence[float],
  choices: np.ndarray, recipe: Recipe,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
  """Trains a classifier for each pair of a learning rate and a choice of features.

  A function of its arguments alone.

  Args:
    features: float (examples, features), standardised.
    labels: int (examples,).
    classes: how many there are.
    rates: for 256 examples a step.
    choices: of the features, bool (choices, features).
    recipe: for all of them.

  Returns:
    Kernels, float32 (rates * choices, features, classes), 0 for features that are not chosen, and
    biases, float32 (rates * choices, classes): all choices of the first rate come first.
  """
  size = min(recipe.batch_size, len(labels))
  pairs = [(rate, choice) for rate in rates for choice in choices]
  scaled = np.array([rate * size / 256 for rate, _ in pairs], np.float32)
  masks = np.array([choice for _, choice in pairs], np.float32)
  with alone():
    found = _train(
      jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32), scaled, masks,
      np.uint32(recipe.seed), classes, size, recipe.epochs,
    )  # fmt: skip
    return jax.device_get(found)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _train(x, labels, rates, masks, seed, classes: int, size: int, epochs: int) -> Any:
  steps = len(x) // size  # an epoch leaves out what does not fill a batch
  total = steps * epochs

  def loss(params: Any, images: jax.Array, truth: jax.Array) -> jax.Array:
    kernel, bias = params
    logits = jnp.matmul(images, kernel, precision='highest') + bias
    right = jnp.take_along_axis(logits, truth[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, 1) - right).mean()

  def epoch(carry: Any, number: jax.Array) -> Any:
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), number), len(x))

    def step(carry: Any, at: jax.Array) -> Any:
      params, speed = carry
      rows = jax.lax.dynamic_slice(order, (at * size,), (size,))
      images, truth = x[rows], labels[rows]
      decay = (1 + jnp.cos(jnp.pi * (number * steps + at) / total)) / 2

      def one(params: Any, speed: Any, rate: jax.Array, mask: jax.Array) -> Any:
        kernel, bias = jax.grad(loss)(params, images, truth)
        grad = kernel * mask[:, None], bias
        speed = jax.tree.map(lambda s, g: MOMENTUM * s + g, speed, grad)
        return jax.tree.map(lambda p, s: p - rate * decay * s, params, speed), speed

      return jax.vmap(one)(params, speed, rates, masks), None

    return jax.lax.scan(step, carry, jnp.arange(steps))[0], None

  zeros = jnp.zeros((len(rates), x.shape[1], classes)), jnp.zeros((len(rates), classes))
  (params, _), _ = jax.lax.scan(epoch, (zeros, zeros), jnp.arange(epochs))
  return params
