"""Bands: measured once, chosen by their numbers, and partly without data."""

import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests import toys
from tests.test_geotiff import ENCODER, NAMES, drawn, random, said, saved, scene
from vit_jax.core.errors import RunError
from vit_jax.data import audit, geotiff, preprocess
from vit_jax.data.fields import VOID, Field
from vit_jax.data.misfit import MisfitError
from vit_jax.data.rows.columns import Columns, Image, Map
from vit_jax.data.sources import open_split
from vit_jax.data.sources.paired import Paired
from vit_jax.data.sources.tiles import Tiles
from vit_jax.data.views import View
from vit_jax.evaluators.segmentation import Segmentation as Scores
from vit_jax.models import segmenter
from vit_jax.models.vit import ViTConfig
from vit_jax.tasks.change import Change
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.tasks.task import Seen
from vit_jax.training import experiment
from vit_jax.training.loop import train

UNREFERENCED = 'ignore::rasterio.errors.NotGeoreferencedWarning'


def rounded(values):
  return [float(f'{value:.6g}') for value in values]


@pytest.mark.parametrize('dtype', ['uint16', 'float32'])
def test_statistics_are_those_of_all_pixels_that_are_there(tmp_path, dtype):
  """By NumPy, in float64, of images of all sizes; NaN, and what files call nodata, are missing."""
  rng, nodata = np.random.default_rng(0), {'uint16': 65535, 'float32': -9999.0}[dtype]
  folder, pixels = tmp_path / 'train' / 'images', []
  folder.mkdir(parents=True)
  (tmp_path / 'train' / 'maps').mkdir()
  for number, size in enumerate(((9, 12), (20, 5), (7, 7))):
    image = (rng.gamma(2, 500 * (number + 1), (*size, 5)) + 100).astype(dtype)
    there = np.ones(size, bool)
    if number == 0 or dtype == 'float32':
      image[2:4, 1, 3], there[2:4, 1] = (nodata, np.nan, np.nan)[number], False
    if number == 0:
      scene(folder / '0.tif', image, nodata=nodata)
    else:
      np.save(folder / f'{number}.npy', image)
    np.save(tmp_path / 'train' / 'maps' / f'{number}.npy', np.zeros(size, np.uint8))
    pixels.append(image[there].astype(np.float64))
  source = open_split(Paired(dir=str(tmp_path), names={'map': 'a,b'}), 'train')
  images = Image(5, dtype, gaps=True)
  assert source.fields['image'].gaps
  field = audit.with_bands(source, source.fields, [images])['image']
  every = np.concatenate(pixels) / (65535 if dtype == 'uint16' else 1)
  np.testing.assert_allclose(field.center, rounded(every.mean(0)), rtol=1e-12)
  np.testing.assert_allclose(field.spread, rounded(every.std(0)), rtol=1e-12)
  assert source.fields['map'] == audit.with_bands(source, source.fields, [images])['map']


def test_two_dates_are_normalised_alike():
  rng = np.random.default_rng(0)
  x = rng.normal((1.0, 5.0), (2.0, 1.0), (2, 50, 2)) + np.array([[[0.0, 3.0]], [[1.0, 0.0]]])
  fields = {
    name: Field('image', center=tuple(one.mean(0)), spread=tuple(one.std(0)))
    for name, one in zip(('before', 'after'), x, strict=True)
  }
  task = Change(measure=True).settled(fields)
  np.testing.assert_allclose(task.mean, x.mean((0, 1)))
  np.testing.assert_allclose(task.std, x.std((0, 1)))
  # What is given stays, and nothing is taken that nobody asked for.
  given = Change(measure=True, mean=(0.5,)).settled(fields)
  assert given.mean == (0.5,)
  np.testing.assert_allclose(given.std, task.std)
  assert Change().settled(fields).mean is None


def tiles_of_classes(root, levels, seed=0):
  """Scenes of two classes in a folder for each: GeoTIFF of five bands of floats, some missing."""
  rng = np.random.default_rng(seed)
  for split in ('train', 'test'):
    for label, level in enumerate(levels):
      folder = root / split / 'ab'[label]
      folder.mkdir(parents=True, exist_ok=True)
      for number in range(8):
        pixels = rng.normal((0, 20, 40, 60, 80), 3, (16, 16, 5)).astype(np.float32)
        pixels[..., 4] += level
        pixels[0, :3, 1] = -9999
        scene(folder / f'{number}.tif', pixels, nodata=-9999)


