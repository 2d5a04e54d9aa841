r"""What has changed from one picture of a place to the next.

Land is drawn at two dates, between which houses are built or pulled down, woods cut, and water
rises or falls; light, haze, season and crops differ all the same.

    python -m vit_jax.train --config=configs/change.py --workdir=runs/change

Made for ten minutes on two CPU cores, and not measured yet; `python -m experiments.gallery
change` does that, beside its controls.

LEVIR-CD (Chen & Shi 2020), {train,val,test}/{A,B,label}, in crops of 256 pixels of its pictures of
1024, from a DINOv2 ViT-B/14. F1 of the test set: 89.3 of BIT (Chen et al. 2021) in tiles of 256,
90.4 of ChangeFormer (Bandara & Patel 2022):

    python -m vit_jax.train --config=configs/change.py:LEVIR-CD --workdir=runs/levir \
        --config.inits.encoder=dinov2_vitb14_pretrain.pth
"""

from vit_jax.config import complete


def get_config(folder=''):
  return complete(levir(folder) if folder else quick())


def quick():
  generator = dict(name='terrain', of='change', size=(48, 48))
  encoder = dict(
    variant='mu/6', image_size=(48, 48), width=64, depth=4, mlp_dim=256, num_heads=4,
    posemb='sincos',
  )  # fmt: skip
  return dict(
    total='3000 steps',
    batch_size=32,
    model=dict(name='change', detail=6, encoder=encoder),
    task=dict(name='change', swap=True, mean=(0.3,), std=(0.22,)),
    data=dict(
      source=dict(name='generated', examples=8000, generator=generator), cache=True, flip='both'
    ),
    optim=dict(name='muon', lr=3e-3, weight_decay=0.05, warmup='5%'),
    evals=dict(test=dict(name='change', split='test', every='25%', batch_size=100)),
  )


def levir(folder):
  """Labels are 0 and 255."""
  fields = dict(before='image: {split}/A', after='image: {split}/B', map='{split}/label')
  return dict(
    total='20000 steps',
    batch_size=16,
    model=dict(name='change', detail=2, encoder=dict(variant='dinov2:B/14', image_size=(252, 252))),
    task=dict(name='change', swap=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    data=dict(
      source=dict(name='paired', dir=folder, fields=fields, names=dict(map='unchanged,changed')),
      crop=dict(name='random_resized', min_area=0.05, max_area=0.08, max_aspect=1.2), flip='both',
    ),
    optim=dict(lr=1e-4, weight_decay=0.05, layer_decay=0.75, warmup='1000 steps'),
    # Of whole pictures, at their own size: protocols that cut them into tiles give other numbers.
    evals=dict(test=dict(name='change', split='test', every='20%', batch_size=8, image_size=1022)),
  )  # fmt: skip
