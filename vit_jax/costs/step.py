"""What a training step computes: passes of models over an example, and their FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

from vit_jax.costs import flops

# Products in a pass, as multiples of those of its forward pass: what is learned from it is the
# gradient of its weights and of its activations, of the activations alone, or nothing.
GRADS = {'full': 3, 'through': 2, 'none': 1}


class Pass(NamedTuple):
  """A model that is run on an example.

  Attributes:
    model: its configuration, resolved: one tower, or several.
    times: how often.
    size: height and width of the images; those of the model if not given.
    grad: one of `GRADS`. A teacher has 'none'; frozen layers that something trainable precedes have
      'through'.
  """

  model: Any
  times: float = 1
  size: tuple[int, int] | None = None
  grad: str = 'full'


def step(passes: Iterable[Pass], *, examples: int = 0) -> int:
  """FLOPs of training on one example once, by `flops.CONVENTION`.

  Args:
    passes: of `Task.passes`.
    examples: on each device at a time; see `flops.costs`.
  """
  total = 0.0
  for one in passes:
    model = one.model
    if one.size and tuple(one.size) != tuple(model.image_size):
      model = dataclasses.replace(model, image_size=tuple(one.size)).resolve()
    macs = flops.forward_macs(model, training=True, examples=examples)
    total += 2 * GRADS[one.grad] * one.times * macs
  return round(total)
