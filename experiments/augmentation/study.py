"""What each ingredient of a recipe does on little data: `python -m experiments.augmentation.study`.

Trains the small Vision Transformer of configs/fashion_mnist.py:quick on the first 12,000 images of
Fashion-MNIST, as it is and with one ingredient changed, three seeds each, and compares on the
10,000 test images. Nothing is chosen by them. Runs and results are kept: what is missing is added,
but for the recipe as it is, with which all are compared.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from experiments.gallery import ways
from experiments.gallery.metrics import TOP1, interval

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / 'results.json'
CONFIG, SEEDS = 'configs/fashion_mnist.py:quick', 3
COMMON = {'data.split': 'train[:12000]', 'total': '10 epochs', 'evals.test.every': '100%',
          'checkpoint.every': '100%', 'data.audit': '0'}  # fmt: skip
DEIT = {
  'data.crop.name': 'random_resized', 'data.colour.name': 'randaugment',
  'data.erase.name': 'random', 'data.erase.mode': 'pixel',
  'task.mixup': '0.8', 'task.cutmix': '1.0', 'task.label_smoothing': '0.1',
  'model.drop_path': '0.1',
}  # fmt: skip
# What is changed; the recipe itself mirrors half of the images, and has nothing else.
INGREDIENTS: Mapping[str, Mapping[str, str]] = {
  'as it is': {},
  'no mirroring': {'task.flip': 'false'},
  'shifts of up to 7 %': {'data.crop.name': 'affine', 'data.crop.degrees': '0',
                          'data.crop.zoom': '0', 'data.crop.shift': '0.07'},
  'crops of 50 to 100 %': {'data.crop.name': 'random_resized', 'data.crop.min_area': '0.5'},
  'crops of 8 to 100 %': {'data.crop.name': 'random_resized'},
  'RandAugment of DeiT': {'data.colour.name': 'randaugment'},
  'erasing': {'data.erase.name': 'random', 'data.erase.mode': 'pixel'},
  'mixup 0.2': {'task.mixup': '0.2'},
  'mixup 0.8': {'task.mixup': '0.8'},
  'CutMix': {'task.cutmix': '1.0'},
  'label smoothing': {'task.label_smoothing': '0.1'},
  'stochastic depth': {'model.drop_path': '0.1'},
  'dropout': {'model.dropout': '0.1'},
  'weight decay 0.3': {'optim.weight_decay': '0.3'},
  'all of DeiT': DEIT,
  'all of DeiT, three times as long': {**DEIT, 'total': '30 epochs'},
}  # fmt: skip


def trained(name: str, fields: Mapping[str, str], runs: pathlib.Path) -> list[Any]:
  """Whether each test image is right, of each seed."""
  found = []
  for seed in range(SEEDS):
    place = runs / name.replace(' ', '_').replace('%', '') / f'seed{seed}'
    own = {**COMMON, **fields, 'seed': str(seed)}
    line = ways.arguments('vit_jax.train', f'--config={CONFIG}', place=place, fields=own)
    ways.run(line, place)
    found += ways.records_of(place, TOP1)
    print(f'{name}, seed {seed}: {found[-1].mean():.4f}', flush=True)
  return found


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """README.md."""
  lines = [
    '# Ingredients on Fashion-MNIST', '',
    'Top-1 on the 10,000 test images of a small Vision Transformer trained on 12,000 images for 10',
    'epochs, with one thing changed. Made by `python -m experiments.augmentation.study`; nothing',
    'was chosen by these images. The interval is of 95 %, over test images and seeds, the same for',
    'both.', '',
    '| changed | top-1, three seeds | less as it is |', '|---|---|---|',
  ]  # fmt: skip
  for name, row in rows.items():
    values = f'{np.mean(row["values"]):.4f} ± {np.std(row["values"], ddof=1):.4f}'
    gain = ''
    if name != 'as it is':
      low, high = row['interval']
      gain = f'{row["gain"]:+.4f} [{low:+.4f}, {high:+.4f}]'
    lines.append(f'| {name} | {values} | {gain} |')
  return '\n'.join([*lines, ''])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--runs', default='runs/ingredients', help='where runs are kept, continued')
  runs = pathlib.Path(parser.parse_args().runs)
  flags.FLAGS.mark_as_parsed()
  old = json.loads(RESULTS.read_text())['rows'] if RESULTS.exists() else {}
  first, *others = INGREDIENTS
  plain = trained(first, INGREDIENTS[first], runs)
  rows: dict[str, Any] = {first: {'changed': {}, 'values': [*map(TOP1.score, plain)]}}
  rows |= {name: old[name] for name in others
           if name in old and old[name]['changed'] == dict(INGREDIENTS[name])}  # fmt: skip
  for name in [name for name in others if name not in rows]:
    found = trained(name, INGREDIENTS[name], runs)
    values = [*map(TOP1.score, found)]
    rows[name] = {
      'changed': dict(INGREDIENTS[name]), 'values': values,
      'gain': float(np.mean(values) - np.mean([*map(TOP1.score, plain)])),
      'interval': interval(TOP1.score, found, np.stack(plain)),
    }  # fmt: skip
    about = {'common': COMMON, 'config': CONFIG, **ways.made()}
    rows = {name: rows[name] for name in INGREDIENTS if name in rows}
    RESULTS.write_text(json.dumps({**about, 'rows': rows}, indent=1) + '\n')
    (HERE / 'README.md').write_text(page(rows))


if __name__ == '__main__':
  main()
