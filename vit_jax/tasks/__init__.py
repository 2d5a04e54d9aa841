"""Tasks: objectives of training; see `task`."""

from vit_jax.tasks.classification import Classification

TASKS = {'classification': Classification}
