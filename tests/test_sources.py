"""Drawn data, mixtures, features of TFDS, values of any type, and what is said of it all."""

import contextlib
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import toys
from vit_jax.config import complete
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data import audit, masks, preprocess
from vit_jax.data.classes import matched
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import Source
from vit_jax.data.fields import (
  VOID,
  Boxes,
  Field,
  Mapped,
  Masks,
  Panoptic,
  named,
  require,
  wanted,
)
from vit_jax.data.generators import Scenes, Shapes, forms, shapes
from vit_jax.data.misfit import MisfitError
from vit_jax.data.order import drawn
from vit_jax.data.rows.columns import Map
from vit_jax.data.sources import SOURCES, Folder, Synthetic, Tfds, open_split
from vit_jax.data.sources.generated import Generated
from vit_jax.data.sources.mixture import Mixed
from vit_jax.data.views import View
from vit_jax.training.loop import train


def source_of(**given):
  """A source by its configuration."""
  return schema.build(DataConfig, {'source': given}).source


# --- fields ---


@pytest.mark.parametrize(
  ('name', 'text', 'kind', 'columns', 'units'),
  [
    ('image', 'picture', 'image', ('picture',), ('',)),
    ('label', ' species ', 'class', ('species',), ('',)),
    ('before', 'image: img_a', 'image', ('img_a',), ('',)),
    ('target', 'age [years], weight[kg]', 'vector', ('age', 'weight'), ('years', 'kg')),
    ('where', 'points: x1, y1, x2, y2', 'points', ('x1', 'y1', 'x2', 'y2'), ('',) * 4),
    ('boxes', 'objects/bbox', 'boxes', ('objects/bbox',), ('',)),
  ],
)
def test_a_field_is_named_by_a_column(name, text, kind, columns, units):
  assert wanted(name, text) == (kind, columns, units)


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('before', 'img_a', r'fields\.before=.*of which kind is it'),
    ('x', 'imge: a', "unknown kind 'imge': did you mean image"),
    ('target', 'vector: a,,b', 'cannot be read'),
    ('image', 'a, b', 'is one column'),
  ],
)
def test_fields_that_cannot_be_read(name, text, message):
  with pytest.raises(RunError, match=message):
    wanted(name, text)


def test_names_of_classes(tmp_path):
  assert named('cat, dog') == ('cat', 'dog')
  assert named('3') == ('0', '1', '2')
  (tmp_path / 'names.txt').write_bytes('\ufeffcat\r\ndog\r\n'.encode())
  assert named(str(tmp_path / 'names.txt')) == ('cat', 'dog')
  for text, message in (('a,b,a', "'a' is there twice"), ('./none.txt', 'there is no file')):
    with pytest.raises(RunError, match=message):
      named(text)
  with pytest.raises(RunError, match=r'names\.lable: there is no such field: did you mean label'):
    Mapped(names={'lable': 'a,b'}).check({'label': Field('class')})


def test_what_a_task_needs_must_be_there():
  fields = {'image': Field('image'), 'label': Field('vector')}
  with pytest.raises(RunError, match=r"x has no field 'map' of the kind map.*fields\.map=COLUMN"):
    require(fields, {'map': 'map'}, 'x')
  with pytest.raises(RunError, match="'label' of x is of the kind vector, and"):
    require(fields, {'label': 'class'}, 'x')
  assert Field.from_dict({'kind': 'class', 'names': ['a', 'b']}) == Field('class', ('a', 'b'))


# --- drawn ---


