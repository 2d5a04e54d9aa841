"""The order of examples: a bijection, as random as a permutation, in no memory to speak of."""

import itertools
import tracemalloc

import numpy as np
import pytest

from vit_jax.data.order import Keyed, Mixed, Once, Permutation, shuffled

COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100, 1000, 1437, 4096, 65537, 100_003)


@pytest.mark.parametrize('count', COUNTS)
def test_every_epoch_has_every_example_once(count):
  for kind in (Keyed, Permutation):
    order = kind(count, 3)
    epochs = [order(np.arange(epoch * count, (epoch + 1) * count)) for epoch in range(3)]
    for epoch in epochs:
      np.testing.assert_array_equal(np.sort(epoch), np.arange(count))
    if count > 100:
      assert not any((a == b).mean() > 0.02 for a, b in itertools.combinations(epochs, 2))


def test_places_are_independent_of_what_is_asked_for_together():
  order, places = Keyed(1437, 0), np.arange(5000)
  whole = order(places)
  assert [int(order(np.array([at]))[0]) for at in (0, 1436, 1437, 4999)] == [
    whole[at] for at in (0, 1436, 1437, 4999)
  ]
  np.testing.assert_array_equal(order(places.reshape(50, 100)).ravel(), whole)
  np.testing.assert_array_equal(order(places[::-7]), whole[::-7])
  assert (Keyed(1437, 1)(places) != whole).mean() > 0.99


def test_the_order_is_what_it_was():
  """Runs of today must find it again: these numbers may never change."""
  assert Keyed(10, 0)(np.arange(20)).tolist() == FIRST
  assert Keyed(3_000_000_000, 7)(np.arange(3) + 10**15).tolist() == LARGE


FIRST = [3, 2, 5, 9, 1, 8, 4, 7, 6, 0, 1, 3, 4, 9, 8, 0, 2, 5, 6, 7]
LARGE = [2111138813, 1630140065, 1992119957]


def test_billions_of_examples_take_no_memory():
  """None of them twice among a million, in places of two epochs, all of the range in use."""
  count = 3_000_000_000
  order = Keyed(count, 0)
  places = np.arange(count - 500_000, count + 500_000)
  order(places[:1000])
  tracemalloc.start()
  found = np.concatenate([order(places[at : at + 1000]) for at in range(0, len(places), 1000)])
  held = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert held < 40e6  # 8 MB are the result, twice
  assert found.dtype == np.int64
  assert len(set(found[:500_000].tolist())) == len(set(found[500_000:].tolist())) == 500_000
  assert found.min() >= 0
  assert found.max() < count
  counts = np.histogram(found, bins=64, range=(0, count))[0]
  assert chi_square(counts) < 120  # of 63 degrees of freedom; 0.9999 is 115


def chi_square(counts):
  mean = counts.mean()
  return float(((counts - mean) ** 2).sum() / mean)


@pytest.mark.parametrize('count', [3, 5, 7])
def test_small_sets_see_every_permutation_equally_often(count):
  """Over seeds: all of them, each about as often as chance has it."""
  seeds, found = 6000, {}
  for seed in range(seeds):
    order = tuple(Keyed(count, seed)(np.arange(count)).tolist())
    found[order] = found.get(order, 0) + 1
  every = list(itertools.permutations(range(count)))
  counts = np.array([found.get(order, 0) for order in every])
  freedom = len(every) - 1
  assert chi_square(counts) < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize('count', [64, 1000, 50_000])
def test_neighbours_are_as_far_apart_as_in_a_permutation(count):
  """Statistics of many epochs, beside those of NumPy's permutations."""
  epochs = 400 if count < 10_000 else 20
  order, rng = Keyed(count, 5), np.random.default_rng(0)
  ours = [order(np.arange(count) + epoch * count) for epoch in range(epochs)]
  theirs = [rng.permutation(count) for _ in range(epochs)]

  def statistics(orders):
    steps = np.array([np.abs(np.diff(each)).mean() / count for each in orders])
    rising = np.array([(np.diff(each) > 0).mean() for each in orders])
    at = np.arange(count)
    kept = np.array([np.corrcoef(at, each)[0, 1] for each in orders])
    fixed = np.array([(each == at).sum() for each in orders], float)
    return steps, rising, kept, fixed

  for a, b in zip(statistics(ours), statistics(theirs), strict=True):
    error = (a.var() / epochs + b.var() / epochs) ** 0.5
    assert abs(a.mean() - b.mean()) < 4.5 * error
    assert 0.6 < (a.std() + 1e-9) / (b.std() + 1e-9) < 1.6


def test_once():
  assert Once(3)(np.arange(5)).tolist() == [0, 1, 2, -1, -1]


def test_a_mixture_has_its_shares_and_loses_nothing():
  parts = (Keyed(70, 1), Keyed(1000, 1), Keyed(9, 1))
  mixed = Mixed(parts, (0, 70, 1070), (0.5, 0.3, 0.2), 1)
  found = mixed(np.arange(10 * 1024))
  which = np.searchsorted([70, 1070], found, side='right')
  blocks = which.reshape(10, 1024)
  for block in blocks:
    assert np.bincount(block, minlength=3).tolist() == [512, 307, 205]
  assert not (blocks[0] == blocks[1]).all()
  # Each part is seen in its own order, epoch after epoch.
  for part, first in enumerate((0, 70, 1070)):
    own = found[which == part] - first
    seen = np.sort(np.concatenate([parts[part](np.arange(len(own)))]))
    np.testing.assert_array_equal(np.sort(own), seen)
  np.testing.assert_array_equal(mixed(np.array([5000, 17])), found[[5000, 17]])


def test_parts_of_equal_size_have_orders_of_their_own():
  mixed = Mixed((Keyed(500, 1, 0), Keyed(500, 1, 1)), (0, 500), (1.0, 1.0), 1)
  found = mixed(np.arange(512))
  twins = len({*found[found < 500]} & {*(found[found >= 500] - 500)})
  assert 80 < twins < 180  # of 256 of each, half by chance


def test_there_must_be_something_to_shuffle():
  with pytest.raises(ValueError, match='nothing to shuffle'):
    shuffled(np.arange(0), 0, (0, 1))
