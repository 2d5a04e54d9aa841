r"""MAE: B/16, L/16 and H/14 on the images of ImageNet, without their labels.

    python -m vit_jax.train --config=configs/mae.py:L/16,1600 --workdir=runs/mae_l16

He et al. 2022 (https://arxiv.org/abs/2111.06377), by facebookresearch/mae's PRETRAIN.md and
main_pretrain.py. Behind the comma are epochs, 800 or 1600. Published is what comes of 1600 and of
fine-tuning for 100 epochs (B) or 50: B 83.6, L 85.9, H 86.9 %; L after 800 has 85.5 %. A linear
layer on the frozen class token has 68.0, 75.8 and 76.6 %. By our plan 1600 epochs take 25 hours
of B on 16 chips of TPU v5e, and 25 of L on 32 (docs/how-to/recipes.md).

Three quarters of the patches are hidden; the loss is of their pixels without mean and contrast of
each patch. --config.task.target=pixels is what is nicer to look at. The learning rate is 1.5e-4 for
each 256 images of a batch. What has two axes is decayed, the class token and the mask token too, as
timm 0.3.2 knows no exceptions.

Where this differs: what the decoder adds to the class token is learned, and not decayed; theirs is
0. The bias in front of the decoder begins as PyTorch makes that of a convolution, theirs at 0.
Permutations are gone through to their end, where there the last incomplete batch is left out.
Activations are bfloat16, theirs float16 by autocast.
"""

from vit_jax.config import IMAGENET, chosen, complete, torchvision

RECIPES = {
  f'{variant},{epochs}': (variant, epochs)
  for variant in ('B/16', 'L/16', 'H/14') for epochs in (800, 1600)
}  # fmt: skip
BATCH = 4096


def get_config(argument='L/16,1600'):
  variant, epochs = chosen(argument, RECIPES)
  own: dict = dict(initial='mae')
  own |= dict(remat='names') if variant == 'H/14' else dict(scan=False)
  return complete(dict(
    total=f'{epochs} epochs',
    batch_size=BATCH,
    model=dict(
      name='mae', decoder=own,
      encoder=dict(variant=variant, mlp='gelu', posemb='sincos_mae', dtype='bfloat16', **own),
    ),
    task=dict(name='masked', ratio=0.75, target='normalized', **IMAGENET),
    data=torchvision('imagenet2012', least=0.2),
    optim=dict(
      lr=1.5e-4 * BATCH / 256, b2=0.95, weight_decay=0.05, clip=0.0, warmup='40 epochs',
      lr_first=0.0, decay=(('.*kernel|encoder/token|decoder/mask_token', 1.0), ('.*', 0.0)),
    ),
    evals=dict(test=dict(
      name='reconstruction', split='validation', every='5%',
      crop=dict(name='center', method='bicubic'),
    )),
  ))  # fmt: skip
