"""Scenes of any size: read, mapped and written where they are on earth."""

import concurrent.futures
import dataclasses
import json
import pickle
import re
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from affine import Affine
from flax import nnx
from PIL import Image as Picture

import vit_jax
from vit_jax import predict, tasks
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data import crops, geotiff
from vit_jax.data.fields import VOID, Field
from vit_jax.data.rows.columns import Columns, Image, Map
from vit_jax.data.sources import open_split
from vit_jax.data.sources.tiles import Tiles
from vit_jax.data.views import View
from vit_jax.models import change, segmenter
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import sharding
from vit_jax.tasks import scenes
from vit_jax.tasks.change import Change, Damage
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.tasks.task import Seen

PLACE: Any = dict(crs='EPSG:32632', transform=Affine(10, 0, 500_000, 0, -10, 5_200_000))
NAMES = ('water', 'wood', 'field')


def scene(path, pixels, **options):
  """A GeoTIFF file of an array (height, width, bands), by rasterio."""
  height, width, count = pixels.shape
  profile = dict(driver='GTiff', height=height, width=width, count=count, dtype=pixels.dtype)
  profile |= PLACE | options
  with rasterio.open(path, 'w', **profile) as file:
    file.write(np.moveaxis(pixels, -1, 0))
  return paths.at(str(path))


def random(size=(50, 70), bands=4, dtype='uint16', seed=0):
  return np.random.default_rng(seed).integers(1, 60_000, (*size, bands)).astype(dtype)


@pytest.mark.parametrize(
  ('dtype', 'profile'),
  [
    ('uint16', dict(tiled=True, blockxsize=32, blockysize=16, compress='deflate', nodata=0)),
    ('int16', dict(compress='lzw', predictor=2, nodata=-9999)),
    ('float32', dict(nodata=float('nan'), interleave='pixel')),
    ('uint8', dict(compress='packbits')),
  ],
)
def test_rows_are_those_of_the_file(tmp_path, dtype, profile):
  """And pixels are missing where any band says so; each thread has a handle of its own."""
  pixels = random(dtype=dtype)
  missing = np.zeros((50, 70), bool)
  if 'nodata' in profile:
    missing[3:9, :5] = True
    pixels[3:9, :5, 2] = profile['nodata']
  raster = geotiff.Raster(scene(tmp_path / 'a.tif', pixels, **profile))
  assert (raster.size, raster.channels) == ((50, 70), 4)
  assert raster.dtype == ('float32' if dtype == 'int16' else dtype)
  handles, everybody = [], threading.Barrier(5, timeout=60)

  def read(top):
    everybody.wait()
    handles.append(raster._file)
    return raster.read(top, 10)

  with concurrent.futures.ThreadPoolExecutor(5) as pool:
    parts = list(pool.map(read, range(0, 50, 10)))
  got, there = (np.concatenate(each) for each in zip(*parts, strict=True))
  np.testing.assert_array_equal(there, ~missing)
  np.testing.assert_array_equal(got, np.where(missing[..., None], 0, pixels))
  assert got.dtype == raster.dtype
  assert len({id(handle) for handle in handles}) == 5


def test_alpha_is_a_band_where_the_model_takes_one_more(tmp_path):
  pixels = random(bands=4, dtype='uint8')
  pixels[..., 3] = 255
  pixels[:4, :, 3] = 0
  path = scene(tmp_path / 'a.tif', pixels, photometric='RGB', alpha='YES')
  whole = geotiff.Raster(path, 4)
  got, there = whole.read(0, 50)
  np.testing.assert_array_equal(got, pixels)
  assert there.all()
  raster = geotiff.Raster(path, 3)
  assert (whole.channels, raster.channels) == (4, 3)
  got, there = raster.read(0, 50)
  np.testing.assert_array_equal(got[4:], pixels[4:, :, :3])
  assert not there[:4].any()
  assert there[4:].all()


