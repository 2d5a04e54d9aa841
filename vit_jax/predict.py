"""Predictions of a checkpoint on images: `python -m vit_jax.predict CHECKPOINT IMAGE...`."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epy

from vit_jax.architecture import ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import arguments
from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.core.paths import Path, at
from vit_jax.data.views import View

# Arguments are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.convert import notes, read
  from vit_jax.data import crops, files, preprocess

if typing.TYPE_CHECKING:
  from vit_jax.convert.opened import Opened
  from vit_jax.models.vit import ViT


def prepare(image: Any, card: Card, channels: int = 0) -> np.ndarray:
  """An image as a model wants it, float32 (*card.size, channels).

  Args:
    image: encoded, or uint8 (height, width, channels).
    card: of the model.
    channels: of the model; those of an array if not given.
  """
  channels = channels or image.shape[2]
  crop = crops.published(card.resize, card.crop, card.dialect)
  pixels = preprocess.prepare(image, View(crop, size=card.size), channels, None)
  pixels = pixels.astype(np.float32) / 255
  return (pixels - np.array(card.mean, np.float32)) / np.array(card.std, np.float32)


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

  Probabilities are a softmax over the classes, or of a single class the sigmoid of its logit.

  Args:
    model: with a head and a card.
    paths: of images.
    top: how many classes.
    batch_size: images at a time.
    broken: called with the path of a file that is not a valid image, and why; without it, RunError.
  """
  card, channels = model.card, model.config.in_channels

  @jax.jit
  def likeliest(model: Any, x: jax.Array) -> Any:
    classes = model.config.num_classes
    chances = jax.nn.softmax if classes > 1 else jax.nn.sigmoid
    return jax.lax.top_k(chances(model(x)), min(top, classes))

  def batches() -> Iterator[tuple[list[Path], np.ndarray]]:
    names, rows = [], np.zeros((batch_size, *card.size, channels), np.float32)
    for path in paths:
      try:
        rows[len(names)] = prepare(path.read_bytes(), card, channels)
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
  checkpoint: str, image: list[str], top: int, batch_size: int, labels: str | None, changes: dict,
  step: int | None = None, part: str = '', prefix: str | None = None, ignore: str = '',
) -> int:  # fmt: skip
  """Prints the likeliest classes of each image."""
  if top < 1 or batch_size < 1:
    raise RunError('--top and --batch_size must be at least 1')
  paths = images_in(image)
  with notes.printed(sys.stderr):
    opened = read.open_checkpoint(
      checkpoint, step=step, part=part, prefix=prefix, ignore=ignore, **changes
    )
    _check_head(opened)
    model = read.model_of(opened)
    names = _names(labels, model, checkpoint)
  if any(side % model.config.stride for side in model.card.size):
    raise RunError(
      f'{checkpoint} asks for images of {model.card.size}, which patches of {model.config.stride} '
      'do not cut evenly: give image_size'
    )
  if model.config.num_classes == 1:
    print('note: one class: the sigmoid of its logit', file=sys.stderr)
  failed = []

  def broken(path: Path, why: str) -> None:
    failed.append(path)
    print(f'error: {path}: {why}', file=sys.stderr)

  for path, found in predict(model, paths, top=top, batch_size=batch_size, broken=broken):
    print(path)
    for number, chance in found:
      print(f'  {chance:6.1%}  {names[number] if names else f"class {number}"}')
  return 1 if failed else 0


def _check_head(opened: Opened) -> None:
  """Raises RunError unless a checkpoint has a head for classification that was trained."""
  classes = getattr(opened.config, 'num_classes', 0)
  if not isinstance(opened.config, ViTArchitecture):
    raise RunError(f'{opened.where} holds a model of the kind {opened.config.kind}, and classes '
                   'are predicted by a vit')  # fmt: skip
  wanted = opened.changes.get('num_classes', classes)
  if opened.changes.get('num_classes') == 0:
    raise RunError('num_classes=0 takes away the head that predictions come from: leave it out')
  if not classes:
    raise RunError(f'{opened.where} has no head for classification: it only gives features')
  if wanted != classes:
    raise RunError(
      f'{opened.where} has a head for {classes or "no"} classes, and num_classes={wanted} would '
      'predict with one that was never trained: leave num_classes out, or train with '
      f'config.init={opened.where}'
    )
  if head := sorted(n for n in opened.untrained if n.startswith(('head/', 'distill_head/'))):
    raise RunError(
      f'{opened.where} lacks {", ".join(head)}: it would predict with a head that was never trained'
    )


def _names(path: str | None, model: ViT, checkpoint: str) -> tuple[str, ...]:
  """Of the classes: those in a file before those that a checkpoint knows; maybe none."""
  known, count = model.card.class_names, model.config.num_classes
  if path is None:
    return known
  try:
    text = at(path).read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise RunError(f'cannot read {path}: {error}') from None
  names = tuple(text.removesuffix('\n').split('\n'))
  if len(names) != count:
    raise RunError(f'{path} has {len(names)} lines for the {count} classes of the model')
  if known and known != names:
    notes.say(f'class names are those of {path}, not those of {checkpoint}: {notes.shown(known)}')
  return names


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.predict', 'Prints the likeliest classes of images.',
    (
      'runs/photos new/*.jpg',
      'vit_base.safetensors photos --labels=imagenet_classes.txt --top=3',
    ),
  )  # fmt: skip
  parser.add_argument('checkpoint', help='npz, safetensors or PyTorch file; folder; run directory')
  parser.add_argument('image', nargs='+', help='image files, or folders of them')
  parser.add_argument('--top', type=int, default=5, metavar='N', help='how many classes')
  parser.add_argument('--batch_size', type=int, default=32, metavar='N', help='images at a time')
  parser.add_argument(
    '--labels', metavar='FILE', help="class names, one per line, instead of the checkpoint's"
  )
  arguments.run(parser, main)