def test_a_run_measures_once(tmp_path, capsys, monkeypatch):
  """A scene has a class, by its fifth band; what checkpoints say is what is used from then on."""
  tiles_of_classes(tmp_path / 'data', (-9, 9))
  options: Any = dict(
    model__in_channels=5, optim__lr=3e-3, task__mixup=0.0, data__crop={'name': 'resize'},
    evals__test__every='100%', task__measure=True, task__mean=None, task__std=None,
  )  # fmt: skip
  config = toys.config(tmp_path / 'data', total='12 steps', **options)
  result: Any = train(config, str(tmp_path / 'run'))
  assert result['metrics']['test/top1'] == 1
  output = capsys.readouterr().out
  card = vit_jax.load(str(tmp_path / 'run')).card
  assert card.mean[:4] == pytest.approx((0, 20, 40, 60), abs=0.5)
  assert card.std[:4] == pytest.approx((3,) * 4, abs=0.3)
  assert card.mean[4] == pytest.approx(80, abs=1)
  assert card.std[4] == pytest.approx((9 + 81) ** 0.5, abs=1)
  mean = ','.join(f'{value:.4g}' for value in card.mean)
  assert f'task.measure: --config.task.mean={mean} ' in output
  # The data are others, and the run goes on: nobody measures again.
  monkeypatch.setattr(experiment, 'with_bands', None)
  tiles_of_classes(tmp_path / 'data', (-40, 40), seed=1)
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')
  (tmp_path / 'run' / 'result.json').unlink()
  train(config, str(tmp_path / 'run'))
  again = vit_jax.load(str(tmp_path / 'run')).card
  assert (again.mean, again.std) == (card.mean, card.std)
  vit_jax.save(vit_jax.load(str(tmp_path / 'run')), tmp_path / 'exported', 'vit_jax')
  assert vit_jax.load(str(tmp_path / 'exported')).card.mean == card.mean
  (row,) = said(str(tmp_path / 'run'), [tmp_path / 'data' / 'test' / 'b' / '0.tif'],
                tmp_path / 'out')  # fmt: skip
  assert row['image'].endswith('0.tif')
  monkeypatch.undo()
  without = toys.config(tmp_path / 'data', **{**options, 'task__measure': False})
  with pytest.raises(RunError, match=r'a unit of their own: give --config\.task\.measure=True'):
    train(without, str(tmp_path / 'other'))
  both = toys.config(tmp_path / 'data', **{**options, 'task__mean': (1.0,), 'task__std': (1.0,)})
  with pytest.raises(RunError, match=r'task\.measure=True, and task\.mean=\(1\.0,\) is given'):
    train(both, str(tmp_path / 'other'))


def test_what_is_missing_is_zero_and_of_no_class():
  """Of floats by NaN, of whole numbers by 'there'; the same in evaluations."""
  rng = np.random.default_rng(0)
  pixels, labels = rng.normal(5, 2, (8, 12, 3)).astype(np.float32), rng.integers(0, 3, (8, 12))
  missing = np.zeros((8, 12), bool)
  missing[2:4, 5:9] = True
  nan = np.where(missing[..., None] & (np.arange(3) == 1), np.float32(np.nan), pixels)
  whole = (pixels.clip(0, 10) * 6000).astype(np.uint16)
  cases = (
    ({'image': nan}, 'float32', (5.0,)),
    ({'image': np.where(missing[..., None], 0, whole), 'there': ~missing}, 'uint16', (0.5,)),
  )
  for example, dtype, mean in cases:
    example = {**example, 'map': labels, 'name': 'x'}
    fields = {'image': Field('image', dtype=dtype, gaps='there' in example),
              'map': Field('map', NAMES)}  # fmt: skip
    task = Segmentation(mean=mean, std=(0.25,))
    config = segmenter.SegmenterConfig(
      ViTConfig('mu/4', image_size=(8, 12), in_channels=3), 3
    ).resolve()
    rows = task.rows(config, fields, View(), train=False)
    row = rows.make(example, rng)
    assert np.isfinite(row['image'].astype(float)).all()
    np.testing.assert_array_equal(row['map'], np.where(missing, 255, labels))
    batch = {name: jnp.asarray(value)[None] for name, value in row.items()}
    seen = np.asarray(task.augment(batch, None, {})['image'][0])
    assert not seen[missing].any()
    raw = {'float32': nan, 'uint16': whole / 65535}[dtype]
    np.testing.assert_allclose(seen[~missing], ((raw - mean) / 0.25)[~missing], rtol=1e-5)
    assert {*rows.arrays()} == {*row}
    record = Scores().record({'map': np.zeros((8, 12), int)}, example, Seen(rows, fields))
    np.testing.assert_array_equal(record.counts, np.bincount(labels[~missing]))
    # At half the resolution of the loss, in another view.
    column = Map(3, (VOID,), stride=2)
    half = Columns(View(size=(16, 24)), (Image(3, dtype, gaps=True),), (column,))
    row = half.make(example, rng)
    np.testing.assert_array_equal(row['map'] == 255, missing)
    assert not row['image'][np.repeat(np.repeat(missing, 2, 0), 2, 1)].any()
    # What is made of a missing pixel, and of others, is missing; a map says what is in the middle.
    small = Columns(View(size=(4, 6)), (Image(3, dtype, gaps=True),), (Map(3, (VOID,)),))
    row = small.make(example, rng)
    touched = missing.reshape(4, 2, 6, 2).any((1, 3))
    np.testing.assert_array_equal(row['there'] == 0, touched)
    assert not row['image'][touched].any()
  # Where nothing reckons with it, it is refused.
  with pytest.raises(MisfitError, match='not finite'):
    preprocess.decode(nan, 3, 'float32')


