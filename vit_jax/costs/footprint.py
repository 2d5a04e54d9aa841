"""What training keeps in memory, in bytes: counted from the description of a model, without JAX."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from vit_jax.architecture.backbones import Backbone
from vit_jax.architecture.detr import DecoderArchitecture
from vit_jax.architecture.towers import TextArchitecture, encoders
from vit_jax.architecture.vit import STEM_GROUPS, EncoderConfig, ViTArchitecture
from vit_jax.costs.parts import (
  Sequence,
  kept_activations,
  parts,
  queries_and_keys,
  sequence,
  stem,
  stem_features,
)
from vit_jax.costs.pieces import FLOAT, pieces

# Random words of a token, by which its features are left out; see `nn.noise.dropout`.
_WORDS = 2 * FLOAT


class Memory(NamedTuple):
  """Bytes on one device that holds the whole state.

  Attributes:
    parameters: float32.
    gradients: float32, of all parameters at once.
    optimizer: both moments of Adam, and the moving average if there is one.
    copies: of the blocks' weights in the compute dtype, and what standardised ones are made from.
    activations: what the forward pass leaves for the backward pass, of the whole batch.
    recomputed: what the backward pass adds to them while it is in one block.
  """

  parameters: int
  gradients: int
  optimizer: int
  copies: int
  activations: int
  recomputed: int

  @property
  def total(self) -> int:
    """Of everything, as if it were all there at once; what is made in passing is not counted."""
    return sum(self)


def memory(config: Any, batch: int, *, ema: bool = False) -> Memory:
  """What training takes.

  Args:
    config: resolved, of a tower or a `Composition`; its `dtype` and `remat` count.
    batch: images, and texts, on the device at a time.
    ema: whether a moving average of the parameters is kept.
  """
  towers = encoders(config).values()
  parameters = FLOAT * sum(part.params for part in parts(config))
  each = [activations(tower, examples=batch) for tower in towers]
  return Memory(
    parameters, parameters, parameters * (2 + ema), sum(map(_copies, towers)),
    batch * sum(kept for kept, _ in each), batch * max(more for _, more in each),
  )  # fmt: skip


def activations(config: Any, *, examples: int = 0) -> tuple[int, int]:
  """Bytes for one image or text: kept for the backward pass, and added to that within a block.

  Every array that automatic differentiation asks for is counted, norms three times for instance; a
  compiler may find some of them to be the same, or cheaper to compute again. Attention is fused:
  it keeps queries, keys, values, its result and two numbers per row of scores.

  Args:
    config: one resolved tower.
    examples: as for `parts.parts`.
  """
  if isinstance(config, Backbone):
    return _of_pieces(config)
  run = sequence(config, training=True, examples=examples)
  total, more = of_blocks(config, run)
  if isinstance(config, TextArchitecture):
    total += _norm(config, run.tokens, config.width) + FLOAT * config.width
    return round(total), round(more)
  decodes = isinstance(config, DecoderArchitecture)
  total += sum(_of_heads(config) if decodes else _around(config, run.tokens))
  return round(total), round(more)


def _of_pieces(config: Backbone) -> tuple[int, int]:
  """As `activations`, of a network that is no transformer."""
  found = pieces(config)
  if config.remat == 'none':
    return sum(piece.kept for piece in found), 0
  blocks = [piece for piece in found if piece.given]
  kept = sum(piece.given or piece.kept for piece in found)
  return kept, max(piece.kept - piece.given for piece in blocks)


def of_blocks(config: EncoderConfig, run: Sequence) -> tuple[float, float]:
  """As `activations`, of the blocks of any encoder and what they work on."""
  everything = sum(_block(config, run))
  entered = run.tokens * _WORDS * bool(config.dropout)
  if config.remat == 'none':
    # Whatever the depth, a memory is there once for keys and once for values, and marks once.
    memory = 2 * run.crosses * _size(config) * math.prod(run.memory)
    return config.depth * everything + memory + run.marks + entered, 0
  kept = _kept(config, run)
  return config.depth * kept + entered, everything - kept


def _size(config: Any) -> int:
  return 2 if config.dtype == 'bfloat16' else FLOAT


def _norm(config: EncoderConfig, rows: float, width: int, *, exact: bool = False) -> float:
  """Of a norm: what it centred, that twice, and what it scales; and statistics of each row.

  Args:
    config: of the model.
    rows: normed, of `width` each.
    width: of them.
    exact: whether the input is float32 whatever the model's dtype.
  """
  single_pass = config.dtype == 'bfloat16' and config.norm == 'layernorm' and not exact
  return FLOAT * rows * (3 * width + (3 if single_pass else 2))


def _block(config: EncoderConfig, run: Sequence) -> Iterator[float]:
  """Of a block whose every activation is kept."""
  n, width, hidden, size = run.tokens * run.share, config.width, config.mlp_dim, _size(config)
  many, rows = run.attentions, [run.share * each for each in queries_and_keys(run)]
  heads, key_heads = config.query_width, config.key_width
  branches = many + (not config.parallel)
  yield branches * _norm(config, n, width)
  if config.drop_path and config.drop_path_mode != 'subset':
    yield branches * size  # factors
  if config.dropout:
    yield (branches + 1) * n * _WORDS
  # What queries, keys and values are made from, but for a memory.
  yield size * width * (rows[0] + 2 * run.share * run.rows)
  # Queries and what they get, keys and values; two numbers for each query.
  yield run.share * size * 2 * (run.queries * heads + run.keys * key_heads)
  yield run.share * FLOAT * run.queries * config.num_heads * 2
  yield size * (rows[0] * heads + n * width)  # what goes through output projections, into the MLP
  yield size * n * hidden * (4 if config.gated else 2)
  if config.mlp_norm:
    yield _norm(config, n, hidden)
  if config.qk_norm:
    yield _norm(config, rows[0] * config.num_heads, config.head_width)
    yield _norm(config, rows[1] * config.key_heads, config.head_width)
  if config.layerscale:
    yield size * n * width * (many + 1)


def _kept(config: EncoderConfig, run: Sequence) -> float:
  """Of a block whose policy keeps only something: its input, and what it names."""
  width, many = config.width, run.attentions
  heads, key_heads = config.query_width, config.key_width
  (queries, keys), n = queries_and_keys(run), run.tokens
  sizes = {
    'qkv': queries * heads + 2 * keys * key_heads, 'context': queries * heads,
    'attn': many * n * width, 'mlp': n * width, 'hidden': n * config.mlp_dim,
    'gate': n * config.mlp_dim,
  }  # fmt: skip
  kept = kept_activations(config)
  named = sum(sizes[name] for name in kept - {'norm'})
  norms = many + (not config.parallel) + config.mlp_norm if 'norm' in kept else 0
  statistics = FLOAT * norms * (2 if config.norm == 'layernorm' else 1)
  return _size(config) * (n * width + run.share * named) + n * run.share * statistics


def _around(config: ViTArchitecture, tokens: int) -> Iterator[float]:
  """Of everything but the blocks of an image tower."""
  width, size = config.width, _size(config)
  if config.stem_width:
    yield from _stem(config)
  yield size * math.prod(config.grid) * math.prod(config.patch) * stem_features(config)
  norms = config.embed_norm + (config.norm_place == 'pre' and not config.pool_norm)
  yield norms * _norm(config, tokens, width)
  if config.pool == 'map':
    patches, gated = tokens - config.prefix, 4 if config.gated else 2
    heads = config.query_width
    yield size * (2 * (patches + 1) * width + (2 * patches + 3) * heads)
    yield FLOAT * 2 * config.num_heads
    yield _norm(config, 1, width) + size * gated * config.mlp_dim
  features, heads = width * (2 if config.pool == 'token_mean' else 1), 1 + config.distilled
  if config.pool_norm:
    yield heads * _norm(config, 1, features, exact=True)
  yield FLOAT * heads * (features + 2 * config.representation_size)
  yield FLOAT * (2 * config.num_classes + 1)  # of the cross-entropy


def _of_heads(config: DecoderArchitecture) -> Iterator[float]:
  """Of everything but the blocks of a decoder: norms before its heads, and what these read."""
  yield _norm(config, config.depth * config.queries, config.width)
  if config.anchors == 'tokens':
    yield _norm(config, config.memory[0], config.width)
  for name, (first, *hidden, _) in config.heads.items():
    # Of a ReLU a mask, and what it gives.
    yield config.times[name] * (FLOAT * first + (FLOAT + 1) * sum(hidden))
  yield FLOAT * 2 * config.layers * config.queries * config.outputs  # of the loss of classes
  if config.masks:
    size, tokens = _size(config), config.memory[0]
    maps = config.queries * tokens * config.num_heads
    yield FLOAT * maps  # of the softmax
    yield size * (maps + (config.queries + tokens) * config.width)
    for _, _, outputs, normed, places in config.convolutions.values():
      # As of a `_stem`; what is normed and rectified is what the next convolution reads.
      yield normed * places * outputs * (3 * FLOAT + 1 + 2 * size)


def _stem(config: ViTArchitecture) -> Iterator[float]:
  """Of the ResNet: what convolutions read, and what group norms and ReLUs keep."""
  size, units = _size(config), list(stem(config))
  yield size * math.prod(config.image_size) * config.in_channels
  for at, convs in enumerate(units):
    yield sum(FLOAT * (3 * conv.given + 2 * STEM_GROUPS) for conv in convs)
    # A mask and zeros of each ReLU, and what it gives; patches count what the last one gives.
    rectified = [conv.given for conv in convs[:3]]
    yield sum(rectified) * (1 + 2 * size)
    if at and at == len(units) - 1:
      yield -size * rectified[-1]
  if len(units) > 1:  # what the pooling gives
    first = units[1][0]
    yield size * first.height * first.width * first.inputs


def _copies(config: Any) -> int:
  """Of the weights of blocks and pooling, where products are not float32; of convolutions, all."""
  if isinstance(config, Backbone):
    again = config.remat == 'full'
    return sum(piece.copies for piece in pieces(config) if not (again and piece.given))
  if config.dtype == 'float32':
    return 0
  names = ('query', 'key', 'value', 'out', 'mlp', 'pool')
  return _size(config) * sum(part.params for part in parts(config) if part.name in names)
