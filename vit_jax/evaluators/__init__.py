"""Evaluators: measurements that are exact on every example; see `evaluator`."""

from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.multilabel import MultiLabel
from vit_jax.evaluators.regression import Regression
from vit_jax.evaluators.segmentation import Segmentation

EVALUATORS = {
  'classification': Classification, 'multilabel': MultiLabel, 'regression': Regression,
  'segmentation': Segmentation,
}  # fmt: skip
