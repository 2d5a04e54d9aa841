"""The maximal-update parametrisation: sizes that do not depend on the model's, and a learning rate
that carries over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vit_jax import lanes, mup, optim, tree
from vit_jax.data.pipeline import train_batches
from vit_jax.encoder import Encoder
from vit_jax.errors import RunError
from vit_jax.layers import Dense
from vit_jax.models.vit import ViTConfig
from tests.test_step import build

WIDTHS, DEPTHS = (16, 32, 64, 128), (1, 2, 4, 8)


def config_of(width=32, depth=1, *, mup_width=16, mup_depth=1, **changes):
  fields = dict(
    variant='mu/4', image_size=(8, 8), in_channels=1, num_classes=10, pool='map', width=width,
    depth=depth, mlp_dim=4 * width, num_heads=4, mup_width=mup_width, mup_depth=mup_depth,
  )  # fmt: skip
  return ViTConfig(**{**fields, **changes}).resolve()


def moved(config, steps=4, seeds=4, lr=1e-2):
  """Root mean squares of what training has added to activations, mean over seeds, by name."""
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(32, 8, 8, 1)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 10, 32))
  setting = optim.OptimConfig(lr=lr, weight_decay=0.0, clip=0.0)
  hyper = optim.Hyper(*map(np.float32, (lr, 0.0, 0.9, 0.999)))

  def loss(model):
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

  def run(key):
    model = config.create(nnx.Rngs(key))
    first, state = model.features(images), optim.optimizer(setting, model, hyper).init(model)

    def step(carry, _):
      model, state = carry
      grad = jax.grad(loss)(model)
      update, state = optim.optimizer(setting, model, hyper).update(grad, state, model)
      return (optax.apply_updates(model, update), state), None

    (model, _), _ = jax.lax.scan(step, (model, state), length=steps)
    last = model.features(images)
    names = ('tokens', f'block{config.depth - 1:02d}', 'encoded', 'pooled', 'logits')
    rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))  # noqa: E731
    return {name.rstrip('0123456789'): rms(last[name] - first[name]) for name in names}

  found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), seeds))
  return {name: float(value.mean()) for name, value in found.items()}


def slopes(sizes, found):
  """Exponents of the size, by name."""
  return {
    name: np.polyfit(np.log(sizes), np.log([each[name] for each in found]), 1)[0]
    for name in found[0]
  }


def test_coordinate_check_of_width():
  """Activations move as much in wide models as in narrow ones (Yang et al. 2022, appendix D.1)."""
  got = slopes(WIDTHS, [moved(config_of(width)) for width in WIDTHS])
  assert max(map(abs, got.values())) < 0.15, got
  # The check can fail: with the standard parametrisation they do not.
  got = slopes(WIDTHS, [moved(config_of(width, mup_width=0)) for width in WIDTHS])
  assert got['logits'] > 0.3, got


def test_coordinate_check_of_depth():
  got = slopes(DEPTHS, [moved(config_of(depth=depth)) for depth in DEPTHS])
  assert max(map(abs, got.values())) < 0.15, got
  got = slopes(DEPTHS, [moved(config_of(depth=depth, mup_depth=0)) for depth in DEPTHS])
  assert got['block'] > 0.3, got
