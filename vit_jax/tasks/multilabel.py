"""Any number of classes for each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Labels
from vit_jax.data.views import View
from vit_jax.tasks.classification import headed
from vit_jax.tasks.images import Images
from vit_jax.tasks.task import Batch, Context, Fields, Prediction, Seen, Sums, picture_of

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.draw import pictures

UNSET: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(Images):
  """Binary cross-entropy of each class, averaged over classes; its focal form, if asked for.

  Attributes:
    gamma: of the focal loss (Lin et al. 2017, equation 4): what is right already counts less; 0 is
      the cross-entropy.
    alpha: weight of classes that are there, of those that are not 1 - alpha (equation 5). Unset:
      both count fully.
    threshold: of the probability from which a class is predicted to be there.
  """

  gamma: float = 0.0
  alpha: float = UNSET
  threshold: float = 0.5
  classed = 'labels'

  def __post_init__(self):
    super().__post_init__()
    if self.gamma < 0:
      raise RunError(f'task.gamma={self.gamma} must not be negative')
    for name in ('alpha', 'threshold'):
      value = getattr(self, name)
      if value is not None and not 0 < value < 1:
        raise RunError(f'task.{name}={value} must be between 0 and 1')

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: a logit for each class."""
    return super().adapt(headed(self, model, fields), fields)

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    del train
    return self.columns(model, fields, view, Labels(model.num_classes))

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The mean over classes."""
    logits = model(part['image'], key=ctx.noise)
    total = (self.each(logits, part['labels']).mean(-1) * part['mask']).sum()
    return total / ctx.totals['examples'], {'loss': (total, 'examples')}, {}

  def each(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of each class of each example, (batch, classes)."""
    right = jnp.where(labels > 0, logits, -logits)
    loss = -jax.nn.log_sigmoid(right)
    if self.gamma:
      loss = loss * jax.nn.sigmoid(-right) ** self.gamma
    if self.alpha is not None:
      loss = loss * jnp.where(labels > 0, self.alpha, 1 - self.alpha)
    return loss

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """float32 'logits' (batch, num_classes)."""
    return {'logits': model(batch['image'])}

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: what is there, and the likeliest classes with their probabilities."""
    del example
    chances = 1 / (1 + np.exp(-np.asarray(outputs['logits'], np.float64)))
    names = _names(seen.fields, len(chances))
    order = np.argsort(-chances, kind='stable').tolist()
    return Prediction(
      {
        'present': [names[i] for i in order if chances[i] >= self.threshold],
        'classes': [
          {'class': names[i], 'probability': float(chances[i])} for i in order[: seen.top]
        ],
      }
    )

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    present = ', '.join(prediction.facts['present']) or 'none of the classes'
    likely = [f'{c["probability"]:6.1%}  {c["class"]}' for c in prediction.facts['classes']]
    return [present, *likely]

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`: the image beside the likeliest classes; what is right about them is green."""
    picture = picture_of(example)
    picture = pictures.resized(picture, pictures.scale(*picture.shape[:2]))
    found = prediction.facts['classes']
    if self.classed not in example:
      inks = [pictures.colour(0)] * len(found)
      lines = []
    else:
      names = seen.fields[self.classed].names
      truth = [names[i] for i in np.asarray(example[self.classed]).tolist()]
      right = [(c['probability'] >= self.threshold) == (c['class'] in truth) for c in found]
      inks = [pictures.RIGHT if each else pictures.WRONG for each in right]
      lines = [(f'true: {", ".join(truth) or "none"}', pictures.INK)]
    bars = [(c['class'], c['probability'], ink) for c, ink in zip(found, inks, strict=True)]
    return pictures.beside(picture, pictures.captioned(pictures.bars(bars), lines))


def _names(fields: Fields, count: int) -> tuple[str, ...]:
  names = fields['labels'].names if 'labels' in fields else ()
  return names if len(names) == count else tuple(f'class {i}' for i in range(count))
