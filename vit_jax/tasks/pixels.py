"""Losses of maps: functions of logits, of labels, and of which pixels have one.

Sums over classes are over those that an image has, so that what is absent costs only where it is
said to be there, and nothing depends on how a batch is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vit_jax.nn import sharding


def crossentropy(logits: jax.Array, label: jax.Array, focal: float = 0.0) -> jax.Array:
  """Of each pixel; with gamma `focal` times (1 - p)^gamma (Lin et al. 2017, equation 4).

  Args:
    logits: float32 (batch, height, width, classes).
    label: int32 (batch, height, width); of what is no class the value is not to be used.
    focal: gamma; 0 for the cross-entropy itself.

  Returns:
    float32 (batch, height, width).
  """
  own = jax.nn.one_hot(label, logits.shape[-1])
  said = (jax.nn.log_softmax(logits) * own).sum(-1)
  if not focal:
    return -said
  rest = -jnp.expm1(said)  # 1 - p, exactly where p is nearly 1
  # A power below 1 has no finite slope at 0, where the loss is 0 whatever the slope.
  return -(jnp.maximum(rest, 1e-12) ** focal) * said


def weights(label: jax.Array, of_classes: Sequence[float]) -> jax.Array:
  """Of each pixel the weight of its class, float32; 0 of what is no class."""
  own = jax.nn.one_hot(label, len(of_classes))
  return (own * jnp.array(of_classes, jnp.float32)).sum(-1)


def dice(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
  """Soft Dice loss of each image (Milletari et al. 2016, section 3).

  The mean over its classes of 1 - (2 sum p t + 1) / (sum p + sum t + 1), p being the probability of
  the class and t whether the pixel is of it.

  Args:
    logits, label: see `crossentropy`.
    valid: which pixels have a class, float32 (batch, height, width).

  Returns:
    float32 (batch,); 0 of an image without any class.
  """
  p = jax.nn.softmax(logits) * valid[..., None]
  t = jax.nn.one_hot(label, logits.shape[-1]) * valid[..., None]
  inside, said, true = ((x).sum((1, 2)) for x in (p * t, p, t))
  loss = 1 - (2 * inside + 1) / (said + true + 1)
  return _mean(loss, true > 0)


def lovasz(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
  """Lovasz softmax loss of each image: of the IoU of its classes a tight convex bound.

  Berman et al. 2018, equation 9 and algorithm 1, with 'present' classes.

  Args:
    logits, label, valid: see `dice`.

  Returns:
    float32 (batch,); 0 of an image without any class.
  """
  own = ('batch', None, None, None)
  return sharding.per_shard(_lovasz, (own, own[:3], own[:3]), ('batch',))(logits, label, valid)


def _lovasz(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
  """Of the images that one device has."""
  batch, classes = logits.shape[0], logits.shape[-1]
  flat = lambda x: x.reshape(batch, -1, *x.shape[3:])  # noqa: E731
  p, there = flat(jax.nn.softmax(logits)), flat(valid)
  t = jax.nn.one_hot(flat(label), classes) * there[..., None]

  def image(p, t, there):  # (pixels,) of one class
    error = jnp.where(there > 0, jnp.abs(t - p), -1.0)  # what has no class comes last
    order = jnp.argsort(-jax.lax.stop_gradient(error))
    error, t, there = error[order], t[order], there[order]
    left = t.sum() - jnp.cumsum(t)
    union = t.sum() + jnp.cumsum((1 - t) * there)
    jaccard = 1 - left / jnp.maximum(union, 1)
    gain = jnp.diff(jaccard, prepend=0.0) * there
    return (jnp.maximum(error, 0) * gain).sum()

  each = jax.vmap(jax.vmap(image, (1, 1, None)))(p, t, there)
  return _mean(each, t.sum(1) > 0)


def _mean(loss: jax.Array, there: jax.Array) -> jax.Array:
  """Over the classes that are there, (batch, classes) -> (batch,)."""
  return (loss * there).sum(-1) / jnp.maximum(there.sum(-1), 1)
