r"""Where buildings are, and how damaged they are after a disaster, by pictures before and after it.

Land with houses is drawn twice; the second time some houses have holes, are torn, or are gone.

    python -m vit_jax.train --config=configs/damage.py --workdir=runs/damage

Made for ten minutes on two CPU cores, and not measured yet; `python -m experiments.gallery
damage` does that, beside its controls.

xBD (Gupta et al. 2019), {train,test}/{images,labels} as it is given out, in crops of its pictures
of 1024, from a DINOv2 ViT-B/14. The winner of xView2 scored 0.80 by several convolutional networks:

    python -m vit_jax.train --config=configs/damage.py:xbd --workdir=runs/xbd \
        --config.inits.encoder=dinov2_vitb14_pretrain.pth
"""

from vit_jax.config import complete


def get_config(folder=''):
  return complete(xbd(folder) if folder else quick())


def quick():
  generator = dict(name='terrain', of='damage', size=(48, 48))
  encoder = dict(
    variant='mu/6', image_size=(48, 48), width=64, depth=4, mlp_dim=256, num_heads=4,
    posemb='sincos',
  )  # fmt: skip
  return dict(
    total='4000 steps',
    batch_size=32,
    model=dict(name='change', compare='both', detail=6, encoder=encoder),
    task=dict(name='damage', weights=(1.0, 4.0, 4.0, 4.0), mean=(0.3,), std=(0.22,)),
    data=dict(
      source=dict(name='generated', examples=8000, generator=generator), cache=True, flip='both'
    ),
    optim=dict(name='muon', lr=3e-3, weight_decay=0.05, warmup='5%'),
    evals=dict(test=dict(name='damage', split='test', every='25%', batch_size=100)),
  )


def xbd(folder):
  """Buildings are few pixels, and most of them stand: those that do not count more."""
  return dict(
    total='40000 steps',
    batch_size=16,
    model=dict(
      name='change', compare='both', detail=4,
      encoder=dict(variant='dinov2:B/14', image_size=(448, 448)),
    ),
    task=dict(
      name='damage', weights=(1.0, 4.0, 4.0, 4.0),
      mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ),
    data=dict(
      source=dict(name='xbd', dir=folder),
      crop=dict(name='random_resized', min_area=0.15, max_area=0.25, max_aspect=1.2), flip='both',
    ),
    optim=dict(lr=1e-4, weight_decay=0.05, layer_decay=0.75, warmup='1000 steps'),
    evals=dict(test=dict(name='damage', split='test', every='20%', batch_size=8, image_size=1022)),
  )  # fmt: skip
