"""What is done to pixels: operators, what is drawn for them, laws of crops, erasing, mixing."""

import collections
import itertools
import subprocess
import sys
from types import MappingProxyType

import cv2
import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from experiments.augmentation import recipes
from tests.golden import FOLDER, make_big_vision
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data import colours, crops, erasing, operators, pipeline, preprocess
from vit_jax.data.changes import Move, Reading, Tone
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import Source
from vit_jax.data.fields import Field
from vit_jax.data.order import Keyed, Repeated
from vit_jax.data.rows.columns import Columns, Label, Points
from vit_jax.data.rows.columns import Image as ImageColumn
from vit_jax.data.views import View
from vit_jax.tasks import mixing
from vit_jax.tasks.classification import Classification

THEIRS = np.load(FOLDER / 'big_vision.npz')
FILL = (124, 116, 104)
ENHANCERS = {
  'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast,
  'colour': ImageEnhance.Color, 'sharpness': ImageEnhance.Sharpness,
}  # fmt: skip


def picture(height=61, width=90, channels=3, seed=0):
  """Large spots of all colours, and noise."""
  rng = np.random.default_rng(seed)
  small = rng.uniform(0, 256, (5, 7, channels)).astype(np.float32)
  spots = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
  noise = rng.normal(0, 12, (height, width, channels))
  return np.clip(spots.reshape(noise.shape) + noise, 0, 255).astype(np.uint8)


