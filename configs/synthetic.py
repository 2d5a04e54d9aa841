r"""Random images from memory: the speed of a step with no data and no input to wait for.

python -m vit_jax.train --config=configs/synthetic.py:B/16 --workdir=runs/speed
"""

from vit_jax.config import complete


def get_config(variant='S/16'):
  return complete(dict(
    total='100 steps',
    batch_size=256,
    model=dict(variant=variant, pool='mean', posemb='sincos', dtype='bfloat16', remat='names'),
    data=dict(source=dict(name='synthetic')),
    optim=dict(lr=1e-4, warmup='10 steps'),
    log=dict(every='10 steps'),
    checkpoint=dict(every='100%'),
  ))  # fmt: skip
