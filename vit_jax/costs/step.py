"""What a training step computes: passes of models over an example, and their FLOPs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from vit_jax.architecture import Backbone, Composition, encoders
from vit_jax.costs import flops
from vit_jax.costs.parts import parts, sequences
from vit_jax.costs.pieces import pieces

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
    trained: of a 'full' pass, names of the parameters of `model` that are trained, those of a layer
      as those of all ('encoder/blocks/mlp/up/kernel'); all, if not given.
  """

  model: Any
  times: float = 1
  size: tuple[int, int] | None = None
  grad: str = 'full'
  trained: Collection[str] | None = None


# The parts of a tower in the order in which they are computed: whatever comes before what is
# trained needs no gradient. With each part regular expressions of the names of its parameters.
_STAGES = (
  {'stem': 'stem/.*'},
  {'patches': 'embed/.*'},
  {'words': 'embed', 'positions': 'posemb.*', 'queries': 'queries|anchors|labels',
   'tokens': 'token|distill_token|registers|mask_token', 'token_head': 'token_head/.*',
   'token_boxes': 'token_boxes/.*'},
  {**{name: f'encoder/blocks/attn/{name}/.*' for name in ('query', 'key', 'value', 'out')},
   'attention': '.*relative/.*', 'mlp': 'encoder/blocks/mlp/(up|gate|down)/.*',
   'norms': '(encoder/.*|embed_|pool_)norm.*/.*|encoder/blocks/mlp/norm/.*',
   'layerscale': 'encoder/blocks/scale[12]', 'place': 'place/.*'},
  {'pool': 'map_head/.*'},
  {'pre_logits': 'pre_logits/.*'},
  {'head': '(distill_)?head/.*', 'boxes': 'boxes/.*'},
  {'masks': 'masks/.*'},
)  # fmt: skip


def step(passes: Iterable[Pass], *, examples: int = 0) -> int:
  """FLOPs of training on one example once, by `flops.CONVENTION`.

  Args:
    passes: of `Task.passes`.
    examples: on each device at a time; see `flops.costs`.
  """
  total = 0.0
  for one in passes:
    model = sized(one)
    if one.trained is not None and one.grad == 'full':
      products = _partly(model, one.trained, examples)
    else:
      products = GRADS[one.grad] * flops.forward_macs(model, training=True, examples=examples)
    total += 2 * one.times * products
  return round(total)


def tokens(passes: Iterable[Pass]) -> float:
  """How many of an example what is trained gets to see, in all views: the unit of data 'tokens'.

  Of a model of several towers those of the first: of what a decoder or a teacher computes, none is
  more data. Networks that are no transformers have none.
  """
  first = lambda one: next(iter(sequences(sized(one), training=True).values()), None)  # noqa: E731
  found = [(one.times, first(one)) for one in passes if one.grad == 'full']
  return sum(times * run.tokens for times, run in found if run)


def sized(one: Pass) -> Any:
  """The model of a pass, for images of its size."""
  if not one.size or tuple(one.size) == tuple(one.model.image_size):
    return one.model
  return dataclasses.replace(one.model, image_size=tuple(one.size)).resolve()


def _partly_of(config: Backbone, own: Collection[str]) -> float:
  """As `_partly`, of a network that is no transformer, block by block."""
  total, behind = 0.0, False
  for number, piece in enumerate(pieces(config)):
    learns = [name for name in own if re.fullmatch(piece.names, name)]
    through = behind or (bool(learns) and (piece.within or not number))
    kernels = sum(name.endswith('kernel') for name in learns)
    total += piece.macs * (1 + through + min(1, kernels / piece.products))
    behind = behind or bool(learns)
  return total


def _partly(model: Any, trained: Collection[str], examples: int) -> int:
  """Products of a pass in which only some parameters are trained.

  A part has gradients of its matrices if they are trained, and of its input if anything before it
  is; within blocks, and in what makes masks, everything counts as before everything. Of pooling all
  is trained or nothing.
  """
  total = 0.0
  follows = model.follows if isinstance(model, Composition) else {}

  def before(name: str) -> bool:
    return any(each.startswith(follows.get(name, ())) for each in trained)

  for tower, config in encoders(model).items():
    behind, first, prefix = before(tower), True, f'{tower}/' if tower else ''
    own = [name.removeprefix(prefix) for name in trained if name.startswith(prefix)]
    if isinstance(config, Backbone):
      total += _partly_of(config, own)
      continue
    inside = {part.name: part for part in parts(config, training=True, examples=examples)}
    for stage in _STAGES:
      here = [inside[name] for name in stage if name in inside]
      learns = {p.name: [n for n in own if re.fullmatch(stage[p.name], n)] for p in here}
      # By convention the first products have a gradient of their input, too.
      among = any(learns.values()) and (first or 'mlp' in stage or 'masks' in stage)
      through = behind or among
      for part in here:
        if part.name == 'attention':  # of queries, keys and values, which are activations all
          total += part.macs * (1 + 2 * through)
        else:
          matrices = sum(name.endswith('kernel') for name in learns[part.name])
          count = (3 if config.gated else 2) if part.name == 'mlp' else 1
          if part.name == 'head' and getattr(config, 'tied', False):
            matrices = 'embed' in own
          total += part.macs * (1 + through + min(1, matrices / count))
      behind = behind or any(learns.values())
      first = first and not any(part.macs for part in here)
  if isinstance(model, Composition):
    for name, _, macs in model.rest:
      learns = any(each.startswith(f'{name}/') for each in trained) or name not in follows
      total += macs * (1 + learns + (before(name) or name not in follows))
  return round(total)
