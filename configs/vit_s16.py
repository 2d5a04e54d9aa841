r"""ViT-S/16 for ImageNet alone, the baseline of big_vision: 90, 150 or 300 epochs.

    python -m vit_jax.train --config=configs/vit_s16.py:90 --workdir=runs/vit_s16

Beyer et al. 2022, "Better plain ViT baselines" (https://arxiv.org/abs/2205.01580), table 1, by
big_vision's configs/vit_s16_i1k.py: 76.5, 78.5 and 80.0 % for 90, 150 and 300 epochs, the first in
6 to 7 hours on TPU v3-8. An independent reproduction in PyTorch has 76.8, 78.8 and 79.6 %
(EIFY/mup-vit).

It trains on 99 % of the training images, as they do. Where this differs: the batch is mixed with
its mirror image and not with its neighbours, as a whole and not by device; activations are
bfloat16.
"""

from vit_jax.config import big_vision, chosen, complete

RECIPES = {epochs: f'{epochs} epochs' for epochs in ('90', '150', '300')}


def get_config(argument='90'):
  return complete(dict(
    **big_vision('imagenet2012', train='train[:99%]', randaugment=10),
    total=chosen(argument, RECIPES),
    batch_size=1024,
    model=dict(
      variant='S/16', pool='mean', posemb='sincos', representation_size=384, dtype='bfloat16',
      remat='names',
    ),
    task=dict(mixup=0.2, mean=(0.5,), std=(0.5,)),
    optim=dict(
      lr=1e-3, weight_decay=0.1, mu_dtype='bfloat16', clip=1.0, warmup='10000 steps', lr_first=0.0
    ),
  ))  # fmt: skip
