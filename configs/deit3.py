r"""DeiT III: S/16, B/16, L/16 and H/14 on ImageNet, on ImageNet-21k, and fine-tuned.

    python -m vit_jax.train --config=configs/deit3.py:S/16,800 --workdir=runs/deit3_s16
    python -m vit_jax.train --config=configs/deit3.py:B/16,800 --workdir=runs/deit3_b16
    python -m vit_jax.train --config=configs/deit3.py:B/16,224 --workdir=runs/deit3_b16_224 \
      --config.init=runs/deit3_b16 --config.model.image_size=224

Touvron et al. 2022 (https://arxiv.org/abs/2204.07118), by facebookresearch/deit's
README_revenge.md. What is behind the comma, and what comes out:

- 800 or 400 epochs on ImageNet: S at 224 px 81.4 and 80.4 %; B, L and H at less, to be followed by
- 224, 20 epochs at 224 px: B 83.8 and 83.5, L 84.9 and 84.5, H 85.2 and 85.1 %;
- 384, 20 epochs at 384 px: S 83.4, B 85.0, L 85.8 %;
- 21k, 240 epochs on ImageNet-21k (H 90), to be followed by
- 21k-1k, 50 epochs on ImageNet at 224 px: S 83.1, B 85.7, L 87.0, H 87.2 %.

deit3-jax has, on 32 chips of TPU v4, 81.44 % for S and 83.91 % for B in 5.3 and 9.5 hours.

The learning rate of LAMB does not depend on the batch. Of 400 epochs nothing is published but the
accuracy: weight decay and stochastic depth are those by which the authors of RoPE-ViT say to have
trained the same (https://github.com/naver-ai/rope-vit, issue 21), of H that of deit3-jax.

Where this differs: H/14 sees 154 and 126 px, not 160 and 128, of which its patches cover as much.
The rate follows the step, not the epoch, in which it lags by one. What is mixed is drawn for the
whole batch, not on each GPU. Activations are bfloat16. ImageNet-21k is not in TFDS:
--config.data.source names another source.
"""

from vit_jax.config import IMAGENET, chosen, complete, timm

# Learning rate, side of the images, rates of stochastic depth for 800 and 400 epochs.
ALONE = {
  'S/16': (4e-3, 224, 0.05, 0.0), 'B/16': (3e-3, 192, 0.2, 0.1), 'L/16': (3e-3, 192, 0.45, 0.4),
  'H/14': (3e-3, 154, 0.6, 0.5),
}  # fmt: skip
# Rates of stochastic depth.
TUNED = {
  '224': {'B/16': 0.2, 'L/16': 0.45, 'H/14': 0.55}, '384': {'S/16': 0.0, 'B/16': 0.15, 'L/16': 0.4},
  '21k': {'S/16': 0.05, 'B/16': 0.1, 'L/16': 0.3, 'H/14': 0.5},
  '21k-1k': {'S/16': 0.05, 'B/16': 0.15, 'L/16': 0.4, 'H/14': 0.45},
}  # fmt: skip
RECIPES = {
  **{f'{v},{epochs}': epochs for v in ALONE for epochs in ('800', '400')},
  **{f'{v},{name}': name for name, rates in TUNED.items() for v in rates},
}  # fmt: skip
THREE = dict(name='three_augment', jitter=0.3)
NAMES = {'S/16': 'small', 'B/16': 'base', 'L/16': 'large', 'H/14': 'huge'}
LAMB = dict(name='lamb', eps=1e-8, clip=1.0)


def get_config(argument='S/16,800'):
  name, variant = chosen(argument, RECIPES), argument.split(',')[0]
  init, dataset, simple, repeats, colour = '', 'imagenet2012', False, 1, THREE
  task: dict = dict(label_smoothing=0.1, cutmix=1.0)
  if name in ('800', '400'):
    lr, side, *rates = ALONE[variant]
    total, batch, rate, repeats = f'{name} epochs', 2048, rates[name == '400'], 3
    task = dict(loss_of='sigmoid_mean', threshold=0.0, mixup=0.8, cutmix=1.0)
    optim = dict(**LAMB, lr=lr, weight_decay=0.05 if name == '800' else 0.03)
  elif name in ('224', '384'):
    total, batch, rate, side = '20 epochs', 512, TUNED[name][variant], int(name)
    init = f'deit_3_{NAMES[variant]}.pth'
    colour = dict(name='randaugment', dialect='timm', magnitude=9.0)
    task |= dict(mixup=0.8)
    optim = dict(name='adamw', eps=1e-8, clip=0.0, lr=1e-5, weight_decay=0.1)
  else:
    again = name == '21k-1k'
    rate, batch, simple, huge = TUNED[name][variant], 2048, True, variant == 'H/14'
    total = '50 epochs' if again else '90 epochs' if huge else '240 epochs'
    init = f'deit_3_{NAMES[variant]}_21k.pth' if again else ''
    side = 126 if huge and not again else 224
    dataset = 'imagenet2012' if again else 'imagenet21k'
    optim = dict(**LAMB, lr=3e-4 if again else 1e-3, weight_decay=0.02)
  return complete(dict(
    **timm(dataset, fraction=1.0, colour=colour, simple=simple, repeats=repeats),
    init=init,
    total=total,
    batch_size=batch,
    model=dict(
      variant=f'deit3:{variant}', image_size=(side, side), layerscale=1e-4, drop_path=rate,
      drop_path_mode='constant', initial='deit', dtype='bfloat16', remat='names',
    ),
    task=dict(**task, **IMAGENET),
    optim=dict(
      **optim, warmup='5 epochs', lr_first=1e-6, lr_last=1e-5, fall_from='start'
    ),
  ))  # fmt: skip
