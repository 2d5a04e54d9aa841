"""What published recipes will take on TPU slices: `python -m experiments.benchmarks.recipes`.

Compiles the step of each recipe with the compiler of TPUs, which needs no TPU (`pip install
vit_jax[tpu]`), as `vit_jax.plan` does. Each takes minutes, runs in a process of its own and is
written down at once; what has a row is passed over, unless --only names it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

import vit_jax
from experiments.benchmarks import report
from vit_jax.compile import plan, topology
from vit_jax.training import config as config_lib

# Configurations and slices that they fit, small models first.
CASES = (
  ('vit_s16.py:90', 'v5e:2x4'), ('vit_s16.py:300', 'v5e:2x4'), ('deit.py:Ti/16', 'v5e:2x4'),
  ('deit.py:S/16', 'v5e:2x4'), ('deit3.py:S/16,400', 'v5e:2x4'), ('deit3.py:S/16,800', 'v5e:2x4'),
  ('deit.py:B/16', 'v5e:2x4'), ('deit3.py:B/16,800', 'v5e:4x4'), ('augreg.py:S/16,1k', 'v5e:4x4'),
  ('augreg.py:B/32,1k', 'v5e:4x4'), ('augreg.py:B/16,1k', 'v5e:4x4'), ('vit.py:B/16,1k', 'v5e:4x4'),
  ('vit.py:B/16,21k', 'v5e:4x4'), ('augreg.py:S/16,21k', 'v5e:4x4'),
  ('augreg.py:B/16,21k', 'v5e:4x4'), ('deit3.py:S/16,21k', 'v5e:4x4'),
  ('deit3.py:B/16,21k', 'v5e:4x4'), ('deit3.py:L/16,800', 'v5e:4x8'),
  ('vit.py:L/16,21k', 'v5e:8x8'), ('augreg.py:L/16,21k', 'v5e:8x8'),
  ('deit3.py:L/16,21k', 'v5e:8x8'), ('deit3.py:H/14,800', 'v5p:4x4x4'),
  ('deit3.py:H/14,21k', 'v5p:4x4x4'), ('flexivit.py:B/32,21k', 'v5e:8x8'),
  ('deit.py:S/16,distilled', 'v5e:4x4'), ('flexivit.py:S/16,90', 'v5e:2x4'),
  ('bit.py:i1k,300', 'v5e:4x8'), ('bit.py:pet,fast', 'v5e:2x4'),
  ('mae.py:B/16,1600', 'v5e:4x4'), ('mae.py:L/16,1600', 'v5e:4x8'),
  ('simmim.py:B/16,800', 'v5e:4x4'), ('dino.py:S/16,800', 'v5e:4x4'),
  ('ibot.py:B/16,400', 'v5e:4x8'), ('mae.py:H/14,1600', 'v5p:4x4x4'),
  ('dino.py:B/16,400', 'v5e:4x8'), ('dinov2.py:L/14,22k', 'v5e:8x16'),
  ('yolos.py:S,coco', 'v5e:2x4'), ('yolos.py:B,coco', 'v5e:2x4'), ('detr.py:coco', 'v5e:4x4'),
  ('change.py:LEVIR-CD', 'v5e:2x4'), ('damage.py:xbd', 'v5e:2x4'),
  ('segmentation.py:upernet,ADEChallengeData2016', 'v5e:4x4'),
  ('segmentation.py:segmenter,ADEChallengeData2016', 'v5e:2x4'),
  ('clip.py:B/16', 'v5e:16x16'), ('siglip.py:B/16', 'v5e:16x16'), ('lit.py:B/16', 'v5e:8x16'),
  ('ssl.py:mae,imagenette', 'v5e:1x1'), ('ssl.py:dino,imagenette', 'v5e:1x1'),
  ('ssl.py:labels,imagenette', 'v5e:1x1'), ('ssl.py:simmim,imagenette', 'v5e:1x1'),
  ('ssl.py:dinov2,imagenette', 'v5e:1x1'),
)  # fmt: skip
# What their checkpoints are, to start from and of teachers: by what is in the name of the file.
CHECKPOINTS = {
  'R152x2_T_224': ('resnet:R152x2', 224), 'R152x2_T_pet128': ('resnet:R152x2', 128),
  'deit_3_small_384': ('deit3:S/16', 384), 'teacher': ('resnet:R152x2', 224),
}  # fmt: skip
# Images and classes of training splits, or of a data set by the last word of a recipe or its name.
DATA = {
  'imagenette': (9469, 10), 'change.py:LEVIR-CD': (445, 2), 'damage.py:xbd': (2799, 5),
  'training': (20_210, 151),
  'train': (1_281_167, 1000), 'train[:98%]': (1_255_544, 1000), 'train[:99%]': (1_268_355, 1000),
  'train2017': (118_287, 80),
  'full[51200:]': (13_103_041, 21_843), 'train[:90%]': (3312, 37),
}  # fmt: skip
# US dollars for an hour of a chip, assumed: take yours from your contract.
PRICES = {'v5e': 1.20, 'v5p': 4.20}


def measure(name: str, where: str) -> dict[str, Any]:
  """A row of the table."""
  config: Any = config_lib.load(f'configs/{name}').unlock()
  images, classes = DATA.get(name.rpartition(',')[2]) or DATA[config.data.split]
  # Of the data only their number and that of their classes matter.
  config.data.source = dict(name='synthetic', num_classes=classes)
  with tempfile.TemporaryDirectory() as place:
    if config.init:
      config.init = _checkpoint(place, config.init, classes)
    if config.task.name == 'distillation':
      config.task.teacher.init = _checkpoint(place, config.task.teacher.init or 'teacher', classes)
      config.task.teacher.by_number = True
    config = config_lib.complete(config.to_dict())
    result = plan.plan(config, where)
  chips = len(topology.devices(where))
  row = {'recipe': name, 'slice': where, 'images per chip': config.batch_size // chips}
  steps = config_lib.steps(config.total, batch_size=config.batch_size, epoch=images)
  row |= {'steps': steps, 'GiB': result.memory / plan.GIB, 'fits': result.fits}
  if not (result.fits and result.step_time):
    return row | dict.fromkeys(('ms', 'collectives ms', 'MFU %', 'img/s per chip', 'hours'))
  waited = result.collective_time or 0.0
  return row | {
    'ms': 1e3 * result.step_time, 'collectives ms': 1e3 * waited,
    'MFU %': 100 * (result.mfu or 0), 'img/s per chip': result.images_per_second,
    'hours': steps * (result.step_time + waited) / 3600,
  }  # fmt: skip


def _checkpoint(place: str, name: str, classes: int) -> str:
  """A path to one of random parameters that is like the one of this name."""
  variant, size = CHECKPOINTS[next(each for each in CHECKPOINTS if each in name)]
  path = pathlib.Path(place) / variant.replace('/', '_').replace(':', '_')
  if not path.exists():
    model = vit_jax.create(variant, image_size=(size, size), num_classes=classes)
    vit_jax.save(model, path, 'vit_jax')
  return str(path)


def cells(row: Mapping[str, Any]) -> list[str]:
  """What the page on recipes says of a row: hours with all that is not hidden, and their price."""
  fixed = [f'`configs/{row["recipe"]}`', row['slice'], str(row['images per chip'])]
  if not row['fits']:
    return [*fixed, f'{row["GiB"]:.1f} GiB: does not fit', '', '', '', '', '']
  hours = row['hours'] * len(topology.devices(row['slice']))
  price = hours * PRICES[row['slice'].partition(':')[0]]
  return [
    *fixed, f'{row["GiB"]:.1f} GiB', f'{row["ms"]:.0f} + {row["collectives ms"]:.0f} ms',
    f'{row["MFU %"]:.1f} %', f'{row["hours"]:.1f}', f'{hours:,.0f}', f'{price:,.0f}',
  ]  # fmt: skip


def main(only: str | None) -> None:
  """Measures what has no row, or what matches, and keeps the others."""
  path = report.RESULTS / 'recipes.json'
  old = json.loads(path.read_text())['rows'] if path.exists() else []
  rows = {(row['recipe'], row['slice']): row for row in old}
  for name, where in CASES:
    if not re.search(only, name) if only is not None else (name, where) in rows:
      continue
    command = [sys.executable, '-m', 'experiments.benchmarks.recipes', f'--case={name}@{where}']
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
      print(f'{name} on {where} failed: {done.stdout.strip()}')
      continue
    rows[name, where] = json.loads(done.stdout.splitlines()[-1])
    report.write(
      'recipes',
      [rows[case] for case in CASES if case in rows],
      title='Recipes as the compiler of TPUs predicts them; nothing ran',
      note='ms: of a step; collectives ms: that nothing is computed behind, not in ms, but in '
      'hours; hours: of the whole run, input, evaluation and checkpoints not counted.',
    )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument('--only', help='measure recipes whose names match this, also again')
  parser.add_argument('--case', help='measure one, RECIPE@SLICE, and print its row')
  parser.add_argument('--page', action='store_true', help='print the table of the page on recipes')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  jax.config.update('jax_platforms', 'cpu')
  if arguments.case:
    print(json.dumps(measure(*arguments.case.split('@'))))
  elif arguments.page:
    for row in json.loads((report.RESULTS / 'recipes.json').read_text())['rows']:
      print('|', ' | '.join(cells(row)), '|')
  else:
    main(arguments.only)
