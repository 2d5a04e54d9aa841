"""Losses of classification for each example, by the scales that papers have them in."""

from __future__ import annotations

from etils import epy

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

# 'softmax': -sum_c t_c log softmax(x)_c. 'sigmoid_sum': binary cross-entropies of the classes added
# up, as big_vision trains. 'sigmoid_mean': their mean, less by the number of classes (Wightman et
# al. 2021; DeiT III, Touvron et al. 2022).
KINDS = ('softmax', 'sigmoid_sum', 'sigmoid_mean')


def cross_entropy(logits: jax.Array, targets: jax.Array, kind: str) -> jax.Array:
  """The loss of each example: (..., classes) and the same -> (...).

  Args:
    logits: float32.
    targets: probabilities; those of a sigmoid need not add up to 1.
    kind: one of `KINDS`.
  """
  if kind == 'softmax':
    return -(targets * jax.nn.log_softmax(logits)).sum(-1)
  each = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
  return each.sum(-1) if kind == 'sigmoid_sum' else each.mean(-1)


def z_loss(logits: jax.Array) -> jax.Array:
  """log(Z)^2, which keeps the normaliser of a softmax near 1 (Chowdhery et al. 2022, section 5)."""
  return jnp.square(jax.nn.logsumexp(logits, axis=-1))
