"""Augmentation, operator by operator and as a whole, against timm and torchvision themselves."""

import random

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from tests.parity.references import timm
from tests.test_augment import Pictures, by_timm, picture, strength
from vit_jax.data import colours, crops, erasing, operators, pipeline, preprocess
from vit_jax.data.changes import Tone
from vit_jax.data.order import Keyed
from vit_jax.data.rows.columns import Columns, Label
from vit_jax.data.rows.columns import Image as ImageColumn
from vit_jax.data.views import View
from vit_jax.tasks import mixing
from vit_jax.tasks.classification import Classification

# isort: split
# torchvision can be imported once `references` has been.
import timm.data
import torchvision.transforms as tv
from timm.data import auto_augment, random_erasing
from timm.data import mixup as timm_mixup
from torchvision.transforms import autoaugment
from torchvision.transforms import functional as tvf

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 116, 104)
SIZE = 60, 90


def nearest(image, changes, want):
  """Of the changes, which differ in a sign, the one that gives what is wanted, and how far off."""
  found = (operators.changed(image, [change]).astype(int) - want for change in changes)
  return min((np.abs(apart) for apart in found), key=lambda apart: apart.sum())


@pytest.mark.parametrize('increasing', [True, False])
@pytest.mark.parametrize('name', auto_augment._RAND_TRANSFORMS)
def test_operators_of_timm(name, increasing):
  """At random magnitudes, by all three ways of reading what is moved."""
  rng, own = np.random.default_rng(0), name.removesuffix('Rel')
  if increasing and f'{name}Increasing' in auto_augment._RAND_INCREASING_TRANSFORMS:
    name, own = f'{name}Increasing', f'{own}Increasing'
  for seed in range(12):
    image, level = picture(*SIZE, seed=seed), float(rng.uniform(0, 10))
    resample = ('nearest', 'bilinear', 'bicubic')[seed % 3]
    how = getattr(Image.Resampling, resample.upper())
    operator = auto_augment.AugmentOp(
      name, 1.0, level, dict(img_mean=FILL, interpolation=how, translate_const=100)
    )
    drawn = strength(colours.RandAugment(resample=resample), own, level, SIZE)
    if 'Posterize' in name and drawn[0].value == 0:
      continue  # which today's Pillow refuses
    random.seed(seed)
    want = np.asarray(operator(Image.fromarray(image))).astype(int)
    apart = nearest(image, drawn, want)
    assert apart.max() <= 1, level
    assert (apart > 0).mean() < 0.02, level


@pytest.mark.parametrize('name', [*colours._OPERATORS['torchvision'], 'Invert'])
def test_operators_of_torchvision(name):
  """At every magnitude of RandAugment, and of AutoAugment, where there are ten of them."""
  for space, steps in (
    (autoaugment.RandAugment()._augmentation_space(31, SIZE), 30),
    (autoaugment.AutoAugment()._augmentation_space(10, SIZE), 9),
  ):
    for level in range(0, steps + 1, 3):
      if name not in space:
        continue
      image = picture(*SIZE, seed=level)
      magnitudes, _ = space[name]
      value = float(magnitudes[level]) if magnitudes.ndim else 0.0
      want = autoaugment._apply_op(
        Image.fromarray(image), name, value, tv.InterpolationMode.NEAREST, None
      )
      drawn = strength(colours.RandAugment('torchvision'), name, level, SIZE, steps)
      if name == 'Identity':
        assert not drawn
        continue
      apart = nearest(image, drawn, np.asarray(want).astype(int))
      assert apart.max() <= 1, level
      assert (apart > 0).mean() < 0.02, level


def test_policies_of_autoaugment():
  """Pair by pair."""
  bare = lambda name: name.replace('Original', '').replace('Increasing', '').replace('Rel', '')  # noqa: E731
  for policy in ('original', 'originalr', 'v0', 'v0r'):
    pairs = colours._ORIGINAL if policy.startswith('o') else colours._V0
    theirs = auto_augment.auto_augment_policy(policy)
    for ours, pair in zip(pairs, theirs, strict=True):
      for (name, prob, level), operator in zip(ours, pair, strict=True):
        assert (name, prob, level) == (bare(operator.name), operator.prob, operator.magnitude)
        if 'Posterize' in name:
          assert colours._VARIANTS.get((policy, name), name) == operator.name
  theirs = autoaugment.AutoAugment().policies
  for ours, pair in zip(colours._ORIGINAL, theirs, strict=True):
    for (name, prob, level), (other, chance, magnitude) in zip(ours, pair, strict=True):
      assert (name, prob) == (other, chance)
      assert magnitude in (None, level)


