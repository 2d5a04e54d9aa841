"""Published numbers, trained again: one command for each, that ends in one row of results/.

    python -m experiments.reproduce                      # what there is
    python -m experiments.reproduce vit_s16              # trains here, or goes on
    python -m experiments.reproduce vit_s16 --engine=tpu-vm --zone=Z ... --workdir=gs://b/vit_s16

Each is an ordinary run of a file of configs/, which the same command continues. With an engine of
`experiments.launch` it is submitted there, and the command is given once more when the run is
complete. The row is written by this and by nobody else; where fields were changed, it says which,
and that it is no reproduction.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.launch import engines
from experiments.launch import job as job_lib
from experiments.launch.__main__ import training
from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.intervals import wilson

RESULTS = pathlib.Path(__file__).parent / 'results'


class Target(NamedTuple):
  """A configuration, the ImageNet top-1 that was published for it, and where."""

  config: str
  top1: float
  source: str


# Those that one machine of eight chips can train.
TARGETS = {
  'vit_s16': Target('configs/vit_s16.py:90', 0.765, 'Beyer et al. 2022, table 1'),
  'vit_s16_300': Target('configs/vit_s16.py:300', 0.800, 'Beyer et al. 2022, table 1'),
  'deit_ti': Target('configs/deit.py:Ti/16', 0.722, "deit's README_deit.md"),
  'deit_s': Target('configs/deit.py:S/16', 0.799, "deit's README_deit.md"),
  'deit_b': Target('configs/deit.py:B/16', 0.818, "deit's README_deit.md"),
  'deit3_s_400': Target('configs/deit3.py:S/16,400', 0.804, 'Touvron et al. 2022, table 15'),
  'deit3_s': Target('configs/deit3.py:S/16,800', 0.814, "deit's README_revenge.md"),
}


def row(name: str, workdir: str, changes: dict[str, str]) -> dict[str, Any]:
  """Of a run that is complete."""
  target, folder = TARGETS[name], paths.at(workdir)
  result = paths.read_object(folder / 'result.json')
  with np.load(paths.fetched(folder / 'evals' / 'test.npz')) as arrays:
    examples = int(arrays['examples'].sum())
  top1 = result['metrics']['test/top1']
  low, high = wilson(top1 * examples, examples)
  return {
    'name': name, 'config': target.config, 'changed': changes, 'published': target.top1,
    'source': target.source, 'top1': top1, 'interval': [low, high], 'examples': examples,
    'reproduces': not changes and high >= target.top1, 'seeds': [int(changes.get('seed', 0))],
    'images_per_second_per_chip': result['images_per_second_per_chip'], 'mfu': result['mfu'],
    'peak_memory': result['peak_memory'], 'seconds': result['seconds'],
    'goodput': result.get('goodput'), 'device': result['device'], 'devices': result['devices'],
    'mesh': result['mesh'], 'steps': result['step'], 'epochs': result['epochs'],
    'packages': result['packages'], 'python': result['python'], 'revision': result['git'],
    'config_hash': result['config_hash'], 'date': datetime.date.today().isoformat(),
  }  # fmt: skip


def main(arguments: argparse.Namespace, options: dict[str, str]) -> int:
  """The command; returns its exit status."""
  if not arguments.name:
    for name, target in TARGETS.items():
      done = ', has a result' if (arguments.results / f'{name}.json').exists() else ''
      print(f'{name}: {target.config}, {target.top1:.1%} ({target.source}){done}')
    return 0
  if arguments.name not in TARGETS:
    raise RunError(f'unknown number {arguments.name!r}: {suggest(arguments.name, TARGETS)}')
  if options and not arguments.engine:
    raise RunError(f'--{next(iter(options))} is an option of an engine: give --engine')
  changes = dict(text.split('=', 1) for text in arguments.set)
  workdir = arguments.workdir or f'runs/reproduce/{arguments.name}'
  config = TARGETS[arguments.name].config
  if arguments.engine and not (paths.at(workdir) / 'result.json').exists():
    about = dict(engine=arguments.engine, name=job_lib.name_of(workdir), options=options)
    engines.launch(training(config, [*changes.items()], workdir, **about), submit=arguments.submit)
    return 0
  if not arguments.engine:
    fields = [f'--config.{field}={text}' for field, text in changes.items()]
    command = [sys.executable, '-m', 'vit_jax.train', f'--config={config}', f'--workdir={workdir}']
    if code := subprocess.run([*command, *fields]).returncode:
      return code
  arguments.results.mkdir(parents=True, exist_ok=True)
  file = arguments.results / f'{arguments.name}.json'
  file.write_text(json.dumps(row(arguments.name, workdir, changes), indent=2) + '\n')
  print(f'{file} is written')
  return 0


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    description=(__doc__ or '').partition('\n')[0], epilog='Options of an engine: --NAME=VALUE.'
  )
  parser.add_argument('name', nargs='?', help='of the number; all are listed without')
  parser.add_argument('--workdir', help='of the run (runs/reproduce/NAME)')
  parser.add_argument('--engine', choices=tuple(engines.ENGINES), help='who starts it, if not here')
  parser.add_argument('--submit', action='store_true', help='with --engine: do it')
  parser.add_argument('--results', type=pathlib.Path, default=RESULTS, help='for the row')
  parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                      help='a field of the run')  # fmt: skip
  known, others = parser.parse_known_args()
  flags.FLAGS.mark_as_parsed()
  for text in others:
    if not text.startswith('--') or '=' not in text:
      parser.error(f'{text} is no option')
  try:
    sys.exit(main(known, dict(text[2:].split('=', 1) for text in others)))
  except RunError as error:
    sys.exit(f'error: {error}')
