"""Parquet as the Hugging Face hub lays it out: which files, which columns, which rows."""

import concurrent.futures
import json
import math
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import toys
from vit_jax.core.errors import RunError
from vit_jax.data import fields
from vit_jax.data.examples import NoDataError, NoSplitError
from vit_jax.data.sources import open_split, parquet
from vit_jax.data.sources.parquet import Parquet

IMAGE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
HUB_IMAGE, TEXT = {'_type': 'Image'}, {'_type': 'Value', 'dtype': 'string'}


def hub_class(*names):
  return {'_type': 'ClassLabel', 'names': list(names)}


def many(feature, kind='List'):
  return {'_type': kind, 'feature': feature}


PETS = {'image': HUB_IMAGE, 'label': hub_class('cat', 'dog', 'fox')}


def write(path, columns, features=None, *, types=None, **options):
  """A file; columns of images are given as bytes, and become structs."""
  path.parent.mkdir(parents=True, exist_ok=True)
  types = {'image': IMAGE, **(types or {})}
  arrays = {
    name: pa.array(
      [{'bytes': v} if isinstance(v, bytes) and types.get(name) == IMAGE else v for v in values],
      types.get(name),
    )
    for name, values in columns.items()
  }
  notes = {'huggingface': json.dumps({'info': {'features': features}})} if features else None
  pq.write_table(pa.table(arrays).replace_schema_metadata(notes), path, **options)


def pets(path, first=0, count=6, features=PETS, **options):
  """Rows whose images are their numbers."""
  numbers = range(first, first + count)
  columns = {'image': [b'%d' % i for i in numbers], 'label': [i % 3 for i in numbers]}
  write(path, columns, features, types={'label': pa.int64()}, **options)


def refused(folder, *parts, split='train', error=RunError, read=None, **options):
  """It is refused, when opened or when an example is read, with one line that names these."""
  with pytest.raises(error) as found:
    Parquet(dir=str(folder), **options).open(split).read([] if read is None else [read])
  line = str(found.value)
  assert '\n' not in line
  for part in parts:
    assert str(part) in line


def said(source):
  """What is said behind the name of the source."""
  return [line.removeprefix(f'{source.name}: ') for line in source.summary()]


SERIES = [f'train-{i:05d}-of-00011.parquet' for i in range(11)]