class Pictures(Source):
  """Some pictures of different sizes."""

  name = 'pictures'
  fields = MappingProxyType({'image': Field('image', dtype='uint8'), 'label': Field('class')})

  def __len__(self):
    return 32

  def __getitem__(self, index):
    image = picture(40 + index, 60 - index // 2, seed=index)
    return {'image': image, 'label': index, 'points': [[20, 30]], 'name': f'picture {index}'}


def by_pillow(function, image):
  found = np.asarray(function(Image.fromarray(image.squeeze())))
  return found.reshape(image.shape)


PILLOW = {
  **{name: lambda p, v, e=each: e(p).enhance(v) for name, each in ENHANCERS.items()},
  'posterize': lambda p, v: ImageOps.posterize(p, v),
  'solarize': lambda p, v: ImageOps.solarize(p, v),
  'solarize_add': lambda p, v: p.point([min(255, i + v) if i < 128 else i for i in range(256)]
                                       * len(p.getbands())),
  'invert': lambda p, v: ImageOps.invert(p),
  'autocontrast': lambda p, v: ImageOps.autocontrast(p),
  'equalize': lambda p, v: ImageOps.equalize(p),
  'grey': lambda p, v: p.convert('L').convert(p.mode),
  'blur': lambda p, v: p.filter(ImageFilter.GaussianBlur(v)),
}  # fmt: skip
RANGES = {'posterize': (1, 9), 'solarize': (0, 257), 'solarize_add': (0, 129), 'blur': (0.1, 2.0)}


@pytest.mark.parametrize('name', PILLOW)
def test_operators_are_those_of_pillow(name):
  """To a level, and nearly everywhere exactly; of colours, of grey, and where all is equal."""
  rng, images = np.random.default_rng(1), [picture(), picture(channels=1), picture() // 9 + 100]
  low, high = RANGES.get(name, (0.0, 2.9))
  for image in (*images, np.full((9, 8, 3), 77, np.uint8)):
    for _ in range(8):
      value = (rng.integers if isinstance(low, int) else rng.uniform)(low, high, ()).item()
      change = Tone(name, value if name in RANGES or name in ENHANCERS else None)
      want = by_pillow(lambda p, v=value: PILLOW[name](p, v), image)
      got = operators.changed(image, [change])
      apart = np.abs(got.astype(int) - want)
      assert apart.max() <= 1, (image.shape, value)
      assert (apart > 0).mean() < 0.02, (image.shape, value)


@pytest.mark.parametrize('resample', ['nearest', 'bilinear', 'bicubic'])
@pytest.mark.parametrize('channels', [1, 3])
def test_rotations_are_those_of_pillow(resample, channels):
  image, reading = picture(channels=channels), Reading(resample, FILL)
  how = getattr(Image.Resampling, resample.upper())
  fill = FILL if channels == 3 else 115  # the mean
  for degrees in (27.0, -13.3, 0.4, 0.0):
    want = by_pillow(lambda p, d=degrees: p.rotate(d, how, fillcolor=fill), image)
    got = operators.changed(image, [reading.rotate(degrees, image.shape[:2])])
    np.testing.assert_array_equal(got, want)


def test_an_image_that_is_not_changed_is_the_same():
  image = picture()
  assert operators.changed(image, ()) is image
  for change in (Tone('colour', 1.0), Tone('posterize', 8), Tone('solarize', 256),
                 Tone('solarize_add', 0), Tone('sharpness', 1.0),
                 Reading('bicubic', FILL).translate(0, 0.0)):  # fmt: skip
    np.testing.assert_array_equal(operators.changed(image, [change]), image)
  # Grey has no hue, and is no change of colours.
  grey = picture(channels=1)
  for change in (Tone('hue', 0.3), Tone('colour', 1.9), Tone('tf_colour', 1.9), Tone('grey')):
    np.testing.assert_array_equal(operators.changed(grey, [change]), grey)
  assert not operators.changed(image, [Tone('posterize', 0)]).any()


LEVELS = (0, 2, 9, 10, 15, 20)


def strength(colour, name, level, size=(20, 27), steps=10, seeds=range(8)):
  """What a dialect makes of a magnitude, for several seeds: with both signs."""
  found = []
  for seed in seeds:
    found += colours._How(size, np.random.default_rng(seed), colour, steps).changes(name, level)
  return found


@pytest.mark.parametrize('name', colours._OPERATORS['big_vision'])
def test_operators_are_those_of_big_vision(name):
  """With the arguments that its levels give, whatever their sign; `make_big_vision.py` ran it."""
  image, colour = THEIRS['image'], colours.RandAugment('big_vision')
  for level in LEVELS:
    want = THEIRS[f'{name}/{level}']
    drawn = strength(colour, name, level)
    value = float(THEIRS.get(f'{name}/{level}/value', 0))
    if name == 'Cutout':  # theirs was around (5, 21)
      edges = [[max(0, c - value), min(side, c + value)] for c, side in ((5, 20), (21, 27))]
      drawn = [Tone('cutout', tuple(np.array(edges, int).T.ravel().tolist()))]
    elif isinstance(drawn[0], Tone) and drawn[0].value is not None:
      assert {round(change.value, 9) for change in drawn} == {
        round(value % 256 if name == 'Solarize' else value, 9)
      }
    best = min(
      (operators.changed(image, [change]).astype(int) for change in drawn),
      key=lambda got: np.abs(got - want).sum(),
    )  # of both signs
    apart = np.abs(best - want)
    if isinstance(drawn[0], Move):  # but where it is a matter of rounding which pixel is nearest
      y, x = np.argwhere((apart > 0).any(-1)).T + 0.5
      doubtful = [
        [abs(at - np.rint(at)) < 1e-4 for at in (a * x + b * y + c, d * x + e * y + f)]
        for a, b, c, d, e, f in (change.inverse for change in drawn)
      ]
      assert np.any(doubtful, (0, 1)).all(), level
    else:  # beyond 2, sharpness makes more of what is rounded otherwise
      most = max(1, np.ceil(abs(value - 1))) if name == 'Sharpness' else 1
      assert apart.max() <= most, level
      assert (apart > 1).mean() < 0.01


@pytest.mark.parametrize('magnitude', [5, 10, 15])
def test_randaugment_is_that_of_big_vision(magnitude):
  """As a whole: images that it changed differ as much, and in the same ways."""
  image = make_big_vision.picture(96, 128)
  colour, rng = colours.RandAugment('big_vision', magnitude), np.random.default_rng(0)
  ours = [
    make_big_vision.measured(operators.changed(image, colour.draw((96, 128), rng)))
    for _ in range(1000)
  ]
  # Blurred, as single values are common, and a little different where pixels were rounded.
  ours, theirs = (
    np.array(x, float) + rng.uniform(-1, 1, (1000, 5))
    for x in (ours, THEIRS[f'randaugment/{magnitude}'])
  )
  for at in range(5):
    assert stats.ks_2samp(ours[:, at], theirs[:, at]).pvalue > 1e-3, at


def test_cutouts_are_around_a_pixel_of_the_frame():
  """Of which each is as likely; at magnitude 3, 12 pixels far."""
  colour, centres = colours.RandAugment('big_vision'), []
  for seed in range(3000):
    ((change,), sides) = strength(colour, 'Cutout', 3, (30, 50), seeds=[seed]), (30, 50)
    edges = np.reshape(change.value, (2, 2))
    assert (edges >= 0).all()
    assert (edges <= sides).all()
    centres.append(np.where(edges[0] > 0, edges[0] + 12, edges[1] - 12))
  for axis, side in enumerate((30, 50)):
    counts = np.bincount(np.array(centres)[:, axis], minlength=side)
    assert stats.chisquare(counts).pvalue > 1e-4


# As the sources have them at magnitude 9: timm, 'inc1' and without, and torchvision of 31 bins.
TONES = {
  'Posterize': ({1}, {3}, {7}), 'Solarize': ({26}, {230}, {178.5}), 'SolarizeAdd': ({99}, {99}, ()),
  'Color': ({0.19, 1.81}, {1.72}, {0.73, 1.27}), 'Contrast': ({0.19, 1.81}, {1.72}, {0.73, 1.27}),
  'Brightness': ({0.19, 1.81}, {1.72}, {0.73, 1.27}),
  'Sharpness': ({0.19, 1.81}, {1.72}, {0.73, 1.27}),
}  # fmt: skip
# Of a frame of 100 x 224 pixels: degrees, pixels for a pixel, pixels.
MOVES = {
  'Rotate': (27, 27, 9), 'ShearX': (0.27, 0.27, 0.09), 'ShearY': (0.27, 0.27, 0.09),
  'TranslateX': (90.72, 90.72, 30), 'TranslateY': (40.5, 40.5, 13),
}  # fmt: skip
DIALECTS = (('timm', 10, 'Increasing'), ('timm', 10, ''), ('torchvision', 30, ''))


@pytest.mark.parametrize('number', range(3), ids=['timm-inc', 'timm', 'torchvision'])
def test_magnitude_nine(number):
  dialect, steps, suffix = DIALECTS[number]
  colour, size = colours.RandAugment(dialect), (100, 224)
  for name, values in TONES.items():
    if values[number]:
      asked = name + suffix * (name != 'SolarizeAdd')
      got = {round(float(change.value), 9) for change in strength(colour, asked, 9, size, steps)}
      assert got == values[number], name
  for name, values in MOVES.items():
    both = []
    for change in strength(colour, name, 9, size, steps):
      a, b, c, d, e, f = change.inverse
      assert change.fill == ((0,) if dialect == 'torchvision' else FILL)
      if name == 'Rotate':  # around the middle
        both.append(np.degrees(np.arctan2(d, a)))
        np.testing.assert_allclose((a * 112 + b * 50 + c, d * 112 + e * 50 + f), (112, 50))
      else:
        both.append({'ShearX': b, 'ShearY': d, 'TranslateX': c, 'TranslateY': f}[name])
        rest = {'ShearX': (c, d, f), 'ShearY': (b, c, f)}.get(name, (b, d))
        assert (a, e, *rest) == (1, 1, *(0,) * len(rest))
    assert sorted({*np.round(both, 9)}) == [-values[number], values[number]], name


def test_randaugment_draws_as_often_as_it_says():
  """timm applies each of two with a probability of a half, the others always; evenly."""
  counts = {}
  for dialect, magnitude in (('big_vision', 10), ('timm', 9), ('torchvision', 9)):
    colour = colours.RandAugment(dialect, magnitude)
    rng = np.random.default_rng(0)
    drawn = [colour.draw((224, 224), rng) for _ in range(4000)]
    counts[dialect] = np.mean([len(changes) for changes in drawn])
    names = collections.Counter(c.name if isinstance(c, Tone) else 'move' for d in drawn for c in d)
    share = names['move'] / sum(names.values())
    kinds = len(colours._OPERATORS[dialect]) - ('Identity' in colours._OPERATORS[dialect])
    assert share == pytest.approx(5 / kinds, abs=0.02)
  assert counts['big_vision'] == 2
  assert counts['timm'] == pytest.approx(1, abs=0.05)
  assert counts['torchvision'] == pytest.approx(2 * 13 / 14, abs=0.05)
  # Noise on the magnitude is normal, and cut at 10: of angles, 3 degrees each.
  colour = colours.RandAugment('timm', 9, prob=1.0)
  angles = [np.degrees(np.arcsin(abs(change.inverse[1]))) / 3 for _ in range(6000)
            for change in colour.draw((224, 224), rng)
            if isinstance(change, Move) and change.inverse[1] and change.inverse[3]]  # fmt: skip
  assert max(angles) == pytest.approx(10)
  assert np.mean(np.array(angles) > 9.999) == pytest.approx(stats.norm.sf(2), abs=0.02)
  inside = np.sort([a for a in angles if a < 9.9])
  law = stats.truncnorm(-18, 1.8, 9, 0.5)
  assert stats.kstest(inside, law.cdf).pvalue > 1e-4


def test_autoaugment_draws_pairs():
  for dialect, policy in (('big_vision', None), ('timm', 'original'), ('timm', 'v0r'),
                          ('torchvision', None)):  # fmt: skip
    colour, rng = colours.AutoAugment(dialect, policy), np.random.default_rng(0)
    drawn = [colour.draw((64, 64), rng) for _ in range(3000)]
    pairs = colours._V0 if policy in ('v0r',) or dialect == 'big_vision' else colours._ORIGINAL
    expected = np.mean([sum(prob for _, prob, _ in pair) for pair in pairs])
    assert np.mean([len(changes) for changes in drawn]) == pytest.approx(expected, abs=0.06)
  # What the paper's first pair keeps of 8 bits, at level 8: 7 in timm, 4 in torchvision.
  bits = {
    dialect: {c.value for _ in range(600) for c in colours.AutoAugment(dialect).draw((64, 64), rng)
              if isinstance(c, Tone) and c.name == 'posterize'}
    for dialect in ('timm', 'torchvision')
  }  # fmt: skip
  assert bits == {'timm': {6, 7}, 'torchvision': {4, 5, 6}}


def test_three_augment_and_jitter():
  rng, firsts, orders = np.random.default_rng(0), collections.Counter(), collections.Counter()
  for _ in range(3000):
    first, *rest = colours.ThreeAugment().draw((9, 9), rng)
    firsts[first.name] += 1
    orders[tuple(change.name for change in rest)] += 1
    assert all(0.7 <= change.value <= 1.3 for change in rest)
    assert first.name != 'blur' or 0.1 <= first.value <= 2
  assert stats.chisquare(list(firsts.values())).pvalue > 1e-4
  assert firsts.keys() == {'grey', 'solarize', 'blur'}
  assert len(orders) == 6
  assert stats.chisquare(list(orders.values())).pvalue > 1e-4
  dino = colours.Jitter(0.4, 0.4, 0.2, 0.1, prob=0.8, grey=0.2, blur=0.5, solarize=0.3)
  drawn = collections.Counter(c.name for _ in range(4000) for c in dino.draw((9, 9), rng))
  for name, prob in dict(hue=0.8, colour=0.8, grey=0.2, blur=0.5, solarize=0.3).items():
    assert drawn[name] / 4000 == pytest.approx(prob, abs=0.03)


def test_changes_are_made_after_crop_and_flip():
  """Of a frame as it would be without them."""
  image = picture(100, 140)
  view = View(crops.RandomResized(), 'both', (48, 48))
  for seed, name in itertools.product(range(6), ('randaugment', 'three_augment', 'autoaugment')):
    colour = colours.COLOURS[name]()
    with_it = View(view.crop, view.flip, view.size, colour)
    plain = preprocess.prepare(image, view, 3, np.random.default_rng(seed))
    placement = with_it.place(100, 140, np.random.default_rng(seed))
    want = operators.changed(plain, placement.changes)
    got = preprocess.prepare(image, with_it, 3, np.random.default_rng(seed))
    np.testing.assert_array_equal(got, want)


# --- crops ---


@pytest.mark.parametrize('size', ['375x500', '64x64', '90x400'])
def test_crops_are_drawn_as_tensorflow_draws_them(size):
  theirs, shape = THEIRS[f'boxes/{size}'].astype(float), tuple(map(int, size.split('x')))
  crop, rng = crops.RandomResized(min_area=0.05, dialect='big_vision'), np.random.default_rng(0)
  ours = np.array([crop.box(*shape, (224, 224), rng) for _ in range(len(theirs))], float)
  for of in (
    lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2], lambda b: b[:, 3],
    lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2],
    lambda b: b[:, 0] / np.maximum(shape[0] - b[:, 2], 1),
  ):  # fmt: skip
    assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 1e-3
  for boxes in (ours, theirs):  # the last place that there would be is never taken
    for at, side in ((0, shape[0]), (1, shape[1])):
      assert not ((boxes[:, at] + boxes[:, at + 2] == side) & (boxes[:, at + 2] < side)).any()


