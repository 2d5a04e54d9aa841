"""Evaluation of a run: `python -m vit_jax.evaluate --workdir=DIR`."""

from __future__ import annotations

import typing
from typing import Any

from vit_jax.core import lazy

if typing.TYPE_CHECKING:
  from vit_jax.training.evaluation import evaluate, restore

__all__ = ['evaluate', 'restore']
__getattr__ = lazy.getter(__name__, dict.fromkeys(__all__, 'vit_jax.training.evaluation'))


def main(config: Any, workdir: str, step: int | None, overrides: list[tuple[str, str]]) -> None:
  """The command."""
  from vit_jax.training import config as config_lib
  from vit_jax.training.evaluation import evaluate
  from vit_jax.training.workdir import Workdir

  if config is None and overrides:
    config = config_lib.override(Workdir(workdir).record(), overrides)
  evaluate(workdir, config, step=step)


if __name__ == '__main__':
  from vit_jax.core import command
  from vit_jax.launch import start

  parser = command.Parser(
    'vit_jax.evaluate',
    "Evaluates the newest checkpoint of a run, by default as the run's own configuration says.",
    (
      '--workdir=runs/digits',
      '--workdir=runs/photos --config.evals.test.crop.name=center '
      '--config.evals.test.crop.fraction=1',
    ),
  )
  parser.add_argument('--workdir', required=True, metavar='DIR', help='directory of the run')
  parser.add_argument('--step', type=int, metavar='N', help='of the checkpoint, if not the newest')
  start.run(parser, main)