@pytest.mark.parametrize(
  ('names', 'passed'),
  [
    ([f'data/{name}' for name in SERIES], ''),
    (SERIES, 'README.md'),
    ([name.replace('.p', '-0123456789abcdef.p') for name in SERIES], 'README.md'),
    ([f'train-{i:05d}-of-00003.parquet' for i in (1, 2, 3)], 'README.md'),
    ([f'default/train/{i:04d}.parquet' for i in range(3)], ''),
    (['plain_text/train.parquet'], ''),
    (['train.parquet'], 'README.md'),
    ([f'train_{i}.parquet' for i in (8, 9, 10)], 'README.md'),
    ([f'train/part-{i}-c000.snappy.parquet' for i in (8, 9, 10)], 'README.md'),
    (['train/b-0-of-1.parquet', 'train/c-0-of-1.parquet'], 'README.md'),
  ],
)
def test_layouts(tmp_path, names, passed):
  for i, name in enumerate(names):
    pets(tmp_path / name, i * 2, 2)
    pets(tmp_path / name.replace('train', 'test'), 7, 1)
    pets(tmp_path / name.replace('train', 'train_more'), 7, 1)
  for name in ('README.md', '.gitattributes', '.cache/x-0.parquet'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  source = Parquet(dir=str(tmp_path)).open('train')
  assert [int(e['image']) for e in source.read(range(len(source)))] == [*range(2 * len(names))]
  assert said(source)[0] == f'{2 * len(names)} images of 3 classes: cat, dog, fox'
  assert said(source)[1:] == [f'passed over: {passed}'] * bool(passed)
  assert source[1]['name'] == f'{tmp_path / names[0]}[1]'
  refused(tmp_path, "no split 'valid'", 'has test, train, train_more', split='valid',
          error=NoSplitError)  # fmt: skip


@pytest.mark.parametrize(
  ('names', 'error', 'parts'),
  [
    ([], NoDataError, ['no Parquet files in', 'SPLIT-00000-of-00003.parquet']),
    (SERIES[:4] + SERIES[5:10], RunError,
     ['lacks train-00004-of-00011.parquet, train-00010-of-00011.parquet: download']),
    ([*SERIES, 'train-00000-of-00012.parquet'], RunError, ['several series train-*-of-*']),
    ([*SERIES, SERIES[0].replace('.p', '-0123456789abcdef.p')], RunError, ['several series']),
    ([*SERIES, 'train-00011-of-00011.parquet'], RunError, ['several series']),
    (['en/train.parquet', 'de/train.parquet'], NoDataError,
     ['several data sets, de, en: set data.source.dir']),
    (['train.parquet', 'train/0.parquet'], RunError, ['as a directory and as files: keep one']),
    (['0000.parquet'], NoSplitError, ['it has files that name no split (0000.parquet)']),
  ],
)  # fmt: skip
def test_layouts_that_are_refused(tmp_path, names, error, parts):
  for name in names:
    pets(tmp_path / name, 0, 1)
  refused(tmp_path, *parts, error=error)
  refused(tmp_path / 'nowhere', 'no directory', 'set data.source.dir', error=NoDataError)


def test_data_is_no_split(tmp_path):
  pets(tmp_path / 'data' / 'birds-0-of-1.parquet')
  assert len(Parquet(dir=str(tmp_path)).open('birds')) == 6


def test_another_data_set_beside_is_passed_over(tmp_path):
  pets(tmp_path / 'train.parquet')
  pets(tmp_path / 'other' / 'train.parquet')
  assert 'passed over: other' in said(Parquet(dir=str(tmp_path)).open('train'))


BOXES = [[1, 2, 3, 4], [5, 5, 1, 2]]


def everything(folder, count=3, **changed):
  """A column of each kind, as `datasets` writes them."""
  bbox = pa.list_(pa.list_(pa.float32(), 4))
  data = {
    'img': [b'%d' % i for i in range(count)],
    'mask': [b'm%d' % i for i in range(count)],
    'fine': [i % 3 for i in range(count)],
    'coarse': [i % 2 for i in range(count)],
    'tags': [[0, 2], [], [1]],
    'objects': [
      {'bbox': BOXES, 'category': [1, 0], 'area': [7, None], 'iscrowd': [True, False]},
      *[{'bbox': [], 'category': [], 'area': [], 'iscrowd': []}] * (count - 1),
    ],
    'listed': [[{'bbox': BOXES[1], 'label': 1}], *[[]] * (count - 1)],
    'bare': [{'bbox': BOXES}] * count,
    'captions': [['a', 'b']] * count,
    'age': [1.5, None, 3.0],
    'pose': [[1.0, 2.0], [3.0, None], [5.0, 6.0]],
    'when': [10, 11, 12],
  }
  types = {
    'img': IMAGE, 'mask': IMAGE,
    'objects': pa.struct([('bbox', bbox), ('category', pa.list_(pa.int64())),
                          ('area', pa.list_(pa.int64())), ('iscrowd', pa.list_(pa.bool_()))]),
    'listed': pa.list_(pa.struct([('bbox', pa.list_(pa.float32(), 4)), ('label', pa.int64())])),
    'bare': pa.struct([('bbox', bbox)]), 'pose': pa.list_(pa.float32()),
  }  # fmt: skip
  features = {
    'img': HUB_IMAGE, 'mask': HUB_IMAGE, 'fine': hub_class('a', 'b', 'c'),
    'coarse': hub_class('x', 'y'), 'tags': many(hub_class('p', 'q', 'r'), 'Sequence'),
    # The two ways in which `datasets` has written a list of dictionaries.
    'objects': many({'bbox': many(TEXT), 'category': hub_class('cup', 'hat')}, 'Sequence'),
    'listed': [{'bbox': many(TEXT), 'label': hub_class('cup', 'hat')}],
    'bare': {'bbox': many(TEXT)}, 'captions': many(TEXT, 'LargeList'),
  }  # fmt: skip
  write(folder / 'train.parquet', data | changed, features, types=types)


def equal(one, other):
  """Whether values of fields are the same, those of type and shape, too."""
  if isinstance(one, tuple):
    return len(one) == len(other) and all(map(equal, one, other))
  if isinstance(one, np.ndarray):
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == 'f')
  return type(one) is type(other) and one == other


