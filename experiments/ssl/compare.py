"""What methods learn without labels on Fashion-MNIST, in one table, beside their controls.

    python -m experiments.ssl.compare                  # what is missing, hours on two cores
    python -m experiments.ssl.compare mae dino --again

Encoder, data and what judges are the same for all methods of `configs/ssl.py`; views and batches of
self-distillation are smaller, and each trains for minutes, as long as its configuration says. Three
runs of each differ in their seed and in the few labels that judge them. Runs are kept and
continued, and are those of the gallery. Results are one file for each method in results/, and
README.md, written here and by nobody else.
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
from experiments.ssl.judged import COMPONENTS, OURS, PIXELS, cell, few, scores
from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest

RESULTS = pathlib.Path(__file__).parent / 'results'
METHODS = ('colours', 'simmim', 'mae', 'dino', 'ibot', 'dinov2')
FEW = 'mean of few'
TITLES = {'knn': 'kNN', 'linear': 'linear'}


def page(rows: Sequence[Mapping[str, Any]]) -> str:
  """README.md."""
  methods: list[str] = [*rows[0]['scores'][OURS]] if rows else []
  titles: list[str] = [TITLES.get(method, method) for method in methods]
  lines = [
    '# Without labels on Fashion-MNIST', '',
    'Top-1 in percent on the 10,000 test images, with 95 % over runs and images, written by', '',
    '```console', 'python -m experiments.ssl.compare', '```', '',
    'An encoder of 4 blocks, 64 wide, on patches of 4 pixels; its class token beside the mean of '
    'its patches is what is judged:', 'by nearest neighbours and a linear classifier with all '
    'labels, and by logistic regression on 1, 10 and 60 labels of each class,', 'three subsets for '
    'each of the runs, the same for all methods. Below each method is the same encoder at random.',
    '', f'| | {" | ".join(titles)} | epochs | minutes on cores |', f'|{"---|" * (len(titles) + 3)}',
  ]  # fmt: skip
  pixels: dict[str, Any] = {}
  for row in rows:
    cores = row['machine']['cores']
    minutes = f'{row["epochs"]:.3g} | {row["seconds"] / 60:.0f} on {cores}'
    for whose, found in row['scores'].items():
      if whose in (PIXELS, COMPONENTS):  # of the first; views of others may be smaller
        pixels.setdefault(whose, found)
      else:
        name, rest = (row['method'], minutes) if whose == OURS else (whose, ' | ')
        lines.append(_line(name, found, methods, rest))
  lines += [_line(whose, found, methods, ' | ') for whose, found in pixels.items()]
  return '\n'.join([*lines, ''])


def _line(name: str, found: Mapping[str, Any], methods: Sequence[str], rest: str) -> str:
  cells = [cell(found[method]) for method in methods]
  return f'| {name} | {" | ".join(cells)} | {rest} |'


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('methods', nargs='*', help=f'of {", ".join(METHODS)}; all, if none is given')
  parser.add_argument('--runs', default='runs/gallery', help='where runs are kept')
  parser.add_argument('--seeds', type=int, default=3, help='runs of each (3)')
  parser.add_argument('--again', action='store_true', help='methods that have a result, too')
  parser.add_argument('--results', type=pathlib.Path, default=RESULTS, help='for rows and table')
  parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                      help='a field of every run')  # fmt: skip
  given = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  for name in given.methods:
    if name not in METHODS:
      raise RunError(f'unknown method {name!r}: {suggest(name, METHODS)}')
  options = dict(text.split('=', 1) for text in given.set)
  runs = pathlib.Path(given.runs)
  given.results.mkdir(parents=True, exist_ok=True)
  file = lambda method: given.results / f'{method}.json'  # noqa: E731
  for method in given.methods or METHODS:
    if file(method).exists() and not given.again:
      print(f'{method}: has a result')
      continue
    way = ways.Pretrained(f'configs/ssl.py:{method}')
    found, seconds = [], []
    for seed in range(given.seeds):
      each, took = way.judged(runs, seed, options)
      found.append({whose: {**of, FEW: few(of, way.rules)[None]} for whose, of in each.items()})
      seconds.append(took)
    last = paths.read_object(paths.at(str(way.place(runs, 0))) / 'result.json')
    row = {
      'method': method, 'config': way.config, 'changed': options, 'seeds': given.seeds,
      'settings': way.rules._asdict(), 'scores': scores(found),
      'epochs': last['epochs'], 'flops': last['flops']['training_total'],
      'seconds': float(np.mean(seconds)), **ways.made(),
    }  # fmt: skip
    file(method).write_text(json.dumps(row, indent=1) + '\n')
    rows = [json.loads(file(each).read_text()) for each in METHODS if file(each).exists()]
    (given.results.parent / 'README.md').write_text(page(rows))
    print(f'{file(method)} is written', flush=True)


if __name__ == '__main__':
  try:
    main()
  except RunError as error:
    raise SystemExit(f'error: {error}') from None
