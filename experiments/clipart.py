"""Drawings with titles and keywords, of the Open Clip Art Library, which Debian ships.

    apt-get install openclipart-png openclipart-svg

8,121 drawings in the public domain, with what their authors said of them in the files of the second
package. Many titles say nothing: those of whole collections, and some that are on hundreds.
"""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import re
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np

INSTALLED = pathlib.Path('/usr/share/openclipart')
TEST = 500
# A title that is on more drawings is that of a collection.
_MOST = 5
_SPACE = {
  'dc': 'http://purl.org/dc/elements/1.1/', 'rdf': 'http://www.w3.org/1999/02/22-rdf-syntax-ns#',
}  # fmt: skip


def captioned(folder: pathlib.Path, side: int = 98) -> pathlib.Path:
  """Drawings on white with their captions, 500 titles of them to test on.

  Args:
    folder: where they are kept.
    side: of the images in pixels.

  Returns:
    A directory with train.jsonl and test.jsonl, of `image` and `text`, and the images; made once.
  """
  target = folder / f'clipart-{side}'
  if (target / 'test.jsonl').exists():
    return target
  if not (INSTALLED / 'png').is_dir() or not (INSTALLED / 'svg').is_dir():
    raise SystemExit('error: apt-get install openclipart-png openclipart-svg')
  told = {path.relative_to(INSTALLED / 'svg').with_suffix(''): said(path)
          for path in sorted((INSTALLED / 'svg').rglob('*.svg'))}  # fmt: skip
  counts = collections.Counter(title for title, _ in told.values())
  kept = {
    path: (plain(title), [plain(word) for word in words]) for path, (title, words) in told.items()
    if plain(title) and counts[title] <= _MOST and (INSTALLED / 'png' / f'{path}.png').exists()
  }  # fmt: skip
  # By their titles, in an order of no meaning.
  order = sorted({title for title, _ in kept.values()},
                 key=lambda title: hashlib.sha256(title.encode()).hexdigest())  # fmt: skip
  held_out = {*order[:TEST]}
  (target / 'images').mkdir(parents=True, exist_ok=True)
  lines: dict[str, list[str]] = {'train': [], 'test': []}
  seen: set[str] = set()
  for number, (path, (title, words)) in enumerate(kept.items()):
    split = 'test' if title in held_out else 'train'
    if split == 'test' and title in seen:  # one drawing of each
      continue
    seen.add(title)
    name = f'images/{number}.png'
    cv2.imwrite(str(target / name), on_white(INSTALLED / 'png' / f'{path}.png', side))
    text = ', '.join([title, *(word for word in dict.fromkeys(words) if word and word != title)])
    lines[split].append(json.dumps({'image': name, 'text': text}))
  for split, rows in lines.items():
    (target / f'{split}.jsonl').write_text('\n'.join([*rows, '']))
  return target


def said(path: pathlib.Path) -> tuple[str, list[str]]:
  """Title and keywords of a drawing; nothing where its file cannot be read."""
  try:
    tree = ElementTree.parse(path)
  except ElementTree.ParseError:
    return '', []
  title = tree.find('.//{*}Work/dc:title', _SPACE)
  words = tree.findall('.//{*}Work/dc:subject//rdf:li', _SPACE)
  text = lambda each: (each.text or '').strip() if each is not None else ''  # noqa: E731
  return text(title), [text(word) for word in words]


def plain(text: str) -> str:
  """In lower case, without the numbers, underscores and hyphens of names of files."""
  words = re.sub(r'[\d_\-.]+', ' ', text.lower()).split()
  return ' '.join(words) if any(len(word) > 1 for word in words) else ''


def on_white(path: pathlib.Path, side: int) -> np.ndarray:
  """uint8 (side, side, 3) in OpenCV's order: the whole drawing in the middle."""
  image: Any = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
  # All in 8 bits: some drawings have a hundred million pixels.
  if image.dtype == np.uint16:
    image = cv2.convertScaleAbs(image, alpha=255 / 65535)
  if image.ndim == 2:
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
  solid = image[..., :3]
  if image.shape[2] == 4:
    alpha = cv2.cvtColor(image[..., 3], cv2.COLOR_GRAY2BGR)
    solid = cv2.add(cv2.multiply(solid, alpha, scale=1 / 255), cv2.bitwise_not(alpha))
  scale = side / max(solid.shape[:2])
  rows, columns = (max(1, round(length * scale)) for length in solid.shape[:2])
  small = cv2.resize(
    solid, (columns, rows), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  )
  found = np.full((side, side, 3), 255, np.uint8)
  top, left = (side - rows) // 2, (side - columns) // 2
  found[top : top + rows, left : left + columns] = small
  return found
