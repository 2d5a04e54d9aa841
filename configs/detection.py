r"""Boxes of objects, each said by one patch of a ViT: set prediction without a decoder.

Pictures are drawn: discs, squares, triangles, rings and crosses of any colour, size and angle, one
before the other, on striped and checked ground.

    python -m vit_jax.train --config=configs/detection.py --workdir=runs/detection

Made for ten minutes on two CPU cores, and not measured yet; `python -m experiments.gallery
detection` does that, beside its controls.

Your own images, with annotations in files like those of COCO, `annotations/instances_train.json`
and `annotations/instances_val.json` in a directory, the images in `train` and `val` beside them:

    python -m vit_jax.train --config=configs/detection.py:photos \
        --config.inits.encoder=dinov2_vitb14_pretrain.pth --workdir=runs/photos

A ViT-B/14 at 518 x 518 pixels, 1,369 patches. What it scores has not been measured.
"""

from vit_jax.config import complete


def get_config(folder=''):
  return complete(photos(folder) if folder else quick())


def quick():
  encoder = dict(
    variant='mu/8', image_size=(48, 48), width=96, depth=4, mlp_dim=288, num_heads=3,
    posemb='sincos',
  )  # fmt: skip
  return dict(
    total='5000 steps',
    batch_size=32,
    model=dict(name='token_detector', encoder=encoder),
    task=dict(name='detection', most=8),
    data=dict(
      source=dict(name='generated', examples=100_000, generator=dict(name='shapes')), flip='both'
    ),
    optim=dict(
      name='muon', lr=4e-3, lr_last=4e-5, weight_decay=0.01, b2=0.98, warmup='3%',
      # What is outside of blocks learns by AdamW, whose updates are five times as large.
      lr_scale=(('(head|boxes|dense_head|dense_boxes)/.*kernel|.*/proj/kernel', 0.25), ('.*', 1.0)),
    ),
    evals=dict(test=dict(name='detection', split='test', every='20%', batch_size=100)),
  )  # fmt: skip


def photos(folder):
  return dict(
    total='20 epochs',
    batch_size=16,
    model=dict(
      name='token_detector',
      encoder=dict(variant='dinov2:B/14', image_size=(518, 518), drop_path=0.1),
    ),
    task=dict(name='detection', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    data=dict(
      source=dict(name='coco', dir=folder), split='train',
      crop=dict(name='random_resized', min_area=0.3, max_aspect=2.0), flip='horizontal',
    ),
    optim=dict(
      lr=2e-4, weight_decay=0.05, warmup='5%', layer_decay=0.8, clip=0.1,
    ),
    evals=dict(test=dict(name='detection', split='val', every='10%')),
  )  # fmt: skip
