"""Every system on one page: trained, measured beside its control, drawn.

    python -m experiments.gallery                 # what is missing of the quick rows
    python -m experiments.gallery digits --again  # one row, from the start

A row is three runs that differ in their seed. Of each the predictions on the test split are kept,
and of the control, which is measured first. The gain over the best control has an interval of 95 %
from 2,000 resamples of test examples and runs, the same examples for both. Results are files of
their own in results/, written here and by nobody else; README.md is made from them.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
from absl import flags

from experiments.gallery import page
from experiments.gallery.metrics import interval
from experiments.gallery.rows import Row, named
from experiments.gallery.ways import Asked, made
from vit_jax.core.errors import RunError

RESULTS = pathlib.Path(__file__).parent / 'results'
SEEDS = 3


def picture(row: Row, folder: pathlib.Path) -> None:
  """The best and the worst predictions of the first run."""
  drawn: list[Any] = [
    cv2.imread(str(folder / 'evals' / 'test' / f'{group}_{number}.png'))
    for group in ('best', 'worst') for number in range(2)
  ]  # fmt: skip
  height = max(each.shape[0] for each in drawn)
  width = max(each.shape[1] for each in drawn)
  tiles = [
    np.pad(
      each, ((8, 8 + height - each.shape[0]), (8, 8 + width - each.shape[1]), (0, 0)),
      constant_values=255,
    )
    for each in drawn
  ]  # fmt: skip
  whole = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
  if whole.shape[1] > 1600:
    by = 1600 / whole.shape[1]
    whole = cv2.resize(whole, None, fx=by, fy=by, interpolation=cv2.INTER_AREA)
  cv2.imwrite(str(RESULTS / f'{row.name}.png'), whole, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def measure(row: Row, asked: Asked) -> dict[str, Any]:
  """Measures a system and its controls, and compares."""
  print(f'--- {row.name}', flush=True)
  found, score = row.way.measured(asked), row.metric.score
  ours, records, values = found.ours, found.records, found.values
  if found.folder:
    picture(row, found.folder)
  of_controls = {name: score(each) for name, each in records.items()}
  best = max(of_controls, key=lambda name: of_controls[name])
  value = float(np.mean([score(each) for each in ours]))
  gain = value - of_controls[best]
  low, high = interval(score, ours, records[best])
  reached = (gain if row.aims_at == 'gain' else value) >= row.target
  return {
    'name': row.name, 'group': row.group, 'class': row.kind, 'data': row.data,
    'metric': row.metric.name, 'value': value,
    'sd': float(np.std(values, ddof=1)) if len(values) > 1 else None, 'n': len(values),
    'values': values, 'examples': len(ours[0]), 'control': best, 'controls': of_controls,
    'gain': gain, 'interval': [low, high], 'aims_at': row.aims_at, 'target': row.target,
    'reached': bool(reached and low > 0),
    **({'beside': {n: score(each) for n, each in found.beside.items()}} if found.beside else {}),
    'seconds': float(np.mean(found.seconds)), 'command': found.command, **made(),
  }  # fmt: skip


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('rows', nargs='*', help='names; all that are quick, if none is given')
  parser.add_argument('--runs', default='runs/gallery', help='where runs are kept, and continued')
  parser.add_argument('--seeds', type=int, default=SEEDS, help='runs of a row')
  parser.add_argument('--again', action='store_true', help='measure rows that have a result, too')
  parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                      help='a field of every run, such as data.source.dir=runs/data')  # fmt: skip
  arguments = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  RESULTS.mkdir(exist_ok=True)
  options = dict(text.split('=', 1) for text in arguments.set)
  failed = []
  for row in named(arguments.rows):
    file = RESULTS / f'{row.name}.json'
    if file.exists() and not arguments.again:
      print(f'{row.name}: has a result')
      continue
    try:
      asked = Asked(row.name, row.metric, pathlib.Path(arguments.runs), arguments.seeds, options)
      result = measure(row, asked)
    except (RunError, subprocess.CalledProcessError) as error:  # the others can be measured
      failed.append(f'{row.name}: not measured: {error}')
      continue
    file.write_text(json.dumps(result, indent=2) + '\n')
    page.write(RESULTS)
  page.write(RESULTS)
  if failed:
    sys.exit('\n'.join(failed))


if __name__ == '__main__':
  main()
