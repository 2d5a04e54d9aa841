r"""A segment for every pixel, by queries in the last blocks of an encoder: EoMT.

Pictures are drawn: discs, squares, triangles, rings and crosses of any colour, size and angle, one
before the other, on a ground of textures, which are stuff.

    python -m vit_jax.train --config=configs/panoptic.py --workdir=runs/panoptic

The same things alone, with masks that may overlap, judged by average precision:

    python -m vit_jax.train --config=configs/panoptic.py:instances --workdir=runs/instances

COCO (Lin et al. 2014; Kirillov et al. 2019), {train,val}2017 beside annotations/ with the files of
panoptic segments, as EoMT with 200 queries learns it at 640 x 640 pixels (Kerssies et al. 2025,
https://arxiv.org/abs/2503.19108, and tue-mps/eomt), from DINOv2 with registers:

    python -m vit_jax.train --config=configs/panoptic.py:L,coco --workdir=runs/eomt_l \
        --config.inits.encoder=dinov2_vitl14_reg4_pretrain.pth

The model zoo there has a panoptic quality of 46.7 for S, 51.6 for B and 56.0 for L.

Where this differs: the learning rate falls linearly, theirs with the power 0.9 of what is left; it
rises for all parameters at once over 1,500 steps, where theirs is 500 for heads and queries and the
next 1,000 for the encoder; an image of which a crop has no segment counts, theirs is drawn again.
No run at this size was made.
"""

from vit_jax.config import complete

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of each size: steps, blocks that see the queries, and how the masks of attention are lifted from
# them, one after another.
SIZES = {
  'S': (177_432, 3, ((29_564, 29_564), (14_782, 29_564), (14_782, 29_564))),
  'B': (177_432, 3, ((29_564, 29_564), (14_782, 29_564), (14_782, 29_564))),
  'L': (88_716, 4, ((14_782, 14_782), (0, 14_782), (0, 14_782), (0, 14_782))),
}


def get_config(argument=''):
  size, _, folder = argument.partition(',')
  return complete(coco(size, folder) if folder else quick(argument or 'panoptic'))


def quick(task):
  encoder = dict(
    variant='mu/4', patch_size=8, image_size=(48, 48), width=96, depth=4, mlp_dim=288, num_heads=3,
    posemb='sincos', class_token=False, pool='mean',
  )  # fmt: skip
  # Chosen on other pictures than those of the test: after so few steps queries are not sure.
  merged = dict(threshold=0.2, overlap=0.6) if task == 'panoptic' else {}
  return dict(
    total='2600 steps',
    batch_size=16,
    model=dict(name='eomt', encoder=encoder, queries=12, blocks=2, upscale=2, pixel_head=True),
    task=dict(name=task, most=10, points=0, lifted=1, std=(0.25,), **merged),
    data=dict(
      source=dict(name='generated', examples=200_000, held_out=500, generator=dict(name='shapes')),
      flip='both',
    ),
    optim=dict(name='muon', lr=3e-3, weight_decay=0.01, b2=0.98, warmup='100 steps', clip=1.0),
    evals=dict(test=dict(name=task, split='test', every='25%', batch_size=100)),
  )  # fmt: skip


def coco(size, folder):
  steps, blocks, waits = SIZES[size]
  encoder = dict(
    variant=f'dinov2:{size}/14', patch_size=16, image_size=(640, 640), registers=4,
    mask_token=False, dtype='bfloat16', remat='names',
  )  # fmt: skip
  return dict(
    total=f'{steps} steps',
    batch_size=16,
    mesh='fsdp',
    model=dict(name='eomt', encoder=encoder, queries=200, blocks=blocks),
    task=dict(name='panoptic', most=128, lifted=lifted(waits), mean=MEAN, std=STD),
    data=dict(
      source=dict(
        name='coco', dir=folder, annotations='', panoptic='annotations/panoptic_{split}.json'
      ),
      split='train2017', flip='horizontal',
      crop=dict(name='scale_jitter', min_scale=0.1, max_scale=2.0),
    ),
    optim=dict(
      lr=1e-4, weight_decay=0.05, decay=(('.*', 1.0),), layer_decay=0.8, schedule='linear',
      warmup='1500 steps',
    ),
    evals=dict(val=dict(name='panoptic', split='val2017', every='25%', crop=dict(name='fit'))),
  )  # fmt: skip


def lifted(waits):
  """The schedule of a share that rises block by block: steps to wait, and steps to rise."""
  pieces, share = [], 0.0
  for wait, rise in waits:
    after = share + 1 / len(waits)
    pieces += [f'{share:.4f} until {wait} steps'] if wait else []
    pieces.append(f'{share:.4f}->{after:.4f} linear {rise} steps')
    share = after
  return ' then '.join(pieces)
