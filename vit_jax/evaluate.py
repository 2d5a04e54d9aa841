"""Evaluation of a run, or of any checkpoint: `python -m vit_jax.evaluate --workdir=DIR`."""

from __future__ import annotations

import typing
from typing import Any

from vit_jax.core import lazy
from vit_jax.core.errors import RunError

if typing.TYPE_CHECKING:
  from vit_jax.training.evaluation import evaluate, evaluate_checkpoint, restore
  from vit_jax.training.follow import follow

__all__ = ['evaluate', 'evaluate_checkpoint', 'follow', 'restore']
__getattr__ = lazy.getter(
  __name__,
  {
    **dict.fromkeys(('evaluate', 'evaluate_checkpoint', 'restore'), 'vit_jax.training.evaluation'),
    'follow': 'vit_jax.training.follow',
  },
)


def main(
  config: Any, workdir: str | None, checkpoint: str | None, follow: str | None, wait: float,
  step: int | None, overrides: list[tuple[str, str]],
) -> None:  # fmt: skip
  """The command."""
  from vit_jax.training import config as config_lib
  from vit_jax.training.evaluation import evaluate, evaluate_checkpoint
  from vit_jax.training.follow import follow as follow_run
  from vit_jax.training.workdir import Workdir

  if follow:
    if config is not None or step is not None:
      raise RunError(
        '--follow takes neither --config=FILE nor --step: every checkpoint is evaluated as the run '
        'says; single fields can be changed, such as --config.evals.test.batch_size=512'
      )
    follow_run(follow, overrides, wait=60 * wait)
    return
  if checkpoint:
    if config is None:
      raise RunError(
        '--checkpoint needs --config=FILE, which says what it is evaluated on: that of its '
        'training, or, for images in folders by class, configs/image_folder.py:DIR. A run of ours '
        'is evaluated by --workdir=RUN as it was trained'
      )
    if step is not None:
      raise RunError("of a run a step is chosen by --checkpoint='RUN?step=N'")
    evaluate_checkpoint(checkpoint, config, insisted={name for name, _ in overrides})
    return
  if config is None and overrides:
    config = config_lib.override(Workdir(str(workdir)).record(), overrides)
  evaluate(str(workdir), config, step=step)


if __name__ == '__main__':
  from vit_jax.core import command
  from vit_jax.launch import start

  parser = command.Parser(
    'vit_jax.evaluate',
    "Evaluates the newest checkpoint of a run, by default as the run's own configuration says; or "
    'a checkpoint\nof any dialect, on the data of a configuration; or each checkpoint of a run, '
    'as it appears.',
    (
      '--workdir=runs/digits',
      '--checkpoint=vit_base.safetensors --config=configs/tfds.py:imagenet2012',
      '--follow=runs/imagenet',
    ),
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('--workdir', metavar='DIR', help='directory of a run')
  what.add_argument(
    '--checkpoint', metavar='PATH',
    help="of any dialect; 'PATH?part=NAME&step=N' as for config.init",
  )  # fmt: skip
  what.add_argument(
    '--follow', metavar='DIR', help='directory of a run that is training, or will be, elsewhere'
  )
  parser.add_argument(
    '--wait', type=float, default=120.0, metavar='MINUTES',
    help='how long --follow waits for the next checkpoint (120)',
  )  # fmt: skip
  parser.add_argument('--step', type=int, metavar='N', help='of the run, if not the newest')
  start.run(parser, main)