def test_crops_are_drawn_as_torchvision_draws_them():
  """Areas even and logarithms of ratios even where all fit, and the middle where none does."""
  crop, rng = crops.RandomResized(0.1, 0.3, dialect='torchvision'), np.random.default_rng(0)
  boxes = np.array([crop.box(700, 900, (8, 8), rng) for _ in range(4000)], float)
  area = boxes[:, 2] * boxes[:, 3] / (700 * 900)
  ratio = np.log(boxes[:, 3] / boxes[:, 2]) / np.log(4 / 3)
  assert stats.kstest(area, stats.uniform(0.1, 0.2).cdf).pvalue > 1e-3
  assert stats.kstest(ratio, stats.uniform(-1, 2).cdf).pvalue > 1e-3
  place = (boxes[:, 0] + rng.random(4000)) / (701 - boxes[:, 2])
  assert stats.kstest(place, stats.uniform().cdf).pvalue > 1e-3
  whole = crops.RandomResized(1.0, dialect='torchvision')
  assert whole.box(100, 1000, (8, 8), rng) == (0, 433, 100, 133)
  assert whole.box(1000, 100, (8, 8), rng) == (433, 0, 133, 100)
  assert whole.box(100, 120, (8, 8), rng) == (0, 0, 100, 120)


def test_resizing_without_antialiasing_is_tensorflows():
  image, want = THEIRS['image'], THEIRS['linear']
  view = View(crops.Resize(method='linear'), size=want.shape[:2])
  got = preprocess.prepare(image, view, 3, None)
  assert np.abs(got.astype(int) - want).max() <= 1  # which it rounds down


