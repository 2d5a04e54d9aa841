r"""A class for every pixel, by a linear head on the patches of an encoder.

Pictures are drawn: real digits on mottled ground, among shuffled pieces of others; each pixel is
of a digit or of the ground.

    python -m vit_jax.train --config=configs/segmentation.py --workdir=runs/segmentation

Five minutes on two CPU cores; `experiments/gallery` has the results.

ADE20K (Zhou et al. 2017), images/{training,validation} beside annotations/, with a frozen DINOv2
ViT-B/14, of which Oquab et al. 2023 (table 10, 'lin.') report 47.3 mIoU:

    python -m vit_jax.train --config=configs/segmentation.py:ADEChallengeData2016 \
        --config.inits.encoder=dinov2_vitb14_pretrain.pth --workdir=runs/ade20k
"""

from vit_jax.config import complete


def get_config(folder=''):
  return complete(ade20k(folder) if folder else quick())


def quick():
  generator = dict(name='scenes', size=(32, 32), most=2, pieces=1, lighter=True)
  encoder = dict(
    variant='mu/4', image_size=(32, 32), width=64, depth=4, mlp_dim=256, num_heads=4,
    posemb='sincos',
  )  # fmt: skip
  return dict(
    total='3000 steps',
    batch_size=64,
    model=dict(name='segmenter', encoder=encoder),
    task=dict(name='segmentation'),
    data=dict(source=dict(name='generated', examples=200_000, generator=generator)),
    optim=dict(lr=1e-3, weight_decay=0.05, warmup='5%'),
    evals=dict(test=dict(name='segmentation', split='test', every='25%', batch_size=100)),
  )


def ade20k(folder):
  """Classes 1 to 150 of the maps are those of the benchmark, and 0 is none of them."""
  fields = dict(image='images/{split}', map='annotations/{split}')
  return dict(
    total='40000 steps',
    batch_size=16,
    model=dict(name='segmenter', encoder=dict(variant='dinov2:B/14', image_size=(518, 518))),
    task=dict(
      name='segmentation', stride=2, frozen=('encoder/.*',),
      mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ),
    data=dict(
      source=dict(name='paired', dir=folder, fields=fields, names=dict(map='151'), ignore=(0,)),
      split='training', crop=dict(name='random_resized', min_area=0.25, max_aspect=2.0),
      flip='horizontal',
    ),
    optim=dict(lr=1e-3, weight_decay=0.0, warmup='1500 steps'),
    evals=dict(test=dict(name='segmentation', split='validation', every='10%')),
  )  # fmt: skip
