"""What a model is made of, part by part: parameters, matrix products, norms. Plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from vit_jax.architecture.pattern import parse
from vit_jax.architecture.towers import Composition, TextArchitecture, encoders
from vit_jax.architecture.vit import EncoderConfig, ViTArchitecture, kept_names

# `layers.add_bias` sums gradients by a product with so many columns of ones.
BIAS_COLUMNS = 8


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
    queries, keys, pairs: of all attentions of a block, each as often as is the share of the heads
      that look at it, and in all groups where tokens attend in groups; the mean over layers.
    marks: which of the keys in groups are there, for all groups, if some are not.
  """

  tokens: int
  share: float
  table: int
  attentions: int
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
  return _image(config, training, examples)


def sequence(config: Any, *, training: bool = False, examples: int = 0) -> Sequence:
  """Of one tower; arguments as for `parts`."""
  share = 1.0
  if training and config.drop_path_mode == 'subset' and config.drop_path:
    share = 1 - config.drop_path
    share = max(1, round(examples * share)) / examples if examples else share
  if isinstance(config, TextArchitecture):
    length = config.context_length
    return Sequence(length, share, 0, 1, length, length, length**2)
  rows, columns = config.grid
  patches = rows * columns
  if training and config.patch_dropout:
    patches = max(1, round(patches * (1 - config.patch_dropout)))
  table = (2 * rows - 1) * (2 * columns - 1) + 3 * (config.prefix > 0)
  tokens = patches + config.prefix
  if config.attention == 'full':
    return Sequence(tokens, share, table, 1, tokens, tokens, tokens**2)
  layers = parse(config.attention, len(config.grid), config.num_heads, config.depth)
  found = [
    (part, len(shares), *part.tokens(config.grid, config.prefix))
    for layer in layers
    for shares in layer
    for part in shares
  ]
  queries, keys, pairs = (
    sum(of(count, q, k) / shares for _, shares, count, q, k in found) / len(layers)
    for of in (lambda n, q, k: n * q, lambda n, q, k: n * k, lambda n, q, k: n * q * k)
  )
  partial = {part: n * k for part, _, n, _, k in found if part.partial(config.grid)}
  return Sequence(tokens, share, table, len(layers[0]), queries, keys, pairs, sum(partial.values()))


def sequences(config: Any, **kwargs: Any) -> dict[str, Sequence]:
  """Of each tower by the prefix of its parts, which is '' if it is the only one."""
  return {
    f'{name}/' if name else '': sequence(tower, **kwargs)
    for name, tower in encoders(config).items()
  }


class Conv(NamedTuple):
  """A convolution of a ResNet: sides of what it gives, of its window, and features."""

  height: int
  width: int
  window: int
  inputs: int
  outputs: int

  @property
  def macs(self) -> int:
    """Of its products."""
    return self.height * self.width * self.params

  @property
  def params(self) -> int:
    """Of its kernel."""
    return self.window**2 * self.inputs * self.outputs

  @property
  def given(self) -> int:
    """Numbers that it gives."""
    return self.height * self.width * self.outputs


