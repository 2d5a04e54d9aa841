"""Evaluations against other people's code, on any mesh; what is wrong with them is said."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from vit_jax.core.errors import RunError
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.evaluator import Found
from vit_jax.nn.sharding import BatchLayout

REPORTS = ('top1', 'top5', 'loss', 'ece', 'brier', 'balanced')


class Named:
  """A source of which nothing is asked but the names of its classes."""

  class_names = ()


def found(logits, label, mask, mesh=None):
  evaluator = Classification(report=REPORTS)
  batch = {'label': label, 'mask': mask}
  if mesh:
    layout = BatchLayout(len(label))
    batch, placed = layout.place(batch), layout.place({'logits': logits})
  else:
    placed = {'logits': jnp.asarray(logits)}
  sums = jax.jit(evaluator.sums)(placed, batch)
  totals = {name: np.asarray(value, np.float64) for name, value in sums.items()}
  return evaluator.finish({'test': Found(Named(), totals, [], np.zeros(0), int(mask.sum()))})


@pytest.mark.parametrize('layout', [None, (2, 2, 2)])
def test_classification_is_that_of_scikit_learn(mesh, layout):
  rng = np.random.default_rng(0)
  label = rng.integers(0, 7, 64).astype(np.int32)
  logits = rng.normal(0, 2, (64, 7)).astype(np.float32) + 2 * np.eye(7, dtype=np.float32)[label]
  mask = (rng.random(64) < 0.9).astype(np.float32)
  if layout:
    with mesh(*layout):
      scores = found(logits, label, mask, mesh=True)
  else:
    scores = found(logits, label, mask)
  logits, label = logits[mask > 0].astype(np.float64), label[mask > 0]
  chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  said, sure = chances.argmax(1), chances.max(1)
  want = {
    'top1': metrics.accuracy_score(label, said),
    'top5': metrics.top_k_accuracy_score(label, chances, k=5, labels=range(7)),
    'loss': metrics.log_loss(label, chances, labels=range(7)),
    'balanced': metrics.balanced_accuracy_score(label, said),
    'brier': ((chances - np.eye(7)[label]) ** 2).sum(1).mean(),
  }
  # Guo et al. 2017, equation 3.
  edges = np.linspace(0, 1, 16)
  inside = [(sure >= low) & (sure < high) for low, high in itertools.pairwise(edges)]
  want['ece'] = sum(
    abs((said[i] == label[i]).sum() - sure[i].sum()) for i in inside if i.any()
  ) / len(label)  # fmt: skip
  assert scores.values == pytest.approx(want, rel=1e-5)
  np.testing.assert_array_equal(scores.arrays['confusion'], metrics.confusion_matrix(
    label, said, labels=range(7)
  ))  # fmt: skip
  assert scores.arrays['bin_size'].sum() == len(label)


def test_nothing_at_all_and_absent_classes():
  scores = found(np.zeros((4, 7), np.float32), np.zeros(4, np.int32), np.zeros(4, np.float32))
  assert scores.values['top1'] == scores.values['balanced'] == 0
  scores = found(
    np.eye(7, dtype=np.float32)[:4], np.arange(4, dtype=np.int32), np.ones(4, np.float32)
  )
  assert scores.values['balanced'] == 1
  assert np.isnan(scores.arrays['accuracy'][4:]).all()


def test_many_classes_have_no_confusion_matrix():
  """It would be large; what is said of each class is the same."""
  label = np.array([0, 1500, 1500, 7], np.int32)
  logits = np.eye(2000, dtype=np.float32)[[0, 1500, 3, 7]]
  scores = found(logits, label, np.array([1, 1, 1, 0], np.float32))
  assert 'confusion' not in scores.arrays
  assert scores.arrays['examples'].sum() == 3
  assert scores.arrays['accuracy'][[0, 1500]].tolist() == [1.0, 0.5]
  assert scores.values['balanced'] == 0.75


def test_unknown_reports():
  with pytest.raises(RunError, match='did you mean top1'):
    Classification(report=('top11',))