def test_jitter_of_torchvision():
  rng = np.random.default_rng(0)
  for seed in range(12):
    image, factor = picture(*SIZE, seed=seed), float(rng.uniform(0, 2))
    for name, theirs in (
      ('brightness', tvf.adjust_brightness), ('contrast', tvf.adjust_contrast),
      ('colour', tvf.adjust_saturation), ('hue', lambda p, f: tvf.adjust_hue(p, f / 2 - 0.5)),
    ):  # fmt: skip
      value = factor / 2 - 0.5 if name == 'hue' else factor
      want = np.asarray(theirs(Image.fromarray(image), factor)).astype(int)
      assert nearest(image, [Tone(name, value)], want).max() <= 1


def test_random_crops_of_torchvision():
  """The law of the boxes, also where few fit; and the pixels of a box."""
  torch.manual_seed(0)
  rng = np.random.default_rng(0)
  for shape, scale in (((60, 90), (0.08, 1.0)), ((40, 200), (0.2, 1.0)), ((90, 60), (0.05, 0.4))):
    image = picture(*shape)
    whole = Image.fromarray(image)
    theirs = np.array([
      tv.RandomResizedCrop.get_params(whole, scale, (3 / 4, 4 / 3)) for _ in range(3000)
    ], float)  # fmt: skip
    crop = crops.RandomResized(*scale, dialect='torchvision', method='bicubic')
    ours = np.array([crop.box(*shape, (32, 32), rng) for _ in range(3000)], float)
    for of in (*np.eye(4), (0, 0, 1, -1), (1, 1, 1, 1)):
      assert stats.ks_2samp(ours @ of, theirs @ of).pvalue > 1e-3, shape
    view = View(crop, size=(32, 32))
    for seed in range(8):
      box = crop.box(*shape, (32, 32), np.random.default_rng(seed))
      want = tvf.resized_crop(whole, *box, [32, 32], tv.InterpolationMode.BICUBIC)
      got = preprocess.prepare(image, view, 3, np.random.default_rng(seed))
      np.testing.assert_array_equal(got, np.asarray(want))


def test_the_simple_crop_of_deit():
  """Resize, RandomCrop(padding=4, padding_mode='reflect'): pixels, and every place as often."""
  torch.manual_seed(0)
  size, image = 32, picture(50, 71)
  resize = tv.Resize(size, interpolation=tv.InterpolationMode.BICUBIC)
  cut = tv.RandomCrop(size, padding=4, padding_mode='reflect')
  whole = resize(Image.fromarray(image))
  padded = tvf.pad(whole, [4] * 4, padding_mode='reflect')
  theirs = np.array([cut.get_params(padded, (size, size))[:2] for _ in range(3000)], float)
  view = View(crops.Simple(method='bicubic'), size=(size, size))
  places = [view.place(50, 71, np.random.default_rng(seed)).window[1] for seed in range(3000)]
  for axis in range(2):
    ours = np.array(places, float)[:, axis] + 4
    assert stats.ks_2samp(ours, theirs[:, axis]).pvalue > 1e-3
    assert {*ours} == {*theirs[:, axis]}
  for seed in range(20):
    top, left = (edge + 4 for edge in places[seed])
    want = np.asarray(tvf.crop(padded, top, left, size, size))
    got = preprocess.prepare(image, view, 3, np.random.default_rng(seed))
    np.testing.assert_array_equal(got, want)


