"""What tasks on images have in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from etils import epy

from vit_jax.architecture import MODELS, SINGLE, encoders
from vit_jax.architecture.card import Card
from vit_jax.core.errors import RunError
from vit_jax.data import crops, preprocess
from vit_jax.data.rows.columns import Column, Columns, Drawn, Image
from vit_jax.data.views import View
from vit_jax.tasks import mixing
from vit_jax.tasks.task import Batch, Fields, Task

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

UNSET: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Task):
  """A task whose images are normalised on the devices.

  Attributes:
    mean, std: per channel (or one for all) of pixels in [0, 1], to normalise with; of images of
      floats in their own unit. Unset: those of the checkpoint that the run starts from, or 0.5.
    measure: whether, where they are unset, they are those of each band of a thousand of the
      training images instead. They are measured once: checkpoints have them.
    images: names of the fields that are the images of an example.
  """

  mean: tuple[float, ...] = UNSET
  std: tuple[float, ...] = UNSET
  measure: bool = False
  images: ClassVar[tuple[str, ...]] = ('image',)

  def normalize(self, images: jax.Array) -> jax.Array:
    """(..., height, width, channels) -> float32; the largest number of whole ones is 1 before."""
    mean, std = self.statistics(1)
    whole = jnp.issubdtype(images.dtype, jnp.integer)
    largest = jnp.iinfo(images.dtype).max if whole else 1
    return (images.astype(jnp.float32) / largest - jnp.array(mean)) / jnp.array(std)

  def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each of so many channels."""
    spread = lambda given: given * channels if len(given) == 1 else given  # noqa: E731
    return spread(self.mean or (0.5,)), spread(self.std or (0.5,))

  def measured(self, model: Any, fields: Fields) -> tuple[Image, ...]:
    """See `Task`: all images, if anything is to be measured; RunError if all is given."""
    if not self.measure:
      return ()
    if self.mean is not None and self.std is not None:
      raise RunError(
        f'task.measure=True, and task.mean={self.mean} is given: leave out one of them, by '
        '--config.task.mean=None --config.task.std=None'
      )
    return self._seen(model, fields)

  def settled(self, fields: Fields) -> Self:
    """See `Task`: mean and std of the data, over all images of an example."""
    own = [fields[name] for name in self.images if name in fields and fields[name].center]
    if not self.measure or not own:
      return self
    center, spread = (np.array([getattr(field, n) for field in own]) for n in ('center', 'spread'))
    mean = center.mean(0)
    std = np.sqrt((spread**2 + (center - mean) ** 2).mean(0))
    return dataclasses.replace(
      self, mean=self.mean or tuple(mean.tolist()), std=self.std or tuple(std.tolist())
    )

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """See `Task`: what was measured."""
    del model
    known = [name for name in self.images if name in fields and fields[name].center]
    if not self.measure or not known:
      return []
    written = lambda values: ','.join(f'{value:.4g}' for value in values)  # noqa: E731
    return [
      f'task.measure: --config.task.mean={written(self.mean)} --config.task.std='
      f'{written(self.std)}, of {" and ".join(known)} in the training data'
    ]

  def usual(self, channels: int, dtype: str) -> np.ndarray:
    """Of each band the value of a pixel, of that type, that is 0 once it is normalised."""
    mean = np.array(self.statistics(channels)[0])
    return mean if dtype == 'float32' else np.rint(mean * np.iinfo(dtype).max).astype(dtype)

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`; raises RunError unless size, mean and std are of the model's images."""
    channels, size = _seeing(model).in_channels, _seeing(model).image_size
    if len(size) != 2:
      raise RunError(
        f'model.image_size={size}: the images of this task have a height and a width, nothing else'
      )
    floats = any(name in fields and fields[name].dtype == 'float32' for name in self.images)
    if floats and self.mean is None and not self.measure:
      raise RunError(
        'images of floats have a unit of their own: give --config.task.measure=True, or '
        '--config.task.mean and --config.task.std of each channel'
      )
    for name in ('mean', 'std'):
      values = getattr(self, name)
      if values is None:
        continue
      if len(values) not in (1, channels):
        one = sum(values) / len(values) if values else 0.5
        raise RunError(
          f'task.{name}={values} has {len(values)} values, and model.in_channels={channels}: give '
          f'one value for each channel, or one for all, such as --config.task.{name}={one:.3g}'
        )
      low, high = min(values), max(values)
      sound = all(map(math.isfinite, values))
      if not sound or (low <= 0 if name == 'std' else not floats and (low < 0 or high > 1)):
        scale = ': divide by 255' if high > 1 else ''
        raise RunError(
          f'task.{name}={values}: pixels in [0, 1] cannot be normalised with that{scale}'
        )
    return super().adapt(model, fields)

  def count_classes(self, model: Any, fields: Fields, whose: str, names: str) -> int:
    """How many classes `classed` has: those of the data, or of the model where these have no names.

    Args:
      model: resolved, with `num_classes`, which is 0 where it does not say.
      fields: as for `adapt`.
      whose: 'the map has' or so, for messages.
      names: of some classes, as an example.

    Raises:
      RunError: if nobody says, or they do not agree.
    """
    known = fields[self.classed].names if self.classed in fields else ()
    subject, verb = whose.rsplit(' ', 1)
    if not known and not model.num_classes:
      place = f'--config.data.source.names.{self.classed}'
      raise RunError(
        f'how many classes {verb} {subject}? Name them: {place}={names}, or say how many: '
        f'{place}=21'
      )
    if known and model.num_classes not in (0, len(known)):
      raise RunError(f'model.num_classes={model.num_classes}, and {whose} {len(known)} classes')
    return len(known) or model.num_classes

  def columns(
    self, model: Any, fields: Fields, view: View, *others: Column, drawn: tuple[Drawn, ...] = ()
  ) -> Columns:
    """Rows of the image as the model takes it, other columns, and what is drawn besides."""
    images = self._seen(model, fields)
    return Columns(view.sized(_seeing(model).image_size), images, others, drawn)

  def _seen(self, model: Any, fields: Fields) -> tuple[Image, ...]:
    images = tuple(image_of(model, fields, name) for name in self.images)
    gaps = any(i.dtype == 'float32' or (i.field in fields and fields[i.field].gaps) for i in images)
    return tuple(dataclasses.replace(image, gaps=gaps) for image in images)

  def augment(self, batch: Batch, key: jax.Array | None, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`: normalises the images, and erases the boxes that the view has drawn.

    Where images do not fill the frame, or pixels are missing, the rest is 0.
    """
    del hyper
    found = {name: self.normalize(batch[name]) for name in self.images}
    if 'there' in batch:
      there = batch['there'][..., None] > 0
      found = {name: jnp.where(there, image, 0) for name, image in found.items()}
    if 'extent' in batch:
      found = {name: image * _inside(image, batch['extent']) for name, image in found.items()}
    batch = {**batch, **found}
    return mixing.erased(batch, key) if key is not None and 'erased' in batch else batch

  def card(self, model: Any, crop: Any, fields: Fields) -> Card:
    """See `Task`."""
    seeing = _seeing(model)
    mean, std = self.statistics(seeing.in_channels)
    names = fields[self.classed].names if self.classed in fields else ()
    names = names if len(names) == getattr(model, 'num_classes', 0) else ()
    fraction = getattr(crop, 'fraction', 0.0)
    fills = getattr(crop, 'fills', False)
    return Card('vit_jax', seeing.image_size, mean, std, crop.method, fraction, names, fills)


def prepare(image: Any, card: Card, channels: int = 0) -> np.ndarray:
  """An image as a model wants it, float32 (*card.size, channels).

  Args:
    image: encoded, or uint8 (height, width, channels).
    card: of the model.
    channels: of the model; those of an array if not given.
  """
  crop = crops.of_card(card)
  channels = channels or image.shape[2]
  height, width = card.size
  view = View(crop, size=(height, width))
  pixels = preprocess.prepare(image, view, channels, None)
  pixels = pixels.astype(np.float32) / 255
  return (pixels - np.array(card.mean, np.float32)) / np.array(card.std, np.float32)


def _inside(images: jax.Array, extent: jax.Array) -> jax.Array:
  """Which pixels of a frame are image, bool (batch, height, width, 1)."""
  inside = [
    (jnp.arange(side) + 0.5) / side < extent[:, axis, None]
    for axis, side in enumerate(images.shape[1:3])
  ]
  return (inside[0][:, :, None] & inside[1][:, None])[..., None]


def _seeing(model: Any) -> Any:
  """The tower of a model that gets images."""
  return next(each for each in encoders(model).values() if hasattr(each, 'image_size'))


def insist_on_single(task: str, model: Any) -> None:
  """Raises RunError unless a model gives one vector for each image, as a task needs it."""
  if not isinstance(model, SINGLE):
    able = ', '.join(name for name, kind in MODELS.items() if issubclass(kind, SINGLE))
    raise RunError(f'task.name={task} needs model.name={able}, not {model.kind}')


def image_of(model: Any, fields: Fields, name: str = 'image') -> Image:
  """The column of the images that a model takes, which are a field of that name."""
  dtype = fields[name].dtype if name in fields else ''
  return Image(_seeing(model).in_channels, dtype or 'uint8', name)
