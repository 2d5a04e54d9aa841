"""Evaluation of a run: `python -m vit_jax.evaluate --workdir=DIR [--config=configs/NAME.py]`.

Without --config the run's own configuration is used, without --step the newest checkpoint.
"""

from vit_jax.training.evaluation import evaluate, restore

__all__ = ['evaluate', 'restore']

if __name__ == '__main__':
  from absl import flags

  from vit_jax.launch import start

  STEP = flags.DEFINE_integer('step', None, 'Of the checkpoint; the newest if not given.')
  flags.mark_flag_as_required('workdir')
  start.run(lambda: evaluate(start.WORKDIR.value, start.CONFIG.value, step=STEP.value))
