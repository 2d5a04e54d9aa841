r"""Fashion-MNIST by 600 labels: a small convnet, and a small ViT that learns from it, or alone.

    python -m vit_jax.train --config=configs/distillation.py:teacher --workdir=runs/teacher
    python -m vit_jax.train --config=configs/distillation.py:student --workdir=runs/student \
      --config.task.teacher.init=runs/teacher
    python -m vit_jax.train --config=configs/distillation.py:alone --workdir=runs/alone

Teacher and student alone learn from 600 images and their labels; with the teacher the student
matches its function (Beyer et al. 2022, https://arxiv.org/abs/2106.05237) on all 60,000, of whose
labels it sees none. All take as many steps of 60 images, a few minutes on two CPU cores each. What
comes out is in experiments/gallery. The data are those of configs/fashion_mnist.py.
"""

from vit_jax.config import chosen, complete

RECIPES = {name: name for name in ('teacher', 'student', 'alone')}


def get_config(argument='student'):
  name = chosen(argument, RECIPES)
  sizes = dict(image_size=(28, 28), in_channels=1)
  convnet = dict(
    name='convnet', variant='', widths=(32, 64, 64, 128), kernels=(3,), strides=(2, 2, 1, 1),
    dilations=(1,), **sizes,
  )  # fmt: skip
  vit = dict(
    variant='mu/4', width=64, depth=4, mlp_dim=256, num_heads=4, pool='mean', scan=False,
    remat='none', **sizes,
  )  # fmt: skip
  task: dict = dict(mean=(0.286,), std=(0.353,))
  if name == 'student':  # of as many images there is no need to mix them
    task |= dict(name='distillation', match='soft', alpha=1.0)
  else:
    task |= dict(mixup=0.2)
  return complete(dict(
    total='2000 steps',
    batch_size=60,
    model=convnet if name == 'teacher' else vit,
    task=task,
    data=dict(
      source=dict(
        name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
      ),
      split='train' if name == 'student' else 'train[:600]', flip='horizontal',
      crop=dict(name='affine', degrees=0.0, zoom=0.0, shift=0.07),
    ),
    optim=dict(lr=3e-3 if name == 'teacher' else 2e-3, weight_decay=0.05, warmup='10%'),
    evals=dict(test=dict(split='test', every='100%')),
  ))  # fmt: skip