def boxes(corners, label, crowd=None, area=None):
  corners = np.array(corners, float).reshape(-1, 4)
  crowd = [False] * len(corners) if crowd is None else crowd
  area = np.prod(corners[:, 2:] - corners[:, :2], axis=1) if area is None else area
  return fields.Boxes(corners, np.array(label, int), np.array(crowd, bool), np.array(area, float))


def test_columns_that_the_hub_describes(tmp_path):
  everything(tmp_path)
  source = Parquet(dir=str(tmp_path)).open('train')
  assert {name: (field.kind, field.names) for name, field in source.fields.items()} == {
    'img': ('image', ()), 'mask': ('image', ()), 'fine': ('class', ('a', 'b', 'c')),
    'coarse': ('class', ('x', 'y')), 'labels': ('classes', ('p', 'q', 'r')),
    'objects': ('boxes', ('cup', 'hat')), 'listed': ('boxes', ('cup', 'hat')),
    'bare': ('boxes', ('object',)), 'text': ('text', ()),
  }  # fmt: skip
  assert said(source)[1:] == [
    'the column tags is the field labels', 'the column captions is the field text',
    'columns that make no field: age, pose, when',
  ]  # fmt: skip
  assert source.labels is None
  wanted = {
    'img': b'0', 'mask': b'm0', 'fine': 0, 'coarse': 0, 'labels': np.array([0, 2]),
    'objects': boxes([[1, 2, 4, 6], [5, 5, 6, 7]], [1, 0], [True, False], [7, 2]),
    'listed': boxes([[5, 5, 6, 7]], [1]), 'bare': boxes([[1, 2, 4, 6], [5, 5, 6, 7]], [0, 0]),
    'text': ('a', 'b'), 'name': f'{tmp_path}/train.parquet[0]',
  }  # fmt: skip
  first, second = source.read([0, 1])
  assert first.keys() == wanted.keys()
  for name, value in wanted.items():
    assert equal(first[name], value), name
  assert equal(second['labels'], np.zeros(0, int))
  assert equal(second['objects'], boxes([], []))
  with pytest.raises(RunError, match=r"no field 'label'.*fine \(class\).*fields\.label=COLUMN"):
    fields.require(source.fields, {'label': 'class'}, source.name)


def test_columns_that_are_asked_for(tmp_path):
  everything(tmp_path)
  asked = {
    'label': 'coarse', 'map': 'mask', 'boxes': 'listed', 'target': 'age [years], pose [cm]',
    'day': 'class: when', 'words': 'text: captions',
  }  # fmt: skip
  names = {'map': 'sky,sea', 'boxes': 'mug,cap'}
  source = Parquet(dir=str(tmp_path), fields=asked, names=names, ignore=(255,)).open('train')
  found = source.fields
  assert found['label'] == fields.Field('class', ('x', 'y'))
  assert found['map'] == fields.Field('map', ('sky', 'sea'), ignore=(255,))
  assert found['target'] == fields.Field(
    'vector', ('age', 'pose[0]', 'pose[1]'), ('years', 'cm', 'cm')
  )
  assert found['day'].names == ('10', '11', '12')
  assert found['boxes'].names == ('mug', 'cap')
  assert found.keys() == asked.keys() | {'image', 'fine', 'labels', 'objects', 'bare'}
  assert 'the column img is the field image' in said(source)
  assert source.labels == [0, 1, 0]
  example = source[1]
  assert (example['label'], example['map'], example['image']) == (1, b'm1', b'1')
  assert (example['day'], example['words']) == (1, ('a', 'b'))
  assert equal(example['target'], np.array([math.nan, 3, math.nan]))


