r"""A class for every pixel, by a linear head on the patches of an encoder.

Pictures are drawn: real digits on mottled ground, among shuffled pieces of others; each pixel is
of a digit or of the ground.

    python -m vit_jax.train --config=configs/segmentation.py --workdir=runs/segmentation

Five minutes on two CPU cores; `experiments/gallery` has the results.

ADE20K (Zhou et al. 2017), images/{training,validation} beside annotations/. With a frozen DINOv2
ViT-B/14, of which Oquab et al. 2023 (table 10, 'lin.') report 47.3 mIoU:

    python -m vit_jax.train --config=configs/segmentation.py:ADEChallengeData2016 \
        --config.inits.encoder=dinov2_vitb14_pretrain.pth --workdir=runs/ade20k

Fine-tuned as a whole, with the recipes of those who made the heads, none of which we have run at
its size. In evaluation the shorter side of a picture is 640, and a window slides along the longer
one; they average logits, we probabilities:

- segmenter: Seg-L-Mask/16 (Strudel et al. 2021) at 640 pixels, 51.8 mIoU, from a ViT-L/16 of AugReg
- upernet: BEiT-B/16 at 640 pixels, 53.6 mIoU, from BEiT fine-tuned on ImageNet-22k

    python -m vit_jax.train --config=configs/segmentation.py:upernet,ADEChallengeData2016 \
        --config.inits.encoder=hf:microsoft/beit-base-patch16-224-pt22k-ft22k --workdir=runs/upernet
"""

from vit_jax.config import IMAGENET, chosen, complete


def get_config(argument=''):
  kind, _, folder = argument.rpartition(',')
  if not folder:
    return complete(quick())
  return complete(ade20k(folder, chosen(kind or 'linear', RECIPES)))


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


def linear():
  return dict(
    model=dict(name='segmenter', encoder=dict(variant='dinov2:B/14', image_size=(518, 518))),
    task=dict(stride=2, frozen=('encoder/.*',), **IMAGENET), total='40000 steps', batch_size=16,
    optim=dict(lr=1e-3, weight_decay=0.0, warmup='1500 steps'),
  )  # fmt: skip


def segmenter():
  encoder = dict(
    variant='L/16', image_size=(640, 640), drop_path=0.1, dtype='bfloat16', remat='names'
  )
  return dict(
    model=dict(name='mask_transformer', encoder=encoder), task=dict(mean=(0.5,), std=(0.5,)),
    total='64 epochs', batch_size=8,
    optim=dict(
      name='sgd', lr=1e-3, momentum=0.9, weight_decay=0.0, warmup='0', schedule='1->0 poly',
      clip=0.0,
    ),
  )  # fmt: skip


def upernet():
  encoder = dict(
    variant='beit:B/16', image_size=(640, 640), drop_path=0.1, dtype='bfloat16', remat='names'
  )
  return dict(
    model=dict(name='upernet', encoder=encoder, layers=(3, 5, 7, 11), channels=768),
    task=dict(mean=(0.5,), std=(0.5,)), total='160000 steps', batch_size=16,
    optim=dict(
      lr=3e-5, weight_decay=0.05, decay_with='lr', layer_decay=0.9, warmup='1500 steps',
      schedule='linear', clip=0.0,
    ),
  )  # fmt: skip


RECIPES = {'linear': linear, 'segmenter': segmenter, 'upernet': upernet}
# Of windows in evaluation: Segmenter moves them by 640 pixels, BEiT by 426.
OVERLAPS = {segmenter: 0.0, upernet: 1 / 3}


def ade20k(folder, recipe):
  """Classes 1 to 150 of the maps are those of the benchmark, and 0 is none of them."""
  fields = dict(image='images/{split}', map='annotations/{split}')
  made = recipe()
  made['task'] |= dict(name='segmentation')
  test: dict = dict(name='segmentation', split='validation', every='10%')
  crop: dict = dict(name='random_resized', min_area=0.25, max_aspect=2.0)
  if recipe is not linear:
    # The shorter side half to twice as long as the frame, as in mmsegmentation, of pictures of 4:3.
    crop = dict(name='scale_jitter', min_scale=0.67, max_scale=2.67)
    test |= dict(windows=True, shorter=640, overlap=OVERLAPS[recipe])
  return dict(
    made,
    data=dict(
      source=dict(name='paired', dir=folder, fields=fields, names=dict(map='151'), ignore=(0,)),
      split='training', crop=crop, flip='horizontal',
    ),
    evals=dict(test=test),
  )  # fmt: skip
