r"""ViTs with augmentation of a chosen strength, on ImageNet or ImageNet-21k, for 300 epochs.

    python -m vit_jax.train --config=configs/augreg.py:B/16,1k --workdir=runs/augreg_b16
    python -m vit_jax.train --config=configs/augreg.py:B/32,1k,light1 --workdir=runs/augreg_b32
    python -m vit_jax.train --config=configs/augreg.py:S/16,21k --workdir=runs/augreg_s16_21k

Steiner et al. 2021, "How to train your ViT?" (https://arxiv.org/abs/2106.10270), by big_vision's
configs/vit_i1k.py and vit_i21k.py: a variant, the data, and perhaps a level of none, light1,
light2, medium1, medium2, strong1 and strong2; without one, the level that is best for the model.
Published: B/16 on ImageNet about 79 % (an author, big_vision issue 7); from ImageNet-21k,
fine-tuned at 384 px (configs/vit.py): Ti/16 78.22, S/32 79.58, B/32 83.59, S/16 83.73, B/16 85.49,
L/16 85.59 % (vision_transformer's README), of which some have other levels, and S/16 and Ti/16 a
weight decay of 0.03 (--config.optim.weight_decay=0.03).

Where this differs: light1 is two operators of magnitude 0, which is not nothing; thresholds of
solarizing beyond 255 wrap around, as TensorFlow's are assumed to. The batch is mixed with its
mirror image and not with its neighbours, as a whole and not by device. The paper also trains with
dropout and stochastic depth, both 0.1 (--config.model.dropout=0.1 --config.model.drop_path=0.1);
its code has neither, as here. Activations are bfloat16. ImageNet-21k is not in TFDS:
--config.data.source names another source.
"""

from vit_jax.config import big_vision, chosen, complete

# Alpha of mixup, and magnitude of RandAugment.
LEVELS = {
  'none': (0.0, None), 'light1': (0.0, 0), 'light2': (0.2, 10), 'medium1': (0.2, 15),
  'medium2': (0.5, 15), 'strong1': (0.5, 20), 'strong2': (0.8, 20),
}  # fmt: skip
BEST = {
  '1k': {'Ti/16': 'light1', 'S/32': 'medium1', 'S/16': 'medium2', 'B/32': 'medium2',
         'B/16': 'medium2', 'L/16': 'medium2'},
  '21k': {'Ti/16': 'none', 'S/32': 'none', 'S/16': 'light1', 'B/32': 'light2', 'B/16': 'light2',
          'L/16': 'medium2'},
}  # fmt: skip
WIDTHS = {'Ti': 192, 'S': 384, 'B': 768, 'L': 1024}
RECIPES = {
  **{f'{variant},{data}': level for data, best in BEST.items() for variant, level in best.items()},
  **{f'{variant},{data},{level}': level
     for data, best in BEST.items() for variant in best for level in LEVELS},
}  # fmt: skip


def get_config(argument='B/16,1k'):
  mixup, magnitude = LEVELS[chosen(argument, RECIPES)]
  variant, data, *_ = argument.split(',')
  small = data == '1k'
  # On ImageNet a class token and a hidden layer before the head, on ImageNet-21k a mean.
  head = dict(pool='token', representation_size=WIDTHS[variant.split('/')[0]], head_bias=-6.9)
  dataset, split = ('imagenet2012', 'train[:99%]') if small else ('imagenet21k', '')
  return complete(dict(
    **big_vision(dataset, train=split, randaugment=magnitude),
    total='300 epochs',
    batch_size=4096,
    model=dict(
      variant=variant, posemb_tokens='patches', dtype='bfloat16', remat='names',
      **(head if small else dict(pool='mean', head_bias=-10.0)),
    ),
    task=dict(loss_of='sigmoid_sum', mixup=mixup, mean=(0.5,), std=(0.5,)),
    optim=dict(
      lr=1e-3, weight_decay=0.1, mu_dtype='bfloat16', clip=1.0, warmup='10000 steps', lr_first=0.0
    ),
  ))  # fmt: skip
