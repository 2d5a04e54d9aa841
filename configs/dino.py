r"""Self-distillation on Fashion-MNIST without labels, judged by neighbours of the teacher.

    python -m vit_jax.train --config=configs/dino.py:dino --workdir=runs/dino
    python -m vit_jax.train --config=configs/dino.py:ibot --workdir=runs/ibot
    python -m vit_jax.train --config=configs/dino.py:dinov2 --workdir=runs/dinov2
    python -m vit_jax.train --config=configs/dino.py:collapse --workdir=runs/collapse

A small Vision Transformer on patches of 4 pixels. `collapse` has no centre, and is there to fail.
"""

from vit_jax.config import chosen, complete

RECIPES = {
  'dino': (dict(), dict()),
  'ibot': (dict(patch_head='shared'), dict()),
  'dinov2': (dict(patch_head='separate', scaled=True), dict(koleo=0.1)),
  'collapse': (dict(), dict(centering='none')),
}


def get_config(argument='dino'):
  model, task = chosen(argument, RECIPES)
  return complete(dict(
    total='20 epochs', batch_size=256,
    model=dict(
      name='dino', prototypes=512, hidden=256, bottleneck=64,
      encoder=dict(
        variant='mu/4', image_size=(28, 28), in_channels=1, width=64, depth=4, mlp_dim=256,
        num_heads=4, scan=False, class_token=True, drop_path=0.1,
      ),
      **model,
    ),
    task=dict(
      name='dino', mean=(0.286,), std=(0.353,), local=4, local_size=12, local_area=(0.1, 0.4),
      momentum='0.99->1 cosine', last_layer='0 until 5% then 1',
      **{'centering': 'sinkhorn', **task},
    ),
    data=dict(
      source=dict(
        name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
      ),
      split='train', flip='horizontal', crop=dict(name='random_resized', min_area=0.4),
      colour=dict(name='jitter', saturation=0.0),
    ),
    optim=dict(lr=1e-3, weight_decay='0.04->0.2 cosine', warmup='10%', clip=3.0),
    evals=dict(
      knn=dict(name='knn', split='test', train='train[:5000]', features='class+mean', every='20%'),
    ),
  ))  # fmt: skip
