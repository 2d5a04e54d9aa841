"""Windows over an image: exact where they should be, whatever its size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.nn import sharding, windows

SIZES = [((16, 16), (8, 8), (2, 4)), ((23, 31), (8, 12), (3, 5)), ((8, 40), (8, 8), (0, 7)),
         ((5, 20), (8, 8), (2, 2)), ((9, 3), (8, 8), (1, 0)), ((1, 1), (4, 4), (2, 2))]  # fmt: skip


def run(function, image, window, overlap, batch=4, model=None):
  """All rows of an image, and how many came at a time."""
  asked = []

  def read(top, rows):
    asked.append((top, rows))
    assert top + rows <= len(image['x'])
    return {name: x[top : top + rows] for name, x in image.items()}

  parts, at = [], 0
  over = windows.Windows(function, window, overlap, batch)
  for top, values in over.strips(model, read, image['x'].shape[:2]):
    assert top == at
    at += len(values)
    parts.append(values)
  assert max(rows for _, rows in asked) <= window[0]
  return np.concatenate(parts)


@pytest.mark.parametrize(('size', 'window', 'overlap'), SIZES)
def test_what_depends_on_the_place_alone_is_the_same_in_all_windows(size, window, overlap):
  """And so a constant stays one; every pixel is there once, however many windows see it."""
  x = np.random.default_rng(0).normal(size=(*size, 2)).astype(np.float32)
  got = run(lambda model, w: jnp.concatenate([w['x'] * 2, jnp.ones_like(w['x'])], -1), {'x': x},
            window, overlap)  # fmt: skip
  assert got.shape == (*size, 4)
  np.testing.assert_allclose(got[..., :2], 2 * x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got[..., 2:], 1, rtol=1e-6)


def blended(function, image, window, overlap):
  """The mean of all windows with Hann weights, in float64, one window after another."""
  size = image.shape[:2]
  tops, lefts = (
    sorted({min(at, side - w) for at in range(0, side, w - o)})
    for side, w, o in zip(size, window, overlap, strict=True)
  )
  # As many windows as are needed, no more.
  cover = lambda places, side, w: [  # noqa: E731
    at for i, at in enumerate(places) if i == 0 or places[i - 1] + w < side
  ]
  tops, lefts = cover(tops, size[0], window[0]), cover(lefts, size[1], window[1])
  rise = [np.sin(np.pi * (np.arange(w) + 0.5) / w) ** 2 + 1e-3 for w in window]
  weight = rise[0][:, None] * rise[1][None]
  total, of = 0.0, 0.0
  for top in tops:
    for left in lefts:
      here = np.zeros(size), np.zeros(size)
      where = slice(top, top + window[0]), slice(left, left + window[1])
      here[0][where] = function(image[where]) * weight
      here[1][where] = weight
      total, of = total + here[0], of + here[1]
  return total / of


@pytest.mark.parametrize(('size', 'window', 'overlap'), SIZES[:3])
def test_windows_are_averaged_by_their_weights(size, window, overlap):
  """Of a function that knows what else is in its window, whatever the batch of windows."""
  x = np.random.default_rng(1).normal(size=(*size, 1))
  want = blended(lambda w: w[..., 0] ** 2 + w.mean() * 3, x, window, overlap)
  for batch in (1, 3, 8):
    got = run(
      lambda model, w: w['x'] ** 2 + w['x'].mean((1, 2, 3), keepdims=True) * model,
      {'x': x.astype(np.float32)}, window, overlap, batch, jnp.float32(3.0),
    )  # fmt: skip
    np.testing.assert_allclose(got[..., 0], want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('layout', ['data', '2x2x2'])
def test_windows_are_cut_over_a_mesh(layout):
  """With a second array of another type, which says what is there."""
  rng = np.random.default_rng(2)
  image = {
    'x': rng.normal(size=(20, 30, 3)).astype(np.float32),
    'there': rng.random((20, 30)) < 0.7,
  }

  def function(model, w):
    x = w['x'] * w['there'][..., None]
    y = jnp.einsum('bhwc,cd->bhwd', x, model, out_sharding=sharding.spec('batch', None, None, None))
    return y + x.sum((1, 2), keepdims=True)[..., :1]

  model = rng.normal(size=(3, 5)).astype(np.float32)
  want = run(function, image, (8, 8), (3, 3), 8, model)
  with jax.set_mesh(sharding.make_mesh(layout)):
    got = run(function, image, (8, 8), (3, 3), 8, model)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_there_are_no_seams():
  """Where windows meet, what is said changes no more than elsewhere: a seam index near 1."""
  rng = np.random.default_rng(3)
  smooth = np.cumsum(np.cumsum(rng.normal(size=(64, 64)), 0), 1)[..., None].astype(np.float32) / 64

  def function(model, w):  # sure of itself only in the middle of a window
    return w['x'] + w['x'].std((1, 2, 3), keepdims=True)

  index = {}
  for overlap in (0, 8):
    said = run(function, {'x': smooth}, (16, 16), (overlap, overlap))[..., 0]
    step = np.abs(np.diff(said - smooth[..., 0], axis=1))
    edges = [at - 1 for at in windows.starts(64, 16, overlap)[1:]]
    index[overlap] = step[:, edges].mean() / max(np.delete(step, edges, 1).mean(), 1e-6)
  assert index[0] > 100
  assert index[8] < 1.2
