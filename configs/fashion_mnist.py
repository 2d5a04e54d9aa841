r"""Fashion-MNIST: 60,000 images to train on, 10,000 to test on.

Debian and Ubuntu ship the four IDX files: apt-get install dataset-fashion-mnist. They may be in any
directory: --config.data.source.manual_dir=DIR; they are prepared once.

90 % in about ten minutes on two CPU cores, as much as an RBF SVM (logistic regression: 85 %):

    python -m vit_jax.train --config=configs/fashion_mnist.py:quick --workdir=runs/fashion_quick

The full recipe, for one GPU; its accuracy is not stated because it has not been run yet:

    python -m vit_jax.train --config=configs/fashion_mnist.py --workdir=runs/fashion
"""

from vit_jax.config import complete


def get_config(recipe='full'):
  quick = dict(
    total='16 epochs',
    batch_size=64,
    model=dict(
      variant='mu/4', width=64, depth=4, mlp_dim=256, num_heads=4, pool='mean', scan=False,
      remat='none',
    ),
    task=dict(mixup=0.0),
    crop=dict(name='resize'),
    optim=dict(lr=2e-3, weight_decay=0.05, warmup='10%'),
    every='1 epoch',
  )  # fmt: skip
  full = dict(
    total='200 epochs',
    batch_size=1024,
    model=dict(variant='Ti/4', pool='map', dtype='bfloat16'),
    task=dict(mixup=0.2),
    crop=dict(name='affine', degrees=0.0, zoom=0.0, shift=0.07),
    optim=dict(lr=1e-3, weight_decay=0.1, warmup='5%', ema=0.9999),
    every='10 epochs',
  )
  recipes = {'quick': quick, 'full': full}
  if recipe not in recipes:
    raise ValueError(f'unknown recipe {recipe!r}: choose from {", ".join(recipes)}')
  chosen = recipes[recipe]
  return complete(dict(
    total=chosen['total'],
    batch_size=chosen['batch_size'],
    model=dict(image_size=(28, 28), in_channels=1, **chosen['model']),
    task=dict(flip=True, mean=(0.286,), std=(0.353,), **chosen['task']),
    data=dict(
      source=dict(
        name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
      ),
      crop=chosen['crop'],
    ),
    optim=chosen['optim'],
    evals=dict(test=dict(split='test', every=chosen['every'])),
  ))  # fmt: skip
