"""Files that list examples, and directories side by side."""

import json
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data.examples import NoDataError, NoSplitError
from vit_jax.data.fields import Boxes, Field
from vit_jax.data.sources import SOURCES, found, manifest, open_split
from vit_jax.data.sources.manifest import Manifest
from vit_jax.data.sources.paired import Paired, captioned

NAMES = ('a', 'b', 'c', 'd')


@pytest.fixture
def folder(tmp_path):
  """Images i/a.png to i/d.png, all different."""
  (tmp_path / 'i').mkdir()
  for value, name in enumerate(NAMES):
    cv2.imwrite(str(tmp_path / 'i' / f'{name}.png'), np.full((4, 6, 3), value, np.uint8))
  return tmp_path


def image(folder, name):
  return (folder / 'i' / f'{name}.png').read_bytes()


def opened(folder, text, split='train', name='t.csv', **config):
  (folder / name).parent.mkdir(exist_ok=True)
  (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return open_split(Manifest(str(folder / name), **config), split)


def table(column, *values, image='image', **other):
  """A CSV file of some columns, the first images."""
  images = (f'i/{name}.png' for name in NAMES)
  rows = [[image, column, *other], *zip(images, values, *other.values(), strict=False)]
  return '\n'.join(','.join(map(str, row)) for row in rows)


def lines(*objects):
  return '\n'.join(
    json.dumps({'image': f'i/{name}.png', **each})
    for name, each in zip(NAMES, objects, strict=False)
  )


def values(source, name):
  return [np.asarray(example[name]).tolist() for example in source]


def test_a_table_of_images_and_classes(folder):
  text = '\ufeffPath, split ,LABEL,,note\r\n"i/a.png",train,dog,0,"x,\r\ny"\r\n\r\n'
  text += '  \r\ni/b.png,test,bee,1,""\r\ni/c.png, train,cat,2,z\r\ni/d.png,,,,\r\n'
  source = opened(folder, text)
  assert [e['image'] for e in source] == [image(folder, 'a'), image(folder, 'c')]
  assert [e['name'] for e in source] == [f'{folder}/i/a.png', f'{folder}/i/c.png']
  assert source.fields == {
    'image': Field('image', dtype='uint8', channels=3),
    'label': Field('class', ('bee', 'cat', 'dog')),
  }
  assert source.labels == values(source, 'label') == [2, 1]
  name = f'{folder}/t.csv/train'
  assert source.summary() == [
    f'{name}: 2 images of 3 classes: bee, cat, dog',
    f'{name}: 1 of 4 lines are of no split',
    f'{name}: columns not used: one without a name, note',
    f'{name}: no images of bee',
  ]
  assert values(opened(folder, text, 'test'), 'label') == [0]
  assert opened(folder, text, 'bee', split_column='LABEL').summary()[0].endswith('of image')


def test_all_is_train_where_nothing_says_otherwise(folder):
  text = table('label', 'x', 'y', 'x', 'y')
  source = opened(folder, text)
  assert len(source) == 4
  assert "there is no column 'split', so all is train" in source.summary()[1]
  assert len(opened(folder, text, 'train without fold 1/2')) == 2
  with pytest.raises(NoSplitError, match=r"no split 'test': without a column 'split' all is train"):
    opened(folder, text, 'test')


def test_the_case_of_the_column_of_splits_does_not_matter(folder):
  text = table('label', 'x', 'y', 'x', 'y', Split=['train', 'test', 'train', 'test'])
  for split, label in (('train', 0), ('test', 1)):
    source = opened(folder, text, split)
    assert (source.labels, len(source.summary())) == ([label] * 2, 2)
  text = table('label', 'x', 'y', 'x', 'y', Split=['a'] * 4, split=['train'] * 3 + ['test'])
  assert len(opened(folder, text)) == 3  # the column that is called exactly so comes first


def test_a_file_for_each_split(folder):
  config = dict(name='lists/test.tsv', root=str(folder))
  test = 'file\tclass\ni/a.png\tcat\n'
  assert opened(folder, test, **config).class_names == ('cat',)
  config['name'] = 'lists/train.tsv'
  opened(folder, 'file\tclass\ni/b.png\tant\ni/c.png\tcat\n', **config)
  both = Manifest(f'{folder}/lists/{{split}}.tsv', root=str(folder))
  source = open_split(both, 'test')
  assert (source.labels, source.class_names) == ([1], ('ant', 'cat'))
  assert source.summary() == [
    f'{folder}/lists/test.tsv: 1 images of 2 classes: ant, cat',
    f'{folder}/lists/test.tsv: no images of ant',
  ]
  (folder / 'lists' / 'test.tsv').write_text(test.replace('cat', 'cow'))
  with pytest.raises(RunError, match=r"line 2: class='cow' is no class of .*train\.tsv, which has"):
    open_split(both, 'test')
  with pytest.raises(NoSplitError, match=r'no file .*val\.tsv: of .*split}\.tsv there is test, tr'):
    open_split(both, 'val')
  deep = Manifest(f'{folder}/{{split}}/list.csv')
  for split in ('one', 'two'):
    opened(folder, table('label', 1), name=f'{split}/list.csv', root=str(folder))
  with pytest.raises(NoSplitError, match='there is one, two'):
    open_split(deep, 'train')


@pytest.mark.parametrize(
  ('column', 'given', 'names', 'labels'),
  [
    (['b', 'a', 'b', 'C'], '', ('C', 'a', 'b'), [2, 1, 2, 0]),
    (['10', '9', '-1', '9'], '', ('-1', '9', '10'), [2, 1, 0, 1]),
    (['10', '9', 'x', '9'], '', ('10', '9', 'x'), [0, 1, 2, 1]),
    (['b', 'a', 'b', '3'], 'a,z,b,c', ('a', 'z', 'b', 'c'), [2, 0, 2, 3]),
    (['1', '2', '2', '3'], '3,2,1', ('3', '2', '1'), [2, 1, 1, 0]),
    (['0', '3', '1', '1'], '4', ('0', '1', '2', '3'), [0, 3, 1, 1]),
  ],
)
def test_order_of_classes(folder, column, given, names, labels):
  config = dict(names={'label': given}) if given else {}
  for text, name in (
    (table('label', *column), 't.csv'),
    (lines(*({'label': int(v) if v.isdigit() else v} for v in column)), 't.jsonl'),
  ):
    source = opened(folder, text, name=name, **config)
    assert (source.class_names, source.labels) == (names, labels)


def test_several_classes(folder):
  want = [[1, 0], [], [1], [2]]
  source = opened(folder, table('labels', 'b|a', '', 'b', ' c '))
  assert (source.fields['labels'].names, values(source, 'labels')) == (('a', 'b', 'c'), want)
  rows = ({'labels': v} for v in (['b', 'a'], [], 'b', ['c']))
  assert values(opened(folder, lines(*rows), name='t.ndjson'), 'labels') == want
  text = table('a', 1, 0, 0, '', b=[1, 0, 1, ''], c=['', '0', 0, 1])
  source = opened(folder, text, fields={'labels': 'b, a, c'})
  assert (source.fields['labels'].names, values(source, 'labels')) == (
    ('b', 'a', 'c'), [[0, 1], [], [0], [2]],
  )  # fmt: skip
  named = dict(names={'labels': 'x,y,z'})
  source = opened(folder, text, fields={'labels': 'b, a, c'}, **named)
  assert source.fields['labels'].names == ('x', 'y', 'z')
  with pytest.raises(RunError, match=r'names\.labels has 3 names, and the source knows 2'):
    opened(folder, text, fields={'labels': 'a, b'}, **named)


def test_numbers_and_their_units(folder):
  nan = float('nan')
  text = table('age [years]', 1, 'NA', '', -2.5e1, **{'size (cm)': ['nan', 1, 2, 3], 't': [0] * 4})
  for asked in ('age, size', 'age [years], size (cm)', 'age (years), size [cm]'):
    source = opened(folder, text, fields={'target': f'vector: {asked}'})
    assert source.fields['target'] == Field('vector', ('age', 'size'), ('years', 'cm'))
    np.testing.assert_equal(values(source, 'target'), [[1, nan], [nan, 1], [nan, 2], [-25, 3]])
  assert '2 numbers: age [years], size [cm]' in source.summary()[0]
  named = dict(fields={'target': 't [K]'}, names={'target': 'temperature'})
  assert opened(folder, text, **named).fields['target'] == Field('vector', ('temperature',), ('K',))
  rows = lines({'target': [1, None]}, {}, {'target': [2.5, 'nan']}, {'target': [3, 4]})
  source = opened(folder, rows, name='t.jsonl')
  assert source.fields['target'] == Field('vector', ('target[0]', 'target[1]'), ('', ''))
  np.testing.assert_equal(values(source, 'target'), [[1, nan], [nan, nan], [2.5, nan], [3, 4]])
  both = table('t [s]', 1, 2, **{'t [m]': [3, 4]})
  asked = {'target': 't [m], t [s]'}
  assert opened(folder, both, fields=asked).fields['target'].names == ('t [m]', 't [s]')


def test_points(folder):
  nan = float('nan')
  text = table('eye_x', 1, '', eye_y=[2, ''], nose_x=[5, 6], nose_y=[7, 8])
  asked = {'points': 'eye_x, eye_y, nose_x, nose_y'}
  source = opened(folder, text, fields=asked)
  want = [[[1, 2], [5, 7]], [[nan, nan], [6, 8]]]
  np.testing.assert_equal(values(source, 'points'), want)
  assert source.fields['points'] == Field('points', ('eye', 'nose'))
  text = table('x1', 1, y1=[2], x2=[3], y2=[4])
  source = opened(folder, text, fields={'points': 'x1, y1, x2, y2'})
  assert source.fields['points'].names == ('p0', 'p1')
  rows = lines({'points': [[1, 2], [5, 7]]}, {'points': [None, [6, 8]]}, {})
  np.testing.assert_equal(
    values(opened(folder, rows, name='t.jsonl'), 'points'),
    [want[0], [[nan, nan], [6, 8]], [[nan, nan]] * 2],
  )


def boxes(source):
  for example in source:
    assert isinstance(example['boxes'], Boxes)
    n = len(example['boxes'].label)
    assert example['boxes'].corners.shape == (n, 4)
    assert example['boxes'].crowd.tolist() == [False] * n
  return [(e['boxes'].corners.tolist(), e['boxes'].label.tolist()) for e in source]


def test_boxes(folder):
  text = 'image,x0,y0,x1,y1,label,w\ni/a.png,0,0,2,3,dog,6\ni/b.png,,,,,,6\n'
  text += 'i/a.png,1,1,6,4,cat,6\ni/c.png,0,0.5,1,1,dog,6\n'
  want = [([[0, 0, 2, 3], [1, 1, 6, 4]], [1, 0]), ([], []), ([[0, 0.5, 1, 1]], [1])]
  fields = {'boxes': 'x0, y0, x1, y1, label', 'target': 'w'}
  source = opened(folder, text, fields=fields)
  assert boxes(source) == want
  assert source.fields['boxes'].names == ('cat', 'dog')
  assert source[0]['boxes'].area.tolist() == [6, 15]
  assert [e['name'][-5] for e in source] == ['a', 'b', 'c']
  assert source.summary()[2].endswith('4 lines, those of the same image together')
  rows = [{'o': {'b': corners, 'l': [['cat', 'dog'][i] for i in own]}} for corners, own in want]
  source = opened(folder, lines(*rows), name='t.jsonl', fields={'boxes': 'o/b, o/l'})
  assert boxes(source) == want
  usual = lines(*({'boxes': r['o']['b'], 'boxes_label': r['o']['l']} for r in rows))
  assert boxes(opened(folder, usual, name='t.jsonl')) == want
  source = opened(folder, text.replace('label', 'of'), fields={'boxes': 'x0, y0, x1, y1'})
  assert source.fields['boxes'].names == ('object',)
  with pytest.raises(RunError, match=r"line 4: w='7', but '6' in line 2 of the same image"):
    opened(folder, text.replace('cat,6', 'cat,7'), fields=fields)
  split = text.replace('w\n', 'split\n').replace('cat,6', 'cat,5')
  with pytest.raises(RunError, match=r"line 4: split='5', but '6' in line 2 of the same image"):
    opened(folder, split, '6', fields={'boxes': fields['boxes']})


def test_maps_and_texts(folder):
  text = table('mask', 'i/b.png', 'i/c.png', caption=['one', 'two'])
  source = opened(folder, text, names={'map': 'sky,sea'}, ignore=(255,))
  assert source.fields['map'] == Field('map', ('sky', 'sea'), ignore=(255,))
  assert [e['map'] for e in source] == [image(folder, 'b'), image(folder, 'c')]
  assert [e['text'] for e in source] == ['one', 'two']
  source = opened(folder, text)
  assert 'columns not used: mask (no data.source.names.map)' in source.summary()[-1]
  rows = lines({'text': ['one', 'eins']}, {'text': 'two'})
  assert [e['text'] for e in opened(folder, rows, name='t.jsonl')] == [('one', 'eins'), 'two']
  text = table('text', 'one').replace('image', 'id')
  source = opened(folder, text)
  assert source[0] == {'text': 'one', 'name': f'{folder}/t.csv/train line 2'}


def test_paths(folder, tmp_path):
  text = table('label', 'x', 'y').replace('i/b.png', f'{folder}/i/../i/b.png')
  (tmp_path / 'lists').mkdir()
  source = opened(folder, text, name='lists/t.csv', root=str(folder))
  assert [e['image'] for e in source] == [image(folder, 'a'), image(folder, 'b')]


def test_in_a_zip(folder):
  text = table('label', 'x', 'y', 'x', split=['train', 'train', 'test'])
  source = opened(folder, text)
  with zipfile.ZipFile(folder / 'all.zip', 'w') as archive:
    for path in ('t.csv', *(f'i/{name}.png' for name in NAMES)):
      archive.write(folder / path, path)
  packed = open_split(Manifest(f'{folder}/all.zip/t.csv'), 'train')
  beside = open_split(Manifest(f'{folder}/t.csv', root=f'{folder}/all.zip'), 'train')
  shift = lambda e: {**e, 'name': e['name'].replace('/all.zip', '')}  # noqa: E731
  assert [*map(shift, packed)] == [*map(shift, beside)] == list(source)
  assert packed[1]['name'] == f'{folder}/all.zip/i/b.png'
  with pytest.raises(NoSplitError, match=r'split}\.csv there is t'):
    open_split(Manifest(f'{folder}/all.zip/{{split}}.csv'), 'train')
  with pytest.raises(RunError, match=r'line 2: there is no file .*all\.zip/i/e\.png \(1 of 1 are'):
    opened(folder, 'image\ni/e.png', root=f'{folder}/all.zip')


def test_threads_and_pickles(folder):
  text = table('label', *NAMES, target=[1, 2, 3, 4])
  source = opened(folder, text)
  copy = pickle.loads(pickle.dumps(source))
  with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(copy.__getitem__, [0, 1, 2, 3] * 20))
  assert [e['image'] for e in found] == [image(folder, name) for name in NAMES] * 20
  assert copy.summary() == source.summary()


