r"""SimMIM: B/16 on the images of ImageNet, without their labels.

    python -m vit_jax.train --config=configs/simmim.py:B/16,800 --workdir=runs/simmim_b16

Xie et al. 2022 (https://arxiv.org/abs/2111.09886), by microsoft/SimMIM's
simmim_pretrain__vit_base__img224__800ep.yaml: 83.8 % fine-tuned for 100 epochs. Their Swin
Transformers are no models here. By our plan it takes 23 hours on 16 chips of TPU v5e
(docs/how-to/recipes.md).

Squares of 32 pixels are hidden, 30 of 49, and the encoder sees a mask token there; the loss is the
absolute distance of pixels. There are no positions but a bias of attention that all layers share.
The learning rate is 1e-4 for each 512 images of a batch, and a tenth of it after 700 epochs. What
has two axes is decayed, the mask token and the bias of attention too, but for the class token.

Their code cannot read what comes of it, nor can we read theirs: fine-tune from the run itself.

Where this differs: kernels and tokens begin as normal noise of 0.02, where theirs is cut at 0.02
and, in the layers that end a branch of block i, divided by the root of 2 i; the mask token begins
at 0, the embedding of patches as PyTorch makes it, and the head Xavier uniform. Permutations are
gone through to their end, where there the last incomplete batch is left out. Activations are
bfloat16.
"""

from vit_jax.config import IMAGENET, chosen, complete, torchvision

RECIPES = {'B/16,800': 'beit:B/16'}
BATCH = 2048


def get_config(argument='B/16,800'):
  variant = chosen(argument, RECIPES)
  return complete(dict(
    total='800 epochs',
    batch_size=BATCH,
    model=dict(name='masked', encoder=dict(
      variant=variant, relative_bias='shared', pool='token', eps=1e-6, drop_path=0.1,
      initial='deit', dtype='bfloat16', scan=False,
    )),
    task=dict(
      name='masked', ratio=0.6, unit=32, target='pixels', loss_of='l1', **IMAGENET
    ),
    data=torchvision('imagenet2012', least=0.67, method='bilinear'),
    optim=dict(
      lr=1e-4 * BATCH / 512, lr_first=5e-7 * BATCH / 512, warmup='10 epochs',
      schedule='1 until 700 epochs then 0.1', weight_decay=0.05, clip=5.0,
      decay=(('.*kernel|.*/mask_token|.*/relative/table', 1.0), ('.*', 0.0)),
    ),
    evals=dict(test=dict(
      name='reconstruction', split='validation', every='5%',
      crop=dict(name='center', method='bicubic'),
    )),
  ))  # fmt: skip
