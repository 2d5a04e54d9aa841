r"""DETR on a plain ViT: queries of a decoder look at its patches.

Queries begin with the patches that seem most like an object, and with noisy boxes of those that are
there. Pictures are drawn, as for configs/detection.py, whose patches are the queries themselves and
learn sooner:

    python -m vit_jax.train --config=configs/detr.py --workdir=runs/detr

COCO (Lin et al. 2014), `annotations/instances_{train,val}2017.json` in a directory beside
{train,val}2017, with a ViT-B/16, such as DINOv3's, in place of a ResNet and an encoder:

    python -m vit_jax.train --config=configs/detr.py:coco --workdir=runs/detr_b \
        --config.inits.encoder=dinov3-vitb16-pretrain-lvd1689m

Nobody has published a number for this. DETR with a ResNet-50 has an average precision of 42.0 after
500 epochs (Carion et al. 2020, https://arxiv.org/abs/2005.12872). No run at this size was made.

The decoder of a published DETR, which says 100 objects without anchors:

    python -m vit_jax.train --config=configs/detr.py:original,coco --workdir=runs/detr_original \
        --config.inits.encoder=dinov3-vitb16-pretrain-lvd1689m \
        --config.inits.decoder=facebook/detr-resnet-50

With a mask of each query, too, panoptic segments of the drawn pictures, and those of COCO from a
published DETR with masks:

    python -m vit_jax.train --config=configs/detr.py:masks --workdir=runs/detr_masks

    python -m vit_jax.train --config=configs/detr.py:masks,coco --workdir=runs/detr_panoptic \
        --config.inits.encoder=dinov3-vitb16-pretrain-lvd1689m \
        --config.inits.decoder=facebook/detr-resnet-50-panoptic

DETR with a ResNet-50 has a panoptic quality of 43.4. There masks are learned behind everything
else, at all pixels; here with it, at points as in Mask2Former. No run at this size was made.
"""

from vit_jax.config import complete

# Weights of classes, masks and their overlap in DETR.
DETR = dict(class_weight=1.0, mask_weight=1.0, dice_weight=1.0)


def get_config(argument=''):
  kind, _, folder = argument.rpartition(',')
  if not argument or argument == 'masks':
    return complete(quick(masks=bool(argument)))
  return complete(coco(folder, kind))


def quick(*, masks):
  encoder = dict(
    variant='mu/8', image_size=(48, 48), width=96, depth=3, mlp_dim=288, num_heads=3,
    posemb='sincos',
  )  # fmt: skip
  decoder = dict(
    width=96, depth=2, num_heads=3, mlp_dim=288, queries=12, anchors='tokens', nothing=False,
    norm_place='pre',
  )  # fmt: skip
  task = dict(name='detection', most=8, denoising=2)
  optim = dict(name='muon', lr=4e-3, lr_last=4e-5, b2=0.98)
  if masks:
    decoder |= dict(num_heads=4, nothing=True)
    # After so few steps queries are not sure, as in configs/panoptic.py.
    task = dict(name='panoptic', most=10, points=0, lifted=1, threshold=0.2, overlap=0.6, **DETR)
    optim = dict(lr=1e-3, lr_last=1e-5)
  return dict(
    total='2000 steps',
    batch_size=32,
    model=dict(name='detr', encoder=encoder, decoder=decoder),
    task=task,
    data=dict(
      source=dict(name='generated', examples=100_000, generator=dict(name='shapes')), flip='both'
    ),
    optim=dict(weight_decay=0.01, warmup='100 steps', **optim),
    evals=dict(test=dict(name=task['name'], split='test', every='20%', batch_size=100)),
  )  # fmt: skip


def coco(folder, kind):
  encoder = dict(
    variant='dinov3:B/16', image_size=(1024, 1024), drop_path=0.1, dtype='bfloat16', remat='names'
  )
  decoder = dict(remat='names')
  task = dict(name='detection', class_weight=1.0)
  source = dict(annotations='annotations/instances_{split}.json')
  if kind == 'masks':
    task = dict(name='panoptic', most=100, lifted=1, threshold=0.85, **DETR)
    source = dict(annotations='', panoptic='annotations/panoptic_{split}.json')
  elif kind != 'original':
    decoder |= dict(queries=300, anchors='tokens', nothing=False)
    task = dict(name='detection', denoising=1)
  return dict(
    total=f'{150 if kind else 50} epochs',
    batch_size=16,
    model=dict(name='detr', encoder=encoder, decoder=decoder),
    task=dict(**task, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    data=dict(
      source=dict(name='coco', dir=folder, **source),
      split='train2017', flip='horizontal',
      crop=dict(name='scale_jitter', min_scale=0.5, max_scale=1.5),
    ),
    optim=dict(
      lr=1e-4, weight_decay=1e-4, decay=(('.*', 1.0),), layer_decay=0.8, clip=0.1, warmup='1%'
    ),
    evals=dict(val=dict(
      name=task['name'], split='val2017', every='10%', batch_size=16, crop=dict(name='fit'),
    )),
  )  # fmt: skip
