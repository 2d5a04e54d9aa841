"""Optimizers compared with PyTorch's and timm's, on the parameters of one layer."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from timm.optim.adafactor_bv import AdafactorBigVision
from timm.optim.lamb import Lamb

from vit_jax.optim import transforms
from vit_jax.optim.config import OPTIMIZERS

LR, DECAY, STEPS = 0.02, 0.1, 6
HYPER = {'optim.lr': LR, 'optim.weight_decay': DECAY, 'optim.b1': 0.9, 'optim.b2': 0.99,
         'optim.momentum': 0.9}  # fmt: skip
# Ours, and theirs, which gets groups of parameters with the weight decay of each.
CASES = {
  'adamw': (dict(eps=1e-8, clip=0.0), lambda groups: torch.optim.AdamW(
    groups, lr=LR, betas=(0.9, 0.99), eps=1e-8
  )),
  'sgd': (dict(nesterov=True, clip=0.0), lambda groups: torch.optim.SGD(
    [{**g, 'weight_decay': 0.0} for g in groups], lr=LR, momentum=0.9, nesterov=True
  )),
  'lamb': (dict(eps=1e-6, clip=1.0), lambda groups: Lamb(
    groups, lr=LR, betas=(0.9, 0.99), eps=1e-6, max_grad_norm=1.0
  )),
  'adafactor': (dict(smallest=4, mu_dtype='float32', clip=0.0), lambda groups: AdafactorBigVision(
    groups, lr=LR, min_dim_size_to_factor=4, decay_rate=0.8, beta2_cap=0.999, momentum=0.9,
    momentum_dtype=torch.float32, clipping_threshold=None,
  )),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_steps_are_theirs(name):
  """A matrix, which is decayed, and a vector, which is not; gradients of very different sizes."""
  changes, make = CASES[name]
  rng = np.random.default_rng(0)
  shapes = {'kernel': (12, 8), 'bias': (8,)}
  start = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
  grads = [
    {n: (rng.normal(size=shape) * 10.0 ** rng.integers(-2, 2)).astype(np.float32)
     for n, shape in shapes.items()}
    for _ in range(STEPS)
  ]  # fmt: skip
  theirs = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in start.items()}
  optimizer = make([
    {'params': [theirs['kernel']], 'weight_decay': DECAY},
    {'params': [theirs['bias']], 'weight_decay': 0.0},
  ])  # fmt: skip
  hyper = {**HYPER, 'optim.weight_decay': 0.0 if name == 'sgd' else DECAY}
  ours = {'blocks': {'0': {n: jnp.asarray(x) for n, x in start.items()}}}
  tx = transforms.optimizer(OPTIMIZERS[name](**changes), ours, hyper)
  state = tx.init(ours)
  for grad in grads:
    for n, p in theirs.items():
      p.grad = torch.tensor(grad[n])
    optimizer.step()
    update, state = tx.update({'blocks': {'0': grad}}, state, ours)
    ours = {
      'blocks': {'0': {n: x + update['blocks']['0'][n] for n, x in ours['blocks']['0'].items()}}
    }
    for n, p in theirs.items():
      np.testing.assert_allclose(
        ours['blocks']['0'][n], p.detach().numpy(), rtol=2e-5, atol=2e-6, err_msg=n
      )
