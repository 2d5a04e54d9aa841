"""What a checkpoint sees in images: `python -m vit_jax.predict CHECKPOINT IMAGE...`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.architecture.card import Card
from vit_jax.convert import read
from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.core.paths import Path, at
from vit_jax.data import crops, files, preprocess
from vit_jax.models.vit import ViT


def prepare(image: np.ndarray, card: Card) -> np.ndarray:
  """A uint8 image (height, width, channels) as a model wants it: float32 of the card's size."""
  height, width = card.size
  if card.resize == 'area':  # as in this project's training
    crop = crops.Center(card.crop) if card.crop else crops.Resize()
    image = preprocess.apply(crop, image, card.size, None)
  elif card.crop:
    # The shorter side first, then the middle: what timm and transformers do.
    scale = max(
      math.floor(height / card.crop + 1e-6) / image.shape[0],
      math.floor(width / card.crop + 1e-6) / image.shape[1],
    )
    sides = [max(round(side * scale), least) for side, least in zip(image.shape, card.size)]  # noqa: B905
    image = _resize(image, (sides[0], sides[1]), card.resize)
    top, left = (round((side - size) / 2) for side, size in zip(sides, card.size, strict=True))
    image = image[top : top + height, left : left + width]
  else:
    image = _resize(image, card.size, card.resize)
  pixels = image.astype(np.float32) / 255
  return (pixels - np.array(card.mean, np.float32)) / np.array(card.std, np.float32)


def _resize(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
  how = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}[method]
  if image.shape[2] != 3:  # of others Pillow would make assumptions, such as alpha
    return np.dstack([_plane(image[..., i], size, how) for i in range(image.shape[2])])
  return _plane(image, size, how)


def _plane(image: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
  return np.asarray(Image.fromarray(image).resize((size[1], size[0]), how))


def images_in(paths: Iterable[str]) -> list[Path]:
  """Image files, those in folders included; what else is there is said on the standard error.

  Raises:
    RunError: for a path that is not there, or a folder without images.
  """
  found = []
  for path in map(at, paths):
    if path.is_dir():
      passed = files.Passed()
      inside = [at(image) for image in files.images(path, passed)]
      text = f'passed over: {passed}' if str(passed) else ''
      if not inside:
        raise RunError(f'{path} holds no images' + f'; {text}' * bool(text))
      if text:
        print(f'{path}: {text}', file=sys.stderr)
      found += inside
    elif path.is_file():
      found.append(path)
    else:
      raise RunError(f'there is no file {path}')
  return found


def predict(
  model: ViT, paths: Iterable[Path], *, top: int = 5, batch_size: int = 32,
  broken: Callable[[Path, str], None] | None = None,
) -> Iterator[tuple[Path, list[tuple[int, float]]]]:  # fmt: skip
  """The likeliest classes of each image, with their probabilities, likeliest first.

  Args:
    model: with a head and a card.
    paths: of images.
    top: how many classes.
    batch_size: images at a time.
    broken: called with the path of a file that is no image, and why; without it, RunError.
  """
  card, channels = model.card, model.config.in_channels

  @jax.jit
  def likeliest(model: Any, x: jax.Array) -> Any:
    return jax.lax.top_k(jax.nn.softmax(model(x)), min(top, model.config.num_classes))

  def batches() -> Iterator[tuple[list[Path], np.ndarray]]:
    names, rows = [], np.zeros((batch_size, *card.size, channels), np.float32)
    for path in paths:
      try:
        rows[len(names)] = prepare(preprocess.decode(path.read_bytes(), channels), card)
      except (ValueError, OSError) as error:
        if broken is None:
          raise RunError(f'{path}: {error}') from None
        broken(path, str(error))
        continue
      names.append(path)
      if len(names) == batch_size:
        yield names, rows
        names = []
    if names:
      yield names, rows

  for names, rows in batches():
    chances, classes = jax.device_get(likeliest(model, jnp.asarray(rows)))
    for path, p, c in zip(names, chances, classes, strict=False):
      yield path, [(int(i), float(x)) for i, x in zip(c, p, strict=True)]


def main(
  checkpoint: str, image: list[str], top: int, batch_size: int, labels: str | None, changes: dict
) -> int:
  """Prints the likeliest classes of each image."""
  if top < 1 or batch_size < 1:
    raise RunError('--top and --batch_size must be at least 1')
  paths = images_in(image)
  model = read.load(checkpoint, **changes)
  if not isinstance(model, ViT) or not model.config.num_classes:
    raise RunError(f'{checkpoint} has no head for classification: it gives features only')
  if any(side % model.config.stride for side in model.card.size):
    raise RunError(
      f'{checkpoint} asks for images of {model.card.size}, which patches of {model.config.stride} '
      'do not cut evenly: give image_size'
    )
  names = model.card.class_names or _names(labels, model.config.num_classes)
  failed = []

  def broken(path: Path, why: str) -> None:
    failed.append(path)
    print(f'error: {path}: {why}', file=sys.stderr)

  for path, found in predict(model, paths, top=top, batch_size=batch_size, broken=broken):
    print(path)
    for number, chance in found:
      print(f'  {chance:6.1%}  {names[number] if names else f"class {number}"}')
  return 1 if failed else 0


def _names(path: str | None, count: int) -> list[str]:
  if path is None:
    return []
  try:
    names = at(path).read_text().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise RunError(f'cannot read {path}: {error}') from None
  if len(names) != count:
    raise RunError(f'{path} has {len(names)} lines for the {count} classes of the model')
  return names


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    prog='python -m vit_jax.predict', description='The likeliest classes of images.'
  )
  parser.add_argument('checkpoint', help='npz, safetensors or PyTorch file; folder; run directory')
  parser.add_argument('image', nargs='+', help='image files, or folders of them')
  parser.add_argument('--top', type=int, default=5, help='how many classes')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--labels', help='class names, one per line, if the checkpoint has none')
  command.run(parser, main)
