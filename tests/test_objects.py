"""Drawn objects: captions say what the pictures show, and nothing else gives it away."""

import collections
import pickle
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vit_jax.core.errors import RunError
from vit_jax.data.examples import NoSplitError
from vit_jax.data.generators import Objects, forms
from vit_jax.data.generators.graphs import COLOURS, FORMS, PAIRS, WORDS
from vit_jax.data.generators.objects import HELD_OUT, SEEN
from vit_jax.data.sources import open_split
from vit_jax.data.sources.generated import Generated

# What words mean, written anew: forms by any of their names, and on which axis the first of two
# things comes before the other.
MEANT = {'disc': 'circle', 'box': 'square', 'plus': 'cross'} | dict(zip(FORMS, FORMS, strict=True))
SAID = {'left': (0, 1), 'right': (0, -1)} | dict.fromkeys(('above', 'over', 'higher'), (1, 1))
SAID |= dict.fromkeys(('below', 'under', 'lower'), (1, -1))
THING = rf'an? (?:(small|large) )?({"|".join(COLOURS)}) ({"|".join(MEANT)})'


def opened(split='train', examples=400, **given):
  return open_split(Generated(Objects(**given), examples=examples, held_out=examples), split)


def named(text):
  """(size or '', pair) of all things that a text names."""
  return [(size, f'{colour} {MEANT[form]}') for size, colour, form in re.findall(THING, text)]


def meant(example, size, pair):
  """The only box that is meant by these words."""
  boxes = example['boxes']
  found = [at for at, label in enumerate(boxes.label) if PAIRS[label] == pair]
  if size:
    assert len(found) == 2, 'a size is named where nothing else differs'
    sides = (boxes.corners[found, 2:] - boxes.corners[found, :2]).max(1)
    found = [found[sides.argmax() if size == 'large' else sides.argmin()]]
  (at,) = found
  return at


def holds(example, text):
  """Whether two things lie as a text says: on that axis one is before the other as a whole."""
  axis, sign = next(SAID[word] for word in text.split() if word in SAID)
  one, other = (example['boxes'].corners[meant(example, *thing)] for thing in named(text))
  before, behind = (one, other) if sign > 0 else (other, one)
  return before[axis + 2] <= behind[axis]


def test_captions_say_what_is_true():
  source, words = opened(examples=600), set()
  several = 0
  for example in source.read(range(600)):
    assert example.keys() == {*source.fields, 'name'}
    text, swapped, things = example['text'], example['swapped'], named(example['text'])
    words |= {*text.split()}
    assert PAIRS[example['label']] == things[0][1]
    assert re.search(r'\ba [aeiou]|\ban [^aeiou]', text) is None
    if len(things) == 1:
      meant(example, *things[0])
      assert swapped == ''
      continue
    several += 1
    assert named(swapped) == things[::-1]
    assert sorted(swapped.split()) == sorted(text.split())
    assert holds(example, text)
    assert not holds(example, swapped)
  assert 250 < several < 450
  assert words == {*WORDS}
  assert source.fields['text'].names == source.fields['swapped'].names == WORDS
  assert len(WORDS) == len({*WORDS})
  assert '39 words: a, an' in source.summary()[0]


def test_objects_agree_with_themselves():
  source, counts = opened(examples=200, size=(64, 48)), collections.Counter()
  for example in source.read(range(200)):
    image, boxes, labels = example['image'], example['boxes'], example['map']
    assert (image.shape, image.dtype) == ((64, 48, 3), np.uint8)
    counts[len(boxes.label)] += 1
    assert sum(mask.sum() for mask in example['masks'].shapes) == (labels > 0).sum()
    for label, corners, area, mask in zip(
      boxes.label, boxes.corners, boxes.area, example['masks'].shapes, strict=True
    ):
      y, x = np.nonzero(mask)
      assert corners.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
      assert {*labels[mask]} == {label + 1}
      assert area == mask.sum() > 12
    assert example['labels'].tolist() == sorted({*boxes.label.tolist()})
    ground = image[labels == 0].mean()
    assert all(image[mask].max(-1).mean() > ground + 60 for mask in example['masks'].shapes)
  assert {*counts} == {1, 2, 3, 4}
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(again[7]['image'], source[7]['image'])
  assert again[7]['text'] == source[7]['text']


def test_a_star_has_the_area_of_geometry():
  alpha = forms.covered('star', forms.grid((64, 64)) - (31.7, 32.2), 24, 0.4)
  assert alpha.sum() == pytest.approx(5 * 0.45 * np.sin(np.pi / 5) * 24**2, rel=0.01)


