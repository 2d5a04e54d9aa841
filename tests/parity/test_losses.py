"""Losses of tasks and their gradients, beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from experiments.benchmarks.torchvision import define_operators
from vit_jax.models import segmenter
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.distillation import Distillation
from vit_jax.tasks.multilabel import MultiLabel
from vit_jax.tasks.regression import Regression
from vit_jax.tasks.segmentation import Segmentation

define_operators()

from timm.data.mixup import mixup_target  # noqa: E402
from timm.loss import (  # noqa: E402
  BinaryCrossEntropy,
  LabelSmoothingCrossEntropy,
  SoftTargetCrossEntropy,
)


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


def mixed_batch(batch=12, classes=7, share=0.3):
  rng = np.random.default_rng(1)
  label = rng.integers(classes, size=batch)
  logits = rng.normal(0, 4, (batch, classes)).astype(np.float32)
  given = {'label': label, 'label2': label[::-1].copy(), 'share': np.full(batch, share, np.float32)}
  return logits, {name: jnp.asarray(array) for name, array in given.items()}


@pytest.mark.parametrize(
  ('fields', 'criterion', 'smoothing'),
  [
    (dict(label_smoothing=0.1), SoftTargetCrossEntropy(), 0.1),
    (dict(loss_of='sigmoid_mean', label_smoothing=0.1), BinaryCrossEntropy(), 0.1),
    (dict(loss_of='sigmoid_sum'), BinaryCrossEntropy(sum_classes=True), 0.0),
    (dict(loss_of='sigmoid_mean', threshold=0.2, label_smoothing=0.1),
     BinaryCrossEntropy(target_threshold=0.2), 0.1),
    (dict(loss_of='sigmoid_sum', threshold=0.4),
     BinaryCrossEntropy(target_threshold=0.4, sum_classes=True), 0.0),
  ],
)  # fmt: skip
def test_mixed_classes_as_in_timm(fields, criterion, smoothing):
  logits, batch = mixed_batch()
  task = Classification(**fields)
  target = mixup_target(torch.tensor(np.asarray(batch['label'])), 7, 0.3, smoothing)
  both(lambda x: task.each(x, batch).mean(), lambda x: criterion(x, target), logits)


def test_mixed_classes_as_in_deit3():
  """Whatever has a share is right: its recipe calls `BCEWithLogitsLoss` on `targets.gt(0)`."""
  logits, batch = mixed_batch()
  task = Classification(loss_of='sigmoid_mean', threshold=0.0)
  target = mixup_target(torch.tensor(np.asarray(batch['label'])), 7, 0.3, 0.0).gt(0.0).float()
  criterion = torch.nn.BCEWithLogitsLoss()
  both(lambda x: task.each(x, batch).mean(), lambda x: criterion(x, target), logits)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_plain_classes_as_in_timm(smoothing):
  logits, batch = mixed_batch()
  label = torch.tensor(np.asarray(batch['label']))
  alone = {'label': batch['label']}
  for kind, criterion in (
    ('softmax', LabelSmoothingCrossEntropy(smoothing)),
    ('sigmoid_mean', BinaryCrossEntropy(smoothing)),
  ):  # fmt: skip
    task = Classification(loss_of=kind, label_smoothing=smoothing)
    both(lambda x, t=task: t.each(x, alone).mean(), lambda x, c=criterion: c(x, label), logits)


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_what_a_teacher_says_as_in_deit(temperature):
  """`DistillationLoss` of its losses.py: soft, divided by all numbers there are, and hard."""
  rng = np.random.default_rng(2)
  logits, said = rng.normal(0, 4, (2, 12, 7)).astype(np.float32)
  teacher = torch.tensor(said)

  def soft(x):
    apart = functional.kl_div(
      functional.log_softmax(x / temperature, dim=1),
      functional.log_softmax(teacher / temperature, dim=1), reduction='sum', log_target=True,
    )  # fmt: skip
    return apart * temperature**2 / x.numel()

  task = Distillation(match='soft_mean')
  both(lambda x: task.matching(x, jnp.asarray(said), temperature).mean(), soft, logits)
  whole = Distillation()
  both(
    lambda x: whole.matching(x, jnp.asarray(said), temperature).mean(),
    lambda x: soft(x) * x.shape[1], logits,
  )  # fmt: skip
  hard = Distillation(match='hard')
  both(
    lambda x: hard.matching(x, jnp.asarray(said), 1.0).mean(),
    lambda x: functional.cross_entropy(x, teacher.argmax(dim=1)), logits,
  )  # fmt: skip
