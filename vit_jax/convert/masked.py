"""What checkpoints of models that fill in hidden patches have in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vit_jax.architecture.card import Card
from vit_jax.convert.layout import Table, To
from vit_jax.convert.source import Source

# Of MAE's own decoder, whose heads are 32 wide.
HEADS = {512: 16}
# What a file says of the task, and what is assumed where it does not.
TASK = dict(
  ratio=0.75, target='pixels', loss_of='l2', unit=0, shape='random', swapped=0.0, left=0.0
)  # fmt: skip


def decoder_table(blocks: Table, names: Mapping[str, str], decoder: Any) -> dict[str, str | To]:
  """From our names to those of MAE's decoder, whose class token is no parameter of its own.

  What ours adds to that token is the first row of their positions.

  Args:
    blocks: the same for an encoder.
    names: of its 'embed', 'mask_token', 'posemb' and 'norm'.
    decoder: its configuration.
  """
  patches = (1, math.prod(decoder.grid), decoder.width)
  return {
    **{name: to for name, to in blocks.items() if '/blocks/' in name},
    'embed/proj/kernel': To(f'{names["embed"]}.weight', ndim=2), 'embed/proj': names['embed'],
    'mask_token': names['mask_token'], 'encoder/norm': names['norm'],
    'token|posemb': To(names['posemb'], axis=1, rest=patches),
  }  # fmt: skip


def decoder_positions(source: Source, name: str, encoder: Any) -> dict[str, Any]:
  """Fields of a decoder's positions.

  Args:
    source: of the decoder alone.
    name: of the array.
    encoder: configuration, resolved.
  """
  fixed = source.fixed(name, encoder.grid, zeros=False)
  return dict(posemb='sincos_mae' if fixed else 'learned', posemb_tokens='patches')


def trained(card: Card, **task: Any) -> Card:
  """A card of a model that was trained to fill in hidden patches, with fields of `TASK`."""
  own = {'name': 'masked', 'mean': card.mean, 'std': card.std}
  return dataclasses.replace(card, task={**own, **TASK, **task})