def test_files_are_looked_for(folder, monkeypatch):
  text = 'image\n' + ''.join(f'i/{name}.png\n' for name in ('a', 'x', 'b', 'y'))
  with pytest.raises(RunError) as caught:
    opened(folder, text)
  assert str(caught.value) == (
    f'{folder}/t.csv line 3: there is no file {folder}/i/x.png (2 of 4 are missing); paths start '
    f'from data.source.root, {folder}'
  )
  monkeypatch.setattr(manifest, '_ALL', 3)
  monkeypatch.setattr(manifest, '_SOME', 1)
  source = opened(folder, text)
  assert source.summary()[2].endswith('of its files only the first 1 were looked for')
  with pytest.raises(RunError, match=r'cannot read .*/i/x\.png: No such file'):
    source[1]
  with pytest.raises(RunError, match='https:// is the web'):
    opened(folder, 'image\nhttps://x.org/a.png')


@pytest.mark.parametrize(
  ('text', 'config', 'message'),
  [
    ('', {}, r't\.csv has no rows'),
    ('image,label\n', {}, r't\.csv has no rows'),
    ('image;label\na;b', {}, r"separated by ';': use commas in \.csv, tabs in \.tsv"),
    ('image,label,label\na,b,c', {}, r"two columns are called 'label'"),
    ('image,label\na,b\nc', {}, r'line 3: 1 values, and the header has 2 names'),
    ('image,label\n"a"b,c', {}, r"line 2: ',' expected after"),
    (b'\xff\xfe', {}, r'no text in UTF-8 \(invalid start byte at byte 0\): save it as UTF-8'),
    ('u,v\na,b', {}, r'has the columns u, v: say which is what, as in --config\.data\.source\.fi'),
    (table('a', 1), dict(fields={'q': 'class: no'}), r"has no column 'no': choose from image, a"),
    (table('a', 1), dict(fields={'q': 'masks: a'}), r'a manifest has no masks, only image, class'),
    (table('a', 1), dict(names={'no': '2'}), r'names\.no: there is no such field'),
    (table('a [s]', 1), dict(fields={'target': 'a [m]'}), r"no column fit 'a' \[m\] .* is a \[s\]"),
    (
      table('a [s]', 1, **{'a [m]': [2]}),
      dict(fields={'target': 'a'}),
      r"several columns fit 'a' \[\] of data\.source\.fields; there is a \[s\], a \[m\]",
    ),
    (table('target', 1, '1,5'), {}, r'line 3: 3 values'),
    (table('target', 1, 'x'), {}, r"line 3: target='x' is no number; what is not known is empty"),
    (table('target', 1, 'inf'), {}, r"line 3: target='inf' is no number"),
    (table('label', 'x', ''), {}, r'line 3: label is empty: of which class is it\?'),
    (
      table('label', 'x', 'y'),
      dict(names={'label': 'x,z'}),
      r"line 3: label='y' is no class of data\.source\.names\.label, which has x, z",
    ),
    (table('label', 0, 2), dict(names={'label': '2'}), r"line 3: label='2' is no class"),
    (table('label', 1, 0), dict(names={'label': '1,2'}), r"line 3: label='0' is no class"),
    (
      table('a', 1, 2, b=[0, 0]),
      dict(fields={'labels': 'a, b'}),
      r"line 3: a='2' is not 0 or 1, whether the class is there",
    ),
    (table('label', 'x', image='image').replace('i/a.png', ''), {}, r"line 2: image='' is no path"),
    (table('a', 1), dict(fields={'map': 'image'}), r'give data\.source\.names\.map, which is how'),
    (table('x', 1), dict(fields={'points': 'x, x, x'}), r'are x, y, x, y, \.\.\., and these are x'),
    (table('x1', 1, x2=[1]), dict(fields={'points': 'x1, x2'}), r'and these are x1, x2'),
    (table('x', 1), dict(fields={'points': 'x'}), r'points are pairs of columns'),
    (table('x', 1), dict(fields={'boxes': 'x'}), r"line 2: x='1' is no list of boxes; of none it"),
    (table('x', 1), dict(fields={'boxes': 'x, x, x'}), r'boxes are four columns or one of lists'),
    (table('x', 5, y=[4]), dict(fields={'boxes': 'x, x, y, y'}), r"line 2: \['5', '5', '4', '4'\]"),
    (table('x', '', y=[1]), dict(fields={'boxes': 'x, x, x, x, y'}), r'boxes: 0, classes of boxes'),
    ('x\n1', dict(fields={'boxes': 'x, x, x, x'}), r'boxes with a line each need a field of'),
  ],
)  # fmt: skip
def test_what_a_table_may_not_be(folder, text, config, message):
  with pytest.raises(RunError, match=message) as caught:
    opened(folder, text, **config)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"image": 1', r'line 1 is not JSON'),
    ('\n[1]', r'line 2 is not an object'),
    ('{"a": 1, "a": 2}', r"line 1 is not JSON: 'a' is there twice"),
    ('{"image": 1}', r'line 1: image=1 is no path'),
    (lines({'label': 'x'}, {}), r'line 2: label is empty'),
    (lines({'label': 0.5}), r'line 1: label=0\.5 is no name of a class'),
    (lines({'text': 1}), r'line 1: text=1 is no text'),
    (lines({'text': []}), r'line 1: text=\[\] is no text'),
    (lines({'target': True}), r'line 1: target=True is no number'),
    (
      lines({'target': [1]}, {'target': [1, 2]}),
      r'line 2: target=\[1, 2\] is no list of 1 num',
    ),
    (lines({'target': [1, 2]}, {'target': 1}), r'line 2: target=1 is no list of 2 numbers'),
    (lines({'points': [[1, 2]]}, {'points': [[1]]}), r'points=\[\[1\]\] is no list of 1 x 2 numb'),
    (lines({'boxes': []}, {}), r'line 2: boxes=None is no list of boxes; of none it is \[\]'),
    (lines({'boxes': [[1, 2, 3]]}), r'\[1, 2, 3\] is no box: they are left, top, right, bottom'),
    (lines({'boxes': [[5, 0, 3, 2]]}), r'\[5, 0, 3, 2\] is no box'),
    (lines({'boxes': [[0, 0, 3, None]]}), r'\[0, 0, 3, None\] is no box'),
    (lines({'boxes': [[0, 0, 1, 1]], 'boxes_label': []}), r'boxes: 1, classes of boxes: 0'),
  ],
)
def test_what_json_lines_may_not_be(folder, text, message):
  with pytest.raises(RunError, match=message) as caught:
    opened(folder, text, name='t.jsonl')
  assert '\n' not in str(caught.value)


