"""Loss and features against compute: masked autoencoders of Fashion-MNIST, without labels.

    python -m experiments.sweep experiments/scaling/mae.py:cpu --dir=runs/mae --calibrate
    python -m experiments.report runs/mae --data=tokens --out=runs/mae/loss
    python -m experiments.report runs/mae --y=knn/top1 --data=tokens --out=runs/mae/knn

Task, patches and what is hidden are those of configs/ssl.py:mae. Encoder and decoder are equally
wide, and the decoder is one block, so that neither is a bottleneck of the other. Every run is
judged twice at its end: by the loss on hidden patches of the test split, and by what the nearest of
5,000 labelled neighbours say of the features of its encoder. The reports leave out the largest
budget and predict it from the others.
"""

from __future__ import annotations

from typing import Any

from experiments.sweeps.jobs import Sweep, described
from vit_jax.core import modules, paths
from vit_jax.scaling import design

CONFIG = paths.here(__file__).parent.parent / 'configs' / 'ssl.py'
# Width and depth of the encoder.
SIZES = ((16, 1), (16, 2), (24, 2), (32, 2), (48, 3), (64, 4), (96, 4))
HEAD = 8  # features


def get_sweep(profile: str = 'cpu') -> Sweep:
  """The sweep of a profile."""
  profiles = {'cpu': cpu, 'tiny': tiny}
  if profile not in profiles:
    raise ValueError(f'unknown profile {profile!r}: choose from {", ".join(profiles)}')
  return profiles[profile]()


def cpu() -> Sweep:
  """Two decades of compute, three learning rates each; at most 20 passes over the images."""
  return _sweep(SIZES, design.budgets(1e10, 1e12, per_decade=4), steps=30, lanes=RATES)


def tiny() -> Sweep:
  """Two of these runs for a few seconds: whether everything is there."""
  return _sweep(SIZES[:2], [4e9], steps=20, lanes={'lr': (4e-3, 1e-2)})


RATES = {'lr': (1.5e-3, 4e-3, 1e-2)}


def _sweep(sizes: Any, budgets: Any, *, steps: int, lanes: Any) -> Sweep:
  config = modules.call(f'{CONFIG}:mae', 'get_config').unlock()
  config.batch_size, config.data.cache = 64, True
  config.optim.schedule, config.optim.warmup, config.optim.clip = 'wsd', '10 steps', 1.0
  config.checkpoint.every, config.checkpoint.keep, config.log.every = '50%', 1, '100 steps'
  for evaluation in config.evals.values():
    evaluation.every, evaluation.batch_size = '100%', 500
  base, passes = described(config)
  models = []
  for width, depth in sizes:
    model = design.resized(base, head_dim=HEAD, width=width, depth=depth, mlp_dim=4 * width)
    models.append(design.resized(model, tower='decoder', head_dim=HEAD, width=width))
  runs = design.isoflop(
    models, budgets, config.batch_size, steps=steps, images=(0, 20 * 60_000), passes=passes
  )
  return Sweep(base=config, design=runs, lanes=lanes)
