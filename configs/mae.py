r"""Masked image modelling of Fashion-MNIST without labels, judged by probes of the encoder.

    python -m vit_jax.train --config=configs/mae.py:mae --workdir=runs/mae
    python -m vit_jax.train --config=configs/mae.py:simmim --workdir=runs/simmim
    python -m vit_jax.train --config=configs/mae.py:colours --workdir=runs/colours

A small Vision Transformer on patches of 4 pixels.
"""

from vit_jax.config import chosen, complete

ENCODER = dict(
  variant='mu/4', image_size=(28, 28), in_channels=1, width=64, depth=4, mlp_dim=256, num_heads=4,
  scan=False, class_token=True,
)  # fmt: skip
RECIPES = {
  'mae': (
    dict(
      name='mae', encoder=dict(posemb='sincos_mae'),
      decoder=dict(width=64, depth=1, num_heads=4),
    ),
    dict(ratio=0.75, target='normalized'),
  ),
  'simmim': (dict(name='masked'), dict(ratio=0.6, target='pixels', loss_of='l1')),
  'colours': (
    dict(name='masked'), dict(ratio=0.5, target='colours', swapped=0.1, left=0.1),
  ),
}  # fmt: skip


def get_config(argument='mae'):
  model, task = chosen(argument, RECIPES)
  encoder = {**ENCODER, **model.get('encoder', {})}
  return complete(dict(
    total='20 epochs', batch_size=256,
    model={**model, 'encoder': encoder},
    task=dict(name='masked', mean=(0.286,), std=(0.353,), **task),
    data=dict(
      source=dict(
        name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
      ),
      split='train', flip='horizontal',
    ),
    optim=dict(lr=1.5e-3, weight_decay=0.05, b2=0.95, warmup='10%', clip=0.0),
    evals=dict(
      test=dict(name='reconstruction', split='test', every='20%'),
      knn=dict(name='knn', split='test', train='train[:5000]', features='class+mean', every='20%'),
    ),
  ))  # fmt: skip
