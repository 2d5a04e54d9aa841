"""Loss against compute on Fashion-MNIST: many sizes, many budgets, one command.

    python -m experiments.sweep experiments/scaling/fashion_mnist.py --dir=runs/fashion

`cpu` (the default) is what README.md in this folder reports: 2.75 decades of compute on two cores in an
hour. `gpu` and `pod` are the same design scaled up, to be looked at with --dry-run before they are
launched; a pod needs a larger data set, see there.
"""

from __future__ import annotations

from experiments.sweeps.jobs import Sweep
from vit_jax.config import complete
from vit_jax.models.vit import ViTConfig
from vit_jax.scaling import design


def get_sweep(profile='cpu'):
  if profile not in PROFILES:
    raise ValueError(f'unknown profile {profile!r}: choose from {", ".join(PROFILES)}')
  return PROFILES[profile]()


# Width and depth; heads have 8 features, MLPs are four times as wide as the model.
CPU_SIZES = ((8, 1), (8, 2), (16, 2), (24, 2), (32, 2), (48, 3), (64, 3), (96, 4))


def cpu():
  base = ViTConfig('mu/7', image_size=(28, 28), in_channels=1, num_classes=10, pool='mean')
  base = base.resolve()
  models = [design.resized(base, head_dim=8, width=w, depth=d, mlp_dim=4 * w) for w, d in CPU_SIZES]
  runs = design.isoflop(
    models, design.budgets(1e9, 5.62e11, per_decade=4), batch_size=32, steps=40,
    images=(0, 20 * 60_000),
  )  # fmt: skip
  config = complete(dict(
    total='1 step',
    batch_size=32,
    model=dict(
      variant='mu/7', image_size=(28, 28), in_channels=1, pool='mean', mup_width=16, mup_depth=2,
    ),
    task=dict(flip=True, mean=(0.286,), std=(0.353,)),
    data=dict(
      source=dict(
        name='tfds', dataset='fashion_mnist', manual_dir='/usr/share/datasets/fashion-mnist'
      ),
    ),
    optim=dict(lr=4e-3, weight_decay=0.05, warmup='10 steps', schedule='wsd'),
    evals=dict(test=dict(split='test', every='100%', batch_size=500)),
    checkpoint=dict(every='50%', keep=1),
    log=dict(every='100 steps'),
  ))  # fmt: skip
  return Sweep(
    base=config,
    design=runs,
    lanes=dict(lr=(1.6e-3, 4e-3, 1e-2)),
    analysis=dict(x='flops', y='test_loss'),
  )


PROFILES = {'cpu': cpu}
