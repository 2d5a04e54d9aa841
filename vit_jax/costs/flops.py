"""What a model costs, by part and by convention.

Parameters, multiply-accumulates, FLOPs and bytes are counted from the description of a model,
without JAX; see `parts` and `footprint` for what is counted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_jax.core.errors import RunError, suggest
from vit_jax.costs.footprint import Memory, memory
from vit_jax.costs.parts import Part, parts, sequences

__all__ = [
  'CONVENTION', 'CONVENTIONS', 'GROUPS', 'Costs', 'Memory', 'costs', 'forward_macs', 'memory',
  'train_flops',
]  # fmt: skip

# Named in every result, so that numbers from different codebases can be compared.
CONVENTION = (
  'training FLOPs = 3 x forward = 6 x multiply-accumulates of matrix products (patch embedding, '
  'convolutions, attention projections, scores, weighted sums, MLPs, pooling, head); what patch '
  'dropout and subsets of stochastic depth leave out, recomputation, norms, '
  'softmax, activations and the optimizer are not counted'
)

# Of one image; with two towers of one image and one text.
CONVENTIONS = {
  'macs': 'multiply-accumulates of all matrix products of the forward pass',
  'flops': '2 x macs: the forward pass in the ViT paper and in Zhai et al. 2022',
  'fvcore': 'macs + 5 for each number that goes through a norm: the GMACs that timm publishes',
  'train': '3 x flops: forward, and backward as twice that; the exaFLOPs of the ViT paper',
  'train_exact': '2 x macs of all products of the training step, with fused attention and remat',
  '6nd': '6 x parameters x tokens (Kaplan et al. 2020, Hoffmann et al. 2022)',
  '6nd_non_embedding': '6 x parameters x tokens, without the parameters of the embedding',
  'palm': '6nd + 12 x depth x width x tokens^2 for attention (Chowdhery et al. 2022, appendix B)',
}
_OF_TOKENS = ('6nd', '6nd_non_embedding', 'palm')
# Parts that go by one name in `without`. 'embedding' is everything before the first block.
GROUPS = {
  'embedding': ('stem', 'patches', 'words', 'positions', 'tokens'),
  'head': ('pre_logits', 'head'),
}


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of a model.

  Attributes:
    parts: of the model and its forward pass.
    training: the same for the forward pass of a training step, where patch dropout and stochastic
      depth on a subset of the batch leave something out.
    tokens: of an image in training; with two towers by the prefix of their parts, 'image/' and
      'text/', otherwise by ''; nothing of networks that are no transformers.
  """

  parts: tuple[Part, ...]
  training: tuple[Part, ...]
  tokens: dict[str, int]

  @property
  def conventions(self) -> tuple[str, ...]:
    """Those of `CONVENTIONS` that the model has what they count of."""
    return tuple(name for name in CONVENTIONS if self.tokens or name not in _OF_TOKENS)

  def parameters(self, without: tuple[str, ...] = ()) -> int:
    """How many there are, less those of the parts or `GROUPS` in `without`."""
    return sum(part.params for part in _without(self.parts, without))

  def total(self, convention: str, without: tuple[str, ...] = ()) -> int:
    """The cost of one image by one of `CONVENTIONS`.

    Args:
      convention: its name.
      without: parts or `GROUPS` that are not counted: ('attention', 'head', 'embedding').
        'attention' is what grows with the square of the tokens, scores and weighted sums.

    Raises:
      RunError: for unknown names, and for tokens where there are none.
    """
    if convention not in CONVENTIONS:
      raise RunError(f'unknown convention {convention!r}: {suggest(convention, CONVENTIONS)}')
    if convention not in self.conventions:
      raise RunError(f'{convention} counts tokens, which only a transformer has')
    forward, step = _without(self.parts, without), _without(self.training, without)
    macs = sum(part.macs for part in forward)
    if convention == 'macs':
      return macs
    if convention == 'flops':
      return 2 * macs
    if convention == 'fvcore':
      return macs + sum(part.norms for part in forward)
    if convention == 'train':
      return 6 * sum(part.macs for part in step)
    if convention == 'train_exact':
      return 2 * sum(part.macs + part.backward + part.recomputed for part in step)
    if convention == '6nd_non_embedding':
      step = _without(step, ('embedding',))
    tokens = sum(
      count * part.params
      for prefix, count in self.tokens.items()
      for part in step if part.name.startswith(prefix)
    )  # fmt: skip
    attention = sum(part.macs for part in step if _short(part) == 'attention')
    return 6 * (tokens + attention * (convention == 'palm'))


def _short(part: Part) -> str:
  return part.name.rpartition('/')[2]


def _without(found: tuple[Part, ...], without: tuple[str, ...]) -> tuple[Part, ...]:
  if not without:
    return found
  names = {name for part in found for name in (part.name, _short(part))} | GROUPS.keys()
  for name in without:
    if name not in names:
      raise RunError(f'unknown part {name!r}: {suggest(name, sorted(names))}')
  gone = {part for name in without for part in GROUPS.get(name, (name,))}
  return tuple(part for part in found if not {part.name, _short(part)} & gone)


def costs(config: Any, *, examples: int = 0) -> Costs:
  """What a model costs, part by part.

  Args:
    config: one of `architecture.MODELS`, resolved, for images and texts of its own size.
    examples: on each device at a time, of which the subset of stochastic depth is a whole number;
      0 if not known.
  """
  tokens = {name: run.tokens for name, run in sequences(config, training=True).items()}
  step = tuple(parts(config, training=True, examples=examples))
  return Costs(tuple(parts(config)), step, tokens)


def forward_macs(config: Any, *, training: bool = False, examples: int = 0) -> int:
  """Multiply-accumulates of the matrix products of one image's forward pass.

  Args:
    config: one of `architecture.MODELS`, resolved, for images of its default size.
    training: leave out what patch dropout and stochastic depth on a subset of the batch leave out.
    examples: as for `costs`.
  """
  return sum(part.macs for part in parts(config, training=training, examples=examples))


def train_flops(config: Any, *, examples: int = 0) -> int:
  """FLOPs to train on one image once, by `CONVENTION`; `examples` as for `costs`."""
  return 6 * forward_macs(config, training=True, examples=examples)