@pytest.mark.parametrize('shape', [(60, 90), (90, 60), (48, 48)])
def test_the_simple_crop(shape):
  """Of DeiT III: the shorter side resized by Pillow, mirrored borders, any place of 48 pixels."""
  image, size = picture(*shape), (48, 48)
  sides = [int(48 * side / min(shape)) for side in shape]
  whole = np.asarray(Image.fromarray(image).resize(sides[::-1], Image.Resampling.BICUBIC))
  padded = np.pad(whole, ((4, 4), (4, 4), (0, 0)), mode='reflect')
  view, corners = View(crops.Simple(method='bicubic'), size=size), set()
  for seed in range(300):
    placement = view.place(*shape, np.random.default_rng(seed))
    top, left = (edge + 4 for edge in placement.window[1])
    corners.add((top, left))
    if seed < 20:
      got = preprocess.prepare(image, view, 3, np.random.default_rng(seed))
      np.testing.assert_array_equal(got, padded[top : top + 48, left : left + 48])
  rows, columns = zip(*corners, strict=True)
  assert {*rows} == {*range(sides[0] + 9 - 48)} or sides[0] > 60
  assert min(rows) == min(columns) == 0
  assert max(rows) <= sides[0] + 8 - 48
  assert max(columns) <= sides[1] + 8 - 48