def test_tiles_say_what_is_missing(tmp_path):
  for kind in ('images', 'maps'):
    (tmp_path / 'train' / kind).mkdir(parents=True)
  pixels = random((32, 32))
  pixels[:5, :7, 2] = 0
  scene(tmp_path / 'train' / 'images' / 'a.tif', pixels, nodata=0)
  scene(tmp_path / 'train' / 'maps' / 'a.tif', random((32, 32), 1).astype(np.uint8) % 3)
  options: Any = dict(dir=str(tmp_path), tile=(16, 16), names={'map': 'a,b,c'})
  source = open_split(Tiles(**options, bands=(4, 2)), 'train')
  field = source.fields['image']
  assert (field.channels, field.gaps) == (2, True)
  np.testing.assert_array_equal(source[0]['image'], pixels[:16, :16, [3, 1]])
  assert source[0]['there'].all()  # the third band is not asked for
  example = open_split(Tiles(**options), 'train')[0]
  np.testing.assert_array_equal(example['there'], (pixels[:16, :16] > 0).all(-1))
  assert not example['image'][~example['there']].any()
  field = audit.with_bands(source, source.fields, [Image(2, 'uint16', gaps=True)])['image']
  every = pixels[..., [3, 1]].reshape(-1, 2) / 65535
  np.testing.assert_allclose(field.center, rounded(every.mean(0)))
  with pytest.raises(RunError, match='has 4 bands, and bands=1,5 asks for number 5'):
    open_split(Tiles(**options, bands=(1, 5)), 'train')
  with pytest.raises(RunError, match='the first band is number 1'):
    Tiles(**options, bands=(0, 1))


@pytest.mark.filterwarnings(UNREFERENCED)
def test_bands_of_a_file_are_chosen_by_their_numbers(tmp_path):
  """A scene and a tile, as if they were stored like that; 0 is the mean of the training data."""
  config = segmenter.SegmenterConfig(encoder=ViTConfig(**ENCODER), num_classes=3)
  model = drawn(segmenter.Segmenter(config, nnx.Rngs(0)))
  task = Segmentation(mean=(0.25, 0.5, 0.125, 0.75), std=(0.3,))
  checkpoint = saved(tmp_path, task, model, NAMES)
  pixels = random((20, 24), bands=5)
  other = np.stack([pixels[..., 3], pixels[..., 0], np.full((20, 24), 8192, np.uint16),
                    pixels[..., 4]], -1)  # fmt: skip
  rows = {}
  for name, image, bands in (('five', pixels, '4,1,0,5'), ('four', other, '')):
    files = [scene(tmp_path / f'{name}.tif', image), tmp_path / f'{name}.npy']
    np.save(files[1], image)
    rows[name] = said(checkpoint, files, tmp_path / name, bands=bands)
  for one, two in zip(rows['five'], rows['four'], strict=True):
    assert one['share'] == pytest.approx(two['share'])
  (tmp_path / 'few').mkdir()
  few = scene(tmp_path / 'few' / 'a.tif', random((20, 24), bands=3))
  np.save(tmp_path / 'few' / 'a.npy', random((20, 24), bands=3))
  refused = (
    (few, '', 'has 3 bands, and the model takes 4'),
    (few, '1,2,3,4', 'has 3 bands, and bands=1,2,3,4 asks for number 4'),
    (tmp_path / 'few' / 'a.npy', '1,2,3,4', 'has 3 bands, and bands=1,2,3,4 asks for number 4'),
    (few, '1,2,3', 'the model takes 4; give the number of each'),
    (few, '1,x', 'write numbers, such as 4,3,2'),
  )
  for file, bands, message in refused:
    with pytest.raises(RunError, match=message):
      said(checkpoint, [file], tmp_path / 'out', bands=bands)
  got, there = geotiff.Raster(few, bands=(2, 0), fill=np.array([9, 7])).read(0, 20)
  np.testing.assert_array_equal(got[..., 1], np.full((20, 24), 7))
  assert there.all()
