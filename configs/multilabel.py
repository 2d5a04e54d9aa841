r"""Which digits are in a picture: any number of classes for each image.

Pictures are drawn: real digits on mottled ground, among shuffled pieces of others.

    python -m vit_jax.train --config=configs/multilabel.py --workdir=runs/multilabel

Your own, from a table with a column `labels` (red|round|large) beside the paths of the images:

    python -m vit_jax.train --config=configs/multilabel.py:tags.csv --workdir=runs/tags
"""

from vit_jax.config import complete


def get_config(file=''):
  drawn = dict(name='generated', generator=dict(name='scenes'), examples=20_000)
  own = dict(name='manifest', file=file)
  small = dict(variant='mu/6', image_size=(48, 48), width=96, depth=6, mlp_dim=384, num_heads=6)
  return complete(dict(
    total='8 epochs' if not file else '60 epochs',
    batch_size=64,
    model=small | dict(pool='map', posemb='sincos2d') if not file else dict(
      variant='S/16', pool='mean', posemb='sincos2d', dtype='bfloat16', remat='names'
    ),
    task=dict(name='multilabel'),
    data=dict(
      source=own if file else drawn, crop=dict(name='random_resized' if file else 'resize'),
      flip='horizontal' if file else 'none',
    ),
    optim=dict(lr=2e-3, weight_decay=0.05, warmup='10%', clip=1.0),
    evals=dict(test=dict(name='multilabel', split='test', every='25%', batch_size=128)),
  ))  # fmt: skip
