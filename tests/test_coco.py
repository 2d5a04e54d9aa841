"""Annotations like those of COCO: what becomes of them, what is said, what is refused."""

import concurrent.futures
import copy
import json
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from vit_jax.core.errors import RunError
from vit_jax.data import fields, masks
from vit_jax.data.examples import NoDataError, NoSplitError
from vit_jax.data.sources import open_split
from vit_jax.data.sources.coco import Coco

# An image of each id, of a width and height of its own; that of 7 has no objects.
SIZES = {30: (20, 10), 7: (8, 9), 12: (12, 16)}
TRIANGLE, SQUARE = [[2, 1, 10, 1, 2, 9]], [[1, 1, 3, 1, 3, 3, 1, 3], [5, 5, 7, 5, 7, 8, 5, 8]]
RUNS = {'size': [10, 20], 'counts': [15, 3, 7, 3, 172]}


def annotation(number, image, category, bbox, segmentation=(), **others):
  return dict(id=number, image_id=image, category_id=category, bbox=bbox, area=5.5, iscrowd=0,
              segmentation=list(segmentation), **others)  # fmt: skip


INSTANCES = {
  'images': [
    dict(id=i, file_name=f'{i:03d}.png', width=w, height=h) for i, (w, h) in SIZES.items()
  ],
  # Ids with gaps, in no order.
  'categories': [dict(id=90, name='hat'), dict(id=1, name='man'), dict(id=18, name='dog')],
  'annotations': [
    annotation(501, 30, 18, [2, 1, 8, 8], TRIANGLE),
    annotation(502, 12, 1, [1, 1, 6, 7], SQUARE),
    {**annotation(503, 30, 90, [1.5, 5, 2, 3]), 'segmentation': RUNS, 'iscrowd': 1, 'area': 6},
  ],
}
CAPTIONS = {
  'images': INSTANCES['images'],
  'annotations': [
    dict(id=n, image_id=i, caption=text)
    for n, (i, text) in enumerate([(12, 'a'), (7, 'b'), (12, 'c'), (30, 'd')])
  ],
}
IDS = np.array([[0, 5], [300, 70_000]])
PANOPTIC = {
  'images': INSTANCES['images'],
  'categories': [dict(id=200, name='sky', isthing=0), dict(id=3, name='man')],
  'annotations': [
    dict(image_id=i, file_name=f'{i:03d}.png', segments_info=[
      dict(id=5, category_id=200, iscrowd=0), dict(id=70_000, category_id=3, iscrowd=i == 7),
    ]) for i in (7, 12, 30)
  ],
}  # fmt: skip


