"""What is done to the pixels of a random view after its crop and flip: drawn, not yet computed.

Published recipes differ in operators, in what a magnitude means, and in how often one is applied. A
`dialect` is one body of code: 'big_vision', 'timm' or 'torchvision'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.changes import RESAMPLES, Change, Reading, Size, Tone

UNSET: Any = None


@dataclasses.dataclass(frozen=True)
class Colour:
  """Leaves pixels as they are.

  Attributes:
    moves: whether pixels may change their places, too; what belongs to the image then does so.
  """

  moves: ClassVar[bool] = False

  def draw(self, size: Size, rng: Any) -> tuple[Change, ...]:
    """What is done to a frame of this size, in this order."""
    del size, rng
    return ()


@dataclasses.dataclass(frozen=True)
class Jitter(Colour):
  """Brightness, contrast, saturation and hue, in a random order, and then three things more.

  The first four are torchvision's ColorJitter, on images of Pillow; with the others it is what
  SimCLR, BYOL and DINO do (Grill et al. 2020, appendix B).

  Attributes:
    brightness, contrast, saturation: a factor is between 1 - this and 1 + this, and at least 0.
    hue: the largest turn either way, as a share of the circle.
    prob: of these four, together.
    grey: probability that colours become grey.
    blur: that of a Gaussian blur with a radius (standard deviation) of 0.1 to 2 pixels.
    solarize: that all values of at least 128 are inverted.
  """

  brightness: float = 0.4
  contrast: float = 0.4
  saturation: float = 0.4
  hue: float = 0.0
  prob: float = 1.0
  grey: float = 0.0
  blur: float = 0.0
  solarize: float = 0.0

  def __post_init__(self):
    if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
      raise RunError(
        'jitter needs brightness, contrast and saturation of at least 0, and 0 <= hue <= 0.5: '
        f'{self.brightness}, {self.contrast}, {self.saturation}, {self.hue}'
      )
    for name in ('prob', 'grey', 'blur', 'solarize'):
      _probability(getattr(self, name), name)

  def draw(self, size: Size, rng: Any) -> tuple[Change, ...]:
    """See `Colour`."""
    del size
    changes: list[Change] = []
    if rng.random() < self.prob:
      changes += _jitter(rng, self.brightness, self.contrast, self.saturation, self.hue)
    if rng.random() < self.grey:
      changes.append(Tone('grey'))
    if rng.random() < self.blur:
      changes.append(Tone('blur', rng.uniform(*_RADII)))
    if rng.random() < self.solarize:
      changes.append(Tone('solarize', 128))
    return tuple(changes)


@dataclasses.dataclass(frozen=True)
class ThreeAugment(Colour):
  """Grey, solarized or blurred, one of them always; then jitter (Touvron et al. 2022, section 3.2).

  Attributes:
    jitter: by how much brightness, contrast and saturation change; see `Jitter`.
  """

  jitter: float = 0.3

  def __post_init__(self):
    if self.jitter < 0:
      raise RunError(f'the jitter of three_augment must not be negative: {self.jitter}')

  def draw(self, size: Size, rng: Any) -> tuple[Change, ...]:
    """See `Colour`."""
    del size
    which, radius = int(rng.integers(3)), rng.uniform(*_RADII)
    one = (Tone('grey'), Tone('solarize', 128), Tone('blur', radius))[which]
    return (one, *_jitter(rng, self.jitter, self.jitter, self.jitter, 0.0))


@dataclasses.dataclass(frozen=True)
class RandAugment(Colour):
  """Some of 14 to 16 operators, all of one strength (Cubuk et al. 2019, arXiv:1909.13719).

  Attributes:
    dialect: whose operators, and what a magnitude is for them.
    magnitude: of 10, or more, in big_vision; of 10 in timm; of `bins` in torchvision, counted from
      0.
    count: operators for an image, drawn with replacement.
    prob: that each of them is applied. Only timm has this; there it is 0.5 if unset.
    std: of the noise on the magnitude, which stays between 0 and `most`. Only timm has this; there
      it is 0.5 if unset.
    most: largest magnitude with its noise. Only timm has this; there it is 10 if unset.
    increasing: whether all operators are stronger with a larger magnitude; otherwise some are
      weaker. Only timm has this; there it is true if unset.
    bins: of the magnitude. Only torchvision has this; there it is 31 if unset.
    resample: how turned and shifted images are read: 'nearest', 'bilinear', 'bicubic' or, anew each
      time, one of the last two, 'random'. Unset: 'bicubic' in timm, else 'nearest'.
    fill: of what was outside of the image, 0 to 255: a number for each channel, or one for all.
      Unset: 128 in big_vision, the mean of ImageNet in timm, 0 in torchvision.
  """

  dialect: str = 'timm'
  magnitude: float = 9.0
  count: int = 2
  prob: float = UNSET
  std: float = UNSET
  most: float = UNSET
  increasing: bool = UNSET
  bins: int = UNSET
  resample: str = UNSET
  fill: tuple[int, ...] = UNSET
  moves = True

  def __post_init__(self):
    own = _settled('randaugment', self, _OWN)
    most = own['bins'] - 1 if 'bins' in own else own.get('most', math.inf)
    whole = 'bins' not in own or self.magnitude == int(self.magnitude)
    if not 0 <= self.magnitude <= most or not whole:
      kind = 'a whole number' if 'bins' in own else 'a number'
      limit = '' if most == math.inf else f' to {most:g}'
      raise RunError(
        f'the magnitude of randaugment is {kind} from 0{limit} in {self.dialect}: {self.magnitude}'
      )
    if self.count < 1:
      raise RunError(f'randaugment draws at least one operator: count={self.count}')

  def draw(self, size: Size, rng: Any) -> tuple[Change, ...]:
    """See `Colour`."""
    own = _own(self, _OWN)
    how = _How(size, rng, self, steps=own['bins'] - 1 if 'bins' in own else 10)
    names = _OPERATORS[self.dialect]
    changes: list[Change] = []
    for at in rng.integers(len(names), size=self.count).tolist():
      name, level = names[at], self.magnitude
      if self.dialect == 'timm':
        if rng.random() >= own['prob']:
          continue
        level = min(max(level + own['std'] * rng.standard_normal(), 0), own['most'])
        name += 'Increasing' if own['increasing'] and name in _INCREASING else ''
      changes += how.changes(name, level)
    return tuple(changes)


@dataclasses.dataclass(frozen=True)
class AutoAugment(Colour):
  """One of 25 pairs of operators that were found for ImageNet (Cubuk et al. 2019, CVPR).

  Attributes:
    dialect: whose operators.
    policy: 'original' is that of the paper (of timm and torchvision), 'v0' another one that was
      published with code (of big_vision and timm); 'originalr' and 'v0r' are the same in timm, with
      fewer bits where they are posterized more. Unset: 'v0' in big_vision, else 'original'.
    std: of the noise on magnitudes, which stay between 0 and 10. Only timm has this; there it is 0
      if unset.
    resample, fill: as in `RandAugment`.
  """

  dialect: str = 'timm'
  policy: str = UNSET
  std: float = UNSET
  resample: str = UNSET
  fill: tuple[int, ...] = UNSET
  moves = True

  def __post_init__(self):
    _settled('autoaugment', self, _OWN_OF_PAIRS)
    known = _POLICIES[self.dialect]
    if self.policy not in (None, *known):
      raise RunError(
        f'unknown policy of autoaugment in {self.dialect} {self.policy!r}: '
        f'{suggest(self.policy, known)}'
      )

  def draw(self, size: Size, rng: Any) -> tuple[Change, ...]:
    """See `Colour`."""
    timm = self.dialect == 'timm'
    how = _How(size, rng, self, steps=9 if self.dialect == 'torchvision' else 10, reach=250)
    policy = self.policy or _POLICIES[self.dialect][0]
    pairs = _ORIGINAL if policy.startswith('original') else _V0
    changes: list[Change] = []
    for name, prob, level in pairs[int(rng.integers(len(pairs)))]:
      if rng.random() >= prob:
        continue
      if timm:
        noise = _own(self, _OWN_OF_PAIRS)['std'] * rng.standard_normal()
        level, name = min(max(level + noise, 0), 10), _VARIANTS.get((policy, name), name)
      changes += how.changes(name, level)
    return tuple(changes)


COLOURS = {
  'none': Colour, 'jitter': Jitter, 'three_augment': ThreeAugment, 'randaugment': RandAugment,
  'autoaugment': AutoAugment,
}  # fmt: skip


# --- dialects ---

# Fields that one dialect has, with the values that it has by default.
_OWN = {
  'big_vision': {}, 'timm': dict(prob=0.5, std=0.5, most=10.0, increasing=True),
  'torchvision': dict(bins=31),
}  # fmt: skip
_OWN_OF_PAIRS = {'big_vision': {}, 'timm': dict(std=0.0), 'torchvision': {}}
_READINGS = {
  'big_vision': Reading('nearest', (128,), by_index=True),
  'timm': Reading('bicubic', (124, 116, 104)), 'torchvision': Reading('nearest', (0,)),
}  # fmt: skip
_COMMON = (
  'AutoContrast', 'Equalize', 'Rotate', 'Posterize', 'Solarize', 'Color', 'Contrast', 'Brightness',
  'Sharpness', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY',
)  # fmt: skip
_OPERATORS = {
  'big_vision': (*_COMMON, 'Invert', 'SolarizeAdd', 'Cutout'),
  'timm': (*_COMMON, 'Invert', 'SolarizeAdd'), 'torchvision': (*_COMMON, 'Identity'),
}  # fmt: skip
_INCREASING = ('Posterize', 'Solarize', 'Color', 'Contrast', 'Brightness', 'Sharpness')
_TONES = {
  'AutoContrast': 'autocontrast', 'Equalize': 'equalize', 'Invert': 'invert', 'Color': 'colour',
  'Contrast': 'contrast', 'Brightness': 'brightness', 'Sharpness': 'sharpness',
}  # fmt: skip
# Radii of a blur, in pixels.
_RADII = 0.1, 2.0


def _own(colour: Any, fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The fields of its dialect alone, and their values."""
  usual = fields[colour.dialect]
  return {n: usual[n] if getattr(colour, n) is None else getattr(colour, n) for n in usual}