def test_pairs_that_are_held_out():
  """Of each split the pairs, and how many things its pictures have."""
  assert (len(HELD_OUT), len(SEEN), len(PAIRS)) == (8, 40, 48)
  for place, every in ((0, COLOURS), (1, FORMS)):
    assert {pair.split()[place] for pair in SEEN} == {*every}
  known = {'train': SEEN, 'seen': SEEN, 'held_out': HELD_OUT, 'test': PAIRS}
  shown = {}
  for split in Objects.splits:
    name = split.removesuffix('_one').removesuffix('_two')
    end = split.removeprefix(name)
    examples = opened(split, 300).read(range(300))
    counts = {len(example['boxes'].label) for example in examples}
    assert counts == {'_one': {1}, '_two': {2}, '': {1, 2, 3, 4}}[end]
    if end == '_two':
      assert all(example['swapped'] for example in examples)
    shown[split] = {PAIRS[label] for example in examples for label in example['labels']}
    assert shown[split] <= {*known[name]}
  assert shown['train'] == {*SEEN}
  assert shown['held_out_one'] == {*HELD_OUT}
  assert shown['test_two'] == {*PAIRS}
  with pytest.raises(NoSplitError, match="objects has no split 'seen_tow': did you mean seen_two"):
    opened('seen_tow')
  assert len(opened('fold 1/10 of train')) == 40


def independent(pairs) -> Any:
  """The probability that two columns that are independent differ as much as these."""
  one, other = (np.unique(column, return_inverse=True)[1] for column in zip(*pairs, strict=True))
  table = np.zeros((one.max() + 1, other.max() + 1))
  np.add.at(table, (one, other), 1)
  _, value, *_ = stats.chi2_contingency(table)
  return value


def test_nothing_but_things_says_what_is_there():
  """Length of the caption, ground and size are independent of how many and what."""
  examples = opened(examples=2500).read(range(2500))
  lengths, grounds, brightness, sizes = [], [], [], []
  for example in examples:
    boxes, things = example['boxes'], named(example['text'])
    if len(boxes.label) > 1 and not any(size for size, _ in things):
      lengths.append((len(boxes.label), (len(things), len(example['text'].split()))))
    ground = np.median(example['image'][example['map'] == 0], 0)
    grounds.append((PAIRS[example['label']].split()[0], int(ground.argmax())))
    brightness.append((len(boxes.label), ground.sum()))
  for seed in range(2500):
    things = Objects().graph(np.random.default_rng(seed), 'train').things
    sizes += [(thing.pair, thing.large) for thing in things]
  quarters = np.quantile([value for _, value in brightness], [0.25, 0.5, 0.75])
  brightness = [(count, int(quarters.searchsorted(value))) for count, value in brightness]
  lengths = [(count, 100 * said + words) for count, (said, words) in lengths]
  for pairs in (lengths, grounds, brightness, sizes):
    assert independent(pairs) > 0.01
  assert independent([(count, count) for count, _ in lengths]) < 1e-9


def test_colours_alone_do_not_say_how_things_lie():
  """The best linear map from a histogram and the colour named first; of halves it finds out."""
  examples = opened('test_two', 3000).read(range(3000))
  whole, halves, said = [], [], []
  for example in examples:
    bins = (example['image'].astype(np.int64) // 64) @ (16, 4, 1)
    parts = [np.bincount(part.ravel(), minlength=64) for part in (bins[:, :24], bins[:24])]
    first = np.eye(8)[example['label'] // len(FORMS)]
    whole.append(np.outer(first, np.bincount(bins.ravel(), minlength=64) / 2304).ravel())
    halves.append(np.outer(first, np.concatenate(parts) / 1152).ravel())
    axis, sign = next(SAID[word] for word in example['text'].split() if word in SAID)
    said.append(2 * axis + (sign > 0))
  wanted = np.array(said)

  def right(features):
    x, train = np.array(features), slice(0, 2000)
    x = x - x[train].mean(0)
    inner = x[train].T @ x[train]
    inner += 1e-3 * np.trace(inner) / len(inner) * np.eye(len(inner))
    guess = x @ np.linalg.solve(inner, x[train].T @ np.eye(4)[wanted[train]])
    return (guess.argmax(1) == wanted)[2000:].mean()

  assert right(whole) < 0.25 + 3 * np.sqrt(0.25 * 0.75 / 1000)
  assert right(halves) > 0.5


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(least=5), '1 <= least <= most <= 16'),
    (dict(least=0), '1 <= least'),
    (dict(noise=-0.1), 'noise of at least 0'),
    (dict(small=(8.0, 9.0)), 'must be at least 1 and grow'),
    (dict(most=5), r'5 things of radius 9 do not fit side by side into 48x48'),
    (dict(size=(24, 24), most=1), '2 things of radius 9 do not fit'),
  ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
  with pytest.raises(RunError, match=message):
    Objects(**change)


def test_things_find_places_where_there_is_hardly_any_room():
  examples = opened(examples=30, size=(57, 57), most=9, least=9, large=(8.9, 9.0)).read(range(30))
  assert {len(example['boxes'].label) for example in examples} == {9}
  assert all(np.unique(example['map']).size > 5 for example in examples)
