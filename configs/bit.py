r"""BiT-ResNet-50 that matches the function of a BiT-ResNet-152x2, patiently.

    python -m vit_jax.train --config=configs/bit.py:i1k,1200 --workdir=runs/bit_i1k \
      --config.task.teacher.init=R152x2_T_224.npz
    python -m vit_jax.train --config=configs/bit.py:pet,fast --workdir=runs/bit_pet \
      --config.task.teacher.init=R152x2_T_pet128.npz

Beyer et al. 2022 (https://arxiv.org/abs/2106.05237), by big_vision's configs/proj/distill, whose
README links the teachers. Student and teacher see the same crop, mixed with another one; labels are
not looked at. ImageNet: 82.8 % at best, the teacher 83.0 %; 300 epochs take about 15 hours on 32
cores of TPU v3. Pets and flowers, at 128 pixels: `fast`, `medium` and `long` differ in epochs,
temperature, learning rate and decay; pets take 28 minutes (fast) and 11 hours (long) on 8 cores of
TPU v2, flowers 70 minutes (fast).

Where this differs: the batch is mixed with its mirror image and not with its neighbours.
Activations are bfloat16.
"""

from vit_jax.config import big_vision, chosen, complete

# Of each: data, the side of crops and that which evaluation scales images to, the teacher.
DATA = {
  'i1k': ('imagenet2012', 'train[:98%]', 224, 256, 'R152x2_T_224.npz'),
  'flowers': ('oxford_flowers102', 'train', 128, 160, 'R152x2_T_flowers128.npz'),
  'pet': ('oxford_iiit_pet', 'train[:90%]', 128, 160, 'R152x2_T_pet128.npz'),
}  # fmt: skip
# Epochs, temperature, learning rate and what of a parameter is taken off at its height.
RECIPES = {
  **{f'i1k,{epochs}': (epochs, 1.0, 0.03, 3e-4) for epochs in (300, 1200, 9600)},
  'flowers,fast': (10_000, 10.0, 0.003, 3e-4), 'flowers,medium': (100_000, 1.0, 0.001, 1e-4),
  'flowers,long': (1_000_000, 1.0, 3e-4, 1e-5), 'pet,fast': (1000, 5.0, 0.01, 1e-3),
  'pet,medium': (3000, 10.0, 0.003, 3e-4), 'pet,long': (30_000, 2.0, 0.003, 1e-5),
}  # fmt: skip


def get_config(argument='i1k,1200'):
  epochs, temperature, lr, decay = chosen(argument, RECIPES)
  dataset, train, side, shorter, teacher = DATA[argument.partition(',')[0]]
  large = dataset == 'imagenet2012'
  shared = big_vision(dataset, train=train, every='1000 steps' if large else '500 steps')
  shared['evals']['test']['crop']['fraction'] = side / shorter
  return complete(dict(
    **shared,
    total=f'{epochs} epochs',
    batch_size=4096 if large else 512,
    model=dict(name='resnet', variant='R50x1', image_size=(side, side), dtype='bfloat16'),
    task=dict(
      name='distillation', teacher=dict(init=teacher, dtype='bfloat16', by_number=True),
      alpha=1.0, temperature=temperature, mixup=1.0, mean=(0.5,), std=(0.5,),
    ),
    optim=dict(
      lr=lr, weight_decay=decay / lr, mu_dtype='bfloat16', clip=1.0, lr_first=0.0,
      warmup='5000 steps' if large else '1500 steps',
    ),
  ))  # fmt: skip