@pytest.mark.parametrize(
  ('asked', 'kinds', 'unused'),
  [
    ({}, {'image': 'image', 'label': 'class', 'text': 'text'}, []),
    # The only ones but for those that are asked for by another name.
    ({'one': 'image: photo'}, {'one': 'image', 'label': 'class', 'text': 'text'}, []),
    ({'one': 'class: label', 'two': 'class: label'},
     {'one': 'class', 'two': 'class', 'image': 'image', 'text': 'text'}, []),
    ({'image': 'text: caption'}, {'image': 'text', 'photo': 'image', 'label': 'class'}, []),
    ({'label': 'text: caption'}, {'label': 'text', 'image': 'image'}, ['label']),
  ],
)  # fmt: skip
def test_names_of_columns(tmp_path, asked, kinds, unused):
  data = {'photo': [b'x'], 'label': [0], 'caption': ['a']}
  write(tmp_path / 'train.parquet', data, types={'photo': IMAGE})
  source = Parquet(dir=str(tmp_path), fields=asked).open('train')
  assert {name: field.kind for name, field in source.fields.items()} == kinds
  lines = [line for line in said(source) if line.startswith('columns')]
  assert lines == [f'columns that make no field: {name}' for name in unused]


def test_one_that_is_asked_for_is_not_the_only_one(tmp_path):
  everything(tmp_path)
  source = Parquet(dir=str(tmp_path), fields={'other': 'image: mask'}).open('train')
  assert {'other', 'img'} <= source.fields.keys()
  assert 'image' not in source.fields


def test_no_field_is_called_name(tmp_path):
  data = {'name': [0], 'label': [0], 'image': [b'x']}
  write(tmp_path / 'train.parquet', data, {'name': hub_class('a'), 'label': hub_class('b')})
  source = Parquet(dir=str(tmp_path)).open('train')
  assert source.fields.keys() == {'label', 'image'}
  assert 'columns that make no field: name' in said(source)


def test_points(tmp_path):
  """Of columns of x and y, and of lists of both; null where a point is not known."""
  data = {
    'img': [b'0', b'1'], 'eye_x': [1.5, None], 'eye_y': [2, None], 'nose_x': [3.0, 5.0],
    'nose_y': [4, 6], 'points': [[[1, 2], [3, 4]], [None, [5, 6]]],
    'odd': [[[1, 2]], [[1, 2], [3, 4]]], 'half': [[[1, 2]], [[None, 3]]],
  }  # fmt: skip
  pq.write_table(pa.table(data), tmp_path / 'train.parquet')
  asked = {'places': 'points: eye_x, eye_y, nose_x, nose_y'}
  source = Parquet(dir=str(tmp_path), fields=asked).open('train')
  assert source.fields['places'] == fields.Field('points', ('eye', 'nose'))
  assert source.fields['points'] == fields.Field('points', ('p0', 'p1'))
  nan = math.nan
  for example, eye, nose in zip(source, ([1.5, 2], [nan] * 2), ([3, 4], [5, 6]), strict=True):
    assert equal(example['places'], np.array([eye, nose], np.float64))
  assert equal(source[1]['points'], np.array([[nan, nan], [5, 6]]))
  for column, message in (
    ('odd', 'has no 1 pairs of x and y'),
    ('half', 'x is known and y is not'),
  ):
    broken = Parquet(dir=str(tmp_path), fields={'points': column}).open('train')
    with pytest.raises(RunError, match=message):
      broken[1]
  refused(tmp_path, 'columns of points are x, y', fields={'points': 'eye_x, eye_y, nose_x'})
  refused(tmp_path, 'eye_x and nose_y are x and y of different', fields={'points': 'eye_x, nose_y'})


@pytest.mark.parametrize(
  ('asked', 'names', 'parts'),
  [
    ({'label': 'fin'}, {}, ["no column 'fin' for the field 'label'", 'did you mean fine?']),
    ({'label': 'img'}, {}, ["'img'", 'is struct<bytes', 'which makes image or map, not class']),
    ({'a': 'masks: mask'}, {}, ['image or map, not masks']),
    ({'a': 'vector: bare'}, {}, ['boxes, not vector']),
    ({'a': 'boxes: objects, listed'}, {}, ['fields.a', 'a field of the kind boxes is one column']),
    ({}, {'x': '2'}, ['data.source.names.x', 'no such field']),
  ],
)
def test_columns_that_are_not_so(tmp_path, asked, names, parts):
  everything(tmp_path)
  refused(tmp_path, *parts, fields=asked, names=names)


