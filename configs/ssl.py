r"""Small Vision Transformers without labels: one method each, on the same encoder.

    python -m vit_jax.train --config=configs/ssl.py:mae --workdir=runs/mae
    python -m vit_jax.train --config=configs/ssl.py:dino --workdir=runs/dino

- colours: masked patch prediction, of the mean colour (Dosovitskiy et al. 2021, appendix B.1.2)
- simmim: pixels of hidden patches from all places (Xie et al. 2022)
- mae: a masked autoencoder (He et al. 2022)
- dino: self-distillation (Caron et al. 2021)
- ibot: the same, of hidden patches too (Zhou et al. 2022)
- dinov2: with heads of their own and KoLeo (Oquab et al. 2024)
- collapse: dino without a centre, which is there to fail

On Fashion-MNIST, minutes on a CPU. Behind a comma the same methods on Imagenette, ten classes of
ImageNet (https://github.com/fastai/imagenette): a ViT-S/16 at 224 pixels for 200 epochs, which one
GPU trains in hours; none of these has been run at its size by us. `labels` is the same encoder with
labels, from scratch or, with --config.init, fine-tuned.

    python -m vit_jax.train --config=configs/ssl.py:mae,imagenette --workdir=runs/mae_imagenette \
      --config.data.source.dir=DIR

DIR is imagenette2-320, with train/ and val/. Of TFDS:

      --config.data.source.name=tfds --config.data.source.dataset=imagenette/320px-v2 \
      --config.evals.knn.split=validation --config.evals.test.split=validation

Published recipes of these are in files of their own. Nearest neighbours judge the encoder on the
way; `python -m experiments.ssl.compare` compares the small ones, and
`python -m experiments.reproduce.imagenette_ssl` those of Imagenette.
"""

from vit_jax.config import IMAGENET, chosen, complete

# What a method is, whatever it learns from: how it is trained, fields of its model and of its task.
METHODS: dict[str, tuple[str, dict, dict]] = {
  'colours': ('masked', {}, dict(ratio=0.5, target='colours', swapped=0.1, left=0.1)),
  'simmim': ('masked', {}, dict(ratio=0.6, target='pixels', loss_of='l1')),
  'mae': ('mae', {}, dict(ratio=0.75, target='normalized')),
  'dino': ('dino', {}, {}),
  'ibot': ('dino', dict(patch_head='shared'), {}),
  'dinov2': (
    'dino', dict(patch_head='separate', scaled=True), dict(koleo=0.1, centering='sinkhorn')
  ),
  'collapse': ('dino', {}, dict(centering='none')),
}  # fmt: skip
LARGE = ',imagenette'
# Of 224 pixels: the side of what SimMIM hides, and iBOT's smallest block.
OF_LARGE = {'simmim': dict(unit=32), 'ibot': dict(smallest=16)}
RECIPES = [*METHODS, 'labels', *(f'{name}{LARGE}' for name in (*METHODS, 'labels'))]


def small(kind):
  """Everything about Fashion-MNIST: 49 tokens of patches of 4 pixels, ten minutes on two cores."""
  encoder: dict = dict(
    variant='mu/4', image_size=(28, 28), in_channels=1, width=64, depth=4, mlp_dim=256,
    num_heads=4, scan=False, class_token=True,
  )  # fmt: skip
  made: dict = dict(
    total='8 epochs', batch_size=256, model=dict(encoder=encoder),
    task=dict(mean=(0.286,), std=(0.353,)),
    data=dict(
      source=dict(
        name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
      ),
      split='train', flip='horizontal',
    ),
    optim=dict(warmup='10%'),
    evals=dict(
      knn=dict(name='knn', split='test', train='train[:5000]', features='class+mean', every='20%')
    ),
  )  # fmt: skip
  if kind == 'mae':
    made |= dict(total='10 epochs')
    made['model'] |= dict(decoder=dict(width=64, depth=1, num_heads=4))
  if kind == 'dino':
    # The teacher and every view cost: large ones are of 20 pixels, 25 tokens.
    encoder |= dict(image_size=(20, 20), drop_path=0.1)
    made |= dict(total='4 epochs', batch_size=128)
    made['model'] |= dict(prototypes=512, hidden=256, bottleneck=64)
    made['task'] |= dict(
      local=2, local_size=12, local_area=(0.1, 0.4), momentum='0.99->1 cosine',
      last_layer='0 until 5% then 1', centering='sinkhorn',
    )  # fmt: skip
    made['data'] |= dict(
      crop=dict(name='random_resized', min_area=0.4), colour=dict(name='jitter', saturation=0.0)
    )
    made['optim'] |= dict(lr=1e-3, weight_decay=0.04, clip=3.0)
  elif kind == 'labels':
    made |= dict(total='20 epochs', model=dict(encoder, posemb='sincos_mae', pool='mean'))
    made['optim'] |= dict(lr=1e-3, weight_decay=0.05)
    made['evals'] = dict(test=dict(name='classification', split='test', every='100%'))
  else:
    made['optim'] |= dict(lr=1.5e-3, weight_decay=0.05, b2=0.95, clip=0.0)
    made['evals'] |= dict(test=dict(name='reconstruction', split='test', every='20%'))
  return made