def test_files_that_are_not_there(folder):
  with pytest.raises(NoDataError, match=r'there is no file .*no\.csv: set data\.source\.file'):
    open_split(Manifest(f'{folder}/no.csv'), 'train')
  with pytest.raises(RunError, match=r't\.json is of no kind .* with one of \.csv, \.tsv, \.jsonl'):
    opened(folder, '', name='t.json')
  text = table('label', 'x', 'y', split=['train', 'val'])
  with pytest.raises(NoSplitError, match=r"no split 'test': its column 'split' has train, val"):
    opened(folder, text, 'test')


def test_configurations(folder):
  (folder / 't.csv').write_text(table('y', 'a', 'b', t=[1, 2]))
  given = dict(file=str(folder / 't.csv'), fields={'label': 'y', 'target': 't [K]'}, ignore=(255,))
  assert schema.build(SOURCES['manifest'], given) == Manifest(**given)
  assert open_split(Manifest(**given), 'train')[0]['target'] == [1]
  assert schema.build(SOURCES['paired'], dict(dir='x', strip=('_m',))).strip == ('_m',)


# --- directories side by side ---


@pytest.fixture
def pairs(tmp_path):
  """Two images and their maps of two splits, as Paired has them unasked."""
  for at, split in enumerate(('train', 'test')):
    for value, (kind, name) in enumerate(
      (('images', 'x/1.jpg'), ('images', '2.png'), ('maps', 'x/1.png'), ('maps', '2.png'))
    ):
      path = tmp_path / 'pairs' / split / kind / name
      path.parent.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(path), np.full((4, 6), 10 * at + value, np.uint8))
  return tmp_path / 'pairs'


