"""How features are judged, as commands and evaluations are told before JAX is there."""

from __future__ import annotations

import dataclasses

METHODS = ('knn', 'logistic', 'linear', 'fewshot', 'curve')
# Of features in a table.
DTYPES = ('float32', 'float16')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How features are judged.

  Attributes:
    seed: of what is held out, the order of examples, and of subsets: they count up from it.
    seeds: subsets of each size.
    k: how many neighbours vote, of which one is chosen.
    temperature: of their votes.
    shots: examples of each class, for 'fewshot'.
    l2: of 'fewshot'; of several one is chosen by leaving out one example after the other.
    sizes: examples of each class, for 'curve'.
    epochs: of 'linear'.
    batch_size: of 'linear'.
    rates: of 'linear', for 256 examples a step; DINOv2's grid.
  """

  seed: int = 0
  seeds: int = 3
  k: tuple[int, ...] = (10, 20, 100, 200)
  temperature: float = 0.07
  shots: tuple[int, ...] = (1, 5, 10, 25)
  l2: tuple[float, ...] = (1024.0,)
  sizes: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
  epochs: int = 10
  batch_size: int = 256
  rates: tuple[float, ...] = (
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1
  )  # fmt: skip
