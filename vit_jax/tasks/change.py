"""What has changed from one picture of a place to the next, pixel by pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from etils import epy

from vit_jax.architecture.change import DATES, ChangeArchitecture
from vit_jax.core.errors import RunError
from vit_jax.costs.step import Pass
from vit_jax.data.fields import VOID
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Map, Marked
from vit_jax.data.views import View
from vit_jax.tasks.segmentation import Maps, Segmentation, known
from vit_jax.tasks.task import Batch, Context, Fields, Sums

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.models import segmenter
  from vit_jax.nn import sharding
  from vit_jax.tasks import pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Maps):
  """A class for every pixel of a pair of images.

  Images are the fields `before` and `after`, of one size, and are cut and mirrored alike.

  Attributes:
    located: whether the model says by the first image alone where something is.
  """

  images = ('before', 'after')
  architecture = ChangeArchitecture
  located: ClassVar[bool] = False

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: logits for each class of the map."""
    if isinstance(model, self.architecture):
      model = dataclasses.replace(model, located=self.located)
    return super().adapt(model, fields)

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: the encoder sees two images."""
    return [Pass(model), *(Pass(model.encoder) for _ in range(DATES - 1))]

  def augment(self, batch: Batch, key: Any, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`: normalises the images and puts them together, (batch, 2, height, width, ...)."""
    batch = super().augment(batch, key, hyper)
    before, after = (batch.pop(name) for name in self.images)
    return {**batch, 'image': jnp.stack([before, after], axis=1)}

  def coloured(self, labels: np.ndarray, classes: int) -> np.ndarray:
    """See `Maps`: the first class, that there is nothing to tell, is left as it is."""
    labels = np.where(labels > 0, 1, labels) if classes == 2 else labels
    return np.where(labels == 0, -1, labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change(Pairs, Segmentation):
  """The losses of `Segmentation`, of pairs of images.

  The map may have two classes, of which every number but 0 is the second, or several kinds of
  change.

  Attributes:
    swap: whether the dates of half of the pairs are swapped in training; for maps that say the same
      then.
  """

  swap: bool = False

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`."""
    model = super().adapt(model, fields)
    if model.num_classes < 2:
      raise RunError(f'{model.num_classes} class of changes: the first is that nothing has changed')
    return model

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`: in training the map at the stride of the loss."""
    ignore = fields['map'].ignore if 'map' in fields else ()
    column = Marked if model.num_classes == 2 else Map
    stride = self.stride if train else 1
    return self.columns(
      model, fields, view, column(model.num_classes, (*ignore, VOID), stride=stride)
    )

  def augment(self, batch: Batch, key: Any, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`."""
    batch = super().augment(batch, key, hyper)
    if self.swap and key is not None:
      pairs = batch['image']
      swapped = jax.random.bernoulli(key, 0.5, (len(pairs), *(1,) * (pairs.ndim - 1)))
      swapped = sharding.reshard(swapped, 'batch', *(None,) * (pairs.ndim - 1))
      batch['image'] = jnp.where(swapped, pairs[:, ::-1], pairs)
    return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage(Pairs):
  """Where buildings are, by the first image, and how damaged they are, by both.

  The first class of the map is that there is no building, the others are levels of damage. Losses
  are the binary cross-entropy of buildings, the mean over pixels that have a class; and that of
  levels by softmax, the mean over pixels of buildings, in which a pixel counts by its weight.

  Attributes:
    weights: of the levels in their order, in the second loss; unset: 1 for each. Where few
      buildings are damaged, the damaged ones need more.
  """

  weights: tuple[float, ...] = ()
  located = True

  def __post_init__(self):
    super().__post_init__()
    if self.weights and not min(self.weights) > 0:
      raise RunError(f'task.weights={self.weights} must be positive')

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`."""
    model = super().adapt(model, fields)
    levels = model.num_classes - 1
    if levels < 2:
      raise RunError(
        f'the map has {model.num_classes} classes: damage needs no building, and at least two '
        'levels'
      )
    if self.weights and len(self.weights) != levels:
      raise RunError(f'task.weights={self.weights} has {len(self.weights)} values for {levels} '
                     'levels of damage')  # fmt: skip
    return model

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`: also pixels of buildings, and the weights of these."""
    houses, weight = self._houses(batch)
    return {**super().totals(batch), 'buildings': houses.sum(), 'weights': weight.sum()}

  def _houses(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Which pixels are of buildings, and their weights, float32 (batch, height, width)."""
    houses = known(batch) * (batch['map'] > 0)
    if not self.weights:
      return houses, houses
    number = jnp.where(houses > 0, batch['map'], 0)
    return houses, pixels.weights(number, (0.0, *self.weights))

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """Both losses together; reported with them is which share of the levels is right."""
    logits = segmenter.enlarged(model(part['image'], key=ctx.noise), part['map'].shape[1:])
    there, (houses, weight) = known(part), self._houses(part)
    sign = 2 * houses - 1
    located = (jax.nn.softplus(-sign * logits[..., 0]) * there).sum()
    levels, level = logits[..., 1:], part['map'].astype(jnp.int32) - 1
    damage = (pixels.crossentropy(levels, level) * weight).sum()
    right = ((jnp.argmax(levels, -1) == level) * houses).sum()
    total = located / ctx.totals['pixels'] + damage / ctx.totals['weights']
    sums = {
      'loss': (total * ctx.totals['examples'], 'examples'), 'located': (located, 'pixels'),
      'damage': (damage, 'weights'), 'accuracy': (right, 'buildings'),
    }  # fmt: skip
    return total, sums, {}

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """'map' (batch, height, width), uint8."""
    return {'map': self.decided(self.scores(model, batch)).astype(jnp.uint8)}

  def scores(self, model: Any, batch: Batch) -> jax.Array:
    """See `Segmentation`: that there is no building, and that there is one of each level."""
    logits = segmenter.enlarged(model(batch['image']), model.config.image_size)
    building = jax.nn.sigmoid(logits[..., :1])
    return jnp.concatenate([1 - building, building * jax.nn.softmax(logits[..., 1:])], axis=-1)

  def decided(self, scores: Any) -> Any:
    """See `Segmentation`: the likeliest level where a building is likelier than none."""
    return (scores[..., 1:].argmax(-1) + 1) * (scores[..., 0] < 0.5)
