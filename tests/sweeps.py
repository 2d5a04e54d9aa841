"""Sweeps: small ones to be run, and tables of some that never were, with a known law of the losses.

Imported by processes that have yet to join others: nothing here starts JAX.
"""

import json
import pathlib

import numpy as np

from experiments.sweeps.jobs import Sweep
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.costs import flops
from vit_jax.scaling import design
from vit_jax.training import config as config_lib

BASE = ViTArchitecture(
  'mu/4', image_size=(8, 8), in_channels=1, num_classes=10, pool='mean'
).resolve()
SMALL = design.resized(BASE, head_dim=4, width=8, mlp_dim=16)


def sweep_of(config):
  """Two models, three durations each, two learning rates of which one is absurd."""
  models = [SMALL, design.resized(SMALL, width=16, mlp_dim=32)]
  cells = tuple(design.Cell('grid', model, 16, steps) for model in models for steps in (5, 10, 20))
  return Sweep(base=config, design=design.Design(cells), lanes=dict(lr=(3e-3, 1e30)))


def rebuilt(path):
  """A sweep as `sweep_of` makes it, of the configuration in a file."""
  return sweep_of(config_lib.complete(json.loads(pathlib.Path(path).read_text())))


def small(path):
  """Two runs of a sweep as `rebuilt` makes it."""
  whole = rebuilt(path)
  return Sweep(base=whole.base, design=design.Design(whole.design.cells[::5]))


# L = E + A / N^a + B / D^b; the best size grows as compute^(b / (a + b)).
TRUTH = dict(A=8.0, B=5.0, E=0.4, a=0.42, b=0.38)
SIZES = ((8, 1), (8, 2), (16, 2), (24, 2), (32, 2), (48, 3), (64, 3), (96, 4))
RATES = (1.6e-3, 4e-3, 1e-2)


def loss(n, d, truth=None):
  t = truth or TRUTH
  return t['E'] + t['A'] * n ** -t['a'] + t['B'] * d ** -t['b']


def models():
  base = ViTArchitecture(
    'mu/7', image_size=(28, 28), in_channels=1, num_classes=10, pool='mean'
  ).resolve()
  return [design.resized(base, head_dim=8, width=w, depth=d, mlp_dim=4 * w) for w, d in SIZES]


def rows(budgets, *, noise=0.005, seeds=(0,), rates=RATES, best=4e-3, truth=None):
  """As a worker writes them."""
  rng = np.random.default_rng(0)
  cells = design.isoflop(models(), budgets, batch_size=32, steps=40).cells
  out = []
  for cell in cells:
    run = f'{design.name_of(cell.model)}-b32-n{cell.steps}'
    found = flops.costs(cell.model)
    lanes = [(rate, seed) for rate in rates for seed in seeds]
    for lane, (rate, seed) in enumerate(lanes):
      value = loss(found.parameters(), cell.images, truth)
      value *= np.exp(0.05 * np.log(rate / best) ** 2 + noise * rng.standard_normal())
      out.append({
        'id': f'{run}/{lane}', 'run': run, 'lane': lane, 'status': 'finished',
        'group': cell.group, **cell.shape, 'batch_size': 32, 'steps': cell.steps,
        'images': cell.images, 'tokens': cell.tokens, 'parameters': found.parameters(),
        'parameters_non_embedding': found.parameters(('embedding',)), 'flops': cell.flops,
        'lr': rate, 'seed': seed, 'weight_decay': 0.05, 'b1': 0.9, 'b2': 0.999,
        'schedule': 'wsd', 'warmup': '10 steps', 'cooldown': f'{cell.steps // 5} steps',
        'mup_width': 16, 'mup_depth': 2, 'forked': 0, 'seconds': 1e-9 * cell.flops + 1,
        'device': 'cpu', 'packages': {'jax': '0.10.2'}, 'git': 'abc', 'error': '',
        'test_loss': value, 'test_top1': 1 - value / 3,
      })  # fmt: skip
  return out


def write(folder, table):
  """The table, and the configurations of its runs."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'table.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in table))
  for row in table:
    if 'width' not in row:
      continue
    path = folder / 'runs' / row['run']
    path.mkdir(parents=True, exist_ok=True)
    model = dict(
      name='vit', variant='mu/7', image_size=[28, 28], in_channels=1, pool='mean', num_classes=0,
      mup_width=16, mup_depth=2,
      **{name: row[name] for name in ('width', 'depth', 'mlp_dim', 'num_heads', 'patch_size')},
    )  # fmt: skip
    source = dict(name='tfds', dataset='fashion_mnist')
    record = dict(
      model=model, data=dict(source=source, split='train'), batch_size=32,
      evals=dict(test=dict(split='test')), task=dict(label_smoothing=0.0),
      optim=dict(lr=4e-3, schedule='wsd', clip=1.0, eps=1e-8, ema=0.0),
    )  # fmt: skip
    (path / 'config.json').write_text(json.dumps(record))
  return folder