def test_scenes_agree_with_themselves():
  """Of every object map, mask, box, segment and label say the same; split and seed make others."""
  source = open_split(Generated(Scenes(most=3), examples=40, held_out=20), 'train')
  assert len(source) == 40
  assert len(open_split(Generated(Scenes(), held_out=20), 'test')) == 20
  kinds = {name: field.kind for name, field in source.fields.items()}
  assert kinds['boxes'] == 'boxes'
  found = 0
  for example in source.read(range(40)):
    assert example.keys() == {*source.fields, 'name'}
    ids, boxes = example['panoptic'].ids, example['boxes']
    for number, (label, corners, mask) in enumerate(
      zip(boxes.label, boxes.corners, example['masks'].shapes, strict=True), 1
    ):
      np.testing.assert_array_equal(mask, ids == number)
      assert set(example['map'][mask].tolist()) <= {label + 1}
      y, x = np.nonzero(mask)
      assert corners.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
      assert example['panoptic'].segments[number] == (label + 1, False)
      found += 1
    assert set(example['labels'].tolist()) == set(boxes.label.tolist())
    assert example['map'].max() <= 10
    assert example['text'].count('a ') == len(boxes.label)
    heights = boxes.corners[:, 3] - boxes.corners[:, 1]
    assert example['target'][2] == heights.max()
  assert found > 50
  again = pickle.loads(pickle.dumps(source))
  other = open_split(Generated(Scenes(most=3), seed=1), 'train')
  for one, same in ((again, True), (other, False)):
    assert (one[7]['image'] == source[7]['image']).all() == same
  for bad, message in ((dict(least=4), '0 <= least'), (dict(size=(8, 8)), 'at least 16')):
    with pytest.raises(RunError, match=message):
      Scenes(**bad)
  with pytest.raises(RunError, match='held_out=0 must be at least 1'):
    Generated(Scenes(), held_out=0)


def test_shapes_agree_with_themselves():
  """Every pixel is of one segment, of one class; things hidden by others are not there at all."""
  config = Shapes(size=(48, 56), crowd=0.3, void=0.3, visible=0.5, channels=4)
  source = open_split(Generated(config, examples=60, held_out=20), 'train')
  stuff = set(range(len(shapes.STUFF)))
  seen, crowds, voids = set(), 0, 0
  for example in source.read(range(60)):
    assert example.keys() == {*source.fields, 'name'}
    assert (example['image'].shape, example['image'].dtype) == ((48, 56, 4), np.uint8)
    ids, boxes, segments = example['panoptic'].ids, example['boxes'], example['panoptic'].segments
    assert {*np.unique(ids)} - {0} == {*segments}
    classes = np.array([segments[i][0] if i else 255 for i in ids.flat]).reshape(ids.shape)
    np.testing.assert_array_equal(classes, example['map'])
    things = [number for number, (label, _) in segments.items() if label not in stuff]
    assert len({label for label, _ in segments.values() if label in stuff}) == len(segments) - len(
      things
    )
    assert [segments[n] for n in things] == [
      (label + 3, crowd) for label, crowd in zip(boxes.label, boxes.crowd, strict=True)
    ]
    for number, corners, area, mask in zip(
      things, boxes.corners, boxes.area, example['masks'].shapes, strict=True
    ):
      np.testing.assert_array_equal(mask, ids == number)
      x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
      assert corners.tolist() == [x, y, x + width, y + height]
      assert area == mask.sum() > 0
    assert set(example['labels'].tolist()) == set(boxes.label.tolist())
    assert not example['image'][ids == 0].any()
    seen |= set(boxes.label.tolist())
    crowds, voids = crowds + boxes.crowd.sum(), voids + (ids == 0).any()
  assert seen == set(range(5))
  assert min(crowds, voids) > 5
  assert source.fields['map'].ignore == (255,)
  assert source.fields['panoptic'].stuff == source.fields['panoptic'].names[:3]
  assert Shapes(kinds=2).fields['boxes'].names == ('disc', 'square')
  assert not Shapes().fields['map'].ignore
  again = pickle.loads(pickle.dumps(source))
  assert (again[7]['image'] == source[7]['image']).all()
  for bad, message in (
    (dict(least=7), '0 <= least'), (dict(kinds=6), '1 to 5 kinds'), (dict(void=2.0), 'void=2.0'),
    (dict(radius=(4.0, 30.0)), 'radius <= 24.0'),
  ):  # fmt: skip
    with pytest.raises(RunError, match=message):
      Shapes(**bad)


