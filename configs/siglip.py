r"""SigLIP: images and texts of the web, a sigmoid for each pair.

    python -m vit_jax.train --config=configs/siglip.py:B/16 --workdir=runs/siglip_b16 \
      --config.data.source.shards='pairs/{00000..41407}.tar' \
      --config.task.tokenizer.file=spiece.model

Zhai et al. 2023 (https://arxiv.org/abs/2303.15343) and big_vision's
trainers/proj/image_text/siglip.py: batches of 32,768 of WebLI, which is not public; 40 billion
pairs for the published checkpoints, of which B/16 at 224 pixels has 76.2 % of ImageNet by names
and So400m/14 at 384 pixels 83.2 % (SigLIP 2, Tschannen et al. 2025, table 1).

Behind a comma a directory of ImageNet's validation images by class, which are then judged on the
way. Where this differs: the loss goes around the devices in blocks, as in the paper and not in its
code; texts of a batch that are the same count for neither side. 10,000 steps of warmup are ours.
"""

from vit_jax.config import by_names, chosen, complete

RECIPES = {'B/16': 40_000_000_000, 'So400m/14': 40_000_000_000}
BATCH = 32_768


def get_config(argument='B/16'):
  size, _, folder = argument.partition(',')
  pairs = chosen(size, RECIPES)
  tower = dict(dtype='bfloat16', remat='names')
  whole = dict(name='resize', method='bilinear')
  return complete(dict(
    total=f'{pairs // BATCH} steps',
    batch_size=BATCH,
    model=dict(name='two_towers', variant=f'siglip:{size}', image=tower, text=tower),
    task=dict(
      name='contrastive', loss_of='sigmoid', form='ring', tokenizer=dict(name='siglip')
    ),
    data=dict(source=dict(name='tar', shards='pairs/{00000..41407}.tar'), crop=whole),
    optim=dict(
      lr=1e-3, weight_decay=1e-4, b2=0.95, clip=1.0, warmup='10000 steps', mu_dtype='bfloat16'
    ),
    evals=by_names(folder, whole),
  ))  # fmt: skip
