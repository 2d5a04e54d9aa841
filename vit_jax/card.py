"""What a trained model expects of images, and what it calls its classes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Card:
  """Kept with a model as `model.card`.

  Attributes:
    dialect: of the checkpoint that it came from.
    size: height and width of the images in pixels.
    mean, std: per channel of pixels in [0, 1], to normalise with.
    resize: 'bilinear' or 'bicubic', both with antialiasing, or 'area' as in our own training.
    crop: share of the shorter side that a central crop keeps; 0 squeezes the whole image into
      `size`.
    class_names: of the logits, or nothing.
  """

  dialect: str
  size: tuple[int, int]
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)
  resize: str = 'bicubic'
  crop: float = 0.0
  class_names: tuple[str, ...] = ()

  @classmethod
  def from_dict(cls, given: Mapping[str, Any]) -> Card:
    """The inverse of `dataclasses.asdict`, also after a detour through JSON."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return cls(**fields)


def about(config: Any, card: Card) -> dict[str, Any]:
  """What a checkpoint of this project says about its model, as JSON.

  Args:
    config: a resolved `ViTConfig` or `TwoTowersConfig`.
    card: of the model.
  """
  kind = 'two_towers' if hasattr(config, 'text') else 'vit'
  facts = {'kind': kind, 'model': dataclasses.asdict(config), 'card': dataclasses.asdict(card)}
  return json.loads(json.dumps(facts))
