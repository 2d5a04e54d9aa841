r"""Small Vision Transformers without labels, on Fashion-MNIST: one method each, all else equal.

    python -m vit_jax.train --config=configs/ssl.py:mae --workdir=runs/mae
    python -m vit_jax.train --config=configs/ssl.py:dino --workdir=runs/dino

- colours: masked patch prediction, of the mean colour (Dosovitskiy et al. 2021, appendix B.1.2)
- simmim: pixels of hidden patches from all places (Xie et al. 2022)
- mae: a masked autoencoder (He et al. 2022)
- dino: self-distillation (Caron et al. 2021)
- ibot: the same, of hidden patches too (Zhou et al. 2022)
- dinov2: with heads of their own and KoLeo (Oquab et al. 2024)
- collapse: dino without a centre, which is there to fail

Published recipes of these are in files of their own. Nearest neighbours judge the encoder on the
way; `python -m experiments.ssl` compares them.
"""

from vit_jax.config import chosen, complete

MEAN, STD = (0.286,), (0.353,)
# Patches of 4 pixels: 49 tokens.
ENCODER = dict(
  variant='mu/4', image_size=(28, 28), in_channels=1, width=64, depth=4, mlp_dim=256, num_heads=4,
  scan=False, class_token=True,
)  # fmt: skip


def masked(model='masked', encoder=None, **task):
  """What fills in patches."""
  sections = dict(decoder=dict(width=64, depth=1, num_heads=4)) if model == 'mae' else {}
  return dict(
    model=dict(name=model, encoder={**ENCODER, **(encoder or {})}, **sections),
    task=dict(name='masked', mean=MEAN, std=STD, **task),
    data=dict(),
    optim=dict(lr=1.5e-3, weight_decay=0.05, b2=0.95, clip=0.0),
    evals=dict(test=dict(name='reconstruction', split='test', every='20%')),
  )


def distilled(model=None, **task):
  """What follows a teacher of its own."""
  return dict(
    model=dict(
      name='dino', prototypes=512, hidden=256, bottleneck=64, encoder={**ENCODER, 'drop_path': 0.1},
      **(model or {}),
    ),
    task=dict(
      name='dino', mean=MEAN, std=STD, local=4, local_size=12, local_area=(0.1, 0.4),
      momentum='0.99->1 cosine', last_layer='0 until 5% then 1',
      **{'centering': 'sinkhorn', **task},
    ),
    data=dict(
      crop=dict(name='random_resized', min_area=0.4), colour=dict(name='jitter', saturation=0.0)
    ),
    optim=dict(lr=1e-3, weight_decay='0.04->0.2 cosine', clip=3.0),
    evals=dict(),
  )  # fmt: skip


METHODS = {
  'colours': masked(ratio=0.5, target='colours', swapped=0.1, left=0.1),
  'simmim': masked(ratio=0.6, target='pixels', loss_of='l1'),
  'mae': masked('mae', dict(posemb='sincos_mae'), ratio=0.75, target='normalized'),
  'dino': distilled(),
  'ibot': distilled(dict(patch_head='shared')),
  'dinov2': distilled(dict(patch_head='separate', scaled=True), koleo=0.1),
  'collapse': distilled(centering='none'),
}


def get_config(argument='mae'):
  method = chosen(argument, METHODS)
  return complete(dict(
    total='20 epochs', batch_size=256, model=method['model'], task=method['task'],
    data=dict(
      source=dict(
        name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
      ),
      split='train', flip='horizontal', **method['data'],
    ),
    optim=dict(warmup='10%', **method['optim']),
    evals=dict(
      knn=dict(name='knn', split='test', train='train[:5000]', features='class+mean', every='20%'),
      **method['evals'],
    ),
  ))  # fmt: skip
