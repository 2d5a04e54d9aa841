r"""The published recipes of three large ViTs, for TPU pods: G/14, So400m/14 and 22B/14.

    python -m vit_jax.train --config=configs/pretraining.py:G/14 --workdir=runs/G14
    python -m vit_jax.train --config=configs/pretraining.py:22B/14,my_images --workdir=runs/22B

- G/14: Zhai et al. 2022 (https://arxiv.org/abs/2106.04560) in the configuration that its authors
  published, big_vision's scaling_laws/train_vit_g.py: 16 billion images.
- So400m/14: the same for the shape of Alabdulmohsin et al. 2023 (https://arxiv.org/abs/2305.13035),
  which is trained on 40 billion images and so takes about as much compute as their g/14.
- 22B/14: Dehghani et al. 2023 (https://arxiv.org/abs/2302.05442), section 4.1.

G/14 is read from its authors' file. Of the others, the number of images of So400m/14, and batch,
steps, learning rate and cooldown of 22B/14 were written from memory: compare them with the papers
before you pay for them.

Behind the comma is a data set of TFDS, as in configs/tfds.py; ImageNet-21k if there is none. Where
this differs from the papers: they train on JFT, billions of images that are not public, with
several labels each, by the sigmoid cross-entropy of every class and with the head's bias starting
at -10. Here an image has one label, and the loss is softmax cross-entropy; for images with several
labels use --config.task.name=multilabel. With fewer images set --config.total.

Each fits one slice, v5e:16x16 (G/14 and So400m/14) or v5p:8x8x16 (22B/14), and several of them: the
state is cut over 64 chips, -1 is whatever that leaves. experiments/benchmarks has their plans.
"""

from vit_jax.config import complete

RECIPES = {
  'G/14': dict(
    total='1000000 steps', batch_size=16_384, lr=8e-4, cooldown='50000 steps', remat='full'
  ),
  'So400m/14': dict(
    total='40e9 examples', batch_size=16_384, lr=8e-4, cooldown='50000 steps', remat='names'
  ),
  '22B/14': dict(
    total='177000 steps', batch_size=65_536, lr=1e-3, cooldown='30000 steps', remat='attn,hidden'
  ),
}


def get_config(argument='G/14'):
  variant, _, dataset = argument.partition(',')
  if variant not in RECIPES:
    raise ValueError(f'unknown recipe {variant!r}: choose from {", ".join(RECIPES)}')
  recipe = RECIPES[variant]
  return complete(dict(
    total=recipe['total'],
    batch_size=recipe['batch_size'],
    mesh='-1x64x1',
    model=dict(variant=variant, pool='map', dtype='bfloat16', remat=recipe['remat']),
    task=dict(name='classification', mean=(0.5,), std=(0.5,)),
    data=dict(
      source=dict(name='tfds', dataset=dataset or 'imagenet21k'), split='train[51200:]',
      crop=dict(name='random_resized', min_area=0.05), flip='horizontal',
    ),
    # The head is decayed a hundred times as much as the body.
    optim=dict(
      name='adafactor', lr=recipe['lr'], weight_decay=0.03, schedule='rsqrt',
      warmup='10000 steps', cooldown=recipe['cooldown'],
      decay=(('head/kernel', 100.0), ('.*kernel', 1.0), ('.*', 0.0)),
    ),
    # A batch of training would be too large for the few chips of who evaluates elsewhere.
    evals=dict(test=dict(
      split='train[:51200]', crop=dict(name='center'), every='10000 steps', batch_size=1024,
    )),
    checkpoint=dict(every='1000 steps'),
  ))  # fmt: skip
