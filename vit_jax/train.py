"""Training: `python -m vit_jax.train --config=configs/NAME.py --workdir=DIR`."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from vit_jax.core import lazy

if typing.TYPE_CHECKING:
  from vit_jax.training.loop import train

__all__ = ['train']
__getattr__ = lazy.getter(__name__, {'train': 'vit_jax.training.loop'})


def main(
  config: Any, workdir: str, overwrite: bool, doctor: bool, wishes: Mapping[str, Any]
) -> int:
  """The command; returns its exit status."""
  from vit_jax.core.errors import RESTART
  from vit_jax.launch.doctor import examine
  from vit_jax.training.loop import train

  if doctor and (status := examine(config, workdir, overwrite=overwrite)):
    return status
  return RESTART if train(config, workdir, overwrite=overwrite, wishes=wishes) is None else 0


if __name__ == '__main__':
  from vit_jax.core import command
  from vit_jax.launch import start

  parser = command.Parser(
    'vit_jax.train',
    'Trains a model, or goes on training it: the same command continues what was interrupted.',
    (
      '--config=configs/digits.py --workdir=runs/digits',
      '--config=configs/image_folder.py:photos --workdir=runs/photos \\\n'
      '    --config.init=runs/pretrained --config.total="20 epochs"',
    ),
  )
  parser.add_argument('--workdir', required=True, metavar='DIR', help='directory of the run')
  parser.switch(
    '--doctor', 'examine the machines first, as vit_jax.doctor does, and end if they fail'
  )
  parser.switch('--overwrite', 'delete the run of another configuration that is in --workdir')
  start.run(parser, main, config=True)
