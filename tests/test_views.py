"""Views: every field of an example goes where its pixels go, and back."""

import itertools
from types import MappingProxyType

import cv2
import numpy as np
import pytest

from vit_jax.core.errors import RunError
from vit_jax.data import crops, masks, pipeline, preprocess
from vit_jax.data.changes import Reading, Tone
from vit_jax.data.colours import Colour
from vit_jax.data.examples import Source
from vit_jax.data.fields import Boxes, Field, Masks
from vit_jax.data.misfit import MisfitError
from vit_jax.data.order import Keyed
from vit_jax.data.rows.columns import Columns, Image, Instances, Label, Labels, Map, Points, Vector
from vit_jax.data.views import FLIPS, View


class Moving(Colour):
  """Only what moves pixels of RandAugment and AutoAugment, and turns by little."""

  moves = True

  def draw(self, size, rng):
    one, other = Reading('bilinear', (0,)), Reading('bilinear', (0,), by_index=True)
    angle, level, shift = rng.uniform(-1, 1, 3)
    changes = one.rotate(20 * angle, size), other.shear(1, 0.2 * level), one.translate(0, 4 * shift)
    return (changes[0], Tone('contrast', 1.0), *changes[1:])


SIZE = 40, 56
VIEWS = [
  View(crop, flip, size, colour)
  for (crop, colour), flip, size in itertools.product(
    (
      *((crop, Colour()) for crop in (
        crops.Resize(), crops.Center(0.7), crops.RandomResized(min_area=0.3), crops.Affine(),
        crops.Resize(method='bicubic'), crops.Center(0.8, method='bilinear'),
        crops.published('bicubic', 0.9, 'transformers'), crops.Simple(method='linear'),
        crops.Fit(), crops.ScaleJitter(1.0, 1.7),
      )),
      (crops.RandomResized(0.3, dialect='big_vision'), Moving()),
    ),
    ('none', 'both'), (SIZE, (90, 33)),
  )
]  # fmt: skip
IDS = [
  f'{type(v.crop).__name__}-{v.crop.method}-{v.flip}-{v.size[0]}{"-moved" * v.colour.moves}'
  for v in VIEWS
]
HEIGHT, WIDTH = 61, 83


def boxes(corners):
  corners = np.asarray(corners, float).reshape(-1, 4)
  area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
  zeros = np.zeros(len(corners), np.int64)
  return Boxes(corners, zeros, zeros.astype(bool), area)


def random_boxes(rng, count):
  x, y = (np.sort(rng.uniform(0, side, (count, 2)), axis=1) for side in (WIDTH, HEIGHT))
  return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def rectangle(box):
  left, top, right, bottom = box
  return [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])]


@pytest.mark.parametrize('view', VIEWS, ids=IDS)
def test_a_mask_of_boxes_in_view_is_that_of_the_boxes_in_view(view):
  """To a pixel, of the image or of the frame, whichever is larger."""
  for seed in range(12):
    rng = np.random.default_rng(seed)
    placement = view.place(HEIGHT, WIDTH, rng)
    box = random_boxes(rng, 1)
    mask = masks.polygons(rectangle(box[0]), (HEIGHT, WIDTH))
    got = placement.labels(mask.astype(np.uint8), 0)
    corners = placement.points(rectangle(box[0])[0])
    want = masks.polygons([corners], view.size).astype(np.uint8)
    # What differs is as near to the edge of the box as half a pixel of the image is large.
    scale = np.abs(placement.affine[:, :2]).sum(1) / 2
    for y, x in zip(*np.nonzero(got != want), strict=True):
      apart = cv2.pointPolygonTest(corners.astype(np.float32), (x + 0.5, y + 0.5), True)
      assert abs(apart) <= np.linalg.norm(scale) + 1e-3
    inside, share = placement.boxes(box)
    straight = placement.matrix is None and not placement.changes
    if straight and share[0] > 0.5 and np.prod(inside[0, 2:] - inside[0, :2]) > 200:
      y, x = np.nonzero(got)
      found = [x.min(), y.min(), x.max() + 1, y.max() + 1]
      np.testing.assert_allclose(found, inside[0], atol=scale.max() + 1)


@pytest.mark.parametrize('view', VIEWS, ids=IDS)
def test_pixels_are_where_points_are(view):
  """A bright spot of an image is in view where its centre is."""
  for seed in range(8):
    rng = np.random.default_rng(100 + seed)
    at = rng.uniform((15, 15), (WIDTH - 15, HEIGHT - 15))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    spot = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 3.0**2))
    image = np.rint(spot).astype(np.uint8)[..., None]
    placement = view.place(HEIGHT, WIDTH, rng)
    (want,) = placement.points(at[None])
    scale = np.linalg.norm(placement.affine[:, :2], axis=1)
    if not all(8 * s < p < side - 8 * s for s, p, side in
               zip(scale, want, view.size[::-1], strict=True)):  # fmt: skip
      continue
    seen = preprocess.Opened(image, 1).within(placement)[..., 0].astype(float)
    y, x = np.mgrid[: view.size[0], : view.size[1]] + 0.5
    got = (x * seen).sum() / seen.sum(), (y * seen).sum() / seen.sum()
    np.testing.assert_allclose(got, want, atol=0.6 * max(1, *scale))


