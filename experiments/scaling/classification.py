"""Loss against compute in classification: one design, from two CPU cores to a pod.

    python -m experiments.sweep experiments/scaling/classification.py:cpu --dir=runs/fashion

README.md in this folder reports what `cpu` gave. `noise` trains one of its models with six seeds,
`beyond` the model that its report advises for more compute than any of its runs had.
`gpu` and `pod` are the same design on more data; look at them with --dry-run, which says what they
cost, before they are launched with --engine. Their data sets are read as TFDS has prepared them, in
--config.data.source.dir or TFDS_DATA_DIR.
"""

from __future__ import annotations

from experiments.sweeps.jobs import Sweep
from vit_jax.models.vit import ViTConfig
from vit_jax.scaling import design
from vit_jax.scaling.cost import Machine
from vit_jax.training.config import complete


def get_sweep(profile: str = 'cpu') -> Sweep:
  """The sweep of a profile."""
  profiles = {'cpu': cpu, 'noise': noise, 'beyond': beyond, 'gpu': gpu, 'pod': pod}
  if profile not in profiles:
    raise ValueError(f'unknown profile {profile!r}: choose from {", ".join(profiles)}')
  return profiles[profile]()


def cpu():
  """2.75 decades of compute; at most 20 passes over Fashion-MNIST."""
  sizes = (
    (4, 1), (4, 2), (8, 1), (8, 2), (16, 1), (16, 2), (24, 2), (32, 2), (48, 3), (64, 3), (96, 4),
  )  # fmt: skip
  budgets = design.budgets(1e9, 5.62e11, per_decade=4)
  return _sweep(
    _fashion_mnist(), sizes, budgets, head_dim=8, steps=40, images=20 * 60_000,
    lanes=dict(lr=(2e-3, 5e-3, 1.25e-2, 3e-2)),
  )  # fmt: skip


def noise():
  """What of the loss is chance: seeds of one model."""
  budgets = design.budgets(1e9, 5.62e11, per_decade=4)[3::4]  # some of those of `cpu`
  return _sweep(
    _fashion_mnist(), ((24, 2),), budgets, head_dim=8, steps=40, images=20 * 60_000,
    lanes=dict(seed=(0, 1, 2, 3, 4, 5)),
  )  # fmt: skip


def beyond():
  """Whether the laws of `cpu` hold where it has no runs: 1e12 FLOPs, 22 passes over the data."""
  return _sweep(
    _fashion_mnist(), ((16, 2),), [1e12], head_dim=8, steps=40, images=25 * 60_000,
    lanes=dict(lr=(2e-3, 5e-3, 1.25e-2, 3e-2)),
  )  # fmt: skip


def gpu():
  """3.5 decades for one GPU, on ImageNet at 32 x 32 (1.28 million images, at most 20 passes)."""
  sizes = (
    (64, 2), (64, 4), (96, 4), (128, 4), (192, 6), (256, 6), (256, 12), (384, 12), (512, 12),
    (768, 12),
  )  # fmt: skip
  config = _config(
    batch_size=512,
    model=dict(variant='mu/4', image_size=(32, 32), mup_width=64, mup_depth=4, dtype='bfloat16'),
    source=dict(name='tfds', dataset='imagenet_resized/32x32'),
    warmup='100 steps', split='validation',
  )  # fmt: skip
  return _sweep(
    config, sizes, design.budgets(1e13, 3e16, per_decade=3), head_dim=32, steps=300,
    images=20 * 1_281_167, classes=1000, lanes=dict(lr=(1e-3, 2e-3, 4e-3)),
    # Guesses, until --calibrate has measured; the price is that of on-demand clouds in 2025.
    machine=Machine.assumed(
      'H200', 0.25 * 989e12, overhead=4e-3, memory=141 * 10**9, price=3.8
    ),
  )  # fmt: skip


def pod():
  """2.5 decades on v5e:16x16, on ImageNet-21k (at most 10 passes): one learning rate for all."""
  sizes = (
    (192, 12), (256, 12), (384, 12), (512, 12), (640, 14), (768, 16), (1024, 20), (1280, 28),
    (1536, 36),
  )  # fmt: skip
  config = _config(
    batch_size=1024,
    model=dict(
      variant='S/16', image_size=(224, 224), mup_width=192, mup_depth=12, dtype='bfloat16',
      remat='names',
    ),
    source=dict(name='tfds', dataset='imagenet21k'),
    warmup='500 steps', split='validation',
  )  # fmt: skip
  config.mesh = 'fsdp'
  return _sweep(
    config, sizes, design.budgets(1e17, 3.2e19, per_decade=4), head_dim=64, steps=1500,
    images=10 * 12_700_000, classes=21_841,
    machine=Machine.assumed(
      'v5e:16x16', 0.4 * 197e12, overhead=4e-3, chips=256, memory=16 * 2**30, price=1.2
    ),
  )  # fmt: skip


def _sweep(
  config, sizes, budgets, *, head_dim, steps, images, classes=10, lanes=None, machine=None
):
  """Each of `sizes`, width and depth, for each of `budgets`."""
  fields = ('variant', 'image_size', 'in_channels', 'pool', 'dtype', 'remat')
  given = {name: config.model[name] for name in fields if config.model[name] is not None}
  base = ViTConfig(num_classes=classes, **given).resolve()
  models = [
    design.resized(base, head_dim=min(head_dim, width), width=width, depth=depth, mlp_dim=4 * width)
    for width, depth in sizes
  ]
  runs = design.isoflop(
    models, budgets, config.batch_size, steps=steps, images=(0, images)
  )  # fmt: skip
  return Sweep(base=config, design=runs, lanes=lanes or {}, machine=machine)


def _fashion_mnist():
  return _config(
    batch_size=32,
    model=dict(
      variant='mu/7', image_size=(28, 28), in_channels=1, mup_width=16, mup_depth=2
    ),
    source=dict(
      name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
    ),
    warmup='10 steps', split='test', cache=True, task=dict(mean=(0.286,), std=(0.353,)),
  )  # fmt: skip


def _config(*, batch_size, model, source, warmup, split, cache=False, task=None):
  return complete(dict(
    total='1 step',
    batch_size=batch_size,
    model=dict(pool='mean', **model),
    task=dict(flip=True, **(task or {})),
    data=dict(source=source, cache=cache),
    optim=dict(lr=1e-2, weight_decay=0.05, warmup=warmup, schedule='wsd'),
    evals=dict(test=dict(split=split, every='100%', batch_size=500)),
    checkpoint=dict(every='50%', keep=1),
    log=dict(every='100 steps'),
  )).unlock()  # fmt: skip
