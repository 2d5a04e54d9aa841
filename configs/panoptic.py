r"""A segment for every pixel, by queries in the last blocks of an encoder (EoMT).

Pictures are drawn: discs, squares, triangles, rings and crosses of any colour, size and angle, one
before the other, on a ground of textures, which are stuff.

    python -m vit_jax.train --config=configs/panoptic.py --workdir=runs/panoptic
"""

from vit_jax.config import complete


def get_config():
  return complete(quick())


def quick():
  encoder = dict(
    variant='mu/4', patch_size=8, image_size=(48, 48), width=96, depth=4, mlp_dim=288, num_heads=3,
    posemb='sincos', class_token=False, pool='mean',
  )  # fmt: skip
  return dict(
    total='2600 steps',
    batch_size=16,
    model=dict(name='eomt', encoder=encoder, queries=12, blocks=2, upscale=2, pixel_head=True),
    task=dict(name='panoptic', most=10, points=0, lifted=1, threshold=0.5),
    data=dict(
      source=dict(name='generated', examples=200_000, held_out=500, generator=dict(name='shapes')),
      flip='both',
    ),
    optim=dict(name='muon', lr=3e-3, weight_decay=0.01, warmup='100 steps', clip=1.0),
    evals=dict(test=dict(name='panoptic', split='test', every='25%', batch_size=100)),
  )  # fmt: skip