@pytest.mark.parametrize('angle', [0.0, 0.7])
def test_shapes_have_the_areas_of_geometry(angle):
  """Of a circle around each of radius r: what anybody can look up, times r squared."""
  end = np.sqrt(1 - 0.3**2)  # of an arm of the cross, which is 0.6 wide
  areas = dict(
    disc=np.pi, square=2, triangle=0.75 * np.sqrt(3), ring=np.pi * 0.75,
    cross=8 * end * 0.3 - 4 * 0.3**2,
  )  # fmt: skip
  points = forms.grid((64, 64)) - (31.7, 32.2)
  for kind in shapes.THINGS:
    alpha = forms.covered(kind, points, 24, angle)
    assert alpha.sum() == pytest.approx(areas[kind] * 24**2, rel=0.01), kind
    y, x = np.nonzero(alpha == 1)
    assert np.hypot(x - 31.2, y - 31.7).max() < 24


def test_random_images_have_something_for_every_task():
  source = open_split(Synthetic(5, 3_000_000_000, (8, 12), 2), 'train')
  example = source[2_999_999_999]
  assert example.keys() == {*source.fields, 'name'}
  assert (example['image'].shape, example['map'].shape) == ((8, 12, 2), (8, 12))
  order = drawn(source, 0, 'keyed')
  assert int(order(np.array([10**12]))[0]) < 3_000_000_000


# --- mixtures ---


@pytest.fixture
def two(tmp_path):
  """Folders with classes in common, one of them ten times as large."""
  for name, labels, count in (('a', ('cat', 'dog'), 20), ('b', ('dog', 'emu'), 2)):
    for split in ('train', 'test'):
      for label in labels:
        folder = tmp_path / name / split / label
        folder.mkdir(parents=True)
        for i in range(count):
          (folder / f'{i}.png').write_bytes(toys.encoded(np.full((4, 4), 10 * i, np.uint8), 'PNG'))
  return tmp_path


def mixture(two, **weights):
  folders = {n: {'name': 'folder', 'dir': str(two / n)} for n in 'ab'}
  return source_of(name='mixture', sources=folders, weights=weights)


def test_a_mixture_has_its_shares_and_its_classes_by_name(two):
  source = open_split(mixture(two, a='1', b='3'), 'train')
  assert len(source) == 44
  assert source.class_names == ('cat', 'dog', 'emu')
  assert [source[i]['label'] for i in (0, 20, 40, 42)] == [0, 1, 1, 2]
  assert source.labels == [source[i]['label'] for i in range(44)]
  order = drawn(source, 0, 'keyed')
  found = order(np.arange(8 * 1024))
  assert (found >= 40).reshape(8, 1024).sum(1).tolist() == [768] * 8
  assert set(found.tolist()) == set(range(44))
  text = '\n'.join(source.summary())
  assert '75.0% of what is trained on is b' in text
  held_out = open_split(mixture(two), 'fold 1/2 of train')
  assert len(held_out) == 22
  assert [part.examples for part in held_out.parts] == [20, 2]


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    (dict(c='1'), r'weights\.c: choose from a, b'), (dict(a='x'), "'x' must be a number"),
    (dict(a='0'), 'is 0.00% of the mixture'), (dict(a='1e-4'), 'at least a thousandth'),
  ],
)  # fmt: skip
def test_weights_that_make_no_sense(two, weights, message):
  with pytest.raises(RunError, match=message):
    mixture(two, **weights).open('train')


class Given(Source):
  """Examples that are given."""

  name = 'given'

  def __init__(self, examples, **fields):
    self._examples, self.fields = examples, fields

  def open(self, split):
    return self

  def __len__(self):
    return len(self._examples)

  def __getitem__(self, index):
    return {**self._examples[index], 'name': str(index)}


