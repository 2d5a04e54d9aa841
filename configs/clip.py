r"""CLIP: images and texts of the web, 400 million pairs, which of a batch belong together.

    python -m vit_jax.train --config=configs/clip.py:B/16 --workdir=runs/clip_b16 \
      --config.data.source.shards='pairs/{00000..41407}.tar' \
      --config.task.tokenizer.file=bpe_simple_vocab_16e6.txt.gz

Radford et al. 2021 (https://arxiv.org/abs/2103.00020), tables 18 to 20; ImageNet by names, with 80
templates: 63.2 % for B/32, 68.3 % for B/16, 75.5 % for L/14, on WebImageText, which is not public.
OpenCLIP has 62.9, 67.1 and 72.8 % of the 400 million public pairs of LAION.

Behind a comma a directory of ImageNet's validation images by class, which are then judged on the
way. Where this differs: activations are bfloat16, with losses and vectors in float32, where theirs
are float16; crops are those of OpenCLIP; texts of a batch that are the same count for neither side.
"""

from vit_jax.config import by_names, chosen, complete

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RECIPES = {'B/32': 5e-4, 'B/16': 5e-4, 'L/14': 4e-4}
EXAMPLES, BATCH = 400_000_000, 32_768


def get_config(argument='B/16'):
  size, _, folder = argument.partition(',')
  lr = chosen(size, RECIPES)
  tower = dict(dtype='bfloat16', remat='names')
  center = dict(name='center', method='bicubic', fraction=1.0)
  return complete(dict(
    total=f'{32 * EXAMPLES // BATCH} steps',
    batch_size=BATCH,
    model=dict(name='two_towers', variant=f'clip:{size}', image=tower, text=tower),
    task=dict(name='contrastive', tokenizer=dict(name='clip'), mean=MEAN, std=STD),
    data=dict(
      source=dict(name='tar', shards='pairs/{00000..41407}.tar'),
      crop=dict(name='random_resized', dialect='torchvision', method='bicubic', min_area=0.9),
    ),
    optim=dict(
      lr=lr, weight_decay=0.2, b2=0.98, eps=1e-6, warmup='2000 steps',
      decay=(('.*kernel|text/embed|.*posemb', 1.0), ('.*', 0.0)),
    ),
    evals=by_names(folder, center),
  ))  # fmt: skip
