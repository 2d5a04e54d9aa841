"""What a training step computes: passes of models over an example, and their FLOPs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from vit_jax.costs import flops
from vit_jax.costs.parts import Part, parts

# Products in a pass, as multiples of those of its forward pass: what is learned from it is the
# gradient of its weights and of its activations, of the activations alone, or nothing.
GRADS = {'full': 3, 'through': 2, 'none': 1}


class Pass(NamedTuple):
  """A model that is run on an example.

  Attributes:
    model: its configuration, resolved: one tower, or several.
    times: how often.
    size: height and width of the images; those of the model if not given.
    grad: one of `GRADS`. A teacher has 'none'; a network that something trained precedes, and that
      learns nothing itself, has 'through'.
    frozen: regular expressions of names of parameters of `model` that are not trained, of those of
      'full' passes: as `Task.frozen`.
  """

  model: Any
  times: float = 1
  size: tuple[int, int] | None = None
  grad: str = 'full'
  frozen: tuple[str, ...] = ()


# The parts of a tower in the order in which they are computed, with a parameter for each.
_STAGES = (
  {'stem': 'stem/root/kernel', 'patches': 'embed/proj/kernel', 'words': 'embed',
   'positions': 'posemb', 'tokens': 'token'},
  {'query': 'encoder/blocks/attn/query/kernel', 'key': 'encoder/blocks/attn/key/kernel',
   'value': 'encoder/blocks/attn/value/kernel', 'out': 'encoder/blocks/attn/out/kernel',
   'mlp': 'encoder/blocks/mlp/up/kernel', 'norms': 'encoder/blocks/norm1/scale',
   'layerscale': 'encoder/blocks/scale1', 'attention': ''},
  {'pool': 'map_head/attn/query/kernel'},
  {'pre_logits': 'pre_logits/kernel'},
  {'head': 'head/kernel'},
)  # fmt: skip


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
    if one.frozen and one.grad == 'full':
      products = _partly(parts(model, training=True, examples=examples), one.frozen)
    else:
      products = GRADS[one.grad] * flops.forward_macs(model, training=True, examples=examples)
    total += 2 * one.times * products
  return round(total)


def _partly(every: list[Part], frozen: tuple[str, ...]) -> int:
  """Products of a pass of which some parameters are not trained.

  A part has gradients of its weights if it is trained, and of its input if anything before it is;
  within blocks everything counts as before everything.
  """
  total = 0
  towers: dict[str, list[Part]] = {}
  for part in every:
    towers.setdefault(part.name.rpartition('/')[0], []).append(part)
  for tower, inside in towers.items():
    prefix, behind, known = f'{tower}/' if tower else '', False, set[str]()
    for at, stage in enumerate(_STAGES):
      here = [part for part in inside if part.name.removeprefix(prefix) in stage]
      known |= {part.name for part in here}
      names = {part.name: stage[part.name.removeprefix(prefix)] for part in here}
      learns = {
        part.name: bool(part.params and names[part.name])
        and not any(re.fullmatch(each, prefix + names[part.name]) for each in frozen)
        for part in here
      }
      through = behind or (at < 2 and any(learns.values()))
      total += sum(part.macs * (1 + through + learns[part.name]) for part in here)
      # Products of queries, keys and weights have two gradients, and no weights.
      total += sum(part.macs * through for part in here if not names[part.name])
      behind = behind or any(learns.values())
    total += sum(GRADS['full'] * part.macs for part in inside if part.name not in known)
  return total
