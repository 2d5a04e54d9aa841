"""The maximal-update parametrisation: hyperparameters of a small model for larger ones.

For Adam, and a model that is m times as wide and l times as deep as the one whose learning rate
was tuned (`model.mup_width`, `model.mup_depth`). Width: Yang et al. 2022, tables 3 and 8; depth:
Dey et al. 2025 (CompleteP), with the exponent 1.

- matrices whose input grows with the width: learning rate over m; their initial variance shrinks
  with their size anyway, and the head begins at 0. Everything else learns at the full rate.
- attention scores are divided by the width of a head, not by its square root.
- vectors (positions, the query of attention pooling) begin as large as in the small model.
- what a branch adds to its input is divided by l.
- weight decay, which the learning rate multiplies, has the inverse factor: it stays as it was.
- Adam's epsilon shrinks with the gradients that it is compared to, by m and in blocks by l.

MLPs count as wide by their hidden layer: the small model's is four times its width.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
from flax import nnx

from vit_jax.core.errors import RunError
from vit_jax.nn import tree

# Names of the matrices that read features of the model's width.
_READERS = r'(.*/(query|key|value|out|up|gate)|pre_logits|head|distill_head)/kernel'
_DOWN = r'.*/down/kernel'
# Of matrices that read pixels, whose number does not grow.
_INPUTS = r'(embed|stem)/'


class Factors(NamedTuple):
  """Of one parameter: on learning rate, weight decay and epsilon."""

  lr: float = 1.0
  decay: float = 1.0
  eps: float = 1.0


def of_parameters(params: Any) -> Any:
  """A tree of `Factors` like that of the parameters; None where no part has this parametrisation.

  A parameter belongs to the first module around it that says which parametrisation it has: towers
  may have different ones.

  Raises:
    RunError: for a matrix that the rules do not know.
  """
  found, outside = False, ''

  def one(path, _):
    nonlocal found, outside
    node: Any = params
    config, names = None, ()
    for at, key in enumerate(path):
      if hasattr(getattr(node, 'config', None), 'mup_width'):
        config, names = node.config, path[at:]
        break
      name = getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', None)))
      node = getattr(node, str(name), None) if isinstance(node, nnx.Module) else None
    if config is None and tree.name(path).endswith('kernel'):
      outside = tree.name(path)
    if config is None or not (config.mup_width or config.mup_depth):
      return Factors()
    found = True
    return factors(config, tree.group(names))

  own = jax.tree_util.tree_map_with_path(one, params)
  if found and outside:
    raise RunError(f'model.mup_width: no rule for the matrix {outside}, which is in no tower')
  return own if found else None


def factors(config: Any, name: str) -> Factors:
  """Of a parameter, by its name in the model.

  Args:
    config: resolved, of the model; one without `mup_width` changes nothing.
    name: 'encoder/blocks/mlp/up/kernel'.

  Raises:
    RunError: for a matrix that the rules do not know.
  """
  width = config.width / config.mup_width if config.mup_width else 1.0
  depth = config.depth / config.mup_depth if config.mup_depth else 1.0
  if tree.whole(name) != name:
    raise RunError('model.mup_width and model.mup_depth have no rule for low-rank changes: set '
                   'lora.rank=0, or both of them to 0')  # fmt: skip
  fan_in, is_head = 1.0, name.startswith(('head/', 'distill_head/'))
  if config.mup_width and re.fullmatch(_READERS, name):
    # Behind a hidden representation the head's input does not grow.
    fan_in = 1.0 if is_head and config.representation_size else width
  elif config.mup_width and re.fullmatch(_DOWN, name):
    fan_in = config.mlp_dim / (4 * config.mup_width)
  elif config.mup_width and name.endswith('kernel') and not re.match(_INPUTS, name):
    raise RunError(f'model.mup_width: no rule for the matrix {name}')
  eps = 1.0 if is_head else 1 / width
  return Factors(1 / fan_in, fan_in, eps / depth if '/blocks/' in name else eps)
