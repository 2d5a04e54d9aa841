"""A picture of what recipes make of one photo: `python -m experiments.augmentation.picture`.

Writes docs/augmentation.jpg. The first column is the photo as an evaluation sees it.
"""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from experiments.augmentation import recipes
from vit_jax.data import crops, preprocess
from vit_jax.data.views import View
from vit_jax.draw import pictures

SIZE, SHOWN, VIEWS, GAP = 224, 96, 8, 4  # big_vision shifts by pixels, whatever the size
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def seen(image: np.ndarray, view: View, seed: int) -> np.ndarray:
  """A view of an image with what is erased, as it would be denormalised and cut to 8 bits."""
  rng = np.random.default_rng(seed)
  opened = preprocess.Opened(image, 3)
  placement = view.place(*opened.size, rng)
  pixels = opened.within(placement).copy()
  for top, left, height, width in placement.erased:
    shape = {'const': (), 'rand': (3,), 'pixel': (height, width, 3)}[view.erase.mode]
    noise = rng.standard_normal(shape) if shape else 0.0
    value = np.clip(255 * (noise * STD + MEAN), 0, 255)
    pixels[top : top + height, left : left + width] = value
  return pixels


def rows(image: np.ndarray) -> dict[str, list[np.ndarray]]:
  """Views of an image, by recipe; of recipes that draw the same views the first."""
  views = {recipes.data(name).view.sized((SIZE, SIZE)): name for name in reversed(recipes.RECIPES)}
  return {
    name: [seen(image, view, seed) for seed in range(VIEWS)]
    for view, name in reversed(views.items())
  }


def main(path: pathlib.Path) -> None:
  """Draws all recipes."""
  image = load_sample_image('flower.jpg')
  plain = preprocess.prepare(image, View(crops.Center(1.0), size=(SIZE, SIZE)), 3, None)
  gap = np.full((SHOWN, GAP, 3), 255, np.uint8)
  lines = []
  for name, views in rows(image).items():
    small = (pictures.resized(view, SHOWN / SIZE) for view in (plain, *views))
    line = np.hstack([part for view in small for part in (view, gap)])
    lines.append(pictures.captioned(line[:, :-GAP], [(name, pictures.INK)]))
  lines = [np.pad(line, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for line in lines]
  Image.fromarray(np.vstack(lines)).save(path, quality=88)
  print(path)


if __name__ == '__main__':
  main(pathlib.Path(__file__).parent.parent.parent / 'docs' / 'augmentation.jpg')
