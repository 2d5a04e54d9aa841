r"""DeiT: Ti/16, S/16 and B/16 on ImageNet alone, and B/16 fine-tuned at 384 px.

    python -m vit_jax.train --config=configs/deit.py:S/16 --workdir=runs/deit_s16
    python -m vit_jax.train --config=configs/deit.py:B/16,384 --workdir=runs/deit_b16_384 \
      --config.init=runs/deit_b16 --config.model.image_size=384

Touvron et al. 2021 (https://arxiv.org/abs/2012.12877), by facebookresearch/deit's main.py and
README_deit.md: Ti 72.2, S 79.9, B 81.8 %, B at 384 px 82.9 %. deit3-jax has 73.1, 79.7 and 81.5 %
in 2.7, 2.7 and 4.7 hours on 32 chips of TPU v4, with less stochastic depth.

The learning rate is 5e-4 for each 512 images of a batch. Its main.py never trains the 10 epochs at
the lowest rate that it asks timm for, and evaluates the parameters themselves, not the average
that it keeps; to evaluate that: --config.optim.ema=0.99996 --config.optim.ema_warmup=false. When
it fine-tunes, the model is in evaluation mode: nothing is dropped.

Where this differs: the rate follows the step, not the epoch, in which it lags by one. What is
mixed is drawn for the whole batch, not on each GPU. Permutations are gone through to their end,
where there each epoch sees a third of a new one. Kernels begin as in the original ViT (Xavier
uniform, and zeros for the head), not as normal noise of 0.02. Activations are bfloat16.
"""

from vit_jax.config import IMAGENET, chosen, complete, timm

RECIPES = {name: name for name in ('Ti/16', 'S/16', 'B/16', 'B/16,384')}
FIRST, LAST = 1e-6, 1e-5  # learning rates


def get_config(argument='S/16'):
  variant, _, size = chosen(argument, RECIPES).partition(',')
  tuned = bool(size)
  optim = dict(lr=1e-3, lr_last=LAST, weight_decay=0.05)
  if tuned:  # at a constant rate
    optim = dict(lr=5e-6, lr_last=5e-6, weight_decay=1e-8)
  return complete(dict(
    **timm(
      'imagenet2012', fraction=0.875, erase=0.25, repeats=3,
      colour=dict(name='randaugment', dialect='timm', magnitude=9.0),
    ),
    init='deit_base_patch16_224-b5f2ef4d.pth' if tuned else '',
    total='30 epochs' if tuned else '300 epochs',
    batch_size=512 if tuned else 1024,
    model=dict(
      variant=f'deit:{variant}', drop_path=0.0 if tuned else 0.1, dtype='bfloat16', remat='names',
      **(dict(image_size=(384, 384)) if tuned else {}),
    ),
    task=dict(label_smoothing=0.1, mixup=0.8, cutmix=1.0, **IMAGENET),
    optim=dict(
      clip=0.0, eps=1e-8, warmup='5 epochs', lr_first=FIRST, fall_from='start', **optim
    ),
  ))  # fmt: skip
