"""Evaluators: measurements that are exact on every example; see `evaluator`."""

from vit_jax.evaluators.classification import Classification

EVALUATORS = {'classification': Classification}
