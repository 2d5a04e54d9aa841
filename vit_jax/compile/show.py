"""A plan for people."""

from __future__ import annotations

import json
import sys

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from vit_jax.compile import plan
from vit_jax.compile.plan import Plan


def describe(result: Plan) -> dict[str, str]:
  """The lines of a plan for people."""
  gib = lambda size: f'{size / plan.GIB:.2f} GiB'  # noqa: E731
  ms = lambda seconds: f'{1e3 * seconds:.1f} ms'  # noqa: E731
  rate = lambda speed: f'{speed / 1e9:g} GB/s per chip'  # noqa: E731
  each = f'{result.slices} of {result.chips // result.slices} chips, ' * (result.slices > 1)
  rows = {
    'slice': f'{result.topology}, {each}{result.chips} chips, mesh {result.mesh}',
    'batch': f'{result.batch_size}, {result.batch_size / result.chips:g} per chip',
    'layers': f'{"scanned" if result.scan else "unrolled"}, remat={result.remat}',
    'parameters': gib(result.parameters)
    + f', {gib(result.frozen)} of them not trained' * bool(result.frozen),
    'optimizer': gib(result.optimizer),
    'activations': f'{gib(result.activations)} as traced',
    'temporaries': f'{gib(result.temporaries)}, activations among them',
    'memory': f'{gib(result.memory)} of {gib(result.capacity)}: '
    f'{"fits" if result.fits else "DOES NOT FIT"}',
  }
  if result.teacher:
    rows['teacher'] = f'{result.teacher:.1%} of the FLOPs of a step, which has no gradient of it'
  for name, each in result.sizes.items():
    took = f', {ms(each.step_time)}, MFU {each.mfu or 0:.1%}' if each.step_time else ''
    rows[name] = f'{gib(each.memory)}{took}'
  if not result.compile_time:
    return rows
  moved, crossed = (
    ', '.join(f'{c.count} {c.kind} {c.bytes / plan.GIB:.3f} GiB' for c in collectives) or 'none'
    for collectives in (result.collectives, result.transfers)
  )
  took = f'{result.trace_time:.0f} s to trace, {result.compile_time:.0f} s to compile'
  if not (result.step_time and result.compiler_time and result.mfu):
    step = 'not predicted: the GPU compiler gives no times'
    return rows | {'step': step, 'collectives': moved, 'compile': took}
  several = result.slices > 1
  late = f' + {ms(result.transfer_wait or 0)} of waiting for other slices' * several
  rows |= {
    'step': f'{ms(result.step_time)} = {ms(result.compiler_time)} by the compiler'
    f' + {ms(result.kernel_time or 0)} in {len(result.kernels)} kernels at half their roofline'
    f'{late}',
    'speed': f'{result.images_per_second:,.0f} img/s per chip, MFU {result.mfu:.1%}',
    'collectives': f'{moved}; at {rate(result.link)} at least {ms(result.collective_time or 0)} are'
    ' not hidden behind the step, and come on top',
  }
  if result.untimed:
    names = ', '.join(result.untimed)
    rows['untimed'] = f'{names}: the compiler gives no time of this, which comes on top'
  if several:
    rows['between slices'] = (
      f'{crossed}; at {rate(result.dcn)}, which are assumed, {ms(result.transfer_time or 0)}, of '
      f'which the step waits for {ms(result.transfer_wait or 0)}'
    )
  return rows | {'compile': took}


def main(config: ConfigDict, where: str, *, as_json: bool = False, hlo: str = '') -> None:
  """Prints the plan of `config`, and of what would fit if it does not."""

  def show(result: Plan, title: str) -> None:
    table = Table(title=title, show_header=False, title_justify='left')
    for row in describe(result).items():
      table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)

  result = plan.plan(config, where, hlo)
  if as_json:
    print(json.dumps(plan.to_json(result), indent=1))
    return
  show(result, 'plan')
  if result.fits:
    return
  print('Looking for a change that fits:')
  for changes, other in plan.alternatives(config, where):
    text = ' '.join(f'--config.{name}={value}' for name, value in changes.items())
    if other.fits:
      show(other, text)
      return
    print(f'{text}: {other.memory / plan.GIB:.2f} GiB do not fit')
  print(
    f'None of these fits: use a larger slice, or mesh={result.slices}x-1xN with N-fold tensor '
    'parallelism.'
  )
