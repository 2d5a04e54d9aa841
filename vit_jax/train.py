"""Training: `python -m vit_jax.train --config=configs/NAME.py --workdir=DIR`."""

from vit_jax.training.loop import train

__all__ = ['train']

if __name__ == '__main__':
  from absl import flags

  from vit_jax.launch import start

  OVERWRITE = flags.DEFINE_bool(
    'overwrite', False, 'Delete the run of another configuration that is in --workdir.'
  )
  flags.mark_flags_as_required(['config', 'workdir'])
  start.run(lambda: train(start.CONFIG.value, start.WORKDIR.value, overwrite=OVERWRITE.value))
