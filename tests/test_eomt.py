"""Encoder-only mask transformers: the model, its masks of attention, its costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.architecture.eomt import EomtArchitecture
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError
from vit_jax.costs import flops
from vit_jax.models.eomt import EomtConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn.attention import Context
from vit_jax.nn.encoder import Encoder, split_layers

VIT = dict(variant='mu/8', image_size=(32, 48), width=32, depth=3, mlp_dim=64, num_heads=2)


def made(**fields):
  encoder = ViTConfig(**VIT, registers=1, pool='mean', rope='unit', posemb='none')
  config = EomtConfig(**{**dict(encoder=encoder, queries=5, blocks=2, num_classes=4), **fields})
  return config.create(nnx.Rngs(0))


def test_part_after_part_is_the_whole_encoder():
  """With the same key; scanned, unrolled, and unrolled with layers that are apart."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 32)), jnp.float32)
  key, whole = jax.random.key(1), None
  for scan in (True, False):
    config = ViTConfig(**{**VIT, 'depth': 2}, drop_path=0.5, dropout=0.2, scan=scan).resolve()
    encoder = Encoder(config, nnx.Rngs(0))

    @jax.jit
    def both(encoder, x):
      y = x
      for layers in ((0, 1), (1, 2)):
        y, _ = encoder(y, Context(), key=key, layers=layers)
      return encoder(x, key=key)[0], y

    want, got = both(encoder, x)
    whole = want if whole is None else whole
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(want, whole, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(both(split_layers(encoder), x)[1], whole, rtol=1e-5, atol=1e-6)
  windows = Encoder(ViTConfig(**{**VIT, 'depth': 2}, attention='h2w2,full').resolve(),
                    nnx.Rngs(0), grid=(4, 6))  # fmt: skip
  with pytest.raises(ValueError, match='several kinds of layers'):
    windows(jnp.zeros((1, 24, 32)), layers=(0, 1))


def test_queries_see_the_patches_of_their_masks():
  """What other patches hold makes no difference to a query, but where its mask is lifted."""
  model = made(blocks=1)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 48, 3)), jnp.float32)

  @jax.jit
  def run(model, x, lifted):
    return model(x, lifted=lifted, deep=True)

  off, on = (jnp.full((2, 1, 5), value) for value in (False, True))
  free, bound, mixed = (
    run(model, x, on),
    run(model, x, off),
    run(model, x, on.at[0, 0, 1].set(False)),
  )
  assert free['logits'].shape == (2, 2, 5, 5)
  assert free['masks'].shape == (2, 2, 5, 8, 12)
  np.testing.assert_array_equal(free['logits'][:, 0], bound['logits'][:, 0])
  differs = np.abs(np.asarray(free['logits'] - bound['logits'])[:, 1]).max(-1)
  bounded = ~np.asarray(model._seen(free['masks'][:, 0], off[:, 0], (4, 6), 30)).all(-1)
  assert bounded.sum() > 5
  np.testing.assert_array_equal(differs > 1e-4, bounded)
  # One block, so that no query hears of the change in another one.
  np.testing.assert_allclose(mixed['logits'][0, 1, 1], bound['logits'][0, 1, 1], rtol=1e-5)
  others = np.delete(np.asarray(mixed['logits'] - free['logits'])[:, 1].reshape(10, -1), 1, axis=0)
  assert np.abs(others).max() < 1e-5
  np.testing.assert_allclose(model(x)['masks'], free['masks'][:, 1:], rtol=1e-4, atol=1e-5)
  # The patches of a mask that the model is told, in place of its own.
  masks = np.full((2, 5, 8, 12), -1.0, np.float32)
  masks[1, 2, 2:4, 6:8] = 1  # a patch: row 1, column 3
  seen = model._seen(jnp.asarray(masks), off[:, 0], (4, 6), 26)
  assert seen.shape == (2, 5, 26)
  assert seen[..., :2].all()
  assert np.argwhere(seen[..., 2:]).tolist() == [[1, 2, 9]]


def test_costs():
  """As many parameters as there are, those of the published models, and heads that count."""
  for fields in ({}, dict(pixel_head=True, upscale=0), dict(upscale=2)):
    model = made(**fields)
    held = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert sum(part.params for part in flops.costs(model.config).parts) == held
  published = {'S': 23_975_942, 'B': 93_663_110, 'L': 316_695_686}
  for size, count in published.items():
    encoder = ViTArchitecture(
      f'dinov2:{size}/14', patch_size=16, image_size=(640, 640), registers=4, mask_token=False,
      posemb_tokens='patches',
    )  # fmt: skip
    config = EomtArchitecture(encoder, queries=200, num_classes=133).resolve()
    assert sum(part.params for part in flops.costs(config).parts) == count
    assert config.grid == (160, 160)
  once = sum(macs for name, _, macs in config.rest if name in ('upscale', 'masks', 'classes'))
  deep = {name: macs for name, _, macs in config.deep}
  assert deep['upscale'] + deep['masks'] + deep['classes'] == 4 * once


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(blocks=4), 'blocks=4 must be from 1 to the depth, 3'),
    (dict(queries=0), 'queries=0 must be at least 1'),
    (dict(upscale=-1), 'upscale=-1 must not be negative'),
    (dict(encoder=dict(attention='h+w', pool='mean')), 'attention=full'),
    (dict(encoder=dict(num_classes=3)), 'queries say the classes'),
    (dict(encoder=dict(patch_dropout=0.5)), 'patches that are left out'),
  ],
)
def test_what_makes_no_model(changes, message):
  encoder = ViTArchitecture(**VIT, **changes.pop('encoder', {}))
  config = dataclasses.replace(EomtArchitecture(encoder, blocks=2), **changes)
  with pytest.raises(RunError, match=message):
    config.resolve()
