"""Segments by queries: what tasks have in common whose models say a class and a mask of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.architecture.detr import DetrArchitecture
from vit_jax.architecture.towers import Besides
from vit_jax.core.errors import RunError
from vit_jax.core.schedule import Schedule
from vit_jax.costs.step import Pass
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Segments
from vit_jax.data.views import View
from vit_jax.tasks import boxes, mask_losses, matching
from vit_jax.tasks.images import Images
from vit_jax.tasks.task import Batch, Context, Fields, Sums

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import sharding

# Of the shares in which masks of attention are lifted (Kerssies et al. 2025, appendix A).
_POWER = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queries(Images):
  """Segments by queries: the loss of Mask2Former, or that of DETR, each for models like these.

  Each layer is matched anew. Of queries that say masks alone, as those of EoMT (Kerssies et al.
  2025), classes and masks are compared with segments, and masks of all layers have a loss (Cheng et
  al. 2022). Of queries that say boxes, too, classes and boxes are compared, and masks of the last
  layer have a loss, which is focal (Carion et al. 2020, section 4.4). Losses of masks are means
  over points, of which most are those of three times as many where a mask is least certain.

  Attributes:
    most: segments of an image that there is room for; where there are more, the largest in view are
      learned.
    points: that the loss of a mask is the mean of; 0 for all cells of the masks, or beside boxes
      all pixels, as in DETR.
    tried: points that are looked at for each of them, to find uncertain ones.
    certain: share of the points that are found so; the others are drawn.
    class_weight, mask_weight, dice_weight: of the terms of costs and loss; all 1 in DETR.
    box_weight, overlap_weight: of the distance of boxes, and of 1 - their generalised overlap, in
      costs and loss, with a model that says boxes.
    nothing: weight of queries without a segment in the mean over classes.
    pixel_weight: of the cross-entropy of every pixel, with model.pixel_head.
    lifted: how far masks of attention have been lifted, from 0, where the queries of each of the
      last blocks see the patches of their masks alone, to 1, where all see everything, as they do
      in predictions. One block after another, and in each by more and more queries, is lifted.
  """

  most: int = 100
  points: int = 12544
  tried: float = 3.0
  certain: float = 0.75
  class_weight: float = 2.0
  mask_weight: float = 5.0
  dice_weight: float = 5.0
  box_weight: float = 5.0
  overlap_weight: float = 2.0
  nothing: float = 0.1
  pixel_weight: float = 1.0
  lifted: Schedule = Schedule('0 until 16.7% then 0->1 linear 66.6%')
  traced = (
    'class_weight', 'mask_weight', 'dice_weight', 'box_weight', 'overlap_weight', 'nothing',
    'pixel_weight',
  )  # fmt: skip

  def __post_init__(self):
    super().__post_init__()
    if self.most < 1 or self.most > 65535 or self.points < 0:
      raise RunError(f'task.most={self.most} must be from 1 to 65535, points={self.points} 0')
    if self.tried < 1 or not 0 <= self.certain <= 1:
      raise RunError(
        f'task.tried={self.tried} must be at least 1, and task.certain={self.certain} a share'
      )
    if not all(0 <= value <= 1 for value in self.lifted.values):
      raise RunError(f'task.lifted={self.lifted.text} is a share, from 0 to 1')

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: classes of the segments."""
    name = type(self).__name__.lower()
    if isinstance(model, DetrArchitecture):
      decoder = dataclasses.replace(model.decoder, masks=True)
      model = dataclasses.replace(model, decoder=decoder).resolve()
      if not model.nothing:
        raise RunError(f'task.name={name} needs a logit of no segment: model.decoder.nothing=True')
    if 'masks' not in getattr(model, 'says', ()):
      raise RunError(
        f'task.name={name} needs a model whose queries say masks, model.name=eomt or detr, not '
        f'{model.kind}'
      )
    classes = self.count_classes(model, fields, f'{self.classed} has', 'sky,sea,boat')
    if 'boxes' in model.says:
      if self.lifted.constant != 1:
        raise RunError(
          f'task.lifted={self.lifted.text} lifts masks of attention, which model.name={model.kind} '
          'does not have: task.lifted=1'
        )
    elif not self.points and any(
      side % cells for side, cells in zip(model.image_size, model.grid, strict=True)
    ):
      raise RunError(
        f'task.points=0 takes all cells of masks, {model.grid} of images of {model.image_size}: '
        'these must divide it'
      )
    return super().adapt(dataclasses.replace(model, num_classes=classes), fields)

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """See `Task`."""
    own = (
      f'{model.queries} queries; room for {self.most} segments in an image (task.most={self.most})'
      ': of more the largest are learned, and left_out counts the others'
    )
    return [own, *super().notes(model, fields)]

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    del train
    boxed = 'boxes' in model.says
    column = Segments(model.num_classes, self.most, self.classed, boxes=boxed)
    return self.columns(model, fields, view, column)

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: heads before each of the last blocks, too, and what it takes to match them.

    Of masks beside boxes what it takes to enlarge those of segments.
    """
    if 'boxes' in model.says:
      (height, width), (rows, columns) = model.image_size, model.grid
      enlarged = self.most * height * (rows + width) * columns * (not self.points)
      larger = Besides(model.image_size, (('enlarged', enlarged),))
      return [Pass(model), Pass(larger, grad='through')]
    deep = tuple((name, macs) for name, _, macs in model.deep)
    looked = self.points or math.prod(model.grid)
    pairs = 2 * (model.blocks + 1) * model.queries * self.most * looked
    return [
      Pass(model), Pass(Besides(model.image_size, deep)),
      Pass(Besides(model.image_size, (('matching', pairs),)), grad='none'),
    ]  # fmt: skip

  def augment(self, batch: Batch, key: Any, hyper: Mapping[str, Any]) -> Batch:
    """See `Images`; also a key for each example, of its points and of what it sees."""
    if key is None:
      return super().augment(batch, None, hyper)
    own, key = jax.random.split(key)
    data = jax.random.key_data(jax.random.split(own, len(batch['image'])))
    drawn = sharding.reshard(data, 'batch', None)
    return {**super().augment(batch, key, hyper), 'drawn': drawn}

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`: examples, segments, and pixels that are of one."""
    there = batch['segments_known'] * batch['mask'][:, None]
    pixels = (batch['segments'] > 0) * batch['mask'][:, None, None]
    return {'examples': batch['mask'].sum(), 'segments': there.sum(), 'pixels': pixels.sum()}

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The sum over layers; of the last one are `classes`, `masks`, `dice` and `accuracy`.

    `left_out` are segments of an example that there is no room, or no query, for. With boxes there
    are their `distance` and `overlap`, too, and `iou`, the mean overlap of segments with those of
    their queries.
    """
    targets, config = mask_losses.Targets.of(part), model.config
    found = self._beside_boxes if 'boxes' in config.says else self._alone
    examples, segments = ctx.totals['examples'], ctx.totals['segments']
    of_classes = matching.class_total(
      config.queries, examples, jnp.minimum(segments, config.queries * examples), self._boxes
    )
    loss, sums, place, classes = found(model, part, targets, ctx, of_classes)
    sums['classes'] = classes / of_classes * examples, 'examples'
    left_out = (targets.there & (place[:, -1] < 0)).sum()
    left_out += (part['segments_left_out'] * part['mask']).sum()
    sums['left_out'] = left_out, 'examples'
    return loss, {'loss': (loss * examples, 'examples'), **sums}, {}

  def _alone(
    self, model: Any, part: Batch, targets: mask_losses.Targets, ctx: Context, of_classes: Any
  ) -> Any:
    """Of masks that are all that queries say; see `_beside_boxes`."""
    config = model.config
    lifted = None
    if self.lifted.constant != 1:
      lifted = self._lifted(config, part['drawn'], ctx.hyper['task.lifted'])
    said = model(part['image'], key=ctx.noise, lifted=lifted, deep=True)
    weights = mask_losses.Weights(
      self.class_weight, self.mask_weight, self.dice_weight, self.nothing
    )
    logits, masks = said['logits'], said['masks']
    points = self._drawn(part, logits.shape[1])
    place = mask_losses.matched(logits, masks, targets, weights, points)
    found = mask_losses.losses(logits, masks, targets, place, weights, points)
    each = self.class_weight * found.classes / of_classes
    segments = ctx.totals['segments']
    each += (self.mask_weight * found.mask + self.dice_weight * found.dice) / segments
    loss = each.sum()
    sums: Sums = {
      'masks': (found.mask[-1], 'segments'), 'dice': (found.dice[-1], 'segments'),
      'accuracy': (found.right[-1], 'segments'),
    }  # fmt: skip
    if 'pixels' in said:
      total, _ = mask_losses.of_pixels(said['pixels'], targets)
      loss += self.pixel_weight * total / ctx.totals['pixels']
      sums['pixels'] = (total, 'pixels')
    return loss, sums, place, found.classes[-1]

  def _beside_boxes(
    self, model: Any, part: Batch, targets: mask_losses.Targets, ctx: Context, of_classes: Any
  ) -> Any:
    """The loss, sums, the query of each segment, and the sum of classes of the last layer."""
    said = model(part['image'], key=ctx.noise, **boxes.framed(part))
    objects, weights = matching.Targets.of_segments(part), self._boxes
    logits, predicted, masks = said['logits'], said['boxes'], said['masks']
    place = matching.matched(logits, predicted, objects, weights, nothing=True)
    found = matching.losses(logits, predicted, objects, place, weights, nothing=True)
    points = self._drawn(part, masks.shape[1])
    mask, dice = mask_losses.focal_losses(masks, targets, place[:, -1:], points)
    segments = ctx.totals['segments']
    each = self.box_weight * found.distance + self.overlap_weight * found.overlap
    each = self.class_weight * found.classes / of_classes + each / segments
    loss = each.sum() + (self.mask_weight * mask + self.dice_weight * dice).sum() / segments
    sums: Sums = {
      'distance': (found.distance[-1], 'segments'), 'overlap': (found.overlap[-1], 'segments'),
      'masks': (mask[-1], 'segments'), 'dice': (dice[-1], 'segments'),
      'iou': (found.iou[-1], 'segments'), 'accuracy': (found.right[-1], 'segments'),
    }  # fmt: skip
    return loss, sums, place, found.classes[-1]

  @property
  def _boxes(self) -> matching.Weights:
    """As `matching` takes them."""
    return matching.Weights(
      self.class_weight, self.box_weight, self.overlap_weight, nothing=self.nothing
    )

  def _drawn(self, part: Batch, layers: int) -> Any:
    """Points that masks are judged at; None for all."""
    if not self.points:
      return None
    return mask_losses.drawn(
      part['drawn'], layers, self.most, self.points, self.tried, self.certain
    )

  def answer(self, model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """What queries say in the end: float32 (batch, queries, classes + 1), (..., rows, columns)."""
    framed = boxes.framed(batch) if 'boxes' in model.config.says else {}
    said = model(batch['image'], **framed)
    return said['logits'][:, -1], said['masks'][:, -1]

  def _lifted(self, config: Any, keys: jax.Array, lifted: Any) -> jax.Array:
    """Which queries see all patches, drawn for each: bool (batch, blocks, queries)."""
    share = jnp.clip(lifted * config.blocks - jnp.arange(config.blocks), 0, 1)
    bound = (1 - share) ** _POWER

    def one(data: jax.Array, bound: jax.Array) -> jax.Array:
      key = jax.random.fold_in(jax.random.wrap_key_data(data), 1)
      return jax.random.uniform(key, (config.blocks, config.queries)) >= bound[:, None]

    run = jax.vmap(one, in_axes=(0, None))
    axes = ('batch', None, None)
    return sharding.per_shard(run, [axes[:2], (None,)], axes)(keys, bound)
