"""Networks of images that are no transformers, for comparison and as teachers. Plain Python."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, ClassVar, NamedTuple, Self

from vit_jax.architecture.vit import STEM_GROUPS, UNSET
from vit_jax.core.errors import RunError, suggest

DTYPES = ('float32', 'bfloat16')
REMAT = ('none', 'full')
# Of the MLPs of a Mixer: exact, as in timm, or by tanh, as its authors trained it.
GELUS = ('gelu', 'gelu_tanh')
BASE: dict[str, Any] = dict(image_size=(224, 224), in_channels=3)


@dataclasses.dataclass(frozen=True)
class Backbone:
  """What all of them have in common. Fields left unset are those of the variant.

  Attributes:
    image_size: height and width of the images in pixels.
    in_channels: of the images.
    num_classes: logits of the linear head; 0 for no head. Training replaces 0 by what the data set
      has.
    dtype: of activations and products, 'float32' or 'bfloat16'; parameters, statistics of norms and
      the head are float32.
    remat: 'none' keeps every activation for the backward pass, 'full' only the input of each block.
  """

  kind: ClassVar[str]
  # By name, the fields that a variant decides.
  VARIANTS: ClassVar[dict[str, dict[str, Any]]]
  # Name of the kernel that reads the image.
  FIRST: ClassVar[str]
  # Further fields, and what they are if no variant says otherwise.
  OPTIONS: ClassVar[dict[str, Any]] = {}

  variant: str = ''
  image_size: tuple[int, int] = UNSET
  in_channels: int = UNSET
  num_classes: int = 0
  dtype: str = 'float32'
  remat: str = 'none'

  def resolve(self) -> Self:
    """This configuration with what its variant says filled in and everything checked.

    Raises:
      RunError: for unknown names and for sizes that make no network.
    """
    options = {**BASE, **self.OPTIONS}
    if self.variant:
      if self.variant not in self.VARIANTS:
        ways = suggest(self.variant, self.VARIANTS)
        raise RunError(f'unknown variant {self.variant!r} of {self.kind}: {ways}')
      options |= self.VARIANTS[self.variant]
    unset = {name: value for name, value in options.items() if getattr(self, name) is None}
    config = dataclasses.replace(self, **unset)
    for field in dataclasses.fields(config):
      if getattr(config, field.name) is None:
        raise RunError(f'a {self.kind} without a variant needs {field.name}')
    for name, known in (('dtype', DTYPES), ('remat', REMAT)):
      if (value := getattr(config, name)) not in known:
        raise RunError(f'unknown model.{name} {value!r} of a {self.kind}: {suggest(value, known)}')
    if len(config.image_size) != 2 or min(config.image_size) < 1:
      raise RunError(f'image_size={config.image_size} of a {self.kind} must be height and width')
    if config.in_channels < 1 or config.num_classes < 0:
      raise RunError('in_channels must be at least 1, and num_classes not negative')
    config.check()
    return config

  def check(self) -> None:
    """Raises RunError for numbers, of a resolved configuration, that make no network."""
    raise NotImplementedError

  @property
  def name(self) -> str:
    """The variant that this is, resolved, whatever its images and classes; '' for none."""
    for name, fields in self.VARIANTS.items():
      options, free = {**self.OPTIONS, **fields}, (*BASE, 'mlp')
      if all(
        getattr(self, field) == value for field, value in options.items() if field not in free
      ):
        return name
    return ''


def _positive(config: Backbone, *names: str) -> None:
  for name in names:
    value = getattr(config, name)
    if min(value if isinstance(value, tuple) else (value,), default=0) < 1:
      raise RunError(f'{name}={value} of a {config.kind} must be at least 1')


@dataclasses.dataclass(frozen=True)
class ResNetArchitecture(Backbone):
  """The ResNet of BiT (Kolesnikov et al. 2020): version 2, group norms, standardised weights.

  Attributes:
    variant: 'R50x1': layers, and how many times as wide as the usual one.
    width: features of the first stage's bottlenecks; each stage has twice those of the last.
    depths: units of each stage.
  """

  kind: ClassVar[str] = 'resnet'
  FIRST: ClassVar[str] = 'body/root/kernel'
  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    f'R{layers}x{times}': dict(width=64 * times, depths=depths)
    for layers, depths, widths in (
      (26, (2, 2, 2, 2), (1,)), (50, (3, 4, 6, 3), (1, 2, 3)), (101, (3, 4, 23, 3), (1, 3)),
      (152, (3, 8, 36, 3), (1, 2, 4)),
    )
    for times in widths
  }  # fmt: skip
  variant: str = 'R50x1'
  width: int = UNSET
  depths: tuple[int, ...] = UNSET

  def check(self) -> None:
    """See `Backbone`."""
    _positive(self, 'width', 'depths')
    if self.width % STEM_GROUPS:
      raise RunError(f'width={self.width} of a resnet must be a multiple of {STEM_GROUPS}')


@dataclasses.dataclass(frozen=True)
class ConvNeXtArchitecture(Backbone):
  """ConvNeXt (Liu et al. 2022).

  Attributes:
    variant: 'T', 'S', 'B', 'L' or 'XL'.
    widths: features of each stage.
    depths: blocks of each stage.
    patch_size: side of the patches that the first convolution takes.
    kernel: side of the depthwise convolutions; odd.
    layerscale: initial value of learned factors on what each block adds; 0 for none.
    drop_path: rate of stochastic depth of the last block, to which it rises from 0.
  """

  kind: ClassVar[str] = 'convnext'
  FIRST: ClassVar[str] = 'stage0_down/kernel'
  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    name: dict(widths=tuple(width * 2**stage for stage in range(4)), depths=(3, 3, depth, 3))
    for name, width, depth in (
      ('T', 96, 9), ('S', 96, 27), ('B', 128, 27), ('L', 192, 27), ('XL', 256, 27)
    )
  }  # fmt: skip
  OPTIONS: ClassVar[dict[str, Any]] = dict(patch_size=4, kernel=7, layerscale=1e-6)
  variant: str = 'T'
  widths: tuple[int, ...] = UNSET
  depths: tuple[int, ...] = UNSET
  patch_size: int = UNSET
  kernel: int = UNSET
  layerscale: float = UNSET
  drop_path: float = 0.0

  def check(self) -> None:
    """See `Backbone`."""
    _positive(self, 'widths', 'depths', 'patch_size', 'kernel')
    if len(self.widths) != len(self.depths):
      raise RunError(
        f'widths={self.widths} and depths={self.depths} of a convnext are of different stages'
      )
    if not self.kernel % 2:
      raise RunError(f'kernel={self.kernel} of a convnext must be odd')
    if not 0 <= self.drop_path < 1 or not math.isfinite(self.layerscale):
      raise RunError(
        f'model.drop_path={self.drop_path} must be in [0, 1), layerscale={self.layerscale} a number'
      )
    least = self.patch_size * 2 ** (len(self.depths) - 1)
    if min(self.image_size) < least:
      raise RunError(
        f'image_size={self.image_size} is less than {least}, one place of the last stage'
      )


@dataclasses.dataclass(frozen=True)
class MixerArchitecture(Backbone):
  """MLP-Mixer (Tolstikhin et al. 2021), whose patches are as many as it was trained for.

  Attributes:
    variant: size and patch, 'B/16'.
    width: features of a patch.
    depth: number of blocks.
    tokens_mlp_dim: hidden features of the MLP over patches.
    mlp_dim: hidden features of the MLP over features.
    patch_size: side of the patches in pixels; must divide both sides of the images.
    mlp: 'gelu' (exact, as in timm) or 'gelu_tanh' (as its authors trained it).
    drop_path: rate of stochastic depth of the last block, to which it rises from 0.
  """

  kind: ClassVar[str] = 'mixer'
  FIRST: ClassVar[str] = 'embed/proj/kernel'
  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    f'{size}/{patch}': dict(
      width=width, depth=depth, tokens_mlp_dim=width // 2, mlp_dim=4 * width, patch_size=patch
    )
    for size, width, depth, patches in (
      ('S', 512, 8, (32, 16)), ('B', 768, 12, (32, 16)), ('L', 1024, 24, (32, 16)),
      ('H', 1280, 32, (14,)),
    )
    for patch in patches
  }  # fmt: skip
  OPTIONS: ClassVar[dict[str, Any]] = dict(mlp='gelu_tanh')
  variant: str = 'B/16'
  width: int = UNSET
  depth: int = UNSET
  tokens_mlp_dim: int = UNSET
  mlp_dim: int = UNSET
  patch_size: int = UNSET
  mlp: str = UNSET
  drop_path: float = 0.0

  @property
  def grid(self) -> tuple[int, ...]:
    """Patches along each axis."""
    return tuple(side // self.patch_size for side in self.image_size)

  def check(self) -> None:
    """See `Backbone`."""
    _positive(self, 'width', 'depth', 'tokens_mlp_dim', 'mlp_dim', 'patch_size')
    if self.mlp not in GELUS:
      raise RunError(f'unknown model.mlp {self.mlp!r} of a mixer: {suggest(self.mlp, GELUS)}')
    if any(side % self.patch_size for side in self.image_size):
      raise RunError(f'patch_size={self.patch_size} does not divide image_size={self.image_size}')
    if not 0 <= self.drop_path < 1:
      raise RunError(f'model.drop_path={self.drop_path} must be in [0, 1)')


class Field(NamedTuple):
  """The pixels that a place of the output of convolutions depends on, along one axis.

  Attributes:
    size: how many, next to each other if nothing is dilated.
    stride: pixels from the first one of a place to that of the next.
    first: the first pixel of the first place; less than 0 in the padding.
  """

  size: int
  stride: int
  first: int


class Layer(NamedTuple):
  """A convolution of a `ConvNetArchitecture`, the same along both axes."""

  width: int
  kernel: int
  stride: int
  dilation: int

  @property
  def pad(self) -> tuple[int, int]:
    """Zeros before and behind, with which it gives ceil(side / stride) places."""
    whole = self.dilation * (self.kernel - 1)
    return whole // 2, whole - whole // 2


_THREES = dict(kernels=(3,), dilations=(1,))


@dataclasses.dataclass(frozen=True)
class ConvNetArchitecture(Backbone):
  """A few plain convolutions, for studies of what a network sees.

  Each is followed by a norm over the features of a place and a ReLU; the logits are those of the
  mean over all places, which is the mean of the logits of each (Brendel & Bethge 2019). Nothing but
  that mean sees more than `receptive_field` says.

  Attributes:
    variant: 'small'; 'field9', 'field17' and 'field33', which see so many pixels square and no
      more, with as many places; 'dilated', which sees 31 pixels square at every pixel.
    widths: features of each layer.
    kernels, strides, dilations: of each layer; one number stands for all.
    residual: whether a layer adds what it is given, where that has the same shape.
  """

  kind: ClassVar[str] = 'convnet'
  FIRST: ClassVar[str] = 'layer0/conv/kernel'
  VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
    'small': dict(**_THREES, widths=(32, 32, 64, 64, 128, 128), strides=(1, 2, 1, 2, 1, 1)),
    **{
      f'field{size}': dict(
        widths=(32, 64, 64, 128, 128, 128, 128), kernels=kernels, strides=(1, 2, 1, 2, 1, 1, 1),
        dilations=(1,),
      )
      for size, kernels in (
        (9, (3, 3, 3, 1, 1, 1, 1)), (17, (3, 3, 3, 1, 3, 1, 1)), (33, (3, 3, 3, 1, 3, 3, 3))
      )
    },
    'dilated': dict(
      widths=(32, 32, 64, 64), kernels=(3,), strides=(1,), dilations=(1, 2, 4, 8),
    ),
  }  # fmt: skip
  OPTIONS: ClassVar[dict[str, Any]] = dict(residual=False)
  variant: str = 'small'
  widths: tuple[int, ...] = UNSET
  kernels: tuple[int, ...] = UNSET
  strides: tuple[int, ...] = UNSET
  dilations: tuple[int, ...] = UNSET
  residual: bool = UNSET

  @property
  def layers(self) -> tuple[Layer, ...]:
    """Of a resolved configuration."""
    count = len(self.widths)
    each = (self.kernels, self.strides, self.dilations)
    spread = (values * count if len(values) == 1 else values for values in each)
    return tuple(itertools.starmap(Layer, zip(self.widths, *spread, strict=True)))

  def check(self) -> None:
    """See `Backbone`."""
    _positive(self, 'widths', 'kernels', 'strides', 'dilations')
    for name in ('kernels', 'strides', 'dilations'):
      if (count := len(getattr(self, name))) not in (1, len(self.widths)):
        raise RunError(
          f'{name} of a convnet has {count} numbers for {len(self.widths)} widths: give one for '
          'each layer, or one for all'
        )


def receptive_field(layers: tuple[Layer, ...]) -> Field:
  """What a place of the output depends on (Araujo et al. 2019, equations 2 to 4)."""
  size, stride, first = 1, 1, 0
  for layer in layers:
    size += layer.dilation * (layer.kernel - 1) * stride
    first -= layer.pad[0] * stride
    stride *= layer.stride
  return Field(size, stride, first)