def test_which_files_say_where_they_are(tmp_path):
  pixels = random(bands=1, dtype='uint8')
  assert geotiff.is_placed(scene(tmp_path / 'a.tif', pixels))
  assert geotiff.is_placed(scene(tmp_path / 'big.tif', pixels, BIGTIFF='YES'))
  assert geotiff.is_placed(scene(tmp_path / 'be.TIFF', pixels, ENDIANNESS='BIG'))
  Picture.fromarray(pixels[..., 0]).save(tmp_path / 'plain.tif')
  Picture.fromarray(pixels[..., 0]).save(tmp_path / 'b.png')
  (tmp_path / 'broken.tif').write_bytes(b'II*\0\1')
  for name in ('plain.tif', 'b.png', 'broken.tif', 'none.tif'):
    assert not geotiff.is_placed(paths.at(str(tmp_path / name)))


def test_what_is_written_lies_where_the_scene_does(tmp_path):
  pixels, labels = random(), np.random.default_rng(1).integers(0, 3, (50, 70, 1))
  like = geotiff.Raster(scene(tmp_path / 'a.tif', pixels))
  path = paths.at(str(tmp_path / 'out.tif'))
  colours = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
  with geotiff.written(path, like, 'uint8', ('class',), 255, colours) as write:
    for top in range(0, 50, 13):
      write(top, labels[top : top + 13])
  with rasterio.open(path) as file:
    np.testing.assert_array_equal(file.read(1), labels[..., 0])
    assert file.crs == PLACE['crs']
    assert file.transform == PLACE['transform']
    assert (file.nodata, file.descriptions, file.dtypes) == (255, ('class',), ('uint8',))
    assert [file.colormap(1)[i][:3] for i in range(3)] == colours


def test_nothing_is_left_of_what_was_not_finished(tmp_path):
  like = geotiff.Raster(scene(tmp_path / 'a.tif', random()))
  with (
    pytest.raises(KeyError),
    geotiff.written(paths.at(str(tmp_path / 'out.tif')), like, 'uint8', ('class',), 255),
  ):
    raise KeyError
  assert [path.name for path in tmp_path.iterdir()] == ['a.tif']


class Pointwise(nnx.Module):
  """Logits of a pixel by that pixel alone: what windows say of it does not depend on them."""

  def __init__(self, config, bands, classes):
    rng = np.random.default_rng(5)
    self.config = config
    self.kernel = nnx.Param(jnp.asarray(rng.normal(size=(bands, classes)), jnp.float32))

  def __call__(self, images, key=None):
    out = sharding.spec('batch', None, None, None)
    return jnp.einsum('bhwc,cd->bhwd', images, self.kernel[...], out_sharding=out)


def seen_by(task, config, dtype):
  image = Field('image', dtype=dtype)
  fields = {**dict.fromkeys(task.images, image), 'map': Field('map', NAMES)}
  return Seen(task.rows(config, fields, View(), train=False), fields)


def pointwise(task, kind, dtype='uint16', bands=4):
  encoder = ViTConfig('mu/4', image_size=(16, 24), in_channels=bands)
  config = kind(encoder=encoder, num_classes=3).resolve()
  return Pointwise(config, bands, 3), seen_by(task, config, dtype)


