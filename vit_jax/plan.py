"""What a run will cost: `python -m vit_jax.plan --config=configs/NAME.py --topology=v5e:16x16`."""

from __future__ import annotations

import typing
from typing import Any

from vit_jax.core import lazy

if typing.TYPE_CHECKING:
  from vit_jax.compile.plan import Plan, alternatives, plan

__all__ = ['Plan', 'alternatives', 'plan']
__getattr__ = lazy.getter(__name__, dict.fromkeys(__all__, 'vit_jax.compile.plan'))


def main(config: Any, topology: str, json: bool, hlo: str) -> None:
  """The command."""
  import jax

  from vit_jax.compile import show

  # The chips are only compiled for: everything that runs, runs here.
  jax.config.update('jax_platforms', 'cpu')
  show.main(config, topology, as_json=json, hlo=hlo)


if __name__ == '__main__':
  from vit_jax.core import command
  from vit_jax.launch import start

  parser = command.Parser(
    'vit_jax.plan',
    'Compiles the training step for chips that are not there; says whether it fits, and how fast '
    'it will be.',
    (
      '--config=configs/synthetic.py:B/16 --topology=v5e:2x2',
      '--config=configs/tfds.py:imagenet2012 --topology=h100:8 --config.mesh=fsdp --json',
    ),
  )
  parser.add_argument('--topology', required=True, metavar='SLICE', help='v5e:16x16, h100:8, ...')
  parser.switch('--json', 'print the plan as JSON')
  parser.add_argument('--hlo', default='', metavar='FILE', help='for the compiled program as text')
  start.run(parser, main, config=True)
