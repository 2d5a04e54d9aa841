"""Whether what is learned without labels helps with them: fine-tuned beside from scratch.

    python -m experiments.ssl.finetune         # the encoder of the gallery's longest run, hours

600 and 6,000 labels of Fashion-MNIST, five parts of the training images each. Both sides have the
same encoder, steps and images, and as many learning rates to choose from, on a part of the labels
that is not reported, judged by training images; the fine-tuned one has layer-wise decay besides.
Runs are kept and continued; results are finetune.json and finetune.md, written here and by nobody
else.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.gallery import ways
from experiments.gallery.metrics import TOP1, interval
from experiments.gallery.rows import named

HERE = pathlib.Path(__file__).parent
# Labels, and how long they are learned from.
SIZES: Mapping[int, str] = {600: '100 epochs', 6000: '30 epochs'}
RATES = ('3e-4', '1e-3', '3e-3')
PARTS, IMAGES = range(1, 6), 54_000
# Judges the rates, and is of no part.
CHOICE = 'train[54000:]'
SCRATCH, TUNED = 'from scratch', 'fine-tuned'
FIELDS = {'model.pool': 'mean', 'checkpoint.every': '100%'}
# Of what is fine-tuned.
OWN = {'optim.layer_decay': '0.75'}


def trained(
  place: pathlib.Path, init: str, size: int, part: int, test: str, rate: str,
  options: Mapping[str, str],
) -> np.ndarray:  # fmt: skip
  """What is right of a split, of a run on one part of the labels."""
  fields = {
    **FIELDS, 'total': SIZES[size], 'optim.lr': rate, 'seed': str(part),
    'data.split': f'fold {part}/{IMAGES // size} of train[:{IMAGES}]', 'evals.test.split': test,
    **options,
  }  # fmt: skip
  fields |= {'init': init, **OWN} if init else {}
  ways.run(
    ways.arguments('vit_jax.train', '--config=configs/ssl.py:labels', place=place, fields=fields),
    place,
  )
  (found,) = ways.records_of(place, TOP1)
  return found


def page(rows: Sequence[Mapping[str, Any]], about: str) -> str:
  """finetune.md."""
  lines = [
    '# Fine-tuned or from scratch', '',
    'Top-1 on the 10,000 test images of Fashion-MNIST, the mean over five parts of the training '
    'images as labels, by', '`python -m experiments.ssl.finetune`. Learned without labels from all '
    f'60,000 images: {about}.', 'Learning rates were chosen on a sixth part.', '',
    '| labels | from scratch | rate | fine-tuned | rate | gain |', '|---|---|---|---|---|---|',
  ]  # fmt: skip
  for row in rows:
    low, high = row['interval']
    cells = [f'{np.mean(row[side]):.4f} | {row["rate"][side]}' for side in (SCRATCH, TUNED)]
    gain = f'{row["gain"]:+.4f} [{low:+.4f}, {high:+.4f}]'
    lines.append(f'| {row["labels"]:,} | {" | ".join(cells)} | {gain} |')
  return '\n'.join([*lines, ''])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--row', default='mae_long', help='of the gallery, whose first run is used')
  parser.add_argument('--runs', default='runs/gallery', help='where runs are kept')
  parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                      help='a field of every run with labels')  # fmt: skip
  given = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  options = dict(text.split('=', 1) for text in given.set)
  runs = pathlib.Path(given.runs)
  way: Any = named([given.row])[0].way
  init, folder = way.place(runs, 0), runs / 'ssl' / 'tuned'
  if not (init / 'result.json').exists():
    ways.run(way.line(init, {'seed': '0'}), init)
  rows: list[dict[str, Any]] = []
  for size in SIZES:
    found: dict[str, list[np.ndarray]] = {}
    best, tried = {}, {}
    for side, start in ((SCRATCH, ''), (TUNED, str(init))):
      name = f'{init.name}-{size}' if start else f'scratch-{size}'
      tried[side] = {
        rate: float(
          trained(folder / f'{name}-{rate}', start, size, PARTS.stop, CHOICE, rate, options).mean()
        )
        for rate in RATES
      }
      best[side] = max(tried[side], key=lambda rate: tried[side][rate])
      print(f'{side}, {size} labels: {tried[side]}', flush=True)
      found[side] = []
      for part in PARTS:
        place = folder / f'{name}-part{part}'
        found[side].append(trained(place, start, size, part, 'test', best[side], options))
        print(f'{side}, {size} labels, part {part}: {found[side][-1].mean():.4f}', flush=True)
    means = {side: [float(each.mean()) for each in found[side]] for side in found}
    rows.append({
      'labels': size, **means, 'gain': float(np.mean(means[TUNED]) - np.mean(means[SCRATCH])),
      'interval': interval(TOP1.score, found[TUNED], np.stack(found[SCRATCH])), 'rate': best,
      'tried': tried, 'total': SIZES[size],
    })  # fmt: skip
  result = {'config': way.config, 'fields': dict(way.fields), 'changed': options, 'rows': rows}
  (HERE / 'finetune.json').write_text(json.dumps({**result, **ways.made()}, indent=1) + '\n')
  about = ', '.join([way.config, *(f'{n}={t}' for n, t in way.fields.items())])
  (HERE / 'finetune.md').write_text(page(rows, about))


if __name__ == '__main__':
  main()
