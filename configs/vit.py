r"""The original Vision Transformer: pre-training on ImageNet-21k or ImageNet, and fine-tuning.

    python -m vit_jax.train --config=configs/vit.py:B/16,21k --workdir=runs/vit_b16_21k
    python -m vit_jax.train --config=configs/vit.py:B/16,1k --workdir=runs/vit_b16_1k
    python -m vit_jax.train --config=configs/vit.py:B/16,cifar10 --workdir=runs/vit_cifar10 \
      --config.init=ViT-B_16.npz --config.model.image_size=384

Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929), tables 3 and 4, and what the authors
say of the released models (vision_transformer issues 2 and 62). Accuracy on the data themselves:
21k B/16 47.88, B/32 44.04, L/16 49.90, L/32 45.42, H/14 49.06 %; 1k B/16 74.79, B/32 69.19, L/16
72.59, L/32 66.90 %. Fine-tuned from 21k, without dropout (vision_transformer's README): B/16
CIFAR-10 99.02, CIFAR-100 92.06, ImageNet 84.53 %; B/32 98.88, 92.31, 81.66; L/16 99.13, 92.91,
84.47; L/32 99.06, 93.29, 81.89; B/16 in 2.2, 2.2 and 6.5 hours on A100s.

A checkpoint decides what is not said on the command line, so the size of the images to fine-tune
with is said there. AugReg checkpoints are fine-tuned likewise, with a learning rate of 0.03 or
0.01.

Where this differs: which parameters are decayed is not published, here the kernels are.
Activations are bfloat16.
"""

from vit_jax.config import big_vision, chosen, complete

WIDTHS = {'B/16': 768, 'B/32': 768, 'L/16': 1024, 'L/32': 1024, 'H/14': 1280}
# Data, steps, warm-up, and the part of the training images, of which the rest is for choices.
TUNED = {
  'cifar10': (10_000, 500, 'train[:98%]'), 'cifar100': (10_000, 500, 'train[:98%]'),
  'imagenet2012': (20_000, 500, 'train[:99%]'), 'oxford_iiit_pet': (500, 100, 'train[:90%]'),
  'oxford_flowers102': (500, 100, 'train[:90%]'),
}  # fmt: skip
TRAINED: dict = {
  '21k': dict(
    dataset='imagenet21k', total='90 epochs', loss_of='sigmoid_sum', head_bias=-10.0,
    optim=dict(lr=1e-3, weight_decay=0.03, clip=0.0, schedule='linear', lr_last=1e-5),
  ),
  '1k': dict(
    dataset='imagenet2012', total='300 epochs', loss_of='softmax', head_bias=0.0,
    optim=dict(lr=3e-3, weight_decay=0.3, clip=1.0, schedule='cosine'),
  ),
}  # fmt: skip
RECIPES = {f'{variant},{name}': name for variant in WIDTHS for name in (*TRAINED, *TUNED)}


def get_config(argument='B/16,cifar10'):
  name = chosen(argument, RECIPES)
  variant = argument.split(',')[0]
  model = dict(variant=variant, dtype='bfloat16', remat='names')
  if name in TUNED:
    steps, warmup, train = TUNED[name]
    return complete(dict(
      **big_vision(name, train=train, squash=True, every='100 steps'),
      init=f'ViT-{variant.replace("/", "_")}.npz',
      total=f'{steps} steps',
      batch_size=512,
      model=dict(**model, image_size=(384, 384)),
      task=dict(mean=(0.5,), std=(0.5,)),
      optim=dict(
        name='sgd', lr=0.01 if argument == 'B/16,cifar10' else 0.03, momentum=0.9,
        mu_dtype='bfloat16', weight_decay=0.0, clip=1.0, warmup=f'{warmup} steps', lr_first=0.0,
      ),
    ))  # fmt: skip
  recipe = TRAINED[name]
  return complete(dict(
    **big_vision(recipe['dataset']),
    total=recipe['total'],
    batch_size=4096,
    model=dict(
      **model, pool='token', representation_size=WIDTHS[variant], head_bias=recipe['head_bias'],
      dropout=0.1,
    ),
    task=dict(loss_of=recipe['loss_of'], mean=(0.5,), std=(0.5,)),
    optim=dict(warmup='10000 steps', lr_first=0.0, **recipe['optim']),
  ))  # fmt: skip
