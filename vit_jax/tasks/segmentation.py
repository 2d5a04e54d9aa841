"""A class for every pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from etils import epy

from vit_jax.architecture import MODELS
from vit_jax.architecture.segmenter import SegmenterArchitecture
from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.fields import VOID
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Map
from vit_jax.data.views import View
from vit_jax.tasks.images import Images
from vit_jax.tasks.task import Batch, Context, Fields, Prediction, Seen, Sums, picture_of

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.draw import pictures
  from vit_jax.models import segmenter
  from vit_jax.tasks import pixels

UNSET: Any = None
# Of a map in a batch; see `data.rows.columns.Map`.
_MOST = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maps(Images):
  """A class for every pixel, however it is learned.

  Attributes:
    stride: the loss is of every so many pixels in each direction, of the class at their centre:
      with 4 it takes a sixteenth of the memory. Predictions are of all pixels.
    architecture: of models that have logits for pixels, as `scores` and the loss want them.
  """

  stride: int = 1
  classed = 'map'
  architecture: ClassVar[Any] = SegmenterArchitecture

  def __post_init__(self):
    super().__post_init__()
    if self.stride < 1:
      raise RunError(f'task.stride={self.stride} must be at least 1')

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: logits for each class of the map."""
    if not isinstance(model, self.architecture):
      able = [name for name, kind in MODELS.items() if issubclass(kind, self.architecture)]
      raise RunError(
        f'task.name={type(self).__name__.lower()} needs model.name={", ".join(able)}, not '
        f'{model.kind}'
      )
    classes = self.count_classes(model, fields, 'the map has', 'sky,sea,land')
    if any(side % self.stride for side in model.image_size):
      raise RunError(f'task.stride={self.stride} does not divide images of {model.image_size}')
    model = dataclasses.replace(model, num_classes=classes).resolve()
    return super().adapt(model, fields)

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`: in training the map at the stride of the loss."""
    ignore = fields['map'].ignore if 'map' in fields else ()
    column = Map(model.num_classes, (*ignore, VOID), stride=self.stride if train else 1)
    return self.columns(model, fields, view, column)

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`: examples, and pixels that have a class."""
    return {'examples': batch['mask'].sum(), 'pixels': known(batch).sum()}

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """'map' (batch, height, width), uint8 or, with more than 255 classes, int32."""
    logits = model(batch['image'])
    dtype = jnp.uint8 if logits.shape[-1] <= _MOST else jnp.int32
    return {'map': segmenter.likeliest(logits, model.config.image_size).astype(dtype)}

  def scores(self, model: Any, batch: Batch) -> jax.Array:
    """Probabilities of all pixels, float32 (batch, height, width, classes); see `decided`."""
    logits = segmenter.enlarged(model(batch['image']), model.config.image_size)
    return jax.nn.softmax(logits)

  def decided(self, scores: Any) -> Any:
    """The class of each pixel by its probabilities, int (..., height, width); of NumPy, too."""
    return scores.argmax(-1)

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: the map of the image, and the share of each class."""
    labels = in_image(outputs, example, seen)
    names = seen.fields['map'].names
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    order = np.argsort(-counts, kind='stable')
    named = lambda c: names[c] if c < len(names) else f'class {c}'  # noqa: E731
    share = {named(int(classes[i])): float(counts[i] / labels.size) for i in order}
    few = max(len(names), int(labels.max(initial=0)) + 1) <= _MOST
    stored = np.where(labels < 0, _MOST if few else 65535, labels)
    return Prediction({'share': share}, {'map': stored.astype(np.uint8 if few else np.uint16)})

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    return [f'{share:6.1%}  {name}' for name, share in prediction.facts['share'].items()]

  def coloured(self, labels: np.ndarray, classes: int) -> np.ndarray:
    """Which class a pixel is drawn as, of a map of so many; -1 leaves it as it is."""
    del classes
    return labels

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`: images, the map over the last, the true one if it is known, and the colours."""
    from vit_jax.data.masks import decode_map

    views = [picture_of(example, name) for name in self.images]
    picture = views[-1]
    by = pictures.scale(*picture.shape[:2])
    stored = prediction.arrays['map'].astype(np.int64)
    void = 255 if prediction.arrays['map'].dtype == np.uint8 else 65535
    maps = [np.where(stored == void, -1, stored)]
    names = seen.fields['map'].names
    if 'map' in example:
      truth = decode_map(example['map'])
      ignored = (*seen.fields['map'].ignore, VOID)
      maps.append(np.where(np.isin(truth, ignored), -1, truth))
    maps = [self.coloured(each, len(names)) for each in maps]
    shown = sorted({int(c) for each in maps for c in np.unique(each) if c >= 0})
    legend = [(names[c] if c < len(names) else f'class {c}', pictures.colour(c)) for c in shown]
    titles = ('predicted', 'true')
    drawn = [
      pictures.captioned(pictures.resized(pictures.regions(picture, each), by),
                         [(title, pictures.INK)])
      for each, title in zip(maps, titles, strict=False)
    ]  # fmt: skip
    views = [pictures.resized(view, by) for view in views]
    return pictures.beside(*views, *drawn, pictures.legend(legend))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Maps):
  """Softmax cross-entropy of the pixels that have a class, and what may be added to it.

  A head that helps in training, as UPerNet's second one, has the same loss with its weight. The
  terms reported, `loss` of the cross-entropy, `dice` and `lovasz`, add up to the objective.

  Attributes:
    class_weights: of the cross-entropy, one for each class; the sum is divided by that of the
      weights of all pixels. Unset: all are 1.
    focal: gamma of the focal loss, which multiplies the cross-entropy of a pixel by
      (1 - p)^gamma, p being the probability of its class (Lin et al. 2017, equation 4); 0 for none.
    dice: weight of the soft Dice loss (Milletari et al. 2016), see `pixels.dice`.
    lovasz: weight of the Lovasz softmax loss (Berman et al. 2018), see `pixels.lovasz`.
  """

  class_weights: tuple[float, ...] = UNSET
  focal: float = 0.0
  dice: float = 0.0
  lovasz: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if min(self.focal, self.dice, self.lovasz) < 0:
      raise RunError('task.focal, task.dice and task.lovasz must not be negative')
    weights = self.class_weights
    if weights is not None and not (min(weights, default=0) >= 0 < sum(weights)):
      raise RunError(f'task.class_weights={weights} must not be negative, and some positive')

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`."""
    model = super().adapt(model, fields)
    if self.class_weights is not None and len(self.class_weights) != model.num_classes:
      raise RunError(
        f'task.class_weights has {len(self.class_weights)} values, and the map '
        f'{model.num_classes} classes'
      )
    return model

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`: examples, pixels that have a class, and what these weigh."""
    found = super().totals(batch)
    if self.class_weights is not None:
      found['weight'] = (known(batch) * pixels.weights(batch['map'], self.class_weights)).sum()
    return found

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The mean over pixels that have a class; reported with it is `accuracy`."""
    heads = [
      segmenter.enlarged(logits, part['map'].shape[1:])
      for logits in model.said(part['image'], key=ctx.noise)
    ]
    valid, label = known(part), part['map'].astype(jnp.int32)
    weight = (
      valid if self.class_weights is None else valid * pixels.weights(label, self.class_weights)
    )
    per = 'pixels' if self.class_weights is None else 'weight'
    factors = [1.0, *(getattr(model.config, 'auxiliary', 0.0) for _ in heads[1:])]
    terms: dict[str, tuple[Any, str]] = {}

    def add(name: str, value: Any, total: str) -> None:
      terms[name] = (terms[name][0] + value if name in terms else value, total)

    for factor, logits in zip(factors, heads, strict=True):
      add('loss', factor * (pixels.crossentropy(logits, label, self.focal) * weight).sum(), per)
      for name in ('dice', 'lovasz'):
        if share := getattr(self, name):
          found = getattr(pixels, name)(logits, label, valid)
          add(name, factor * share * (found * part['mask']).sum(), 'examples')
    total: jax.Array = jnp.zeros(())
    for value, name in terms.values():
      total += value / ctx.totals[name]
    right = ((jnp.argmax(heads[0], -1) == label) * valid).sum()
    return total, {**terms, 'accuracy': (right, 'pixels')}, {}


def in_image(outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> np.ndarray:
  """The predicted map of an image, int64 (height, width); -1 where the model saw nothing of it."""
  return seen.rows.placement(example).back_labels(outputs['map'].astype(np.int64), -1)


def known(batch: Batch) -> jax.Array:
  """Which pixels have a class and are of an example, float32 (batch, height, width)."""
  labels = batch['map']
  there = labels != jnp.iinfo(labels.dtype).max
  return there.astype(jnp.float32) * batch['mask'][:, None, None]
