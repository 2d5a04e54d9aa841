"""Random images."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from vit_jax.data.examples import Example, Source, headline
from vit_jax.data.fields import Field

if TYPE_CHECKING:
  import numpy as np


@dataclasses.dataclass(frozen=True)
class Synthetic:
  """Random images that cost nothing to read, for measuring speed.

  Attributes:
    num_classes: labels are drawn from this many.
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
    self.fields = {
      'image': Field('image', dtype='uint8', channels=config.channels),
      'label': Field('class', names),
    }

  @functools.cached_property
  def _images(self) -> np.ndarray:
    import numpy as np

    rng, config = np.random.default_rng(0), self._config
    return rng.integers(0, 256, (16, *config.image_size, config.channels), dtype=np.uint8)

  def __len__(self) -> int:
    return self._config.examples

  def __getitem__(self, index: int) -> Example:
    label = index % self._config.num_classes
    return dict(image=self._images[index % 16], label=label, name=f'synthetic[{index}]')

  def summary(self) -> list[str]:
    """How many there are, and that they mean nothing."""
    return [headline(self), f'{self.name}: images are random']