def contents(source, *names):
  return [tuple(example[name] for name in names or source.fields) for example in source]


def stored(root, *files):
  return tuple((root / file).read_bytes() for file in files)


def test_pairs(pairs):
  config = dict(names={'map': 'sky,sea'}, ignore=(255,))
  (pairs / 'train' / 'maps' / 'x' / 'notes.txt').write_text('by hand')
  source = open_split(Paired(dir=str(pairs), **config), 'train')
  train = pairs / 'train'
  want = [
    stored(train, f'images/{a}', f'maps/{b}')
    for a, b in (('2.png', '2.png'), ('x/1.jpg', 'x/1.png'))
  ]
  assert contents(source) == want
  assert source.fields['map'] == Field('map', ('sky', 'sea'), ignore=(255,))
  assert source[1]['name'] == f'{train}/images/x/1.jpg'
  assert source.summary() == [
    f'{train}: 2 examples of image, map (2 classes: sky, sea)',
    f'{train}: passed over of map: files that are not images (1 .txt)',
  ]
  copy = pickle.loads(pickle.dumps(source))
  with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(copy.__getitem__, [0, 1] * 20)) == [source[0], source[1]] * 20
  for start in ('', 'ADE/'):
    with zipfile.ZipFile(pairs / 'all.zip', 'w') as archive:
      for path in sorted(pairs.rglob('*.*g')):
        archive.write(path, f'{start}{path.relative_to(pairs)}')
    packed = open_split(Paired(dir=f'{pairs}/all.zip', **config), 'train')
    assert contents(packed) == want
    entered = f'{pairs}/all.zip: its only directory, ADE, is entered'
    assert (entered in packed.summary()) == bool(start)
    with pytest.raises(NoSplitError, match="no split 'val': it has test, train, in"):
      open_split(Paired(dir=f'{pairs}/all.zip', **config), 'val')