def make(root, instances=INSTANCES, *, name='annotations/instances_train2017.json', **others):
  """A data set; `others` are the contents of other files of annotations."""
  for path, data in {
    name: instances,
    **{f'annotations/{k}_train2017.json': v for k, v in others.items()},
  }.items():
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(json.dumps(data))
  (root / 'train2017').mkdir(exist_ok=True)
  for i, (width, height) in SIZES.items():
    Image.new('RGB', (width, height), (i, 0, 0)).save(root / 'train2017' / f'{i:03d}.png')
  (root / 'annotations' / 'panoptic_train2017').mkdir(parents=True, exist_ok=True)
  for i in SIZES:
    pixels = np.stack([IDS % 256, IDS // 256 % 256, IDS // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(root / 'annotations' / 'panoptic_train2017' / f'{i:03d}.png')
  return root


def refused(root, *parts, split='train2017', error=RunError, **options):
  with pytest.raises(error) as found:
    Coco(dir=str(root), **options).open(split)
  line = str(found.value)
  assert '\n' not in line
  for part in parts:
    assert str(part) in line


def said(source):
  """What is said behind the name of the source."""
  return [line.removeprefix(f'{source.name}: ') for line in source.summary()]


def drawn(example):
  """Masks of an example, by the size of its image."""
  width, height = SIZES[example['image_id']]
  return [masks.drawn(shape, (height, width)) for shape in example['masks'].shapes]


def test_objects(tmp_path):
  source = Coco(dir=str(make(tmp_path))).open('train2017')
  names = ('man', 'dog', 'hat')
  assert source.fields == {
    'image': fields.Field('image'), 'boxes': fields.Field('boxes', names),
    'labels': fields.Field('classes', names), 'masks': fields.Field('masks', names),
  }  # fmt: skip
  assert said(source) == [
    '3 examples of image, boxes (3 classes: man, dog, hat), labels (3 classes: man, dog, hat), '
    'masks (3 classes: man, dog, hat)',
    '1 images have no objects',
  ]  # fmt: skip
  first, second, third = source
  for example in source:
    assert example['labels'] == sorted({*example['boxes'].label.tolist()})
  path = tmp_path / 'train2017' / '030.png'
  assert (first['name'], first['image']) == (str(path), path.read_bytes())
  assert [e['image_id'] for e in source] == [30, 7, 12]
  assert [e['annotation_ids'].tolist() for e in source] == [[501, 503], [], [502]]
  boxes = first['boxes']
  assert boxes.corners.tolist() == [[2, 1, 10, 9], [1.5, 5, 3.5, 8]]
  assert boxes.label.tolist() == first['masks'].label.tolist() == [1, 2]
  assert boxes.crowd.tolist() == first['masks'].crowd.tolist() == [False, True]
  assert boxes.area.tolist() == [5.5, 6]
  assert not boxes.relative
  assert second['boxes'].corners.shape == (0, 4)
  assert second['masks'].shapes == []
  assert third['boxes'].corners.tolist() == [[1, 1, 7, 8]]
  assert (boxes.corners.dtype, boxes.area.dtype, boxes.crowd.dtype) == (float, float, bool)


def test_masks(tmp_path):
  """Against counts by hand: 28 centres of pixels are in the triangle."""
  first, _, third = Coco(dir=str(make(tmp_path))).open('train2017')
  triangle, runs = drawn(first)
  y, x = np.mgrid[:10, :20] + 0.5
  assert triangle.sum() == 28
  assert np.array_equal(triangle, (x > 2) & (y > 1) & (x + y < 11))
  wanted = np.zeros((10, 20), bool)
  wanted[5:8, 1:3] = True
  assert np.array_equal(runs, wanted)
  (squares,) = drawn(third)
  wanted = np.zeros((16, 12), bool)
  wanted[1:3, 1:3] = wanted[5:8, 5:7] = True
  assert np.array_equal(squares, wanted)
  assert all(p.dtype == float and p.shape == (4, 2) for p in third['masks'].shapes[0])


def test_order(tmp_path):
  """Of the objects of an image: that of the file."""
  every = [annotation(i, (30, 12)[i % 2], 1, [1, 1, 2, 2]) for i in range(100)]
  source = Coco(dir=str(make(tmp_path, {**INSTANCES, 'annotations': every}))).open('train2017')
  assert source[0]['annotation_ids'].tolist() == [*range(0, 100, 2)]
  assert source[2]['annotation_ids'].tolist() == [*range(1, 100, 2)]


def test_compressed_run_lengths_are_handed_on(tmp_path):
  data = copy.deepcopy(INSTANCES)
  data['annotations'][2]['segmentation'] = {'size': [10, 20], 'counts': '?370l4', 'more': 1}
  first = Coco(dir=str(make(tmp_path, data))).open('train2017')[0]
  assert first['masks'].shapes[1] == {'size': [10, 20], 'counts': '?370l4'}


def test_what_is_left_out_is_said(tmp_path):
  data = copy.deepcopy(INSTANCES)
  width, height = SIZES[7]
  data['annotations'] += [
    annotation(1, 7, 1, [-3, 2, 5, 20], TRIANGLE),  # cut
    annotation(2, 7, 1, [-0.5, 2, 5, height - 2 + 0.5], TRIANGLE),  # cut, and not worth a word
    annotation(3, 7, 1, [2, 2, 0, 3], TRIANGLE),
    annotation(4, 7, 1, [2, 2, 3, -1], TRIANGLE),
    annotation(5, 7, 1, [width, 2, 3, 3], TRIANGLE),  # beside the image
    annotation(6, 8, 1, [2, 2, 3, 3], TRIANGLE),
    annotation(7, 9, 1, [0, 0, 0, 0], TRIANGLE),
  ]
  del data['annotations'][3]['area'], data['annotations'][3]['iscrowd']
  data['annotations'][4]['area'] = None
  make(tmp_path, data)
  for name in ('more.jpg', 'notes.txt'):
    (tmp_path / 'train2017' / name).touch()
  source = Coco(dir=str(tmp_path)).open('train2017')
  assert said(source)[1:] == [
    '2 annotations of images that are not listed are left out',
    '3 boxes without width or height in their image are left out',
    '1 boxes reach more than a pixel beyond their image, and are cut',
    f'1 images in {tmp_path}/train2017 are not listed, and passed over',
  ]
  boxes = source[1]['boxes']
  assert boxes.corners.tolist() == [[0, 2, 2, height], [0, 2, 4.5, height]]
  assert boxes.area.tolist() == [2 * (height - 2), 4.5 * (height - 2)]
  assert source[1]['annotation_ids'].tolist() == [1, 2]


def test_no_masks_where_some_have_none(tmp_path):
  data = copy.deepcopy(INSTANCES)
  data['annotations'][0]['segmentation'] = []
  del data['annotations'][1]['segmentation']
  source = Coco(dir=str(make(tmp_path, data))).open('train2017')
  assert source.fields.keys() == {'image', 'boxes', 'labels'}
  assert 'no masks, as 2 of 3 objects have none' in said(source)
  assert 'masks' not in source[0]


def test_panoptic_and_captions(tmp_path):
  make(tmp_path, panoptic=PANOPTIC, captions=CAPTIONS)
  more = dict(
    panoptic='annotations/panoptic_{split}.json', captions='annotations/captions_{split}.json'
  )
  source = Coco(dir=str(tmp_path), **more).open('train2017')
  assert source.fields['panoptic'] == fields.Field('panoptic', ('man', 'sky'), stuff=('sky',))
  assert source.fields['text'] == fields.Field('text')
  assert [e['text'] for e in source] == [('d',), ('b',), ('a', 'c')]
  example = source[1]
  assert example.keys() == {'image', 'boxes', 'labels', 'masks', 'panoptic', 'text', 'image_id',
                            'annotation_ids', 'name'}  # fmt: skip
  assert np.array_equal(masks.decode_panoptic(example['panoptic']), IDS)
  assert example['panoptic'].segments == {5: (1, False), 70_000: (0, True)}
  assert source[2]['panoptic'].segments[70_000] == (0, False)
  alone = Coco(dir=str(tmp_path), **{**more, 'annotations': ''}).open('train2017')
  assert alone.fields.keys() == {'image', 'panoptic', 'text'}
  assert alone[2] == {k: v for k, v in source[2].items() if k in alone[2]}


def test_images_alone(tmp_path):
  data = {'images': INSTANCES['images'], 'categories': INSTANCES['categories']}
  make(tmp_path, data, name='annotations/image_info_train2017.json')
  config = Coco(dir=str(tmp_path), annotations='annotations/image_info_{split}.json')
  source = config.open('train2017')
  assert source.fields.keys() == {'image'}
  assert source[0].keys() == {'image', 'image_id', 'name'}
  assert 'has no annotations: examples are images alone' in said(source)[1]


def test_other_places(tmp_path):
  """Annotations among the images, images in directories, images in a zip file."""
  data = copy.deepcopy(INSTANCES)
  make(tmp_path, data, name='train2017/_annotations.json')
  source = Coco(dir=str(tmp_path), annotations='{split}/_annotations.json').open('train2017')
  assert len(said(source)) == 2
  with zipfile.ZipFile(tmp_path / 'train2017.zip', 'w') as file:
    for i, image in enumerate(data['images']):
      path = tmp_path / 'train2017' / image['file_name']
      image['file_name'] = f'{"ab"[i % 2]}/{path.name}'
      file.writestr(f'train2017/{image["file_name"]}', path.read_bytes())
  make(tmp_path, data)
  other = Coco(dir=str(tmp_path), images='{split}.zip/{split}').open('train2017')
  assert [e['image'] for e in other] == [e['image'] for e in source]
  assert other[1]['name'] == f'{tmp_path}/train2017.zip/train2017/b/007.png'


def test_in_a_zip(tmp_path):
  """All of it: files of annotations, images, and maps of segments."""
  folder = make(tmp_path / 'coco', panoptic=PANOPTIC, captions=CAPTIONS)
  with zipfile.ZipFile(tmp_path / 'coco.zip', 'w') as file:
    for path in sorted(folder.rglob('*.*')):
      file.write(path, path.relative_to(tmp_path))
  parts = dict(panoptic='annotations/panoptic_{split}.json',
               captions='annotations/captions_{split}.json')  # fmt: skip
  source, zipped = (Coco(dir=f'{tmp_path}/{name}', **parts).open('train2017')
                    for name in ('coco', 'coco.zip/coco'))  # fmt: skip
  assert zipped.fields == source.fields
  assert said(zipped) == said(source)
  for one, other in zip(source, zipped, strict=True):
    assert other['name'] == one['name'].replace('/coco/', '/coco.zip/coco/')
    assert (one['image'], one['panoptic'], one['text']) == (
      other['image'], other['panoptic'], other['text'])  # fmt: skip
    np.testing.assert_equal(one['boxes'], other['boxes'])
  refused(tmp_path / 'coco.zip' / 'coco', 'val', 'train2017', split='val', error=NoSplitError)


def test_splits(tmp_path):
  make(tmp_path)
  refused(tmp_path, "no split 'val2017'", 'instances_val2017.json', 'there are train2017',
          split='val2017', error=NoSplitError)  # fmt: skip
  refused(tmp_path, 'there are none', captions='annotations/c_{split}.json', error=NoSplitError)
  refused(tmp_path / 'x', 'no directory', 'set data.source.dir', error=NoDataError)
  refused(tmp_path, 'lacks 3 of 3 images: 007.png, 012.png, 030.png', images='val2017')
  (tmp_path / 'train2017' / '012.png').unlink()
  refused(tmp_path, f'{tmp_path}/train2017 lacks 1 of 3 images: 012.png')
  with pytest.raises(RunError, match=r'annotations=.a\.json. lacks \{split\}, for the name'):
    Coco(dir='', annotations='a.json')
  with pytest.raises(RunError, match='set one of annotations, panoptic, captions'):
    Coco(dir='', annotations='')


def changed(data, *keys, to=None):
  """A copy with a value changed, or left out."""
  data = copy.deepcopy(data)
  place = data
  for key in keys[:-1]:
    place = place[key]
  place[keys[-1]] = to
  if to is None:
    del place[keys[-1]]
  return data


@pytest.mark.parametrize(
  ('keys', 'to', 'parts'),
  [
    (['images'], None, ["no list 'images', as files of COCO have"]),
    (['images'], [], ['has no images, or two of the same id']),
    (['images', 1, 'id'], 30, ['or two of the same id']),
    (['images', 1, 'file_name'], None, ["number 1 of its images has no 'file_name'"]),
    (['images', 1], 'x', ["number 1 of its images has no 'id'"]),
    (['images', 1, 'width'], 'x', ["not every 'width' of its images is a number"]),
    (['images', 1, 'width'], 0, ['whose width or height is not above 0']),
    (['categories'], None, ["no list 'categories'"]),
    (['categories', 0, 'name'], 'man', ['no categories, or two of the same id or name']),
    (['categories', 0, 'id'], 1, ['no categories, or two of the same id or name']),
    (['annotations'], {}, ["no list 'annotations'"]),
    (['annotations', 2, 'bbox'], None, ["number 2 of its annotations has no 'bbox'"]),
    (['annotations', 2, 'bbox'], [1, 2, 3], ["not every 'bbox' of its annotations is 4 numbers"]),
    (['annotations', 2, 'category_id'], 2, ['annotations of the category 2, which it lacks']),
    (['annotations', 2, 'image_id'], None, ["has no 'image_id'"]),
    (['annotations', 2, 'segmentation'], [[1, 2, 3]], ['annotation 503 has a polygon of half']),
    (['annotations', 2, 'segmentation'], [1, 2, 3], ['of the annotation 503 is neither polygons']),
    (['annotations', 2, 'segmentation'], {'size': 1}, ['neither polygons nor run lengths']),
  ],
)
def test_files_that_are_not_so(tmp_path, keys, to, parts):
  make(tmp_path, changed(INSTANCES, *keys, to=to))
  refused(tmp_path, tmp_path / 'annotations' / 'instances_train2017.json', *parts)


@pytest.mark.parametrize(
  ('part', 'data', 'parts'),
  [
    ('captions', changed(CAPTIONS, 'annotations', 1), ['nothing of 1 of 3 images, such as id 7']),
    ('captions', changed(CAPTIONS, 'annotations', 1, 'caption'), ["has no 'caption'"]),
    ('panoptic', changed(PANOPTIC, 'annotations', 1), ['nothing of 1 of 3 images, such as id 12']),
    ('panoptic', changed(PANOPTIC, 'annotations', 1, 'image_id', to=7), ['such as id 12']),
    ('panoptic', {**PANOPTIC, 'annotations': PANOPTIC['annotations'] * 2},
     ['two annotations of the image 30']),
    ('panoptic', changed(PANOPTIC, 'annotations', 1, 'segments_info', 0, 'category_id', to=4),
     ['annotations of the category 4']),
    ('panoptic', changed(PANOPTIC, 'annotations', 1, 'segments_info', 0, 'id'),
     ["a segment without 'id'"]),
    ('panoptic', changed(PANOPTIC, 'annotations', 1, 'file_name', to='no.png'),
     ['panoptic_train2017 lacks 1 of 3 images: no.png']),
  ],
)  # fmt: skip
def test_other_files_that_are_not_so(tmp_path, part, data, parts):
  make(tmp_path, **{part: data})
  refused(tmp_path, *parts, **{part: f'annotations/{part}_{{split}}.json'})


def test_annotations_of_other_images_are_counted(tmp_path):
  data = changed(CAPTIONS, 'annotations', 0, 'image_id', to=99)
  make(tmp_path, captions=data)
  source = Coco(dir=str(tmp_path), captions='annotations/captions_{split}.json').open('train2017')
  assert source[2]['text'] == ('c',)
  assert '1 annotations of images that are not listed are left out' in said(source)


@pytest.mark.parametrize('text', ['', '{"images": [', '[1]', '\xff'])
def test_files_that_are_not_json(tmp_path, text):
  path = make(tmp_path) / 'annotations' / 'instances_train2017.json'
  path.write_bytes(text.encode('latin-1'))
  refused(tmp_path, path)


def same(one, other):
  """Whether two examples are the same, arrays and all."""
  if isinstance(one, dict):
    return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
  if isinstance(one, tuple | list):
    return len(one) == len(other) and all(map(same, one, other))
  return np.array_equal(one, other)


def test_copies_and_threads_read_the_same(tmp_path):
  make(tmp_path, panoptic=PANOPTIC, captions=CAPTIONS)
  more = dict(
    panoptic='annotations/panoptic_{split}.json', captions='annotations/captions_{split}.json'
  )
  source = Coco(dir=str(tmp_path), **more).open('train2017')
  copied = pickle.loads(pickle.dumps(source))
  order = np.random.default_rng(0).integers(0, 3, 200).tolist()
  want = [source[i] for i in range(3)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for each in (source, copied):
      assert all(
        same(e, want[i]) for i, e in zip(order, pool.map(each.__getitem__, order), strict=True)
      )
  assert open_split(Coco(dir=str(tmp_path)), 'train2017').fields['image'].channels == 3
