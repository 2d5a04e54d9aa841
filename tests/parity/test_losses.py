"""Losses of tasks and their gradients, beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from vit_jax.models import segmenter
from vit_jax.tasks.multilabel import MultiLabel
from vit_jax.tasks.regression import Regression
from vit_jax.tasks.segmentation import Segmentation


def both(ours, theirs, x, rtol=1e-5):
  """The same value and the same gradient of two functions of an array."""
  value, grad = jax.value_and_grad(ours)(jnp.asarray(x))
  tensor = torch.tensor(x, requires_grad=True)
  want = theirs(tensor)
  want.backward()
  np.testing.assert_allclose(value, want.item(), rtol=rtol)
  assert tensor.grad is not None
  np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(('gamma', 'alpha'), [(0.0, None), (2.0, 0.25), (1.5, None), (0.0, 0.7)])
def test_several_classes(gamma, alpha):
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 4, (40, 9)).astype(np.float32)
  labels = (rng.random((40, 9)) < 0.2).astype(np.float32)
  task = MultiLabel(gamma=gamma, alpha=alpha)
  target = torch.tensor(labels)

  def theirs(x):
    """Cross-entropy, and the two factors of Lin et al. 2017, as torchvision has them."""
    each = functional.binary_cross_entropy_with_logits(x, target, reduction='none')
    right = torch.sigmoid(x) * target + (1 - torch.sigmoid(x)) * (1 - target)
    weight = 1.0 if alpha is None else alpha * target + (1 - alpha) * (1 - target)
    return (weight * each * (1 - right) ** gamma).mean()

  both(lambda x: task.each(x, jnp.asarray(labels)).mean(), theirs, logits)


@pytest.mark.parametrize(
  ('kind', 'theirs'),
  [
    ('squared', functional.mse_loss), ('absolute', functional.l1_loss),
    ('huber', functional.huber_loss),
  ],
)  # fmt: skip
def test_numbers(kind, theirs):
  rng = np.random.default_rng(0)
  said, target = rng.normal(0, 2, (2, 30, 3)).astype(np.float32)
  known = rng.random((30, 3)) < 0.8
  part = {'image': None, 'target': 10 + 5 * target, 'target_known': known, 'mask': np.ones(30)}
  task = Regression(loss_of=kind, center=(10.0,) * 3, spread=(5.0,) * 3)
  ctx = type('Context', (), {'noise': None, 'totals': task.totals(part)})
  chosen = torch.tensor(known)
  both(
    lambda x: task.loss(lambda image, key: x, part, ctx)[0],
    lambda x: theirs(x[chosen], torch.tensor(target)[chosen]), said,
  )  # fmt: skip


def test_pixels():
  """Logits of patches, enlarged, and the cross-entropy of pixels that are not ignored."""
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (2, 4, 6, 5)).astype(np.float32)
  labels = rng.integers(0, 5, (2, 16, 24)).astype(np.uint8)
  labels[rng.random(labels.shape) < 0.2] = 255
  part = {'image': None, 'map': jnp.asarray(labels), 'mask': jnp.ones(2)}
  task = Segmentation()
  ctx = type('Context', (), {'noise': None, 'totals': task.totals(part)})
  target = torch.tensor(labels.astype(np.int64))

  def theirs(x):
    large = functional.interpolate(x.permute(0, 3, 1, 2), (16, 24), mode='bilinear')
    return functional.cross_entropy(large, target, ignore_index=255)

  both(lambda x: task.loss(lambda image, key: x, part, ctx)[0], theirs, logits)
  large = segmenter.enlarged(jnp.asarray(logits), (16, 24))
  want = functional.interpolate(
    torch.tensor(logits).permute(0, 3, 1, 2), (16, 24), mode='bilinear'
  )  # fmt: skip
  np.testing.assert_allclose(large, want.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-5)
