"""Evaluators: given the model, (name, value) pairs that are exact on every example.

Each is a frozen dataclass with the field `every` (a duration) and the method `prepare`, which opens
its data and returns an `Evaluation`, the function from model to pairs.
"""

from vit_jax.evaluators.classification import Classification

EVALUATORS = {'classification': Classification}
