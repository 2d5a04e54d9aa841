"""What a model is made of, part by part: parameters, matrix products, norms. Plain Python."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vit_jax.architecture import pyramid
from vit_jax.architecture.backbones import Backbone
from vit_jax.architecture.detr import DecoderArchitecture, perceptron
from vit_jax.architecture.language import LanguageArchitecture
from vit_jax.architecture.pattern import parse
from vit_jax.architecture.towers import Composition, TextArchitecture, encoders
from vit_jax.architecture.vit import EncoderConfig, ViTArchitecture, kept_names
from vit_jax.costs.pieces import Conv, pieces, resnet_convs

# `layers.add_bias` sums gradients by a product with so many columns of ones.
BIAS_COLUMNS = 8
# Pairs of a width and a number.
Pairs = Iterable[tuple[int, int]]


class Part(NamedTuple):
  """A part of a model. Everything but `params` is for one image, or one text.

  Attributes:
    name: 'mlp'; with two towers 'image/mlp'.
    params: numbers that are learned.
    macs: multiply-accumulates of the matrix products of the forward pass.
    backward: of those of the gradients, without any `remat`.
    recomputed: of what the backward pass computes again, by the policy of `remat`.
    norms: operations of layer and group norms as fvcore counts them: 5 for each number that goes
      through, and 4 for each weight of a convolution that is standardised.
  """

  name: str
  params: int = 0
  macs: int = 0
  backward: int = 0
  recomputed: int = 0
  norms: int = 0


class Sequence(NamedTuple):
  """What blocks work on.

  Attributes:
    tokens: of one image or text.
    share: of the examples that each branch runs on; less than 1 where stochastic depth draws some.
    table: rows of a table of relative positions.
    attentions: how many a block does one after another.
    crosses: how many of them are to a memory.
    memory: tokens of that, and features of each.
    rows: that are projected for the others, the mean over layers: tokens, and where these are
      brought together in groups first as many as all groups have.
    queries, keys, pairs: of all attentions of a block, each as often as is the share of the heads
      that look at it, and in all groups where tokens attend in groups; the mean over layers.
    marks: which of the keys in groups are there, for all groups, if some are not.
  """

  tokens: int
  share: float
  table: int
  attentions: int
  crosses: int
  memory: tuple[int, int]
  rows: float
  queries: float
  keys: float
  pairs: float
  marks: int = 0


def parts(config: Any, *, training: bool = False, examples: int = 0) -> list[Part]:
  """Every part of a model, in the order in which it is computed.

  Args:
    config: resolved, of a tower or a `Composition`, for images and texts of its own size.
    training: leave out what patch dropout and stochastic depth on a subset of the batch leave out.
    examples: on each device at a time, of which the subset is a whole number; 0 if not known.
  """
  if isinstance(config, Composition):
    found = [
      part._replace(name=f'{name}/{part.name}')
      for name, tower in config.towers.items()
      for part in parts(tower, training=training, examples=examples)
    ]
    return [*found, *(Part(name, params, macs) for name, params, macs in config.rest)]
  if isinstance(config, TextArchitecture):
    return _text(config, training, examples)
  if isinstance(config, LanguageArchitecture):
    return _language(config, training, examples)
  if isinstance(config, DecoderArchitecture):
    return _decoder(config, training, examples)
  if isinstance(config, Backbone):
    return _pieces(config)
  return _image(config, training, examples)


def _pieces(config: Backbone) -> list[Part]:
  """The pieces of each part of a network that is no transformer, added up."""
  found: dict[str, Part] = {}
  for piece in pieces(config):
    old = found.get(piece.part, Part(piece.part))
    again = piece.again * (config.remat == 'full' and piece.given > 0)
    new = (piece.params, piece.macs, piece.backward, again, piece.norms)
    found[piece.part] = Part(piece.part, *map(operator.add, old[1:], new))
  return list(found.values())


def sequence(config: Any, *, training: bool = False, examples: int = 0) -> Sequence:
  """Of one tower; arguments as for `parts`."""
  share = 1.0
  if training and config.drop_path_mode == 'subset' and config.drop_path:
    share = 1 - config.drop_path
    share = max(1, round(examples * share)) / examples if examples else share
  if isinstance(config, TextArchitecture | LanguageArchitecture):
    return blocks_on(config, (config.context_length,), share=share)
  if isinstance(config, DecoderArchitecture):
    return blocks_on(config, (config.queries,), share=share, memory=config.memory)
  left = 0
  if training and config.patch_dropout:
    left = max(1, round(math.prod(config.grid) * (1 - config.patch_dropout)))
  return blocks_on(config, config.grid, config.prefix, share=share, patches=left)


def blocks_on(
  config: EncoderConfig, grid: tuple[int, ...], prefix: int = 0, *, share: float = 1.0,
  patches: int = 0, memory: tuple[int, int] = (0, 0),
) -> Sequence:  # fmt: skip
  """What the blocks of an encoder work on.

  Args:
    config: of the encoder, resolved.
    grid: of patches; of words their number.
    prefix: tokens before them.
    share: of the examples, see `Sequence`.
    patches: how many are left of the grid; 0 for all.
    memory: tokens and features of one that is attended to.
  """
  tokens = (patches or math.prod(grid)) + prefix
  layers = parse(
    config.attention, len(grid), config.num_heads, config.depth, kv_heads=config.key_heads,
    memory=memory[0] > 0,
  )  # fmt: skip

  def groups(part: Any) -> tuple[int, int, int]:
    if part.windows is None:
      return 1, tokens, memory[0] if part.memory else tokens
    return part.tokens(grid, prefix)

  found = [
    (part, len(shares), *groups(part)) for layer in layers for shares in layer for part in shares
  ]
  queries, keys, pairs = (
    sum(of(count, q, k) / shares for _, shares, count, q, k in found) / len(layers)
    for of in (lambda n, q, k: n * q, lambda n, q, k: n * k, lambda n, q, k: n * q * k)
  )
  partial = {part: n * k for part, _, n, _, k in found if part.windows and part.partial(grid)}
  table = math.prod(2 * side - 1 for side in grid) + 3 * (prefix > 0)
  crosses = sum(shares[0].memory for shares in layers[0])
  rows = sum(
    (count * q if shares == 1 and not part.near else tokens) / shares
    for part, shares, count, q, _ in found if not part.memory
  ) / len(layers)  # fmt: skip
  return Sequence(
    tokens, share, table, len(layers[0]), crosses, memory, rows, queries, keys, pairs,
    sum(partial.values()),
  )  # fmt: skip


def sequences(config: Any, **kwargs: Any) -> dict[str, Sequence]:
  """Of each encoder by the prefix of its parts, which is '' if it is the only one."""
  return {
    f'{name}/' if name else '': sequence(tower, **kwargs)
    for name, tower in encoders(config).items()
    if isinstance(tower, EncoderConfig)
  }


def stem(config: ViTArchitecture) -> Iterator[tuple[Conv, ...]]:
  """The convolutions of the ResNet in front; see `pieces.resnet_convs`."""
  return resnet_convs(
    config.image_size, config.in_channels, config.stem_width, config.stem_depths
  )  # fmt: skip


def stem_features(config: ViTArchitecture) -> int:
  """Channels of what is cut into patches."""
  width, depths = config.stem_width, config.stem_depths
  if not width:
    return config.in_channels
  return 4 * width * 2 ** (len(depths) - 1) if depths else width


def _image(config: ViTArchitecture, training: bool, examples: int) -> list[Part]:
  width, without, found = config.width, config.without, []
  if config.stem_width:
    convs = [conv for unit in stem(config) for conv in unit]
    macs = sum(conv.macs for conv in convs)
    # Nothing is learned before the first convolution: its input needs no gradient.
    found.append(Part(
      'stem', sum(conv.params + 2 * conv.outputs for conv in convs), macs, 2 * macs - convs[0].macs,
      norms=sum(5 * conv.given + 4 * conv.params for conv in convs),
    ))  # fmt: skip
  kernel = math.prod(config.patch) * stem_features(config) * width
  macs = math.prod(config.grid) * kernel
  bias = width * ('embed' not in without)
  found.append(Part('patches', kernel + bias, macs, macs * (2 if config.stem_width else 1)))
  positions = sum(
    math.prod(config.grid[axis] for axis in axes) + config.posemb_prefix * (name == 'posemb')
    for name, axes in config.tables.items()
  )
  found.append(Part('positions', positions * width))
  found.append(Part('tokens', (config.prefix + config.mask_token) * width))
  run = sequence(config, training=training, examples=examples)
  size = width * (2 if config.pool == 'token_mean' else 1)
  outside = [(width, run.tokens)] * config.embed_norm
  if config.pool_norm:
    outside.append((size, 1 + config.distilled))
  found += blocks(config, run, outside, final=not config.pool_norm)
  if config.pool == 'map':
    found.append(_pool(config, run.tokens - config.prefix))
  heads = 1 + config.distilled
  if hidden := config.representation_size:
    macs = heads * size * hidden
    found.append(Part('pre_logits', (size + 1) * hidden, macs, 2 * macs))
    size = hidden
  return [*found, _head(config, size, heads)]


def _text(config: TextArchitecture, training: bool, examples: int) -> list[Part]:
  width = config.width
  run = sequence(config, training=training, examples=examples)
  return [
    Part('words', config.vocab_size * width),
    Part('positions', config.context_length * width),
    *blocks(config, run),
    _head(config, width, 1),
  ]


def _language(config: LanguageArchitecture, training: bool, examples: int) -> list[Part]:
  words = config.vocab_size * config.width
  run = sequence(config, training=training, examples=examples)
  macs = run.tokens * words
  return [
    Part('words', words),
    *blocks(config, run),
    Part('head', words * (not config.tied), macs, 2 * macs),
  ]


def _decoder(config: DecoderArchitecture, training: bool, examples: int) -> list[Part]:
  width = config.width
  contents = width * (config.anchors != 'tokens')
  learned = config.queries * (contents + 4 * (config.anchors == 'learned'))
  every = [(width, config.depth * config.queries)]
  if config.anchors == 'tokens':
    every.append((width, config.memory[0]))
  found = [
    Part('queries', learned + config.denoising * config.num_classes * width),
    *blocks(config, sequence(config, training=training, examples=examples), every, final=False),
  ]
  for name, widths in config.heads.items():
    weights, biases = perceptron(*widths)
    macs = config.times[name] * weights
    found.append(Part(name, weights + biases, macs, 2 * macs))
  if config.masks:
    tokens = config.memory[0]
    convolved = pyramid.costs(config.convolutions, norm=True, bias=True)
    # There is no bias of features, which are one convolution with maps of attention.
    params = sum(each for _, each, _ in convolved) - config.convolutions['features'][2]
    products = (config.queries + tokens) * width**2 + config.queries * tokens * width
    macs = products + sum(each for _, _, each in convolved)
    found.append(Part('masks', params + 2 * (width**2 + width), macs, 2 * macs))
  return found


def _head(config: Any, size: int, heads: int) -> Part:
  macs = heads * size * config.num_classes
  bias = config.num_classes * ('head' not in config.without)
  return Part('head', macs + heads * bias, macs, 2 * macs)


def blocks(
  config: EncoderConfig, run: Sequence, outside: Pairs = (), *, final: bool = True
) -> Iterator[Part]:
  """All blocks and all norms, those `outside` of blocks as (width, times for one image)."""
  width, depth, without = config.width, config.depth, config.without
  heads, key_heads = config.query_width, config.key_width
  selves = run.attentions - run.crosses
  again = recomputed(config)
  times = depth * run.share

  def part(name: str, params: int, macs: float, more: float = 0) -> Part:
    macs, more = round(times * macs), round(times * more)
    return Part(name, params, macs, 2 * macs + more, macs * (name in again))

  rows = queries_and_keys(run)
  for name in ('query', 'key', 'value', 'out'):
    of_keys = name in ('key', 'value')
    features, size = (key_heads, run.memory[1]) if of_keys else (heads, width)
    bias = (width if name == 'out' else features) * (name not in without)
    params = features * (selves * width + run.crosses * size) + run.attentions * bias
    macs = features * (run.rows * width + (rows[of_keys] - run.rows) * size)
    summed = BIAS_COLUMNS * bias * rows[of_keys] * (name != 'out')
    yield part(name, depth * params, macs, summed)
  products = run.pairs * heads  # of scores, and of weighted sums as many
  tables = {'none': 0, 'layer': depth * selves, 'shared': 1}[config.relative_bias]
  # Fused attention keeps no weights: the backward pass begins with the scores.
  yield part('attention', tables * run.table * config.num_heads, 2 * products, products)
  up, bias = width * config.mlp_dim, 'mlp' not in without
  names = ('up', 'gate', 'down') if config.gated else ('up', 'down')
  mlp = [
    part(name, depth * (up + bias * (width if name == 'down' else config.mlp_dim)), run.tokens * up)
    for name in names
  ]
  yield Part('mlp', *(sum(column) for column in list(zip(*mlp, strict=True))[1:]))
  norms = [width] * (run.attentions + (not config.parallel)) + [config.mlp_dim] * config.mlp_norm
  each = rows[0] * heads + rows[1] * key_heads
  normed = round(times * (run.tokens * sum(norms) + config.qk_norm * each))
  params = depth * (sum(norms) + 2 * config.qk_norm * run.attentions * config.head_width)
  if final and config.norm_place == 'pre':
    outside = [*outside, (width, run.tokens)]
  params += sum(size for size, _ in outside)
  normed += sum(size * times for size, times in outside)
  yield Part('norms', params * _per_norm(config), norms=_operations(config, normed))
  if config.layerscale:
    yield Part('layerscale', (1 + run.attentions) * depth * width)


def queries_and_keys(run: Sequence) -> tuple[float, float]:
  """How many are projected in all attentions of a block."""
  return run.rows + run.crosses * run.tokens, run.rows + run.crosses * run.memory[0]


def _per_norm(config: EncoderConfig) -> int:
  """Parameters of a norm per feature."""
  return 1 + (config.norm == 'layernorm' and 'norm' not in config.without)


def _operations(config: EncoderConfig, normed: int) -> int:
  """Of norms that so many numbers go through."""
  return 5 * normed if config.norm == 'layernorm' else 0


def _pool(config: ViTArchitecture, patches: int) -> Part:
  """Attention pooling: one query; keys and values of every patch, everything else once."""
  width, bias = config.width, 'mlp' not in config.without
  heads = config.query_width
  up = config.mlp_dim * width * (3 if config.gated else 2)
  biases = bias * (width + config.mlp_dim * (2 if config.gated else 1))
  projections = 4 * width * heads + 3 * heads + width
  params = width + projections + up + biases + _per_norm(config) * width
  products = patches * heads
  macs = 2 * (patches + 1) * width * heads + 2 * products + up
  backward = 2 * macs + products + BIAS_COLUMNS * (2 * patches + 1) * heads
  return Part('pool', params, macs, backward, norms=_operations(config, width))


def recomputed(config: EncoderConfig) -> set[str]:
  """The products of a block that the backward pass makes again, by `remat`."""
  if config.remat == 'none':
    return set()
  lost = needed(config) - kept_activations(config)
  # What fused attention needs of its own forward pass has no name.
  again = {'attention'} | ({'query', 'key', 'value'} if 'qkv' in lost else set())
  products = {'attn': 'out', 'hidden': 'up', 'gate': 'gate', 'mlp': 'down'}
  return again | {products[name] for name in lost & products.keys()}


def kept_activations(config: EncoderConfig) -> set[str]:
  """The activations of `architecture.NAMES` that `remat`, if there is some, keeps."""
  dots = {'qkv', 'attn', 'hidden', 'gate', 'mlp'}
  kept = dots if config.remat == 'dots' else set(kept_names(config.remat))
  return kept & needed(config)


def needed(config: EncoderConfig) -> set[str]:
  """Those that gradients of a block depend on; of a norm its statistics.

  A sum needs no summands for its gradient, but a norm of the sum and a factor of LayerScale do.
  """
  names = {'norm', 'qkv', 'context', 'hidden'} | ({'gate'} if config.gated else set())
  if config.layerscale or not config.parallel:
    names.add('attn')
  if config.layerscale or config.norm_place == 'post':
    names.add('mlp')
  return names
