"""Random images."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from vit_jax.data.examples import Example, Source
from vit_jax.data.fields import Boxes, Field, Masks, Panoptic

if TYPE_CHECKING:
  import numpy as np


@dataclasses.dataclass(frozen=True)
class Synthetic:
  """Random images that cost nothing to read, for measuring speed.

  With each a field of its own for every task: label, labels, target, points, boxes, masks, map,
  panoptic, text, before and after.

  Attributes:
    num_classes: labels, and what pixels are of, are this many.
    examples: in the data set.
    image_size: height and width; give the model's, and nothing is resized.
    channels: of the images; give the model's, and nothing is converted.
  """

  num_classes: int = 1000
  examples: int = 1_281_167
  image_size: tuple[int, int] = (224, 224)
  channels: int = 3

  def open(self, split: str) -> SyntheticSource:
    """The same for every split."""
    return SyntheticSource(self, split)


class SyntheticSource(Source):
  """See `Synthetic`."""

  made_up = True

  def __init__(self, config: Synthetic, split: str):
    self.name, self._config = f'synthetic/{split}', config
    names = tuple(str(i) for i in range(config.num_classes))
    image = Field('image', dtype='uint8', channels=config.channels)
    self.fields = {
      'image': image, 'before': image, 'after': image,
      'label': Field('class', names), 'labels': Field('classes', names),
      'target': Field('vector', ('number',)), 'points': Field('points', ('point',)),
      'boxes': Field('boxes', names), 'masks': Field('masks', names), 'map': Field('map', names),
      'panoptic': Field('panoptic', names), 'text': Field('text', ('image',)),
    }  # fmt: skip

  @functools.cached_property
  def _images(self) -> np.ndarray:
    import numpy as np

    rng, config = np.random.default_rng(0), self._config
    return rng.integers(0, 256, (16, *config.image_size, config.channels), dtype=np.uint8)

  @functools.cached_property
  def _maps(self) -> np.ndarray:
    import numpy as np

    rng, config = np.random.default_rng(1), self._config
    most = min(config.num_classes, 255)
    return rng.integers(0, most, (16, *config.image_size), dtype=np.uint8)

  @functools.cached_property
  def _mask(self) -> np.ndarray:
    import numpy as np

    height, width = self._config.image_size
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return mask

  def __len__(self) -> int:
    return self._config.examples

  def __getitem__(self, index: int) -> Example:
    import numpy as np

    label, (height, width) = index % self._config.num_classes, self._config.image_size
    corners = np.array([[width / 4, height / 4, width / 2, height / 2]])
    box = Boxes(corners, np.array([label]), np.zeros(1, bool), np.array([height * width / 16]))
    image = self._images[index % 16]
    return {
      'image': image, 'before': image, 'after': image, 'label': label, 'labels': (label,),
      'boxes': box, 'masks': Masks([self._mask], box.label, box.crowd),
      'panoptic': Panoptic(self._mask.astype(np.int64), {1: (label, False)}),
      'target': (index % 16 - 7.5,), 'points': corners[:, :2],
      'map': self._maps[index % 16], 'text': f'image {index}', 'name': f'synthetic[{index}]',
    }  # fmt: skip

  def summary(self) -> list[str]:
    """How many there are, and that they mean nothing."""
    count, classes = f'{len(self):,}', f'{self._config.num_classes:,}'
    return [f'{self.name}: {count} images of {classes} classes, all random']
