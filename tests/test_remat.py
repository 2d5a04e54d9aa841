"""Activations that stay where those of all layers are: the same gradients, and nothing twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.models.vit import ViTConfig
from vit_jax.nn import remat, sharding

BASE = dict(
  variant='mu/16', width=32, depth=3, num_heads=2, mlp_dim=48, image_size=(48, 32), pool='mean',
  num_classes=3, remat='names',
)  # fmt: skip
CASES = {
  'plain': {},
  'full': dict(remat='full'),
  'some names': dict(remat='attn,hidden'),
  'bfloat16': dict(dtype='bfloat16'),
  'modern': dict(mlp='swiglu', norm='rmsnorm', qk_norm=True, rope='unit', layerscale=0.3,
                 registers=2, posemb='none'),
  'post': dict(norm_place='post', relative_bias='layer', mlp_norm=True),
  'parallel': dict(parallel=True, relative_bias='shared'),
  'dropped': dict(drop_path=0.5, relative_bias='shared'),
  'subset': dict(drop_path=0.5, drop_path_mode='subset'),
  'windows': dict(attention='h2w1,full', depth=4, relative_bias='shared'),
  'axes': dict(attention='h+w', class_token=True, drop_path=0.3),
}  # fmt: skip


def gradients(changes, mesh, kept_in_place, monkeypatch):
  monkeypatch.setattr(
    remat, 'stays', lambda policy: kept_in_place and policy not in ('none', 'dots')
  )
  images = np.random.default_rng(0).normal(size=(8, 48, 32, 3)).astype(np.float32)
  devices = jax.devices()[: np.prod([int(n) for n in mesh.split('x')])]
  config = ViTConfig(**{**BASE, **changes})

  def loss(model, x):
    out = model(x, key=jax.random.key(1))
    return jnp.square(out - 1).mean()

  with jax.set_mesh(sharding.make_mesh(mesh, devices)):
    model = config.resolve().create(nnx.Rngs(jax.random.key(0)))
    x = sharding.BatchLayout(8).place({'image': images})['image']
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    text = step.lower(model, x).as_text()
    return jax.tree.map(np.asarray, step(model, x)), text


@pytest.mark.parametrize(
  ('case', 'mesh'), [*((case, '1x1x1') for case in CASES), ('plain', '2x2x2'), ('subset', '1x2x1')]
)
def test_gradients_are_those_of_any_other_scan(case, mesh, monkeypatch):
  got, text = gradients(CASES[case], mesh, True, monkeypatch)
  want, other = gradients(CASES[case], mesh, False, monkeypatch)
  assert text.count('optimization_barrier') > other.count('optimization_barrier')
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = max(np.abs(b).max(), 1e-3)
    tolerance = 2e-2 if case == 'bfloat16' else 1e-5
    np.testing.assert_allclose(a / scale, b / scale, atol=tolerance)


@pytest.mark.slow
def test_under_vmap(monkeypatch):
  """As lanes of a sweep run."""
  monkeypatch.setattr(remat, 'stays', lambda policy: policy == 'names')
  config = ViTConfig(**BASE).resolve()
  models = [config.create(nnx.Rngs(jax.random.key(i))) for i in range(2)]
  both = jax.tree.map(lambda *w: jnp.stack(w), *models)
  images = jax.random.normal(jax.random.key(2), (2, 4, 48, 32, 3))
  grad = jax.grad(lambda model, x: jnp.square(model(x) - 1).mean())
  got = jax.jit(jax.vmap(grad))(both, images)
  for i, model in enumerate(models):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(grad(model, images[i])), strict=True):
      np.testing.assert_allclose(a[i], b, atol=2e-6)
