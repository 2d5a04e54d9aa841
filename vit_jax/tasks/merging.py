"""Answers of queries merged into segments, objects or classes of pixels, on the devices.

As Mask2Former (Cheng et al. 2022) and EoMT (Kerssies et al. 2025) do, at the size of the image that
the model sees, an example and a strip of rows after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.nn import positions, sharding

_STRIP = 16  # rows of pixels at a time, about


def panoptic(
  logits: jax.Array, masks: jax.Array, size: tuple[int, int], *, stuff: Sequence[int],
  threshold: float, overlap: float,
) -> dict[str, jax.Array]:  # fmt: skip
  """Segments that do not overlap.

  A query counts if its likeliest class is not nothing, and likelier than `threshold`. A pixel is of
  the one whose probabilities of class and mask have the largest product there, if its mask is there
  at least as likely as not. Of what a mask covers, at least the share `overlap` must be left to it.
  Of a class that is stuff all is of the first query that says so.

  Args:
    logits: float32 (batch, queries, classes + 1), the last class nothing.
    masks: logits, float32 (batch, queries, rows, columns).
    size: height and width of the image.
    stuff: numbers of classes.
    threshold, overlap: see above.

  Returns:
    'segments' (batch, height, width), of each pixel the number of its query from 1 on, or 0, uint8
    or with more than 255 queries uint16; 'segments_label', int32, and 'segments_score', float32
    (batch, queries): the likeliest class of each query but nothing, and its probability.
  """
  queries, nothing = logits.shape[1], logits.shape[2] - 1
  counted = np.isin(np.arange(nothing), stuff)
  dtype = jnp.uint8 if queries <= 255 else jnp.uint16

  def one(logits: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    share = jax.nn.softmax(logits)
    label = jnp.argmax(share[:, :-1], -1).astype(jnp.int32)
    score = share[:, :-1].max(-1)
    kept = (jnp.argmax(share, -1) != nothing) & (score > threshold)

    def strip(pixels: jax.Array) -> tuple[jax.Array, ...]:
      likely = jnp.where(kept[:, None, None], score[:, None, None] * jax.nn.sigmoid(pixels), -1)
      winner = jnp.argmax(likely, 0)
      own = winner == jnp.arange(queries)[:, None, None]
      sure = pixels >= 0
      count = lambda x: x.sum((1, 2), dtype=jnp.int32)  # noqa: E731
      return winner, (own & sure).any(0), count(own), count(sure), count(own & sure)

    winner, sure, won, covered, left = _by_strips(strip, masks, size)
    won, covered, left = (each.sum(0) for each in (won, covered, left))
    kept &= (left > 0) & (won >= overlap * covered)
    # Of a class that is stuff the first that is kept stands for all.
    same = kept & (label == label[:, None]) & jnp.asarray(counted)[label][:, None]
    leader = jnp.where(same.any(1), jnp.argmax(same, 1), jnp.arange(queries))
    number = jnp.where(kept, leader + 1, 0)
    return jnp.where(sure, number[winner], 0).astype(dtype), label, score

  segments, label, score = _each(one, logits, masks, (3, 2, 2))
  return {'segments': segments, 'segments_label': label, 'segments_score': score}


def objects(
  logits: jax.Array, masks: jax.Array, size: tuple[int, int], *, most: int
) -> dict[str, jax.Array]:
  """The likeliest pairs of query and class, with masks that may overlap.

  The score of a pair is the probability of the class, times the mean one of the pixels that are in
  the mask, which are those that are likelier in it than not.

  Args:
    logits, masks, size: as for `panoptic`.
    most: pairs; a multiple of 8 at best.

  Returns:
    'score' float32 and 'label' int32 (batch, pairs), by the probability of the class; 'masks' uint8
    (batch, height, width, pairs / 8 or one more), the first pair of eight in the highest bit.
  """
  queries, classes = logits.shape[1], logits.shape[2] - 1
  most = min(most, queries * classes)

  def one(logits: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    share, at = jax.lax.top_k(jax.nn.softmax(logits)[:, :-1].reshape(-1), most)
    chosen = at // classes

    def strip(pixels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
      inside = pixels > 0
      likely = jnp.where(inside, jax.nn.sigmoid(pixels), 0).sum((1, 2))
      bits = jnp.packbits(inside[chosen], axis=0)
      return jnp.moveaxis(bits, 0, -1), likely, inside.sum((1, 2), dtype=jnp.int32)

    bits, likely, count = _by_strips(strip, masks, size, maps=1)
    sure = likely.sum(0) / (count.sum(0) + 1e-6)
    return share * sure[chosen], (at % classes).astype(jnp.int32), bits

  score, label, bits = _each(one, logits, masks, (2, 2, 4))
  return {'score': score, 'label': label, 'masks': bits}


def classes(logits: jax.Array, masks: jax.Array, size: tuple[int, int]) -> jax.Array:
  """The class of each pixel that all queries together say: int32 (batch, height, width).

  Of a class it is the sum over queries of the probability of the class times that of the mask.

  Args:
    logits, masks, size: as for `panoptic`.
  """

  def one(logits: jax.Array, masks: jax.Array) -> tuple[jax.Array]:
    share = jax.nn.softmax(logits)[:, :-1]

    def strip(pixels: jax.Array) -> tuple[jax.Array]:
      said = jnp.einsum('qc,qhw->chw', share, jax.nn.sigmoid(pixels), precision='highest')
      return (jnp.argmax(said, 0).astype(jnp.int32),)

    return _by_strips(strip, masks, size, maps=1)

  (found,) = _each(one, logits, masks, (3,))
  return found


def scores(logits: jax.Array, masks: jax.Array, size: tuple[int, int]) -> jax.Array:
  """What `classes` takes the largest of: float32 (batch, height, width, classes)."""

  def one(logits: jax.Array, masks: jax.Array) -> tuple[jax.Array]:
    share = jax.nn.softmax(logits)[:, :-1]

    def strip(pixels: jax.Array) -> tuple[jax.Array]:
      return (jnp.einsum('qc,qhw->hwc', share, jax.nn.sigmoid(pixels), precision='highest'),)

    return _by_strips(strip, masks, size, maps=1)

  (found,) = _each(one, logits, masks, (4,))
  return found


def _each(one, logits: jax.Array, masks: jax.Array, out: Sequence[int]):
  """Of each example in turn; `out` are the dimensions of the results."""
  axes = lambda ndim: ('batch', *(None,) * (ndim - 1))  # noqa: E731
  run = sharding.per_shard(
    lambda *given: jax.lax.map(lambda each: one(*each), given),
    [axes(logits.ndim), axes(masks.ndim)], tuple(map(axes, out)),
  )  # fmt: skip
  return run(logits, masks)


def _by_strips(function, masks: jax.Array, size: tuple[int, int], maps: int = 2):
  """What a function gives for each strip of masks that are enlarged, strips first.

  The first so many results are of the pixels, and are put together.
  """
  rows, columns = (
    positions.resize_weights(np.arange(new), new, old, 'bilinear')
    for new, old in zip(size, masks.shape[1:], strict=True)
  )
  wide = jnp.einsum('Ww,qhw->qhW', columns, masks, precision='highest')
  count = _strips(size[0])

  def strip(weights: jax.Array):
    return function(jnp.einsum('Hh,qhW->qHW', weights, wide, precision='highest'))

  found = jax.lax.map(strip, rows.reshape(count, size[0] // count, -1))
  return tuple(x.reshape(*size, *x.shape[3:]) if at < maps else x for at, x in enumerate(found))


def _strips(height: int) -> int:
  """Into how many strips of equal height, near `_STRIP`."""
  wanted = max(1, height // _STRIP)
  return next(n for n in range(wanted, 0, -1) if height % n == 0)