def test_words_of_a_mixture_are_those_of_all():
  """Unless those of one of them are not known."""
  one, other, free = (Given([{'text': 'b', 'name': 'x'}], text=Field('text', w))
                      for w in (('a', 'b'), ('b', 'c'), ()))  # fmt: skip
  known = lambda *sources: Mixed(  # noqa: E731
    'm', {str(i): each for i, each in enumerate(sources)}, dict.fromkeys('012', 1.0)
  ).fields['text'].names  # fmt: skip
  assert known(one, other) == ('a', 'b', 'c')
  assert known(one, free) == known(free, one) == ()


def test_what_is_of_no_class_in_one_source_is_of_none_in_a_mixture():
  """Whatever number each has for it; classes are matched by name."""
  a = Given([{'map': np.array([[0, 1, 255]])}], map=Field('map', ('ground', 'leaf'), ignore=(255,)))
  b = Given(
    [{'map': np.array([[0, 1, 2]])}], map=Field('map', ('void', 'leaf', 'sky'), ignore=(0,))
  )
  mixed = Mixed('mixed', {'a': a, 'b': b}, {'a': 1.0, 'b': 1.0})
  names = mixed.fields['map'].names
  assert names == ('ground', 'leaf', 'void', 'sky')
  column = Map(4, mixed.fields['map'].ignore)
  shown = [column.whole(mixed[i])[0].tolist() for i in (0, 1)]
  assert shown == [[0, 1, 255], [255, 1, 3]]


def test_maps_of_other_data_are_put_in_the_numbers_of_the_model():
  """What is ignored there becomes no class here; what is damaged is found when it is decoded."""
  source = Given(
    [{'map': np.array([[0, 1, 2, 1]])}, {'map': b'broken'}],
    map=Field('map', ('a', 'b', 'unlabelled'), ignore=(2,)),
  )
  known = Field('map', ('unlabelled', 'a', 'b'))
  found = matched(source, {'map': known}, ['map'])
  column = Map(3, (*known.ignore, VOID))
  assert column.whole(found[0]).tolist() == [[1, 2, 255, 2]]
  broken = found.read([1])[0]
  with pytest.raises(ValueError, match='no image'):
    column.whole(broken)
  assert matched(source, {'map': source.fields['map']}, ['map']) is source
  nameless = {'map': Field('map', ignore=(2,))}
  assert matched(source, nameless, ['map'])[0]['map'].change is not None
  with pytest.raises(RunError, match=r'has the value -1, outside the 3 .*ignore=-1'):
    column.whole({'map': np.array([[-1, 2]]), 'name': 'x'})


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_grey_png_of_few_bits_is_read_as_it_is_written(bits):
  """By the book (RFC 2083): Pillow does not write such files."""
  values = np.arange(8, dtype=np.uint8)[None] % (1 << bits)
  rows = b''.join(b'\0' + np.packbits(
    np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].reshape(-1)
  ).tobytes() for row in values)  # fmt: skip

  def chunk(kind, data):
    check = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + check

  header = struct.pack('>IIBBBBB', 8, 1, bits, 0, 0, 0, 0)
  data = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
  np.testing.assert_array_equal(masks.decode_map(data + chunk(b'IEND', b'')), values)


def test_numbers_are_matched_by_name_and_unit():
  """Another order is put right; another name or unit is refused, in mixtures too."""
  field = Field('vector', ('length', 'mass'), ('mm', 'g'))
  other = Field('vector', ('mass', 'length'), ('g', 'mm'))
  source = Given([{'target': [1.0, 2.0]}], target=other)
  found = matched(source, {'target': field}, ['target'])
  assert found[0]['target'].tolist() == [2.0, 1.0]
  assert found.fields['target'].names == ('length', 'mass')
  assert matched(source, {'target': other}, ['target']) is source
  for wrong in (Field('vector', ('length', 'mass'), ('cm', 'g')), Field('vector', ('length',))):
    with pytest.raises(RunError, match=r'target is .*mass \[g\].*and the model was trained on'):
      matched(source, {'target': wrong}, ['target'])
  one = Given([{'target': [1.0]}], target=Field('vector', ('mass',), ('g',)))
  with pytest.raises(RunError, match='was trained on'):
    Mixed('mixed', {'a': source, 'b': one}, {'a': 1.0, 'b': 1.0})


