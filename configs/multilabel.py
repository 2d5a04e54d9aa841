r"""Which digits are in a picture: any number of classes for each image.

Pictures are drawn: real digits on mottled ground, among shuffled pieces of others.

    python -m vit_jax.train --config=configs/multilabel.py --workdir=runs/multilabel

Five minutes on two CPU cores; `experiments/gallery` has the results. Your own, from a table with a
column `labels` (red|round|large) beside the paths of the images:

    python -m vit_jax.train --config=configs/multilabel.py:tags.csv --workdir=runs/tags
"""

from vit_jax.config import complete


def get_config(file=''):
  generator = dict(name='scenes', size=(32, 32), most=2, pieces=1, lighter=True)
  drawn = dict(name='generated', examples=200_000, generator=generator)
  small = dict(variant='mu/4', image_size=(32, 32), width=64, depth=4, mlp_dim=256, num_heads=4)
  large = dict(variant='S/16', dtype='bfloat16', remat='names')
  return complete(dict(
    total='60 epochs' if file else '3000 steps',
    batch_size=64,
    model=dict(pool='mean', posemb='sincos', **(large if file else small)),
    task=dict(name='multilabel'),
    data=dict(
      source=dict(name='manifest', file=file) if file else drawn,
      crop=dict(name='random_resized' if file else 'resize'),
      flip='horizontal' if file else 'none',
    ),
    optim=dict(lr=1e-3, weight_decay=0.05, warmup='5%'),
    evals=dict(test=dict(name='multilabel', split='test', every='25%', batch_size=100)),
  ))  # fmt: skip