def test_other_layouts(pairs):
  fields = {'image': 'images/{split}', 'map': 'annotations/{split}'}
  for split in ('train', 'test'):
    for kind, other in (('images', 'images'), ('maps', 'annotations')):
      (pairs / other).mkdir(exist_ok=True)
      (pairs / split / kind).rename(pairs / other / split)
  source = open_split(Paired(dir=str(pairs), fields=fields, names={'map': '20'}), 'test')
  assert contents(source)[0] == stored(pairs, 'images/test/2.png', 'annotations/test/2.png')
  fields = {'before': 'image: images/test', 'after': 'image: annotations/test'}
  source = open_split(Paired(dir=str(pairs), fields=fields), 'train')
  assert contents(source)[0] == stored(pairs, 'images/test/2.png', 'annotations/test/2.png')
  assert {field.kind for field in source.fields.values()} == {'image'}
  with pytest.raises(NoSplitError, match="has no split 'test': it has train"):
    open_split(Paired(dir=str(pairs), fields=fields), 'test')


def test_ends_of_names_and_lone_files(pairs):
  train, config = pairs / 'train', dict(dir=str(pairs), names={'map': '30'})
  (train / 'maps' / '2.png').rename(train / 'maps' / '2_mask.png')
  (train / 'images' / 'x' / '1.jpg').rename(train / 'images' / 'x' / '1_rgb.jpg')
  with pytest.raises(RunError) as caught:
    open_split(Paired(**config), 'train')
  assert str(caught.value) == (
    f'{train}: of 4 examples 2 lack image (2_mask, x/1), 2 lack map (2, x/1_rgb). Where names '
    'differ at their end: data.source.strip; to leave these out: data.source.missing=skip'
  )
  with pytest.raises(RunError, match='no images in'):
    open_split(Paired(**config, missing='skip'), 'train')
  whole = open_split(Paired(**config, strip=('_mask', '_rgb')), 'train')
  assert contents(whole)[0] == stored(train, 'images/2.png', 'maps/2_mask.png')
  some = open_split(Paired(**config, strip=('_rgb',), missing='skip'), 'train')
  assert contents(some) == [stored(train, 'images/x/1_rgb.jpg', 'maps/x/1.png')]
  assert some.summary()[1:] == [f'{train}: left out: 1 lacks image (2_mask), 1 lacks map (2)']
  (train / 'images' / '2.jpg').touch()
  with pytest.raises(RunError, match=r"/2\.jpg and .*/2\.png are both '2': which belongs to"):
    open_split(Paired(**config), 'train')


