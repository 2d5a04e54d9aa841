r"""Fashion-MNIST: 60,000 images to train on, 10,000 to test on.

Debian and Ubuntu ship the four IDX files: apt-get install dataset-fashion-mnist. They may be in any
directory: --config.data.source.manual_dir=DIR; they are prepared once.

Ten minutes on two CPU cores (logistic regression reaches 83-84 %):

    python -m vit_jax.train --config=configs/fashion_mnist.py:quick --workdir=runs/fashion_quick

The full recipe, for one GPU; its accuracy is not stated because it has not been run yet:

    python -m vit_jax.train --config=configs/fashion_mnist.py --workdir=runs/fashion
"""

from vit_jax.config import complete


def get_config(recipe='full'):
  quick = dict(
    total='6 epochs',
    batch_size=128,
    model=dict(
      variant='mu/4', width=64, depth=4, mlp_dim=256, num_heads=4, pool='mean', remat='full',
    ),
    optim=dict(lr=2e-3, weight_decay=0.1, warmup='10%'),
  )  # fmt: skip
  full = dict(
    total='200 epochs',
    batch_size=1024,
    model=dict(variant='Ti/4', pool='map', dtype='bfloat16'),
    optim=dict(lr=1e-3, weight_decay=0.1, warmup='5%', ema=0.9999),
  )
  config = {'quick': quick, 'full': full}[recipe]
  config['model'] |= dict(image_size=(28, 28), in_channels=1, posemb='learned')
  return complete(dict(
    **config,
    task=dict(flip=True, mean=(0.286,), std=(0.353,), mixup=0.0 if recipe == 'quick' else 0.2),
    data=dict(
      source=dict(
        name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
      ),
      crop=dict(name='affine', degrees=0.0, zoom=0.0, shift=0.07),
    ),
    evals=dict(test=dict(split='test', every='1 epoch' if recipe == 'quick' else '10 epochs')),
  ))  # fmt: skip