@pytest.mark.parametrize('view', VIEWS, ids=IDS)
def test_and_back(view):
  """Points exactly, boxes that were wholly in view, maps to a pixel."""
  for seed in range(6):
    rng = np.random.default_rng(seed)
    placement = view.place(HEIGHT, WIDTH, rng)
    points = rng.uniform(-5, 90, (20, 2))
    np.testing.assert_allclose(placement.back(placement.points(points)), points, atol=1e-9)
    corners = random_boxes(rng, 20)
    inside, share = placement.boxes(corners)
    straight = placement.matrix is None and not placement.changes
    if straight:
      whole = share > 1 - 1e-9
      np.testing.assert_allclose(placement.back_boxes(inside[whole]), corners[whole], atol=1e-9)
    smooth = cv2.resize(rng.integers(0, 5, (4, 5), np.uint8), (WIDTH, HEIGHT), interpolation=0)
    back = placement.back_labels(placement.labels(smooth, 255), 255)
    assert back.shape == smooth.shape
    seen = back != 255
    assert (back == smooth)[seen].mean() > 0.9
    if straight and isinstance(view.crop, crops.Resize):
      assert seen.all()
    outside = placement.back(np.array([[0.0, 0], [view.size[1], view.size[0]]]))
    y, x = np.nonzero(~seen)
    if straight and len(x):
      low, high = outside.min(0), outside.max(0)
      away = (x + 0.5 < low[0] + 1) | (x + 0.5 > high[0] - 1)
      assert (away | (y + 0.5 < low[1] + 1) | (y + 0.5 > high[1] - 1)).all()