@pytest.mark.parametrize(
  ('labels', 'names', 'classes', 'places'),
  [
    ([3, 1, 3], '', ('1', '3', '7'), [1, 0, 1]),
    ([-1, 1, 1], '', ('-1', '1', '7'), [0, 1, 1]),
    ([1, 0, 1], 'no,yes', ('no', 'yes'), [1, 0, 1]),
    (['b', 'a', 'b'], '', ('a', 'b', 'z'), [1, 0, 1]),
    (['b', 'a', 'b'], 'z,b,a', ('z', 'b', 'a'), [1, 2, 1]),
    ([True, False, True], '', ('False', 'True'), [1, 0, 1]),
  ],
)
def test_classes_that_nobody_describes(tmp_path, labels, names, classes, places):
  """They are the values in all splits."""
  write(tmp_path / 'train.parquet', {'image': [b'x'] * 3, 'label': labels})
  other = {str: 'z', bool: False, int: 7}[type(labels[0])]
  write(tmp_path / 'test-0.parquet', {'image': [b'x'], 'label': [other]})
  write(tmp_path / 'valid.parquet', {'image': [b'x']})
  named = {'label': names} if names else {}
  source = Parquet(dir=str(tmp_path), names=named).open('train')
  assert source.class_names == classes
  assert source.labels == [e['label'] for e in source.read(range(3))] == places


def test_values_in_lists_that_nobody_describes(tmp_path):
  data = {
    'photo': [b'x'] * 2, 'labels': [['b', 'a'], ['c']], 'target': [1.0, 2.0],
    'objects': [{'bbox': BOXES, 'label': ['u', 'v']}, {'bbox': BOXES[:1], 'label': ['t']}],
    'dictionary': ['m', 'n'],
  }  # fmt: skip
  types = {
    'photo': pa.large_binary(), 'dictionary': pa.dictionary(pa.int32(), pa.string()),
    'labels': pa.large_list(pa.large_string()),
  }  # fmt: skip
  write(tmp_path / 'train.parquet', data, types=types)
  source = Parquet(dir=str(tmp_path), fields={'label': 'dictionary'}).open('train')
  names = {name: field.names for name, field in source.fields.items()}
  assert names == {
    'label': ('m', 'n'), 'image': (), 'labels': ('a', 'b', 'c'), 'target': ('target',),
    'boxes': ('t', 'u', 'v'),
  }  # fmt: skip
  assert source.labels == [0, 1]
  assert equal(source[0]['labels'], np.array([1, 0]))
  assert equal(source[0]['boxes'].label, np.array([1, 2]))
  assert equal(source[1]['target'], np.array([2.0]))


@pytest.mark.parametrize(
  ('changed', 'parts'),
  [
    ({'img': [b'0', None, b'2']}, ['the column img has no image']),
    ({'img': [b'0', {'path': ''}, b'2']}, ['neither the bytes of an image nor a path']),
    ({'img': [b'0', {'path': 'no.png'}, b'2']}, ['names no.png, which cannot be read: No such']),
    ({'img': [b'0', {'path': 'gsx://a/b'}, b'2']}, ['column img gsx:// is no store']),
    ({'fine': [0, None, 0]}, ['the column fine has no class']),
    ({'fine': [0, -1, 0]}, ['the column fine has no class (-1)']),
    ({'fine': [0, 3, 0]}, ['has the class 3, which is none of the 3 known']),
    ({'tags': [[], [0, None], []]}, ['the column tags has no class']),
    ({'captions': [['a'], [], ['b']]}, ['the column captions has no text']),
    ({'pose': [[1.0, 2.0], [1.0], [1.0, 2.0]]}, ['has 1 numbers, and that of the first example 2']),
    ({'bare': [{'bbox': BOXES}, {'bbox': [[0, 0, -1, 1]]}, None]}, ['less than none']),
    ({'bare': [{'bbox': BOXES}, {'bbox': None}, None]}, ['a box that is not four numbers']),
    ({'objects': [None, {'bbox': BOXES, 'category': [1], 'area': [1], 'iscrowd': [False]}, None]},
     ['has 2 boxes, and not as many values beside them']),
    ({'objects': [None, {'bbox': BOXES, 'category': None}, None]}, ['or nothing beside it']),
  ],
)  # fmt: skip
def test_rows_that_cannot_be_used(tmp_path, changed, parts):
  everything(tmp_path, **changed)
  asked = {'label': 'fine', 'target': 'pose'}
  refused(tmp_path, f'{tmp_path}/train.parquet[1]: ', *parts, read=1, fields=asked)
  source = Parquet(dir=str(tmp_path), fields=asked).open('train')
  lacking = 'fine' in changed
  assert (source.labels is None) == lacking
  assert ('1 examples have no class that is known, and cannot be read' in said(source)) == lacking