# --- erasing ---


def test_boxes_are_erased_where_timm_would_erase_them():
  """Restated: the share of images, the law of areas and ratios, evenly over all places."""
  erase, rng = erasing.RandomErasing(), np.random.default_rng(0)
  drawn = [erase.draw((64, 96), rng) for _ in range(20000)]
  assert np.mean([bool(boxes) for boxes in drawn]) == pytest.approx(0.25, abs=0.02)
  boxes = np.array([box for each in drawn for box in each], float)
  want = []
  while len(want) < len(boxes):
    for _ in range(10):
      area = rng.uniform(0.02, 1 / 3) * 64 * 96
      ratio = np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
      height, width = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
      if height < 64 and width < 96:
        want.append((rng.integers(65 - height), rng.integers(97 - width), height, width))
        break
  for axis in range(4):
    assert stats.ks_2samp(boxes[:, axis], np.array(want, float)[:, axis]).pvalue > 1e-3
  several = erasing.RandomErasing(prob=1.0, count=3)
  counts = np.bincount([len(several.draw((64, 64), rng)) for _ in range(3000)], minlength=4)
  assert stats.chisquare(counts[1:]).pvalue > 1e-4


@pytest.mark.parametrize('mode', erasing.MODES)
def test_what_is_put_in_is_in_units_of_normalised_images(mode):
  view = View(size=(32, 40), erase=erasing.RandomErasing(prob=1.0, count=2, mode=mode))
  rows = Columns(view, (ImageColumn(3),), (Label(32),))
  batch = pipeline.train_batches(rows, Pictures(), 32, range(32), Keyed(32, 0), 0)[0]
  assert ('erased_colour' in batch) == (mode != 'pixel')
  task = Classification(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
  key = jax.random.key(0)
  found = jax.jit(lambda batch: task.augment(batch, key, {}))(batch)
  assert not [name for name in found if name.startswith('erased')]
  image = np.asarray(found['image'])
  want = (np.asarray(batch['image'], float) / 255 - task.mean) / np.array(task.std)
  values = []
  for row in range(32):
    for number, (top, left, height, width) in enumerate(batch['erased'][row]):
      inside = np.s_[row, top : top + height, left : left + width]
      if mode == 'pixel':
        values.append(image[inside].ravel())
        want[inside] = image[inside]
      else:
        want[inside] = batch['erased_colour'][row, number]
  np.testing.assert_allclose(image, want, atol=1e-5)
  if mode == 'pixel':
    assert stats.kstest(np.concatenate(values), stats.norm.cdf).pvalue > 1e-4
  else:
    colours_ = batch['erased_colour'][batch['erased'][..., 2] > 0].ravel()
    assert not colours_.any() if mode == 'const' else stats.kstest(colours_, 'norm').pvalue > 1e-4


# --- order ---


@pytest.mark.parametrize(('count', 'batch', 'times'), [(170, 12, 3), (1000, 128, 3), (100, 8, 4)])
def test_repeated_examples_are_in_one_batch(count, batch, times):
  """As many as each other, those apart that a border of batches divides; every epoch is complete.

  DeiT's batches of 1,024 hold 341 examples thrice, and a third of one.
  """
  order = Repeated(Keyed(count, 3), times)
  stream = order(np.arange(times * count))
  assert sorted(stream) == np.repeat(np.arange(count), times).tolist()
  assert len(set(stream[:count])) == -(-count // times)  # of an epoch, by its views
  for row in stream[: len(stream) // batch * batch].reshape(-1, batch):
    _, seen = np.unique(row, return_counts=True)
    assert (np.sort(seen)[2:] == times).all()
    assert (row == row[::-1]).sum() <= times  # mixed with themselves
  # Any place by itself, so that processes need nothing of each other.
  places = np.random.default_rng(0).integers(0, 10**9, 50)
  assert [int(order(np.array([place]))[0]) for place in places] == order(places).tolist()


def stream(view, start=0, parts=1, workers=0, steps=4, repeats=2, batch=8):
  """Batches of a source of pictures, put together of those of several processes."""
  rows = Columns(view, (ImageColumn(3),), (Label(32), Points(1)))
  order = Repeated(Keyed(32, 1), repeats)
  each = [
    pipeline.iterate(
      pipeline.train_batches(rows, Pictures(), batch, range(part, batch, parts), order, 7),
      start=start, workers=workers,
    )
    for part in range(parts)
  ]  # fmt: skip
  for _ in range(steps):
    batches = [next(part) for part in each]
    whole = {}
    for name in batches[0]:
      joined = np.empty((batch, *batches[0][name].shape[1:]), batches[0][name].dtype)
      for part in range(parts):
        joined[part::parts] = batches[part][name]
      whole[name] = joined
    yield whole
  for part in each:
    part.close()


VIEW = View(
  crops.RandomResized(dialect='torchvision', method='bicubic'), 'horizontal', (32, 32),
  colours.RandAugment(), erasing.RandomErasing(prob=0.9, mode='rand'),
)  # fmt: skip


def test_what_is_drawn_depends_on_seed_and_place_alone():
  """Not on processes, on workers, or on where a run began; and views of an image differ."""
  want = list(stream(VIEW))
  for got in (stream(VIEW, parts=2), stream(VIEW, workers=1)):
    for a, b in zip(got, want, strict=True):
      for name in b:
        np.testing.assert_array_equal(a[name], b[name], name)
  for a, b in zip(stream(VIEW, start=2, steps=2), want[2:], strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])
  for batch in want:
    np.testing.assert_array_equal(batch['index'][::2], batch['index'][1::2])
    assert (batch['image'][::2] != batch['image'][1::2]).any((1, 2, 3)).all()


def test_no_jax_where_batches_are_prepared():
  """Modules that draw and change pixels are imported by Grain's workers."""
  code = (
    'import sys, vit_jax.data.rows.columns, vit_jax.data.colours, vit_jax.data.operators; '
    "assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, '-c', code], check=True)


# --- mixing ---


def by_timm(image, label, classes, share, box, cut, smoothing):
  """timm's Mixup with what it has drawn, in NumPy: an image and its target."""
  height, width = image.shape[1:3]
  mixed = np.empty_like(image)
  targets = np.zeros((len(image), classes))
  for i in range(len(image)):
    j = len(image) - 1 - i
    lam = share[i]
    if cut[i]:
      top, left, bottom, right = box[i]
      mixed[i] = image[i]
      mixed[i, top:bottom, left:right] = image[j, top:bottom, left:right]
      lam = 1 - (bottom - top) * (right - left) / (height * width)
    else:
      mixed[i] = lam * image[i] + (1 - lam) * image[j]
    for number, weight in ((i, lam), (j, 1 - lam)):
      row = np.full(classes, smoothing / classes)
      row[label[number]] += 1 - smoothing
      targets[i] += weight * row
  return mixed, targets


LAW = dict(mixup=0.8, cutmix=1.0, mix_prob=0.9, mix_switch=0.3)
SHAPE = 32, 12, 16, 1  # of the images that are mixed
MANY = 5000, 40, 60  # of those for which only the law is looked at


@pytest.fixture(scope='module')
def mixed():
  """Of each mode a batch that was mixed, and what was drawn, for several keys; by one program.

  And what is drawn for many images, with mixup and without.
  """
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, SHAPE, dtype=np.uint8),
    'label': rng.integers(0, 5, 32, dtype=np.int32), 'mask': np.ones(32, np.float32),
  }  # fmt: skip
  batch['mask'][3] = 0
  tasks = {
    mode: Classification(mean=(0.0,), std=(1.0,), mix_mode=mode, label_smoothing=0.1, **LAW)
    for mode in mixing.MODES
  }

  def each(key):
    mix_key = jax.random.split(key)[1]
    return {
      mode: (task.augment(dict(batch), key, {}), task.mix.drawn(mix_key, *SHAPE[:3]))
      for mode, task in tasks.items()
    }

  @jax.jit
  def run(keys, key):
    alone = mixing.Mix(0.0, 1.0, 1.0, 0.5, 'elem')
    return jax.vmap(each)(keys), tasks['elem'].mix.drawn(key, *MANY), alone.drawn(key, *MANY)

  found, *law = jax.device_get(run(jax.random.split(jax.random.key(0), 12), jax.random.key(1)))
  return batch, tasks, found, law


@pytest.mark.parametrize('mode', mixing.MODES)
def test_images_and_targets_are_mixed_as_timm_mixes_them(mixed, mode):
  batch, tasks, found, _ = mixed
  task, cuts = tasks[mode], set()
  for at in range(12):
    got, (share, box) = jax.tree.map(lambda x, i=at: x[i], found[mode])
    share, *box = (np.broadcast_to(x, 32) for x in (share, *box))
    box = np.stack(box, axis=1)
    cut = box[:, 2] > box[:, 0]
    cuts |= {*cut.tolist()}
    assert mode != 'batch' or len({*map(tuple, box.tolist())}) == 1
    assert mode != 'pair' or (box == box[::-1]).all()
    want, targets = by_timm(
      batch['image'] / 255.0, batch['label'], 5, share, box, cut, task.label_smoothing
    )
    np.testing.assert_allclose(got['image'], want, atol=1e-6)
    np.testing.assert_allclose(task.targets(got, 5), targets, atol=1e-6)
    assert np.flatnonzero(got['mask'] == 0).tolist() == [3, 28]
  assert cuts == {True, False}


def test_shares_and_boxes_follow_timms_law(mixed):
  """Restated: how often, how large, where."""
  (share, (top, left, bottom, right)), (whole, box) = mixed[3]
  cut = bottom > top
  rng = np.random.default_rng(0)
  kept = rng.beta(1, 1, len(share))
  edges = []
  for side in MANY[1:]:
    half = (side * (1 - kept) ** 0.5).astype(int) // 2
    middle = rng.integers(0, side, len(share))
    edges.append((np.clip(middle - half, 0, side), np.clip(middle + half, 0, side)))
  there = (edges[0][1] > edges[0][0]) & (edges[1][1] > edges[1][0])
  assert cut.mean() == pytest.approx(0.9 * 0.3 * there.mean(), abs=0.02)
  for (low, high), (first, last) in zip(edges, ((top, bottom), (left, right)), strict=True):
    for want, got in ((low, first), (high, last), (high - low, last - first)):
      assert stats.ks_2samp(want[there].astype(float), got[cut].astype(float)).pvalue > 1e-3
  blended = share < 1
  assert not (blended & cut).any()
  assert blended.mean() == pytest.approx(0.9 * 0.7, abs=0.02)
  assert stats.kstest(share[blended], stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
  assert (whole == 1).all()  # without mixup there is nothing to switch to
  assert (box[2] > box[0]).mean() == pytest.approx(there.mean(), abs=0.02)


# --- recipes ---


@pytest.mark.parametrize('name', recipes.RECIPES)
def test_published_recipes_are_configurations(name):
  """Sections of a run as they stand there, and views of the size that is asked for."""
  recipe = recipes.RECIPES[name]
  schema.build(Classification, recipe.get('task', {}), 'task')
  view = recipes.data(name).view.sized((40, 48))
  for seed in range(4):
    got = preprocess.prepare(picture(), view, 3, np.random.default_rng(seed))
    assert (got.shape, got.dtype) == ((40, 48, 3), np.uint8)


# --- mistakes ---


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: colours.RandAugment('tim'), "unknown dialect of randaugment 'tim'"),
    (lambda: colours.RandAugment('torchvision', std=0.5), r'std=0.5 is of the dialect timm; torch'),
    (lambda: colours.RandAugment('big_vision', bins=31), 'bins=31 is of the dialect torchvision'),
    (lambda: colours.RandAugment('torchvision', 31), r'whole number from 0 to 30 in torchvision'),
    (lambda: colours.RandAugment('torchvision', 2.5), 'whole number from 0 to 30'),
    (lambda: colours.RandAugment('timm', 11), 'a number from 0 to 10 in timm: 11'),
    (lambda: colours.RandAugment('timm', prob=2.0), 'randaugment.prob=2.0 must be a probability'),
    (lambda: colours.RandAugment(count=0), 'at least one operator'),
    (lambda: colours.RandAugment(fill=(1, 2)), 'one number from 0 to 255, or three'),
    (lambda: colours.RandAugment(resample='lanczos'), "unknown resample of randaugment 'lanczos'"),
    (lambda: colours.AutoAugment('torchvision', 'v0'), "policy of autoaugment in torchvision 'v0'"),
    (lambda: colours.Jitter(hue=0.6), 'hue <= 0.5'),
    (lambda: colours.ThreeAugment(-0.1), 'must not be negative'),
    (lambda: erasing.RandomErasing(mode='noise'), "unknown mode of random erasing 'noise'"),
    (lambda: erasing.RandomErasing(prob=0.0), '0 < prob <= 1'),
    (lambda: erasing.RandomErasing(count=0), 'at least one box'),
    (lambda: crops.RandomResized(0.5, 0.4), 'min_area <= max_area'),
    (lambda: crops.RandomResized(dialect='timm'), "unknown dialect of a random crop 'timm'"),
    (lambda: crops.Simple(pad=-1), 'pad=-1'),
    (lambda: DataConfig(source=None, repeats=0), 'data.repeats=0 must be at least 1'),
    (lambda: Classification(mix_mode='half'), "unknown task.mix_mode 'half'"),
    (lambda: Classification(cutmix=-1.0), 'task.cutmix=-1.0 must not be negative'),
    (lambda: Classification(mix_switch=1.5), 'task.mix_switch=1.5 must be a probability'),
    (lambda: Columns(VIEW, (ImageColumn(4),)), 'uint8 with one or three channels, and image is'),
    (lambda: Columns(VIEW, (ImageColumn(3, 'uint16'),)), 'image is uint16 with 3'),
    (lambda: Columns(VIEW, (ImageColumn(3, field='a'), ImageColumn(3, field='b'))), 'one image'),
  ],
)  # fmt: skip
def test_mistakes(make, message):
  with pytest.raises(RunError, match=message):
    make()
