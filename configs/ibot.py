r"""iBOT: S/16 and B/16 on the images of ImageNet, without their labels.

    python -m vit_jax.train --config=configs/ibot.py:S/16,800 --workdir=runs/ibot_s16
    python -m vit_jax.probe runs/ibot_s16 configs/ibot.py:S/16,800 --train=train \
      --test=validation --features=class --methods=knn

Zhou et al. 2022 (https://arxiv.org/abs/2111.07832), by bytedance/ibot's README.md, main_ibot.py and
the arguments of the models that were released, with blocks. Nearest neighbours, a linear layer and
fine-tuning find 75.2, 77.9 and 82.3 % after 800 epochs of S/16, and 77.1, 79.5 and 84.0 % after 400
of B/16. By our plan the latter takes 29 hours on 32 chips of TPU v5e (docs/how-to/recipes.md).

It is DINO, and the student says of patches that it does not see what the teacher does. On the way
neighbours are looked for among a tenth of the training images. The learning rate is 5e-4, of B
7.5e-4, for each 256 images of a batch; the paper says that these are 1,024. What has two axes is
decayed, tokens and positions too.

Where this differs: the centre of patches moves by those that are hidden, theirs by all. Rates and
temperatures follow the step, where the temperature of the teacher is of the epoch, and reaches its
last value one epoch earlier. Prototypes that are kept where they are gather moments there, of which
PyTorch knows nothing. Permutations are gone through to their end, where there the last incomplete
batch is left out. Activations are bfloat16, theirs float16 by autocast.
"""

from vit_jax.config import chosen, complete, multicrop

BATCH = 1024
# Learning rate of 256 images, and the last one; largest gradient of a parameter; epochs in which
# the teacher warms up, and without learning prototypes; whether these have lengths; area between
# large and small views.
RECIPES = {
  'S/16,800': (5e-4, 1e-6, 3.0, 30, 1, True, 0.25),
  'B/16,400': (7.5e-4, 2e-6, 0.3, 50, 3, False, 0.32),
}


def get_config(argument='S/16,800'):
  lr, last, clip, warm, kept, scaled, apart = chosen(argument, RECIPES)
  variant, epochs = argument.split(',')
  views = multicrop('imagenet2012', apart=apart, local=10)
  lengths = '|head/scale' if scaled else ''
  return complete(dict(
    total=f'{epochs} epochs',
    batch_size=BATCH,
    model=dict(
      name='dino', prototypes=8192, patch_head='shared', scaled=scaled,
      encoder=dict(
        variant=f'deit:{variant}', interpolation='bicubic_offset', drop_path=0.1, initial='deit',
        dtype='bfloat16', remat='names',
      ),
    ),
    task=dict(
      **views.pop('task'), momentum='0.996->1 cosine', masked=0.5, ratio=(0.1, 0.5), smallest=16,
      temperature=f'0.04->0.07 linear {warm} epochs', last_layer=f'0 until {kept} epochs then 1',
    ),
    optim=dict(
      lr=lr * BATCH / 256, lr_first=0.0, lr_last=last, warmup='10 epochs',
      weight_decay='0.04->0.4 cosine', clip=clip, clip_by='parameter',
      decay=((f'.*kernel|encoder/(token|mask_token|posemb){lengths}', 1.0), ('.*', 0.0)),
    ),
    **views,
  ))  # fmt: skip