@pytest.mark.parametrize('size', [(50, 70), (16, 24), (9, 100), (33, 24), (5, 7)])
@pytest.mark.parametrize('layout', ['', 'data'])
def test_a_map_of_a_scene_is_that_of_the_whole(tmp_path, size, layout):
  """With a border without data, for sizes of all kinds; computed by NumPy from the whole scene."""
  pixels = random(size)
  pixels[:2], pixels[:, -1] = 0, 0
  files = [scene(tmp_path / 'a.tif', pixels, nodata=0)]
  task = Segmentation(mean=(0.4,), std=(0.3,))
  out = {name: paths.at(str(tmp_path / f'{name}.tif')) for name in ('map', 'scores')}

  def run():
    model, seen = pointwise(task, segmenter.SegmenterConfig)
    how: Any = dict(map_file=out['map'], scores_file=out['scores'], batch=8)
    return model, scenes.mapped(model, task, seen, files, **how)

  if layout:
    with jax.set_mesh(sharding.make_mesh(layout)):
      model, found = run()
  else:
    model, found = run()
  logits = (pixels / 65535 - 0.4) / 0.3 @ np.asarray(model.kernel[...], np.float64)
  want = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  there = (pixels > 0).all(-1)
  with rasterio.open(out['scores']) as file:
    scores = np.moveaxis(file.read(), 0, -1)
    assert file.descriptions == NAMES
  np.testing.assert_allclose(scores[there], want[there], rtol=1e-4, atol=1e-5)
  assert np.isnan(scores[~there]).all()
  with rasterio.open(out['map']) as file:
    labels = file.read(1)
    assert file.transform == PLACE['transform']
  sure = np.sort(want, -1)
  sure = there & (sure[..., -1] - sure[..., -2] > 1e-3)
  np.testing.assert_array_equal(labels[sure], want.argmax(-1)[sure])
  assert (labels[~there] == 255).all()
  np.testing.assert_array_equal(found.prediction.arrays['map'], labels)  # small enough
  counts = np.bincount(labels[there], minlength=3)
  share = {NAMES[i]: counts[i] / counts.sum() for i in range(3) if counts[i]}
  assert found.prediction.facts['share'] == pytest.approx(share)
  assert found.prediction.facts['missing'] == pytest.approx(1 - there.mean())


# --- the command ---


def saved(tmp_path, task, model, names, dtype='uint16'):
  """A checkpoint of a model as its run leaves it."""
  fields = {**dict.fromkeys(task.images, Field('image', dtype=dtype)), 'map': Field('map', names)}
  card = task.card(model.config, crops.Resize(method='area'), fields)
  model.card = dataclasses.replace(
    card, task=tasks.described(task),
    fields={name: dataclasses.asdict(field) for name, field in fields.items()},
  )  # fmt: skip
  vit_jax.save(model, tmp_path / 'model', 'vit_jax')
  return str(tmp_path / 'model')


ENCODER: Any = dict(
  variant='mu/4', image_size=(16, 16), in_channels=4, depth=1, width=16, mlp_dim=32, num_heads=2
)


def drawn(model):
  rng = np.random.default_rng(7)
  return jax.tree.map(lambda w: jnp.asarray(w + 0.3 * rng.normal(size=w.shape), w.dtype), model)


def said(checkpoint, images, out, **options):
  options = {**dict(top=5, batch_size=8, labels=None, choice={}), **options}
  assert predict.main(checkpoint, [str(image) for image in images], out=str(out), **options) == 0
  return json.loads((out / 'predictions.json').read_text())


def test_a_scene_and_tiles_are_predicted_by_one_command(tmp_path, capsys):
  """GeoTIFF in windows of its own resolution, other images as in evaluations."""
  config = segmenter.SegmenterConfig(encoder=ViTConfig(**ENCODER), num_classes=3)
  model = drawn(segmenter.Segmenter(config, nnx.Rngs(0)))
  checkpoint = saved(tmp_path, Segmentation(), model, NAMES)
  large = scene(tmp_path / 'large.tif', random((40, 52)))
  np.save(tmp_path / 'tile.npy', random((16, 16)))
  rows = said(checkpoint, [large, tmp_path / 'tile.npy'], tmp_path / 'out')
  assert [row['image'] for row in rows] == [str(large), str(tmp_path / 'tile.npy')]
  assert {rows[0][kind] for kind in ('map', 'scores', 'picture')} == {
    'large_map.tif', 'large_scores.tif', 'large.png'
  }  # fmt: skip
  assert sum(rows[0]['share'].values()) == pytest.approx(1)
  with rasterio.open(tmp_path / 'out' / 'large_map.tif') as file:
    labels = file.read(1)
    assert (file.crs, file.transform) == (PLACE['crs'], PLACE['transform'])
  assert labels.shape == (40, 52)
  assert {*np.unique(labels)} <= {0, 1, 2}
  picture = np.asarray(Picture.open(tmp_path / 'out' / 'large.png'))
  assert min(picture.shape[:2]) >= 200
  assert 'water' in capsys.readouterr().out
  # A tile is the same in a window of its own.
  tile = scene(tmp_path / 'tile.tif', random((16, 16)))
  (row,) = said(checkpoint, [tile], tmp_path / 'again')
  assert row['share'] == pytest.approx(rows[1]['share'])


