"""Hidden patches: which are, what is predicted of them, and how models see the others."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.core.errors import RunError
from vit_jax.data.rows.masked import Hiding
from vit_jax.models.masked import Mae, MaeConfig, Masked, MaskedConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.tasks.masked import MaskedImages, cut, joined, swapped

SMALL = dict(variant='', patch_size=4, image_size=(16, 16), width=16, depth=2, mlp_dim=32,
             num_heads=2)  # fmt: skip
ENCODER = ViTConfig(**SMALL)
rng = np.random.default_rng


# --- what is hidden ---


def test_units_are_hidden_equally_often_and_always_as_many():
  hiding = Hiding((6, 4), unit=2, count=3)
  drawn = np.array([hiding.draw(rng(seed))['hidden'] for seed in range(2000)])
  assert set(drawn.sum(1)) == {12}
  blocks = drawn.reshape(-1, 3, 2, 2, 2)
  assert (blocks == blocks[:, :, :1, :, :1]).all()  # of two patches by two
  assert np.abs(drawn.mean(0) - 0.5).max() < 5 * math.sqrt(0.25 / 2000)


def test_blocks_are_rectangles_and_never_more_than_asked_for():
  """As in BEiT: many counts, at most 40 %, neighbours hidden together more often than apart."""
  hiding = Hiding((14, 14), count=75, blocks=True)
  drawn = np.array([hiding.draw(rng(seed))['hidden'] for seed in range(400)]).reshape(-1, 14, 14)
  counts = drawn.sum((1, 2))
  assert counts.max() <= 75
  assert 60 < counts.mean() <= 75
  near = (drawn[:, 1:] & drawn[:, :-1]).mean()
  assert near > 2 * drawn.mean() ** 2


def test_some_of_what_is_hidden_shows_itself_or_another_patch():
  """Of 50 % of the patches 80 % are not seen, 10 % swapped and 10 % left."""
  hiding = Hiding((10, 10), count=50, swapped=0.1, left=0.1)
  rows = [hiding.draw(rng(seed)) for seed in range(400)]
  asked, hidden, source = (
    np.array([row[n] for row in rows]) for n in ('asked', 'hidden', 'source')
  )
  assert (asked.sum(1) == 50).all()
  assert not (hidden & ~asked).any()
  moved = source != np.arange(100)
  assert not (moved & (hidden | ~asked)).any()
  for share, want in ((hidden.mean(), 0.4), (moved.mean(), 0.05 * 0.99)):
    assert abs(share - want) < 5 * math.sqrt(want / asked.size)
  assert hiding.arrays().keys() == rows[0].keys()


# --- what is predicted ---


def test_patches_are_cut_and_joined_as_reshapes_do():
  images = rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
  patches = cut(jnp.asarray(images), (4, 4))
  assert patches.shape == (2, 6, 48)
  np.testing.assert_array_equal(patches[1, 4], images[1, 4:, 4:8].reshape(-1))
  np.testing.assert_array_equal(joined(patches, (2, 3), (4, 4)), images)
  source = jnp.array([[0, 1, 2, 3, 4, 5], [5, 1, 2, 3, 4, 0]])
  found = swapped(jnp.asarray(images), source, (4, 4))
  np.testing.assert_array_equal(found[0], images[0])
  np.testing.assert_array_equal(found[1, :4, :4], images[1, 4:, 8:])


def test_targets_are_those_of_their_papers(tmp_path):
  images = rng(0).uniform(size=(3, 16, 16, 3)).astype(np.float32)
  mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
  normed = jnp.asarray((images - mean) / std, jnp.float32)
  encoder = ENCODER.resolve()
  patches = np.asarray(cut(normed, (4, 4)), np.float64)
  of = lambda **fields: MaskedImages(mean=mean, std=std, **fields).wanted(normed, encoder)  # noqa: E731
  want = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
    patches.var(-1, ddof=1, keepdims=True) + 1e-6
  )
  np.testing.assert_allclose(of(target='normalized'), want, atol=2e-5)
  # 3 bits of the mean colour in [0, 1], red first.
  colour = np.asarray(cut(jnp.asarray(images), (4, 4))).reshape(3, 16, 16, 3).mean(2)
  bins = np.clip((colour * 8).astype(int), 0, 7)
  np.testing.assert_array_equal(of(target='colours'), bins @ [64, 8, 1])
  codes = rng(1).normal(size=(7, 48)).astype(np.float32)
  np.save(tmp_path / 'codes.npy', codes)
  own = dict(target='codes', codebook=str(tmp_path / 'codes.npy'))
  far = ((patches[:, :, None] - codes) ** 2).sum(-1)
  np.testing.assert_array_equal(of(**own), far.argmin(-1))
  # They are those of the start of a run.
  np.save(tmp_path / 'codes.npy', codes[::-1])
  np.testing.assert_array_equal(of(**own), far.argmin(-1))
  MaskedImages(**own).adapt(MaskedConfig(ENCODER).resolve(), {})
  np.testing.assert_array_equal(of(**own), 6 - far.argmin(-1))


# --- models ---


def drawn(kind, config):
  """A model in which nothing is zero."""
  model = kind(config, nnx.Rngs(0))
  noise = rng(0)
  return jax.tree.map(lambda x: x + jnp.asarray(noise.normal(0, 0.2, x.shape), x.dtype), model)


@pytest.mark.parametrize('class_token', [True, False])
def test_a_masked_autoencoder_does_not_look_at_what_is_hidden(class_token):
  encoder = dataclasses.replace(ENCODER, class_token=class_token,
                                pool='token' if class_token else 'mean')  # fmt: skip
  config = MaeConfig(encoder, 48, ViTConfig('', width=8, depth=1, num_heads=2)).resolve()
  assert config.decoder.grid == (4, 4)
  assert config.decoder.in_channels == 16
  model = drawn(Mae, config)
  images = rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
  hidden = np.zeros((2, 16), bool)
  hidden[0, [0, 3, 5, 6, 7, 9, 10, 11, 12, 14, 15, 1]] = True
  hidden[1, 4:] = True
  run = jax.jit(lambda images, hidden: model(images, hidden, visible=4))
  said = run(images, hidden)
  assert said.shape == (2, 16, 48)
  other = np.array(cut(jnp.asarray(images), (4, 4)))
  other[hidden] = 7.0
  np.testing.assert_array_equal(run(joined(jnp.asarray(other), (4, 4), (4, 4)), hidden), said)
  # What is seen matters to every patch.
  other[0, 2] += 1
  changed = run(joined(jnp.asarray(other), (4, 4), (4, 4)), hidden)
  assert (np.abs(changed[0] - said[0]).max(-1) > 1e-4).all()


def test_a_masked_model_sees_one_token_for_what_is_hidden():
  model = drawn(Masked, MaskedConfig(ENCODER, 5))
  images = rng(1).normal(size=(1, 16, 16, 3)).astype(np.float32)
  hidden = rng(2).random((1, 16)) < 0.5
  said = model(images, hidden)
  other = np.array(cut(jnp.asarray(images), (4, 4)))
  other[hidden] = 7.0
  same = model(joined(jnp.asarray(other), (4, 4), (4, 4)), hidden)
  np.testing.assert_allclose(said, same, atol=1e-6)
  assert said.shape == (1, 16, 5)


# --- what is refused ---


@pytest.mark.parametrize(
  ('task', 'model', 'message'),
  [
    (dict(), ENCODER, 'task.name=masked needs model.name=masked or mae, not vit'),
    (dict(shape='blocks'), MaeConfig(ENCODER), 'a model mae leaves out what is hidden, equally'),
    (dict(swapped=0.1), MaeConfig(ENCODER), 'a model mae leaves out what is hidden, equally'),
    (dict(unit=6), MaskedConfig(ENCODER), 'task.unit=6 must be a multiple of patches of'),
    (dict(unit=12), MaskedConfig(ENCODER), 'task.unit=12 does not divide images of'),
    (dict(ratio=0.99), MaskedConfig(ENCODER), 'task.ratio=0.99 hides all 16 of patches'),
    (dict(), MaskedConfig(ENCODER, 3), 'model.outputs=3, and task.target=normalized has 48'),
    (dict(target='codes', codebook='no.npy'), MaskedConfig(ENCODER), 'no.npy cannot be read'),
  ],
)
def test_models_that_do_not_fit_are_refused(task, model, message):
  with pytest.raises(RunError, match=message):
    MaskedImages(**task).adapt(model.resolve(), {})


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(target='colors'), "unknown task.target 'colors': did you mean colours"),
    (dict(ratio=1.0), 'task.ratio=1.0 must be between 0 and 1'),
    (dict(swapped=0.6, left=0.5), 'together from 0 to 1'),
    (dict(target='colours', loss_of='l1'), 'task.loss_of=l1 is of pixels'),
    (dict(target='codes'), 'give both or neither'),
    (dict(unit=32, shape='blocks'), 'task.unit is of task.shape=random'),
  ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
  with pytest.raises(RunError, match=message):
    MaskedImages(**fields)