@pytest.mark.parametrize('flip', FLIPS[1:])
def test_flips_are_involutions(flip):
  """Twice is as never, for everything; half of all images are mirrored each way."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
  points, found = rng.uniform(0, 40, (9, 2)), []
  for seed in range(400):
    placement = View(flip=flip, size=SIZE).place(*SIZE, np.random.default_rng(seed))
    found.append((placement.across, placement.down))
    twice = placement.points(placement.points(points))
    np.testing.assert_allclose(twice, points, atol=1e-9)
    pixels = preprocess.Opened(image, 3).within(placement)
    np.testing.assert_array_equal(preprocess.Opened(pixels, 3).within(placement), image)
    labels = image[..., 0].astype(np.int64)
    np.testing.assert_array_equal(placement.labels(labels, -1), pixels[..., 0])
    np.testing.assert_array_equal(placement.back_labels(pixels[..., 0], 0), image[..., 0])
  across, down = np.mean(found, axis=0)
  assert 0.4 < across < 0.6 if flip in ('horizontal', 'both') else across == 0
  assert 0.4 < down < 0.6 if flip in ('vertical', 'both') else down == 0


def test_flips_change_nothing_else():
  """What a crop draws is the same with a flip and without."""
  for crop in (crops.RandomResized(), crops.Affine()):
    for seed in range(20):
      a, b = (View(crop, flip, SIZE).place(HEIGHT, WIDTH, np.random.default_rng(seed))
              for flip in ('none', 'both'))  # fmt: skip
      assert a.box == b.box
      assert (a.matrix is None) == (b.matrix is None)
      assert a.matrix is None or (a.matrix == b.matrix).all()
  with pytest.raises(RunError, match="unknown flip 'sideways'"):
    View(flip='sideways')


class Scenes(Source):
  """Rectangles of three classes on a map that agrees with them; some images cannot be used."""

  name = 'scenes'
  fields = MappingProxyType({'image': Field('image', dtype='uint8')})

  def __len__(self):
    return 24

  def __getitem__(self, index):
    rng = np.random.default_rng(index)
    found = boxes(random_boxes(rng, index % 5))
    found = found._replace(label=rng.integers(0, 3, index % 5), crowd=rng.random(index % 5) < 0.2)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for box in found.corners:
      labels[masks.polygons(rectangle(box), labels.shape)] = 1
    image = np.repeat(labels[..., None] * 200, 3, axis=2)
    shapes = Masks([rectangle(box) for box in found.corners], found.label, found.crowd)
    return {
      'image': b'broken' if index == 7 else image, 'label': index % 3, 'labels': [0, 2],
      'target': [1.5, np.nan], 'points': found.corners[:1, :2] if len(found.corners) else [[-1, 3]],
      'boxes': found, 'masks': shapes, 'map': labels, 'name': f'scene {index}',
    }  # fmt: skip


def everything(view, most=6):
  return Columns(
    view, (Image(3),),
    (Label(3), Labels(3), Vector(2), Points(1), Map(2), Instances(3, most, masks=True)),
  )  # fmt: skip


@pytest.mark.parametrize('view', VIEWS[::3], ids=IDS[::3])
def test_what_is_dropped_is_dropped_everywhere(view):
  """Of each object in a batch there are box, class and mask; of no other anything."""
  source, rows = Scenes(), everything(view)
  batches = pipeline.train_batches(rows, source, 8, range(8), Keyed(24, 0), 0, skip=pipeline.log)
  for number in range(3):
    batch = batches[number]
    assert batch.keys() == {*rows.arrays(), 'mask', 'index'}
    for at, index in enumerate(batch['index']):
      row = {name: array[at] for name, array in batch.items()}
      if index == 7:  # nothing of it is there
        assert not any(row.pop(name) for name in ('mask',))
        assert all(not np.any(value) for name, value in row.items() if name != 'index')
        continue
      assert row['mask'] == 1
      count = int(row['boxes_known'].sum())
      assert row['boxes_known'].tolist() == [1] * count + [0] * (6 - count)
      for name in ('boxes', 'boxes_label', 'masks'):
        assert not row[name][count:].any()
      crowds = source[int(index)]['boxes'].crowd.sum()
      assert count <= len(source[int(index)]['boxes'].corners) - crowds
      assert row['labels'].tolist() == [1, 0, 1]
      assert (row['target'].tolist(), row['target_known'].tolist()) == ([1.5, 0], [1, 0])
      assert set(np.unique(row['map'])) <= {0, 1, 255}
      # The mask of an object is where the map has one, and its box around it.
      assert not (row['masks'].max(0) & (row['map'] == 0)).any()
      for box, mask in zip(row['boxes'][:count], row['masks'][:count], strict=True):
        y, x = np.nonzero(mask)
        left, top, right, bottom = box * np.array([*view.size[::-1]] * 2)
        if len(x) > 20:
          slack = 2
          assert x.min() >= left - slack
          assert x.max() + 1 <= right + slack
          assert y.min() >= top - slack
          assert y.max() + 1 <= bottom + slack
  assert 7 in np.concatenate([batches[i]['index'] for i in range(3)])


def test_points_that_are_not_in_view_are_not_known_and_sides_change_in_a_mirror():
  column = Points(3, mirrored=(1, 0, 2))
  example = {'points': np.array([[1.0, 2], [30, 4], [np.nan, 1]]), 'name': 'x'}
  for across in (False, True):
    placement = next(
      p for p in (View(flip='horizontal', size=SIZE).place(*SIZE, np.random.default_rng(s))
                  for s in range(20)) if p.across == across
    )  # fmt: skip
    row = column.make(example, placement)
    assert row['points_known'].tolist() == [True, True, False]
    want = (
      [[55 / 56, 2 / 40], [26 / 56, 4 / 40]][::-1] if across else [[1 / 56, 0.05], [30 / 56, 0.1]]
    )
    np.testing.assert_allclose(row['points'][:2], want)
  half = View(crops.Center(0.5), size=(20, 28)).place(*SIZE, None)
  assert column.make(example, half)['points_known'].tolist() == [False, False, False]


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    (dict(label=3), RunError, 'scene 4 has label 3, outside the 3 classes'),
    (dict(labels=[0, 5]), RunError, 'scene 4 has label 5, outside'),
    (dict(target=[1]), RunError, 'target has 1 numbers, and that of the first example 2'),
    (dict(points=[[1, 2], [3, 4]]), RunError, r'points is \(2, 2\), not 1 points'),
    (dict(map=np.full((HEIGHT, WIDTH), 9)), RunError, r'value 9, outside the 2 .*ignore=9'),
    (dict(map=np.zeros((3, 3), int)), MisfitError, r'is 61 x 83, and its map \(3, 3\)'),
    (dict(map=np.zeros((HEIGHT, WIDTH, 3))), MisfitError, 'one whole number for each pixel'),
    (dict(map=cv2.imencode('.jpg', np.zeros((HEIGHT, WIDTH)))[1].tobytes()),
     MisfitError, 'has a map stored as JPEG, which changes numbers: use PNG'),
  ],
)  # fmt: skip
def test_values_that_cannot_be(change, error, message):
  example = {**Scenes()[4], **change}
  with pytest.raises(error, match=message):
    everything(View(size=SIZE)).make(example, np.random.default_rng(0))


def test_images_of_an_example_are_seen_through_one_view():
  """Two of them, mirrored and cut alike; of different sizes they are refused."""
  rows = Columns(
    View(crops.RandomResized(), 'both', SIZE), (Image(1, field='a'), Image(1, field='b'))
  )
  image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)
  row = rows.make({'a': image, 'b': image, 'name': ''}, np.random.default_rng(3))
  np.testing.assert_array_equal(row['a'], row['b'])
  with pytest.raises(MisfitError, match='a of 61 x 83 pixels and b of 9 x 9'):
    rows.make({'a': image, 'b': image[:9, :9], 'name': ''}, np.random.default_rng(3))
  assert rows.needs == {'a': 'image', 'b': 'image'}
  with pytest.raises(RunError, match='random, and cannot be undone'):
    rows.placement({'a': image, 'b': image})


def test_polygons_hold_the_pixels_whose_centres_they_hold():
  """As matplotlib says of each centre by itself."""
  from matplotlib.path import Path

  rng = np.random.default_rng(0)
  y, x = np.mgrid[:30, :40] + 0.5
  for _ in range(30):
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    corners = np.stack([20 + 18 * np.cos(angles), 15 + 13 * np.sin(angles)], 1)
    corners *= rng.uniform(0.5, 1.2)
    want = Path(corners).contains_points(np.c_[x.ravel(), y.ravel()]).reshape(30, 40)
    assert (masks.polygons([corners], (30, 40)) != want).sum() <= 1
  two = [rectangle((2, 3, 10, 9))[0], rectangle((8, 3, 12, 5))[0]]
  assert masks.polygons(two, (30, 40)).sum() == 8 * 6 + 2 * 2


@pytest.mark.parametrize(
  ('size', 'filled'),
  [((40, 40), (30, 40)), ((30, 60), (30, 40)), ((80, 50), (38, 50)), ((6, 9), (6, 8))],
)
def test_images_keep_their_shape(size, filled):
  """Of 90 x 120 pixels: as large as fits, in the corner, zeros beyond; mirrored in their place."""
  image = np.random.default_rng(0).integers(1, 256, (90, 120, 3), np.uint8)
  for flip in ('none', 'horizontal', 'vertical'):
    columns = Columns(View(crops.Fit(), flip, size), (Image(3),), (Instances(2),))
    box = Boxes(np.array([[0.0, 0, 30, 45]]), np.zeros(1, int), np.zeros(1, bool), np.ones(1))
    for seed in range(4):
      row = columns.make({'image': image, 'boxes': box, 'name': 'x'}, np.random.default_rng(seed))
      rows, wide = filled
      np.testing.assert_allclose(row['extent'], np.divide(filled, size), rtol=1e-6)
      pixels = row['image']
      assert not pixels[rows:].any()
      assert not pixels[:, wide:].any()
      whole = preprocess.resize(image, filled)
      turned = [whole, whole[:, ::-1] if flip == 'horizontal' else whole[::-1]]
      same = [np.array_equal(pixels[:rows, :wide], each) for each in turned]
      assert same == [flip == 'none' or not same[1], flip != 'none' and not same[0]] or all(same)
      # As shares of what is image, boxes are as in the image.
      left, top, right, bottom = row['boxes'][0] / np.tile(row['extent'][::-1], 2)
      want = np.array([left, top, right, bottom])
      mirrored = same[1] and not same[0]
      expected = np.array([0, 0, 0.25, 0.5])
      if mirrored:
        expected = [0.75, 0, 1, 0.5] if flip == 'horizontal' else [0, 0.5, 0.25, 1]
      np.testing.assert_allclose(want, expected, atol=1e-6)


def test_scale_jitter_is_large_and_small():
  """Factors are even between both ends; what is larger fills the frame, from anywhere in it."""
  view = View(crops.ScaleJitter(0.5, 2.0), size=(60, 60))
  found = [view.place(60, 40, np.random.default_rng(seed)) for seed in range(400)]
  scales = np.array([placement.window[0][0] / 60 for placement in found])
  assert np.quantile(scales, [0.02, 0.5, 0.98]) == pytest.approx([0.53, 1.25, 1.97], abs=0.06)
  for placement, scale in zip(found, scales, strict=True):
    want = np.minimum(np.rint(np.array([60, 40]) * scale), 60)
    np.testing.assert_allclose(placement.filled, want, atol=1)
  corners = np.array([placement.window[1] for placement in found if placement.filled == (60, 60)])
  assert len(corners) > 50
  assert corners.max(0) == pytest.approx([60, 20], abs=5)
  with pytest.raises(RunError, match='a scale jitter needs 0 < min_scale <= max_scale'):
    crops.ScaleJitter(0.0, 1.0)


def test_moved_pixels_are_not_told_from_what_is_filled_up():
  with pytest.raises(RunError, match='says which of them are image: none'):
    Columns(View(crops.Fit(), size=SIZE, colour=Moving()), (Image(3),))