def test_scenes_of_two_dates_are_compared(tmp_path):
  config = change.ChangeConfig(encoder=ViTConfig(**ENCODER), num_classes=2, detail=2)
  model = drawn(change.Change(config, nnx.Rngs(0)))
  checkpoint = saved(tmp_path, Change(), model, ('same', 'changed'))
  before, after = (scene(tmp_path / f'{n}.tif', random((40, 52), seed=n)) for n in (1, 2))
  (row,) = said(checkpoint, [before, after], tmp_path / 'out')
  assert row['map'] == '1_map.tif'
  with rasterio.open(tmp_path / 'out' / '1_map.tif') as file:
    one = file.read(1)
  # The model is symmetric: swapped dates say the same.
  said(checkpoint, [after, before], tmp_path / 'swapped')
  with rasterio.open(tmp_path / 'swapped' / '2_map.tif') as file:
    np.testing.assert_array_equal(file.read(1), one)
  # Folders of both dates, of tiles of the same names.
  for number, date in enumerate(('before', 'after')):
    (tmp_path / date).mkdir()
    for name in ('a', 'b'):
      np.save(tmp_path / date / f'{name}.npy', random((16, 16), seed=number))
  rows = said(checkpoint, [tmp_path / 'before', tmp_path / 'after'], tmp_path / 'tiles')
  assert [paths.at(row['image']).stem for row in rows] == ['a', 'b']
  assert rows[0]['share'] == rows[1]['share']
  (tmp_path / 'after' / 'b.npy').unlink()
  with pytest.raises(RunError, match=r'of b\.npy there is only one'):
    said(checkpoint, [tmp_path / 'before', tmp_path / 'after'], tmp_path / 'lone')
  with pytest.raises(RunError, match='takes 2 images for each prediction, in the order before, af'):
    said(checkpoint, [before], tmp_path / 'one')


def test_damage_of_a_scene_is_decided_by_its_probabilities(tmp_path):
  names = ('none', 'no damage', 'minor', 'major', 'destroyed')
  config = change.ChangeConfig(encoder=ViTConfig(**ENCODER), num_classes=5, located=True)
  model = drawn(change.Change(config, nnx.Rngs(0)))
  checkpoint = saved(tmp_path, Damage(), model, names)
  files = [scene(tmp_path / f'{n}.tif', random((20, 40), seed=n)) for n in (1, 2)]
  (row,) = said(checkpoint, files, tmp_path / 'out')
  with rasterio.open(tmp_path / 'out' / row['scores']) as file:
    scores = file.read()
    assert file.descriptions == names
  with rasterio.open(tmp_path / 'out' / row['map']) as file:
    labels = file.read(1)
  np.testing.assert_allclose(scores.sum(0), 1, atol=1e-5)
  level = scores[1:].argmax(0) + 1
  np.testing.assert_array_equal(labels, np.where(scores[0] < 0.5, level, 0))
  assert labels.any()


def test_scenes_that_do_not_fit_are_refused(tmp_path):
  config = change.ChangeConfig(encoder=ViTConfig(**ENCODER), num_classes=2)
  model = drawn(change.Change(config, nnx.Rngs(0)))
  checkpoint = saved(tmp_path, Change(), model, ('same', 'changed'))
  good = scene(tmp_path / 'good.tif', random())
  moved = dict(transform=Affine(10, 0, 500_005, 0, -10, 5_200_000))
  others = {
    r'50 x 70 pixels|40 x 70': scene(tmp_path / 'small.tif', random((40, 70))),
    'do not lie at the same place': scene(tmp_path / 'moved.tif', random(), **moved),
    'has 3 bands, and the model takes 4': scene(tmp_path / 'rgb.tif', random(bands=3)),
    'has values of type uint8, not uint16': scene(tmp_path / 'byte.tif', random(dtype='uint8')),
  }
  for message, other in others.items():
    with pytest.raises(RunError, match=message):
      said(checkpoint, [good, other], tmp_path / 'out')
  with pytest.raises(RunError, match='give a folder for it, --out=DIR'):
    predict.main(checkpoint, [str(good)] * 2, 5, 8, None, {})
  with pytest.raises(RunError, match='overlap by a share'):
    said(checkpoint, [good, good], tmp_path / 'out', overlap=1.0)
  (tmp_path / 'cut.tif').write_bytes((tmp_path / 'good.tif').read_bytes()[:600])
  with pytest.raises(RunError, match='cannot read'):
    said(checkpoint, [good, tmp_path / 'cut.tif'], tmp_path / 'out', windows=True)