def large(kind):
  """Everything about Imagenette, the same for all but what makes the method.

  Of the papers are crops, colours, decay, clipping and schedules. Fewer images have fewer
  prototypes than 65,536, and the decoder is half as wide as the encoder, as in the paper for L/16.
  """
  view = dict(crop=dict(name='center', method='bicubic'), split='val', every='10%')
  encoder: dict = dict(
    variant='S/16', mlp='gelu', class_token=True, dtype='bfloat16', remat='names'
  )
  crop: dict = dict(name='random_resized', dialect='torchvision', method='bicubic', min_area=0.2)
  made: dict = dict(
    total='200 epochs', batch_size=256, model=dict(encoder=encoder), task=dict(IMAGENET),
    data=dict(
      source=dict(name='folder', dir='data/imagenette2-320'), split='train', flip='horizontal',
      crop=crop, cache=True,
    ),
    optim=dict(lr=5e-4, weight_decay=0.05, warmup='10%'),
    evals=dict(knn=dict(name='knn', train='train', features='class+mean', **view)),
  )  # fmt: skip
  if kind == 'dino':
    encoder |= dict(drop_path=0.1, remat='full')  # ten views: 16 GiB are enough
    crop['min_area'] = 0.4
    made['model'] |= dict(prototypes=8192)
    made['task'] |= dict(
      local=8, local_size=96, local_area=(0.05, 0.4), blur=(1.0, 0.1, 0.5),
      solarize=(0.0, 0.2, 0.0), momentum='0.996->1 cosine', temperature='0.04->0.07 linear 15%',
      last_layer='0 until 1% then 1',
    )  # fmt: skip
    made['data'] |= dict(colour=dict(name='jitter', saturation=0.2, hue=0.1, prob=0.8, grey=0.2))
    made['optim'] |= dict(
      weight_decay='0.04->0.4 cosine', clip=3.0, clip_by='parameter', lr_last=1e-6
    )
  elif kind == 'labels':
    made['model'] = dict(encoder, drop_path=0.1)
    crop['min_area'] = 0.08
    made['task'] |= dict(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    made['data'] |= dict(
      colour=dict(name='randaugment', dialect='timm', magnitude=9.0),
      erase=dict(name='random', prob=0.25, mode='pixel'),
    )
    made['evals'] |= dict(test=dict(name='classification', **view))
  else:
    if kind == 'mae':
      made['model'] |= dict(decoder=dict(width=192, depth=8, num_heads=6))
    made['optim'] |= dict(b2=0.95, clip=0.0)
    made['evals'] |= dict(test=dict(name='reconstruction', **view))
  return made


def get_config(argument='mae'):
  chosen(argument, dict.fromkeys(RECIPES))
  name, *where = argument.split(',')
  kind, model, task = METHODS.get(name, ('labels', {}, {}))
  made = (large if where else small)(kind)
  if kind == 'labels':
    return complete(made)
  if kind == 'mae':
    made['model']['encoder']['posemb'] = 'sincos_mae'
  if where:
    task = dict(task, **OF_LARGE.get(name, {}))
    if name == 'simmim':
      made['data']['crop']['min_area'] = 0.67
  made['model'] |= dict(model, name=kind)
  made['task'] |= dict(task, name='dino' if kind == 'dino' else 'masked')
  return complete(made)
