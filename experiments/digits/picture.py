"""A picture of test images with predictions, true labels and attention over the image.

    python -m experiments.digits.picture --workdir=runs/digits

Writes WORKDIR/predictions.png, wrong predictions first, and a table of the classes to the terminal.
"""

import pathlib
from typing import Any

import cv2
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from vit_jax.data.pipeline import eval_batches, iterate
from vit_jax.data.views import View
from vit_jax.evaluate import restore
from vit_jax.explore.attention import rollout

SIDE, GAP, TEXT, COLUMNS, ROWS = 96, 10, 26, 6, 4
RIGHT, WRONG, INK, PAPER = (60, 130, 40), (40, 40, 200), (60, 60, 60), 255  # BGR


def predict(workdir: str):
  """Test images (uint8), labels, predictions, attention maps and class names of a run."""
  experiment, state = restore(workdir)
  cfg = experiment.config
  model = cfg.task.judged(state, experiment.frozen)
  evaluator = cfg.evals['test']
  source = cfg.data.open(evaluator.split)
  rows = cfg.task.rows(cfg.model, source.fields, View(evaluator.crop), train=False)
  batches = eval_batches(rows, source, len(source), range(len(source)))
  batch = next(iterate(batches))
  images = cfg.task.normalize(batch['image'])
  logits, attention = jax.jit(lambda m, x: (m(x), rollout(m, x)))(model, images)
  predictions = np.asarray(logits).argmax(-1)
  return batch['image'], batch['label'], predictions, np.asarray(attention), source.class_names


def tile(image, label, prediction, attention, names):
  """One image, its attention as warmth beside it, and what was said of it."""
  enlarge: Any = dict(dsize=(SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
  pixels = cv2.cvtColor(cv2.resize(image, **enlarge), cv2.COLOR_GRAY2BGR)
  heat = cv2.resize(attention / attention.max(), **enlarge).clip(0, 1)
  warm = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
  overlay = cv2.addWeighted(pixels, 0.45, warm, 0.75, 0)
  out = np.full((SIDE + TEXT, 2 * SIDE + 2, 3), PAPER, np.uint8)
  out[TEXT:] = np.hstack([pixels, np.full((SIDE, 2, 3), PAPER, np.uint8), overlay])
  font: Any = dict(
    fontFace=cv2.FONT_HERSHEY_SIMPLEX, fontScale=0.5, thickness=1, lineType=cv2.LINE_AA
  )
  color = RIGHT if label == prediction else WRONG
  cv2.putText(out, f'predicted {names[prediction]}', (0, 18), color=color, **font)
  cv2.putText(out, f'true {names[label]}', (SIDE + 36, 18), color=INK, **font)
  return out


def draw(images, labels, predictions, attention, names) -> np.ndarray:
  """A grid of tiles: up to half of them wrong predictions, the rest a fixed sample."""
  wrong = np.flatnonzero(labels != predictions)[: COLUMNS * ROWS // 2]
  right = np.random.default_rng(0).permutation(np.flatnonzero(labels == predictions))
  chosen = [*wrong, *right][: COLUMNS * ROWS]
  tiles = [tile(images[i], labels[i], predictions[i], attention[i], names) for i in chosen]
  tiles = [np.pad(t, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=PAPER) for t in tiles]
  rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
  return np.vstack([row for row in rows if row.shape == rows[0].shape])


def main(workdir: str):
  """Table and picture of a run."""
  images, labels, predictions, attention, names = predict(workdir)
  table = Table('class', 'images', 'right', 'mistaken for')
  for k, name in enumerate(names):
    said = predictions[labels == k]
    mistakes = ', '.join(names[p] for p in said[said != k])
    table.add_row(name, str(len(said)), str((said == k).sum()), mistakes)
  console = Console()
  console.print(table)
  path = pathlib.Path(workdir) / 'predictions.png'
  cv2.imwrite(str(path), draw(images, labels, predictions, attention, names))
  hits = int((labels == predictions).sum())
  console.print(
    f'{hits} of {len(labels)} test images right ({hits / len(labels):.1%}). Picture: {path}'
  )


if __name__ == '__main__':
  from vit_jax.core import command
  from vit_jax.launch import start

  parser = command.Parser(
    'experiments.digits.picture', 'Draws test images with predictions and attention of a run.',
    ('--workdir=runs/digits',),
  )  # fmt: skip
  parser.add_argument('--workdir', required=True, metavar='DIR', help='directory of the run')
  start.run(parser, lambda config, workdir: main(workdir))
