r"""DeiT: Ti/16, S/16 and B/16 on ImageNet alone, also distilled, and B/16 fine-tuned at 384 px.

    python -m vit_jax.train --config=configs/deit.py:S/16 --workdir=runs/deit_s16
    python -m vit_jax.train --config=configs/deit.py:B/16,384 --workdir=runs/deit_b16_384 \
      --config.init=runs/deit_b16 --config.model.image_size=384
    python -m vit_jax.train --config=configs/deit.py:S/16,distilled --workdir=runs/deit_s16d \
      --config.task.teacher.init=BiT-M-R152x2.npz --config.task.teacher.by_number=true

Touvron et al. 2021 (https://arxiv.org/abs/2012.12877), by facebookresearch/deit's main.py and
README_deit.md: Ti 72.2, S 79.9, B 81.8 %, B at 384 px 82.9 %. deit3-jax has 73.1, 79.7 and 81.5 %
in 2.7, 2.7 and 4.7 hours on 32 chips of TPU v4, with less stochastic depth.

Distilled, Ti 74.5, S 81.2, B 83.4 %: half of the loss is the cross-entropy of the head of a
distillation token with the likeliest class of a teacher, which sees the same mixed view; the mean
of both heads is evaluated. Their teacher is a RegNetY-16GF (82.9 %), which no model here is: a
`task.teacher.init` of your own is needed, such as a ResNet of BiT; another teacher makes another
student. B at 384 px has 85.2 %, from 1,000 epochs (--config.total='1000 epochs') and not 300;
`B/16,distilled,384` fine-tunes with a teacher, too, as the paper says, while main.py refuses that.

The learning rate is 5e-4 for each 512 images of a batch. Its main.py never trains the 10 epochs at
the lowest rate that it asks timm for, and evaluates the parameters themselves, not the average
that it keeps; to evaluate that: --config.optim.ema=0.99996 --config.optim.ema_warmup=false. When
it fine-tunes, the model is in evaluation mode: nothing is dropped. Of all tokens and positions the
distillation token alone is decayed, as timm 0.3.2 does not know it.

Where this differs: the rate follows the step, not the epoch, in which it lags by one. What is
mixed is drawn for the whole batch, not on each GPU. Permutations are gone through to their end,
where there each epoch sees a third of a new one. Activations are bfloat16.
"""

from vit_jax.config import IMAGENET, chosen, complete, timm

# Where fine-tuning begins; others begin with random weights.
RECIPES = {
  **dict.fromkeys(
    f'{size}/16{how}' for how in ('', ',distilled') for size in ('Ti', 'S', 'B')
  ),
  'B/16,384': 'deit_base_patch16_224-b5f2ef4d.pth',
  'B/16,distilled,384': 'deit_base_distilled_patch16_224-df68dfff.pth',
}  # fmt: skip
FIRST, LAST = 1e-6, 1e-5  # learning rates


def get_config(argument='S/16'):
  init, (variant, *how) = chosen(argument, RECIPES), argument.split(',')
  tuned, distilled = init is not None, 'distilled' in how
  task = dict(label_smoothing=0.1, mixup=0.8, cutmix=1.0, **IMAGENET)
  optim = dict(lr=1e-3, lr_last=LAST, weight_decay=0.05)
  if tuned:  # at a constant rate
    optim = dict(lr=5e-6, lr_last=5e-6, weight_decay=1e-8)
  if distilled:
    task |= dict(name='distillation', match='hard', alpha=0.5)
    optim |= dict(decay=(('.*kernel|distill_token', 1.0), ('.*', 0.0)))
  return complete(dict(
    **timm(
      'imagenet2012', fraction=0.875, erase=0.25, repeats=3,
      colour=dict(name='randaugment', dialect='timm', magnitude=9.0),
    ),
    init=init or '',
    total='30 epochs' if tuned else '300 epochs',
    batch_size=512 if tuned else 1024,
    model=dict(
      variant=f'deit{"-distilled" * distilled}:{variant}', drop_path=0.0 if tuned else 0.1,
      initial='deit', dtype='bfloat16', remat='names',
      **(dict(image_size=(384, 384)) if tuned else {}),
    ),
    task=task,
    optim=dict(
      clip=0.0, eps=1e-8, warmup='5 epochs', lr_first=FIRST, fall_from='start', **optim
    ),
  ))  # fmt: skip
