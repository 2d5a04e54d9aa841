"""Time from nothing to the first training step: `python -m experiments.benchmarks.compile`.

Every start is a separate process, which imports, draws weights, compiles and takes one step:
ours, and the ViT of `linen.py`; first with an empty directory for compiled programs, then with the
one that the first start has filled, as when a run is resumed. S/16 with a small batch, whose size
changes no time but that of the step.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from experiments.benchmarks import report

WAYS = ('vit_jax, scanned', 'vit_jax, unrolled', 'linen, scanned', 'linen, unrolled')
PHASES = ('import s', 'weights s', 'trace s', 'compile s', 'step s')


def start(way: str, variant: str, batch: int, folder: pathlib.Path) -> Iterator[Any]:
  """Does the work of one of `WAYS`, `PHASES` one after another, and stops after each."""
  import jax
  from flax import nnx  # noqa: F401  ours and theirs import it

  from configs import synthetic
  from experiments.benchmarks import linen
  from experiments.benchmarks.contestants import draw_batch
  from vit_jax.core import schema
  from vit_jax.launch import memory
  from vit_jax.training import config as config_lib
  from vit_jax.training.experiment import Experiment
  from vit_jax.training.workdir import Workdir

  memory.keep()
  Workdir(folder).keep_compiled('programs')
  on_cpu = jax.devices()[0].platform == 'cpu'
  dtype = 'float32' if on_cpu else 'bfloat16'
  drawn = draw_batch(batch, 224)
  who, _, layers = way.partition(', ')
  yield
  if who == 'vit_jax':
    config: Any = synthetic.get_config(variant)
    config.batch_size, config.model.dtype = batch, dtype
    config.model.update({'scan': layers == 'scanned', 'remat': 'none', 'num_classes': 1000})
    experiment = Experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))
    state = experiment.split(experiment.init())
    placed = experiment.layout.place(drawn)
    yield jax.block_until_ready(state)
    lowered = experiment.train_step().lower(state, experiment.frozen, placed, experiment.hyper(0))
    args = state, experiment.frozen, placed, experiment.hyper(0)
  else:
    peer = linen.training(jax.devices(), variant, batch // jax.device_count(),
                          scan=layers == 'scanned', dtype=dtype)  # fmt: skip
    state = peer.init()
    yield jax.block_until_ready(state)
    args = (
      state,
      *jax.device_put((drawn['image'], drawn['label']), tuple(x.sharding for x in peer.shapes[1:])),
    )
    lowered = peer.step.lower(*args)
  yield
  compiled = lowered.compile()
  yield
  yield jax.block_until_ready(compiled(*args))


def child(
  way: str, variant: str, batch: int, folder: pathlib.Path, began: float
) -> dict[str, float]:
  """Seconds of each of `PHASES`, the first of them since `began`, by the clock of the system."""
  seconds, last = [], began
  for _ in start(way, variant, batch, folder):
    now = time.time()
    seconds.append(now - last)
    last = now
  return dict(zip(PHASES, seconds, strict=True))


def measure(way: str, variant: str, batch: int, folder: pathlib.Path) -> dict[str, float]:
  """A start in a separate process."""
  command = [
    sys.executable, '-m', 'experiments.benchmarks.compile', f'--child={way}', f'--model={variant}',
    f'--batch={batch}', f'--programs={folder}', f'--began={time.time()}',
  ]  # fmt: skip
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
  return json.loads(done.stdout.splitlines()[-1])


def main(
  variant: str, batch: int, rounds: int, folder: pathlib.Path | None = None
) -> list[dict[str, Any]]:
  """Measures, writes the report and returns its rows."""
  rows = []
  for way in WAYS:
    found: dict[str, list[dict[str, float]]] = {'empty': [], 'filled': []}
    for _ in range(rounds):
      with tempfile.TemporaryDirectory() as name:
        for seconds in found.values():
          seconds.append(measure(way, variant, batch, pathlib.Path(name)))
    for programs, seconds in found.items():
      best = min(seconds, key=lambda times: sum(times.values()))
      rows.append({'model': f'{variant} {way}', 'programs': programs, **best,
                   'together s': sum(best.values())})  # fmt: skip
  report.write(
    'compile', rows, title=f'Time to the first training step, {variant}',
    note=f'Batch of {batch}. programs: whether the directory of compiled programs was empty or '
    f'filled by an earlier start. The best of {rounds}.', folder=folder,
  )  # fmt: skip

  def draw(axes: Any) -> None:
    names = [f'{row["model"]}, {row["programs"]}' for row in rows]
    left = [0.0] * len(rows)
    for phase in PHASES:
      axes.barh(names, [row[phase] for row in rows], left=left, label=phase.removesuffix(' s'))
      left = [before + row[phase] for before, row in zip(left, rows, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel('seconds to the first training step')
    axes.legend(frameon=False)

  report.figure('compile', draw, folder=folder, width=8)
  return rows


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument('--model', default='S/16')
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=3, help='of which the best counts')
  for hidden in ('--child', '--programs', '--began'):
    parser.add_argument(hidden, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    folder = pathlib.Path(args.programs)
    print(json.dumps(child(args.child, args.model, args.batch, folder, float(args.began))))
  else:
    main(args.model, args.batch, args.rounds)