def test_texts_beside_images(pairs):
  """Of one line or several, empty, in a directory of their own, missing, of other encodings."""
  folder = pairs / 'train/images'
  for name, text in (('2.txt', b'\xef\xbb\xbfone\r\n\n two \n'), ('x/1.TXT', 'grün\n'.encode())):
    (folder / name).write_bytes(text)
  config = dict(dir=str(folder), fields=captioned(folder))
  assert config['fields'] == {'image': '.', 'text': '.'}
  source = open_split(Paired(**config), 'train')
  want = [(stored(folder, '2.png')[0], ('one', 'two')), (stored(folder, 'x/1.jpg')[0], 'grün')]
  assert contents(source) == want
  assert source.summary() == [f'{folder}/train: 2 examples of image, text']
  assert found(folder) == Paired(**config)
  (folder / 'x/1.TXT').write_text(' \n')
  assert source[1]['text'] == ''
  (folder / 'x/1.TXT').write_bytes(b'gr\xfcn')
  with pytest.raises(
    RunError, match=r'x/1.TXT is no text in UTF-8 .*at byte 2.*: save it as UTF-8'
  ):
    source[1]
  (folder / 'x/1.TXT').unlink()
  with pytest.raises(RunError, match=r'of 2 examples 1 lacks text \(x/1\)'):
    open_split(Paired(**config), 'train')
  some = open_split(Paired(**config, missing='skip'), 'train')
  assert contents(some, 'text') == [(('one', 'two'),)]
  texts = pairs / 'train/texts/x'
  texts.mkdir(parents=True)
  (texts / '1.txt').write_text('a')
  (texts.parent / '2.txt').write_text('b')
  fields = {'image': '{split}/images', 'text': '{split}/texts'}
  source = open_split(Paired(dir=str(pairs), fields=fields), 'train')
  assert contents(source, 'text') == [('b',), ('a',)]
  assert not captioned(pairs)
  (pairs / 'train/a.png').write_bytes(stored(folder, '2.png')[0])
  (pairs / 'train/a.txt').write_text('a')
  assert captioned(pairs) == {'image': '{split}', 'text': '{split}'}


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (dict(dir='no'), r'there is no directory no: set data\.source\.dir'),
    (dict(names={}), r"the classes of 'map' are not in the files: give data\.source\.names\.map"),
    (dict(names={'no': '3'}), r'names\.map'),
    (dict(fields={'label': '{split}/x'}), r'a directory holds image, map, text, not class'),
    (dict(missing='x'), r"unknown data\.source\.missing 'x': choose from error, skip"),
    (dict(fields={'image': '{split}/images', 'map': '{split}/y'}), r'no directory .*train/y; '),
    (dict(fields={'image': '{split}/pics'}, names={}), r"no split 'train': it has none, in"),
  ],
)  # fmt: skip
def test_what_pairs_may_not_be(pairs, config, message):
  with pytest.raises(RunError, match=message):
    open_split(Paired(**dict(dir=str(pairs), names={'map': '3'}) | config), 'train')
