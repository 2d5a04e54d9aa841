r"""Your own images: DIR/{train,test}/CLASS/*.jpg; the directories name the classes.

    python -m vit_jax.train --config=configs/image_folder.py:DIR --workdir=runs/mine

Every common format is read, and images of any number of channels, of 8 and 16 bits and of floats,
normalised by what is measured in the training data:

    python -m vit_jax.train --config=configs/image_folder.py:DIR,measured --workdir=runs/mine \
        --config.model.in_channels=6

Without DIR/test, a tenth of DIR/train can be held out:

    --config.data.split='train without fold 1/10' --config.evals.test.split='fold 1/10 of train'

A ViT-S/16 trained from scratch, which needs at least some ten thousand images. With fewer, start
from a checkpoint (--config.init=PATH), or train a smaller model for longer,
--config.model.variant=Ti/16 --config.total='300 epochs'.
"""

from vit_jax.config import complete


def get_config(argument='data/images'):
  folder = argument.removesuffix(',measured')
  normalised = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  return complete(dict(
    total='90 epochs',
    batch_size=256,
    model=dict(variant='S/16', pool='mean', posemb='sincos', dtype='bfloat16', remat='names'),
    task=dict(flip=True, mixup=0.2, **(dict(measure=True) if folder != argument else normalised)),
    data=dict(source=dict(name='folder', dir=folder), crop=dict(name='random_resized')),
    optim=dict(lr=1e-3, weight_decay=0.1, warmup='5%'),
    evals=dict(test=dict(split='test', crop=dict(name='center'), every='10%')),
  ))  # fmt: skip
