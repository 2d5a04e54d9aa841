"""What a run will cost: `python -m vit_jax.plan --config=configs/NAME.py --topology=v5e:16x16`."""

from __future__ import annotations

import json
import sys

import jax
from ml_collections import ConfigDict

from vit_jax.compile.plan import GIB, Plan, alternatives, plan, to_json

__all__ = ['Plan', 'alternatives', 'plan', 'to_json']


def describe(result: Plan) -> dict[str, str]:
  """The lines of a plan for people."""
  gib = lambda size: f'{size / GIB:.2f} GiB'  # noqa: E731
  ms = lambda seconds: f'{1e3 * seconds:.1f} ms'  # noqa: E731
  rows = {
    'slice': f'{result.topology}, {result.chips} chips, mesh {result.mesh}',
    'batch': f'{result.batch_size}, {result.batch_size / result.chips:g} per chip',
    'layers': f'{"scanned" if result.scan else "unrolled"}, remat={result.remat}',
    'parameters': gib(result.parameters),
    'optimizer': gib(result.optimizer),
    'activations': f'{gib(result.activations)} as traced',
    'temporaries': f'{gib(result.temporaries)}, activations among them',
    'memory': f'{gib(result.memory)} of {gib(result.capacity)}: '
    f'{"fits" if result.fits else "DOES NOT FIT"}',
  }
  if not result.compile_time:
    return rows
  moved = ', '.join(f'{c.count} {c.kind} {c.bytes / GIB:.3f} GiB' for c in result.collectives)
  took = f'{result.trace_time:.0f} s to trace, {result.compile_time:.0f} s to compile'
  if not (result.step_time and result.compiler_time and result.mfu):
    step = 'not predicted by the compiler of GPUs'
    return rows | {'step': step, 'collectives': moved or 'none', 'compile': took}
  rows |= {
    'step': f'{ms(result.step_time)} = {ms(result.compiler_time)} by the compiler'
    f' + {ms(result.kernel_time or 0)} in {len(result.kernels)} kernels at half their roofline',
    'speed': f'{result.images_per_second:,.0f} img/s per chip, MFU {result.mfu:.1%}',
    'collectives': f'{moved or "none"}; at least {ms(result.collective_time or 0)} are not hidden'
    ' behind the step, and come on top',
    'compile': took,
  }
  return rows


def main(config: ConfigDict, where: str, *, as_json: bool, hlo: str = '') -> None:
  """Prints the plan of `config`, and of what would fit if it does not."""
  from rich.console import Console
  from rich.table import Table

  def show(result: Plan, title: str) -> None:
    table = Table(title=title, show_header=False, title_justify='left')
    for row in describe(result).items():
      table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)

  result = plan(config, where, hlo)
  if as_json:
    print(json.dumps(to_json(result), indent=1))
    return
  show(result, 'plan')
  if result.fits:
    return
  print('Looking for a change that fits:')
  for changes, other in alternatives(config, where):
    text = ' '.join(f'--config.{name}={value}' for name, value in changes.items())
    if other.fits:
      show(other, text)
      return
    print(f'{text}: {other.memory / GIB:.2f} GiB do not fit')
  print('None of these fits: use a larger slice, or mesh=1x-1xN with N-fold tensor parallelism.')


if __name__ == '__main__':
  from absl import flags

  from vit_jax.launch import start

  TOPOLOGY = flags.DEFINE_string('topology', None, 'Like v5e:16x16 or h100:8.', required=True)
  JSON = flags.DEFINE_bool('json', False, 'Print the plan as JSON.')
  HLO = flags.DEFINE_string('hlo', '', 'File for the text of the compiled program.')
  flags.mark_flag_as_required('config')
  # The TPUs are only compiled for: everything that runs, runs here.
  jax.config.update('jax_platforms', 'cpu')
  start.run(lambda: main(start.CONFIG.value, TOPOLOGY.value, as_json=JSON.value, hlo=HLO.value))
