"""Losses over all pairs of a batch: against float64, on any mesh, and what they keep in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.core.errors import RunError
from vit_jax.nn import pairs
from vit_jax.nn.sharding import reshard

WIDTH, BATCH = 6, 16
FORMS = {'dense': 0, 'around': 0, 'blocks': 2}


def given(seed=0, batch=BATCH, width=WIDTH, padding=2):
  """Unit vectors, of which two texts are the same and some are padding; scale and bias."""
  rng = np.random.default_rng(seed)
  image, text = rng.normal(size=(2, batch, width))
  image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
  key = np.arange(batch)[:, None] * np.ones((1, 3))
  text[5], key[5] = text[3], key[3]
  text[batch // 2], key[batch // 2] = text[1], key[1]
  real = np.arange(batch) < batch - padding
  return (image, text, key, real.astype(np.float64)), 7.0, -3.0


def in_float64(kind, image, text, key, real, scale, bias):
  """The loss of each pair, and gradients of their sum: of image, text, scale and bias."""
  cosines = image @ text.T
  logits = scale * cosines + bias
  own = np.eye(len(image), dtype=bool)
  same = (key[:, None] == key[None]).all(-1) & ~own
  counted = (real[:, None] * real[None] > 0) & ~same
  if kind == 'sigmoid':
    sign = np.where(own, 1.0, -1.0)
    each = (counted * np.logaddexp(0, -sign * logits)).sum(1)
    weight = -sign * counted / (1 + np.exp(sign * logits))
  else:
    chances = np.where(counted, np.exp(logits), 0)
    rows, columns = (chances.sum(axis) for axis in (1, 0))
    rows, columns = (np.where(real > 0, x, 1.0) for x in (rows, columns))
    each = real * ((np.log(rows) + np.log(columns)) / 2 - np.diagonal(logits))
    weight = (chances / rows[:, None] + chances / columns) / 2 - own * real
  grads = scale * weight @ text, scale * weight.T @ image, (weight * cosines).sum(), weight.sum()
  return each, grads


def computed(form, kind, arrays, scale, bias):
  """The same by what is tested, with the layout of a batch."""
  run = pairs.dense if form == 'dense' else functools.partial(pairs.around, block=FORMS[form])
  arrays = [jnp.asarray(x, jnp.float32) for x in arrays]

  def total(image, text, scale, bias):
    found = run(kind=kind, pairs=pairs.Pairs(image, text, *rest), scale=scale, bias=bias)
    return found.loss.sum(), found

  placed = [reshard(x, 'batch', *(None,) * (x.ndim - 1)) for x in arrays]
  rest = placed[2:]
  step = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))
  grads, found = step(*placed[:2], jnp.float32(scale), jnp.float32(bias))
  return jax.tree.map(np.asarray, (found, grads))


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_losses_are_those_of_the_papers_on_any_mesh(kind, mesh):
  arrays, scale, bias = given()
  each, grads = in_float64(kind, *arrays, scale, bias)
  cosines = arrays[0] @ arrays[1].T
  for layout in ((1, 1, 1), (2, 2, 2), (2, 4, 1)):
    with mesh(*layout):
      for form in FORMS:
        found, by = computed(form, kind, arrays, scale, bias)
        np.testing.assert_allclose(found.loss, each, rtol=1e-5, atol=1e-6)
        for wanted, got in zip(grads, by, strict=True):
          if kind == 'softmax' and np.ndim(wanted) == 0 and abs(wanted) < 1e-9:
            continue  # a softmax does not feel a bias: rounding is left
          bound = 2e-6 * np.abs(wanted).max()
          np.testing.assert_allclose(got, wanted, rtol=0, atol=bound, err_msg=f'{layout} {form}')
        real = arrays[3] > 0
        others = np.where(real & ~np.eye(BATCH, dtype=bool), cosines, -2)
        others[5, 3] = others[3, 5] = others[1, 8] = others[8, 1] = -2  # the same texts
        first = (np.diagonal(cosines) > others.max(1)) & real
        np.testing.assert_array_equal(found.text_right > 0, first)
        others = np.where(real[:, None], others, -2)
        first = (np.diagonal(cosines) > others.max(0)) & real
        np.testing.assert_array_equal(found.image_right > 0, first)


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_padding_and_duplicates_are_as_if_they_were_not_there(kind):
  """A batch of what is left, in float64, has the same loss; texts kept apart count."""
  (image, text, key, real), scale, bias = given()
  few = [x[real > 0] for x in (image, text, key, real)]
  each, _ = in_float64(kind, *few, scale, bias)
  found, _ = computed('dense', kind, (image, text, key, real), scale, bias)
  np.testing.assert_allclose(found.loss[real > 0], each, rtol=1e-5)
  apart, _ = in_float64(kind, image, text, np.arange(BATCH)[:, None], real, scale, bias)
  for form in FORMS:
    found, _ = computed(form, kind, (image, text, key[:, :0], real), scale, bias)
    np.testing.assert_allclose(found.loss, apart, rtol=1e-5, atol=1e-6)
  assert not np.allclose(apart, np.pad(each, (0, 2)))


@pytest.mark.parametrize('width', [WIDTH, 96, 512])
def test_a_collapsed_model_finds_nothing(width, mesh):
  """Whose vectors differ by rounding."""
  arrays, scale, bias = given()
  rng = np.random.default_rng(0)
  one = rng.normal(size=width)
  image, text = one / np.linalg.norm(one) + 1e-7 / width**0.5 * rng.normal(size=(2, BATCH, width))
  for layout in ((1, 1, 1), (4, 1, 1)):
    with mesh(*layout):
      for form in FORMS:
        found, _ = computed(form, 'softmax', (image, text, *arrays[2:]), scale, bias)
        assert found.text_right.sum() == found.image_right.sum() == 0


def test_all_is_padding(mesh):
  """As on the devices that have no examples of a small split."""
  arrays, scale, bias = given(padding=BATCH)
  with mesh(4, 1, 1):
    for form in FORMS:
      for kind in pairs.KINDS:
        found, grads = computed(form, kind, arrays, scale, bias)
        assert not found.loss.any()
        assert all(np.isfinite(grad).all() and not np.any(grad) for grad in grads)


def test_the_ring_has_no_more_than_a_block(mesh):
  """What the compiler needs, besides arguments and results, for loss and gradients of a batch."""
  batch, width, count = 4096, 64, 8
  local = batch // count

  def step(run):
    def total(image, text):
      with_real = pairs.Pairs(image, text, image[:, :0], jnp.ones_like(image[:, 0]))
      return run('sigmoid', pairs=with_real, scale=10.0, bias=-10.0).loss.sum()

    like = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=layout)
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(like, like).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  with mesh(count, 1, 1):
    layout = jax.NamedSharding(jax.sharding.get_mesh(), jax.P(('data', 'fsdp')))
    dense, whole, blocks = (
      step(run) for run in (
        pairs.dense, functools.partial(pairs.around, block=0),
        functools.partial(pairs.around, block=local // 8),
      )
    )  # fmt: skip
  features = 4 * local * width
  assert dense > 4 * local * batch
  assert whole < 8 * 4 * local**2
  assert blocks < 12 * features + 8 * 4 * local * local // 8
  assert blocks < whole < dense / 2


def test_blocks_that_do_not_divide_are_refused():
  arrays, scale, bias = given()
  both = pairs.Pairs(*(jnp.asarray(x, jnp.float32) for x in arrays))
  with pytest.raises(RunError, match='blocks of 5 texts do not divide the 16 pairs of a device'):
    pairs.around('sigmoid', 5, both, jnp.float32(scale), jnp.float32(bias))
