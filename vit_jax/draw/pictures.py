"""Pictures of predictions, understood at a glance: uint8 arrays (height, width, 3)."""

from __future__ import annotations

import colorsys
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Of pictures: the shorter side at least, the longer one at most, in pixels.
LEAST, MOST = 256, 1024
INK, PAPER, RIGHT, WRONG = (40, 40, 40), (255, 255, 255), (30, 110, 50), (180, 40, 40)
_LINE = 18  # height of a line of text


def colour(number: int) -> tuple[int, int, int]:
  """Of a class: neighbours differ, and no two of the first hundred are alike."""
  hue = number * 0.618033988749895 % 1.0
  light = (0.52, 0.68, 0.42)[number // 7 % 3]
  red, green, blue = colorsys.hls_to_rgb(hue, light, 0.72)
  return round(red * 255), round(green * 255), round(blue * 255)


def shown(pixels: np.ndarray) -> np.ndarray:
  """An image of any type and number of channels as a picture of the same size.

  Of more than three channels the first three are shown; what has more than 8 bits is stretched from
  its second to its 98th percentile. What is missing is black.

  Args:
    pixels: (height, width, channels).
  """
  channels = pixels.shape[2]
  pixels = pixels[..., [0, 0, 0]] if channels < 3 else pixels[..., :3]
  if pixels.dtype == np.uint8:
    return np.ascontiguousarray(pixels)
  known = np.isfinite(pixels)
  low, high = np.percentile(pixels[known], (2, 98)) if known.any() else (0, 1)
  stretched = (np.where(known, pixels, low).astype(np.float64) - low) / max(high - low, 1e-12)
  return np.rint(np.clip(stretched, 0, 1) * 255).astype(np.uint8)


def scale(height: int, width: int) -> float:
  """By how much an image is enlarged or shrunk to be looked at."""
  whole = max(1, -(-LEAST // min(height, width)))
  while whole > 1 and whole * max(height, width) > MOST:
    whole -= 1
  return min(whole, MOST / max(height, width))


def resized(picture: np.ndarray, by: float) -> np.ndarray:
  """A picture enlarged without smoothing, or shrunk with it."""
  if by == 1:
    return picture
  height, width = (max(1, round(side * by)) for side in picture.shape[:2])
  how = Image.Resampling.NEAREST if by > 1 else Image.Resampling.BOX
  return np.asarray(Image.fromarray(picture).resize((width, height), how))


def captioned(picture: np.ndarray, lines: Sequence[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
  """A picture with lines of text of some colour under it, as wide as they need."""
  font = _font()
  width = max([picture.shape[1], *(int(font.getlength(text)) + 12 for text, _ in lines)])
  height = picture.shape[0] + _LINE * len(lines) + 6
  canvas = Image.new('RGB', (width, height), PAPER)
  canvas.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, 0))
  pen = ImageDraw.Draw(canvas)
  for number, (text, ink) in enumerate(lines):
    pen.text((6, picture.shape[0] + 3 + number * _LINE), text, fill=ink, font=font)
  return np.asarray(canvas)


def beside(*pictures: np.ndarray) -> np.ndarray:
  """Pictures next to each other."""
  height = max(picture.shape[0] for picture in pictures)
  gap = np.full((height, 6, 3), 255, np.uint8)
  parts: list[np.ndarray] = []
  for picture in pictures:
    below = height - picture.shape[0]
    parts += [gap, np.pad(picture, ((0, below), (0, 0), (0, 0)), constant_values=255)]
  return np.concatenate(parts[1:], axis=1)


def bars(values: Sequence[tuple[str, float, tuple[int, int, int]]], width: int = 280) -> np.ndarray:
  """Shares in [0, 1] as bars with names, one under the other."""
  font, line = _font(), 22
  canvas = Image.new('RGB', (width, line * len(values) + 4), PAPER)
  pen = ImageDraw.Draw(canvas)
  for number, (name, share, ink) in enumerate(values):
    top = 2 + number * line
    pen.rectangle((0, top, max(1, round((width - 1) * share)), top + line - 4), fill=_pale(ink))
    pen.text((6, top), _fitting(name, width - 64), fill=INK, font=font)
    pen.text((width - 6, top), f'{share:.1%}', fill=INK, font=font, anchor='ra')
  return np.asarray(canvas)


def heat(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
  """A picture under a warm glow where values, (rows, columns) from 0 on, are large."""
  peak = max(float(values.max()), 1e-12)
  glow = Image.fromarray((values / peak * 255).astype(np.uint8))
  size = picture.shape[1], picture.shape[0]
  strength = np.asarray(glow.resize(size, Image.Resampling.BICUBIC), np.float64)[..., None] / 255
  grey = picture.mean(-1, keepdims=True) * 0.55
  warm = np.concatenate([np.sqrt(strength), strength**1.5, strength**4], axis=-1) * 255
  return np.clip(grey + warm * (0.25 + 0.75 * strength), 0, 255).astype(np.uint8)


def seen(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
  """An image (height, width, channels), as a model saw it, under what it drew on."""
  view = shown(image)
  return heat(resized(view, scale(*view.shape[:2])), attention)


def regions(picture: np.ndarray, labels: np.ndarray, *, share: float = 0.55) -> np.ndarray:
  """A picture with the classes of its pixels as colours; negative ones are none."""
  palette = np.array([colour(number) for number in range(int(labels.max(initial=0)) + 1)])
  tint = palette[np.maximum(labels, 0)]
  mixed = picture * (1 - share) + tint * share
  return np.where(labels[..., None] >= 0, mixed, picture).astype(np.uint8)


def outlined(picture: np.ndarray, numbers: np.ndarray) -> np.ndarray:
  """A picture with pale lines where the numbers of its pixels change."""
  edge = np.zeros(numbers.shape, bool)
  edge[1:] |= numbers[1:] != numbers[:-1]
  edge[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
  return np.where(edge[..., None], picture * 0.3 + 255 * 0.7, picture).astype(np.uint8)


def legend(names: Sequence[tuple[str, tuple[int, int, int]]], width: int = 220) -> np.ndarray:
  """Names beside squares of their colours."""
  font = _font()
  canvas = Image.new('RGB', (width, _LINE * max(1, len(names)) + 4), PAPER)
  pen = ImageDraw.Draw(canvas)
  for number, (name, ink) in enumerate(names):
    top = 2 + number * _LINE
    pen.rectangle((2, top + 2, 14, top + 14), fill=ink)
    pen.text((22, top), _fitting(name, width - 28), fill=INK, font=font)
  return np.asarray(canvas)


def boxes(
  picture: np.ndarray, corners: np.ndarray, names: Sequence[str],
  inks: Sequence[tuple[int, int, int]],
) -> np.ndarray:  # fmt: skip
  """A picture with named boxes, (n, 4) left, top, right and bottom in its pixels."""
  canvas = Image.fromarray(picture).copy()
  pen, font = ImageDraw.Draw(canvas), _font(13)
  for box, name, ink in zip(np.asarray(corners).tolist(), names, inks, strict=True):
    pen.rectangle(box, outline=ink, width=2)
    if name:
      at = box[0] + 2, max(0, box[1] - 15)
      pen.rectangle(pen.textbbox(at, name, font=font), fill=ink)
      pen.text(at, name, fill=PAPER, font=font)
  return np.asarray(canvas)


def points(
  picture: np.ndarray, places: np.ndarray, inks: Sequence[tuple[int, int, int]], *, radius: int = 4
) -> np.ndarray:
  """A picture with dots at places, (n, 2) x and y in its pixels; those that are not finite not."""
  canvas = Image.fromarray(picture).copy()
  pen = ImageDraw.Draw(canvas)
  for (x, y), ink in zip(np.asarray(places).tolist(), inks, strict=True):
    if np.isfinite(x) and np.isfinite(y):
      pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink, outline=PAPER)
  return np.asarray(canvas)


def png(picture: np.ndarray) -> bytes:
  """A picture, or a map of classes (height, width) of 8 or 16 bits, as a file."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'PNG')
  return file.getvalue()


@functools.cache
def _font(size: int = 14) -> Any:
  return ImageFont.load_default(size)


def _fitting(text: str, width: int) -> str:
  """A text that is cut to a width in pixels."""
  font = _font()
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(f'{text}…') > width:
    text = text[:-1]
  return f'{text}…'


def _pale(ink: tuple[int, int, int]) -> tuple[int, int, int]:
  red, green, blue = (round(255 - (255 - value) * 0.35) for value in ink)
  return red, green, blue