def test_sources_that_do_not_mix(two):
  """Another type of pixels is refused; what not all have is left out, and that is said."""
  both = source_of(name='mixture', sources={
    'folder': {'name': 'folder', 'dir': str(two / 'a')},
    'random': {'name': 'synthetic', 'num_classes': 2, 'examples': 9},
  })  # fmt: skip
  source = both.open('train')
  assert list(source.fields) == ['image', 'label']
  assert 'not all have' in '\n'.join(source.summary())
  with pytest.raises(RunError, match='a mixture has no sources'):
    source_of(name='mixture').open('train')
  assert 'mixture' in SOURCES


# --- TFDS ---


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
  """Two images with boxes, a mask, texts and numbers, as TFDS stores them."""
  root = tmp_path_factory.mktemp('tfds')
  image = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
  box = tfds.features.BBox(ymin=0.25, xmin=0.5, ymax=0.75, xmax=1.0)

  class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    name = 'scenes'

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        'picture': tfds.features.Image(),
        'mask': tfds.features.Image(shape=(None, None, 1)),
        'tags': tfds.features.Sequence(tfds.features.ClassLabel(names=['red', 'blue'])),
        'image/name': tfds.features.Text(), 'year': np.int64, 'corners': tfds.features.Tensor(
          shape=(2, 2), dtype=np.float32),
        'eyes': {'left_x': np.int64, 'left_y': np.int64, 'right_x': np.int64, 'right_y': np.int64},
        'signs': {'old': np.bool_, 'grey': np.bool_},
        'age': np.float32, 'place': tfds.features.Tensor(shape=(2,), dtype=np.float32),
        'said': tfds.features.Text(),
        'objects': tfds.features.Sequence({
          'bbox': tfds.features.BBoxFeature(), 'is_crowd': np.bool_,
          'label': tfds.features.ClassLabel(names=['cat', 'dog']),
        }),
      }))  # fmt: skip

    def _split_generators(self, dl_manager):
      mask = np.zeros((12, 16), np.uint8)
      mask[:, 8:] = 1
      yield 'train', [
        (i, {
          'picture': cv2.imencode('.png', image)[1].tobytes(), 'age': 3.5 + i, 'place': [i, 2],
          'mask': cv2.imencode('.png', mask)[1].tobytes(), 'tags': ['blue'], 'said': f'text {i}',
          'objects': [{'bbox': box, 'is_crowd': bool(i), 'label': 'dog'}] * i,
          'image/name': f'{i}.jpg', 'year': 2000 + i, 'corners': [[1, 2], [3, 4 + i]],
          'eyes': {'left_x': 4, 'left_y': 5, 'right_x': 9, 'right_y': 5 + i},
          'signs': {'old': i > 0, 'grey': i > 1},
        }) for i in range(3)
      ]  # fmt: skip

    def _generate_examples(self):
      raise NotImplementedError

  Pets._split_generators = lambda self, dl_manager, make=Pets._split_generators: {
    name: iter(examples) for name, examples in make(self, dl_manager)
  }
  with contextlib.redirect_stdout(None):
    Pets(data_dir=str(root), file_format='array_record').download_and_prepare()
  return str(root)


