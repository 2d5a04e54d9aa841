"""Drawn land: what its maps say is what its pictures show, and looks alone give nothing away."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from vit_jax.core.errors import RunError
from vit_jax.data.fields import VOID
from vit_jax.data.generators.terrain import BANDS, COVER, NAMES, Terrain
from vit_jax.data.rows.columns import Columns, Image, Map
from vit_jax.data.views import View

PLAIN: dict[str, Any] = dict(nuisance=0.0, clouds=0.0, shift=0.0)


def drawn(terrain, count=24):
  return [terrain.example(np.random.default_rng(i), split='train') for i in range(count)]


def joined(examples, name):
  return np.stack([example[name] for example in examples])


def test_examples_are_functions_of_their_seed():
  for of in NAMES:
    terrain = Terrain(of=of, size=(24, 40), bands=('nir', 'red'), dtype='uint16')
    one, again = (terrain.example(np.random.default_rng(3), split=s) for s in ('train', 'test'))
    assert {*one} == {*terrain.fields}
    for name, value in one.items():
      np.testing.assert_array_equal(value, again[name])
      if name != 'map':
        assert (value.shape, value.dtype) == ((24, 40, 2), np.uint16)
    labels = {*np.unique(one['map'])} - {VOID}
    assert labels <= {*range(len(NAMES[of]))}


def test_spectra_are_those_of_what_is_there():
  """Vegetation index and wetness of the land cover, in reflectances."""
  terrain = Terrain(bands=BANDS, dtype='uint16', **PLAIN)
  examples = drawn(terrain)
  image, labels = joined(examples, 'image') / 10_000, joined(examples, 'map')
  mean = {
    name: image[labels == number].mean(0)
    for number, name in enumerate(COVER)
    if (labels == number).any()
  }
  assert {*mean} == {*COVER}
  ratio = lambda name, a, b: (  # noqa: E731
    (mean[name][BANDS.index(a)] - mean[name][BANDS.index(b)])
    / (mean[name][BANDS.index(a)] + mean[name][BANDS.index(b)])
  )
  vegetation = {name: ratio(name, 'nir', 'red') for name in COVER}
  assert min(vegetation['forest'], vegetation['grass']) > 0.35
  assert max(vegetation['water'], vegetation['snow'], vegetation['road']) < 0.15
  assert ratio('water', 'green', 'nir') > 0.3  # McFeeters 1996
  assert ratio('snow', 'green', 'swir1') > 0.4  # Dozier 1989


def test_what_changed_is_seen_where_nothing_else_differs():
  """And without any event both pictures are the same but for noise of the sensor."""
  examples = drawn(Terrain(of='change', **PLAIN))
  before, after = (joined(examples, name).astype(float) for name in ('before', 'after'))
  apart, changed = np.abs(before - after).mean(-1), joined(examples, 'map')
  assert {*np.unique(changed)} == {0, 1}
  calm = changed.reshape(len(changed), -1).max(1) == 0
  assert 2 <= calm.sum() <= 14
  assert apart[calm].max() < 0.05 * 255
  assert apart[changed == 1].mean() > 8 * apart[changed == 0].mean()


def test_differences_of_pixels_do_not_show_changes():
  """With the best threshold there is; looks differ more than what is there."""
  examples = drawn(Terrain(of='change'), 40)
  before, after = (joined(examples, name).astype(float) for name in ('before', 'after'))
  apart, labels = np.abs(before - after).mean(-1), joined(examples, 'map')
  known = labels != VOID
  order = np.argsort(-apart[known])
  hits = np.cumsum(labels[known][order])
  f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
  assert 0.05 < f1.max() < 0.45


def test_damage_is_of_houses_and_grows_with_its_level():
  examples = drawn(Terrain(of='damage', **PLAIN), 60)
  before, after = (joined(examples, name).astype(float) for name in ('before', 'after'))
  apart, labels = np.abs(before - after).mean(-1), joined(examples, 'map')
  share = np.bincount(labels.ravel(), minlength=5)[1:] / (labels > 0).sum()
  np.testing.assert_allclose(share, [0.70, 0.12, 0.10, 0.08], atol=0.12)
  of_level = [apart[labels == level].mean() for level in range(1, 5)]
  assert of_level == sorted(of_level)
  assert apart[labels == 1].max() < 0.05 * 255


def test_clouds_have_no_class_and_the_rows_know():
  terrain = Terrain(clouds=1.0, size=(32, 32))
  example = {**terrain.example(np.random.default_rng(0), split='train'), 'name': 'x'}
  hidden = example['map'] == VOID
  assert 0 < hidden.mean() < 0.9
  rows = Columns(View(size=(32, 32)), (Image(3),), (Map(len(COVER), (VOID,)),))
  row = rows.make(example, np.random.default_rng(0))
  np.testing.assert_array_equal(row['map'] == 255, hidden)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(of='covr'), "unknown of of terrain 'covr': did you mean cover"),
    (dict(bands=('red', 'nri')), "unknown band of terrain 'nri': did you mean nir"),
    (dict(dtype='float32'), "unknown dtype of terrain 'float32'"),
    (dict(size=(8, 64)), 'at least 16 pixels'),
    (dict(shift=9.0), 'shift from 0 to 4'),
    (dict(bands=()), 'and a band'),
  ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
  with pytest.raises(RunError, match=message):
    dataclasses.replace(Terrain(), **change)
