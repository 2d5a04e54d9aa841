"""Networks of a task's own that are not trained: teachers."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from vit_jax.architecture import MODELS
from vit_jax.architecture.card import Card
from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest

DTYPES = ('float32', 'bfloat16')
UNSET: Any = None


@dataclasses.dataclass(frozen=True)
class Network:
  """A network that classifies images, from a checkpoint of any dialect, and is not trained.

  It is kept with the frozen parameters of the run: once, beside all checkpoints. Its file is needed
  for the start of a run only.

  Attributes:
    init: the checkpoint, and behind the path what of it to read, as for `init` of the run. It
      decides what the network is and how its images are normalised.
    image_size: of its images, to which the views of the run are resized; unset: its own. Learned
      positions are resampled for another one.
    dtype: of its parameters, as they are kept, and of its activations, 'float32' or 'bfloat16'.
    by_number: of a checkpoint that does not name its classes, whether class i is label i of the
      data.
    found: what the checkpoint said, written by the run itself into its own checkpoints; leave it
      out.
  """

  init: str = ''
  image_size: tuple[int, int] = UNSET
  dtype: str = 'float32'
  by_number: bool = False
  found: str = UNSET

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise RunError(
        f'unknown dtype {self.dtype!r} of a network: {suggest(self.dtype, DTYPES)}'
      )  # fmt: skip

  @property
  def config(self) -> Any:
    """What the network is, resolved; RunError before its checkpoint was opened."""
    if self.found is None:
      raise RunError(f'{self.init}: what network it holds is known when a run has opened it')
    return _said(self.found)[0]

  @property
  def card(self) -> Card:
    """What it expects of images."""
    return _said(self.found)[1]


@functools.lru_cache(16)
def _said(found: str) -> tuple[Any, Card]:
  facts = json.loads(found)
  kind = schema.pick(MODELS, facts['kind'], 'the network')
  config = schema.build(kind, facts['model'], 'the network')
  return config.resolve(), Card.from_dict(facts['card'])