def test_features_of_tfds_are_fields_by_name(scenes):
  """What is not asked for has its own name; nested ones are asked for with a path."""
  plain = Tfds('scenes', dir=scenes).open('train')
  assert plain.summary() == [
    'scenes/train: 3 examples of age (vector, 1 number: age), mask (image), boxes (2 classes: cat, '
    'dog), picture (image), place (vector, 2 numbers: place[0], place[1]), said (text), tags '
    '(classes, 2 classes: red, blue)',
    'scenes/train: features that make no field: corners, eyes/left_x, eyes/left_y, eyes/right_x, '
    'eyes/right_y, image/name, signs/grey, signs/old and 1 more',
  ]
  assert {n: f.kind for n, f in plain.fields.items()} == {
    'picture': 'image', 'mask': 'image', 'tags': 'classes', 'age': 'vector', 'place': 'vector',
    'said': 'text', 'boxes': 'boxes',
  }  # fmt: skip
  asked = dict(image='picture', map='mask', labels='tags', target='place', boxes='objects/bbox')
  names = dict(map='ground,thing')
  source = Tfds('scenes', dir=scenes, fields=asked, names=names, ignore=(7,)).open('train')
  assert source.fields['map'] == Field('map', ('ground', 'thing'), ignore=(7,))
  assert source.fields['boxes'].names == ('cat', 'dog')
  assert source.fields['labels'].names == ('red', 'blue')
  assert source.fields['target'].names == ('place[0]', 'place[1]')
  example = source[2]
  boxes = masks.absolute(example['boxes'], (12, 16))
  assert boxes.corners.tolist() == [[8, 3, 16, 9]] * 2
  assert boxes.label.tolist() == [1, 1]
  assert boxes.crowd.tolist() == [True, True]
  assert boxes.area.tolist() == [48, 48]
  assert masks.decode_map(example['map'])[:, 7:9].tolist() == [[0, 1]] * 12
  assert example['target'].tolist() == [2, 2]
  assert example['labels'].tolist() == [1]
  assert example['said'] == 'text 2'
  assert preprocess.decode(example['image'], 3).shape == (12, 16, 3)


def test_what_features_are_only_if_somebody_says_so(scenes):
  """Of whole numbers, of those in dictionaries, and of names with a slash."""
  asked = dict(
    image='picture', text='image/name', target='year [a], age', points='eyes/left_x, eyes/left_y, '
    'eyes/right_x, eyes/right_y', corners='points: corners', labels='signs/old, signs/grey',
    label='signs/old', decade='class: year', mask='map: mask',
  )  # fmt: skip
  names = dict(decade='2010', mask='2')
  source = Tfds('scenes', dir=scenes, fields=asked, names=names).open('train')
  assert source.fields['target'] == Field('vector', ('year', 'age'), ('a', ''))
  assert source.fields['points'] == Field('points', ('left', 'right'))
  assert source.fields['corners'] == Field('points', ('p0', 'p1'))
  assert source.fields['labels'] == Field('classes', ('old', 'grey'))
  assert source.fields['label'] == Field('class', ('false', 'true'))
  examples = source.read(range(3))
  assert [e['text'] for e in examples] == ['0.jpg', '1.jpg', '2.jpg']
  assert [e['target'].tolist() for e in examples] == [[2000 + i, 3.5 + i] for i in range(3)]
  assert [e['points'].tolist() for e in examples] == [[[4, 5], [9, 5 + i]] for i in range(3)]
  assert [e['corners'].tolist() for e in examples] == [[[1, 2], [3, 4 + i]] for i in range(3)]
  assert [e['labels'].tolist() for e in examples] == [[], [0], [0, 1]]
  assert [e['label'] for e in examples] == [0, 1, 1]
  assert [e['decade'] for e in examples] == [2000, 2001, 2002]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(image='pictur'), "no feature 'pictur' for the field 'image': did you mean picture"),
    (dict(label='age'), "'age' of scenes is .* makes vector or points, not class"),
    (dict(boxes='objects'), 'no feature'),
    (dict(text='said, image/name'), 'of the kind text is one column'),
    (dict(label='year'), "classes of 'year' have numbers and no names: give .*names.label"),
    (dict(labels='signs/old, tags'), 'several features are classes if each says whether'),
    (dict(points='eyes/left_x, eyes/right_y'), 'right_y are x and y of different'),
    (dict(points='year'), 'columns of points are x, y, x, y'),
  ],
)
def test_features_that_are_not_what_is_asked_for(scenes, fields, message):
  with pytest.raises(RunError, match=message):
    Tfds('scenes', dir=scenes, fields=fields).open('train')


# --- values of any type ---