def test_images_beside_the_file(tmp_path):
  write(tmp_path / 'data' / 'train.parquet', {'image': [{'path': 'a/0.png'}]}, {'image': HUB_IMAGE})
  (tmp_path / 'data' / 'a').mkdir()
  (tmp_path / 'data' / 'a' / '0.png').write_bytes(b'image')
  assert Parquet(dir=str(tmp_path)).open('train')[0]['image'] == b'image'


def test_damage(tmp_path, monkeypatch):
  file = tmp_path / 'train-00001-of-00002.parquet'
  pets(tmp_path / 'train-00000-of-00002.parquet')
  pets(file, 6, write_page_checksum=True, compression='none')
  sound = file.read_bytes()
  for data in (b'', b'PAR1', sound[:-30], sound[: len(sound) // 2], b'not at all' * 9):
    file.write_bytes(data)
    refused(tmp_path, file, 'is damaged, or no Parquet file', 'Copy it again')
  file.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n')
  refused(tmp_path, file, 'run git lfs pull')
  at = sound.index(b'10')  # an image
  file.write_bytes(sound[:at] + b'99' + sound[at + 2 :])
  refused(tmp_path, file, 'is damaged', read=10)
  file.write_bytes(sound)
  source = Parquet(dir=str(tmp_path)).open('train')
  assert source[10]['image'] == b'10'
  file.unlink()
  with pytest.raises(RunError, match=r'cannot read .*00001-of-00002\.parquet: No such file'):
    pickle.loads(pickle.dumps(source)).read([10])


@pytest.mark.parametrize(
  ('columns', 'features', 'parts'),
  [
    ({'image': [b'x']}, PETS, ['do not both have the columns label']),
    ({'image': [b'x'], 'label': ['a']}, PETS, ['the column label is int64 in', 'and string in']),
    ({'image': [b'x'], 'label': [0]}, {**PETS, 'label': hub_class('cat', 'hen')},
     ['classes of the column label are cat, dog, fox in', 'and cat, hen in']),
    ({'image': [b'x'], 'label': [0]}, None, ['and unknown in']),
    ({'image': [b'x'], 'label': [0]}, 7, ['what is noted for the hub cannot be read']),
  ],
)  # fmt: skip
def test_files_that_differ(tmp_path, columns, features, parts):
  pets(tmp_path / 'train-0.parquet')
  write(tmp_path / 'train-1.parquet', columns, features)
  refused(tmp_path, *parts, tmp_path / 'train-1.parquet')


def test_no_examples_and_no_values(tmp_path):
  pets(tmp_path / 'train.parquet', count=0)
  refused(tmp_path, 'has no examples')
  write(tmp_path / 'train.parquet', {'image': [b'x'], 'label': [None]}, types={'label': pa.int8()})
  refused(tmp_path, 'no values in label: set names.label')


@pytest.fixture
def grouped(tmp_path):
  """30 examples in three files, of groups of 3, 4 and 5 rows, and an empty one between them."""
  for i in range(3):
    file = tmp_path / 'data' / f'train-{i:05d}-of-00004.parquet'
    pets(file, 10 * i, 10, row_group_size=3 + i)
  pets(tmp_path / 'data' / 'train-00003-of-00004.parquet', count=0)
  return tmp_path


@pytest.fixture
def decoded(monkeypatch):
  """Which groups have been decoded."""
  found, real = [], pq.ParquetFile.read_row_group
  monkeypatch.setattr(
    pq.ParquetFile, 'read_row_group',
    lambda self, number, *args, **options: found.append(number)
    or real(self, number, *args, **options),
  )  # fmt: skip
  return found


def test_groups_are_decoded_once(grouped, decoded):
  source = Parquet(dir=str(grouped)).open('train')
  assert source.labels == [i % 3 for i in range(30)]
  assert len(said(source)) == 1
  order = [29, 0, 11, 1, 29, 2, 12]
  found = source.read(order)
  assert [int(e['image']) for e in found] == order
  assert found[0]['name'] == f'{grouped}/data/train-00002-of-00004.parquet[9]'
  assert decoded == [0, 0, 1]
  source.read(order)
  assert len(decoded) == 3
  assert source.read([]) == []
  assert len(list(source)) == 30
  for index in (30, -1):
    with pytest.raises(IndexError):
      source[index]


def test_what_is_kept_is_bounded(grouped, decoded, monkeypatch):
  monkeypatch.setattr(parquet, 'HELD', 60)
  source = Parquet(dir=str(grouped)).open('train')
  line = said(source)[-1]
  assert 'MB in 10 row groups' in line
  assert 'in random order an example costs a group, 3 examples' in line
  for index, count in ((0, 1), (1, 1), (29, 2), (29, 2), (2, 3)):
    assert int(source[index]['image']) == index
    assert len(decoded) == count


def test_what_was_used_last_is_kept(grouped, decoded, monkeypatch):
  file = pq.ParquetFile(grouped / 'data' / 'train-00000-of-00004.parquet')
  monkeypatch.setattr(parquet, 'HELD', 2 * file.read_row_group(0).nbytes + 9)
  source = Parquet(dir=str(grouped)).open('train')
  decoded.clear()
  for index in (0, 3, 0, 6, 0, 3):
    source.read([index])
  assert decoded == [0, 1, 2, 1]


@pytest.mark.parametrize('kept', [0, 400, 2**20])
def test_copies_and_threads_read_the_same(grouped, decoded, monkeypatch, kept):
  monkeypatch.setattr(parquet, 'HELD', kept)
  source = Parquet(dir=str(grouped)).open('train')
  assert source[3]['label'] == 0  # something is kept before it is copied
  copy = pickle.loads(pickle.dumps(source))
  want = source.read(range(30))
  rng = np.random.default_rng(0)
  orders = [rng.integers(0, 30, 20).tolist() for _ in range(64)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for each in (source, copy):
      for order, found in zip(orders, pool.map(each.read, orders), strict=True):
        assert found == [want[i] for i in order]
  assert (len(decoded) == 2 * 9) == (kept == 2**20)


def test_failures_are_forgotten(grouped, monkeypatch):
  source, real = Parquet(dir=str(grouped)).open('train'), pq.ParquetFile.read_row_group
  monkeypatch.setattr(pq.ParquetFile, 'read_row_group', lambda *_, **__: 1 / 0)
  with pytest.raises(RunError, match=r'is damaged, or no Parquet file: division by zero'):
    source.read([0])
  monkeypatch.setattr(pq.ParquetFile, 'read_row_group', real)
  assert source[0]['image'] == b'0'


def test_as_a_source_of_a_run(tmp_path):
  """Its images are described, its folds are by class, and it can be kept."""
  pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
  data = {'img': [toys.encoded(pixels, 'PNG')] * 20, 'label': [i % 2 for i in range(20)]}
  write(tmp_path / 'train.parquet', data, {'img': HUB_IMAGE, 'label': hub_class('a', 'b')},
        types={'img': IMAGE})  # fmt: skip
  config = Parquet(dir=str(tmp_path))
  for cache in (False, True):
    source = open_split(config, 'fold 1/10 of train', cache=cache)
    assert sorted(source.labels) == [0, 1]
    assert source.fields['image'] == fields.Field('image', dtype='uint8', channels=3)
    assert len(open_split(config, 'train without fold 1/10', cache=cache)) == 18
    assert source[0]['image'] == data['img'][0]


def test_labels_of_very_many_are_not_read(grouped, monkeypatch):
  monkeypatch.setattr(parquet, 'MOST', 29)
  source = Parquet(dir=str(grouped)).open('train')
  assert source.labels is None
  assert 'the labels of more than 29 examples are not counted' in said(source)
