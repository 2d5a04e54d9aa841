"""Rows of several images: all of them are there, none sees another, each counts the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from vit_jax.core.errors import RunError
from vit_jax.data import crops, pipeline
from vit_jax.data.examples import Source
from vit_jax.data.fields import Field
from vit_jax.data.order import Keyed
from vit_jax.data.rows.columns import Image, Label
from vit_jax.data.rows.packed import Alone, Packed
from vit_jax.data.views import View
from vit_jax.models.vit import Patches, ViTConfig
from vit_jax.tasks.packed import PackedClassification


class Photos(Source):
  """Images of all shapes; what is at a pixel says which image it is of."""

  name = 'photos'

  def __init__(self, count=60, broken=()):
    self.fields = {
      'image': Field('image', dtype='uint8'), 'label': Field('class', tuple('0123456789'))
    }  # fmt: skip
    rng = np.random.default_rng(0)
    self._sizes = np.exp(rng.normal(np.log(40), 0.4, (count, 2))).astype(int) + 8
    self._broken = broken

  def __len__(self):
    return len(self._sizes)

  def __getitem__(self, index):
    image = np.full((*self._sizes[index], 1), 1 + index % 250, np.uint8)
    image = b'broken' if index in self._broken else image
    return {'image': image, 'label': index % 10, 'name': f'photo {index}'}


def packed(**changes):
  rows = Packed(
    image=Image(1), label=Label(10), patch=4, tokens=96, least=12, most=60, gives=4, takes=11,
    slots=8, view=View(),
  )  # fmt: skip
  return dataclasses.replace(rows, **changes)


def batches(rows, source=None, size=8, places=None, skip=None):
  source = source or Photos()
  places = range(size) if places is None else places
  return pipeline.train_batches(rows, source, size, places, Keyed(len(source), 3), 3, skip=skip)


def images_in(row):
  """Patches of each image of a row, by what they show."""
  found = {}
  for number in range(1, row['segment'].max() + 1):
    here = row['segment'] == number
    (shown,) = np.unique(row['pixels'][here])
    found[number] = int(shown) - 1, row['coords'][here]
  return found


@pytest.mark.parametrize('flip', ['none', 'both'])
def test_every_image_is_in_one_row_whole(flip):
  source = Photos()
  rows, seen = packed(view=View(flip=flip)), []
  for number in range(6):
    batch = batches(rows, source)[number]
    assert batch['mask'].shape == batch['index'].shape == batch['label'].shape == (8, 8)
    for at in range(8):
      row = {name: array[at] for name, array in batch.items()}
      images = images_in(row)
      assert len(images) == row['mask'].sum()
      for number_, (index, coords) in images.items():
        assert row['index'][number_ - 1] == index
        assert row['label'][number_ - 1] == index % 10
        grid = coords.max(0) + 1
        np.testing.assert_array_equal(coords, np.mgrid[: grid[0], : grid[1]].reshape(2, -1).T)
        assert 5 <= len(coords) <= 76  # of 12 to 60 patches, by one factor from 0.5 to 1.25
        height, width = source._sizes[index]
        # The nearest grid of so many patches: no side is off by more than one.
        aspect = np.sqrt(len(coords) * height / width), np.sqrt(len(coords) * width / height)
        assert np.abs(grid - aspect).max() <= 1.5
      assert not row['pixels'][row['segment'] == 0].any()
      seen += row['index'][row['mask'] > 0].tolist()
    assert (batch['segment'] > 0).mean() > 0.9
  # 22 a batch, in the order of the stream, none left out.
  order = Keyed(60, 3)(np.arange(6 * 22))
  assert sorted(seen) == sorted(order.tolist())


def test_processes_have_their_groups():
  """Halves of a batch are those of the whole; groups that would be cut are refused."""
  whole = batches(packed())[2]
  for part, places in enumerate((range(4), range(4, 8))):
    half = batches(packed(), places=places)[2]
    for name, array in half.items():
      np.testing.assert_array_equal(array, whole[name][4 * part : 4 * part + 4])


def test_what_cannot_be_used_leaves_its_room_to_others():
  batch = batches(packed(), Photos(broken=range(0, 60, 3)), skip=lambda name, error: None)[0]
  there = batch['index'][batch['mask'] > 0]
  assert len(there)
  assert not (there % 3 == 0).any()
  with pytest.raises(RunError, match='corrupt image photo'):
    batches(packed(), Photos(broken=range(60)))[0]


def test_wasted_tokens():
  """Less than 5 % where sizes differ by a factor of four, and nothing is left out."""
  rows = packed(tokens=512, least=64, most=256, gives=8, takes=26, slots=16)
  used = [(batches(rows, Photos(400), size=8)[i]['segment'] > 0).mean() for i in range(6)]
  assert np.mean(used) > 0.95


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(least=0), 'images of 0 to 60 patches'),
    (dict(most=97), 'do not go into rows of 96'),
    (dict(slots=2), 'do not go into 4 rows of 96 with 2 slots'),
    (dict(view=View(crops.Affine())), 'affine crop has the size'),
  ],
)
def test_what_does_not_fit(changes, message):
  with pytest.raises(RunError, match=message):
    batches(packed(**changes))[0]


MODEL = dict(image_size=(32, 32), in_channels=1, num_classes=10, width=16, depth=2, mlp_dim=32,
             num_heads=2)  # fmt: skip
KINDS = {
  'learned': dict(pool='mean', posemb='learned'),
  'factorised': dict(pool='map', posemb='factorised'),
  'sincos': dict(pool='map', posemb='sincos', scan=False),
  'rope': dict(pool='mean', posemb='none', rope='unit'),
  'relative': dict(pool='map', posemb='none', relative_bias='shared'),
}


def model_of(kind):
  model = vit_jax.create('mu/4', class_token=False, **MODEL, **KINDS[kind])
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), model)


def shown(seed=0):
  """A batch whose pixels are random, not one colour."""
  batch = batches(packed())[0]
  noise = np.random.default_rng(seed).normal(0, 1, batch['pixels'].shape).astype(np.float32)
  return batch, noise


def patches(batch, pixels):
  segment = jnp.asarray(batch['segment'])
  images = jnp.broadcast_to(1 + jnp.arange(8), (8, 8))
  return Patches(jnp.asarray(pixels), jnp.asarray(batch['coords']), segment > 0, segment, images)


@pytest.mark.parametrize('kind', KINDS)
def test_an_image_in_a_row_is_the_image_alone(kind):
  """Logits to rounding; what is in the others changes none of its bits."""
  model, (batch, pixels) = model_of(kind), shown()
  run = jax.jit(lambda model, x: model(x))
  logits = np.asarray(run(model, patches(batch, pixels)))
  assert logits.shape == (8, 8, 10)
  alone = {name: [] for name in ('pixels', 'coords', 'mask')}
  where = np.argwhere(batch['mask'] > 0)
  for row, slot in where:
    here = batch['segment'][row] == slot + 1
    room = 96 - here.sum()
    alone['pixels'].append(np.pad(pixels[row][here], ((0, room), (0, 0))))
    alone['coords'].append(np.pad(batch['coords'][row][here], ((0, room), (0, 0))))
    alone['mask'].append(np.arange(96) < here.sum())
  want = run(model, Patches(**{name: jnp.asarray(np.stack(a)) for name, a in alone.items()}))
  np.testing.assert_allclose(logits[tuple(where.T)], want, rtol=2e-4, atol=2e-5)
  other = pixels.copy()
  other[batch['segment'] == 1] += 1
  changed = np.asarray(run(model, patches(batch, other)))
  there = batch['mask'] > 0
  assert (changed[:, 0] != logits[:, 0]).any(-1)[there[:, 0]].all()
  np.testing.assert_array_equal(changed[:, 1:][there[:, 1:]], logits[:, 1:][there[:, 1:]])


def test_every_image_counts_the_same():
  """The loss is the mean over images, and no image has a gradient for another."""
  model, (batch, pixels) = model_of('sincos'), shown()
  task = PackedClassification(tokens=96, least=12, most=60, group=4, slots=8)
  held = {n: jnp.asarray(v) for n, v in batch.items() if n != 'index'} | {'pixels': pixels}
  totals = task.totals(held)
  ctx = type('Context', (), {'noise': None, 'totals': totals})

  def loss(pixels, mask):
    value, sums, _ = task.loss(model, {**held, 'pixels': pixels, 'mask': mask}, ctx)
    return value, sums['used'][0]

  value, used = jax.jit(loss)(pixels, held['mask'])
  each = -jax.nn.log_softmax(model(patches(batch, pixels)))
  label = np.asarray(batch['label'])[..., None]
  want = np.take_along_axis(np.asarray(each), label, -1)[..., 0]
  np.testing.assert_allclose(value, want[batch['mask'] > 0].mean(), rtol=1e-5)
  assert float(used) == (batch['segment'] > 0).sum()
  only = jnp.zeros_like(held['mask']).at[0, 1].set(1)
  grad = np.asarray(jax.jit(jax.grad(lambda p: loss(p, only)[0]))(pixels))
  touched = np.abs(grad).sum(-1) > 0
  np.testing.assert_array_equal(touched, (batch['segment'] == 2) & (np.arange(8) == 0)[:, None])


def test_what_rows_of_several_images_do_not_go_with():
  fields = Photos().fields
  for change, message in (
    (dict(class_token=True), 'without class token'), (dict(pool='token'), 'without class token'),
    (dict(patch_dropout=0.5), 'patch_dropout=0'),
  ):  # fmt: skip
    config = ViTConfig('mu/4', **{**MODEL, 'pool': 'mean', **change}).resolve()
    with pytest.raises(RunError, match=message):
      PackedClassification().adapt(config, fields)
  with pytest.raises(RunError, match=r'use data\.flip'):
    PackedClassification(mixup=0.1)


def test_for_evaluation_an_image_is_alone():
  task = PackedClassification(tokens=96, least=12, most=60)
  config = ViTConfig('mu/4', **MODEL, pool='mean').resolve()
  rows = task.rows(config, Photos().fields, View(), train=False)
  assert isinstance(rows, Alone)
  batch = pipeline.eval_batches(rows, Photos(), 8, range(8))[7]
  assert batch['index'].tolist() == [56, 57, 58, 59, -1, -1, -1, -1]
  assert batch['mask'].tolist() == [1] * 4 + [0] * 4
  assert (batch['segment'][:4] > 0).mean() > 0.75
  assert rows.given(['image']).needs == {'image': 'image'}