def deep(dtype, channels):
  rng = np.random.default_rng(0)
  values = rng.random((11, 17, channels)) * (65535 if dtype == 'uint16' else 1000)
  return values.astype(dtype)


@pytest.mark.parametrize('dtype', ['uint16', 'float32'])
@pytest.mark.parametrize('channels', [1, 3, 5])
def test_images_of_more_than_8_bits(dtype, channels):
  """Exactly as they were stored, in every format that holds them; and resized in their type."""
  image = deep(dtype, channels)
  files = {'npy': toys.npy(image)}
  if channels in (1, 3):
    plain = image if channels == 1 else np.ascontiguousarray(image[..., ::-1])
    for suffix in ('.tiff', '.png')[: 2 if dtype == 'uint16' else 1]:
      files[suffix] = cv2.imencode(suffix, plain)[1].tobytes()
  for name, data in files.items():
    size, found, kind = preprocess.described(data)
    assert (size, found, kind) == ((11, 17), channels, dtype), name
    np.testing.assert_array_equal(preprocess.decode(data, channels, dtype), image, err_msg=name)
    with pytest.raises(MisfitError, match=f'values of type {dtype}, not uint8'):
      preprocess.decode(data, channels)
    small = preprocess.prepare(data, View(size=(5, 8)), channels, None, dtype)
    assert (small.dtype, small.shape) == (dtype, (5, 8, channels))
    assert abs(small.mean() / image.mean() - 1) < 0.05


@pytest.mark.parametrize('dtype', ['uint16', 'float32'])
@pytest.mark.parametrize('order', ['<', '>'])
def test_tiff_files_of_many_deep_channels(dtype, order):
  """Interleaved and in planes, compressed or not, with and without differences."""
  image = deep(dtype, 5)
  for planar in (False, True):
    for deflate in (False, True):
      for predictor in (1, 2) if dtype == 'uint16' and deflate else (1,):
        data = toys.tiff(image, extra=0, planar=planar, deflate=deflate, order=order,
                         predictor=predictor)  # fmt: skip
        np.testing.assert_array_equal(preprocess.decode(data, 5, dtype), image)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (np.array([[[np.nan]]], np.float32), 'not finite'),
    (np.array([[[2**30 + 1]]], np.int64), 'beyond the precision of float32'),
    (np.array([[['a']]]), 'values of type <U1'),
  ],
)
def test_values_that_are_refused(values, message):
  with pytest.raises(MisfitError, match=message):
    preprocess.decode(values, 1, 'float32')
  whole = np.array([[[-5], [7]]], np.int16)
  np.testing.assert_array_equal(preprocess.decode(whole, 1, 'float32'), whole)


# --- the audit ---


class Counted(Source):
  """Six images, two of them the same, one damaged, with one of each kind of field."""

  name = 'counted'

  def __init__(self, shift=0):
    self.name = f'counted{shift}'
    self.fields = {
      'image': Field('image', dtype='uint8'), 'label': Field('class', ('cat', 'dog')),
      'labels': Field('classes', ('red', 'blue')), 'boxes': Field('boxes', ('cat', 'dog')),
      'target': Field('vector', ('age', 'size'), ('years', '')),
      'map': Field('map', ('a', 'b'), ignore=(255,)),
    }  # fmt: skip
    self._shift = shift

  def __len__(self):
    return 6

  def __getitem__(self, index):
    value = [0, 1, 1, 3, 4, 5][index] + self._shift
    image = np.full((4 + value % 2, 6, 1 + 2 * (index == 3)), value, np.uint8)
    corners = np.tile([[0.0, 0, 2, 2]], (index, 1))
    label = np.zeros(index, np.int64)
    return {
      'image': b'broken' if index == 5 else image, 'label': 0 if index else 5, 'labels': [0] * 2,
      'target': [float(index), np.nan], 'boxes': Boxes(corners, label, label > 0, label + 4.0),
      'map': np.array([[0, 255, 9]]), 'name': str(index),
    }  # fmt: skip


