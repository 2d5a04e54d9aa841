"""Predicted steps on TPU slices, and those of peers: `python -m experiments.benchmarks.plan`.

Compiles each case with the compiler of TPUs, which needs no TPU (`pip install vit_jax[tpu]`), and
reads its estimate as `vit_jax.plan` does, for ours and for the ViT of `linen.py`. A case takes
minutes and a few GiB, so each runs in a separate process and is written down at once; `--only`
repeats some of them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import logging

from configs import pretraining, synthetic
from experiments.benchmarks import linen, report
from vit_jax.compile import plan, topology
from vit_jax.compile.compiled import Program
from vit_jax.compile.compiled import memory as needed_memory
from vit_jax.costs import chips, flops
from vit_jax.models.vit import ViTConfig
from vit_jax.training import config as config_lib

UNROLLED = {'model.scan': False, 'model.remat': 'none'}
COLOURS = ('C0', 'C9', 'C2', 'C7', 'C5', 'C1', 'C4', 'C3')
PEERS = {'linen, unrolled': False, 'linen, scanned': True}
RECIPE = 'configs/pretraining.py'


class Case(NamedTuple):
  """A model on a slice, with as many images on each of its chips; and how it is trained."""

  model: str
  topology: str
  images: int
  way: str
  changes: Mapping[str, Any]

  @property
  def name(self) -> str:
    """'B/16 v5e:2x2 linen, scanned'."""
    return f'{self.model} {self.topology} {self.way}'


def cases() -> list[Case]:
  """Small models and their peers, on four chips; giants on 256 and 1,024; recipes on pods."""
  found = []
  for model, where, images in (
    ('S/16', 'v5e:2x2', 256), ('B/16', 'v5e:2x2', 128), ('L/16', 'v5e:2x2', 32),
    ('B/16', 'v6e:2x2', 128),
  ):  # fmt: skip
    ways = {
      'unrolled, mesh=fsdp': {**UNROLLED, 'mesh': 'fsdp'},
      'unrolled': UNROLLED,
      'scanned, mesh=fsdp': {'mesh': 'fsdp'},
      **{peer: {} for peer in PEERS},
    }
    found += [Case(model, where, images, *way) for way in ways.items()]
  for where, data in (('v5p:8x8x4', 4), ('v5p:8x8x16', 16)):
    for model, images in (('G/14', 32), ('22B/14', 16)):
      mesh = f'{data}x64x1'
      found.append(Case(model, where, images, f'scanned, mesh={mesh}', {'mesh': mesh}))
  # As many images in all, on one slice and on four; as many classes as ImageNet-21k.
  for model, where in (
    ('So400m/14', 'v5e:16x16'), ('G/14', 'v5e:16x16'), ('G/14', 'v5p:8x8x4'),
    ('22B/14', 'v5p:8x8x16'),
  ):  # fmt: skip
    for several, images in (('', 64), ('*4', 16)):
      found.append(Case(model, where + several, images, RECIPE, {'model.num_classes': 21_843}))
  return found


def config(case: Case) -> Any:
  """The configuration of one of ours."""
  source = pretraining if case.way == RECIPE else synthetic
  made: Any = source.get_config(case.model)
  made.batch_size = case.images * len(topology.devices(case.topology))
  made.update_from_flattened_dict(case.changes)
  return made


def measure(case: Case) -> dict[str, Any]:
  """A row of the table."""
  devices = topology.devices(case.topology)
  chip = chips.CHIPS[devices[0].device_kind]
  row = {'model': case.model, 'slice': case.topology, 'images per chip': case.images,
         'way': case.way}  # fmt: skip
  if case.way in PEERS:
    start = time.perf_counter()
    with plan.no_cache():
      peer = linen.training(devices, case.model, case.images, scan=PEERS[case.way])
      compiled = peer.step.lower(*peer.shapes).compile()
    seconds = time.perf_counter() - start
    program, memory = Program(compiled.as_text()), needed_memory(compiled)
    model = ViTConfig(variant=case.model, pool='mean', num_classes=1000).resolve()
    step, kernels = program.cycles / chip.clock, 0.0
    mfu = flops.train_flops(model) * case.images / step / chip.peak
    waited = sum(c.waited for c in program.collectives) / chip.link
    between = late = 0.0
  else:
    result = plan.plan(config(case), case.topology)
    step, kernels, mfu, memory = result.step_time, result.kernel_time, result.mfu, result.memory
    waited, seconds = result.collective_time, result.trace_time + result.compile_time
    between, late = result.transfer_time, result.transfer_wait
    if not (step and mfu):
      raise SystemExit(f'{case.name} does not fit')
  return row | {
    'ms': 1e3 * step, 'of it kernels': 1e3 * (kernels or 0), 'of it waiting': 1e3 * (late or 0),
    'Mcycles': step * chip.clock / 1e6,
    'MFU %': 100 * mfu, 'img/s per chip': case.images / step, 'GiB': memory / plan.GIB,
    'collectives ms': 1e3 * (waited or 0), 'between slices ms': 1e3 * (between or 0),
    'compile s': seconds,
  }  # fmt: skip


def main(only: str) -> None:
  """Measures the cases whose names match, and keeps the other rows there are."""
  path = report.RESULTS / 'plan.json'
  old = json.loads(path.read_text())['rows'] if path.exists() else []
  rows = {(row['model'], row['slice'], row['way']): row for row in old}
  order = [(case.model, case.topology, case.way) for case in cases()]
  for case, key in zip(cases(), order, strict=True):
    if re.search(only, case.name):
      command = [sys.executable, '-m', 'experiments.benchmarks.plan', f'--case={case.name}']
      done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
      if done.returncode:
        print(f'{case.name} failed: {done.stdout.strip()}')
        continue
      rows[key] = json.loads(done.stdout.splitlines()[-1])
      write([rows[key] for key in order if key in rows])


def cells(row: Mapping[str, Any]) -> list[str]:
  """What the page on plans says of a recipe behind its name, days with all that is not hidden."""
  recipe: Any = pretraining.get_config(row['model'])
  steps = config_lib.steps(recipe.total, batch_size=recipe.batch_size, epoch=1)
  days = steps * (row['ms'] + row['collectives ms']) / 1e3 / 86400
  return [
    row['slice'], str(row['images per chip']), f'{row["ms"]:.0f} ms',
    f'{row["of it waiting"]:.1f} of {row["between slices ms"]:.1f} ms',
    f'{row["collectives ms"]:.0f} ms', f'{row["MFU %"]:.1f} %', f'{row["GiB"]:.1f} GiB',
    f'{days:.1f} days',
  ]  # fmt: skip


def write(rows: list[dict[str, Any]]) -> None:
  """The report and its picture."""
  report.write(
    'plan',
    rows,
    title='Training steps as the compiler of TPUs predicts them, bfloat16, 224 px',
    note='ms: cycles of all its operations over the clock, and kernels written by hand at half '
    'their roofline, and what is waited for other slices. collectives ms: within a slice; not in '
    'ms, nothing is computed behind them. between slices ms: hidden ones too. compile s: tracing '
    'included.',
  )

  def draw(axes: Any) -> None:
    colours = dict(zip(dict.fromkeys(row['way'] for row in rows), COLOURS,
                       strict=False))  # fmt: skip
    names = [f'{row["model"]} {row["slice"]}, {row["way"]}' for row in rows]
    bars = axes.barh(
      range(len(rows)), [row['MFU %'] for row in rows], color=[colours[row['way']] for row in rows]
    )
    axes.bar_label(bars, fmt='{:.1f}', padding=3)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel('predicted MFU, %')

  report.figure('plan', draw, width=8, height=1 + 0.25 * len(rows))


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument('--only', default='', help='measure cases whose names match this only')
  parser.add_argument('--case', help='measure one case and print its row')
  parser.add_argument('--page', action='store_true', help='print the recipes for the page on plans')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  jax.config.update('jax_platforms', 'cpu')
  if arguments.case:
    print(json.dumps(measure(next(c for c in cases() if c.name == arguments.case))))
  elif arguments.page:
    for row in json.loads((report.RESULTS / 'plan.json').read_text())['rows']:
      if row['way'] == RECIPE:
        print('|', ' | '.join([row['model'], *cells(row)]), '|')
  else:
    main(arguments.only)
