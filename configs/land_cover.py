r"""What covers the land, pixel by pixel, from any bands: water, woods, fields, roads, buildings.

Land is drawn, as Sentinel-2 would see it in four bands: light, haze, season, the sensor and clouds
differ from picture to picture.

    python -m vit_jax.train --config=configs/land_cover.py --workdir=runs/land_cover

Made for ten minutes on two CPU cores, and not measured yet; `python -m experiments.gallery
land_cover` does that, beside its controls.

Tiles of your own, GeoTIFF or any other images, in {split}/images beside {split}/maps, normalised by
what is measured in the training data; BACKBONE is any checkpoint of RGB images:

    python -m vit_jax.train --config=configs/land_cover.py:tiles --workdir=runs/tiles \
        --config.data.source.names.map=water,wood,field --config.model.encoder.in_channels=6 \
        --config.inits.encoder=BACKBONE
"""

from vit_jax.config import complete

BANDS = ('blue', 'green', 'red', 'nir')


def get_config(folder=''):
  return complete(tiles(folder) if folder else quick())


def quick():
  generator = dict(name='terrain', size=(48, 48), bands=BANDS, dtype='uint16')
  encoder = dict(
    variant='mu/4', image_size=(48, 48), in_channels=4, width=64, depth=4, mlp_dim=256,
    num_heads=4, posemb='sincos',
  )  # fmt: skip
  # Of reflectances: a share of 65,535, in ten-thousandths.
  mean, std = ((value,) * 4 for value in (0.02, 0.02))
  return dict(
    total='4000 steps',
    batch_size=32,
    model=dict(name='segmenter', encoder=encoder),
    task=dict(name='segmentation', mean=mean, std=std),
    data=dict(
      source=dict(name='generated', examples=8000, generator=generator), cache=True, flip='both'
    ),
    optim=dict(name='muon', lr=3e-3, weight_decay=0.05, warmup='5%'),
    evals=dict(test=dict(name='segmentation', split='test', every='25%', batch_size=100)),
  )


def tiles(folder):
  """Of any size; random crops of half the tile at least."""
  return dict(
    total='5000 steps',
    batch_size=16,
    model=dict(name='segmenter', encoder=dict(variant='S/16', image_size=(224, 224))),
    task=dict(name='segmentation', measure=True),
    data=dict(
      source=dict(name='paired', dir=folder),
      crop=dict(name='random_resized', min_area=0.25, max_aspect=1.2), flip='both',
    ),
    optim=dict(lr=3e-4, weight_decay=0.05, layer_decay=0.8, warmup='5%'),
    evals=dict(test=dict(name='segmentation', split='test', every='10%')),
  )  # fmt: skip
