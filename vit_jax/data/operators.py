"""Operators on the pixels of an image of 8 bits, as published code computes them.

All take an image, uint8 (height, width, 1 or 3), and give one of the same shape, and may return the
image itself. Those without a prefix are Pillow's (`ImageOps`, `ImageEnhance`, `ImageFilter`), which
timm, torchvision and DeiT call; `tf_` are those in which big_vision's TensorFlow differs. They are
computed by OpenCV where that gives the same numbers: it is several times faster than Pillow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.changes import Move

_LEVELS = np.arange(256)
# Of red, green and blue in a grey, as Pillow has them (ITU-R 601-2), in units of 2 ** -16.
_GREY = np.array([[19595, 38470, 7471]]) / 65536
_GREY_TF = np.array([0.2989, 0.587, 0.114], np.float32)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_RESAMPLES = {
  'nearest': Image.Resampling.NEAREST, 'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}  # fmt: skip
# Box filters that stand for a Gaussian one in Pillow.
_PASSES = 3
# Added before rounding to get the integral part; of a whole number, whatever its last bits are.
_DOWN = -0.5 + 2**-10


# --- values ---


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Between black (0), the image (1), and beyond."""
  return _looked_up(image, _towards(0, factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Between the mean of its grey (0), the image (1), and beyond."""
  mean = int(np.float64(grey_of(image).sum(dtype=np.int64)) / (image.size // image.shape[2]) + 0.5)
  return _looked_up(image, _towards(mean, factor))


def tf_contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """The same, but the 'mean' is that of the histogram's bins: pixels / 256, at most 255."""
  height, width = image.shape[:2]
  return _looked_up(image, _towards(min(int(height * width / 256), 255), factor))


def colour(image: np.ndarray, factor: float) -> np.ndarray:
  """Between its grey (0), the image (1), and beyond; grey images stay as they are."""
  return image if image.shape[2] == 1 else _blended(grey(image), image, factor)


def tf_colour(image: np.ndarray, factor: float) -> np.ndarray:
  """The same, where grey is rounded otherwise."""
  if image.shape[2] == 1:
    return image
  # uint8 to [0, 1] and back, as TensorFlow converts types.
  mixed = (image.astype(np.float32) / 255) @ _GREY_TF
  mixed = (mixed * np.float32(255.5)).astype(np.uint8)[..., None]
  return _blended(np.repeat(mixed, 3, 2), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """Between a smoothed image (0), the image (1), and beyond; edges stay as they are."""
  return _blended(_with_edges(_each(lambda x: cv2.filter2D(x, -1, _SMOOTH), image), image),
                  image, factor)  # fmt: skip


def tf_sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """The same, where what is smoothed is rounded down."""
  smooth = _each(lambda x: cv2.filter2D(x, -1, _SMOOTH, delta=_DOWN), image)
  return _blended(_with_edges(smooth, image), image, factor)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the highest bits; of 0 bits nothing is left, as in Pillow until it refused that."""
  return image & np.uint8(256 - (1 << 8 - bits) if bits < 8 else 255)


def tf_posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """The same, but never less than one bit: TensorFlow shifts by 7 where 8 or -1 is asked for."""
  return posterize(image, 8 - min((8 - bits) % 256, 7))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
  """Inverts what is not below a threshold."""
  return _looked_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, added: int) -> np.ndarray:
  """Adds to what is below 128, up to 255."""
  return _looked_up(image, np.where(_LEVELS < 128, np.minimum(_LEVELS + added, 255), _LEVELS))


def invert(image: np.ndarray) -> np.ndarray:
  """The negative."""
  return 255 - image


def autocontrast(image: np.ndarray) -> np.ndarray:
  """Stretches each channel to all levels."""

  def table(counts: np.ndarray) -> np.ndarray:
    there = np.flatnonzero(counts)
    low, high = int(there[0]), int(there[-1])
    if high <= low:
      return _LEVELS
    scale = 255 / (high - low)
    return np.clip(_LEVELS * scale - low * scale, 0, 255).astype(int)

  return _by_channel(image, table)


def equalize(image: np.ndarray) -> np.ndarray:
  """Makes each channel's histogram flat."""

  def table(counts: np.ndarray) -> np.ndarray:
    there = counts[counts > 0]
    step = (there.sum() - there[-1]) // 255
    if not step:
      return _LEVELS
    before = np.cumsum(counts) - counts
    return np.minimum((before + step // 2) // step, 255)

  return _by_channel(image, table)


def grey(image: np.ndarray) -> np.ndarray:
  """Without colours, but as many channels."""
  return cv2.cvtColor(grey_of(image), cv2.COLOR_GRAY2RGB) if image.shape[2] == 3 else image


def hue(image: np.ndarray, turn: float) -> np.ndarray:
  """Turns the hue by a share of the circle, -0.5 to 0.5, as torchvision does with Pillow."""
  if image.shape[2] == 1:
    return image
  angle, *rest = Image.fromarray(image).convert('HSV').split()
  angle = angle.point(np.roll(_LEVELS, -int(turn * 255)).tolist())
  return np.asarray(Image.merge('HSV', (angle, *rest)).convert('RGB'))


def blur(image: np.ndarray, radius: float) -> np.ndarray:
  """As Pillow's Gaussian filter: three box filters of a width that need not be whole.

  Gwosdek et al. 2011, 'Theoretical foundations of Gaussian convolution by extended box filtering'.
  """
  variance = radius**2 / _PASSES
  whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
  part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
  part /= 6 * (variance - (whole + 1) ** 2)
  kernel = np.ones((1, 2 * whole + 3), np.float32)
  kernel[0, [0, -1]] = part
  kernel /= kernel.sum()
  # Rounded after each, which is most of what a small radius does.
  for each in (kernel,) * _PASSES + (kernel.T,) * _PASSES:
    image = _each(lambda x, k=each: cv2.filter2D(x, -1, k, borderType=cv2.BORDER_REPLICATE), image)
  return image


def cutout(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
  """Grey 128 in a box: top, left, bottom, right (DeVries & Taylor 2017)."""
  top, left, bottom, right = box
  found = image.copy()
  found[top:bottom, left:right] = 128
  return found


TONES: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType({
  each.__name__: each
  for each in (
    brightness, contrast, tf_contrast, colour, tf_colour, sharpness, tf_sharpness, posterize,
    tf_posterize, solarize, solarize_add, invert, autocontrast, equalize, grey, hue, blur, cutout,
  )
})  # fmt: skip


# --- places ---


def moved(image: np.ndarray, move: Move) -> np.ndarray:
  """An image as Pillow's affine transformation leaves it."""
  channels = image.shape[2]
  fill = move.fill if len(move.fill) == channels else (round(sum(move.fill) / len(move.fill)),)
  fill = fill * channels if len(fill) == 1 else fill
  whole = Image.fromarray(image if channels == 3 else image[..., 0])
  found = whole.transform(
    whole.size, Image.Transform.AFFINE, move.inverse, _RESAMPLES[move.resample],
    fillcolor=fill if channels == 3 else fill[0],
  )  # fmt: skip
  return np.asarray(found).reshape(image.shape)


def changed(image: np.ndarray, changes: Any) -> np.ndarray:
  """An image after some `changes`, one after another."""
  if changes:
    image = np.ascontiguousarray(image)
  for change in changes:
    if isinstance(change, Move):
      image = moved(image, change)
    elif change.value is None:
      image = TONES[change.name](image)
    else:
      image = TONES[change.name](image, change.value)
  return image


# --- what they are made of ---


def _looked_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Each value replaced by that of a table (256,) or, of each channel, (256, channels)."""
  table = table.astype(np.uint8)
  return cv2.LUT(image, table if table.ndim == 1 else table[None]).reshape(image.shape)


def grey_of(image: np.ndarray) -> np.ndarray:
  """Grey as Pillow rounds it, (height, width)."""
  return cv2.transform(image, _GREY) if image.shape[2] == 3 else image[..., 0]


def _towards(value: int, factor: float) -> np.ndarray:
  """Where the levels go that are at `factor` of the way from one value to them."""
  levels = np.float32(value) + np.float32(factor) * (_LEVELS - value).astype(np.float32)
  return np.clip(levels, 0, 255).astype(np.uint8)


def _blended(one: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
  """one + factor * (other - one), rounded down, between 0 and 255."""
  found = cv2.addWeighted(one, 1 - factor, other, factor, _DOWN)
  return found.reshape(other.shape)


def _each(function: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
  return function(image).reshape(image.shape)


def _with_edges(inner: np.ndarray, image: np.ndarray) -> np.ndarray:
  """`inner`, but for its outermost pixels, which are those of the image."""
  inner[[0, -1]], inner[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
  return inner


def _by_channel(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Each channel by a table that is made of the counts of its levels, int64 (256,)."""
  count = functools.partial(cv2.calcHist, mask=None, histSize=[256], ranges=[0, 256])
  counts = [count([image], [i]).ravel().astype(np.int64) for i in range(image.shape[2])]
  return _looked_up(image, np.stack([table(each) for each in counts], axis=1))
