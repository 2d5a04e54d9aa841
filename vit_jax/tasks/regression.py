"""Numbers with a unit, from images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from etils import epy

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.examples import Example
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Vector
from vit_jax.data.views import View
from vit_jax.tasks.images import Images, insist_on_single
from vit_jax.tasks.task import Batch, Context, Fields, Prediction, Seen, Sums, picture_of

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.draw import pictures

LOSSES = ('squared', 'absolute', 'huber')
UNSET: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Images):
  """A vector of numbers, each measured in its own spread over the training data.

  Numbers that are not known count for nothing.

  Attributes:
    loss_of: distances: 'squared', 'absolute', or 'huber', which is squared below 1 and absolute
      above (Huber 1964).
    center, spread: what is subtracted from each number, and what it is then divided by. Unset: mean
      and standard deviation of a thousand of the training data.
  """

  loss_of: str = 'squared'
  center: tuple[float, ...] = UNSET
  spread: tuple[float, ...] = UNSET

  def __post_init__(self):
    super().__post_init__()
    if self.loss_of not in LOSSES:
      raise RunError(f'unknown task.loss_of {self.loss_of!r}: {suggest(self.loss_of, LOSSES)}')
    if self.spread is not None and min(self.spread) <= 0:
      raise RunError(f'task.spread={self.spread} must be positive')

  def settled(self, fields: Fields) -> Self:
    """See `Task`: center and spread of the data."""
    self, field = super().settled(fields), fields.get('target')
    if not field:
      return self
    center, spread = self.center or field.center, self.spread or field.spread
    for name, values in (('center', center), ('spread', spread)):
      if values and len(values) not in (1, len(field.names)):
        raise RunError(
          f'task.{name}={values} has {len(values)} values, and the target {len(field.names)}: '
          f'{", ".join(field.names)}'
        )
    if not center or not spread:
      raise RunError(
        f'none of the numbers of target, {", ".join(field.names)}, is known in the training data: '
        'there is nothing to learn'
      )
    return dataclasses.replace(self, center=center, spread=spread)

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: an output for each number."""
    insist_on_single('regression', model)
    count = len(fields['target'].names) if 'target' in fields else 0
    if count and model.num_classes not in (0, count):
      raise RunError(f'model.num_classes={model.num_classes}, and the target has {count} numbers')
    return super().adapt(dataclasses.replace(model, num_classes=count or model.num_classes), fields)

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    if not train and not (self.center and self.spread):
      raise RunError(
        'what was predicted is in units that are not known: give --config.task.center and '
        '--config.task.spread, the mean and standard deviation of each number of the training data'
      )
    return self.columns(model, fields, view, Vector(model.num_classes))

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`: examples, and numbers that are known."""
    known = batch['target_known'] * batch['mask'][:, None]
    return {'examples': batch['mask'].sum(), 'numbers': known.sum()}

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The mean over numbers that are known."""
    center, spread = jnp.array(self.center), jnp.array(self.spread)
    wanted = (part['target'] - center) / spread
    known = part['target_known'] * part['mask'][:, None]
    apart = jnp.abs(model(part['image'], key=ctx.noise) - wanted)
    squared = jnp.square(apart)
    if self.loss_of == 'absolute':
      each = apart
    elif self.loss_of == 'huber':
      each = jnp.where(apart < 1, 0.5 * squared, apart - 0.5)
    else:
      each = squared
    total = (each * known).sum()
    return total / ctx.totals['numbers'], {'loss': (total, 'numbers')}, {}

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """float32 'target' (batch, numbers), in the units of the data."""
    return {'target': model(batch['image']) * jnp.array(self.spread) + jnp.array(self.center)}

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: each number with its unit."""
    del example
    values = np.asarray(outputs['target'], np.float64).tolist()
    field = seen.fields['target']
    units = field.units or ('',) * len(values)
    return Prediction({
      'target': [
        {'name': name, 'value': value, 'unit': unit}
        for name, value, unit in zip(field.names, values, units, strict=True)
      ]
    })  # fmt: skip

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    return [_written(each) for each in prediction.facts['target']]

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`: the image over the numbers, and beside each what it should be."""
    picture = picture_of(example)
    picture = pictures.resized(picture, pictures.scale(*picture.shape[:2]))
    truth = example.get('target')
    lines = []
    for number, each in enumerate(prediction.facts['target']):
      text = _written(each)
      if truth is not None:
        text += f'   (true: {np.asarray(truth, float)[number]:.4g})'
      lines.append((text, pictures.INK))
    return pictures.captioned(picture, lines)


def _written(each: Mapping[str, Any]) -> str:
  return f'{each["name"]}: {each["value"]:.4g} {each["unit"]}'.rstrip()