def _settled(name: str, colour: Any, fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """As `_own`; raises RunError for values that are not of the dialect, or of no use."""
  if colour.dialect not in fields:
    raise RunError(
      f'unknown dialect of {name} {colour.dialect!r}: {suggest(colour.dialect, fields)}'
    )
  for dialect, own in fields.items():
    for field in own:
      if getattr(colour, field) is not None and field not in fields[colour.dialect]:
        raise RunError(
          f'{name}.{field}={getattr(colour, field)} is of the dialect {dialect}; '
          f'{colour.dialect} has no such thing'
        )
  if colour.resample not in (None, *RESAMPLES, 'random'):
    known = (*RESAMPLES, 'random')
    raise RunError(
      f'unknown resample of {name} {colour.resample!r}: {suggest(colour.resample, known)}'
    )
  fill = (0,) if colour.fill is None else colour.fill
  if len(fill) not in (1, 3) or not all(0 <= value <= 255 for value in fill):
    raise RunError(f'the fill of {name} is one number from 0 to 255, or three: {fill}')
  own = _own(colour, fields)
  if 'prob' in own:
    _probability(own['prob'], f'{name}.prob')
  if own.get('std', 0) < 0 or own.get('most', 1) <= 0 or own.get('bins', 2) < 2:
    raise RunError(f'{name} needs std of at least 0, most above 0 and two bins: {own}')
  return own


def _probability(value: float, name: str) -> None:
  if not 0 <= value <= 1:
    raise RunError(f'{name}={value} must be a probability, from 0 to 1')


def _jitter(
  rng: Any, brightness: float, contrast: float, saturation: float, hue: float
) -> list[Change]:
  """As torchvision draws it; what is 0 changes nothing."""
  factor = lambda most: rng.uniform(max(0.0, 1 - most), 1 + most)  # noqa: E731
  changes = [
    Tone('brightness', factor(brightness)) if brightness else None,
    Tone('contrast', factor(contrast)) if contrast else None,
    Tone('colour', factor(saturation)) if saturation else None,
    Tone('hue', rng.uniform(-hue, hue)) if hue else None,
  ]
  return [change for at in rng.permutation(4).tolist() if (change := changes[at])]


@dataclasses.dataclass
class _How:
  """What the operators of a dialect do to a frame.

  Attributes:
    size: of the frame.
    rng: of the example.
    colour: with dialect, resample and fill.
    steps: the magnitude at which an operator is strongest, as its authors first meant it.
    reach: pixels of a translation of big_vision then.
  """

  size: Size
  rng: Any
  colour: Any
  steps: int = 10
  reach: int = 100

  def changes(self, name: str, level: float) -> list[Change]:
    """An operator at a magnitude; those that have a direction draw it."""
    share = level / self.steps
    match name:
      case 'Identity':
        return []
      case 'Rotate':
        return [self.reading.rotate(self.signed(30 * share), self.size)]
      case 'ShearX' | 'ShearY':
        return [self.reading.shear(_axis(name), self.signed(0.3 * share))]
      case 'TranslateX' | 'TranslateY':
        pixels = _PIXELS[self.colour.dialect](self.size[_axis(name)], share, self.reach)
        return [self.reading.translate(_axis(name), self.signed(pixels))]
      case 'Cutout':
        return [Tone('cutout', self.box(int(40 * share)))]
      case 'AutoContrast' | 'Equalize' | 'Invert':
        return [Tone(_TONES[name])]
      case 'SolarizeAdd':
        most = 128 if self.colour.dialect == 'timm' else 255
        return [Tone('solarize_add', min(most, int(110 * share)))]
    return [_STRENGTHS[self.colour.dialect](self, name, share)]

  @property
  def reading(self) -> Reading:
    """How a moved image is read; anew each time, it may be random."""
    usual, resample = _READINGS[self.colour.dialect], self.colour.resample
    if resample == 'random':
      resample = RESAMPLES[1 + int(self.rng.integers(2))]
    fill = usual.fill if self.colour.fill is None else self.colour.fill
    return dataclasses.replace(usual, resample=resample or usual.resample, fill=fill)

  def signed(self, value: float) -> float:
    """It, or the opposite."""
    return value if self.rng.random() < 0.5 else -value

  def box(self, pad: int) -> tuple[int, ...]:
    """So far around a random pixel: top, left, bottom and right within the frame."""
    centre = [int(self.rng.integers(side)) for side in self.size]
    low = (max(0, at - pad) for at in centre)
    return (*low, *(min(side, at + pad) for at, side in zip(centre, self.size, strict=True)))


def _axis(name: str) -> int:
  return 'YX'.index(name[-1])


# Of a translation: of the side of the frame, the share of the full strength, and the reach.
_PIXELS: dict[str, Callable[[int, float, int], float]] = {
  'big_vision': lambda side, share, reach: reach * share,
  'timm': lambda side, share, reach: 0.45 * share * side,
  'torchvision': lambda side, share, reach: int(150 / 331 * side * share),
}


def _big_vision(how: _How, name: str, share: float) -> Tone:
  if name == 'Posterize':
    return Tone('tf_posterize', int(4 * share))
  if name == 'Solarize':  # the threshold is of the image's type, which has 256 values
    return Tone('solarize', int(256 * share) % 256)
  own = name != 'Brightness'  # where TensorFlow computes otherwise
  return Tone('tf_' * own + _TONES[name], 1.8 * share + 0.1)


def _timm(how: _How, name: str, share: float) -> Tone:
  bits, threshold = int(4 * share), min(256, int(256 * share))
  match name:
    case 'Posterize':
      return Tone('posterize', bits)
    case 'PosterizeIncreasing':
      return Tone('posterize', max(0, 4 - bits))
    case 'PosterizeOriginal':
      return Tone('posterize', 4 + bits)
    case 'Solarize':
      return Tone('solarize', threshold)
    case 'SolarizeIncreasing':
      return Tone('solarize', 256 - threshold)
  if name.endswith('Increasing'):
    return Tone(_TONES[name.removesuffix('Increasing')], max(0.1, 1 + how.signed(0.9 * share)))
  return Tone(_TONES[name], 1.8 * share + 0.1)


def _torchvision(how: _How, name: str, share: float) -> Tone:
  if name == 'Posterize':
    return Tone('posterize', 8 - round(4 * share))
  if name == 'Solarize':
    return Tone('solarize', 255 - 255 * share)
  return Tone(_TONES[name], 1 + how.signed(0.9 * share))


_STRENGTHS: dict[str, Callable[[_How, str, float], Tone]] = {
  'big_vision': _big_vision, 'timm': _timm, 'torchvision': _torchvision
}  # fmt: skip

# Of each dialect, the first by default.
_POLICIES = {
  'big_vision': ('v0',), 'timm': ('original', 'originalr', 'v0', 'v0r'),
  'torchvision': ('original',),
}  # fmt: skip
_VARIANTS = {
  ('original', 'Posterize'): 'PosterizeOriginal', ('originalr', 'Posterize'): 'PosterizeIncreasing',
  ('v0r', 'Posterize'): 'PosterizeIncreasing',
}  # fmt: skip
_ORIGINAL = (
  (('Posterize', 0.4, 8), ('Rotate', 0.6, 9)),
  (('Solarize', 0.6, 5), ('AutoContrast', 0.6, 5)),
  (('Equalize', 0.8, 8), ('Equalize', 0.6, 3)),
  (('Posterize', 0.6, 7), ('Posterize', 0.6, 6)),
  (('Equalize', 0.4, 7), ('Solarize', 0.2, 4)),
  (('Equalize', 0.4, 4), ('Rotate', 0.8, 8)),
  (('Solarize', 0.6, 3), ('Equalize', 0.6, 7)),
  (('Posterize', 0.8, 5), ('Equalize', 1.0, 2)),
  (('Rotate', 0.2, 3), ('Solarize', 0.6, 8)),
  (('Equalize', 0.6, 8), ('Posterize', 0.4, 6)),
  (('Rotate', 0.8, 8), ('Color', 0.4, 0)),
  (('Rotate', 0.4, 9), ('Equalize', 0.6, 2)),
  (('Equalize', 0.0, 7), ('Equalize', 0.8, 8)),
  (('Invert', 0.6, 4), ('Equalize', 1.0, 8)),
  (('Color', 0.6, 4), ('Contrast', 1.0, 8)),
  (('Rotate', 0.8, 8), ('Color', 1.0, 2)),
  (('Color', 0.8, 8), ('Solarize', 0.8, 7)),
  (('Sharpness', 0.4, 7), ('Invert', 0.6, 8)),
  (('ShearX', 0.6, 5), ('Equalize', 1.0, 9)),
  (('Color', 0.4, 0), ('Equalize', 0.6, 3)),
  (('Equalize', 0.4, 7), ('Solarize', 0.2, 4)),
  (('Solarize', 0.6, 5), ('AutoContrast', 0.6, 5)),
  (('Invert', 0.6, 4), ('Equalize', 1.0, 8)),
  (('Color', 0.6, 4), ('Contrast', 1.0, 8)),
  (('Equalize', 0.8, 8), ('Equalize', 0.6, 3)),
)  # fmt: skip
_V0 = (
  (('Equalize', 0.8, 1), ('ShearY', 0.8, 4)),
  (('Color', 0.4, 9), ('Equalize', 0.6, 3)),
  (('Color', 0.4, 1), ('Rotate', 0.6, 8)),
  (('Solarize', 0.8, 3), ('Equalize', 0.4, 7)),
  (('Solarize', 0.4, 2), ('Solarize', 0.6, 2)),
  (('Color', 0.2, 0), ('Equalize', 0.8, 8)),
  (('Equalize', 0.4, 8), ('SolarizeAdd', 0.8, 3)),
  (('ShearX', 0.2, 9), ('Rotate', 0.6, 8)),
  (('Color', 0.6, 1), ('Equalize', 1.0, 2)),
  (('Invert', 0.4, 9), ('Rotate', 0.6, 0)),
  (('Equalize', 1.0, 9), ('ShearY', 0.6, 3)),
  (('Color', 0.4, 7), ('Equalize', 0.6, 0)),
  (('Posterize', 0.4, 6), ('AutoContrast', 0.4, 7)),
  (('Solarize', 0.6, 8), ('Color', 0.6, 9)),
  (('Solarize', 0.2, 4), ('Rotate', 0.8, 9)),
  (('Rotate', 1.0, 7), ('TranslateY', 0.8, 9)),
  (('ShearX', 0.0, 0), ('Solarize', 0.8, 4)),
  (('ShearY', 0.8, 0), ('Color', 0.6, 4)),
  (('Color', 1.0, 0), ('Rotate', 0.6, 2)),
  (('Equalize', 0.8, 4), ('Equalize', 0.0, 8)),
  (('Equalize', 1.0, 4), ('AutoContrast', 0.6, 2)),
  (('ShearY', 0.4, 7), ('SolarizeAdd', 0.6, 7)),
  (('Posterize', 0.8, 2), ('Solarize', 0.6, 10)),
  (('Solarize', 0.6, 8), ('Equalize', 0.6, 1)),
  (('Color', 0.8, 6), ('Rotate', 0.4, 5)),
)  # fmt: skip
