r"""LiT: a text tower learns to read what a locked image tower sees.

    python -m vit_jax.train --config=configs/lit.py:B/16 --workdir=runs/lit_b16 \
      --config.inits.image=B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz \
      --config.data.source.shards='pairs/{00000..01242}.tar' \
      --config.task.tokenizer.file=bpe_simple_vocab_16e6.txt.gz

Zhai et al. 2022 (https://arxiv.org/abs/2111.07991), with an image tower of AugReg and a text tower
from random weights, on public pairs such as CC12M and YFCC100M. big_vision's README_lit.md has
73.9 % of ImageNet by names for B16B_2 and 75.7 % for L16L. The image tower has no gradient and no
optimizer state, and its features are those of the class token without a head.

Behind a comma a directory of ImageNet's validation images by class, which are then judged on the
way. Where this differs: CLIP's text tower and vocabulary; AdamW where theirs is a modified
Adafactor. 901 million pairs are ours.
"""

from vit_jax.config import by_names, chosen, complete

RECIPES = {'B/16': ('B', 16_384, 55_000), 'L/16': ('L', 16_384, 55_000)}


def get_config(argument='B/16'):
  size, _, folder = argument.partition(',')
  text, batch, steps = chosen(size, RECIPES)
  tower = dict(dtype='bfloat16', remat='names')
  view = dict(name='resize', method='bicubic')
  return complete(dict(
    total=f'{steps} steps',
    batch_size=batch,
    model=dict(
      name='two_towers', variant='', logit_bias=False, image=dict(variant=size, **tower),
      text=dict(variant=f'clip:{text}', **tower),
    ),
    task=dict(
      name='contrastive', tokenizer=dict(name='clip'), frozen=('image/.*',),
      frozen_dtype='bfloat16',
    ),
    data=dict(
      source=dict(name='tar', shards='pairs/{00000..01242}.tar'),
      crop=dict(name='random_resized', method='bicubic', min_area=0.5), flip='horizontal',
    ),
    optim=dict(lr=1e-3, weight_decay=1e-4, clip=1.0, warmup='10000 steps', b2=0.95),
    evals=by_names(folder, view),
  ))  # fmt: skip
