"""Losses over all pairs of images and texts of a batch, on any mesh.

Of two kinds. 'softmax': the cross-entropy of which text belongs to an image and which image to a
text, half of each (CLIP, Radford et al. 2021, figure 3). 'sigmoid': a binary cross-entropy for each
pair, added up for each image (SigLIP, Zhai et al. 2023, equation 1).

And in two forms, which give the same. `dense` has all texts on every device, and the logits of its
images with all of them. `around` lets texts go from device to device, and never has more logits
than of one block; so does its backward pass, where automatic differentiation of the first would
keep all that has come by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.core.errors import RunError
from vit_jax.nn.sharding import per_shard, reshard, ring, spec, total, whole

KINDS = ('softmax', 'sigmoid')
_LOW = -1e30  # of a logit that does not count; differences to it are finite
# Cosines that differ by less are equal: the same two vectors may have others in another product.
_SAME = 1e-6


class Pairs(NamedTuple):
  """Images and the texts that belong to them; the leading axis is the batch.

  Attributes:
    image, text: unit vectors, float32 (batch, width).
    key: float32 (batch, n): where all n are equal, either text belongs to either image, and the two
      are no example of what does not belong together; n = 0 for those where nobody knows.
    real: float32 (batch,), 0 for padding.
  """

  image: jax.Array
  text: jax.Array
  key: jax.Array
  real: jax.Array


class Found(NamedTuple):
  """What is known of each pair: float32 (batch,) each, 0 for padding.

  Attributes:
    loss: its part of the loss, whose sum over the batch is to be divided by the number of pairs.
    text_right: whether its own text is more like the image than any other of the batch; what is
      equally similar, but for rounding, counts against it.
    image_right: whether its own image is more like the text than any other, likewise.
  """

  loss: jax.Array
  text_right: jax.Array
  image_right: jax.Array


def dense(kind: str, pairs: Pairs, scale: jax.Array, bias: jax.Array) -> Found:
  """The loss of each pair, by all logits at once.

  Args:
    kind: 'softmax' or 'sigmoid'.
    pairs: of the whole batch.
    scale, bias: float32 scalars; logits are scale * cosine + bias. A softmax does not feel a bias.
  """
  texts, keys, there = map(whole, (pairs.text, pairs.key, pairs.real))
  cosines = _products(pairs.image, texts, out_sharding=spec('batch', None))
  number = jnp.arange(len(keys))
  own = reshard(number, 'batch')[:, None] == number
  counted = _counted(pairs.key, keys, pairs.real, there, own)
  logits, mine = cosines * scale + bias, _own(pairs)
  others = counted & ~own
  if kind == 'sigmoid':
    loss = jnp.where(others, jax.nn.softplus(logits), 0).sum(1)
  else:
    logits = jnp.where(counted, logits, _LOW)
    rows, columns = (jax.nn.logsumexp(logits, axis) for axis in (1, 0))
    loss = (rows + reshard(columns, 'batch')) / 2
  best = jnp.where(others, cosines, -jnp.inf)
  return _found(kind, pairs, scale, bias, loss, mine, best.max(1), reshard(best.max(0), 'batch'))


def around(kind: str, block: int, pairs: Pairs, scale: jax.Array, bias: jax.Array) -> Found:
  """As `dense`, with texts that go around the devices among which the batch is divided.

  Args:
    kind: 'softmax' or 'sigmoid'.
    block: texts whose logits with the images of a device are there at a time, a divisor of its part
      of the batch; 0 for all that have come from one device.
    pairs: of the whole batch.
    scale, bias: see `dense`.
  """
  found: Any = _around(kind, block, pairs, scale, bias)
  return Found(*found)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _around(kind, block, pairs, scale, bias):
  return _forward(kind, block, pairs, scale, bias)[0]


def _forward(kind, block, pairs, scale, bias):
  """What is found, and the normalisers of images and texts, (batch,) each."""
  axes = _AXES, (), ()
  out = ('batch',), ('batch',), ('batch',)
  return per_shard(functools.partial(_meet, kind, block), axes, (out, out[:2]))(pairs, scale, bias)


def _meet(kind, block, pairs, scale, bias):
  """The forward pass of a device."""
  low = jnp.full(len(pairs.real), -jnp.inf)
  start = jnp.zeros_like(low) if kind == 'sigmoid' else low

  def see(state, part, own):
    (rows, best), (texts, keys, there, columns, best_of) = state, part
    cosines = _products(pairs.image, texts)
    logits = cosines * scale + bias
    counted = _counted(pairs.key, keys, pairs.real, there, own)
    others = counted & ~own
    if kind == 'sigmoid':
      rows = rows + jnp.where(others, jax.nn.softplus(logits), 0).sum(1)
    else:
      logits = jnp.where(counted, logits, -jnp.inf)
      rows = jnp.logaddexp(rows, jax.nn.logsumexp(logits, 1))
      columns = jnp.logaddexp(columns, jax.nn.logsumexp(logits, 0))
    cosines = jnp.where(others, cosines, -jnp.inf)
    best, best_of = jnp.maximum(best, cosines.max(1)), jnp.maximum(best_of, cosines.max(0))
    return (rows, best), (texts, keys, there, columns, best_of)

  moving = pairs.text, pairs.key, pairs.real, start, low
  (rows, best), (*_, columns, best_of) = ring(_in_blocks(see, block), (start, low), moving)
  loss = rows if kind == 'sigmoid' else (rows + columns) / 2
  found = _found(kind, pairs, scale, bias, loss, _own(pairs), best, best_of)
  return tuple(found), (rows, columns)


def _keep(kind, block, pairs, scale, bias):
  found, normalisers = _forward(kind, block, pairs, scale, bias)
  return found, (pairs, scale, bias, normalisers)


def _back(kind, block, kept, wanted):
  """Gradients of pairs, scale and bias, by those of the loss of each pair."""
  pairs, scale, bias, normalisers = kept
  each = ('batch',)
  run = per_shard(
    functools.partial(_meet_again, kind, block), (_AXES, (), (), (each, each), each),
    (_AXES[:2], (), ()),
  )  # fmt: skip
  (image, text), of_scale, of_bias = run(pairs, scale, bias, normalisers, wanted[0])
  return Pairs(image, text, 0 * pairs.key, 0 * pairs.real), of_scale, of_bias


def _meet_again(kind, block, pairs, scale, bias, normalisers, wanted):
  """The backward pass of a device."""
  rows, columns = normalisers
  wanted = wanted * pairs.real

  def see(state, part, own):
    (image, of_scale, of_bias), (texts, keys, there, columns, asked, text) = state, part
    cosines = _products(pairs.image, texts)
    logits = cosines * scale + bias
    counted = _counted(pairs.key, keys, pairs.real, there, own)
    if kind == 'sigmoid':
      weight = jnp.where(counted & ~own, jax.nn.sigmoid(logits), 0) * wanted[:, None]
    else:
      of_rows, of_columns = jnp.exp(logits - rows[:, None]), jnp.exp(logits - columns)
      weight = jnp.where(counted, of_rows * wanted[:, None] + of_columns * asked, 0) / 2
    image = image + scale * jnp.matmul(weight, texts, precision=_EXACT)
    text = text + scale * jnp.matmul(weight.T, pairs.image, precision=_EXACT)
    state = image, of_scale + (weight * cosines).sum(), of_bias + weight.sum()
    return state, (texts, keys, there, columns, asked, text)

  # Of each with its own, which needs no meeting.
  mine = _own(pairs)
  weight = -wanted
  if kind == 'sigmoid':
    weight = weight * jax.nn.sigmoid(-(mine * scale + bias))
  alike = (scale * weight)[:, None]
  state = alike * pairs.text, (weight * mine).sum(), weight.sum()
  moving = pairs.text, pairs.key, pairs.real, columns, wanted, alike * pairs.image
  (image, of_scale, of_bias), (*_, text) = ring(_in_blocks(see, block), state, moving)
  return (image, text), total(of_scale), total(of_bias)


_around.defvjp(_keep, _back)
_rows: Any = ('batch', None)
_AXES = Pairs(_rows, _rows, _rows, _rows[:1])
_EXACT = jax.lax.Precision.HIGHEST


def _in_blocks(see: Callable[..., Any], block: int) -> Callable[..., Any]:
  """`see` as `ring` calls it, given so many texts at a time and which of them are the own ones."""

  def visit(state: Any, part: Any, turn: Any) -> Any:
    size = len(part[0])
    number = jnp.arange(size)

    def some(state, item):
      part, columns = item
      return see(state, part, (number[:, None] == columns) & (turn == 0))

    if not 0 < block < size:
      return some(state, (part, number))
    if size % block:
      raise RunError(f'blocks of {block} texts do not divide the {size} pairs of a device')
    cut = lambda x: x.reshape(size // block, block, *x.shape[1:])  # noqa: E731
    state, parts = jax.lax.scan(some, state, jax.tree.map(cut, (part, number)))
    return state, jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), parts)

  return visit


def _products(images: jax.Array, texts: jax.Array, **layout: Any) -> jax.Array:
  """Cosines in float32: those of bfloat16 have an error of 0.4 in a logit of 100."""
  return jnp.einsum('id,jd->ij', images, texts, precision=_EXACT, **layout)


def _own(pairs: Pairs) -> jax.Array:
  """Cosine of each image with its own text."""
  return (pairs.image * pairs.text).sum(-1)


def _counted(key, keys, real, there, own):
  """Which logits count: those of real images and texts, of which either is no other's double."""
  counted = (real[:, None] > 0) & (there > 0)
  if not key.shape[1]:
    return counted
  same = (key[:, n, None] == keys[:, n] for n in range(key.shape[1]))
  return counted & (own | ~functools.reduce(jnp.logical_and, same))


def _found(kind, pairs, scale, bias, loss, mine, best, best_of):
  """The result, by the loss without what a pair has of itself."""
  logit = mine * scale + bias
  loss = loss + jax.nn.softplus(-logit) if kind == 'sigmoid' else loss - logit
  real = pairs.real > 0
  mine = mine - _SAME
  some = [jnp.where(real, value, 0) for value in (loss, mine > best, mine > best_of)]
  return Found(*(value.astype(jnp.float32) for value in some))
