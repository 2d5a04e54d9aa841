"""How images are prepared, in the words of each dialect.

Nobody else averages over areas as our own evaluations do. 'bilinear' is written instead: of what
PIL has it comes nearest on photographs (of 427x640, cropped to 224x224: 3.1 of 255 levels on
average, hamming and bicubic 3.2, box 4.3), torchvision has it, too, and enlarging is the same.
"""

from __future__ import annotations

import math
from typing import Any

from vit_jax.architecture.card import Card


def resampling(card: Card) -> str:
  """'bilinear' or 'bicubic'."""
  return 'bilinear' if card.resize == 'area' else card.resize


def for_timm(card: Card) -> dict[str, Any]:
  """Of timm's pretrained_cfg."""
  return {
    'input_size': [len(card.mean), *card.size], 'mean': list(card.mean), 'std': list(card.std),
    'interpolation': resampling(card), 'crop_pct': card.crop or 1.0,
    'crop_mode': 'center' if card.crop else 'squash',
  }  # fmt: skip


def for_openai(card: Card) -> dict[str, Any]:
  """OpenCLIP's preprocess_cfg; it can crop, but not less than the shorter side."""
  return {
    'mean': list(card.mean), 'std': list(card.std), 'interpolation': resampling(card),
    'resize_mode': 'shortest' if card.crop else 'squash',
  }  # fmt: skip


def for_transformers(card: Card, kind: str) -> tuple[dict[str, Any], list[str]]:
  """The contents of preprocessor_config.json, and what is not quite the same.

  Args:
    card: of the model.
    kind: of model.
  """
  height, width = card.size
  if kind == 'yolos':
    # Sides of any image, whose shape stays.
    return dict(
      do_resize=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, do_pad=True,
      image_mean=list(card.mean), image_std=list(card.std), format='coco_detection',
      size=dict(shortest_edge=min(height, width), longest_edge=max(height, width)),
      resample={'bilinear': 2, 'bicubic': 3}[resampling(card)],
      image_processor_type='YolosImageProcessor',
    ), []  # fmt: skip
  found: dict[str, Any] = dict(
    do_resize=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
    image_mean=list(card.mean), image_std=list(card.std),
    resample={'bilinear': 2, 'bicubic': 3}[resampling(card)],
    do_center_crop=bool(card.crop), do_convert_rgb=len(card.mean) == 3,
  )  # fmt: skip
  if not card.crop:
    processor = 'ViTImageProcessor'
    found['size'] = dict(height=height, width=width)
  elif height == width:
    processor = 'BitImageProcessor'
    found['size'] = {'shortest_edge': _larger(height, card)}
  else:
    processor = 'DeiTImageProcessor'
    found['size'] = dict(height=_larger(height, card), width=_larger(width, card))
  if card.crop:
    found['crop_size'] = dict(height=height, width=width)
  own = {
    'clip': 'CLIPImageProcessor', 'siglip': 'SiglipImageProcessor',
    'siglip2': 'Siglip2ImageProcessor',
  }  # fmt: skip
  if bool(card.crop) == (kind == 'clip'):
    processor = own.get(kind, processor)
  found['image_processor_type'] = processor
  notes = []
  if processor == 'DeiTImageProcessor':
    size = found['size']
    notes.append(
      f'crop: {card.crop:.3g} of images of the same shape as {height}x{width}; transformers '
      f'squeezes others into {size["height"]}x{size["width"]} before it crops'
    )
  return found, notes


def _larger(side: int, card: Card) -> int:
  """Pixels of a side of which the crop keeps `side`: as timm rounds, or the nearest to ours."""
  return round(side / card.crop) if card.resize == 'area' else math.floor(side / card.crop + 1e-6)
