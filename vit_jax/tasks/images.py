"""What tasks on images have in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epy

from vit_jax.architecture.card import Card
from vit_jax.core.errors import RunError
from vit_jax.tasks.task import Batch, Task

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

UNSET: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Task):
  """A task whose images are normalised on the devices.

  Attributes:
    mean, std: per channel (or one for all) of pixels in [0, 1], to normalise with. Unset: those of
      the checkpoint that the run starts from, or 0.5.
  """

  mean: tuple[float, ...] = UNSET
  std: tuple[float, ...] = UNSET

  def normalize(self, images: jax.Array) -> jax.Array:
    """uint8 (..., height, width, channels) -> float32."""
    mean, std = self.statistics(1)
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)

  def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each of so many channels."""
    spread = lambda given: given * channels if len(given) == 1 else given  # noqa: E731
    return spread(self.mean or (0.5,)), spread(self.std or (0.5,))

  def adapt(self, model: Any, class_names: Sequence[str]) -> Any:
    """See `Task`; raises RunError unless mean and std are of the model's channels."""
    channels = model.in_channels
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
      if not sound or (low <= 0 if name == 'std' else low < 0 or high > 1):
        scale = ': divide by 255' if high > 1 else ''
        raise RunError(
          f'task.{name}={values}: pixels in [0, 1] cannot be normalised with that{scale}'
        )
    return super().adapt(model, class_names)

  def augment(self, batch: Batch, key: jax.Array | None, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`: normalises `image`."""
    del key, hyper
    return {**batch, 'image': self.normalize(batch['image'])}

  def card(self, model: Any, crop: Any, class_names: Sequence[str]) -> Card:
    """See `Task`."""
    mean, std = self.statistics(model.in_channels)
    names = tuple(class_names) if len(class_names) == model.num_classes else ()
    fraction = getattr(crop, 'fraction', 0.0)
    return Card('vit_jax', model.image_size, mean, std, crop.method, fraction, names)
