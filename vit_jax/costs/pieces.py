"""What networks that are no transformers are made of, piece by piece. Plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from vit_jax.architecture.backbones import (
  Backbone,
  ConvNetArchitecture,
  ConvNeXtArchitecture,
  MixerArchitecture,
  ResNetArchitecture,
)
from vit_jax.architecture.vit import STEM_GROUPS

# Of a float32, which parameters, gradients, moments and statistics are.
FLOAT = 4


class Conv(NamedTuple):
  """A convolution: sides of what it gives, of its window, and features.

  Each output sees `inputs` features: one of a depthwise convolution.
  """

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


def resnet_convs(
  image: tuple[int, ...], channels: int, stem: int, depths: tuple[int, ...]
) -> Iterator[tuple[Conv, ...]]:
  """The convolutions of a ResNet: the first one, then those of each unit.

  The projection of a unit's shortcut is the last of its convolutions, if there is one.

  Args:
    image: height and width of it.
    channels: of the image.
    stem: features of the first convolution.
    depths: units of each stage.
  """
  height, width = (-(-side // 2) for side in image)
  yield (Conv(height, width, 7, channels, stem),)
  height, width, inputs = -(-height // 2), -(-width // 2), stem
  for stage, depth in enumerate(depths):
    inner = stem * 2**stage
    for unit in range(depth):
      first = Conv(height, width, 1, inputs, inner)
      if stage and not unit:
        height, width = -(-height // 2), -(-width // 2)
      rest = Conv(height, width, 3, inner, inner), Conv(height, width, 1, inner, 4 * inner)
      changed = inputs != 4 * inner or (first.height, first.width) != (height, width)
      shortcut = (Conv(height, width, 1, inputs, 4 * inner),) if changed else ()
      yield first, *rest, *shortcut
      inputs = 4 * inner


class Piece(NamedTuple):
  """A block of a network, or what is before or behind all of them.

  Attributes:
    part: that it is of.
    names: of its parameters, a regular expression.
    params: numbers that are learned.
    macs: multiply-accumulates of the forward pass, for one image.
    products: that these are of, one after another.
    within: whether parameters of its own come before the last of them.
    backward: multiply-accumulates of the gradients.
    again: of those that the backward pass computes again, if it keeps only the input of blocks.
    norms: as `parts.Part.norms`.
    kept: bytes that the forward pass leaves for the backward pass, for one image.
    given: bytes of its input, which alone is kept if the rest is computed again; 0 of what is no
      block.
    copies: bytes that it leaves of weights.
  """

  part: str
  names: str
  params: int = 0
  macs: int = 0
  products: int = 1
  within: bool = False
  backward: int = 0
  again: int = 0
  norms: int = 0
  kept: int = 0
  given: int = 0
  copies: int = 0


def pieces(config: Backbone) -> list[Piece]:
  """Those of a resolved network, in the order in which they are computed."""
  size = 2 if config.dtype == 'bfloat16' else FLOAT
  if isinstance(config, ResNetArchitecture):
    found, features = [*_resnet(config, size)], 4 * config.width * 2 ** (len(config.depths) - 1)
  elif isinstance(config, ConvNeXtArchitecture):
    found, features = [*_convnext(config, size)], config.widths[-1]
  elif isinstance(config, MixerArchitecture):
    found, features = [*_mixer(config, size)], config.width
  elif isinstance(config, ConvNetArchitecture):
    found, features = [*_convnet(config, size)], config.widths[-1]
  else:
    raise TypeError(f'nothing is known of what a {config.kind} costs')
  macs = features * config.num_classes
  # The input of the head, and what the cross-entropy keeps.
  kept = FLOAT * (features + 2 * config.num_classes + 1)
  head = Piece('head', 'head/.*', macs + config.num_classes, macs, backward=2 * macs, kept=kept)
  return [*found, head]


def _norm(rows: int, width: int, size: int) -> int:
  """Bytes that a norm over features keeps: what it centred, twice, what it scales, statistics."""
  return FLOAT * rows * (3 * width + (2 if size == FLOAT else 3))


def _relu(numbers: int, size: int) -> int:
  """A mask, and zeros; what it gives is kept by what reads that."""
  return numbers * (1 + size)


def _cast(weights: int, size: int) -> int:
  """Bytes of weights in the compute dtype, where that is not their own."""
  return weights * size * (size != FLOAT)


def _resnet(config: ResNetArchitecture, size: int) -> Iterator[Piece]:
  image, channels = config.image_size, config.in_channels
  (root,), *units = resnet_convs(image, channels, config.width, config.depths)
  # Group norms keep statistics of each group, and standardised weights are normed once.
  normed = lambda numbers: FLOAT * (3 * numbers + 2 * STEM_GROUPS) + _relu(numbers, size)  # noqa: E731
  standardised = lambda weights: weights * (2 * FLOAT + size)  # noqa: E731
  pooled = size * (root.height + 2) * (root.width + 2) * root.outputs
  yield Piece(
    'stem', 'body/root/.*', root.params, root.macs, backward=root.macs, norms=4 * root.params,
    kept=size * math.prod(image) * channels + pooled, copies=standardised(root.params),
  )  # fmt: skip
  places = [(stage, unit) for stage, depth in enumerate(config.depths) for unit in range(depth)]
  for (stage, unit), (first, second, third, *shortcut) in zip(places, units, strict=True):
    convs = (first, second, third, *shortcut)
    given = (first.height * first.width * first.inputs, first.given, second.given)
    params, macs = sum(conv.params for conv in convs), sum(conv.macs for conv in convs)
    yield Piece(
      f'stage{stage}', f'body/stage{stage}_unit{unit}/.*',
      params + 2 * (first.inputs + 2 * first.outputs), macs, len(convs), True, 2 * macs,
      again=first.macs + second.macs, norms=5 * sum(given) + 4 * params,
      kept=sum(normed(numbers) + size * numbers for numbers in given), given=size * given[0],
      copies=standardised(params),
    )  # fmt: skip
  last = units[-1][2]
  yield Piece(
    'norm', 'body/norm/.*', 2 * last.outputs, norms=5 * last.given, kept=normed(last.given)
  )  # fmt: skip


def _convnext(config: ConvNeXtArchitecture, size: int) -> Iterator[Piece]:
  (height, width), inputs, window = config.image_size, config.in_channels, config.patch_size
  scaled, first = bool(config.layerscale), True
  for stage, (features, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
    read = height * width * inputs
    before = _norm(height * width, inputs, size)
    height, width = height // window, width // window
    places, numbers = height * width, height * width * features
    down = Conv(height, width, window, inputs, features)
    # The norm comes first, but for the first stage.
    yield Piece(
      f'stage{stage}' if stage else 'stem', f'stage{stage}_(down|norm)/.*',
      down.params + features + 2 * (inputs if stage else features), down.macs, within=stage > 0,
      backward=down.macs * (2 if stage else 1), norms=5 * (read if stage else numbers),
      kept=size * read + (before if stage else _norm(places, features, size)),
      copies=_cast(down.params, size),
    )  # fmt: skip
    deep, up = Conv(height, width, config.kernel, 1, features), 4 * features**2
    macs = deep.macs + 2 * places * up
    kept = size * (2 + 2 * 4 + scaled) * numbers + _norm(places, features, size)
    for block in range(depth):
      dropping = bool(config.drop_path) and not first
      yield Piece(
        f'stage{stage}', f'stage{stage}_block{block}/.*',
        deep.params + 2 * up + (1 + 2 + 4 + 1 + scaled) * features, macs, 3, True, 2 * macs,
        again=deep.macs + places * up * (1 + scaled), norms=5 * numbers,
        kept=kept + size * dropping, given=size * numbers, copies=_cast(deep.params + 2 * up, size),
      )  # fmt: skip
      first = False
    inputs, window = features, 2
  yield Piece('norm', 'norm/.*', 2 * inputs, norms=5 * inputs, kept=_norm(1, inputs, FLOAT))


def _mixer(config: MixerArchitecture, size: int) -> Iterator[Piece]:
  width, patches = config.width, math.prod(config.grid)
  kernel = config.patch_size**2 * config.in_channels * width
  numbers = patches * width
  yield Piece(
    'patches', 'embed/.*', kernel + width, patches * kernel, backward=patches * kernel,
    kept=size * math.prod(config.image_size) * config.in_channels, copies=_cast(kernel, size),
  )  # fmt: skip
  over, of = patches * config.tokens_mlp_dim, width * config.mlp_dim
  params = 2 * (over + of) + patches + config.tokens_mlp_dim + width + config.mlp_dim
  macs = 2 * (width * over + patches * of)
  hidden = width * config.tokens_mlp_dim + patches * config.mlp_dim
  for block in range(config.depth):
    kept = 2 * _norm(patches, width, size) + 2 * size * numbers + 2 * size * hidden
    dropping = bool(config.drop_path and block)
    yield Piece(
      'blocks', f'block{block}/.*', params + 4 * width, macs, 4, True, 2 * macs,
      again=2 * width * over + patches * of, norms=10 * numbers, kept=kept + 2 * size * dropping,
      given=size * numbers, copies=_cast(2 * (over + of), size),
    )  # fmt: skip
  yield Piece(
    'norm', 'norm/.*', 2 * width, norms=5 * numbers, kept=_norm(patches, width, size)
  )  # fmt: skip


def _convnet(config: ConvNetArchitecture, size: int) -> Iterator[Piece]:
  (height, width), inputs = config.image_size, config.in_channels
  for number, layer in enumerate(config.layers):
    read = height * width * inputs
    height, width = -(-height // layer.stride), -(-width // layer.stride)
    conv = Conv(height, width, layer.kernel, inputs, layer.width)
    kept = _norm(height * width, layer.width, size) + _relu(conv.given, size)
    yield Piece(
      f'layer{number}', f'layer{number}/.*', conv.params + 2 * layer.width, conv.macs,
      backward=conv.macs * (2 if number else 1), again=conv.macs, norms=5 * conv.given,
      kept=size * read + kept, given=size * read, copies=_cast(conv.params, size),
    )  # fmt: skip
    inputs = layer.width
