"""Losses of classification beside what PyTorch and timm compute, written out in NumPy float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.architecture import ViTArchitecture
from vit_jax.core.errors import RunError
from vit_jax.data.fields import Field
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.task import Seen

CLASSES, SHARE = 7, 0.3
FIELDS = {'label': Field('class', tuple('abcdefg'))}


def batch():
  rng = np.random.default_rng(1)
  label = rng.integers(CLASSES, size=12)
  logits = rng.normal(0, 6, (12, CLASSES))
  return logits, {'label': label, 'label2': label[::-1], 'share': np.full(12, SHARE, np.float32)}


def timm_targets(given, smoothing):
  """`timm.data.mixup.mixup_target`: smoothed on both sides, then mixed."""
  off = smoothing / CLASSES
  one, other = (
    np.where(np.arange(CLASSES) == given[name][:, None], 1 - smoothing + off, off)
    for name in ('label', 'label2')
  )
  return SHARE * one + (1 - SHARE) * other


def bce(x, t):
  """`binary_cross_entropy_with_logits` without reduction, in the form in which PyTorch has it."""
  return np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x)))


def softmax_ce(x, t):
  return -(t * (x - np.log(np.exp(x).sum(-1, keepdims=True)))).sum(-1)


@pytest.mark.parametrize(
  ('fields', 'want'),
  [
    (dict(), lambda x, g: softmax_ce(x, timm_targets(g, 0))),
    (dict(label_smoothing=0.1), lambda x, g: softmax_ce(x, timm_targets(g, 0.1))),
    (dict(loss_of='sigmoid_sum'), lambda x, g: bce(x, timm_targets(g, 0)).sum(-1)),
    (dict(loss_of='sigmoid_mean', label_smoothing=0.1),
     lambda x, g: bce(x, timm_targets(g, 0.1)).mean(-1)),
    # DeiT III: `targets.gt(0.0)`, both classes of a mix.
    (dict(loss_of='sigmoid_mean', threshold=0.0),
     lambda x, g: bce(x, timm_targets(g, 0) > 0).mean(-1)),
    # timm's `BinaryCrossEntropy(target_threshold=0.4, sum_classes=True)`: the larger share alone.
    (dict(loss_of='sigmoid_sum', threshold=0.4, label_smoothing=0.1),
     lambda x, g: bce(x, timm_targets(g, 0.1) > 0.4).sum(-1)),
    (dict(z_loss=1e-2),
     lambda x, g: softmax_ce(x, timm_targets(g, 0)) + 1e-2 * np.log(np.exp(x).sum(-1)) ** 2),
  ],
)  # fmt: skip
def test_mixed_targets(fields, want):
  """Values, and the gradients of the mean by differences."""
  logits, given = batch()
  task = Classification(**fields)
  got, pull = jax.vjp(lambda x: task.each(x, given), jnp.asarray(logits, jnp.float32))
  np.testing.assert_allclose(got, want(logits, given), rtol=1e-5, atol=1e-5)
  (gradient,) = pull(jnp.ones(len(logits)))
  step = 1e-5
  for column in range(CLASSES):
    shift = step * (np.arange(CLASSES) == column)
    change = (want(logits + shift, given) - want(logits - shift, given)) / (2 * step)
    np.testing.assert_allclose(gradient[:, column], change, rtol=1e-4, atol=2e-5)


def test_scales_differ_by_the_number_of_classes():
  logits, given = batch()
  total, mean = (
    Classification(loss_of=kind).each(jnp.asarray(logits, jnp.float32), given)
    for kind in ('sigmoid_sum', 'sigmoid_mean')
  )
  np.testing.assert_allclose(total, CLASSES * mean, rtol=1e-6)


def test_large_logits_are_finite():
  x = jnp.array([[1e4, -1e4, 0.0]])
  given = {'label': np.array([1])}
  for fields in (dict(), dict(loss_of='sigmoid_mean'), dict(loss_of='sigmoid_sum')):
    task = Classification(**fields)
    value, gradient = jax.value_and_grad(lambda x, t=task: t.each(x, given).sum())(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_probabilities_are_those_of_the_loss():
  """Of sigmoids those of each class, which need not add up to 1."""
  logits = np.array([2.0, -1.0, 1.0])
  seen = Seen(None, {'label': Field('class', ('a', 'b', 'c'))}, 3)
  said = {
    kind: Classification(loss_of=kind).decode({'logits': logits}, {}, seen).facts['classes']
    for kind in ('softmax', 'sigmoid_mean')
  }
  for found in said.values():
    assert [each['class'] for each in found] == ['a', 'c', 'b']
  chances = [each['probability'] for each in said['sigmoid_mean']]
  assert chances == pytest.approx((1 / (1 + np.exp([-2.0, -1.0, 1.0]))).tolist())
  assert sum(each['probability'] for each in said['softmax']) == pytest.approx(1)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(loss_of='sigmoid'), r"unknown task\.loss_of 'sigmoid': did you mean sigmoid_sum"),
    (dict(threshold=0.2), 'is for sigmoids, not for task.loss_of=softmax'),
    (dict(threshold=1.0, loss_of='sigmoid_sum'), r'threshold=1\.0 must be in \[0, 1\)'),
    (dict(z_loss=1e-4, loss_of='sigmoid_sum'), 'is for task.loss_of=softmax, not sigmoid_sum'),
    (dict(z_loss=-1.0), 'must not be negative'),
  ],
)
def test_what_changes_nothing_is_refused(fields, message):
  with pytest.raises(RunError, match=message):
    Classification(**fields)


def test_smoothing_above_the_threshold_is_refused():
  """It would make every class right."""
  model = ViTArchitecture('mu/4', image_size=(8, 8)).resolve()
  task = Classification(loss_of='sigmoid_mean', threshold=0.0, label_smoothing=0.1)
  with pytest.raises(RunError, match=r'gives each of 7 classes 0\.014, more than task\.threshold'):
    task.adapt(model, FIELDS)
  assert dataclasses.replace(task, label_smoothing=0.0).adapt(model, FIELDS).num_classes == 7
