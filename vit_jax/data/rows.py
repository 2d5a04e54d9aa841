"""Rows: what becomes of an example in a batch. No JAX: processes that prepare batches have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.data.examples import Example
from vit_jax.data.preprocess import conversion, prepare


class Array(NamedTuple):
  """One of the arrays of a row."""

  shape: tuple[int, ...]
  dtype: Any


class Rows(Protocol):
  """Makes rows of a batch from examples: picklable, and a function of the example and `rng` alone.

  Attributes:
    needs: fields that every example must have: 'image', 'label'.
  """

  needs: ClassVar[tuple[str, ...]]

  def arrays(self) -> Mapping[str, Array]:
    """Of one row, by name; in a batch each has a leading axis."""
    ...

  def make(self, example: Example, rng: np.random.Generator) -> Mapping[str, Any]:
    """The arrays of a row, exactly as `arrays` says.

    Raises:
      ValueError: for an example that cannot be used, saying why; it may be skipped.
      RunError: for what stops the run.
    """
    ...

  def about(self, example: Example) -> list[str]:
    """Lines for people: what is done to examples like this one, where that is worth saying."""
    ...


@dataclasses.dataclass(frozen=True)
class Labelled:
  """An image and its class.

  Attributes:
    crop: which part of an image, and how it is brought to its size; see `crops`.
    image_size: height and width.
    channels: of the image.
    num_classes: labels are below.
  """

  crop: Any
  image_size: tuple[int, int]
  channels: int
  num_classes: int
  needs: ClassVar[tuple[str, ...]] = ('image', 'label')

  def arrays(self) -> dict[str, Array]:
    """See `Rows`."""
    return {
      'image': Array((*self.image_size, self.channels), np.uint8),
      'label': Array((), np.int32),
    }

  def make(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """See `Rows`."""
    label = example['label']
    if not 0 <= label < self.num_classes:
      raise RunError(
        f'{example["name"]} has label {label}, outside the {self.num_classes} classes of the model'
      )
    image: Any = example['image']
    return {
      'image': prepare(image, self.crop, self.image_size, self.channels, rng), 'label': label,
    }  # fmt: skip

  def about(self, example: Example) -> list[str]:
    """See `Rows`: what is done to its channels."""
    image: Any = example['image']
    done = conversion(image, self.channels)
    return [done] if done else []
