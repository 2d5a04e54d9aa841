"""What a trained model expects of images, and what it calls its classes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from vit_jax.core.errors import RunError


@dataclasses.dataclass(frozen=True)
class Card:
  """Kept with a model as `model.card`.

  Attributes:
    dialect: of the checkpoint that it came from.
    size: height and width of the images in pixels, after frames if there are some.
    mean, std: per channel of pixels in [0, 1], to normalise with.
    resize: 'bilinear' or 'bicubic', both with antialiasing, or 'area' as in our own training.
    crop: share of the shorter side that a central crop keeps; 0 squeezes the whole image into
      `size`.
    fills: whether images keep their shape instead, and what they leave of `size` is filled up.
    class_names: of the logits, or nothing.
    task: that the model was trained for: its name and its fields; empty if nothing is known.
    fields: of the examples that it was trained on, as of `data.fields.Field`, by name.
  """

  dialect: str
  size: tuple[int, ...]
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)
  resize: str = 'bicubic'
  crop: float = 0.0
  class_names: tuple[str, ...] = ()
  fills: bool = False
  # No part of what a compiled program depends on.
  task: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

  def __post_init__(self):
    """Raises RunError for values that no image can be prepared with."""
    numbers = (*self.mean, *self.std, self.crop)
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
      raise RunError(f'mean, std and crop of images must be numbers, not {numbers}')
    if len(self.mean) != len(self.std) or not self.std or min(self.std) <= 0:
      raise RunError(f'mean {self.mean} and std {self.std} of images do not make a normalisation')
    if not 1 <= len(self.size) <= 3 or not all(0 < side <= 1 << 14 for side in self.size):
      raise RunError(f'images of size {self.size} cannot be prepared')
    if not 0 <= self.crop <= 1 or self.resize not in ('bilinear', 'bicubic', 'area'):
      raise RunError(f'unknown way to prepare images: resize={self.resize!r}, crop={self.crop}')

  @classmethod
  def from_dict(cls, given: Mapping[str, Any]) -> Card:
    """The inverse of `dataclasses.asdict`, also after a detour through JSON."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return cls(**fields)


def _without_variants(model: Any) -> Any:
  """The fields say it all, and a variant only what some of them may have been."""
  if not isinstance(model, dict):
    return model
  return {n: '' if n == 'variant' else _without_variants(value) for n, value in model.items()}


def about(config: Any, card: Card) -> dict[str, Any]:
  """What a checkpoint of this project says about its model, as JSON.

  Args:
    config: a resolved architecture.
    card: of the model.
  """
  facts = {
    'kind': config.kind,
    'model': _without_variants(dataclasses.asdict(config)),
    'card': dataclasses.asdict(card),
  }
  return json.loads(json.dumps(facts))
