r"""Numbers with a unit: where the largest digit of a picture is, and how high.

Pictures are drawn: real digits on mottled ground, among shuffled pieces of others.

    python -m vit_jax.train --config=configs/regression.py --workdir=runs/regression

Your own, from a table with the paths of images and, for example, columns age and weight:

    python -m vit_jax.train --config=configs/regression.py:people.csv --workdir=runs/people \
        --config.data.source.fields.target='age [years], weight [kg]'
"""

from vit_jax.config import complete


def get_config(file=''):
  drawn = dict(
    name='generated', examples=200_000, generator=dict(name='scenes', size=(48, 48), pieces=2)
  )
  stem = dict(stem_width=32, stem_depths=(1,))  # convolutions find strokes sooner than patches do
  small = dict(
    variant='mu/2', image_size=(48, 48), width=96, depth=4, mlp_dim=384, num_heads=6, **stem
  )
  large = dict(variant='S/16', dtype='bfloat16', remat='names')
  return complete(dict(
    total='60 epochs' if file else '1200 steps',
    batch_size=64,
    model=dict(pool='map', posemb='sincos2d', **(large if file else small)),
    task=dict(name='regression', loss_of='huber'),
    data=dict(source=dict(name='manifest', file=file) if file else drawn),
    optim=dict(lr=1e-3 if file else 2e-3, weight_decay=0.05, warmup='10%'),
    evals=dict(test=dict(name='regression', split='test', every='25%', batch_size=128)),
  ))  # fmt: skip