# --- tiles to train on ---


def land(tmp_path, sizes=((40, 50), (32, 64))):
  """Scenes and their maps, with a border without data in each image and a hole in each map."""
  (tmp_path / 'train' / 'images').mkdir(parents=True)
  (tmp_path / 'train' / 'maps').mkdir()
  found = []
  for number, size in enumerate(sizes):
    pixels, labels = random(size, seed=number), np.random.default_rng(number).integers(0, 3, size)
    pixels[:3] = 0
    labels = labels.astype(np.uint8)[..., None]
    labels[-2:, -2:] = 9
    for kind, array, nodata in (('images', pixels, 0), ('maps', labels, 9)):
      scene(tmp_path / 'train' / kind / f'{number}.tif', array, nodata=nodata, tiled=True,
            blockxsize=16, blockysize=16)  # fmt: skip
    found.append((pixels, labels[..., 0]))
  return found


def test_tiles_cover_the_scenes(tmp_path):
  scenes_ = land(tmp_path)
  source = open_split(Tiles(dir=str(tmp_path), tile=(16, 32), names={'map': 'a,b,c'}), 'train')
  source = pickle.loads(pickle.dumps(source))
  assert len(source) == 3 * 2 + 2 * 2
  image = source.fields['image']
  assert (image.dtype, image.channels) == ('uint16', 4)
  assert 'tiles of 16 x 32 pixels of 2 scenes' in source.summary()[1]
  seen = [np.zeros(labels.shape, int) for _, labels in scenes_]
  for index in range(len(source)):
    example = source[index]
    number = int(index >= 6)
    place = re.search(r'\[(\d+):(\d+), (\d+):(\d+)\]', example['name'])
    top, bottom, left, right = map(int, place.groups())  # type: ignore
    here = slice(top, bottom), slice(left, right)
    pixels, labels = (array[here] for array in scenes_[number])
    np.testing.assert_array_equal(example['image'], pixels)
    missing = (pixels == 0).any(-1) | (labels == 9)
    np.testing.assert_array_equal(example['map'], np.where(missing, VOID, labels.astype(int)))
    seen[number][here] += 1
  assert all(each.min() >= 1 for each in seen)
  row = Columns(View(size=(16, 32)), (Image(4, 'uint16'),), (Map(3, (VOID,)),)).make(
    source[0], np.random.default_rng(0)
  )
  assert (row['map'][:3] == 255).all()


def test_tiles_that_cannot_be_cut_are_refused(tmp_path):
  land(tmp_path)
  names: Any = dict(names={'map': 'a,b,c'})
  with pytest.raises(RunError, match=r'40 x 50 pixels, fewer than a tile: data\.source\.tile'):
    open_split(Tiles(dir=str(tmp_path), tile=(64, 64), **names), 'train')
  with pytest.raises(RunError, match="no split 'test'"):
    open_split(Tiles(dir=str(tmp_path), **names), 'test')
  moved = dict(transform=Affine(10, 0, 500_005, 0, -10, 5_200_000))
  scene(tmp_path / 'train' / 'maps' / '0.tif', random((40, 50), 1, 'uint8'), **moved)
  with pytest.raises(RunError, match='do not lie at the same place'):
    open_split(Tiles(dir=str(tmp_path), tile=(16, 16), **names), 'train')
  scene(tmp_path / 'train' / 'maps' / '0.tif', random((40, 50), 2, 'uint8'))
  with pytest.raises(RunError, match='is no map: wanted is one band'):
    open_split(Tiles(dir=str(tmp_path), tile=(16, 16), **names), 'train')[0]