def test_boxes_of_timms_random_erasing():
  random.seed(0)
  erase = random_erasing.RandomErasing(0.25, mode='const', device='cpu')
  theirs = []
  for _ in range(12000):
    left = erase(torch.ones(1, 40, 56))[0].numpy() == 0
    if left.any():
      y, x = np.nonzero(left)
      theirs.append((y.min(), x.min(), np.ptp(y) + 1, np.ptp(x) + 1))
  rng = np.random.default_rng(0)
  ours = [box for _ in range(12000) for box in erasing.RandomErasing().draw((40, 56), rng)]
  assert len(ours) == pytest.approx(len(theirs), abs=200)
  for axis in range(4):
    one, other = np.array(ours, float)[:, axis], np.array(theirs, float)[:, axis]
    assert stats.ks_2samp(one, other).pvalue > 1e-3


@pytest.mark.parametrize('mode', mixing.MODES)
def test_mixing_of_timm(mode, monkeypatch):
  """With what is drawn put into timm; `by_timm`, which the first tier compares with, too."""
  mix = mixing.Mix(0.8, 1.0, 0.9, 0.5, mode)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(8, 10, 12, 1)).astype(np.float32)
  label = rng.integers(0, 5, 8)
  for seed in range(8):
    share, box = mix.drawn(jax.random.key(seed), 8, 10, 12)
    batch = {'image': image, 'label': label, 'mask': np.ones(8, np.float32)}
    ours = mix(batch, jax.random.key(seed))
    share, *box = (np.broadcast_to(np.asarray(x), 8) for x in (share, *box))
    cut = box[2] > box[0]
    drawn = iter(np.stack(box, 1)[cut].tolist())
    lam = np.where(cut, 0.5, share).astype(np.float32)  # of what is cut the box decides

    def rand_bbox(*_, drawn=drawn, **__):
      top, left, bottom, right = next(drawn)
      return top, bottom, left, right

    each = lambda _, count, a=lam, c=cut: (a[:count].copy(), c[:count])  # noqa: E731
    whole = lambda _, a=lam, c=cut: (a[0], c[0])  # noqa: E731
    monkeypatch.setattr(timm_mixup.Mixup, '_params_per_elem', each)
    monkeypatch.setattr(timm_mixup.Mixup, '_params_per_batch', whole)
    monkeypatch.setattr(timm_mixup, 'rand_bbox', rand_bbox)
    theirs, target = timm_mixup.Mixup(
      0.8, 1.0, mode=mode, label_smoothing=0.1, num_classes=5
    )(torch.tensor(image).permute(0, 3, 1, 2).clone(), torch.tensor(label))  # fmt: skip
    task = Classification(label_smoothing=0.1)
    np.testing.assert_allclose(ours['image'], theirs.permute(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(task.targets(ours, 5), target, atol=1e-6)
    restated, targets = by_timm(image, label, 5, share, np.stack(box, 1), cut, 0.1)
    np.testing.assert_allclose(restated, theirs.permute(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(targets, target, atol=1e-6)


def test_boxes_and_shares_of_timm():
  np.random.seed(0)
  timms = timm_mixup.Mixup(0.8, 1.0, prob=0.9, switch_prob=0.3, mode='elem')
  lam, cut = timms._params_per_elem(4000)
  boxes = [
    timm_mixup.cutmix_bbox_and_lam((3, 40, 60), share) for share, is_cut in
    zip(lam, cut, strict=True) if is_cut and share < 1
  ]  # fmt: skip
  theirs = np.array([[yl, xl, yh, xh, share] for (yl, yh, xl, xh), share in boxes], float)
  theirs = theirs[theirs[:, 4] < 1]
  share, box = mixing.Mix(0.8, 1.0, 0.9, 0.3, 'elem').drawn(jax.random.key(0), 4000, 40, 60)
  ours = np.stack(box, 1).astype(float)
  ours = ours[ours[:, 2] > 0]
  ours = np.c_[ours, 1 - np.prod(ours[:, 2:] - ours[:, :2], axis=1) / 2400]
  assert len(ours) == pytest.approx(len(theirs), abs=120)
  for axis in range(5):
    assert stats.ks_2samp(ours[:, axis], theirs[:, axis]).pvalue > 1e-3
  share, mixed = np.asarray(share), lam[~cut]
  assert stats.ks_2samp(share[share < 1], mixed[mixed < 1]).pvalue > 1e-3


# --- whole recipes ---


def timms(policy, **changes):
  """timm's transform of training."""
  return timm.data.create_transform(
    48, is_training=True, color_jitter=0.3, auto_augment=policy, **changes
  )


def torchvisions():
  """Of torchvision's references of classification, with RandAugment."""
  return tv.Compose([
    tv.RandomResizedCrop(48, interpolation=tv.InterpolationMode.BILINEAR),
    tv.RandomHorizontalFlip(), tv.RandAugment(), tv.ToTensor(), tv.Normalize(MEAN, STD),
    tv.RandomErasing(0.1, value=0),
  ])  # fmt: skip


def view(method, *others):
  crop = crops.RandomResized(method=method, dialect='torchvision')
  return View(crop, 'horizontal', (48, 48), *others)


RECIPES = {
  'deit': (
    lambda: timms('rand-m9-mstd0.5-inc1', interpolation='bicubic', re_prob=0.25, re_mode='pixel'),
    view('bicubic', colours.RandAugment(), erasing.RandomErasing(mode='pixel')),
  ),
  'deit3': (lambda: timms('3a', interpolation='bicubic'), view('bicubic', colours.ThreeAugment())),
  'autoaugment': (
    lambda: timms(
      'original-mstd0.5', interpolation='bilinear', re_prob=0.4, re_mode='rand', re_count=3
    ),
    view(
      'bilinear', colours.AutoAugment('timm', 'original', std=0.5, resample='bilinear'),
      erasing.RandomErasing(0.4, count=3, mode='rand'),
    ),
  ),
  'torchvision': (
    torchvisions,
    view(
      'bilinear', colours.RandAugment('torchvision'),
      erasing.RandomErasing(0.1, max_area=0.33, max_aspect=3.3),
    ),
  ),
}  # fmt: skip


@pytest.mark.parametrize('recipe', RECIPES)
def test_whole_recipes(recipe, monkeypatch):
  """What comes out of all of it, normalised, has the same distribution."""
  # Today's Pillow refuses to leave nothing of an image, which 0.4 % of them would be.
  table = lambda bits: [v & (256 - (1 << (8 - bits))) for v in range(256)]  # noqa: E731
  monkeypatch.setattr(
    auto_augment.ImageOps, 'posterize', lambda image, bits: image.point(table(bits) * 3)
  )
  source, count = Pictures(), 2400
  np.random.seed(0)
  random.seed(0)
  torch.manual_seed(0)
  make, seen = RECIPES[recipe]
  transform, images = make(), [Image.fromarray(source[i]['image']) for i in range(32)]
  theirs = np.stack([transform(images[i % 32]).numpy() for i in range(count)])
  rows = Columns(seen, (ImageColumn(3),), (Label(32),))
  stream = pipeline.train_batches(rows, source, count, range(count), Keyed(32, 0), 0)
  task = Classification(mean=MEAN, std=STD)
  ours = task.augment(stream[0], jax.random.key(0), {})['image']
  ours, theirs = np.asarray(ours, float), theirs.astype(float).transpose(0, 2, 3, 1)
  steps = lambda x, axis: np.abs(np.diff(x, axis=axis)).mean((1, 2, 3))  # noqa: E731
  measures = {
    'mean': lambda x: x.mean((1, 2, 3)), 'std': lambda x: x.std((1, 2, 3)),
    'red': lambda x: x[..., 0].mean((1, 2)) - x[..., 2].mean((1, 2)),
    'colour': lambda x: x.std(-1).mean((1, 2)), 'detail': lambda x: steps(x, 2),
    'edges': lambda x: steps(x, 1) - steps(x, 2),
    'low': lambda x: np.quantile(x, 0.02, axis=(1, 2, 3)),
    'high': lambda x: np.quantile(x, 0.98, axis=(1, 2, 3)),
    'left': lambda x: x[:, :, :4].mean((1, 2, 3)) - x[:, :, -4:].mean((1, 2, 3)),
    'corner': lambda x: x[:, :3, :3].std((1, 2, 3)),
    'middle': lambda x: x[:, 16:32, 16:32].std((1, 2, 3)),
  }  # fmt: skip
  for name, measure in measures.items():
    # Rounded, or what is all of one colour would differ in the last bit.
    one, other = (np.round(measure(x), 4) for x in (ours, theirs))
    assert stats.ks_2samp(one, other).pvalue > 1e-3, name
