"""What a head and small patches are worth where every pixel has a class.

    python -m experiments.dense.heads          # what is missing, hours on two cores

Drawn land in four bands (`configs/land_cover.py`), the same encoder in patches of several sizes,
each with the heads of `docs/how-to/segmentation.md`: as many steps of as many images for all. Runs
are kept and continued. Results are heads.json and heads.md, written here and by nobody else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.gallery import ways
from experiments.gallery.metrics import MEAN_IOU, interval
from vit_jax.core import paths

HERE = pathlib.Path(__file__).parent
CONFIG = 'configs/land_cover.py'
PATCHES = (4, 8, 12)
# Fields of each head.
HEADS: Mapping[str, Mapping[str, str]] = {
  'segmenter': {},
  'mask_transformer': {'model.decoder.num_heads': '4'},
  'upernet': {'model.channels': '64', 'model.auxiliary_channels': '32'},
}
COMMON = {'total': '2000 steps', 'checkpoint.every': '100%', 'evals.test.every': '100%'}
# Whose gains are those of the others.
PLAIN = 'segmenter'


def page(rows: Sequence[Mapping[str, Any]]) -> str:
  """heads.md."""
  lines = [
    '# Heads and patches', '',
    'mIoU on 1,000 images of drawn land of 48 pixels, by `python -m experiments.dense.heads`: the '
    'mean over', f'{rows[0]["seeds"]} runs of {COMMON["total"]} each. Gains are over the linear '
    'head (`segmenter`) in the same patches, with 95 % over runs', 'and images.', '',
    '| patch | head | parameters | MACs | mIoU | gain over a linear head | images/s |',
    '|---|---|---|---|---|---|---|',
  ]  # fmt: skip
  for row in rows:
    gain = (
      ''
      if row['head'] == PLAIN
      else (f'{row["gain"]:+.3f} [{row["interval"][0]:+.3f}, {row["interval"][1]:+.3f}]')
    )
    lines.append(
      f'| {row["patch"]} | {row["head"]} | {row["parameters"]:,} | {row["macs"] / 1e6:.1f} M | '
      f'{np.mean(row["values"]):.3f} | {gain} | {row["speed"]:.0f} |'
    )
  return '\n'.join([*lines, ''])


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--runs', default='runs/heads', help='where runs are kept')
  parser.add_argument('--seeds', type=int, default=3, help='runs of each (3)')
  parser.add_argument('--results', type=pathlib.Path, default=HERE, help='for rows and table')
  parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                      help='a field of every run')  # fmt: skip
  given = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  options = dict(text.split('=', 1) for text in given.set)
  rows: list[dict[str, Any]] = []
  plain: dict[int, list[np.ndarray]] = {}
  for patch, head in itertools.product(PATCHES, HEADS):
    found, last = [], {}
    for seed in range(given.seeds):
      place = pathlib.Path(given.runs).absolute() / f'{head}-{patch}-{seed}'
      fields = {
        'model.name': head, 'model.encoder.patch_size': str(patch), 'seed': str(seed), **COMMON,
        **HEADS[head], **options,
      }  # fmt: skip
      line = ways.arguments('vit_jax.train', f'--config={CONFIG}', place=place, fields=fields)
      ways.run(line, place)
      (records,) = ways.records_of(place, MEAN_IOU)
      found.append(records)
      print(f'{head}, patches of {patch}, {seed}: {MEAN_IOU.score(records):.4f}', flush=True)
      last = paths.read_object(paths.at(str(place)) / 'result.json')
    if head == PLAIN:
      plain[patch] = found
    low, high = interval(MEAN_IOU.score, found, np.stack(plain[patch]))
    values = [MEAN_IOU.score(each) for each in found]
    rows.append({
      'patch': patch, 'head': head, 'values': values, 'seeds': given.seeds,
      'gain': float(np.mean(values) - np.mean([MEAN_IOU.score(each) for each in plain[patch]])),
      'interval': [low, high], 'parameters': last['parameters'],
      'macs': last['flops']['training_per_image'] / 6,
      'speed': last['images_per_second_per_chip'],
    })  # fmt: skip
    result = {'config': CONFIG, 'fields': COMMON, 'changed': options, 'rows': rows, **ways.made()}
    (given.results / 'heads.json').write_text(json.dumps(result, indent=1) + '\n')
    (given.results / 'heads.md').write_text(page(rows))


if __name__ == '__main__':
  main()
