"""Tasks: an objective each, a frozen dataclass with two methods.

`augment(batch, rng)` changes a whole batch on the devices (rng None: as in evaluation), and
`metrics(model, batch)` returns a dict of sums over the examples that are not masked, among them the
`loss` to be minimised.
"""

from vit_jax.tasks.classification import Classification

TASKS = {'classification': Classification}
