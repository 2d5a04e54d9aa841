"""What training does to a batch of normalised images: parts erased, pairs mixed.

All of it is drawn for the whole batch before it is cut, by a key that depends on seed and step
alone, so that it is the same on every mesh and in parts.
"""

from __future__ import annotations

import dataclasses

from etils import epy

from vit_jax.core.errors import RunError, suggest
from vit_jax.tasks.task import Batch

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import sharding

MODES = ('batch', 'pair', 'elem')
# Keys of one step, far from those that `jax.random.split` gives.
_ERASE, _USED, _SWITCH, _CUT, _ROW, _COLUMN = range(0xA0600000, 0xA0600006)


def erased(batch: Batch, key: jax.Array) -> Batch:
  """Puts colours, or normal noise where there are none, into boxes of images.

  Args:
    batch: with `image`, float32 (batch, height, width, channels), `erased`, int32 (batch, boxes,
      4): top, left, height and width, and perhaps `erased_colour`, float32 (batch, boxes,
      channels). Of boxes that overlap the last counts.
    key: of the step.
  """
  image, boxes = batch['image'], batch['erased']
  coloured = 'erased_colour' in batch
  noise = image
  if not coloured:
    noise = jax.random.normal(
      jax.random.fold_in(key, _ERASE), image.shape, out_sharding=jax.typeof(image).sharding
    )
  for number in range(boxes.shape[1]):
    top, left, height, width = (boxes[:, number, i] for i in range(4))
    inside = _inside(image.shape, top, left, top + height, left + width)
    value = batch['erased_colour'][:, number, None, None, :] if coloured else noise
    image = jnp.where(inside, value, image)
  rest = {name: array for name, array in batch.items() if not name.startswith('erased')}
  return {**rest, 'image': image}


@dataclasses.dataclass(frozen=True)
class Mix:
  """Mixup and CutMix as timm draws them.

  The partner of an example is the one at its mirror position in the batch.

  Attributes:
    mixup, cutmix: alphas of the Beta distributions of shares; 0 for never.
    prob: that a batch, or an example, is mixed at all.
    switch: that it is cut, where both alphas are given.
    mode: what is drawn for the whole batch at once, for each pair, or for each example.
  """

  mixup: float
  cutmix: float
  prob: float
  switch: float
  mode: str

  def __post_init__(self):
    for name in ('mixup', 'cutmix'):
      if getattr(self, name) < 0:
        raise RunError(f'task.{name}={getattr(self, name)} must not be negative')
    for name in ('prob', 'switch'):
      if not 0 <= getattr(self, name) <= 1:
        raise RunError(f'task.mix_{name}={getattr(self, name)} must be a probability')
    if self.mode not in MODES:
      raise RunError(f'unknown task.mix_mode {self.mode!r}: {suggest(self.mode, MODES)}')

  def __bool__(self) -> bool:
    """Whether anything is mixed."""
    return bool(self.prob and (self.mixup or self.cutmix))

  def __call__(self, batch: Batch, key: jax.Array) -> Batch:
    """A batch with mixed images, the label of each partner, `label2`, and the `share` of its own.

    Args:
      batch: with `image`, `label` and `mask`; what is mixed with an example that is not there
        counts for nothing.
      key: of the step.
    """
    image, mask = batch['image'], batch['mask']
    (share, box), other = self.drawn(key, *image.shape[:3]), image[::-1]
    mixed = _by_example(share) * image + (1 - _by_example(share)) * other
    if self.cutmix:
      top, left, bottom, right = box
      mixed = jnp.where(_inside(image.shape, *box), other, mixed)
      share = share - (bottom - top) * (right - left) / (image.shape[1] * image.shape[2])
    return {
      **batch, 'image': mixed, 'mask': mask * mask[::-1], 'label2': batch['label'][::-1],
      'share': jnp.ones_like(mask) * share,
    }  # fmt: skip

  def drawn(
    self, key: jax.Array, batch: int, height: int, width: int
  ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """What is drawn for a batch of images.

    Returns:
      Shares with which images are mixed, 1 where they are not or where a box is cut; and edges of
      the box that comes from the partner: top, left, bottom and right, int32, all 0 for none. All
      are of shape () or, where they are drawn more than once, (batch,).
    """
    shape = {'batch': (), 'pair': ((batch + 1) // 2,), 'elem': (batch,)}[self.mode]
    uniform = lambda tag: jax.random.uniform(jax.random.fold_in(key, tag), shape)  # noqa: E731
    share = jnp.ones(shape)
    if self.mixup:
      share = jax.random.beta(key, self.mixup, self.mixup, shape or None)
    box = (jnp.zeros(shape, jnp.int32),) * 4
    used = uniform(_USED) < self.prob if self.prob < 1 else jnp.ones(shape, bool)
    if self.cutmix:
      kept = jax.random.beta(jax.random.fold_in(key, _CUT), self.cutmix, self.cutmix, shape or None)
      cuts = uniform(_SWITCH) < self.switch if self.mixup else jnp.ones(shape, bool)
      cuts &= used
      edges = []
      for tag, side in ((_ROW, height), (_COLUMN, width)):
        # Both edges are half of the side from a pixel that may be anywhere, and within the image.
        half = jnp.floor(side * jnp.sqrt(1 - kept)).astype(jnp.int32) // 2
        middle = jnp.floor(side * uniform(tag)).astype(jnp.int32)
        edges.append([jnp.clip(middle + way * half, 0, side) for way in (-1, 1)])
      (top, bottom), (left, right) = edges
      there = cuts & (bottom > top) & (right > left)
      box = tuple(jnp.where(there, edge, 0) for edge in (top, left, bottom, right))
      share = jnp.where(cuts, 1.0, share)
    share = jnp.where(used, share, 1.0) if self.prob < 1 else share
    if self.mode == 'pair':  # for both
      twice = lambda x: jnp.concatenate([x, x[: batch // 2][::-1]])  # noqa: E731
      share, box = twice(share), tuple(map(twice, box))
    if shape:
      share, *box = (sharding.reshard(x, 'batch') for x in (share, *box))
    return share, tuple(box)


def _by_example(x: jax.Array) -> jax.Array:
  """(batch,) -> (batch, 1, 1, 1), and a number as it is."""
  return x[:, None, None, None] if x.ndim else x


def _inside(shape: tuple[int, ...], *edges: jax.Array) -> jax.Array:
  """Which pixels of images (batch, height, width, ...) are between edges: (batch or 1, ..., 1).

  Args:
    shape: of the images.
    *edges: top, left, bottom and right, () or (batch,).
  """
  top, left, bottom, right = (_by_example(edge) for edge in edges)
  y, x = jnp.arange(shape[1])[:, None, None], jnp.arange(shape[2])[:, None]
  return (top <= y) & (y < bottom) & (left <= x) & (x < right)