def test_what_is_said_of_data():
  lines = audit.audit({'train': Counted(), 'test': Counted(4)}, 100)
  text = '\n'.join(lines)
  for part in (
    'counted0: image: 4 to 5 pixels high and 6 to 6 wide, mostly 5x6',
    '1 channel of uint8 (4), 3 channels of uint8 (1)', 'image: 1 cannot be decoded',
    'label: 5 to 5 are outside the 2 classes', 'labels: 2.0 classes an image',
    'target: age from 0 to 5 years', 'target: size: none is known',
    'boxes: 2.5 boxes an image, 5 at most', 'map: 1 of 2 classes in 6 maps',
    'the values 9 are no class', 'counted0: 1 image is there more than once',
    'counted4: 2 images are in counted0, too',
  ):  # fmt: skip
    assert part in text, part
  assert audit.audit({'train': Counted()}, 0) == []
  for kind, value, called in (
    ('masks', Masks([None] * 3, np.zeros(3, int), np.zeros(3, bool)), 'masks'),
    ('panoptic', Panoptic(b'', {4: (0, False), 5: (1, False), 9: (1, True)}), 'segments'),
  ):
    field = Field(kind, ('a', 'b'))
    counts = [audit._noted(field, value, 0), 6]
    assert audit._about(field, counts, []) == [f'4.5 {called} an image, 6 at most']
  assert audit.audit({'train': open_split(Synthetic(3, 9), 'train')}, 9) == []
  some = audit.audit({'train': Counted()}, 3)
  assert any('of 3 looked at' in line for line in some)


def test_what_is_said_of_texts():
  texts = [
    'a cat',
    ('a cat', 'a tame cat'),
    '',
    ('a dog', ' '),
    'A cat',
    ('a red dog', 'a red dog'),
  ]
  source = Given([{'text': text} for text in texts], text=Field('text'))
  assert audit.audit({'train': source}, 100) == [
    'given: text: 5 characters in the median, 10 at most',
    'given: text: 3 examples have several texts, 2 at most',
    'given: text: 2 examples have an empty text',
    'given: text: 2 examples have a text that others have, too',
  ]
  lines = audit.audit({'train': Given([{'text': 'ab'}, {'text': 'b'}], text=Field('text'))}, 1)
  assert lines == ['given: text: 2 characters in the median, 2 at most of 1 looked at']


def test_statistics_of_vectors():
  fields = audit.with_statistics(Counted())
  assert fields['target'].center[0] == 2.5
  assert fields['target'].spread[0] == pytest.approx(np.std(np.arange(6)))
  assert (fields['target'].center[1], fields['target'].spread[1]) == (0, 1)  # nothing is known


def test_a_sample_is_of_all_parts_and_always_the_same():
  class Numbers(Counted):
    def __len__(self):
      return 100_000

    def __getitem__(self, index):
      return index

  found = list(audit.sample(Numbers(), 500))
  assert found == list(audit.sample(Numbers(), 500))
  assert list(audit.sample(Counted(), 4)) != []
  assert len(found) == len(set(found)) == 500
  assert found == sorted(found)
  assert np.histogram(found, 8, (0, 100_000))[0].min() > 0


def test_a_run_says_what_its_data_are(two, capsys, digits, tmp_path):
  """Once, at the start; test images that are trained on, too."""
  config = digits().unlock().to_dict()
  config['data']['source'] = {'name': 'folder', 'dir': str(two / 'a')}
  config['model'] |= {'image_size': (4, 4), 'in_channels': 1}
  config |= {'total': '1 step', 'optim': {'lr': 1e-3, 'warmup': '0'}}
  train(complete(config), str(tmp_path / 'run'))
  out = capsys.readouterr().out
  assert f'{two}/a/train: image: all 4x4, 1 channel of uint8' in out
  assert f'{two}/a/test: 40 images are in {two}/a/train, too' in out
  assert f'{two}/a/train: 20 images are there more than once' in out
  assert Folder(str(two / 'a')).open('train').labels == [0] * 20 + [1] * 20