def stem(config: ViTArchitecture) -> Iterator[tuple[Conv, ...]]:
  """The convolutions of the ResNet in front: the first one, then those of each unit.

  The projection of a unit's shortcut is the last of its convolutions, if there is one.
  """
  height, width = (-(-side // 2) for side in config.image_size)
  yield (Conv(height, width, 7, config.in_channels, config.stem_width),)
  height, width, inputs = -(-height // 2), -(-width // 2), config.stem_width
  for stage, depth in enumerate(config.stem_depths):
    inner = config.stem_width * 2**stage
    for unit in range(depth):
      first = Conv(height, width, 1, inputs, inner)
      if stage and not unit:
        height, width = -(-height // 2), -(-width // 2)
      rest = Conv(height, width, 3, inner, inner), Conv(height, width, 1, inner, 4 * inner)
      changed = inputs != 4 * inner or (first.height, first.width) != (height, width)
      shortcut = (Conv(height, width, 1, inputs, 4 * inner),) if changed else ()
      yield first, *rest, *shortcut
      inputs = 4 * inner


def stem_features(config: ViTArchitecture) -> int:
  """Channels of what is cut into patches."""
  width, depths = config.stem_width, config.stem_depths
  if not width:
    return config.in_channels
  return 4 * width * 2 ** (len(depths) - 1) if depths else width


def _image(config: ViTArchitecture, training: bool, examples: int) -> list[Part]:
  width, without, found = config.width, config.without, []
  rows, columns = config.grid
  if config.stem_width:
    convs = [conv for unit in stem(config) for conv in unit]
    macs = sum(conv.macs for conv in convs)
    # Nothing is learned before the first convolution: its input needs no gradient.
    found.append(Part(
      'stem', sum(conv.params + 2 * conv.outputs for conv in convs), macs, 2 * macs - convs[0].macs,
      norms=sum(5 * conv.given + 4 * conv.params for conv in convs),
    ))  # fmt: skip
  kernel = config.patch_size**2 * stem_features(config) * width
  macs = rows * columns * kernel
  bias = width * ('embed' not in without)
  found.append(Part('patches', kernel + bias, macs, macs * (2 if config.stem_width else 1)))
  positions = {
    'learned': config.posemb_prefix + rows * columns, 'factorised': rows + columns,
  }.get(config.posemb, 0)  # fmt: skip
  found.append(Part('positions', positions * width))
  found.append(Part('tokens', (config.prefix + config.mask_token) * width))
  run = sequence(config, training=training, examples=examples)
  size = width * (2 if config.pool == 'token_mean' else 1)
  outside = [(width, run.tokens)] * config.embed_norm
  if config.pool_norm:
    outside.append((size, 1 + config.distilled))
  found += _blocks(config, run, outside, final=not config.pool_norm)
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
    *_blocks(config, run, []),
    _head(config, width, 1),
  ]


def _head(config: Any, size: int, heads: int) -> Part:
  macs = heads * size * config.num_classes
  bias = config.num_classes * ('head' not in config.without)
  return Part('head', macs + heads * bias, macs, 2 * macs)


def _blocks(
  config: EncoderConfig, run: Sequence, outside: list[tuple[int, int]], *, final: bool = True
) -> Iterator[Part]:
  """All blocks and all norms, those `outside` of blocks as (width, times for one image)."""
  width, depth, without = config.width, config.depth, config.without
  again = recomputed(config)
  times = depth * run.share

  def part(name: str, params: int, macs: float, more: float = 0) -> Part:
    macs, more = round(times * macs), round(times * more)
    return Part(name, params, macs, 2 * macs + more, macs * (name in again))

  for name in ('query', 'key', 'value', 'out'):
    bias, many = width * (name not in without), run.attentions
    summed = many * BIAS_COLUMNS * run.tokens * bias * (name != 'out')
    yield part(name, many * depth * (width**2 + bias), many * run.tokens * width**2, summed)
  products = run.pairs * width  # of scores, and of weighted sums as many
  tables = {'none': 0, 'layer': depth * run.attentions, 'shared': 1}[config.relative_bias]
  # Fused attention keeps no weights: the backward pass begins with the scores.
  yield part('attention', tables * run.table * config.num_heads, 2 * products, products)
  up, bias = width * config.mlp_dim, 'mlp' not in without
  names = ('up', 'gate', 'down') if config.mlp == 'swiglu' else ('up', 'down')
  mlp = [
    part(name, depth * (up + bias * (width if name == 'down' else config.mlp_dim)), run.tokens * up)
    for name in names
  ]
  yield Part('mlp', *(sum(column) for column in list(zip(*mlp, strict=True))[1:]))
  norms = [width] * (run.attentions + (not config.parallel)) + [config.mlp_dim] * config.mlp_norm
  heads = 2 * config.qk_norm * run.attentions
  normed = round(times * run.tokens * (sum(norms) + heads * width))
  params = depth * (sum(norms) + heads * (width // config.num_heads))
  if final and config.norm_place == 'pre':
    outside = [*outside, (width, run.tokens)]
  params += sum(size for size, _ in outside)
  normed += sum(size * times for size, times in outside)
  yield Part('norms', params * _per_norm(config), norms=_operations(config, normed))
  if config.layerscale:
    yield Part('layerscale', 2 * depth * width)


def _per_norm(config: EncoderConfig) -> int:
  """Parameters of a norm per feature."""
  return 1 + (config.norm == 'layernorm' and 'norm' not in config.without)


def _operations(config: EncoderConfig, normed: int) -> int:
  """Of norms that so many numbers go through."""
  return 5 * normed if config.norm == 'layernorm' else 0


def _pool(config: ViTArchitecture, patches: int) -> Part:
  """Attention pooling: one query; keys and values of every patch, everything else once."""
  width, bias = config.width, 'mlp' not in config.without
  up = config.mlp_dim * width * (3 if config.mlp == 'swiglu' else 2)
  biases = bias * (width + config.mlp_dim * (2 if config.mlp == 'swiglu' else 1))
  params = width + 4 * (width**2 + width) + up + biases + _per_norm(config) * width
  products = patches * width
  macs = 2 * (patches + 1) * width**2 + 2 * products + up
  backward = 2 * macs + products + BIAS_COLUMNS * (2 * patches + 1) * width
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
  names = {'norm', 'qkv', 'context', 'hidden'} | ({'gate'} if config.mlp == 'swiglu' else set())
  if config.layerscale or not config.parallel:
    names.add('attn')
  if config.layerscale or config.norm_place == 'post':
    names.add('mlp')
  return names
